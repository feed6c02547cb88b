//! What the scheduler believes, read back from its own API and compared with what it was told.
//!
//! Optional: without an address, or while the API cannot be read, what depends on it is not claimed,
//! and the reason is there to be shown. Never an error, and nothing waits for it. The judging is
//! pure; only [`ask`] speaks to the scheduler.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::clock::Clock;
use crate::config::scheduler::Target;
use crate::metrics::Metrics;
use crate::nearest::distance;
use crate::proto::scheduler::ModelStatusResponse;
use crate::proto::scheduler::model_status::ModelState;
use crate::readiness::Condition;
use crate::subscription::ledger::bytes;
use crate::subscription::status::{Phase, Status};
use crate::tls;

pub mod ask;
pub mod metrics;

use ask::Asker;
use metrics::RegistrationMetrics;

/// Time between two readings when nothing has happened.
const INTERVAL: Duration = Duration::from_secs(30);
/// Shortest time between two readings: events come in hundreds.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Models in trouble that are kept; the count is exact all the same.
const MAX_TROUBLED: usize = 100;

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
}

/// The conditions of this moment. `before` carries the times of change on.
pub fn conditions(
    status: &Status,
    check: &Check,
    now: Duration,
    before: &[Condition],
) -> Vec<Condition> {
    let mut all = vec![("subscribed", subscribed(status, now))];
    if let Check::Read(believed) = check {
        let name = format!("replica {} of {}", status.replica, status.server);
        all.push(match believed {
            Some(b) => (
                "registered",
                (true, format!("the scheduler lists {name}, with {} of {} replicas there", b.replicas, b.expected)),
            ),
            None => {
                let hint = match status.phase {
                    Phase::Open => format!(
                        " although it has been subscribed for {:?}: the scheduler may wait for other replicas, or for an older subscription of this one to end",
                        Duration::from_secs(now.saturating_sub(status.since).as_secs())
                    ),
                    _ => String::new(),
                };
                ("registered", (false, format!("the scheduler does not list {name}{hint}")))
            }
        });
        if let (Some(believed), Some(reported)) = (believed, &status.reported) {
            all.push(("capacity-agrees", agrees(status, believed, reported.memory)));
        }
    }
    all.into_iter()
        .map(|(name, (holds, reason))| {
            let same = before.iter().find(|c| c.name == name && c.holds == holds);
            Condition {
                name,
                holds,
                reason,
                since: same.map_or(now, |c| c.since),
            }
        })
        .collect()
}

fn subscribed(status: &Status, now: Duration) -> (bool, String) {
    let since = Duration::from_secs(now.saturating_sub(status.since).as_secs());
    match &status.phase {
        Phase::Open => {
            let scheduler = status.scheduler.as_deref().unwrap_or("the scheduler");
            (
                true,
                format!("the agent's subscription stands at {scheduler}"),
            )
        }
        Phase::None => (
            false,
            "the agent has not subscribed, or its subscription has ended".into(),
        ),
        Phase::Held(missing) => (
            false,
            format!("the subscription is held for {missing}, for {since:?} now"),
        ),
        Phase::Unreachable { why, failures } => (
            false,
            format!("the scheduler cannot be reached, {failures} attempts so far: {why}"),
        ),
    }
}

fn agrees(status: &Status, believed: &Believed, reported: u64) -> (bool, String) {
    if believed.total != reported {
        return (
            false,
            format!(
                "the scheduler believes in {} and was told {}",
                bytes(believed.total),
                bytes(reported)
            ),
        );
    }
    // While a model is being loaded, each side is right about another moment.
    match status.available {
        Some(told) if told != believed.available && status.balance.loading == 0 => (
            false,
            format!(
                "the scheduler believes that {} are free and was told {}",
                bytes(believed.available),
                bytes(told)
            ),
        ),
        _ => (
            true,
            format!(
                "the scheduler believes in {}, as it was told",
                bytes(reported)
            ),
        ),
    }
}

