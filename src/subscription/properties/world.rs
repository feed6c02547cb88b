//! One history: the shim with an agent and a scheduler around it, and its steps.

use std::sync::{Arc, Mutex, MutexGuard as Locked};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use tokio::sync::watch;

use super::oracle::{Asked, Fact};
use super::reading::Reading;
use super::sides::{Agent, Observed, Observing};
use super::{MIB, MIN_INTERVAL, SETTLE, Step};
use crate::clock::Clock;
use crate::config::Mode;
use crate::metrics::Metrics;
use crate::proto::agent::ModelVersion;
use crate::subscription::correct::Known;
use crate::subscription::editor::Accounted;
use crate::subscription::live::{Ending, Live};
use crate::subscription::status::Wanted;
use crate::subscription::{Interposer, LOOK_INTERVAL, Settings};

/// An event of the agent's that the shim has taken into account and not delivered.
pub(super) struct Undelivered {
    pub(super) bytes: Vec<u8>,
    pub(super) accounted: Accounted,
}

pub(super) struct World {
    pub(super) mode: Mode,
    pub(super) clock: Clock,
    pub(super) observing: Arc<Observing>,
    pub(super) shim: Interposer,
    pub(super) live: Option<Live>,
    pub(super) agent: Agent,
    /// Loads that the agent has been given and works at.
    pub(super) pending: Vec<(usize, Asked, ModelVersion)>,
    /// How many of those, the first ones, are from before the last Subscribe.
    pub(super) earlier: usize,
    pub(super) undelivered: Vec<Undelivered>,
    /// The log, from which the oracle works.
    pub(super) log: Vec<Fact>,
    /// Every value that would have been reported, and since when; begins anew when the server is
    /// not there to be asked.
    pub(super) wanted: Vec<(Duration, Wanted)>,
    /// What was told at the last Subscribe, and when; nothing where that was not read.
    pub(super) told: Option<(Duration, Wanted)>,
    /// What the scheduler believes is free.
    pub(super) believed: u64,
    /// And in all.
    pub(super) believed_total: u64,
    /// The shim reads that back.
    pub(super) reading: Reading,
    pub(super) next_look: Duration,
}

pub(super) fn interposer(mode: Mode, observing: &Arc<Observing>, clock: Clock) -> Interposer {
    let settings = Settings {
        mode,
        targets: Vec::new(),
        tls: None,
        hold: Duration::from_secs(60),
        resubscribe_min_interval: MIN_INTERVAL,
        settle: SETTLE,
        drain_limit: Duration::from_secs(90),
    };
    Interposer::new(settings, observing.clone(), clock, &Metrics::new()).0
}

impl World {
    pub(super) fn new(mode: Mode, mut agent: Agent, bytes: u64) -> Self {
        agent.declared = vec!["mlserver".into(), "sklearn".into()];
        let clock = Clock::start();
        let observing = Arc::new(Observing {
            now: Mutex::new(Observed {
                bytes,
                installed: vec!["sklearn".into()],
                workers: None,
            }),
            known: watch::Sender::new(Known {
                ready: true,
                ..Default::default()
            }),
        });
        let shim = interposer(mode, &observing, clock);
        let mut world = World {
            mode,
            clock,
            observing,
            shim,
            live: None,
            agent,
            pending: Vec::new(),
            earlier: 0,
            undelivered: Vec::new(),
            log: Vec::new(),
            wanted: Vec::new(),
            told: None,
            believed: 0,
            believed_total: 0,
            reading: Reading::default(),
            next_look: clock.now() + LOOK_INTERVAL,
        };
        world.remember_wanted();
        world
    }

    pub(super) fn observed(&self) -> Locked<'_, Observed> {
        self.observing.now.lock().unwrap()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.observing.known.borrow().ready
    }

    /// The background task looks, as it does at every change and from time to time.
    pub(super) fn looks(&mut self) -> Result<(), TestCaseError> {
        let now = self.clock.now();
        let due = self.is_renewal_due(now);
        let wait = self.shim.look();
        prop_assert!(wait <= LOOK_INTERVAL);
        self.next_look = now + wait;
        let ended = self.live.as_ref().and_then(ending);
        // Ended for a lasting difference and for nothing else; and surely for that.
        prop_assert_eq!(ended == Some(Ending::Renewed), due, "{:?}", self.wanted);
        if due {
            self.subscribes()?;
        }
        Ok(())
    }

    pub(super) async fn passes(&mut self, ms: u64) -> Result<(), TestCaseError> {
        let until = self.clock.now() + Duration::from_millis(ms);
        while self.next_look <= until {
            let wait = self.next_look.saturating_sub(self.clock.now());
            tokio::time::advance(wait).await;
            self.looks()?;
        }
        tokio::time::advance(until.saturating_sub(self.clock.now())).await;
        Ok(())
    }

    pub(super) async fn does(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Load(m, memory) => self.loads(*m, *memory)?,
            Step::Finish(which, works) => self.finishes(*which, *works)?,
            Step::Unload(m) => self.unloads(*m)?,
            Step::Deliver(which) => self.delivers(*which)?,
            Step::Observe(what, n) => {
                let mut observed = self.observed();
                match what {
                    0 | 1 => observed.bytes = n * 1024 * MIB,
                    2 => observed.installed = vec!["sklearn".into(), format!("runtime-{}", n % 3)],
                    _ => observed.workers = [None, Some(1), Some(4)][*n as usize % 3],
                }
                drop(observed);
                self.remember_wanted();
                if self.is_ready() {
                    self.looks()?;
                }
            }
            Step::Ready(ready) => {
                if !(self.is_ready() && *ready) {
                    // What a server shows on its way down and up proves nothing.
                    self.wanted.clear();
                }
                self.observing.known.send_modify(|k| k.ready = *ready);
                self.remember_wanted();
                self.looks()?;
            }
            Step::Pass(ms) => self.passes(*ms).await?,
            Step::Reconnect => self.subscribes()?,
            Step::Unread(how) => self.subscribes_unread(*how)?,
            Step::Forgets(bytes) => self.believed = self.believed.wrapping_add(*bytes),
            Step::Asks => self.asks(),
            Step::Answers => self.answers(),
            Step::Reads => self.reads()?,
            Step::AgentRestarts => {
                self.agent.loaded.clear();
                self.pending.clear();
                self.earlier = 0;
                self.undelivered.clear();
                self.log.push(Fact::AgentRestarted);
                drop(self.live.take());
                self.subscribes()?;
            }
            Step::ShimRestarts => {
                // What the agent was given before, only the agent knows the end of: not asked here.
                while !self.pending.is_empty() {
                    self.finishes(0, true)?;
                }
                self.undelivered.clear();
                self.live = None;
                self.shim = interposer(self.mode, &self.observing, self.clock);
                self.next_look = self.clock.now() + LOOK_INTERVAL;
                self.subscribes()?;
            }
            Step::Drain => {
                self.shim.registry.draining();
                let asked = self.shim.status.borrow().drain_asked;
                prop_assert_eq!(asked, Some(self.clock.now()));
            }
        }
        self.invariants()
    }
}

/// Whether the shim has told a subscription to end.
pub(super) fn ending(live: &Live) -> Option<Ending> {
    let mut ended = Box::pin(live.ended());
    match ended.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ending) => Some(ending),
        Poll::Pending => None,
    }
}
