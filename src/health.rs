//! From probe outcomes to a health state: thresholds, hysteresis, and the grace of a silent server.
//!
//! Pure: time is a [`Duration`] since the process started, and nothing here waits.

use std::fmt;
use std::time::Duration;

/// Why a probe did not find a healthy server. The set is closed: it labels metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing listens at the address, or the network says it cannot be reached.
    Refused,
    /// The connection was neither accepted nor refused in time: packets are dropped, or the
    /// accept queue of a stopped process is full.
    ConnectTimeout,
    /// The connection was accepted and no answer came in time.
    ResponseTimeout,
    /// The connection was closed or reset before an answer was complete.
    Reset,
    /// What answers does not speak the protocol.
    Protocol,
    /// The server answered, and the answer says that it is not live.
    Status,
    /// The host name does not resolve.
    Dns,
}

impl Reason {
    /// All reasons, in the order in which they are exported.
    pub const ALL: [Reason; 7] = [
        Reason::Refused,
        Reason::ConnectTimeout,
        Reason::ResponseTimeout,
        Reason::Reset,
        Reason::Protocol,
        Reason::Status,
        Reason::Dns,
    ];

    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Refused => "refused",
            Reason::ConnectTimeout => "connect-timeout",
            Reason::ResponseTimeout => "response-timeout",
            Reason::Reset => "reset",
            Reason::Protocol => "protocol",
            Reason::Status => "status",
            Reason::Dns => "dns",
        }
    }

    /// Silence may be a server at work (it freezes for seconds in normal use); every other
    /// reason is an answer of some kind.
    pub fn is_silence(self) -> bool {
        matches!(self, Reason::ConnectTimeout | Reason::ResponseTimeout)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one probe of one candidate found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The server answered that it is live.
    Healthy {
        /// The server's own readiness, `None` where it did not answer that question in time.
        /// It is false in normal work (while any model loads) and true with no model and no
        /// worker, so it never decides whether traffic flows.
        ready: Option<bool>,
        /// Time from connecting to the answer.
        latency: Duration,
    },
    /// It did not.
    Unhealthy {
        /// The closed-set reason.
        reason: Reason,
        /// What was seen, for people: an error text, a status code.
        detail: String,
    },
}

/// The state of one candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Not enough probes yet.
    Unknown,
    /// Answers.
    Up,
    /// Accepts and is silent, for less than the grace: slow is not dead.
    Stalled,
    /// Refuses, fails, or has been silent beyond the grace.
    Down,
}

impl State {
    /// All states, in the order in which they are exported.
    pub const ALL: [State; 4] = [State::Unknown, State::Up, State::Stalled, State::Down];

    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Up => "up",
            State::Stalled => "stalled",
            State::Down => "down",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When a state flips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Healthy outcomes in a row before a candidate is up; at least 1.
    pub rise: u32,
    /// Unhealthy outcomes in a row before a candidate that was up falls; at least 1.
    pub fall: u32,
    /// How long silence is taken for work: from the last answer to `down`.
    pub grace: Duration,
}

/// The health of one candidate, with what led to it.
#[derive(Debug, Clone)]
pub struct Health {
    thresholds: Thresholds,
    /// The state now.
    pub state: State,
    /// When it began.
    pub since: Duration,
    /// The reason of the last unhealthy outcome, `None` while the last outcome was healthy.
    pub reason: Option<Reason>,
    /// The detail of that outcome.
    pub detail: String,
    /// When the last healthy outcome came.
    pub last_success: Option<Duration>,
    /// The server's own readiness in the last healthy outcome that carried it.
    pub server_ready: Option<bool>,
    /// Whether it has ever fallen after it was up: such a one has to hold before it is trusted.
    pub has_fallen: bool,
    /// Latency of the last healthy outcome.
    pub latency: Option<Duration>,
    successes: u32,
    failures: u32,
    silent_since: Option<Duration>,
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
}

impl Health {
    /// Nothing known yet, at the start of the process.
    pub fn new(thresholds: Thresholds) -> Self {
        Health {
            thresholds,
            state: State::Unknown,
            since: Duration::ZERO,
            reason: None,
            detail: String::new(),
            last_success: None,
            server_ready: None,
            has_fallen: false,
            latency: None,
            successes: 0,
            failures: 0,
            silent_since: None,
        }
    }

