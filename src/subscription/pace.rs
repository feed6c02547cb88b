//! When to try again, and when a subscription is worth renewing. Pure: times are passed in.

use std::time::Duration;

/// Waiting times between attempts: doubling, capped, jittered, and forgotten after success.
#[derive(Debug, Clone)]
pub struct Backoff {
    failures: u32,
}

/// First wait.
const FIRST: Duration = Duration::from_millis(200);
/// Longest wait: the agent's own is 15 s, and a scheduler that is back should not wait for us.
const LONGEST: Duration = Duration::from_secs(10);

impl Backoff {
    /// Nothing has failed yet.
    pub fn new() -> Self {
        Backoff { failures: 0 }
    }

    /// The wait after another failure. `jitter` is in 0..1 and takes up to half of it off, so that
    /// a thousand agents do not come back at once.
    pub fn next(&mut self, jitter: f64) -> Duration {
        let wait = LONGEST.min(FIRST * 2u32.saturating_pow(self.failures.min(10)));
        self.failures += 1;
        wait.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::new()
    }
}

/// A stream that lived this long was a good one; the next may be opened at once.
pub const GOOD_STREAM: Duration = Duration::from_secs(20);

/// Streams that an agent may end in a row, each younger than [`GOOD_STREAM`], before its next one waits:
/// one that is started a few times is nobody's concern, a loop is.
pub const FREE: u32 = 8;

/// Keeps an agent that subscribes again at once from hammering a scheduler that ends every stream, or
/// whose streams it ends itself.
#[derive(Debug, Clone, Default)]
pub struct Pacer {
    backoff: Backoff,
    not_before: Duration,
    /// Young streams that the agent has ended in a row, and when the last one ended.
    young: (u32, Duration),
    agents: Backoff,
}

impl Pacer {
    /// A stream has ended: `lived` says for how long it stood.
    pub fn ended(&mut self, now: Duration, lived: Duration, jitter: f64) {
        if lived >= GOOD_STREAM {
            self.backoff.reset();
            self.not_before = now;
        } else {
            self.not_before = now + self.backoff.next(jitter);
        }
    }

    /// The agent has ended a stream itself, or left it for another one.
    pub fn ended_by_agent(&mut self, now: Duration, lived: Duration, jitter: f64) {
        let (before, last) = self.young;
        if lived >= GOOD_STREAM || now.saturating_sub(last) >= GOOD_STREAM {
            self.agents.reset();
            self.young = (0, now);
        } else {
            self.young = (before.saturating_add(1), now);
        }
        if self.young.0 > FREE {
            self.not_before = self.not_before.max(now + self.agents.next(jitter));
        }
    }

    /// How long the next one waits.
    pub fn wait(&self, now: Duration) -> Duration {
        self.not_before.saturating_sub(now)
    }
}

/// A difference must last this long before it counts: a server that restarts shows another
/// environment for a while.
pub const SETTLE: Duration = Duration::from_secs(30);

/// What to do about a difference between what was reported and what would be reported now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing differs.
    Agrees,
    /// Something differs: look again after this time.
    Wait(Duration),
    /// Something differs, and a model is being loaded: look again when that has ended.
    Busy,
    /// End the subscription, so that the agent subscribes afresh.
    Now,
}

/// Decides on renewals. One for each subscription; `T` is what would be reported.
#[derive(Debug, Clone)]
pub struct Renewer<T> {
    reported: T,
    since: Duration,
    settle: Duration,
    wanted: Option<(T, Duration)>,
}

impl<T: PartialEq> Renewer<T> {
    /// A subscription began with this report. A difference counts once it has lasted for `settle`.
    pub fn new(reported: T, now: Duration, settle: Duration) -> Self {
        Renewer {
            reported,
            since: now,
            settle,
            wanted: None,
        }
    }

    /// What was reported.
    pub fn reported(&self) -> &T {
        &self.reported
    }

    /// What is seen now proves nothing: a difference has to last from its next sight on.
    pub fn unsettled(&mut self) {
        self.wanted = None;
    }

