//! What the probe model and the relays have to know of each other: whether the agent may be told
//! that the server is live, and how many loads are under way.
//!
//! The agent must not start while the probe model is loaded: it would unload what it does not
//! know, and meet a server that is not ready. So it is not told that the server is live before
//! the first probe is over. Once open the gate stays open: an agent that runs is never told that
//! a live server is not.

use std::sync::Arc;

use tokio::sync::watch;

/// Shared by the runner and both relays. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    open: watch::Sender<bool>,
    loads: watch::Sender<usize>,
}

/// Why a closed gate calls a server that answers not live.
pub const CLOSED: &str = "the inference server answers and is being asked once what it has installed (SHIM_CAPABILITIES_PROBE); the agent starts after that";

impl Gate {
    /// Lets the agent start. Cannot be taken back.
    pub fn open(&self) {
        self.0.open.send_replace(true);
    }

    /// Whether the agent may start.
    pub fn is_open(&self) -> bool {
        *self.0.open.borrow()
    }

    /// Completes when the agent may start.
    pub async fn opened(&self) {
        // The sender is held by `self`, so waiting cannot fail.
        let _ = self.0.open.subscribe().wait_for(|open| *open).await;
    }

    /// Counts one load or unload of a caller's until the guard is dropped.
    pub fn loading(&self) -> Loading {
        self.0.loads.send_modify(|n| *n += 1);
        Loading(self.0.clone())
    }

    /// Loads and unloads under way.
    pub fn loads(&self) -> usize {
        *self.0.loads.borrow()
    }
}

/// A load or unload under way.
#[derive(Debug)]
pub struct Loading(Arc<Inner>);

impl Drop for Loading {
    fn drop(&mut self) {
        self.0.loads.send_modify(|n| *n -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gate_opens_once_and_counts_what_is_under_way() {
        let gate = Gate::default();
        assert!(!gate.is_open());
        let relay = gate.clone();
        let (one, two) = (relay.loading(), relay.loading());
        assert_eq!(gate.loads(), 2);
        drop(one);
        assert_eq!(gate.loads(), 1);
        drop(two);
        assert_eq!(gate.loads(), 0);
        gate.open();
        relay.opened().await;
        assert!(relay.is_open());
    }
}
