//! The order of one model's loads and unloads on their way to the server: none is sent before
//! those that were asked for earlier have been.
//!
//! Knows when the bytes of a call are let go of, and neither the call nor what came of it.

use tokio::sync::watch;

/// A call that is still to be sent, or its bytes: whoever holds it drops it with them.
#[derive(Debug)]
pub(in crate::relay) struct Unsent {
    _open: watch::Sender<()>,
}

/// Whether a call has been sent, or never will be.
#[derive(Debug, Clone)]
pub(in crate::relay) struct Sent(watch::Receiver<()>);

impl Sent {
    pub(in crate::relay) async fn wait(mut self) {
        // Nothing is ever said here but the end.
        while self.0.changed().await.is_ok() {}
    }

    fn is_over(&self) -> bool {
        self.0.has_changed().is_err()
    }
}

/// The last call of each model that is still to be sent.
#[derive(Debug, Default)]
pub(super) struct Order(Vec<(String, Sent)>);

impl Order {
    /// The last in the queue of a model.
    pub(super) fn last(&self, model: &str) -> Option<Sent> {
        let last = self.0.iter().find(|(name, _)| name == model);
        last.map(|(_, sent)| sent.clone())
    }

    /// Puts a call behind the last, which it has to wait for.
    pub(super) fn queue(&mut self, model: &str) -> (Unsent, Option<Sent>) {
        let before = self.last(model).filter(|sent| !sent.is_over());
        self.0
            .retain(|(name, sent)| name != model && !sent.is_over());
        let (open, sent) = watch::channel(());
        self.0.push((model.into(), Sent(sent)));
        (Unsent { _open: open }, before)
    }
}
