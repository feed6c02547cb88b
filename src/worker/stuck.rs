//! Models that are UNKNOWN, MLServer's word for loading, from looks at the index. Pure.
//!
//! One that stays so without a load that is known was cut off, unless its load began out of sight:
//! before the shim's start, or by a caller over HTTP who has gone. MLServer finishes those.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Bad, STUCK, STUCK_MEND};
use crate::models::Inventory;
use crate::restore::book::LONGEST;

#[derive(Debug, Clone, Copy)]
struct Since {
    at: Duration,
    /// It was so in the first index already.
    before: bool,
}

/// What is UNKNOWN, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Unknown {
    models: BTreeMap<String, Since>,
    has_read: bool,
    /// When the index was asked for, and when one of them was last mended.
    asked: Option<Duration>,
    mended: Option<Duration>,
}

impl Unknown {
    /// Takes the index as last read. `calls` tells how many loads and unloads of a model are known
    /// to be under way.
    pub(super) fn look(&mut self, index: &Inventory, now: Duration, calls: impl Fn(&str) -> usize) {
        let waits = |name: &str| {
            let listed = index.models.iter().find(|m| m.name == name);
            listed.is_some_and(|m| m.state == "UNKNOWN") && calls(name) == 0
        };
        self.models.retain(|name, _| waits(name));
        for model in &index.models {
            let ours = model.name == crate::capability::probe_model::NAME;
            if waits(&model.name) && !ours {
                let since = Since {
                    at: index.asked_at.unwrap_or(now),
                    before: !self.has_read,
                };
                self.models.entry(model.name.clone()).or_insert(since);
            }
        }
        self.has_read |= index.asked_at.is_some();
        self.asked = index.asked_at;
    }

    /// One of them was unloaded, which takes as long as the worker is busy: of the others nothing is
    /// known before the next index.
    pub(super) fn mended(&mut self, now: Duration) {
        self.mended = Some(now);
    }

    /// Those that have been for long.
    pub(super) fn old(&self, now: Duration) -> Vec<Bad> {
        let old = self
            .models
            .iter()
            .filter(|(_, since)| now.saturating_sub(since.at) >= STUCK);
        old.map(|(model, since)| Bad {
            model: model.clone(),
            since: since.at,
        })
        .collect()
    }

    /// Whether one of them may be unloaded: its load would be over, wherever it began.
    pub(super) fn may_mend(&self, model: &str, now: Duration) -> bool {
        let is_known = self.asked > self.mended;
        self.models
            .get(model)
            .filter(|_| is_known)
            .is_some_and(|since| {
                let enough = if since.before { LONGEST } else { STUCK_MEND };
                now.saturating_sub(since.at) >= enough
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Model;

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn index(asked: u64, unknown: &[&str]) -> Inventory {
        let model = |name: &&str| Model {
            name: name.to_string(),
            version: String::new(),
            state: "UNKNOWN".into(),
            reason: String::new(),
        };
        Inventory {
            asked_at: Some(s(asked)),
            models: unknown.iter().map(model).collect(),
            ..Inventory::default()
        }
    }

    #[test]
    fn what_began_before_the_first_look_may_still_load_and_is_named_all_the_same() {
        let mut unknown = Unknown::default();
        unknown.look(&Inventory::default(), s(1), |_| 0);
        unknown.look(&index(5, &["old"]), s(5), |_| 0);
        unknown.look(&index(10, &["old", "new"]), s(10), |_| 0);
        assert!(unknown.old(s(34)).is_empty());
        assert_eq!(unknown.old(s(40)).len(), 2);
        assert!(!unknown.may_mend("new", s(69)) && unknown.may_mend("new", s(70)));
        let late = s(5) + LONGEST;
        assert!(!unknown.may_mend("old", late - s(1)) && unknown.may_mend("old", late));
        // It was READY in between: now its load begins in sight.
        unknown.look(&index(90, &[]), s(90), |_| 0);
        unknown.look(&index(100, &["old"]), s(100), |_| 0);
        assert!(unknown.may_mend("old", s(160)));
    }

    #[test]
    fn behind_an_unload_the_others_are_looked_at_anew() {
        let mut unknown = Unknown::default();
        unknown.look(&index(1, &[]), s(1), |_| 0);
        unknown.look(&index(2, &["a", "b"]), s(2), |_| 0);
        assert!(unknown.may_mend("a", s(70)) && unknown.may_mend("b", s(70)));
        unknown.mended(s(110));
        assert!(!unknown.may_mend("b", s(110)));
        unknown.look(&index(109, &["b"]), s(111), |_| 0);
        assert!(!unknown.may_mend("b", s(111)), "asked for before its end");
        unknown.look(&index(112, &["b"]), s(112), |_| 0);
        assert!(unknown.may_mend("b", s(112)));
    }

    #[test]
    fn a_load_that_is_known_is_no_stuck_model() {
        let mut unknown = Unknown::default();
        unknown.look(&index(1, &[]), s(1), |_| 0);
        unknown.look(&index(2, &["a"]), s(2), |_| 1);
        assert!(unknown.old(s(500)).is_empty());
        unknown.look(&index(2, &["a"]), s(500), |_| 0);
        assert_eq!(unknown.old(s(500)).len(), 1, "since the index, as it is");
    }
}
