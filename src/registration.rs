//! What the scheduler believes, read back from its own API and compared with what it was told.
//!
//! Optional: without an address, or while the API cannot be read, what depends on it is not claimed,
//! and the reason is there to be shown. Never an error, and nothing waits for it. The judging is
//! in [`judge`]; only [`ask`] speaks to the scheduler.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::clock::Clock;
use crate::config::scheduler::Target;
use crate::metrics::Metrics;
use crate::proto::scheduler::ModelStatusResponse;
use crate::readiness::Condition;
use crate::subscription::status::Status;
use crate::tls;

pub mod ask;
pub mod facts;
pub mod judge;
pub mod metrics;

use ask::Asker;
use facts::{ModelFact, SchedulerFacts};
use judge::{Doubt, conditions, trouble};
use metrics::RegistrationMetrics;

/// Time between two readings of everything when nothing has happened.
const INTERVAL: Duration = Duration::from_secs(30);
/// Time between two questions about this server alone, which is one short message: a scheduler that
/// has stopped answering shows by nothing else.
const PULSE: Duration = Duration::from_secs(10);
/// Shortest time between two readings: events come in hundreds.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Models in trouble that are kept; the count is exact all the same.
const MAX_TROUBLED: usize = 100;

/// Models on this replica that are kept, so that it shows when the server has lost them.
const MAX_HERE: usize = 1000;

/// What the scheduler believes of this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Believed {
    /// Total memory.
    pub total: u64,
    /// Free memory.
    pub available: u64,
    /// Models on it.
    pub models: i32,
    /// Replicas of the server that are there.
    pub replicas: i32,
    /// Replicas that it expects.
    pub expected: i32,
}

/// Whether the scheduler's belief could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Check {
    /// There is no address to ask.
    #[default]
    NotConfigured,
    /// Nothing has been read yet.
    Pending,
    /// It could not be read.
    Failed(String),
    /// It was read; `None` where the scheduler does not know this replica.
    Read(Option<Believed>),
}

/// A requirement that the reported list does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// As the model spells it.
    pub requirement: String,
    /// The nearest name that is reported, where one is near.
    pub nearest: Option<String>,
}

/// A model that is not available, and what it lacks here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Troubled {
    /// Its name.
    pub model: String,
    /// Its version.
    pub version: u32,
    /// The scheduler's own reason.
    pub reason: String,
    /// Requirements that are not met.
    pub requirements: Vec<Missing>,
    /// Bytes that are missing, where it is memory.
    pub memory: Option<u64>,
}

/// The latest reading and what follows from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registration {
    /// The reading.
    pub check: Check,
    /// `subscribed`; and, where they could be checked, `registered` and `capacity-agrees`.
    pub conditions: Vec<Condition>,
    /// Models that are not available although this server could be meant.
    pub models: Vec<Troubled>,
    /// What was read of this server, of models in trouble, and of those on this replica; `None` before the first reading.
    pub seen: Option<facts::SchedulerFacts>,
}

/// Reads, judges and publishes.
#[derive(Debug)]
pub struct Reader {
    asker: Option<Asker>,
    status: watch::Receiver<Status>,
    clock: Clock,
    metrics: RegistrationMetrics,
    out: watch::Sender<Registration>,
    doubt: Doubt,
    /// What the last reading says does not count; the next one is made soon.
    in_doubt: bool,
}

impl Reader {
    /// A reader, and what it publishes. `target` is `None` where nothing is to be read.
    pub fn new(
        target: Option<Target>,
        tls: Option<tls::Client>,
        status: watch::Receiver<Status>,
        clock: Clock,
        metrics: &Metrics,
    ) -> (Self, watch::Receiver<Registration>) {
        let asker = target.map(|target| Asker::new(target, tls));
        let first = Registration {
            check: if asker.is_some() {
                Check::Pending
            } else {
                Check::NotConfigured
            },
            ..Default::default()
        };
        let (out, watching) = watch::channel(first);
        let reader = Reader {
            asker,
            status,
            clock,
            metrics: RegistrationMetrics::new(metrics),
            out,
            doubt: Doubt::default(),
            in_doubt: false,
        };
        (reader, watching)
    }

    /// The gauges, for the figure that is known elsewhere.
    pub fn metrics(&self) -> RegistrationMetrics {
        self.metrics.clone()
    }

