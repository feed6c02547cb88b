//! What was wrong with a cell, from what was recorded. No sockets.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::{Call, Fate, Kind, Tally};
use super::loads::Loads;
use super::look::Look;
use super::pace::{GRACE, promised, scaled};
use super::process::Held;
use super::row::{Phase, Ready, Row, true_in};
use super::scheduler::Message;

#[cfg(test)]
mod tests;
pub mod truth;

/// The record of one performance.
#[derive(Debug, Clone, Default)]
pub struct Played {
    pub calls: Vec<Call>,
    pub received: HashMap<u64, usize>,
    /// When the fault began to strike.
    pub injected: Option<Instant>,
    /// When it had struck: what it does at once was done.
    pub struck: Option<Instant>,
    /// From here on the shim knows of the fault.
    pub settled: Option<Instant>,
    pub healed: Option<Instant>,
    /// From here to the end everything has to be served.
    pub calm: Option<Instant>,
    pub stopped: Option<Instant>,
    /// From `struck` to when readiness said so.
    pub told_fault: Option<Duration>,
    pub told_healed: Option<Duration>,
    pub before: Option<Held>,
    pub belief: Option<String>,
    pub lost_models: Vec<String>,
    /// Subscribes from the fault to its end.
    pub subscribes: usize,
    /// Everything that the schedulers of the cell were told.
    pub messages: Vec<Message>,
    /// What was found while the fault lasted, and not before.
    pub found: BTreeSet<String>,
    /// What was found before the fault.
    pub found_before: BTreeSet<String>,
    /// What the shim said from the fault's begin to its end.
    pub looks: Vec<Look>,
    pub loads: Loads,
    /// What callers got and had not asked for.
    pub unasked: Vec<String>,
    pub complaints: Vec<String>,
    pub log: String,
}

impl Played {
    pub fn complain(&mut self, text: impl Into<String>) {
        self.complaints.push(text.into());
    }

    /// The calls, by what came of them.
    pub fn tally(&self) -> Tally {
        Tally::of(&self.calls)
    }

    fn fates(&self) -> impl Iterator<Item = (&Call, Instant, &Fate)> {
        let ended = self.calls.iter();
        ended.filter_map(|call| call.end.as_ref().map(|(at, fate)| (call, *at, fate)))
    }

    /// Calls that were lost though nothing was wrong: they ended before the fault, or began in
    /// the calm after it.
    fn lost_in_peace(&self) -> Vec<&Call> {
        let peace = self.fates().filter(|(call, end, fate)| {
            let before = self.injected.is_none_or(|at| *end < at);
            let after = self.calm.is_some_and(|at| call.begun >= at);
            fate.is_loss() && (before || after)
        });
        peace.map(|(call, ..)| call).collect()
    }

    fn lost_of(&self, kind: Kind) -> Vec<&Call> {
        let of = self
            .fates()
            .filter(|(call, _, fate)| call.kind == kind && fate.is_loss());
        of.map(|(call, ..)| call).collect()
    }

    fn served_in_the_fault(&self, kind: Kind) -> bool {
        self.fates().any(|(call, _, fate)| {
            let after = self.injected.is_some_and(|at| call.begun >= at);
            let before = self.healed.is_some_and(|at| call.begun < at);
            call.kind == kind && after && before && *fate == Fate::Served
        }) || kind == Kind::GrpcStream
    }

    /// From the end of the fault to the first answer; where nobody asked until later, from then on.
    fn recovery(&self, kind: Kind) -> Option<Duration> {
        let healed = self.healed?;
        let asked = self.calls.iter().filter(|call| {
            call.kind == kind && call.end.as_ref().is_none_or(|(end, _)| *end >= healed)
        });
        let healed = asked.map(|call| call.begun.max(healed)).min()?;
        let served = self.fates().filter(|(call, end, fate)| {
            call.kind == kind && *end >= healed && **fate == Fate::Served
        });
        served.map(|(_, end, _)| end - healed).min()
    }
}

