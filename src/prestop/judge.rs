//! Whether a drain was one: the rules, and the words about it. Pure.

use std::time::Duration;

use crate::endpoint::Protocol;
use crate::health::Reason;
use crate::view::{Usable, View};

/// How a drain that was called for stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Nobody has called.
    #[default]
    None,
    /// Not ready; what runs is waited for.
    Draining,
    /// Nothing runs any more.
    Drained,
    /// The time was over before.
    GaveUp,
}

impl Phase {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::None => "none",
            Phase::Draining => "draining",
            Phase::Drained => "drained",
            Phase::GaveUp => "gave-up",
        }
    }
}

/// What became of the agent's own drain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Agent {
    /// Not decided yet.
    #[default]
    Undecided,
    /// Left alone, for this reason.
    Left(String),
    /// It drains, asked by nobody here.
    Itself,
    /// It was asked to.
    Asked,
    /// It has drained.
    Done,
    /// It could not be asked, or did not end in time.
    Failed(String),
}

impl Agent {
    /// In words.
    pub fn words(&self) -> String {
        match self {
            Agent::Undecided => "not asked to drain yet".into(),
            Agent::Left(why) => format!("not asked to drain: {why}"),
            Agent::Itself => "drains, by its own hooks".into(),
            Agent::Asked => "drains, as asked".into(),
            Agent::Done => "has drained".into(),
            Agent::Failed(why) => format!("has not drained: {why}"),
        }
    }
}

/// What is known when a drain has ended and the process still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// SIGTERM has come.
    pub terminated: bool,
    /// The server is up on both protocols, for so long.
    pub up_for: Option<Duration>,
    /// It was gone since the drain began, and had been there before.
    pub server_was_gone: bool,
    /// The agent came back since, and had been there before.
    pub agent_came_back: bool,
    /// Time since the drain ended.
    pub ended_for: Duration,
}

/// Why a drain was no termination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undo {
    /// The server was started again.
    Server,
    /// The agent was.
    Agent,
    /// Nothing ended in the time that the pod would have had.
    Time,
}

impl Undo {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Undo::Server => {
                "the inference server came back: no container is started in a pod that is being deleted"
            }
            Undo::Agent => {
                "the agent came back: no container is started in a pod that is being deleted"
            }
            Undo::Time => "no SIGTERM has followed, and the server still answers",
        }
    }
}

/// How long the server must have been up again; a server that stops answers once more at its end.
pub const HOLD: Duration = Duration::from_secs(3);

/// Whether the drain is to be taken back.
pub fn undo(e: &Evidence, undo_after: Duration) -> Option<Undo> {
    if e.terminated || e.up_for.is_none_or(|up| up < HOLD) {
        return None;
    }
    if e.server_was_gone {
        Some(Undo::Server)
    } else if e.agent_came_back {
        Some(Undo::Agent)
    } else {
        (e.ended_for >= undo_after).then_some(Undo::Time)
    }
}

/// How long the server has been up on both protocols.
pub fn up_for(view: &View, now: Duration) -> Option<Duration> {
    let mut shortest = None;
    for protocol in Protocol::ALL {
        if view.usable(protocol) != Usable::Up {
            return None;
        }
        let up = now.saturating_sub(view.selected(protocol)?.health.since);
        shortest = Some(shortest.map_or(up, |least: Duration| least.min(up)));
    }
    shortest
}

/// Whether nobody listens for one of the protocols: the process is gone. One that is only slow
/// does not count.
pub fn is_gone(view: &View) -> bool {
    Protocol::ALL.into_iter().any(|protocol| {
        let all = view.of(protocol);
        let refused = |e: &crate::view::Endpoint| e.health.reason == Some(Reason::Refused);
        view.usable(protocol) == Usable::Down && !all.is_empty() && all.iter().all(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AFTER: Duration = Duration::from_secs(300);
    const QUIETLY_WAITING: Evidence = Evidence {
        terminated: false,
        up_for: Some(Duration::from_secs(60)),
        server_was_gone: false,
        agent_came_back: false,
        ended_for: Duration::from_secs(10),
    };

    #[test]
    fn what_comes_back_or_stays_undoes_a_drain() {
        let e = QUIETLY_WAITING;
        assert_eq!(undo(&e, AFTER), None, "the SIGTERM may still come");
        let server_was_gone = true;
        let back = Evidence {
            server_was_gone,
            ..e
        };
        assert_eq!(undo(&back, AFTER), Some(Undo::Server));
        let moment = Some(Duration::from_millis(100));
        let only_just = Evidence {
            up_for: moment,
            ..back
        };
        assert_eq!(undo(&only_just, AFTER), None, "as a server does at its end");
        let agent_came_back = true;
        let agent = Evidence {
            agent_came_back,
            ..e
        };
        assert_eq!(undo(&agent, AFTER), Some(Undo::Agent));
        let ended_for = AFTER;
        assert_eq!(undo(&Evidence { ended_for, ..e }, AFTER), Some(Undo::Time));
    }

    proptest! {
        #[test]
        fn a_termination_is_never_undone_nor_a_drain_before_a_server_that_is_down(
            gone in any::<bool>(), agent in any::<bool>(), ended in 0u64..10_000,
            up in prop::option::of(0u64..1000), terminated in any::<bool>(),
        ) {
            let e = Evidence {
                terminated,
                up_for: up.map(Duration::from_secs),
                server_was_gone: gone,
                agent_came_back: agent,
                ended_for: Duration::from_secs(ended),
            };
            let undone = undo(&e, AFTER);
            if terminated || up.is_none_or(|up| up < HOLD.as_secs()) {
                prop_assert_eq!(undone, None);
            } else {
                prop_assert_eq!(undone.is_some(), gone || agent || ended >= AFTER.as_secs());
            }
        }
    }
}