    /// Takes one outcome in. Outcomes must come in the order of time.
    pub fn observe(&mut self, outcome: &Outcome, now: Duration) -> Option<Transition> {
        let from = self.state;
        let to = match outcome {
            Outcome::Healthy { ready, latency } => {
                self.successes = self.successes.saturating_add(1);
                self.failures = 0;
                self.silent_since = None;
                self.reason = None;
                self.detail.clear();
                self.last_success = Some(now);
                self.latency = Some(*latency);
                if ready.is_some() {
                    self.server_ready = *ready;
                }
                match from {
                    // An answer ends a stall: it is the proof that the server only worked.
                    State::Stalled | State::Up => State::Up,
                    _ if self.successes >= self.thresholds.rise => State::Up,
                    other => other,
                }
            }
            Outcome::Unhealthy { reason, detail } => {
                self.failures = self.failures.saturating_add(1);
                self.successes = 0;
                self.reason = Some(*reason);
                self.detail.clone_from(detail);
                if reason.is_silence() {
                    self.silent_since.get_or_insert(now);
                } else {
                    self.silent_since = None;
                }
                self.after_failure(from, *reason, now)
            }
        };
        if to == from {
            return None;
        }
        self.has_fallen |= to == State::Down && self.last_success.is_some();
        self.state = to;
        self.since = now;
        Some(Transition { from, to })
    }

    fn after_failure(&self, from: State, reason: Reason, now: Duration) -> State {
        // A server that is known to be dead is not raised by a port that accepts: only an
        // answer proves it.
        if from == State::Down {
            return State::Down;
        }
        // Stalled is left at the first word that is not silence; the fall threshold was spent.
        if from != State::Stalled && self.failures < self.thresholds.fall {
            return from;
        }
        if !reason.is_silence() {
            return State::Down;
        }
        // One that has never answered is silent since it fell silent.
        let quiet_from = self.last_success.or(self.silent_since).unwrap_or(now);
        if now.saturating_sub(quiet_from) >= self.thresholds.grace {
            State::Down
        } else {
            State::Stalled
        }
    }

    /// The reason of the last failed probe with what it saw; empty while the last one succeeded.
    pub fn in_words(&self) -> String {
        match self.reason {
            Some(reason) if self.detail.is_empty() => reason.as_str().into(),
            Some(reason) => format!("{reason}: {}", self.detail),
            None => String::new(),
        }
    }

