//! What is known, for everything that reports it: conditions, verdicts, the parts of the status
//! document. One place, so that probes, metrics, gRPC health and `/status` cannot disagree.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntGaugeVec;
use tokio::sync::watch;

use crate::admin::Probe;
use crate::agent::Seen;
use crate::capability;
use crate::clock::Clock;
use crate::config::Mode;
use crate::doctor::watch::History;
use crate::drain::Drain;
use crate::history::{Change, What};
use crate::metrics::Metrics;
use crate::models::Inventory;
use crate::observer::Observed;
use crate::places::Places;
use crate::prestop::Handle;
use crate::prober::Watching;
use crate::readiness::{Condition, Facts, NAMES, body, conditions, ready, started};
use crate::registration::{Registration, judge};
use crate::restore::{self, Memory};
use crate::subscription::status::Status;
use crate::view::View;
use crate::worker::{self, Worker};

/// Shared by the admin port and the reporters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shared {
    /// `correct` or `observe`.
    pub mode: Mode,
    /// The process clock.
    pub clock: Clock,
    /// The prober's side.
    pub watching: Watching,
    /// The inventory of the server.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// Whether the end has begun.
    pub drain: Drain,
    /// Longest time between two probes in a process that works.
    pub heartbeat: Duration,
    /// What is observed of the server's memory and packages.
    pub observed: watch::Receiver<Arc<Observed>>,
    /// The policy that judges the declared capabilities.
    pub capabilities: capability::Policy,
    /// What belongs in the server's memory.
    pub memory: Memory,
    /// What is known of the server's worker.
    pub worker: Worker,
    /// The interposer's side; `None` where it is off.
    pub scheduler: Option<Scheduler>,
    /// What is seen of the agent.
    pub agent: watch::Receiver<Seen>,
    /// Drains that are called for.
    pub drains: Handle,
    /// The places of each relay's callers.
    pub places: [Places; 2],
    /// What the server has been through.
    pub history: History,
    kept: Arc<Mutex<Vec<Condition>>>,
    kept_remote: Arc<Mutex<Vec<Condition>>>,
    gauge: IntGaugeVec,
}

/// What the interposer and the reader of the scheduler's belief publish.
#[derive(Debug, Clone)]
pub struct Scheduler {
    /// The subscription.
    pub status: watch::Receiver<Status>,
    /// The belief.
    pub registration: watch::Receiver<Registration>,
}

/// The parts of [`Shared`].
#[derive(Debug)]
pub struct Parts {
    /// `correct` or `observe`.
    pub mode: Mode,
    /// The process clock.
    pub clock: Clock,
    /// The prober's side.
    pub watching: Watching,
    /// The inventory of the server.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// Whether the end has begun.
    pub drain: Drain,
    /// Longest time between two probes in a process that works.
    pub heartbeat: Duration,
    /// What is observed of the server's memory and packages.
    pub observed: watch::Receiver<Arc<Observed>>,
    /// The policy that judges the declared capabilities.
    pub capabilities: capability::Policy,
    /// What belongs in the server's memory.
    pub memory: Memory,
    /// What is known of the server's worker.
    pub worker: Worker,
    /// The interposer's side; `None` where it is off.
    pub scheduler: Option<Scheduler>,
    /// What is seen of the agent.
    pub agent: watch::Receiver<Seen>,
    /// Drains that are called for.
    pub drains: Handle,
    /// The places of each relay's callers.
    pub places: [Places; 2],
}

impl Shared {
    /// Puts the parts together.
    pub fn new(parts: Parts, metrics: &Metrics) -> Self {
        let gauge = metrics.int_gauge_vec(
            "agent_shim_condition",
            "1 while the condition holds. The pod is ready when those that are local hold; models-restored and what the scheduler believes never decide that.",
            &["condition"],
        );
        for name in NAMES
            .into_iter()
            .chain([restore::CONDITION, worker::CONDITION])
        {
            gauge.with_label_values(&[name]);
        }
        Shared {
            mode: parts.mode,
            clock: parts.clock,
            watching: parts.watching,
            inventory: parts.inventory,
            drain: parts.drain,
            heartbeat: parts.heartbeat,
            observed: parts.observed,
            capabilities: parts.capabilities,
            memory: parts.memory,
            worker: parts.worker,
            scheduler: parts.scheduler,
            agent: parts.agent,
            drains: parts.drains,
            places: parts.places,
            history: History::default(),
            kept: Arc::default(),
            kept_remote: Arc::default(),
            gauge,
        }
    }

