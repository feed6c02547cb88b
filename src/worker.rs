//! Evidence of its own that the server's worker works.
//!
//! MLServer's live and ready come from its main process: they stay good while every inference
//! fails or hangs. Three kinds of evidence are kept: the worker processes in `/proc` where the
//! process namespace is shared ([`record`]), a canary inference where one is configured, and what
//! the answers to relayed HTTP inferences say. Known bad states are named; three are mended
//! where that is switched on. Only evidence that every inference fails makes the pod not ready: workers
//! that are missing or die at their start, or a canary that hangs or fails again and again.
//! Where nothing can be seen, nothing is held against the worker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Clock;
use crate::readiness::Condition;

pub mod canary;
pub mod record;
pub mod runner;
mod series;
mod stuck;

use canary::Canary;
use record::Workers;

/// The name of the condition.
pub const CONDITION: &str = "worker";

/// How long workers may be missing, or die at their start, before the pod is not ready: a server
/// that starts a worker anew needs a few seconds.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long a canary may be outstanding before the worker is said to hang; loads and unloads, which
/// block it for as long as they take, do not count. Also how long inferences may run without any
/// of them being answered before a canary is sent beside them.
pub const HUNG: Duration = Duration::from_secs(60);
/// How long none of the inferences that run may be answered, nor a canary beside them, before the
/// pod is not ready: longer than any honest call that holds all others up.
pub const HELD_UP: Duration = Duration::from_secs(600);
/// Canaries in a row that must fail before the pod is not ready.
pub const FAILURES: u32 = 3;
/// Failed answers to relayed inferences in a row before they are told as a finding, and, in
/// [`PASSIVE_TIME`], the least time between the first and the last: a restart of the worker takes
/// 2.5 s to 4.2 s.
pub const PASSIVE_FAILURES: u32 = 3;
/// Time between the first and the last of them.
pub const PASSIVE_TIME: Duration = Duration::from_secs(10);
/// How long they are believed without another one: nobody may be asking any more.
pub const PASSIVE_FRESH: Duration = Duration::from_secs(300);
/// How long a model may be UNKNOWN with no load of it under way before that is named.
pub const STUCK: Duration = Duration::from_secs(30);
/// How long before it is mended.
pub const STUCK_MEND: Duration = Duration::from_secs(60);

/// A model in a bad state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// Its name.
    pub model: String,
    /// Since when.
    pub since: Duration,
}

/// Answers to relayed inferences that say that the worker cannot work, with none between that
/// says that it can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passive {
    /// How many.
    pub failures: u32,
    /// When the first came.
    pub first: Duration,
    /// When the last came.
    pub last: Duration,
}

impl Passive {
    /// Another one.
    fn and(self, now: Duration) -> Self {
        let before = self.still(now);
        Passive {
            failures: before.failures.saturating_add(1),
            first: match before.failures {
                0 => now,
                _ => before.first,
            },
            last: now,
        }
    }

    /// What is left of them at this moment.
    fn still(self, now: Duration) -> Self {
        match now.saturating_sub(self.last) > PASSIVE_FRESH {
            true => Passive::default(),
            false => self,
        }
    }
}

/// Everything that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerSeen {
    /// The worker processes.
    pub workers: Workers,
    /// Workers that were seen to end while their main process lived.
    pub exits: u64,
    /// When the main process of now was last seen to lose one.
    pub exited: Option<Duration>,
    /// Of those, within the last minute.
    pub recent_exits: usize,
    /// Process ids of workers that a killed main process has left behind.
    pub orphans: Vec<u32>,
    /// The canary; `None` where none is configured.
    pub canary: Option<Canary>,
    /// What relayed inferences say.
    pub passive: Passive,
    /// Models that are UNKNOWN although no load of them is known to be under way.
    pub stuck: Vec<Bad>,
    /// Models that are READY and that the worker does not have; only a canary tells.
    pub lost: Vec<Bad>,
    /// States that were mended, by name.
    pub mended: BTreeMap<&'static str, u64>,
}

impl WorkerSeen {
    /// Why every inference fails, where the evidence for that is beyond doubt.
    pub fn broken(&self, now: Duration) -> Option<String> {
        let for_long = |since: Duration| now.saturating_sub(since) >= PATIENCE;
        let ago = |since: Duration| now.saturating_sub(since).as_secs();
        match self.workers {
            Workers::Missing { since } if for_long(since) => {
                return Some(format!(
                    "the server has had no worker process for {} s: every inference fails, while its own health calls stay good",
                    ago(since)
                ));
            }
            Workers::Looping { since } if for_long(since) => {
                return Some(format!(
                    "the server's workers have died at their start for {} s ({} times within a minute): every inference fails, while its own health calls stay good; the server's log says why",
                    ago(since),
                    self.recent_exits
                ));
            }
            _ => {}
        }
        self.canary.as_ref().and_then(|canary| canary.broken(now))
    }
}

/// What is shared with the relays and the reporters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    seen: watch::Sender<WorkerSeen>,
    shown: Mutex<Option<Condition>>,
}

impl Worker {
    /// Nothing is known yet.
    pub fn new(clock: Clock) -> Self {
        Worker(Arc::new(Inner {
            clock,
            seen: watch::Sender::default(),
            shown: Mutex::default(),
        }))
    }

    /// What is known, and its changes.
    pub fn seen(&self) -> watch::Receiver<WorkerSeen> {
        self.0.seen.subscribe()
    }

