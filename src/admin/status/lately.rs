//! The parts of the status document that tell what happened lately.

use std::borrow::Cow;

use super::{RecentProbes, TransitionStatus};
use crate::endpoint::Protocol;
use crate::history::Kind;
use crate::state::Shared;

/// The last probes of a candidate, oldest first.
pub(super) fn recent(shared: &Shared, protocol: Protocol, index: usize) -> Vec<RecentProbes> {
    let runs = shared.watching.history.runs(protocol, index);
    runs.into_iter()
        .map(|run| RecentProbes {
            outcome: match run.kind {
                Kind::Ok => "ok",
                Kind::Slow => "slow",
                Kind::Failed(_) => "failed",
            }
            .into(),
            reason: match run.kind {
                Kind::Failed(reason) => Some(reason.as_str().into()),
                _ => None,
            },
            probes: run.probes,
            slots: run.slots,
            from: shared.clock.rfc3339(run.from),
            to: shared.clock.rfc3339(run.to),
            slowest_ms: run
                .slowest
                .map(|slowest| (slowest.as_secs_f64() * 1e6).round() / 1e3),
        })
        .collect()
}

/// The last changes, newest first.
pub(super) fn transitions(shared: &Shared) -> Vec<TransitionStatus> {
    let said = |text: Cow<'static, str>| (!text.is_empty()).then(|| text.into_owned());
    let changes = shared.watching.history.changes();
    changes
        .into_iter()
        .map(|change| TransitionStatus {
            at: shared.clock.rfc3339(change.at),
            kind: change.what.as_str().into(),
            subject: change.subject.into_owned(),
            from: said(change.from),
            to: change.to.into_owned(),
            reason: said(change.reason.into()),
        })
        .collect()
}
