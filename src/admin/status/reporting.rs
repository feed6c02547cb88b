//! The parts of the status document that tell what the scheduler is told, and what it believes.

use super::{
    Capabilities, Capacity, CapacitySource, DrainStatus, Finding, Restoring, WorkerStatus,
};
use crate::capability;
use crate::doctor;
use crate::prestop::judge::{Agent, Phase};
use crate::registration::{Check, Registration};
use crate::state::Shared;
use crate::subscription::status::Status;
use crate::worker::record::Workers;

fn status(shared: &Shared) -> Option<Status> {
    Some(shared.scheduler.as_ref()?.status.borrow().clone())
}

fn registration(shared: &Shared) -> Option<Registration> {
    Some(shared.scheduler.as_ref()?.registration.borrow().clone())
}

/// Memory: requested, observed, reported, believed.
pub(super) fn capacity(shared: &Shared) -> Capacity {
    let observed = shared.observed.borrow().clone();
    let status = status(shared);
    let believed = registration(shared).and_then(|r| match r.check {
        Check::Read(believed) => believed,
        _ => None,
    });
    let sources = observed.capacity.considered.iter().map(|c| CapacitySource {
        source: c.source.as_str().into(),
        bytes: c.bytes,
        age_s: c.age.as_secs_f64(),
        chosen: c.chosen,
        reason: c.reason.into(),
    });
    let requested = status.as_ref().and_then(|s| s.requested.as_ref());
    Capacity {
        requested: requested.map(|r| r.memory),
        observed: observed.capacity.bytes,
        reported: status
            .as_ref()
            .and_then(|s| Some(s.reported.as_ref()?.memory)),
        believed: believed.map(|b| b.total),
        why: status
            .as_ref()
            .filter(|s| !s.capacity_why.is_empty())
            .map(|s| s.capacity_why.clone()),
        available: status.as_ref().and_then(|s| s.available),
        available_believed: believed.map(|b| b.available),
        sources: sources.collect(),
        used: observed.live.rss,
        cgroup_used: observed.live.cgroup_current,
    }
}

/// Capability names: requested, reported, and what became of them.
pub(super) fn capabilities(shared: &Shared) -> Capabilities {
    let observed = shared.observed.borrow().clone();
    let known = (observed.looks > 0).then(|| observed.capabilities.source.as_str().to_string());
    let distributions = observed.capabilities.distributions.len();
    let Some(status) = status(shared) else {
        return Capabilities {
            source: known,
            distributions,
            ..Capabilities::default()
        };
    };
    let requested = status.requested.map_or_else(Vec::new, |r| r.capabilities);
    let judged = capability::reconcile(&requested, &observed.capabilities, &shared.capabilities);
    Capabilities {
        reported: status.reported.map_or_else(Vec::new, |r| r.capabilities),
        added: status.capabilities.added,
        dropped: status.capabilities.dropped,
        aliased: status.capabilities.aliased,
        missing: judged.missing_but_declared,
        requested,
        source: known,
        distributions,
    }
}

/// The drain that was called for, if any.
pub(in crate::admin) fn drain(shared: &Shared) -> DrainStatus {
    let progress = shared.drains.progress.borrow().clone();
    let stopping = shared.drain.has_begun();
    let known = progress.phase != Phase::None || progress.ended > 0;
    DrainStatus {
        state: if stopping {
            "stopping".into()
        } else {
            progress.phase.as_str().into()
        },
        since: known.then(|| shared.clock.rfc3339(progress.since)),
        for_s: match known {
            true => shared
                .clock
                .now()
                .saturating_sub(progress.since)
                .as_secs_f64(),
            false => 0.0,
        },
        agent_drains: matches!(progress.agent, Agent::Itself | Agent::Asked | Agent::Done),
        running: shared.drain.in_flight().now(),
        at_start: progress.at_start,
        waiting: shared.drains.waiting(),
        agent: if known {
            progress.agent.words()
        } else {
            String::new()
        },
        summary: progress.summary,
        undone: progress.undone,
    }
}

/// Models that are not back yet.
pub(super) fn restoring(shared: &Shared) -> Vec<Restoring> {
    let all = shared.memory.restoring().into_values();
    all.map(|r| Restoring {
        stage: r.stage.as_str().into(),
        model: r.model,
        failures: r.failures,
        error: r.error,
    })
    .collect()
}

/// The worker.
pub(super) fn worker(shared: &Shared) -> WorkerStatus {
    let seen = shared.worker.seen().borrow().clone();
    let names = |all: &[crate::worker::Bad]| all.iter().map(|b| b.model.clone()).collect();
    let date = |at| shared.clock.rfc3339(at);
    let canary = seen.canary.clone().unwrap_or_default();
    WorkerStatus {
        processes: match seen.workers {
            Workers::Unseen => None,
            Workers::There { count, .. } => Some(count),
            Workers::NoneYet | Workers::Missing { .. } | Workers::Looping { .. } => Some(0),
        },
        state: seen.workers.as_str().into(),
        for_s: match seen.workers {
            Workers::Missing { since } | Workers::Looping { since } => {
                Some(shared.clock.now().saturating_sub(since).as_secs_f64())
            }
            _ => None,
        },
        exits: seen.exits,
        recent_exits: seen.recent_exits,
        failed: seen.passive.failures,
        failed_for_s: seen
            .passive
            .last
            .saturating_sub(seen.passive.first)
            .as_secs_f64(),
        orphans: seen.orphans,
        canary: canary.last.as_ref().map(|(a, _)| a.as_str().into()),
        canary_said: canary.said().map(Into::into),
        canary_at: canary.last.as_ref().map(|(_, at)| date(*at)),
        canary_outstanding_since: canary.outstanding.map(date),
        unanswered_for_s: canary
            .unanswered(shared.clock.now())
            .map(|silent| silent.as_secs_f64()),
        canary_skipped: canary.skipped.map(Into::into),
        stuck: names(&seen.stuck),
        lost: names(&seen.lost),
        mended: seen.mended.iter().map(|(k, n)| ((*k).into(), *n)).collect(),
    }
}

/// A finding as the document shows it.
pub(super) fn finding(found: &doctor::Finding) -> Finding {
    Finding {
        rule: found.rule.clone(),
        name: found.name.clone(),
        severity: match found.severity {
            doctor::Severity::Broken => "broken".into(),
            doctor::Severity::Warning => "warning".into(),
        },
        text: found.text.clone(),
        fix: found.fix.clone(),
        evidence: found.evidence.clone(),
    }
}
