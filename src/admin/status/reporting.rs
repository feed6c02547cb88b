//! The parts of the status document that tell what the scheduler is told, and what it believes.

use super::{Capabilities, Capacity, CapacitySource, Finding};
use crate::capability;
use crate::doctor;
use crate::registration::{Check, Registration};
use crate::state::Shared;
use crate::subscription::status::Status;

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
    }
}
