//! The one live subscription: who holds it, how it is told to end, and what its end means for the
//! next one.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::metrics::{SubscriptionMetrics, Turn};
use super::pace::{Pacer, Renewer};
use super::status::{Phase, Status, Wanted};
use crate::clock::Clock;

/// Why the shim ends a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The agent has subscribed again. The scheduler would keep the new one waiting until the old
    /// one has ended.
    Superseded,
    /// What was reported is no longer true.
    Renewed,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ending::Superseded => "a newer subscription has taken the place of this one",
            Ending::Renewed => {
                "the capacity or the capabilities of the server have changed: subscribe again"
            }
        })
    }
}

/// Knows the live subscription. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    clock: Clock,
    status: watch::Sender<Status>,
    metrics: SubscriptionMetrics,
    settle: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    end: Option<watch::Sender<Option<Ending>>>,
    renewer: Option<Renewer<Wanted>>,
    pacer: Pacer,
}

impl Registry {
    /// Nobody has subscribed yet.
    pub fn new(
        clock: Clock,
        settle: Duration,
        status: watch::Sender<Status>,
        metrics: SubscriptionMetrics,
    ) -> Self {
        Registry {
            clock,
            status,
            metrics,
            settle,
            state: Arc::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent subscribes: an older subscription ends.
    pub fn enter(&self) -> Live {
        let (end, ended) = watch::channel(None);
        let mut state = self.state();
        if let Some(older) = state.end.replace(end) {
            older.send_replace(Some(Ending::Superseded));
        }
        state.renewer = None;
        state.last_id += 1;
        Live {
            registry: self.clone(),
            id: state.last_id,
            ended,
            opened: None,
            over: None,
        }
    }

    /// How long the next stream to the scheduler has to wait.
    pub fn wait(&self) -> Duration {
        self.state().pacer.wait(self.clock.now())
    }

    /// Looks at the live subscription with `decide`; ends it where that says so.
    pub fn renew<R>(
        &self,
        decide: impl FnOnce(&mut Renewer<Wanted>, Duration) -> (R, bool),
    ) -> Option<R> {
        let mut state = self.state();
        let now = self.clock.now();
        let (answer, end) = decide(state.renewer.as_mut()?, now);
        if end {
            state.renewer = None;
            if let Some(live) = &state.end {
                live.send_replace(Some(Ending::Renewed));
            }
        }
        Some(answer)
    }

    /// The agent has asked for a drain; its next subscription is the end of it.
    pub fn draining(&self) {
        let now = self.clock.now();
        self.status
            .send_modify(|status| status.drain_asked = Some(now));
    }

    fn phase(&self, id: u64, phase: Phase) {
        if self.state().last_id != id {
            return;
        }
        let now = self.clock.now();
        self.metrics.open.set(i64::from(phase == Phase::Open));
        self.status.send_if_modified(|status| {
            let changed = status.phase != phase;
            if std::mem::discriminant(&status.phase) != std::mem::discriminant(&phase) {
                status.since = now;
            }
            status.phase = phase;
            changed
        });
    }
}

/// One subscription of the agent, from its request to its end. Dropping it says that it is over.
#[derive(Debug)]
pub struct Live {
    registry: Registry,
    id: u64,
    ended: watch::Receiver<Option<Ending>>,
    opened: Option<Duration>,
    over: Option<Turn>,
}

impl Live {
    /// Completes when the shim itself wants this subscription to end.
    pub fn ended(&self) -> impl Future<Output = Ending> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            match ended.wait_for(Option::is_some).await.map(|e| *e) {
                Ok(Some(ending)) => ending,
                _ => std::future::pending().await,
            }
        }
    }

    /// Publishes where it stands.
    pub fn phase(&self, phase: Phase) {
        self.registry.phase(self.id, phase);
    }

    /// The stream to the scheduler is open, with this report.
    pub fn open(&mut self, scheduler: String, reported: Option<Wanted>) {
        let now = self.registry.clock.now();
        self.opened = Some(now);
        self.registry.metrics.turn(Turn::Opened);
        {
            let mut state = self.registry.state();
            if state.last_id == self.id {
                state.renewer =
                    reported.map(|reported| Renewer::new(reported, now, self.registry.settle));
            }
        }
        self.registry
            .status
            .send_modify(|status| status.scheduler = Some(scheduler));
        self.phase(Phase::Open);
    }

    /// What the scheduler answered, where it refused; `None` where it took the subscription.
    pub fn refused(&self, answer: Option<String>) {
        self.registry.status.send_if_modified(|status| {
            let changed = status.refusal != answer;
            status.refusal = answer;
            changed
        });
    }

    /// An attempt failed after all; the subscription goes on with the next one.
    pub fn not_open(&mut self) {
        self.opened = None;
    }

    /// How it ended; where nobody says, the agent went away or the shim wanted it.
    pub fn over(&mut self, turn: Turn) {
        self.over = Some(turn);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let ending = *self.ended.borrow();
        let turn = self.over.unwrap_or(match ending {
            Some(Ending::Superseded) => Turn::Superseded,
            Some(Ending::Renewed) => Turn::Renewed,
            None => Turn::EndedByAgent,
        });
        self.registry.metrics.turn(turn);
        let now = self.registry.clock.now();
        let lived = self.opened.map(|opened| now.saturating_sub(opened));
        tracing::info!(how = turn.as_str(), ?lived, "the subscription has ended");
        // A stream that was ended at once must not be opened again at once.
        if let Some(lived) = lived {
            let pacer = &mut self.registry.state().pacer;
            match turn {
                Turn::EndedByScheduler | Turn::Lost => pacer.ended(now, lived, fastrand::f64()),
                Turn::EndedByAgent | Turn::Superseded => {
                    pacer.ended_by_agent(now, lived, fastrand::f64());
                }
                _ => {}
            }
        }
        self.phase(Phase::None);
        let mut state = self.registry.state();
        if state.last_id == self.id {
            state.end = None;
            state.renewer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn wanted(memory: u64) -> Wanted {
        Wanted {
            memory,
            capabilities: Vec::new(),
            workers: None,
        }
    }

    fn reported(registry: &Registry) -> Option<u64> {
        registry.renew(|renewer, _| (renewer.reported().memory, false))
    }

    #[test]
    fn the_report_and_the_end_of_an_older_subscription_are_not_the_newer_ones() {
        let metrics = SubscriptionMetrics::new(&Metrics::new());
        let (status, _) = watch::channel(Status::default());
        let registry = Registry::new(Clock::start(), Duration::ZERO, status, metrics);
        let mut older = registry.enter();
        older.open("scheduler:9005".into(), Some(wanted(8)));
        assert_eq!(reported(&registry), Some(8));
        let mut newer = registry.enter();
        assert_eq!(
            reported(&registry),
            None,
            "the newer one has reported nothing"
        );
        // Its answer was there in the moment in which it was told to end.
        older.open("scheduler:9005".into(), Some(wanted(8)));
        assert_eq!(reported(&registry), None);
        newer.open("scheduler:9005".into(), Some(wanted(9)));
        older.open("scheduler:9005".into(), Some(wanted(8)));
        assert_eq!(reported(&registry), Some(9));
        drop(older);
        assert_eq!(reported(&registry), Some(9));
        drop(newer);
        assert_eq!(reported(&registry), None);
    }
}
