//! The moments at which all candidates are probed together: one wake-up of the process and of the
//! server instead of one for each candidate and protocol. Pure.

use std::time::Duration;

/// Part of a wait by which it varies, so that replicas do not probe in step.
pub(super) const JITTER: f64 = 0.1;
/// Part of the interval that lies at least between the end of a probe and the next moment: a
/// probe that was silent for its whole limit is not followed by another at once.
const LEAST: f64 = 0.25;

/// The common moments.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    next: Duration,
}

impl Pace {
    pub(super) fn new(interval: Duration) -> Self {
        Pace {
            interval,
            next: Duration::ZERO,
        }
    }

    /// How long a candidate whose probe ends at `now` waits for the next moment: at most 1.35
    /// intervals, one where its probe was quick. `chance` is from 0 to 1.
    pub(super) fn wait(&mut self, now: Duration, chance: f64) -> Duration {
        if self.next < now + self.interval.mul_f64(LEAST) {
            self.next = self.next.max(now) + jittered(self.interval, chance);
        }
        self.next - now
    }
}

/// A wait that varies with `chance`, which is from 0 to 1.
pub(super) fn jittered(wait: Duration, chance: f64) -> Duration {
    wait.mul_f64(1.0 + JITTER * (chance * 2.0 - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_wait_is_long_and_quick_probes_meet_at_one_moment(
            ends in prop::collection::vec((0u64..3000, 0.0f64..1.0), 1..50),
        ) {
            let interval = Duration::from_secs(1);
            let mut pace = Pace::new(interval);
            let mut now = Duration::ZERO;
            for (later, chance) in ends {
                now += Duration::from_millis(later);
                let wait = pace.wait(now, chance);
                prop_assert!(wait >= interval.mul_f64(LEAST));
                prop_assert!(wait <= interval.mul_f64(LEAST + 1.0 + JITTER));
                // A second candidate that ends a little later meets the first, or is too late.
                let after = Duration::from_millis(3);
                let other = pace.wait(now + after, chance) + after;
                prop_assert!(other == wait || wait < interval.mul_f64(LEAST) + after);
                now += other;
            }
        }
    }
}
