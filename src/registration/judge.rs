//! What follows from a reading. Pure.

use std::time::Duration;

use super::{Believed, Check, Missing, Troubled};
use crate::capability::{self, Verdict};
use crate::capacity::quantity::shown;
use crate::proto::scheduler::ModelStatusResponse;
use crate::proto::scheduler::model_status::ModelState;
use crate::readiness::Condition;
use crate::subscription::status::{Phase, Status};

/// The names of all conditions that look beyond the pod.
pub const NAMES: [&str; 3] = ["subscribed", "registered", AGREES];
/// The condition that compares figures.
const AGREES: &str = "capacity-agrees";
/// What keeps the scheduler from listing a replica that has subscribed.
const WAITS: &str =
    ": it may wait for other replicas, or for an older subscription of this one to end";

/// The conditions of this moment. `before` carries the times of change on, and, where the check is
/// not a fresh one, its verdict on the figures: what was told since then it could not know.
pub fn conditions(
    status: &Status,
    check: &Check,
    fresh: bool,
    now: Duration,
    before: &[Condition],
) -> Vec<Condition> {
    let mut all = vec![("subscribed", subscribed(status, now))];
    if let Check::Read(believed) = check {
        let name = format!("replica {} of {}", status.replica, status.server);
        all.push(match believed {
            Some(b) => (
                "registered",
                (true, format!("the scheduler lists {name}{}", replicas(b))),
            ),
            None => {
                let hint = match status.phase {
                    Phase::Open => format!(" after {:?} of subscription{WAITS}", age(status, now)),
                    _ => String::new(),
                };
                (
                    "registered",
                    (false, format!("the scheduler does not list {name}{hint}")),
                )
            }
        });
        if let (Some(believed), Some(reported)) = (believed, &status.reported) {
            let verdict = match before.iter().find(|c| c.name == AGREES) {
                Some(known) if !fresh => Some((known.holds, known.reason.clone())),
                None if !fresh => None,
                _ => Some(agrees(status, believed, reported.memory)),
            };
            all.extend(verdict.map(|verdict| (AGREES, verdict)));
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

/// The scheduler says -1 until somebody has told it what to expect.
fn replicas(believed: &Believed) -> String {
    match believed.expected {
        0.. => format!(
            ", with {} of {} replicas there",
            believed.replicas, believed.expected
        ),
        _ => format!(", with {} replica(s) there", believed.replicas),
    }
}

fn age(status: &Status, now: Duration) -> Duration {
    Duration::from_secs(now.saturating_sub(status.since).as_secs())
}

fn subscribed(status: &Status, now: Duration) -> (bool, String) {
    let since = age(status, now);
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
            format!(
                "the subscription is held for {missing}, for {} s now",
                since.as_secs()
            ),
        ),
        Phase::Unreachable { why, failures } => (
            false,
            format!("the scheduler cannot be reached, {failures} attempts so far: {why}"),
        ),
    }
}

/// Whether the scheduler believes what it was told.
pub fn agrees(status: &Status, believed: &Believed, reported: u64) -> (bool, String) {
    if believed.total != reported {
        return (
            false,
            format!(
                "the scheduler believes in {} and was told {}",
                shown(believed.total),
                shown(reported)
            ),
        );
    }
    // While a model is being loaded, each side is right about another moment.
    match status.available {
        Some(told) if told != believed.available && status.balance.loading == 0 => (
            false,
            format!(
                "the scheduler believes that {} are free and was told {}",
                shown(believed.available),
                shown(told)
            ),
        ),
        _ => (
            true,
            format!(
                "the scheduler believes in {}, as it was told",
                shown(reported)
            ),
        ),
    }
}

/// Whether a reading counts. One that differs from what was told may have met an event or a Subscribe on
/// its way: it is believed when the next one differs, too, and never where something was told meanwhile.
#[derive(Debug, Clone, Copy, Default)]
pub struct Doubt {
    differed: bool,
}

impl Doubt {
    /// Takes a reading in: `asked` is what had been told when it was begun, `latest` when it was there.
    pub fn judged(&mut self, asked: &Status, latest: &Status, believed: Option<&Believed>) -> bool {
        let reported = latest.reported.as_ref().map(|r| r.memory);
        let differs = believed
            .zip(reported)
            .is_some_and(|(believed, reported)| !agrees(latest, believed, reported).0);
        if !differs {
            self.differed = false;
            return true;
        }
        let told = (&latest.reported, latest.available, latest.events);
        if told != (&asked.reported, asked.available, asked.events) {
            return false;
        }
        std::mem::replace(&mut self.differed, true)
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
    match capability::check(wanted, names) {
        Verdict::Spelling(name) | Verdict::Near(name) => return Some(name),
        Verdict::Satisfied | Verdict::Absent => {}
    }
    // A name within the other, such as a distribution and the runtime that it holds.
    let fold = |name: &str| name.to_ascii_lowercase().replace(['_', '.', ' '], "-");
    let wanted = fold(wanted);
    let part = |name: &&String| {
        let name = fold(name);
        name.len() >= 3 && wanted.len() >= 3 && (name.contains(&wanted) || wanted.contains(&name))
    };
    names.iter().find(part).cloned()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
