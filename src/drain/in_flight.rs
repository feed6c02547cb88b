//! Inference calls that run now, whichever way they are carried.
//!
//! A connection is no call: the agent keeps dozens open that carry nothing, and an inference that
//! takes its time moves no byte. So calls are counted where they begin and end: HTTP calls by
//! their answers' last byte, gRPC calls by the heads of their frames. Health and repository calls
//! are not inference: a load may take an hour, and what it loads ends with the server.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::metrics::Metrics;

/// The count. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InFlight {
    count: Arc<watch::Sender<usize>>,
    gauge: IntGauge,
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
            count: Arc::new(watch::Sender::new(0)),
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
            self.count.send_modify(|n| *n = *n + after - before);
            self.gauge.add(after as i64 - before as i64);
        }
    }

    /// How many run now.
    pub fn now(&self) -> usize {
        *self.count.borrow()
    }

    /// Completes when none has run, not even for a moment, for as long as `settle`.
    pub async fn quiet(&self, settle: Duration) {
        let mut count = self.count.subscribe();
        loop {
            // The sender is held by `self`, so waiting cannot fail.
            let _ = count.wait_for(|n| *n == 0).await;
            if timeout(settle, count.changed()).await.is_err() {
                return;
            }
        }
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