    /// Runs for ever: reads on a new subscription, after every event, and every 30 s; in between it
    /// asks about the server alone.
    pub async fn run(mut self) {
        let mut next = Instant::now() + MIN_INTERVAL;
        let mut last = Instant::now();
        let mut whole: Option<Instant> = None;
        let mut seen = None;
        loop {
            let status = self.status.borrow_and_update().clone();
            let mark = (
                status.events,
                std::mem::discriminant(&status.phase),
                status.since,
            );
            if seen.replace(mark).is_some_and(|before| before != mark) {
                next = next.min(last + MIN_INTERVAL).max(Instant::now());
                whole = None;
            }
            let check = self.out.borrow().check.clone();
            self.publish(&status, check, false, None);
            tokio::select! {
                changed = self.status.changed() => if changed.is_err() {
                    // The interposer is gone, and with it this process, at any moment.
                    std::future::pending::<()>().await;
                },
                () = sleep_until(next) => {
                    let due = whole.is_none_or(|at| at.elapsed() + PULSE / 2 >= INTERVAL);
                    let everything = due || self.in_doubt;
                    let read = self.read(&status, everything).await;
                    last = Instant::now();
                    if everything || !read {
                        // After a failure everything is read again.
                        whole = read.then_some(last);
                    }
                    next = last + if self.in_doubt { MIN_INTERVAL } else { PULSE };
                }
            }
        }
    }

    /// Asks about the server, and about `models` too; whether the first was answered.
    async fn read(&mut self, status: &Status, models: bool) -> bool {
        let Some(asker) = &mut self.asker else {
            return false;
        };
        if status.requested.is_none() {
            // Nobody to ask for yet.
            return false;
        }
        let servers = match asker.servers(Some(&status.server)).await {
            Ok(servers) => servers,
            Err(why) => {
                if !matches!(self.out.borrow().check, Check::Failed(_)) {
                    tracing::warn!(why, "the scheduler's belief cannot be read");
                }
                self.metrics.read(false);
                self.publish(status, Check::Failed(why), false, None);
                return false;
            }
        };
        let believed = servers.iter().find_map(|s| s.believed(status.replica));
        let answers = match models {
            true => Some(asker.models().await),
            false => None,
        };
        self.metrics
            .read(answers.as_ref().is_none_or(Result::is_ok));
        let mut seen = SchedulerFacts {
            servers,
            ..SchedulerFacts::default()
        };
        let before = self.out.borrow().clone();
        let alone = before.seen.filter(|_| answers.is_none()).map(|known| {
            let seen = SchedulerFacts {
                servers: seen.servers.clone(),
                ..known
            };
            (before.models, seen)
        });
        let troubled = answers.and_then(Result::ok).map(|answers| {
            let concern =
                |a: &&ModelStatusResponse| trouble(status, believed.as_ref(), a).is_some();
            let models = answers.iter().filter(concern).filter_map(facts::model);
            seen.models = models.take(MAX_TROUBLED).collect();
            let mine = seen.servers.iter().find(|s| s.name == status.server);
            let alone = mine.is_some_and(|s| s.replicas.len() == 1);
            let here = |m: &ModelFact| {
                let ours =
                    |(index, ..): &(i32, i32, String)| u32::try_from(*index) == Ok(status.replica);
                m.state == "available"
                    && m.server == status.server
                    && (alone || m.replicas.iter().any(ours))
            };
            let here = answers.iter().filter_map(facts::model).filter(here);
            seen.models.extend(here.take(MAX_HERE));
            let troubles = answers
                .iter()
                .filter_map(|a| trouble(status, believed.as_ref(), a));
            let all: Vec<Troubled> = troubles.collect();
            self.metrics.troubled(&all);
            (all.into_iter().take(MAX_TROUBLED).collect(), seen)
        });
        // Judged against what was told when the answer came.
        let latest = self.status.borrow().clone();
        let counts = self.doubt.judged(status, &latest, believed.as_ref());
        self.in_doubt = !counts;
        let read = troubled.or(alone);
        self.publish(&latest, Check::Read(believed), counts, read);
        true
    }

    fn publish(
        &self,
        status: &Status,
        check: Check,
        fresh: bool,
        models: Option<(Vec<Troubled>, SchedulerFacts)>,
    ) {
        let before = self.out.borrow().clone();
        let now = self.clock.now();
        let conditions = conditions(status, &check, fresh, now, &before.conditions);
        for condition in &conditions {
            let known = before.conditions.iter().find(|c| c.name == condition.name);
            if known.is_none_or(|known| known.holds != condition.holds) {
                tracing::info!(
                    condition = condition.name,
                    holds = condition.holds,
                    reason = condition.reason,
                    "condition changed"
                );
            }
        }
        let (models, seen) = match (models, &check) {
            (Some((models, seen)), _) => (models, Some(seen)),
            // Nothing is said of what can no longer be read.
            (None, Check::Failed(_)) => (before.models.clone(), None),
            (None, _) => (before.models.clone(), before.seen.clone()),
        };
        let known = |m: &Troubled| {
            let same =
                |b: &Troubled| (&b.model, b.version, &b.reason) == (&m.model, m.version, &m.reason);
            before.models.iter().any(same)
        };
        for model in models.iter().filter(|m| !known(m)) {
            tracing::warn!(model = model.model, version = model.version, reason = model.reason, requirements = ?model.requirements, memory = model.memory, "a model is not available");
        }
        self.metrics.figures(status, &check);
        let new = Registration {
            check,
            conditions,
            models,
            seen,
        };
        self.out.send_if_modified(|old| {
            let changed = *old != new;
            *old = new;
            changed
        });
    }
}
