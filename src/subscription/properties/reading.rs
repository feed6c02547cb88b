//! The scheduler's belief read back, while events, Subscribes and renewals pass: what was told may change between
//! the question, the scheduler's answer and its arrival.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::world::World;
use crate::registration::Believed;
use crate::registration::judge::{Doubt, agrees};
use crate::subscription::status::Status;

/// One reading at a time, as the shim makes them.
#[derive(Debug, Default)]
pub(super) struct Reading {
    doubt: Doubt,
    /// What had been told when the question was asked.
    asked: Option<Status>,
    answer: Option<Believed>,
    /// Quiet readings in a row that differed from what was told.
    differed: u32,
}

impl World {
    fn belief(&self) -> Believed {
        Believed {
            total: self.believed_total,
            available: self.believed,
            models: 0,
            replicas: 1,
            expected: 1,
        }
    }

    pub(super) fn asks(&mut self) {
        if self.reading.asked.is_none() {
            self.reading.asked = Some(self.shim.status.borrow().clone());
        }
    }

    pub(super) fn answers(&mut self) {
        if self.reading.asked.is_some() && self.reading.answer.is_none() {
            self.reading.answer = Some(self.belief());
        }
    }

    /// The answer is there: a difference is held against the scheduler only where it is one.
    pub(super) fn reads(&mut self) -> Result<(), TestCaseError> {
        let Some(believed) = self.reading.answer.take() else {
            return Ok(());
        };
        let asked = self.reading.asked.take().expect("it was asked");
        let latest = self.shim.status.borrow().clone();
        let counts = self.reading.doubt.judged(&asked, &latest, Some(&believed));
        let Some(reported) = latest.reported.as_ref().map(|r| r.memory) else {
            self.reading.differed = 0;
            return Ok(());
        };
        let quiet = (asked.available, &asked.reported) == (latest.available, &latest.reported);
        let differs = !agrees(&latest, &believed, reported).0;
        // Told the truth, it believes the truth: what is left is what it was made to forget.
        if counts && differs {
            prop_assert!(
                quiet && believed != self.right(&asked, reported),
                "a reading that met an event"
            );
        }
        match (quiet, differs) {
            (_, false) => {
                prop_assert!(counts, "what agrees is said at once");
                self.reading.differed = 0;
            }
            (false, true) => {}
            (true, true) => {
                self.reading.differed += 1;
                prop_assert_eq!(
                    counts,
                    self.reading.differed >= 2,
                    "the second time it counts"
                );
            }
        }
        Ok(())
    }

    /// What a scheduler that has forgotten nothing believes.
    fn right(&self, told: &Status, total: u64) -> Believed {
        Believed {
            total,
            available: told.available.unwrap_or_default(),
            ..self.belief()
        }
    }
}
