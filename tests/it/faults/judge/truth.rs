//! What was wrong with what the shim said while the fault lasted: its readiness and its findings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::super::look::{Look, Says};
use super::super::pace::promised;
use super::super::row::{Phase, Ready};
use super::Played;

/// What a look at readiness has to show where it is this.
pub fn wanted(ready: Ready) -> Option<Says> {
    match ready {
        Ready::Unasked => None,
        Ready::Goes | Ready::GoesAfterGrace => Some(Says::Gone),
        Ready::Stays | Ready::Recovers => Some(Says::Fine),
    }
}

/// Once told, readiness stays what it has to be until the fault ends.
pub fn readiness(ready: Ready, phase: Phase, with: &Played) -> Option<String> {
    let wanted = wanted(ready)?;
    let struck = with.struck?;
    let told = with.told_fault.map(|after| struck + after)?;
    let from = match ready {
        // It has not gone for a moment, also when it strikes. Before a cold start nobody is there.
        Ready::Stays if phase != Phase::ColdStart => with.injected?,
        // It may go first, or not have noticed yet.
        Ready::Recovers => told.max(struck + promised(3.0)),
        _ => told,
    };
    let right = |look: &&Look| look.ready.as_ref().and_then(|r| r.says()) == Some(wanted);
    let mut looks = with.looks.iter().filter(|look| look.at >= from);
    if let Some(wrong) = looks.find(|look| !right(look)) {
        let after = wrong.at.saturating_duration_since(with.injected?);
        return Some(format!(
            "readiness is to be {wanted:?} while the fault lasts, and {after:?} after it was {:?}",
            wrong.ready
        ));
    }
    match with.looks.last() {
        Some(last) if right(&last) => None,
        last => Some(format!(
            "readiness is to be {wanted:?} when the fault ends: {last:?}"
        )),
    }
}

/// Findings that stood for longer than a moment and are not `true_of` the fault, each with how long.
pub fn stood(
    looks: &[Look],
    true_of: &[&str],
    before: &BTreeSet<String>,
) -> Vec<(String, Duration)> {
    let moment = promised(2.0);
    let mut since: BTreeMap<&str, Instant> = BTreeMap::new();
    let mut longest: BTreeMap<&str, Duration> = BTreeMap::new();
    for look in looks {
        let Some(found) = &look.found else { continue };
        since.retain(|id, _| found.contains(*id));
        for id in found.iter().map(String::as_str) {
            if true_of.contains(&id) || before.contains(id) {
                continue;
            }
            let stands = look.at - *since.entry(id).or_insert(look.at);
            let most = longest.entry(id).or_default();
            *most = stands.max(*most);
        }
    }
    longest.retain(|_, stands| *stands > moment);
    let all = longest.into_iter();
    all.map(|(id, stands)| (id.to_string(), stands)).collect()
}
