//! What the scheduler holds back for loads whose end it has refused. Pure.
//!
//! It sets memory aside when it asks for a load, and gives it back when it takes the event of that
//! load's end. An end that it refuses ("State mismatch": the model was deleted meanwhile) gives
//! nothing back until the replica subscribes anew. Most refusals are not of that kind: the load was
//! asked for over an earlier subscription, or its end was taken before. Where it cannot be told,
//! nothing is claimed.

use std::collections::BTreeMap;

use super::ledger::{self, Key};
use crate::proto::agent::model_event_message::Event as EventKind;

/// What the scheduler made of the end of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It took it.
    Taken,
    /// It has the model in another state.
    Mismatch {
        /// A state that only a load's end leads to: that was taken before.
        ended: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Asked,
    Refused,
}

/// The account of one subscription after the other.
#[derive(Debug, Clone, Default)]
pub struct HeldBack {
    turn: u64,
    /// Loads that this subscription asked for and whose end was not taken.
    loads: BTreeMap<Key, Load>,
    /// Refused ends of models that were asked for again since.
    before: u64,
}

/// Whether an event says that a load has ended.
pub fn ends_load(kind: EventKind) -> bool {
    use EventKind::{LoadFailMemory, LoadFailed, Loaded};
    matches!(kind, Loaded | LoadFailed | LoadFailMemory)
}

impl HeldBack {
    /// The replica subscribes: whatever was set aside for it is free again.
    pub fn subscribed(&mut self) {
        *self = HeldBack {
            turn: self.turn + 1,
            ..HeldBack::default()
        };
    }

    /// Which subscription it is; an answer counts for the one in which its event was sent.
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// The scheduler asks for a load.
    pub fn asked(&mut self, key: &Key) {
        if self.loads.contains_key(key) || ledger::counts(self.loads.len(), key) {
            let known = self.loads.insert(key.clone(), Load::Asked);
            self.before += u64::from(known == Some(Load::Refused));
        }
    }

    /// The scheduler has answered to the end of a load, which was sent in `turn`.
    pub fn ended(&mut self, key: &Key, turn: u64, answer: Answer) {
        if turn != self.turn {
            return;
        }
        match answer {
            Answer::Taken | Answer::Mismatch { ended: true } => {
                self.loads.remove(key);
            }
            Answer::Mismatch { ended: false } => {
                if let Some(load) = self.loads.get_mut(key) {
                    *load = Load::Refused;
                }
            }
        }
    }

    /// For how many loads memory is held back.
    pub fn count(&self) -> u64 {
        let refused = self.loads.values().filter(|load| **load == Load::Refused);
        self.before + refused.count() as u64
    }
}

/// Reads the scheduler's words about the state in which it has the model; `None` where they are no
/// "State mismatch".
pub fn mismatch(said: &str) -> Option<Answer> {
    let said = said.replace("%20", " ");
    if !said.contains("State mismatch") {
        return None;
    }
    let was = said.split_once(" but was ").map(|(_, rest)| rest);
    let was = was.and_then(|rest| rest.split_whitespace().next());
    let ended = matches!(
        was,
        Some("Loaded" | "Available" | "LoadedUnavailable" | "LoadFailed")
    );
    Some(Answer::Mismatch { ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: Answer = Answer::Mismatch { ended: false };

    fn key(name: &str) -> Key {
        Key {
            name: name.into(),
            version: 1,
        }
    }

    fn asked(names: &[&str]) -> HeldBack {
        let mut held = HeldBack::default();
        held.subscribed();
        for name in names {
            held.asked(&key(name));
        }
        held
    }

    #[test]
    fn a_load_whose_end_is_refused_holds_memory_back_until_the_next_subscription() {
        let mut held = asked(&["a", "b"]);
        let turn = held.turn();
        held.ended(&key("a"), turn, REFUSED);
        held.ended(&key("a"), turn, REFUSED);
        held.ended(&key("b"), turn, Answer::Taken);
        assert_eq!(held.count(), 1);
        held.subscribed();
        assert_eq!(held.count(), 0);
    }

    #[test]
    fn the_end_of_a_load_of_an_earlier_subscription_holds_nothing_back() {
        let mut held = asked(&["a"]);
        let before = held.turn();
        held.subscribed();
        held.ended(&key("a"), held.turn(), REFUSED);
        assert_eq!(held.count(), 0);
        // Its answer may come when the model has been asked for again.
        held.asked(&key("a"));
        held.ended(&key("a"), before, REFUSED);
        assert_eq!(held.count(), 0);
    }

    #[test]
    fn what_was_taken_before_or_is_taken_after_all_holds_nothing_back() {
        let mut held = asked(&["twice", "late", "said"]);
        let turn = held.turn();
        held.ended(&key("twice"), turn, Answer::Taken);
        held.ended(&key("twice"), turn, REFUSED);
        held.ended(&key("said"), turn, Answer::Mismatch { ended: true });
        held.ended(&key("said"), turn, REFUSED);
        // One from before met the model before the load was begun; its own end is taken.
        held.ended(&key("late"), turn, REFUSED);
        held.ended(&key("late"), turn, Answer::Taken);
        assert_eq!(held.count(), 0);
    }

    #[test]
    fn what_is_asked_for_again_gives_nothing_of_before_back() {
        let mut held = asked(&["a"]);
        let turn = held.turn();
        held.ended(&key("a"), turn, REFUSED);
        held.asked(&key("a"));
        held.ended(&key("a"), turn, Answer::Taken);
        assert_eq!(held.count(), 1);
    }

    #[test]
    fn the_schedulers_words_say_whether_the_load_had_ended() {
        let said = |state: &str| {
            mismatch(&format!(
                "State%20mismatch%20for%20a:1%20expected%20state%20Loading%20but%20was%20{state}%20when%20trying%20to%20move%20to%20state%20Loaded"
            ))
        };
        for state in ["Loaded", "Available", "LoadedUnavailable", "LoadFailed"] {
            assert_eq!(said(state), Some(Answer::Mismatch { ended: true }));
        }
        for state in ["UnloadRequested", "Unloading", "LoadRequested", "Later"] {
            assert_eq!(said(state), Some(REFUSED));
        }
        assert_eq!(mismatch("State mismatch"), Some(REFUSED));
        assert_eq!(mismatch("failed to find model a"), None);
    }

    #[test]
    fn no_more_is_kept_than_of_any_other_account() {
        let mut held = asked(&[]);
        for n in 0..ledger::MOST + 5 {
            held.asked(&key(&n.to_string()));
        }
        held.asked(&key(&"x".repeat(2000)));
        assert_eq!(held.loads.len(), ledger::MOST);
    }
}
