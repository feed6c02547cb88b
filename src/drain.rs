//! The end of the process: a switch that says it has begun, and a count of what still runs. The
//! drain that a hook calls for before that end is in [`crate::prestop`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::metrics::Metrics;

pub mod in_flight;

use in_flight::InFlight;

/// How long nothing may run before a drain is over: the agent opens connections anew while it
/// drains itself, and must not find the door shut between two of them.
pub const QUIET: Duration = Duration::from_secs(1);

/// Shared by everything that carries work. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Drain {
    begun: Arc<watch::Sender<bool>>,
    called: Arc<watch::Sender<bool>>,
    running: Arc<watch::Sender<usize>>,
    in_flight: InFlight,
}

impl Default for Drain {
    fn default() -> Self {
        Drain {
            begun: Arc::new(watch::Sender::new(false)),
            called: Arc::new(watch::Sender::new(false)),
            running: Arc::new(watch::Sender::new(0)),
            in_flight: InFlight::default(),
        }
    }
}

/// Counts one piece of work while it lives.
#[derive(Debug)]
pub struct Busy(Arc<watch::Sender<usize>>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

impl Drain {
    /// With a count of calls that `/metrics` shows.
    pub fn exported(metrics: &Metrics) -> Self {
        Drain {
            in_flight: InFlight::exported(metrics),
            ..Drain::default()
        }
    }

    /// The count of inference calls.
    pub fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// Begins. Cannot be taken back.
    pub fn begin(&self) {
        self.begun.send_replace(true);
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        *self.begun.borrow()
    }

    /// Completes when it has begun.
    pub async fn begun(&self) {
        // The sender is held by `self`, so waiting cannot fail.
        let _ = self.begun.subscribe().wait_for(|begun| *begun).await;
    }

    /// Begins or undoes a drain that somebody has called for; the process goes on.
    pub fn call(&self, on: bool) {
        self.called.send_replace(on);
    }

    /// Whether somebody has called for one, and it was not taken back.
    pub fn is_called(&self) -> bool {
        *self.called.borrow()
    }

    /// Completes when a drain begins, is called for or is undone.
    pub async fn changed(&self) {
        let (mut begun, mut called) = (self.begun.subscribe(), self.called.subscribe());
        // The senders are held by `self`, so waiting cannot fail.
        tokio::select! {
            _ = begun.changed() => {}
            _ = called.changed() => {}
        }
    }

    /// Counts work until the guard is dropped.
    pub fn busy(&self) -> Busy {
        self.running.send_modify(|n| *n += 1);
        Busy(self.running.clone())
    }

    /// How much runs now.
    pub fn running(&self) -> usize {
        *self.running.borrow()
    }

    /// Waits until nothing has run for [`QUIET`], for `limit` at most. True where all of it ended.
    pub async fn wait(&self, limit: Duration) -> bool {
        let mut running = self.running.subscribe();
        let quiet = async {
            loop {
                // The sender is held by `self`, so waiting cannot fail.
                let _ = running.wait_for(|n| *n == 0).await;
                if timeout(QUIET, running.wait_for(|n| *n > 0)).await.is_err() {
                    return;
                }
            }
        };
        timeout(limit, quiet).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_when_nothing_has_run_for_a_while() {
        let drain = Drain::default();
        let start = Instant::now();
        let busy = drain.busy();
        let late = drain.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(3)).await;
            drop(busy);
            sleep(QUIET / 2).await;
            let again = late.busy();
            sleep(Duration::from_secs(2)).await;
            drop(again);
        });
        assert!(drain.wait(Duration::from_secs(100)).await);
        let took = start.elapsed();
        assert!(
            took >= Duration::from_millis(6500) && took < Duration::from_secs(7),
            "{took:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_bounded() {
        let drain = Drain::default();
        let _busy = drain.busy();
        let start = Instant::now();
        assert!(!drain.wait(Duration::from_secs(100)).await);
        assert_eq!(start.elapsed(), Duration::from_secs(100));
        assert_eq!(drain.running(), 1);
    }
}
