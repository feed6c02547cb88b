//! Inference calls that run now, whichever way they are carried.
//!
//! A connection is no call: the agent keeps dozens open that carry nothing, and an inference that
//! takes its time moves no byte. So calls are counted where they begin and end: HTTP calls by
//! their answers' last byte, gRPC calls by the heads of their frames. Health and repository calls
//! are not inference: a load may take an hour, and what it loads ends with the server.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::metrics::Metrics;

/// The count. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InFlight {
    count: Arc<Count>,
    gauge: IntGauge,
}

/// Calls come by the thousand and somebody waits for them once a day: so a change is two
/// additions, and wakes only where there is somebody to wake.
#[derive(Debug, Default)]
struct Count {
    now: AtomicUsize,
    /// Changes since the start, so that a call that came and went in a moment is seen.
    changes: AtomicU64,
    answers: AtomicU64,
    waiting: AtomicUsize,
    changed: Notify,
}

/// One call, until it is dropped.
#[derive(Debug)]
pub struct One(InFlight);

impl Drop for One {
    fn drop(&mut self) {
        self.0.moved(1, 0);
    }
}

impl Default for InFlight {
    fn default() -> Self {
        let gauge = IntGauge::new("in_flight", "Not exported.").expect("the name is well formed");
        InFlight {
            count: Arc::default(),
            gauge,
        }
    }
}

impl InFlight {
    /// A count that `/metrics` shows.
    pub fn exported(metrics: &Metrics) -> Self {
        InFlight {
            gauge: metrics.int_gauge(
                "agent_shim_relay_running_calls",
                "Inference calls that run now, over HTTP and gRPC; 0 in observe mode, which does not look.",
            ),
            ..InFlight::default()
        }
    }

    /// Counts one call until the guard is dropped.
    pub fn one(&self) -> One {
        self.moved(0, 1);
        One(self.clone())
    }

    /// Someone's own count has moved from `before` to `after`.
    pub fn moved(&self, before: usize, after: usize) {
        if before != after {
            if after > before {
                self.count.now.fetch_add(after - before, SeqCst);
            } else {
                self.count.now.fetch_sub(before - after, SeqCst);
            }
            self.count.changes.fetch_add(1, SeqCst);
            if self.count.waiting.load(SeqCst) > 0 {
                self.count.changed.notify_waiters();
            }
            self.gauge.add(after as i64 - before as i64);
        }
    }

    /// How many run now.
    pub fn now(&self) -> usize {
        self.count.now.load(SeqCst)
    }

    /// A result, or a piece of one, has come from the server's worker.
    pub fn answered(&self) {
        self.count.answers.fetch_add(1, Relaxed);
    }

    /// How often that was so: a call may also end because its caller has gone.
    pub fn answers(&self) -> u64 {
        self.count.answers.load(Relaxed)
    }

    /// Completes when none has run, not even for a moment, for as long as `settle`.
    pub async fn quiet(&self, settle: Duration) {
        let count = &*self.count;
        let _waiting = Waiting::new(count);
        loop {
            let changed = count.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed: first it is listened, then looked.
            changed.as_mut().enable();
            let seen = count.changes.load(SeqCst);
            if count.now.load(SeqCst) > 0 {
                changed.await;
                continue;
            }
            if timeout(settle, changed).await.is_err() && count.changes.load(SeqCst) == seen {
                return;
            }
        }
    }
}

/// One who waits for a change, until dropped.
struct Waiting<'a>(&'a Count);

impl<'a> Waiting<'a> {
    fn new(count: &'a Count) -> Self {
        count.waiting.fetch_add(1, SeqCst);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn a_call_that_came_and_went_in_a_moment_is_no_quiet() {
        let calls = InFlight::default();
        let start = Instant::now();
        let other = calls.clone();
        tokio::spawn(async move {
            let long = other.one();
            sleep(Duration::from_secs(5)).await;
            drop(long);
            sleep(Duration::from_millis(900)).await;
            drop(other.one());
        });
        calls.quiet(Duration::from_secs(1)).await;
        assert_eq!(start.elapsed(), Duration::from_millis(6900));
        assert_eq!(calls.now(), 0);
    }
}
