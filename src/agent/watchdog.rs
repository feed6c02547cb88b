//! Whether the agent is demonstrably stuck: the rule behind `/livez/agent`. Pure.
//!
//! A wrong yes kills the agent, and with it every model of the replica; a late one costs minutes
//! of a replica that takes no work. So any doubt is a no, and whatever changes begins the count
//! again: an answer, another circumstance, a sign of life, a look that came late.

use std::time::Duration;

/// How long an agent that was never seen ready may take, whatever is configured: it waits for up
/// to 15 minutes for its own start, and ends by itself after that.
pub const START_LIMIT: Duration = Duration::from_secs(20 * 60);

/// What one look at the agent's readiness gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// It answered 200.
    Ready,
    /// It answered something else.
    NotReady(u16),
    /// It accepts connections and did not answer in time, or nobody even accepted in time.
    Silent(String),
    /// Nothing listens, as with an older agent or while its container restarts.
    Gone(String),
    /// What answers is no agent.
    Strange(String),
}

/// The circumstances of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Everything local that the pod's readiness needs is there: the server usable on both
    /// protocols, and nobody draining.
    pub usable: bool,
    /// The scheduler has answered lately, and the shim keeps no subscription waiting.
    pub scheduler: bool,
    /// Rises with every sign of life of the agent's control loop.
    pub life: u64,
}

/// The limits of the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long everything must have stayed as it is.
    pub stuck_after: Duration,
    /// Longest time between two looks that still belong together.
    pub gap: Duration,
}

/// How the agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// It does not say, or there is nobody.
    #[default]
    Unknown,
    /// It calls itself ready.
    Ready,
    /// It says that it is not.
    NotReady,
    /// It has been ready, and now says nothing.
    Silent,
    /// It is not ready or silent, nothing explains that, and it has lasted.
    Stuck,
}

impl State {
    /// All states, in the order in which they are exported.
    pub const ALL: [State; 5] = [
        State::Unknown,
        State::Ready,
        State::NotReady,
        State::Silent,
        State::Stuck,
    ];

    /// The name in labels and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Ready => "ready",
            State::NotReady => "not-ready",
            State::Silent => "silent",
            State::Stuck => "stuck",
        }
    }
}

/// Since when an agent that called itself ready is not there: nobody listens at its port. One that was
/// never ready there may be of a release without that port.
#[derive(Debug, Clone, Copy, Default)]
pub struct Absence {
    was_ready: bool,
    since: Option<Duration>,
}

impl Absence {
    /// Takes a look in. `now` is the process clock.
    pub fn look(&mut self, look: &Look, now: Duration) -> Option<Duration> {
        self.was_ready |= *look == Look::Ready;
        self.since = match look {
            Look::Gone(_) if self.was_ready => self.since.or(Some(now)),
            _ => None,
        };
        self.since
    }
}

/// Remembers what the rule needs between looks.
#[derive(Debug)]
pub struct Watchdog {
    limits: Limits,
    /// Since nothing listened last. A process that was ready once is past its start.
    was_ready: bool,
    last: Option<Duration>,
    suspect: Option<(Duration, u64)>,
}

/// What follows from a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How the agent stands.
    pub state: State,
    /// Why, in words.
    pub reason: String,
}

impl Watchdog {
    /// Nothing seen yet.
    pub fn new(limits: Limits) -> Self {
        Watchdog {
            limits,
            was_ready: false,
            last: None,
            suspect: None,
        }
    }

    /// The bound that is in force.
    pub fn bound(&self) -> Duration {
        match self.was_ready {
            true => self.limits.stuck_after,
            false => self.limits.stuck_after.max(START_LIMIT),
        }
    }

    /// Takes a look in. `now` is the process clock.
    pub fn observe(&mut self, look: &Look, facts: Facts, now: Duration) -> Verdict {
        let late = self
            .last
            .replace(now)
            .is_none_or(|last| now.saturating_sub(last) > self.limits.gap);
        let verdict = |state, reason| Verdict { state, reason };
        let (state, said, counts) = match look {
            Look::Ready => {
                self.was_ready = true;
                self.suspect = None;
                return verdict(State::Ready, "the agent calls itself ready".into());
            }
            Look::Gone(why) => {
                (self.was_ready, self.suspect) = (false, None);
                let why = format!(
                    "nothing answers on the agent's readiness port ({why}): an older agent has none, and a process that is not there is kubelet's business"
                );
                return verdict(State::Unknown, why);
            }
            Look::Strange(why) => {
                (self.was_ready, self.suspect) = (false, None);
                let why = format!("what answers on the agent's readiness port is no agent ({why})");
                return verdict(State::Unknown, why);
            }
            // Anything may answer 404 for a path that it does not know; an agent that was ready
            // before is known to know it.
            Look::NotReady(code) => {
                let said = format!("the agent says that it is not ready ({code})");
                (State::NotReady, said, self.was_ready || *code == 503)
            }
            Look::Silent(why) if self.was_ready => {
                let said = format!("the agent was ready and does not answer any more ({why})");
                (State::Silent, said, true)
            }
            Look::Silent(why) => {
                self.suspect = None;
                let why = format!("no answer on the agent's readiness port ({why})");
                return verdict(State::Unknown, why);
            }
        };
        let explained = if !counts {
            Some("it has not been seen ready")
        } else if !facts.usable {
            Some("the pod is not ready itself")
        } else if !facts.scheduler {
            Some("the scheduler has not been seen to answer, or the shim keeps the agent waiting")
        } else {
            None
        };
        if let Some(why) = explained {
            self.suspect = None;
            return verdict(state, format!("{said}; not held against it: {why}"));
        }
        let since = match self.suspect {
            Some((since, life)) if !late && life == facts.life => since,
            _ => now,
        };
        self.suspect = Some((since, facts.life));
        let lasted = now.saturating_sub(since);
        let shown = Duration::from_secs(lasted.as_secs());
        let bound = self.bound();
        if lasted > bound {
            return verdict(
                State::Stuck,
                format!(
                    "stuck: {said}, for {shown:?} in which the server was usable, the scheduler answered and nothing drained (bound {bound:?})"
                ),
            );
        }
        verdict(
            state,
            format!("{said}, for {shown:?} without a reason; it counts as stuck after {bound:?}"),
        )
    }
}

#[cfg(test)]
#[path = "watchdog_tests.rs"]
mod tests;