/// What a model lacks here; `None` where it lacks nothing, or does not want this server.
pub fn trouble(
    status: &Status,
    believed: Option<&Believed>,
    answer: &ModelStatusResponse,
) -> Option<Troubled> {
    let version = answer.versions.iter().max_by_key(|v| v.version)?;
    let state = version.state.as_ref()?;
    if !matches!(
        state.state(),
        ModelState::ScheduleFailed | ModelState::ModelFailed
    ) || answer.deleted
    {
        return None;
    }
    let spec = version
        .model_defn
        .clone()
        .unwrap_or_default()
        .model_spec
        .unwrap_or_default();
    if spec.server.is_some_and(|server| server != status.server) {
        return None;
    }
    let capabilities = status
        .reported
        .as_ref()
        .map_or(&[][..], |r| &r.capabilities);
    let requirements = spec
        .requirements
        .iter()
        .map(|r| r.trim())
        .filter(|r| !capabilities.iter().any(|c| c == r))
        .map(|requirement| Missing {
            requirement: requirement.into(),
            nearest: nearest(requirement, capabilities),
        })
        .collect();
    let workers = status
        .reported
        .as_ref()
        .and_then(|r| r.workers)
        .unwrap_or(1)
        .max(1);
    let need = spec
        .memory_bytes
        .unwrap_or(0)
        .saturating_mul(workers.into());
    let free = believed.map(|b| b.available);
    Some(Troubled {
        model: answer.model_name.clone(),
        version: version.version,
        reason: state.reason.clone(),
        requirements,
        memory: free
            .and_then(|free| need.checked_sub(free))
            .filter(|missing| *missing > 0),
    })
}

fn nearest(wanted: &str, names: &[String]) -> Option<String> {
    let key = |name: &str| name.to_ascii_lowercase().replace(['_', '.', ' '], "-");
    let wanted = key(wanted);
    let part = |name: &str| {
        let name = key(name);
        name.len() >= 3 && wanted.len() >= 3 && (name.contains(&wanted) || wanted.contains(&name))
    };
    let by_distance = names
        .iter()
        .map(|name| (distance(&wanted, &key(name)), name))
        .min()
        .filter(|(d, name)| *d <= 1 + wanted.len().max(name.len()) / 4);
    let found = by_distance.map(|(_, name)| name);
    found
        .or_else(|| names.iter().find(|name| part(name)))
        .cloned()
}

/// Reads, judges and publishes.
#[derive(Debug)]
pub struct Reader {
    asker: Option<Asker>,
    status: watch::Receiver<Status>,
    clock: Clock,
    metrics: RegistrationMetrics,
    out: watch::Sender<Registration>,
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
        };
        (reader, watching)
    }

    /// The gauges, for the figure that is known elsewhere.
    pub fn metrics(&self) -> RegistrationMetrics {
        self.metrics.clone()
    }

    /// Runs for ever: reads on a new subscription, after every event, and every 30 s.
    pub async fn run(mut self) {
        let mut next = Instant::now() + MIN_INTERVAL;
        let mut last = Instant::now();
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
            }
            let check = self.out.borrow().check.clone();
            self.publish(&status, check, None);
            tokio::select! {
                changed = self.status.changed() => if changed.is_err() {
                    // The interposer is gone, and with it this process, at any moment.
                    std::future::pending::<()>().await;
                },
                () = sleep_until(next) => {
                    self.read(&status).await;
                    last = Instant::now();
                    next = last + INTERVAL;
                }
            }
        }
    }

    async fn read(&mut self, status: &Status) {
        let Some(asker) = &mut self.asker else {
            return;
        };
        if status.requested.is_none() {
            // Nobody to ask for yet.
            return;
        }
        let believed = match asker.replica(&status.server, status.replica).await {
            Ok(believed) => believed,
            Err(why) => {
                if !matches!(self.out.borrow().check, Check::Failed(_)) {
                    tracing::warn!(why, "the scheduler's belief cannot be read");
                }
                self.metrics.read(false);
                return self.publish(status, Check::Failed(why), None);
            }
        };
        let answers = asker.models().await;
        self.metrics.read(answers.is_ok());
        let troubled = answers.ok().map(|answers| {
            let troubles = answers
                .iter()
                .filter_map(|a| trouble(status, believed.as_ref(), a));
            let all: Vec<Troubled> = troubles.collect();
            self.metrics.troubled(&all);
            all.into_iter().take(MAX_TROUBLED).collect()
        });
        // Judged against what was told when the answer came.
        let latest = self.status.borrow().clone();
        self.publish(&latest, Check::Read(believed), troubled);
    }

    fn publish(&self, status: &Status, check: Check, models: Option<Vec<Troubled>>) {
        let before = self.out.borrow().clone();
        let conditions = conditions(status, &check, self.clock.now(), &before.conditions);
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
        let models = models.unwrap_or(before.models.clone());
        for model in models.iter().filter(|m| !before.models.contains(m)) {
            tracing::warn!(model = model.model, version = model.version, reason = model.reason, requirements = ?model.requirements, memory = model.memory, "a model is not available");
        }
        self.metrics.figures(status, &check);
        let new = Registration {
            check,
            conditions,
            models,
        };
        self.out.send_if_modified(|old| {
            let changed = *old != new;
            *old = new;
            changed
        });
    }
}

#[cfg(test)]
#[path = "registration/tests.rs"]
mod tests;
