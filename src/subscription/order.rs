//! Which events may still be sent again.
//!
//! An event that had no answer may have reached the scheduler. Until it is sent once more the model
//! may move on: the agent reports something newer of it, is asked for something, or subscribes with
//! the list of what it has. From then on the older event says what is no longer so, and the
//! scheduler might be in the state in which it takes that: a model that it has asked for anew would
//! count as loaded. So it is given up; whatever moved the model on brings the news.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ledger::Key;

#[derive(Debug, Default)]
struct Model {
    /// Events of it on their way.
    events: usize,
    /// How often it has moved on since the first of them.
    moves: u64,
}

/// What moves models on while events are on their way. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Order(Arc<Mutex<BTreeMap<Key, Model>>>);

impl Order {
    fn models(&self) -> MutexGuard<'_, BTreeMap<Key, Model>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event of the model sets out, and overtakes those before it.
    pub fn sets_out(&self, key: &Key) -> OnItsWay {
        let mut models = self.models();
        let model = models.entry(key.clone()).or_default();
        model.events += 1;
        model.moves += 1;
        OnItsWay {
            order: self.clone(),
            key: key.clone(),
            since: model.moves,
        }
    }

    /// The agent is asked for something about the model, and will report of that.
    pub fn asked(&self, key: &Key) {
        if let Some(model) = self.models().get_mut(key) {
            model.moves += 1;
        }
    }

    /// The agent's list of what it has goes to the scheduler.
    pub fn subscribed(&self) {
        for model in self.models().values_mut() {
            model.moves += 1;
        }
    }
}

/// An event on its way, until it is dropped.
#[derive(Debug)]
pub struct OnItsWay {
    order: Order,
    key: Key,
    since: u64,
}

impl OnItsWay {
    /// Whether the model has moved on since it set out.
    pub fn is_overtaken(&self) -> bool {
        let models = self.order.models();
        models.get(&self.key).is_some_and(|m| m.moves != self.since)
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let mut models = self.order.models();
        if let Some(model) = models.get_mut(&self.key) {
            model.events -= 1;
            if model.events == 0 {
                models.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, version: u32) -> Key {
        Key {
            name: name.into(),
            version,
        }
    }

    #[test]
    fn an_event_is_overtaken_by_whatever_moves_its_model_on_and_by_nothing_else() {
        let order = Order::default();
        let first = order.sets_out(&key("a", 1));
        let others = [order.sets_out(&key("a", 2)), order.sets_out(&key("b", 1))];
        order.asked(&key("b", 2));
        assert!(!first.is_overtaken());
        let second = order.sets_out(&key("a", 1));
        assert!(first.is_overtaken() && !second.is_overtaken());
        order.asked(&key("a", 1));
        assert!(second.is_overtaken());
        assert!(others.iter().all(|event| !event.is_overtaken()));
        order.subscribed();
        assert!(others.iter().all(OnItsWay::is_overtaken));
    }

    #[test]
    fn nothing_is_kept_of_a_model_of_which_no_event_is_on_its_way() {
        let order = Order::default();
        order.asked(&key("a", 1));
        let first = order.sets_out(&key("a", 1));
        let second = order.sets_out(&key("a", 1));
        drop(second);
        assert!(first.is_overtaken(), "the newer one has been delivered");
        drop(first);
        assert!(order.models().is_empty());
    }
}
