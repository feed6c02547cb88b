//! What has to be true, worked out anew from the log of everything that happened, and the comparison with it
//! after every step.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::sides::with;
use super::world::{World, ending};
use super::{MIN_INTERVAL, SETTLE};
use crate::config::Mode;
use crate::subscription::status::{Phase, Wanted};

/// A model as the scheduler asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) memory: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    Loaded(usize, Asked),
    Unloaded(usize),
    AgentRestarted,
}

impl World {
    /// What is in memory: what was loaded and not unloaded since.
    pub(super) fn in_memory(&self) -> BTreeMap<usize, Asked> {
        let mut models = BTreeMap::new();
        for (at, fact) in self.log.iter().enumerate() {
            let Fact::Loaded(m, asked) = fact else {
                continue;
            };
            let gone = self.log[at..].iter().any(|f| match f {
                Fact::Unloaded(other) => other == m,
                Fact::AgentRestarted => true,
                Fact::Loaded(..) => false,
            });
            if !gone {
                models.insert(*m, *asked);
            }
        }
        models
    }

    /// What would be reported: the agent's own word where nothing better is known.
    pub(super) fn would_report(&self) -> Wanted {
        let observed = self.observed().clone();
        let more = observed.installed.iter();
        let more = more.filter(|c| !self.agent.declared.contains(c));
        Wanted {
            memory: match observed.bytes {
                0 => self.agent.total,
                bytes => bytes,
            },
            capabilities: self.agent.declared.iter().chain(more).cloned().collect(),
            workers: observed.workers,
        }
    }

    /// How often a model is in memory: by the report of the last Subscribe.
    pub(super) fn copies(&self) -> u64 {
        let told = self.told.as_ref().map(|(_, told)| told.workers);
        let copies = told.flatten().or(self.agent.workers).unwrap_or(1);
        u64::from(copies.max(1))
    }

    pub(super) fn need(&self, asked: Asked) -> u64 {
        asked.memory.unwrap_or(0) * self.copies()
    }

    /// What the scheduler has to believe is free.
    pub(super) fn truly_free(&self) -> u64 {
        let Some((_, told)) = &self.told else {
            // Unread, so the agent speaks for itself.
            return self.agent.free();
        };
        if self.mode == Mode::Observe || told.memory == 0 {
            return self.agent.free();
        }
        // An agent whose models all count nothing could never evict.
        let promised = match self.agent.total {
            0 => 0,
            _ => self.agent.over_commit,
        };
        let models = self.in_memory();
        let needed: u64 = models.values().map(|asked| self.need(*asked)).sum();
        with(told.memory, promised).saturating_sub(needed)
    }

    pub(super) fn remember_wanted(&mut self) {
        let wanted = self.would_report();
        if self.wanted.last().is_none_or(|(_, last)| *last != wanted) {
            self.wanted.push((self.clock.now(), wanted));
        }
    }

    /// Whether the shim may end the subscription now, and whether it must.
    pub(super) fn is_renewal_due(&self, at: Duration) -> bool {
        let Some((opened, told)) = &self.told else {
            return false;
        };
        let (since, wanted) = self.wanted.last().unwrap();
        self.mode == Mode::Correct
            && self.live.is_some()
            && self.is_ready()
            && wanted != told
            && at - *since >= SETTLE
            && at - *opened >= MIN_INTERVAL
            && self.pending.len() == self.earlier
    }

    /// Right after the scheduler was told, it believes what is true.
    pub(super) fn agrees(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.believed, self.truly_free());
        let status = self.shim.status.borrow();
        prop_assert_eq!(status.available, Some(self.believed));
        Ok(())
    }

    /// What holds after every step.
    pub(super) fn invariants(&self) -> Result<(), TestCaseError> {
        let truth = self.in_memory();
        let status = self.shim.status.borrow();
        let balance = status.balance;
        // The stream stands: nothing but a lasting difference or the agent itself ends it.
        let live = self.live.as_ref().and_then(ending);
        prop_assert_eq!(live, None);
        prop_assert!(matches!(status.phase, Phase::Open));
        let Some((_, told)) = &self.told else {
            // Of what was not read nothing is claimed.
            prop_assert_eq!((&status.requested, &status.reported), (&None, &None));
            prop_assert_eq!((balance.available, balance.unknown), (None, 0));
            return Ok(());
        };
        let needed: u64 = truth.values().map(|asked| self.need(*asked)).sum();
        prop_assert_eq!(balance.needed, needed);
        prop_assert_eq!(balance.loaded, truth.len());
        prop_assert_eq!(balance.unknown, 0);
        let reported = status.reported.clone().unwrap();
        // No figure is invented: it is the agent's own or an observed one.
        match self.mode {
            Mode::Observe => prop_assert_eq!(reported.memory, self.agent.total),
            Mode::Correct => prop_assert_eq!(reported.memory, told.memory),
        }
        if told.memory > 0 && self.mode == Mode::Correct {
            prop_assert_eq!(balance.available, Some(self.truly_free()));
        }
        Ok(())
    }
}
