//! One clock for the process: monotonic time since start, and how to show it as a date.
//!
//! The pure modules take [`Duration`]s since the start, so tables and property tests drive them
//! without waiting; the loops take them from here, which follows tokio's paused clock in tests.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// The process clock. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    wall: SystemTime,
}

impl Clock {
    /// A clock whose zero is now.
    pub fn start() -> Self {
        Clock {
            start: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// Time since the start; never goes back, whatever happens to the wall clock.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// A point of this clock as the system's, by what that said at the start.
    pub fn wall(&self, at: Duration) -> SystemTime {
        self.wall + at
    }

    /// A point of this clock as RFC 3339 in UTC, to the millisecond.
    pub fn rfc3339(&self, at: Duration) -> String {
        humantime::format_rfc3339_millis(self.wall(at)).to_string()
    }
}
