//! What happened lately, for people: the last outcomes of each candidate's probes, and the last
//! changes of endpoints, selections, conditions and registration.
//!
//! Owns two kinds of bounded ring and nothing else; must not know clocks, sockets or who asks.
//! Nothing is decided from it: a shim that forgets its history behaves the same. A probe costs a
//! short lock and 12 bytes, which are kept in place of the oldest.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::endpoint::Protocol;
use crate::health::{Outcome, Reason};

/// Slots that are kept for each candidate; each is about one probe interval.
pub const SLOTS: usize = 60;
/// Changes that are kept.
pub const CHANGES: usize = 50;
/// An answer that took longer is called slow: MLServer answers its health in milliseconds.
pub const SLOW: Duration = Duration::from_millis(100);
/// Bytes of a reason that are kept; the sentences of this program are shorter.
const MAX_REASON: usize = 400;

/// What a probe found, as far as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It answered.
    Ok,
    /// It answered, later than [`SLOW`].
    Slow,
    /// It did not.
    Failed(Reason),
}

/// Like outcomes that came close together: fast probing must not push a fall out of sight.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// When it began, in tenths of a second since the start: enough for 13 years.
    at: u32,
    /// The slowest answer in it, in microseconds.
    slowest: u32,
    /// How many probes.
    probes: u16,
    kind: Kind,
}

/// Neighbouring slots of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What its probes found.
    pub kind: Kind,
    /// How many probes.
    pub probes: u32,
    /// How many slots; a slot lasts about one probe interval.
    pub slots: u32,
    /// When the first slot began.
    pub from: Duration,
    /// When the last slot began.
    pub to: Duration,
    /// The slowest answer; `None` where there was none.
    pub slowest: Option<Duration>,
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The state of a candidate.
    Endpoint,
    /// The candidate that a protocol uses.
    Selection,
    /// A condition of the pod.
    Condition,
    /// A condition of the agent's registration with the scheduler.
    Registration,
}

impl What {
    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            What::Endpoint => "endpoint",
            What::Selection => "selection",
            What::Condition => "condition",
            What::Registration => "registration",
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When, on the process clock.
    pub at: Duration,
    /// Of what kind.
    pub what: What,
    /// Of which candidate, protocol or condition.
    pub subject: Cow<'static, str>,
    /// The state before; empty where there was none.
    pub from: Cow<'static, str>,
    /// The state after.
    pub to: Cow<'static, str>,
    /// Why, in words; empty where there is nothing to say.
    pub reason: String,
}

#[derive(Debug, Default)]
struct Rings {
    probes: [Vec<VecDeque<Slot>>; 2],
    changes: VecDeque<Change>,
}

/// A handle to the history. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct History {
    rings: Arc<Mutex<Rings>>,
    width: Duration,
}

impl History {
    /// An empty history of so many candidates for each protocol, probed every `interval`.
    pub fn new(candidates: [usize; 2], interval: Duration) -> Self {
        let probes = candidates.map(|n| {
            (0..n)
                .map(|_| VecDeque::with_capacity(SLOTS))
                .collect::<Vec<_>>()
        });
        let rings = Rings {
            probes,
            changes: VecDeque::new(),
        };
        History {
            rings: Arc::new(Mutex::new(rings)),
            // Below the shortest wait that jitter makes, so that regular probes have a slot each.
            width: interval.mul_f64(0.85),
        }
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers one probe of a candidate.
    pub fn probed(&self, protocol: Protocol, index: usize, outcome: &Outcome, now: Duration) {
        let (kind, latency) = match outcome {
            Outcome::Healthy { latency, .. } if *latency > SLOW => (Kind::Slow, *latency),
            Outcome::Healthy { latency, .. } => (Kind::Ok, *latency),
            Outcome::Unhealthy { reason, .. } => (Kind::Failed(*reason), Duration::ZERO),
        };
        let at = u32::try_from(now.as_millis() / 100).unwrap_or(u32::MAX);
        let slowest = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        let mut rings = self.rings();
        let Some(ring) = rings.probes[protocol.index()].get_mut(index) else {
            return;
        };
        let width = self.width.as_millis() / 100;
        if let Some(last) = ring.back_mut()
            && last.kind == kind
            && u128::from(at.saturating_sub(last.at)) < width
        {
            last.probes = last.probes.saturating_add(1);
            last.slowest = last.slowest.max(slowest);
            return;
        }
        if ring.len() == SLOTS {
            ring.pop_front();
        }
        ring.push_back(Slot {
            at,
            slowest,
            probes: 1,
            kind,
        });
    }

    /// Remembers one change.
    pub fn changed(&self, mut change: Change) {
        if change.reason.len() > MAX_REASON {
            let whole = |end: &usize| change.reason.is_char_boundary(*end);
            let end = (0..=MAX_REASON).rev().find(whole).unwrap_or_default();
            change.reason.truncate(end);
            change.reason.push('…');
        }
        let mut rings = self.rings();
        if rings.changes.len() == CHANGES {
            rings.changes.pop_front();
        }
        rings.changes.push_back(change);
    }

    /// The probes of a candidate, oldest first.
    pub fn runs(&self, protocol: Protocol, index: usize) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let rings = self.rings();
        for slot in rings.probes[protocol.index()]
            .get(index)
            .into_iter()
            .flatten()
        {
            let at = Duration::from_millis(u64::from(slot.at) * 100);
            let slowest = (!matches!(slot.kind, Kind::Failed(_)))
                .then(|| Duration::from_micros(slot.slowest.into()));
            match runs.last_mut() {
                Some(run) if run.kind == slot.kind => {
                    run.probes += u32::from(slot.probes);
                    run.slots += 1;
                    run.to = at;
                    run.slowest = run.slowest.max(slowest);
                }
                _ => runs.push(Run {
                    kind: slot.kind,
                    probes: slot.probes.into(),
                    slots: 1,
                    from: at,
                    to: at,
                    slowest,
                }),
            }
        }
        runs
    }

