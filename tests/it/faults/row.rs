//! What a row of the fault matrix is: a fault, when it strikes, and what has to be so meanwhile.
//!
//! **Writing a row.** A [`Row`] is data and two acts. An act is `fn(&Stage) -> Step`: write
//! `|stage| Box::pin(async move { … })` and use what [`Stage`] has (`server`, `scheduler`, `shim`,
//! `agent`, `tasks` for what has to go on while the fault lasts, `complain` for an invariant of
//! the row's own). `wants` gives it variables, a limit, or words before the shim's program such as
//! `unshare`. Both acts are also run without the shim (`stage.with_shim`), unless `direct` is false.
//! What a row leaves out it gives a reason for: `unplayed` for its phases, `nameless` where no finding
//! is demanded. Put it into a list in a file below `table`, where the test [`super::table`] finds it.

use std::pin::Pin;
use std::time::Duration;

use super::place::Place;
use super::stage::{Stage, Wants};

pub type Step<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;
pub type Act = for<'a> fn(&'a Stage) -> Step<'a>;

/// When the fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Before the shim and the agent are started.
    ColdStart,
    /// Nobody calls.
    Idle,
    /// All kinds of callers are at work.
    UnderLoad,
    /// The same, and the server is in the middle of loading a model.
    Loading,
    /// The same, and `/drain` was called.
    Draining,
}

impl Phase {
    pub const ALL: &[Phase] = &[
        Phase::ColdStart,
        Phase::Idle,
        Phase::UnderLoad,
        Phase::Loading,
        Phase::Draining,
    ];
    /// Without the cold start, for faults of something that runs.
    pub const RUNNING: &[Phase] = &[
        Phase::Idle,
        Phase::UnderLoad,
        Phase::Loading,
        Phase::Draining,
    ];

    /// For rows that are played under load always, and otherwise where everything is.
    pub const BUT_UNDER_LOAD: &[Phase] = &[
        Phase::ColdStart,
        Phase::Idle,
        Phase::Loading,
        Phase::Draining,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Phase::ColdStart => "cold start",
            Phase::Idle => "idle",
            Phase::UnderLoad => "under load",
            Phase::Loading => "loading",
            Phase::Draining => "draining",
        }
    }
}

/// What readiness has to say while the fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// It stays: calls are served, or readiness looks at the pod alone.
    Stays,
    /// It goes within 3 s of what the shim can see; after the grace where the server is silent.
    Goes,
    /// It goes after the grace for silence, and 3 s.
    GoesAfterGrace,
    /// It may go, and comes back within 3 s although the fault lasts.
    Recovers,
    /// The shim cannot be asked, or ends.
    Unasked,
}

impl Ready {
    /// What it has to say while another fault lasts as well.
    pub fn and(self, other: Ready) -> Ready {
        let either = |ready: Ready| self == ready || other == ready;
        let all = [
            Ready::Unasked,
            // The one may hide the other, and silence is known after the grace.
            Ready::GoesAfterGrace,
            Ready::Goes,
            Ready::Recovers,
        ];
        all.into_iter().find(|r| either(*r)).unwrap_or(Ready::Stays)
    }
}

/// One line of the matrix.
#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    /// What is done.
    pub fault: &'static str,
    /// Phases that are always played.
    pub phases: &'static [Phase],
    /// Those that are played besides where everything is, by `make faults`.
    pub more: &'static [Phase],
    /// Why the other phases are not played.
    pub unplayed: &'static str,
    pub wants: fn(&Place) -> Wants,
    pub inject: Act,
    pub heal: Act,
    /// The least time from one to the other.
    pub lasts: Duration,
    pub ready: Ready,
    /// Findings of which one has to be there while the fault lasts.
    pub findings: &'static [&'static str],
    /// Seconds within which it has to be there.
    pub named: f64,
    /// Why none is demanded, where none is.
    pub nameless: &'static str,
    /// Findings that may be there besides: true of what the fault brings with it.
    pub besides: &'static [&'static str],
    /// How often the scheduler may be told of the replica anew from the fault to its end.
    pub subscribes: usize,
    /// Whether the shim refuses by its own answer, though the server might have served in the end:
    /// a caller never hangs on a server known to be dead.
    pub answers: bool,
    /// What callers and scheduler get, as the documentation says it.
    pub words: &'static str,
    /// How many turns it takes, where it keeps the machine busy by itself.
    pub weight: u32,
    /// Whether the server itself sends bytes of no protocol, which callers over gRPC may get to see.
    pub babbles: bool,
    /// Whether a drain that had begun ends well: not where the shim is gone in its middle.
    pub drains: bool,
    /// Whether it is played without the shim too; not where the shim itself is what breaks.
    pub direct: bool,
    /// What the shim may hold more than before, in KiB, where the usual is not enough.
    pub memory: u64,
    /// How much later than usual a call may end that the fault has met, with the shim or without:
    /// TCP sends lost packets again after a pause that doubles, up to as long as all were lost.
    pub late: Duration,
}