    /// Whether a connection may succeed although the state is down: nothing listened, or the
    /// connection broke, and that can be over any moment. Trying costs microseconds. A server
    /// that is silent, speaks another protocol or says no is not tried with a caller's request.
    pub fn worth_trying(&self) -> bool {
        self.state != State::Down || matches!(self.reason, Some(Reason::Refused | Reason::Reset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GRACE: u64 = 20;

    fn health() -> Health {
        Health::new(Thresholds {
            rise: 1,
            fall: 3,
            grace: Duration::from_secs(GRACE),
        })
    }

    fn ok() -> Outcome {
        Outcome::Healthy {
            ready: Some(true),
            latency: Duration::from_millis(1),
        }
    }

    fn bad(reason: Reason) -> Outcome {
        Outcome::Unhealthy {
            reason,
            detail: "seen".into(),
        }
    }

    /// Feeds one outcome a second and gives the state after each.
    fn states(outcomes: &[Outcome]) -> Vec<State> {
        let mut h = health();
        outcomes
            .iter()
            .enumerate()
            .map(|(i, o)| {
                h.observe(o, Duration::from_secs(i as u64));
                h.state
            })
            .collect()
    }

    #[test]
    fn refusals_take_an_up_server_down_after_the_fall_threshold() {
        use Reason::Refused;
        assert_eq!(
            states(&[ok(), bad(Refused), bad(Refused), bad(Refused), ok()]),
            [State::Up, State::Up, State::Up, State::Down, State::Up]
        );
    }

    #[test]
    fn a_flap_shorter_than_the_threshold_changes_nothing() {
        use Reason::*;
        assert_eq!(
            states(&[
                ok(),
                bad(Refused),
                bad(Reset),
                ok(),
                bad(Refused),
                bad(Refused)
            ]),
            [State::Up; 6]
        );
    }

    #[test]
    fn silence_is_a_stall_first_and_down_only_after_the_grace() {
        let mut outcomes = vec![ok()];
        outcomes.extend(std::iter::repeat_n(bad(Reason::ResponseTimeout), 25));
        let seen = states(&outcomes);
        assert_eq!(seen[2], State::Up);
        assert_eq!(seen[3], State::Stalled);
        assert_eq!(seen[GRACE as usize - 1], State::Stalled);
        assert_eq!(seen[GRACE as usize], State::Down);
    }

    #[test]
    fn a_stall_ends_with_the_first_answer_and_turns_down_with_the_first_refusal() {
        use Reason::*;
        let stall = [
            ok(),
            bad(ResponseTimeout),
            bad(ResponseTimeout),
            bad(ResponseTimeout),
        ];
        let with = |last: Outcome| {
            let mut all = stall.to_vec();
            all.push(last);
            *states(&all).last().unwrap()
        };
        assert_eq!(with(ok()), State::Up);
        assert_eq!(with(bad(Refused)), State::Down);
    }

    #[test]
    fn a_zombie_that_accepts_from_the_start_is_stalled_and_then_down() {
        let seen = states(&vec![bad(Reason::ResponseTimeout); 24]);
        assert_eq!(seen[1], State::Unknown);
        assert_eq!(seen[2], State::Stalled);
        assert_eq!(seen[20], State::Down);
    }

    #[test]
    fn a_refused_server_that_begins_to_accept_stays_down_until_it_answers() {
        use Reason::*;
        let seen = states(&[
            bad(Refused),
            bad(Refused),
            bad(Refused),
            bad(ResponseTimeout),
            ok(),
        ]);
        assert_eq!(seen[2..], [State::Down, State::Down, State::Up]);
    }

    #[test]
    fn not_ready_is_not_unhealthy() {
        let mut h = health();
        h.observe(
            &Outcome::Healthy {
                ready: Some(false),
                latency: Duration::ZERO,
            },
            Duration::ZERO,
        );
        assert_eq!((h.state, h.server_ready), (State::Up, Some(false)));
    }

    #[test]
    fn a_caller_is_tried_on_a_down_server_only_where_a_connection_may_have_become_possible() {
        for reason in Reason::ALL {
            let mut h = health();
            for i in 0..60 {
                h.observe(&bad(reason), Duration::from_secs(i));
            }
            assert_eq!(h.state, State::Down);
            assert_eq!(
                h.worth_trying(),
                matches!(reason, Reason::Refused | Reason::Reset),
                "{reason}"
            );
        }
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            3 => Just(ok()),
            4 => prop::sample::select(&Reason::ALL).prop_map(bad),
            2 => Just(bad(Reason::ResponseTimeout)),
        ]
    }

    proptest! {
        // The oracle looks at the whole history instead of keeping counters.
        #[test]
        fn every_state_is_justified_by_the_history(
            steps in prop::collection::vec((any_outcome(), 0u64..4), 1..120),
            rise in 1u32..4, fall in 1u32..5, grace in 1u64..30
        ) {
            let thresholds = Thresholds { rise, fall, grace: Duration::from_secs(grace) };
            let mut h = Health::new(thresholds);
            let mut now = 0;
            let mut seen: Vec<(Outcome, u64)> = Vec::new();
            for (outcome, gap) in steps {
                now += gap;
                let before = h.state;
                let transition = h.observe(&outcome, Duration::from_secs(now));
                seen.push((outcome.clone(), now));
                prop_assert_eq!(transition.is_some(), before != h.state);
                let healthy = |o: &Outcome| matches!(o, Outcome::Healthy { .. });
                let run = |want: bool| seen.iter().rev().take_while(|(o, _)| healthy(o) == want).count() as u32;
                let last_answer = seen.iter().rev().find(|(o, _)| healthy(o)).map(|(_, t)| *t);
                match h.state {
                    State::Up => if before != State::Up {
                        prop_assert!(run(true) >= rise || before == State::Stalled);
                    } else {
                        prop_assert!(run(false) < fall);
                    },
                    State::Stalled => {
                        prop_assert!(run(false) >= fall || before == State::Stalled);
                        prop_assert!(h.reason.is_some_and(Reason::is_silence));
                        if before == State::Up {
                            prop_assert!(now - last_answer.unwrap() < grace);
                        }
                    }
                    State::Down => {
                        prop_assert!(before == State::Down || run(false) >= fall || before == State::Stalled);
                        if before != State::Down && h.reason.is_some_and(Reason::is_silence) {
                            let quiet = last_answer.unwrap_or(0);
                            prop_assert!(now - quiet >= grace);
                        }
                    }
                    State::Unknown => prop_assert!(run(true) < rise && before == State::Unknown),
                }
            }
        }
    }
}