    /// The changes, newest first. Some are noticed a moment after they came about, so they are
    /// put in the order of time here.
    pub fn changes(&self) -> Vec<Change> {
        let mut all: Vec<Change> = self.rings().changes.iter().rev().cloned().collect();
        all.sort_by_key(|change| std::cmp::Reverse(change.at));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HTTP: Protocol = Protocol::Http;

    fn ok(ms: u64) -> Outcome {
        Outcome::Healthy {
            ready: Some(true),
            latency: Duration::from_millis(ms),
        }
    }

    fn refused() -> Outcome {
        Outcome::Unhealthy {
            reason: Reason::Refused,
            detail: "seen".into(),
        }
    }

    fn history() -> History {
        History::new([1, 1], Duration::from_secs(1))
    }

    fn change(at: u64, reason: &str) -> Change {
        Change {
            at: Duration::from_secs(at),
            what: What::Condition,
            subject: "probed".into(),
            from: "false".into(),
            to: "true".into(),
            reason: reason.into(),
        }
    }

    #[test]
    fn like_outcomes_in_a_row_are_one_run_and_a_slow_answer_is_told_apart() {
        let h = history();
        for (second, outcome) in [ok(1), ok(3), ok(150), refused(), refused(), ok(2)]
            .iter()
            .enumerate()
        {
            h.probed(HTTP, 0, outcome, Duration::from_secs(second as u64));
        }
        let seen: Vec<(Kind, u32, u64, u64)> = h
            .runs(HTTP, 0)
            .iter()
            .map(|r| (r.kind, r.probes, r.from.as_secs(), r.to.as_secs()))
            .collect();
        assert_eq!(
            seen,
            [
                (Kind::Ok, 2, 0, 1),
                (Kind::Slow, 1, 2, 2),
                (Kind::Failed(Reason::Refused), 2, 3, 4),
                (Kind::Ok, 1, 5, 5),
            ]
        );
        assert_eq!(h.runs(HTTP, 0)[0].slowest, Some(Duration::from_millis(3)));
        assert_eq!(h.runs(HTTP, 0)[2].slowest, None);
        assert!(h.runs(Protocol::Grpc, 0).is_empty() && h.runs(HTTP, 7).is_empty());
    }

    #[test]
    fn fast_probing_of_a_dead_server_does_not_push_its_fall_out_of_sight() {
        let h = history();
        h.probed(HTTP, 0, &ok(1), Duration::ZERO);
        // 30 s of refusals, ten in a second: five times as many probes as there are slots.
        for tenth in 10..310u64 {
            h.probed(HTTP, 0, &refused(), Duration::from_millis(tenth * 100));
        }
        let runs = h.runs(HTTP, 0);
        assert_eq!(runs.len(), 2, "{runs:?}");
        assert_eq!((runs[0].kind, runs[1].probes), (Kind::Ok, 300));
        assert!((30..=40).contains(&runs[1].slots), "{runs:?}");
    }

    #[test]
    fn changes_come_newest_first_by_their_time_and_long_reasons_are_cut_between_characters() {
        let h = history();
        h.changed(change(5, "five"));
        h.changed(change(3, "noticed late"));
        h.changed(change(9, &"ü".repeat(MAX_REASON)));
        let times: Vec<u64> = h.changes().iter().map(|c| c.at.as_secs()).collect();
        assert_eq!(times, [9, 5, 3]);
        let reason = &h.changes()[0].reason;
        assert!(reason.len() <= MAX_REASON + '…'.len_utf8() && reason.ends_with("ü…"));
    }

    #[test]
    fn a_slot_is_twelve_bytes() {
        assert_eq!(size_of::<Slot>(), 12);
    }

    proptest! {
        #[test]
        fn the_rings_are_bounded_whatever_comes(
            outcomes in proptest::collection::vec((any::<bool>(), 0u64..5_000, 0u64..400), 0..400)
        ) {
            let h = history();
            let mut now = Duration::ZERO;
            for (good, wait, latency) in outcomes {
                now += Duration::from_millis(wait);
                h.probed(HTTP, 0, &if good { ok(latency) } else { refused() }, now);
                h.changed(change(now.as_secs(), "again"));
            }
            let runs = h.runs(HTTP, 0);
            prop_assert!(runs.iter().map(|r| r.slots).sum::<u32>() <= SLOTS as u32);
            prop_assert!(runs.windows(2).all(|w| w[0].kind != w[1].kind && w[0].to <= w[1].from));
            prop_assert!(h.changes().len() <= CHANGES);
        }
    }
}