/// Every complaint about a cell.
pub fn all(
    row: &Row,
    second: Option<&Row>,
    phase: Phase,
    with: &Played,
    without: Option<&Played>,
) -> Vec<String> {
    let mut complaints = with.complaints.clone();
    let mut say = |text: String| complaints.push(text);
    for (id, times) in with.received.iter().filter(|(_, times)| **times > 1) {
        say(format!("call {id} reached the server {times} times"));
    }
    for (call, _, fate) in with.fates() {
        if *fate == Fate::Served && !with.received.contains_key(&call.id) {
            say(format!(
                "call {} was answered and never reached the server",
                call.id
            ));
        }
    }
    for (call, _, fate) in with.fates() {
        if *fate == Fate::NotSent && with.received.contains_key(&call.id) {
            say(format!(
                "call {} reached the server, and its caller was told to send it again: {call:?}",
                call.id
            ));
        }
    }
    let babbles = row.babbles || second.is_some_and(|second| second.babbles);
    for what in with.unasked.iter().filter(|_| !babbles).take(3) {
        say(format!("a caller got what it had not asked for: {what}"));
    }
    for model in &with.loads.doubled {
        say(format!("two loads of {model} went on at once"));
    }
    let ready = second.map_or(row.ready, |second| row.ready.and(second.ready));
    // Neither the server nor the shim goes: who asked may have gone.
    if ready == Ready::Stays {
        for model in &with.loads.cut {
            say(format!("a load of {model} was cut off in the server"));
        }
    }
    if let Some(wrong) = truth::readiness(ready, phase, with) {
        say(wrong);
    }
    for call in with.lost_in_peace().into_iter().take(3) {
        say(format!("lost although nothing was wrong: {call:?}"));
    }
    let late = second.map_or(row.late, |second| row.late.max(second.late));
    hung(with, late, &mut say);
    if let Some(wrong) = &with.belief {
        say(format!("the scheduler's belief is wrong: {wrong}"));
    }
    if !with.lost_models.is_empty() {
        say(format!(
            "the server does not have {:?} again",
            with.lost_models
        ));
    }
    misnamed(row, second, phase, with, &mut say);
    let subscribes = row.subscribes + second.map_or(0, |second| second.subscribes + 2);
    if with.subscribes > subscribes {
        let came = with.subscribes;
        say(format!(
            "{came} Subscribes, at most {subscribes} were to come"
        ));
    }
    for line in with
        .log
        .lines()
        .filter(|l| l.contains("panicked at") || l.contains("RUST_BACKTRACE"))
    {
        say(format!("panic: {line}"));
    }
    let Some(without) = without else {
        return complaints;
    };
    if !without.complaints.is_empty() {
        complaints.push(format!("without the shim: {:?}", without.complaints));
    }
    let mut say = |text: String| complaints.push(text);
    for kind in Kind::ALL {
        let mut lost = with.lost_of(kind);
        if row.answers {
            let grace = match row.ready {
                Ready::GoesAfterGrace => scaled(GRACE),
                _ => Duration::ZERO,
            };
            let told = with.injected.map(|at| at + grace);
            lost.retain(|call| {
                !matches!(&call.end, Some((at, Fate::ByShim(_))) if told.is_some_and(|t| *at >= t))
            });
        }
        // That it would have been served is seen, not believed.
        let proof = without.lost_of(kind).is_empty() && without.served_in_the_fault(kind);
        if proof && !lost.is_empty() && phase != Phase::Idle {
            let first = &lost[0];
            say(format!(
                "{} of {kind:?} lost, none without the shim: {first:?}",
                lost.len()
            ));
        }
        // A stream is over when the callers are stopped.
        if let Some(direct) = without.recovery(kind).filter(|_| kind != Kind::GrpcStream) {
            let limit = direct + promised(3.0);
            if with.recovery(kind).is_none_or(|took| took > limit) {
                let took = with.recovery(kind);
                say(format!(
                    "{kind:?} served again after {took:?}, without the shim {direct:?}"
                ));
            }
        }
    }
    complaints
}

/// What may be found while the fault lasts.
pub fn true_of(row: &Row, second: Option<&Row>, phase: Phase) -> Vec<&'static str> {
    let rows = [Some(row), second].into_iter().flatten();
    // An agent that subscribes anew while there is no server is held, which is told.
    let held = second.is_some_and(|second| {
        let gone = |r: &Row| matches!(r.ready, Ready::Goes | Ready::GoesAfterGrace);
        (row.subscribes > 0 && gone(second)) || (second.subscribes > 0 && gone(row))
    });
    rows.flat_map(|r| r.findings.iter().chain(r.besides))
        .chain(true_in(phase))
        .chain(held.then_some(&"AS032"))
        .copied()
        .collect()
}

/// Nothing else is found than what the fault is, or brings with it.
fn misnamed(
    row: &Row,
    second: Option<&Row>,
    phase: Phase,
    with: &Played,
    say: &mut impl FnMut(String),
) {
    let true_of = true_of(row, second, phase);
    let wrong: Vec<_> = with
        .found
        .iter()
        .filter(|id| !true_of.contains(&id.as_str()))
        .collect();
    if !wrong.is_empty() {
        say(format!("found, and not so: {wrong:?}"));
    }
    for (id, stood) in truth::stood(&with.looks, &true_of, &with.found_before) {
        say(format!("found for {stood:?}, and not so: {id}"));
    }
}

/// No call that begins when the shim knows of the fault waits for long, and none outlives it.
fn hung(with: &Played, late: Duration, say: &mut impl FnMut(String)) {
    let (Some(settled), Some(healed), Some(stopped)) = (with.settled, with.healed, with.stopped)
    else {
        return;
    };
    let limit = promised(3.0) + late;
    for call in &with.calls {
        let end = call.end.as_ref().map_or(stopped, |(at, _)| *at);
        let open = call.end.is_none();
        let known = call.begun >= settled && call.begun < healed && call.kind != Kind::GrpcStream;
        if open || (known && end.saturating_duration_since(call.begun) > limit) {
            let how = call.end.as_ref().map(|(_, fate)| fate);
            let took = end.saturating_duration_since(call.begun);
            say(format!(
                "hung: call {} ({:?}) took {took:?}, {how:?}",
                call.id, call.kind
            ));
        }
    }
}
