//! The same rules in the sidecar, over what the shim knows anyway: no question is asked for them.
//! Findings become gauges over the closed set of rules, and one log line each when they appear and
//! when they go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntGaugeVec;
use tokio::time::{Instant, sleep_until};

use super::evidence::{Evidence, Vantage};
use super::rule::Need;
use super::{Diagnosis, diagnose, rules};
use crate::admin::status::{self, Document};
use crate::endpoint::Protocol;
use crate::metrics::Metrics;
use crate::registration::facts::SchedulerFacts;
use crate::state::{Scheduler, Shared};
use crate::view::Usable;

/// Time between two judgements when nothing has changed: some rules turn with time alone.
const INTERVAL: Duration = Duration::from_secs(5);
/// Shortest time between two: changes come in bursts.
const GAP: Duration = Duration::from_millis(500);
/// How far back a restart counts.
const WINDOW: Duration = Duration::from_secs(600);
/// How long a model must be missing before the sidecar says so: the scheduler's word and the
/// server's list are of different moments while a model is loaded or unloaded.
const SETTLE: Duration = Duration::from_secs(10);
/// Restarts that are kept.
const MAX_KEPT: usize = 32;

/// What the server has been through: when it was lost, and when a new main process was seen.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<Past>>);

#[derive(Debug, Default)]
struct Past {
    was_up: bool,
    process: Option<(u32, u64)>,
    lost: VecDeque<Duration>,
    started: VecDeque<Duration>,
    /// Models that the scheduler counts on and the server does not have, and since when.
    missing: BTreeMap<String, Duration>,
}

impl History {
    /// Notes whether the server answers, and which process it is.
    pub fn note(&self, up: bool, process: Option<(u32, u64)>, now: Duration) {
        let mut past = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if past.was_up && !up {
            keep(&mut past.lost, now);
        }
        past.was_up = up;
        if let Some(process) = process {
            if past.process.is_some_and(|before| before != process) {
                keep(&mut past.started, now);
            }
            past.process = Some(process);
        }
    }

    /// Of these models, all that are missing at this moment, those that have been for long.
    pub fn lasting(&self, missing: &[String], now: Duration) -> BTreeSet<String> {
        let mut past = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        past.missing.retain(|name, _| missing.contains(name));
        for name in missing {
            past.missing.entry(name.clone()).or_insert(now);
        }
        let lasting = |since: &Duration| now.saturating_sub(*since) >= SETTLE;
        let all = past.missing.iter().filter(|(_, since)| lasting(since));
        all.map(|(name, _)| name.clone()).collect()
    }

    /// How often the server was lost or started anew in the window before `now`.
    pub fn restarts(&self, now: Duration) -> usize {
        let past = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |all: &VecDeque<Duration>| {
            let recent = all.iter().filter(|at| now.saturating_sub(**at) <= WINDOW);
            recent.count()
        };
        count(&past.lost).max(count(&past.started))
    }
}

fn keep(all: &mut VecDeque<Duration>, now: Duration) {
    if all.len() == MAX_KEPT {
        all.pop_front();
    }
    all.push_back(now);
}

/// What the shim itself knows, as evidence.
pub fn evidence(shared: &Shared, document: Document) -> Evidence {
    let mut evidence = Evidence {
        vantage: Vantage::Sidecar,
        ..Evidence::default()
    };
    for need in [Need::Agent, Need::Kube] {
        evidence.lacks(need, "the sidecar asks nobody");
    }
    if let Some(scheduler) = &shared.scheduler {
        let registration = scheduler.registration.borrow();
        let target = document
            .subscription
            .as_ref()
            .and_then(|s| s.scheduler.clone());
        evidence.scheduler = registration.seen.as_ref().map(|seen| SchedulerFacts {
            target: target.unwrap_or_default(),
            ..seen.clone()
        });
    }
    evidence.status = Some(document);
    let missing = rules::model::counted_on(&evidence).map_or_else(Vec::new, |(_, gone)| gone);
    let lasting = shared.history.lasting(&missing, shared.clock.now());
    if let Some(scheduler) = &mut evidence.scheduler {
        let unsettled = |name: &String| missing.contains(name) && !lasting.contains(name);
        scheduler.models.retain(|m| !unsettled(&m.name));
    }
    evidence
}