impl Row {
    /// In which phases it is played, in their order.
    pub fn played(&self, all: bool) -> Vec<Phase> {
        let here = |phase: &Phase| self.phases.contains(phase) || all && self.more.contains(phase);
        Phase::ALL.iter().copied().filter(here).collect()
    }
}

pub const SECOND: Duration = Duration::from_secs(1);

/// What is true in a phase whatever the fault is: an agent subscribes when its server is there, and
/// a load that was broken off has failed, until somebody asks for the model again.
pub fn true_in(phase: Phase) -> &'static [&'static str] {
    match phase {
        Phase::ColdStart => &["AS032"],
        Phase::Loading => &["AS090", "AS096"],
        _ => &[],
    }
}

/// Pairs in which one fault takes the other's finding away: the one that is told, the one that is not,
/// and why. Of all other pairs each fault is told that has a finding at all.
pub const HIDES: &[(&str, &str, &str)] = &[
    // The server's own.
    (
        "server-killed",
        "server-garbage",
        "no process is there to say it",
    ),
    (
        "server-killed",
        "server-wedged",
        "no process is there to be stopped",
    ),
    (
        "server-refuses",
        "server-wedged",
        "the kernel refuses for a stopped process as well",
    ),
    (
        "server-garbage",
        "server-refuses",
        "the ports are open again, and babble",
    ),
    (
        "server-wedged",
        "server-garbage",
        "a stopped process says nothing any more",
    ),
    // The scheduler's own.
    (
        "scheduler-errors",
        "scheduler-restarted",
        "it runs again, and refuses the subscription",
    ),
    (
        "scheduler-restarted",
        "scheduler-wedged",
        "its ports are closed, nothing is there to be silent",
    ),
    (
        "scheduler-wedged",
        "scheduler-errors",
        "it does not say any more that it refuses",
    ),
    // What needs a subscription, or the wish for one.
    (
        "agent-killed",
        "scheduler-errors",
        "only who subscribes is refused",
    ),
    (
        "server-garbage",
        "scheduler-errors",
        "a Subscribe that comes when the shim knows of it is held",
    ),
    (
        "server-refuses",
        "scheduler-errors",
        "a Subscribe that comes when the shim knows of it is held",
    ),
    (
        "server-killed",
        "scheduler-errors",
        "a Subscribe that comes when the shim knows of it is held",
    ),
    (
        "server-garbage",
        "scheduler-restarted",
        "a Subscribe that comes when the shim knows of it is held, and nobody dials",
    ),
    (
        "server-refuses",
        "scheduler-restarted",
        "a Subscribe that comes when the shim knows of it is held, and nobody dials",
    ),
    (
        "server-killed",
        "scheduler-restarted",
        "a Subscribe that comes when the shim knows of it is held, and nobody dials",
    ),
    (
        "server-killed",
        "agent-killed",
        "without a server an agent ends by itself, and is not missed",
    ),
    (
        "server-refuses",
        "agent-killed",
        "without a server an agent ends by itself, and is not missed",
    ),
    (
        "server-garbage",
        "agent-killed",
        "without a server an agent ends by itself, and is not missed",
    ),
    (
        "server-wedged",
        "agent-killed",
        "without a server an agent ends by itself, and is not missed",
    ),
    (
        "agent-killed",
        "scheduler-restarted",
        "the scheduler is judged by a subscription, and nobody subscribes",
    ),
    (
        "agent-killed",
        "scheduler-wedged",
        "the scheduler is judged by a subscription, and nobody subscribes",
    ),
];

/// The rows of a cell of which a finding is demanded.
pub fn telling<'a>(row: &'a Row, second: Option<&'a Row>) -> Vec<&'a Row> {
    let Some(second) = second else {
        return vec![row];
    };
    let hidden = |by: &Row, row: &Row| {
        let same = |(tells, not, _): &&(_, _, _)| *tells == by.name && *not == row.name;
        HIDES.iter().any(|hides| same(&hides))
    };
    let both = [(row, second), (second, row)].into_iter();
    both.filter(|(row, by)| !hidden(by, row))
        .map(|(row, _)| row)
        .collect()
}

/// The usual tolerance of memory, in KiB.
const MEMORY: u64 = 12 << 10;

/// A row with the usual answers, to be completed.
pub const USUAL: Row = Row {
    name: "",
    fault: "",
    phases: Phase::ALL,
    more: &[],
    unplayed: "",
    wants: |_| Wants::default(),
    inject: |_| Box::pin(async {}),
    heal: |_| Box::pin(async {}),
    lasts: SECOND,
    ready: Ready::Goes,
    findings: &[],
    named: 8.0,
    nameless: "",
    besides: &[],
    subscribes: 0,
    answers: false,
    words: "",
    weight: 1,
    babbles: false,
    drains: true,
    direct: true,
    memory: MEMORY,
    late: Duration::ZERO,
};
