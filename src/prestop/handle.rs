//! What callers of a drain hold: how it goes, and the call for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::judge::{Agent, Phase};

/// Callers that wait at a time; each holds a connection of the admin port.
const MAX_WAITING: usize = 32;

/// How it goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// How it stands.
    pub phase: Phase,
    /// When that began, on the process clock.
    pub since: Duration,
    /// Calls that have asked for this drain.
    pub hooks: u32,
    /// Inference calls that ran when it began.
    pub at_start: usize,
    /// The agent's part.
    pub agent: Agent,
    /// Drains that have ended; a caller waits for the next one.
    pub ended: u64,
    /// Drains that were taken back, and why the last one was.
    pub undone: u64,
    /// In words, what the last drain came to.
    pub summary: String,
}

/// For those who call for a drain or look at one. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    /// How it goes.
    pub progress: watch::Receiver<Progress>,
    asked: Arc<watch::Sender<u32>>,
    waiting: Arc<AtomicUsize>,
    /// Longest time that a drain takes.
    pub bound: Duration,
    /// Whether it may be begun from outside the pod.
    pub open: bool,
}

/// Too many callers wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Handle {
    /// A handle on which nobody waits yet.
    pub(super) fn new(
        progress: watch::Receiver<Progress>,
        asked: watch::Sender<u32>,
        bound: Duration,
        open: bool,
    ) -> Self {
        Handle {
            progress,
            asked: Arc::new(asked),
            waiting: Arc::default(),
            bound,
            open,
        }
    }

    /// Calls for a drain, or joins the one that is under way, and waits for its end or for
    /// `limit`. The drain goes on when the caller goes away.
    pub async fn call(&self, limit: Duration) -> Result<Progress, TooMany> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(TooMany);
        }
        let _waiting = Waiting(self.waiting.clone());
        let mut progress = self.progress.clone();
        let ended = progress.borrow().ended;
        self.asked.send_modify(|n| *n = n.wrapping_add(1));
        // The sender lives as long as the process.
        let _ = timeout(limit, progress.wait_for(|p| p.ended > ended)).await;
        Ok(self.progress.borrow().clone())
    }

    /// Callers that wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}
