//! One clock for the process: monotonic time since start, and how to show it as a date.
//!
//! The pure modules take [`Duration`]s since the start, so tables and property tests drive them
//! without waiting; the loops take them from here, which follows tokio's paused clock in tests.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// The system's clock may be this far from what it should say before it counts as having been set:
/// less is the two clocks' different pace, and times that are shown are not to waver.
const SET: Duration = Duration::from_secs(2);

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

    /// A point of this clock as the system's: by what that said at the start, or, where it has been set
    /// since, by what it says now. So an age is right to whoever compares the two.
    pub fn wall(&self, at: Duration) -> SystemTime {
        self.wall_by(at, SystemTime::now())
    }

    fn wall_by(&self, at: Duration, system: SystemTime) -> SystemTime {
        let now = self.now();
        let expected = self.wall + now;
        let apart = system
            .duration_since(expected)
            .unwrap_or_else(|early| early.duration());
        if apart < SET {
            return self.wall + at;
        }
        // `at` may lie ahead, and a clock may stand near the beginning of its time.
        let begun = system.checked_sub(now).unwrap_or(SystemTime::UNIX_EPOCH);
        (begun + at).max(SystemTime::UNIX_EPOCH)
    }

    /// A point of this clock as RFC 3339 in UTC, to the millisecond.
    pub fn rfc3339(&self, at: Duration) -> String {
        humantime::format_rfc3339_millis(self.wall(at)).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_the_system_s_clock_was_set_ages_are_still_right() {
        let clock = Clock::start();
        tokio::time::advance(Duration::from_secs(100)).await;
        let (at, hour) = (Duration::from_secs(40), Duration::from_secs(3600));
        let age = |system: SystemTime| system.duration_since(clock.wall_by(at, system)).unwrap();
        let right = clock.wall + clock.now();
        for system in [right, right + hour, right - hour] {
            assert_eq!(age(system), Duration::from_secs(60));
        }
        // A little apart is nothing: what is shown stays the same.
        let near = right + Duration::from_millis(900);
        assert_eq!(clock.wall_by(at, near), clock.wall + at);
        assert!(clock.wall_by(at, SystemTime::UNIX_EPOCH) >= SystemTime::UNIX_EPOCH);
    }
}
