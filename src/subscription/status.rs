//! What the interposer publishes about itself: one value, latest wins.

use std::sync::Arc;
use std::time::Duration;

use super::correct::CapabilityReport;
use super::ledger::{Balance, Key};

/// Where the subscription stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    /// The agent has not asked, or its stream has ended.
    #[default]
    None,
    /// The agent waits for this to be known.
    Held(String),
    /// The agent waits for the scheduler.
    Unreachable {
        /// Why, in words.
        why: String,
        /// Attempts in a row.
        failures: u32,
    },
    /// The stream to the scheduler stands.
    Open,
}

/// What the agent asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    /// Total memory.
    pub memory: u64,
    /// Over-commit, in percent.
    pub over_commit: u32,
    /// Capabilities.
    pub capabilities: Vec<String>,
    /// Free memory.
    pub available: u64,
    /// Whether models that name no server may come to it.
    pub shared: bool,
}

/// What is reported for it, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Total memory.
    pub memory: u64,
    /// Capabilities.
    pub capabilities: Vec<String>,
    /// Workers, where they are known.
    pub workers: Option<u32>,
}

/// A model that the agent lists as loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What it is called in the inference server.
    pub name: String,
    /// Bytes that it needs there, all workers together.
    pub bytes: u64,
}

/// A model that cannot fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub model: Key,
    /// The sentence that the scheduler was given.
    pub why: String,
}

/// The latest of everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Where the subscription stands.
    pub phase: Phase,
    /// Since when, on the process clock.
    pub since: Duration,
    /// The scheduler in use, as configured.
    pub scheduler: Option<String>,
    /// The server's name, by the latest subscription.
    pub server: String,
    /// The replica's index.
    pub replica: u32,
    /// What the agent listed as loaded when it last subscribed; `None` before that.
    pub loaded: Option<Arc<[Held]>>,
    /// What the agent asked for.
    pub requested: Option<Requested>,
    /// What the scheduler was told.
    pub reported: Option<Wanted>,
    /// What it is told in `correct` mode; the same as `reported` there.
    pub wanted: Option<Wanted>,
    /// Where the reported total comes from.
    pub capacity_why: String,
    /// What became of the capabilities.
    pub capabilities: CapabilityReport,
    /// Free memory as last told.
    pub available: Option<u64>,
    /// The account of models.
    pub balance: Balance,
    /// Models that were refused since the subscription began.
    pub refused: Vec<Refused>,
    /// Events that the scheduler answered, so that a reader of its belief looks again.
    pub events: u64,
    /// Answers of "State mismatch".
    pub mismatches: u64,
    /// Loads whose end was answered so, and for which the scheduler holds memory back until the next
    /// subscription.
    pub held_back: u64,
    /// Drains of the agent at the scheduler that run now.
    pub draining: usize,
    /// Drains that it has begun there.
    pub drains: u64,
    /// What the scheduler answered to the latest subscription, where it refused it.
    pub refusal: Option<String>,
    /// When the agent asked for a drain, where it has not subscribed since.
    pub drain_asked: Option<Duration>,
}
