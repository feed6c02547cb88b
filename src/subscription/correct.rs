//! What the interposer asks of those who observe: what to report instead of what was requested.
//! Pure; the policies behind the trait and the sources behind them are other modules' business.

use tokio::sync::watch;

/// What to report as total memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityReport {
    /// Bytes. 0 where nothing is known: the request then goes on as it is.
    pub bytes: u64,
    /// Where the figure comes from, in words.
    pub why: String,
}

/// What to report as capabilities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CapabilityReport {
    /// The list, in its order.
    pub reported: Vec<String>,
    /// Added because they are installed.
    pub added: Vec<String>,
    /// Declared and left out.
    pub dropped: Vec<String>,
    /// Added as other spellings of one that is there.
    pub aliased: Vec<String>,
}

/// Whether enough is known to report anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Whether a subscription need wait no longer.
    pub ready: bool,
    /// What is waited for, in words; empty when ready.
    pub missing: String,
    /// Counts up whenever an answer may have changed.
    pub revision: u64,
}

/// The observed side, as the interposer sees it. Cheap calls, never blocking: what they answer from
/// is gathered elsewhere.
pub trait Correct: Send + Sync + 'static {
    /// The total to report to the scheduler for what the agent requested.
    fn capacity(&self, requested: u64) -> CapacityReport;
    /// The list to report for what the agent declared.
    fn capabilities(&self, requested: &[String]) -> CapabilityReport;
    /// Workers of the server, each with a copy of every model, where that is known.
    fn workers(&self) -> Option<u32>;
    /// Readiness, and a signal on every change.
    fn known(&self) -> watch::Receiver<Known>;
}

/// A [`Correct`] that changes nothing: the agent's word is passed on.
#[derive(Debug)]
pub struct Nothing(watch::Sender<Known>);

impl Default for Nothing {
    fn default() -> Self {
        let known = Known {
            ready: true,
            ..Default::default()
        };
        Nothing(watch::Sender::new(known))
    }
}

impl Correct for Nothing {
    fn capacity(&self, requested: u64) -> CapacityReport {
        CapacityReport {
            bytes: requested,
            why: "the agent's own figure".into(),
        }
    }

    fn capabilities(&self, requested: &[String]) -> CapabilityReport {
        CapabilityReport {
            reported: requested.to_vec(),
            ..Default::default()
        }
    }

    fn workers(&self) -> Option<u32> {
        None
    }

    fn known(&self) -> watch::Receiver<Known> {
        self.0.subscribe()
    }
}