    /// The conditions that look beyond the pod: none of them decides readiness, since a newer
    /// agent waits for its pod to be ready before it takes work. Exports and remembers what has changed.
    pub fn remote_conditions(&self) -> Vec<Condition> {
        let mut conditions = self.scheduler.as_ref().map_or_else(Vec::new, |scheduler| {
            let known = scheduler.registration.borrow().clone();
            let status = scheduler.status.borrow().clone();
            // Said anew: the sentences tell how long something has lasted by now.
            judge::conditions(
                &status,
                &known.check,
                false,
                self.clock.now(),
                &known.conditions,
            )
        });
        conditions.extend(self.agent.borrow().condition());
        for condition in &conditions {
            let holds = i64::from(condition.holds);
            self.gauge.with_label_values(&[condition.name]).set(holds);
        }
        // What cannot be checked now is not said, rather than said as it was.
        for name in judge::NAMES {
            if !conditions.iter().any(|c| c.name == name) {
                drop(self.gauge.remove_label_values(&[name]));
            }
        }
        let mut kept = self
            .kept_remote
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for condition in &conditions {
            let known = kept.iter().find(|c| c.name == condition.name);
            if known.is_none_or(|c| c.holds != condition.holds) {
                self.remember(What::Registration, known, condition);
            }
        }
        kept.clone_from(&conditions);
        conditions
    }

    fn remember(&self, what: What, known: Option<&Condition>, now: &Condition) {
        let word = |holds: bool| if holds { "true" } else { "false" };
        self.watching.history.changed(Change {
            at: now.since,
            what,
            subject: now.name.into(),
            from: known.map_or("", |c| word(c.holds)).into(),
            to: word(now.holds).into(),
            reason: now.reason.clone(),
        });
    }

    /// The conditions of the pod that decide nothing.
    pub fn further_conditions(&self) -> Vec<Condition> {
        let conditions = vec![self.memory.condition()];
        for condition in &conditions {
            let holds = i64::from(condition.holds);
            self.gauge.with_label_values(&[condition.name]).set(holds);
        }
        conditions
    }

    /// The latest snapshot of the prober.
    pub fn view(&self) -> Arc<View> {
        self.watching.view.borrow().clone()
    }

    /// The conditions of this moment; logs and exports what has changed.
    pub fn conditions(&self) -> Vec<Condition> {
        let facts = Facts {
            draining: self.drain.has_begun(),
            called: self.drain.is_called(),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut current = conditions(&self.view(), facts, self.clock.now(), &kept);
        current.push(self.worker.condition());
        for condition in &current {
            let holds = i64::from(condition.holds);
            self.gauge.with_label_values(&[condition.name]).set(holds);
            let known = kept.iter().find(|c| c.name == condition.name);
            if known.is_some_and(|c| c.holds != condition.holds) {
                self.remember(What::Condition, known, condition);
                tracing::info!(
                    condition = condition.name,
                    holds = condition.holds,
                    reason = condition.reason,
                    "condition changed"
                );
            }
        }
        kept.clone_from(&current);
        // Shown with the others, whoever asks.
        let _ = self.further_conditions();
        current
    }

    /// The verdict on one of kubelet's questions, and the text to answer.
    pub fn probe(&self, probe: Probe, verbose: bool) -> (bool, String) {
        match probe {
            Probe::Live => self.live(),
            Probe::Agent => self.agent.borrow().live(self.clock.now()),
            Probe::Ready => {
                let conditions = self.conditions();
                let ok = ready(&conditions);
                (ok, body("readyz", &conditions, ok, verbose))
            }
            Probe::Startup => {
                let conditions: Vec<Condition> = self
                    .conditions()
                    .into_iter()
                    .filter(|c| c.name == "probed")
                    .collect();
                let ok = started(&conditions);
                (ok, body("startupz", &conditions, ok, verbose))
            }
        }
    }

    /// The process works while its prober has a heartbeat; tasks that end, end the process.
    fn live(&self) -> (bool, String) {
        let silent = self.clock.now().saturating_sub(self.view().updated);
        if silent <= self.heartbeat {
            (true, "ok\n".into())
        } else {
            (
                false,
                format!("the prober has not reported for {silent:?}\n"),
            )
        }
    }

    /// Completes when something may have changed that a probe would answer differently.
    pub async fn changed(&self) {
        let mut changes = self.watching.changes.clone();
        changes.mark_unchanged();
        tokio::select! {
            _ = changes.changed() => {}
            () = self.drain.changed() => {}
            // `probed` and the heartbeat turn without a change of state.
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}