    /// Looks at what would be reported now. Never says [`Renewal::Now`] within `min_interval` of the
    /// beginning, while something is being loaded, or for a difference that has not lasted.
    pub fn look(
        &mut self,
        wanted: T,
        idle: bool,
        now: Duration,
        min_interval: Duration,
    ) -> Renewal {
        if wanted == self.reported {
            self.wanted = None;
            return Renewal::Agrees;
        }
        let first_seen = match &self.wanted {
            Some((same, first_seen)) if *same == wanted => *first_seen,
            _ => now,
        };
        self.wanted = Some((wanted, first_seen));
        let due = (first_seen + self.settle).max(self.since + min_interval);
        if now < due {
            Renewal::Wait(due - now)
        } else if !idle {
            Renewal::Busy
        } else {
            Renewal::Now
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn waits_double_up_to_a_cap_and_start_over_after_success() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..8).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.next(1.0).as_millis(), 5000);
        backoff.reset();
        assert_eq!(backoff.next(0.0), FIRST);
    }

    #[test]
    fn a_scheduler_that_ends_every_stream_is_asked_ever_less_often() {
        let mut pacer = Pacer::default();
        assert_eq!(pacer.wait(s(0)), s(0));
        let mut now = s(0);
        let mut calls = 0;
        while now < s(60) {
            now += pacer.wait(now);
            calls += 1;
            pacer.ended(now, Duration::ZERO, 0.0);
        }
        assert!(calls < 15, "{calls}");
        pacer.ended(now, s(3600), 0.0);
        assert_eq!(pacer.wait(now), s(0));
    }

    #[test]
    fn an_agent_in_a_loop_is_slowed_down_and_one_that_restarts_is_not() {
        let mut pacer = Pacer::default();
        let mut now = s(100);
        let mut streams = 0;
        while now < s(102) {
            streams += 1;
            pacer.ended_by_agent(now, Duration::from_millis(5), 1.0);
            now += pacer.wait(now) + Duration::from_millis(5);
        }
        // Those that are free, and those after 0.1, 0.2, 0.4, 0.8 and 1.6 s at least.
        assert_eq!(streams, 1 + FREE + 5);
        // After a stream that stood, and after a pause, all is forgotten.
        for (pause, lived) in [(s(0), GOOD_STREAM), (GOOD_STREAM, s(0))] {
            now += s(20) + pause;
            pacer.ended_by_agent(now, lived, 0.0);
            for _ in 0..FREE {
                assert_eq!(pacer.wait(now), s(0));
                pacer.ended_by_agent(now, s(1), 0.0);
            }
            assert_eq!(pacer.wait(now), s(0));
            pacer.ended_by_agent(now, s(1), 0.0);
            assert_eq!(pacer.wait(now), FIRST);
        }
    }

    #[test]
    fn only_a_lasting_difference_ends_a_subscription_and_only_when_idle() {
        let min = s(300);
        let mut renewer = Renewer::new(8, s(0), SETTLE);
        assert_eq!(renewer.look(8, true, s(1000), min), Renewal::Agrees);
        assert_eq!(renewer.look(9, true, s(1000), min), Renewal::Wait(SETTLE));
        // A flap: back, and away again.
        assert_eq!(renewer.look(8, true, s(1010), min), Renewal::Agrees);
        assert_eq!(renewer.look(9, true, s(1020), min), Renewal::Wait(SETTLE));
        // Another value begins anew.
        assert_eq!(renewer.look(10, true, s(1045), min), Renewal::Wait(SETTLE));
        assert_eq!(renewer.look(10, false, s(1075), min), Renewal::Busy);
        assert_eq!(renewer.look(10, true, s(1080), min), Renewal::Now);
        let mut young = Renewer::new(8, s(1000), SETTLE);
        assert_eq!(young.look(9, true, s(1010), min), Renewal::Wait(s(290)));
    }

    proptest! {
        #[test]
        fn a_value_that_never_stays_never_ends_a_subscription(
            steps in prop::collection::vec((0u8..4, 1u64..30), 1..200)
        ) {
            let mut renewer = Renewer::new(9u8, s(0), SETTLE);
            let (mut now, mut last) = (s(100_000), 9);
            for (value, seconds) in steps {
                now += s(seconds);
                // Each look shows something else than the look before.
                let value = if value == last { value + 4 } else { value };
                last = value;
                prop_assert_ne!(renewer.look(value, true, now, s(300)), Renewal::Now);
            }
        }
    }
}