    /// An inference was answered with a result.
    pub fn worked(&self) {
        self.0.seen.send_if_modified(|seen| {
            let mut known = seen.passive != Passive::default();
            seen.passive = Passive::default();
            if let Some(canary) = seen.canary.as_mut().filter(|c| c.failures > 0) {
                canary.contradicted();
                known = true;
            }
            known
        });
    }

    /// What was answered so far says nothing any more: it came from another process.
    pub fn forget(&self) {
        self.0.seen.send_if_modified(|seen| {
            let known = seen.passive != Passive::default() || !seen.lost.is_empty();
            seen.passive = Passive::default();
            seen.lost.clear();
            let failed = seen.canary.as_mut().is_some_and(Canary::forget);
            known || failed
        });
    }

    /// An inference was answered with an internal error that is no model's.
    pub fn failed(&self) {
        let now = self.0.clock.now();
        self.0
            .seen
            .send_modify(|seen| seen.passive = seen.passive.and(now));
    }

    /// The condition of this moment.
    pub fn condition(&self) -> Condition {
        let now = self.0.clock.now();
        let broken = self.0.seen.borrow().broken(now);
        let holds = broken.is_none();
        let reason = broken.unwrap_or_else(|| {
            let seen = self.0.seen.borrow();
            match seen.workers {
                Workers::Unseen => {
                    "nothing is held against the worker; its processes cannot be seen".into()
                }
                Workers::There { count, ended: None } => {
                    format!("{count} worker processes are there")
                }
                Workers::There {
                    count,
                    ended: Some(at),
                } => format!(
                    "{count} worker processes are there; one ended {} s ago",
                    now.saturating_sub(at).as_secs()
                ),
                _ => "nothing is held against the worker for long enough".into(),
            }
        });
        let mut shown = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let same = shown.as_ref().filter(|c| c.holds == holds);
        let since = same.map_or(now, |c| c.since);
        let condition = Condition {
            name: CONDITION,
            holds,
            reason,
            since,
        };
        *shown = Some(condition.clone());
        condition
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn only_lasting_evidence_that_all_fails_is_held_against_the_pod() {
        let of = |workers| WorkerSeen {
            workers,
            ..WorkerSeen::default()
        };
        for workers in [
            Workers::Unseen,
            Workers::NoneYet,
            Workers::There {
                count: 1,
                ended: Some(s(99)),
            },
            Workers::Missing { since: s(71) },
            Workers::Looping { since: s(71) },
        ] {
            assert_eq!(of(workers).broken(s(100)), None, "{workers:?}");
        }
        for workers in [
            Workers::Missing { since: s(70) },
            Workers::Looping { since: s(70) },
        ] {
            assert!(of(workers).broken(s(100)).is_some(), "{workers:?}");
        }
        let seen = WorkerSeen {
            stuck: vec![Bad {
                model: "a".into(),
                since: s(1),
            }],
            lost: vec![Bad {
                model: "b".into(),
                since: s(1),
            }],
            orphans: vec![7],
            passive: Passive {
                failures: 9,
                first: s(1),
                last: s(50),
            },
            ..WorkerSeen::default()
        };
        assert_eq!(seen.broken(s(1000)), None, "one model is not all");
    }

    #[tokio::test(start_paused = true)]
    async fn failed_answers_are_counted_until_a_good_one() {
        let worker = Worker::new(Clock::start());
        let seen = worker.seen();
        for _ in 0..5 {
            worker.failed();
        }
        tokio::time::advance(PASSIVE_TIME).await;
        worker.failed();
        let passive = seen.borrow().passive;
        assert_eq!(passive.failures, 6);
        assert_eq!(passive.last - passive.first, PASSIVE_TIME);
        worker.worked();
        assert_eq!(seen.borrow().passive, Passive::default());
    }

    #[test]
    fn a_result_ends_a_canarys_failures_and_another_process_all_that_was_seen_of_the_old_one() {
        let worker = Worker::new(Clock::start());
        let seen = worker.seen();
        let failed = || {
            worker.0.seen.send_modify(|seen| {
                let canary = seen.canary.get_or_insert_default();
                for at in [1, 2, 40] {
                    canary.ended(canary::Answer::WorkerFailed("x".into()), s(at));
                }
                let model = "iris".into();
                let since = s(1);
                seen.lost = vec![Bad { model, since }];
            });
            assert!(seen.borrow().broken(s(40)).is_some());
        };
        failed();
        worker.worked();
        assert_eq!(seen.borrow().broken(s(40)), None);
        let failures = seen.borrow().canary.as_ref().unwrap().failures;
        assert_eq!((failures, seen.borrow().lost.len()), (0, 1));
        failed();
        worker.forget();
        assert_eq!(seen.borrow().broken(s(40)), None);
        assert!(seen.borrow().lost.is_empty());
        assert_eq!(seen.borrow().canary, Some(Canary::default()));
    }

    #[test]
    fn failed_answers_are_forgotten_when_no_more_come() {
        let three = Passive::default().and(s(1)).and(s(2)).and(s(12));
        assert_eq!((three.failures, three.first, three.last), (3, s(1), s(12)));
        let long = s(12) + PASSIVE_FRESH;
        assert_eq!(three.still(long), three);
        assert_eq!(three.still(long + s(1)), Passive::default());
        assert_eq!(three.and(long + s(1)).failures, 1);
    }
}