/// The findings of this moment.
pub fn judge(shared: &Shared, document: Document) -> Diagnosis {
    diagnose(&evidence(shared, document), rules::all())
}

/// Judges for ever, shows and logs.
#[derive(Debug)]
pub struct Watch {
    shared: Shared,
    gauge: IntGaugeVec,
    known: BTreeMap<String, String>,
}

impl Watch {
    /// Every rule is exported from the start.
    pub fn new(shared: Shared, metrics: &Metrics) -> Self {
        let gauge = metrics.int_gauge_vec(
            "agent_shim_finding",
            "1 while the rule finds something wrong; docs/diagnosis.md has the rules.",
            &["rule"],
        );
        for rule in rules::all() {
            gauge.with_label_values(&[rule.id]);
        }
        Watch {
            shared,
            gauge,
            known: BTreeMap::new(),
        }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut changes = self.shared.watching.changes.clone();
        let mut scheduler = self.shared.scheduler.clone();
        loop {
            self.note();
            self.look();
            let rested = Instant::now() + GAP;
            let due = Instant::now() + INTERVAL;
            let mut changed = false;
            // Every change of state is noted; what comes within the gap is judged at its end.
            while !changed || Instant::now() < rested {
                let until = if changed { rested } else { due };
                tokio::select! {
                    told = changes.changed() => {
                        if told.is_err() {
                            return;
                        }
                        self.note();
                        changed = true;
                    }
                    () = told(&mut scheduler) => changed = true,
                    () = sleep_until(until) => break,
                }
            }
        }
    }

    fn note(&self) {
        let view = self.shared.view();
        let up = Protocol::ALL.into_iter().all(|protocol| {
            let usable = view.usable(protocol);
            matches!(usable, Usable::Up | Usable::Stalled)
        });
        let observed = self.shared.observed.borrow().clone();
        let process = observed.server.as_ref().map(|s| (s.main.pid, s.main.start));
        let now = self.shared.clock.now();
        self.shared.history.note(up, process, now);
    }

    fn look(&mut self) {
        let diagnosis = judge(&self.shared, status::facts(&self.shared));
        let found: BTreeMap<String, String> = diagnosis
            .findings()
            .map(|f| (f.rule.clone(), f.name.clone()))
            .collect();
        for rule in rules::all() {
            let holds = i64::from(found.contains_key(rule.id));
            self.gauge.with_label_values(&[rule.id]).set(holds);
        }
        for finding in diagnosis.findings() {
            if !self.known.contains_key(&finding.rule) {
                tracing::warn!(
                    rule = finding.rule,
                    name = finding.name,
                    text = finding.text,
                    fix = finding.fix,
                    "finding appeared"
                );
            }
        }
        for (rule, name) in &self.known {
            if !found.contains_key(rule) {
                tracing::info!(rule, name, "finding gone");
            }
        }
        self.known = found;
    }
}

/// Completes when the subscription or the scheduler's belief has changed.
async fn told(scheduler: &mut Option<Scheduler>) {
    if let Some(s) = scheduler {
        tokio::select! {
            Ok(()) = s.status.changed() => return,
            Ok(()) = s.registration.changed() => return,
            else => {}
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_model_is_missing_when_it_has_been_for_a_while_without_a_break() {
        let history = History::default();
        let at = |missing: &[&str], second: u32| {
            let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
            history.lasting(&names, second * SECOND).len()
        };
        assert_eq!(at(&["a"], 1), 0);
        assert_eq!(at(&["a", "b"], 10), 0);
        assert_eq!(at(&["a", "b"], 11), 1);
        assert_eq!(at(&["b"], 19), 0);
        assert_eq!(at(&["a", "b"], 20), 1, "a is anew");
    }

    #[test]
    fn a_server_that_is_lost_or_replaced_is_counted_for_ten_minutes() {
        let history = History::default();
        history.note(false, None, SECOND);
        assert_eq!(history.restarts(SECOND), 0);
        for i in 1..=3 {
            history.note(true, Some((i, 1)), i * 10 * SECOND);
            history.note(false, None, (i * 10 + 5) * SECOND);
        }
        assert_eq!(history.restarts(36 * SECOND), 3);
        assert_eq!(history.restarts(620 * SECOND), 2);
        assert_eq!(history.restarts(2000 * SECOND), 0);
    }
}
