//! Carries out the rows of the fault matrix.
//!
//! **Writing a row.** A [`Row`] is data and two acts. An act is `fn(&Stage) -> Step`: write
//! `|stage| Box::pin(async move { … })` and use what [`Stage`] has (`server`, `scheduler`, `shim`,
//! `agent`, `tasks` for what has to go on while the fault lasts, `complain` for an invariant of
//! the row's own, `wants` for variables and for words before the shim's program such as `unshare`
//! or `prlimit`). Both acts are also run without the shim (`stage.with_shim`), unless `direct` is
//! false. Put rows into a list of their own and run them with [`run`]; `table::rows` has examples.
//!
//! **A cell** is a row in a [`Phase`]. It is played twice, with the shim and without it, on its own
//! address of loopback: everything is started, the callers of `load` come as the phase has it, the
//! fault is injected, what `expect` says is awaited, the fault lasts for `Row::lasts` at least, it
//! is healed, everything must be right again, the callers go on for a calm second. Then all is
//! quiet, what the shim holds is compared with before, and it gets SIGTERM. `judge` says what was
//! wrong; a cell without complaints is good.
//!
//! **Time.** The promises (ready within 3 s, belief within 30 s) are checked as they are where the
//! machine has a core for everybody; where `/proc/loadavg` says that it does not, they are
//! multiplied by what it says, up to 5, and the factor is printed. `FAULTS_FACTOR` sets it.
//! `FAULTS_AT_ONCE` says how many cells are played at once (8), `FAULTS` and `FAULTS_PHASE` choose rows
//! and a phase by a part of their names.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::judge::{self, Played};
use super::load::Load;
use super::place::Place;
use super::scheduler::until_right;
use super::stage::{Stage, Wants, ask, until};

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
    /// The shim cannot be asked.
    Unasked,
}

/// What is expected of the shim while the fault lasts.
#[derive(Debug, Clone, Copy)]
pub struct Expect {
    pub ready: Ready,
    /// Findings of which one has to be there; none for a fault that is no state.
    pub findings: &'static [&'static str],
    /// How often the scheduler may be told of the replica anew from the fault to its end.
    pub subscribes: usize,
    /// What is said of it in the documentation.
    pub words: &'static str,
}

/// One line of the matrix.
#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    /// What is done.
    pub fault: &'static str,
    pub phases: &'static [Phase],
    pub wants: fn(&Place) -> Wants,
    pub inject: Act,
    pub heal: Act,
    /// The least time from one to the other.
    pub lasts: Duration,
    pub expect: Expect,
    /// Whether it is played without the shim too; not where the shim itself is what breaks.
    pub direct: bool,
    /// What the shim may hold more than before, in KiB, where the usual is not enough.
    pub memory: u64,
}

/// Nothing besides the usual.
pub fn usual(_: &Place) -> Wants {
    Wants::default()
}

/// The usual tolerance of memory, in KiB.
pub const MEMORY: u64 = 12 << 10;

/// How much slower this machine is than promised.
pub fn factor() -> f64 {
    if let Ok(set) = std::env::var("FAULTS_FACTOR") {
        return set.parse().unwrap();
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let now: f64 = load.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(1.0);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()) as f64;
    // The cells themselves keep both cores busy for a part of the time.
    (1.0 + now / cores).clamp(2.0, 5.0)
}

/// A duration that is promised on a quiet machine.
pub fn promised(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * factor())
}

/// What came of a cell.
pub struct Cell {
    pub row: &'static str,
    pub phase: Phase,
    pub complaints: Vec<String>,
    /// With the shim: until readiness was true, after the fault and after its end.
    pub told: [Option<Duration>; 2],
    pub served: usize,
    pub lost: [usize; 2],
    pub took: Duration,
}

/// Plays the rows in all of their phases.
pub async fn run(rows: &[Row]) -> Vec<Cell> {
    let chosen = |name: &str, variable: &str| {
        std::env::var(variable).map_or(true, |part| name.contains(&part))
    };
    let at_once = std::env::var("FAULTS_AT_ONCE").map_or(8, |n| n.parse().unwrap());
    let turns = Arc::new(Semaphore::new(at_once));
    let mut cells = JoinSet::new();
    for row in rows.iter().filter(|r| chosen(r.name, "FAULTS")).copied() {
        for phase in row.phases.iter().copied() {
            if chosen(phase.name(), "FAULTS_PHASE") {
                let turns = turns.clone();
                cells.spawn(async move {
                    let _turn = turns.acquire_owned().await.unwrap();
                    // A thread for each: a cell that computes does not hold up the callers of others.
                    let played = move || super::process::runtime().block_on(play(row, phase));
                    let cell = tokio::task::spawn_blocking(played).await;
                    cell.unwrap_or_else(|error| Cell {
                        row: row.name,
                        phase,
                        complaints: vec![format!("the driver itself failed: {error}")],
                        told: [None; 2],
                        served: 0,
                        lost: [0; 2],
                        took: Duration::ZERO,
                    })
                });
            }
        }
    }
    let mut all = cells.join_all().await;
    let place = |cell: &Cell| rows.iter().position(|r| r.name == cell.row);
    all.sort_by_key(|cell| (place(cell), cell.phase));
    all
}

async fn play(row: Row, phase: Phase) -> Cell {
    let since = Instant::now();
    let without = match row.direct {
        true => Some(once(&row, phase, false).await),
        false => None,
    };
    let with = once(&row, phase, true).await;
    let complaints = judge::all(&row, phase, &with, without.as_ref());
    if !complaints.is_empty() {
        eprintln!("--- {} / {}: {complaints:#?}", row.name, phase.name());
        if std::env::var_os("FAULTS_LOG").is_some() {
            eprintln!("{}", with.log);
        }
    }
    Cell {
        row: row.name,
        phase,
        complaints,
        told: [with.told_fault, with.told_healed],
        served: with.served(),
        lost: [with.lost(), without.as_ref().map_or(0, Played::lost)],
        took: since.elapsed(),
    }
}

/// One performance of a cell.
async fn once(row: &Row, phase: Phase, with_shim: bool) -> Played {
    let stage = Stage::new(with_shim, row.wants).await;
    let mut played = Played::default();
    if phase != Phase::ColdStart {
        begin(&stage).await;
        all_right(&stage, &mut played, "before the fault").await;
        if with_shim {
            warm(&stage).await;
            played.before = stage.shim.lock().await.as_ref().map(|shim| shim.held());
        }
    }
    let mut load = None;
    if !matches!(phase, Phase::ColdStart | Phase::Idle) {
        load = Some(Load::start(stage.targets(), &stage.ledger));
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    if phase == Phase::Loading {
        stage.server.order("load-delay 1500").await;
        stage.scheduler.want("second");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let mut drain = JoinSet::new();
    if phase == Phase::Draining && with_shim {
        let admin = stage.admin();
        drain.spawn(async move { drained(admin).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let subscribes = stage.scheduler.subscribes().len();
    // --- the fault
    played.injected = Some(Instant::now());
    (row.inject)(&stage).await;
    let since = Instant::now();
    if phase == Phase::ColdStart {
        begin(&stage).await;
    }
    if with_shim {
        told_of_fault(&stage, row, phase, &mut played).await;
        named(&stage, row, phase, &mut played).await;
    }
    played.settled = Some(Instant::now());
    tokio::time::sleep(row.lasts.saturating_sub(since.elapsed())).await;
    // --- its end
    (row.heal)(&stage).await;
    played.healed = Some(Instant::now());
    stage.tasks.lock().await.shutdown().await;
    if with_shim {
        told_of_end(&stage, phase, &mut played).await;
    }
    all_right(&stage, &mut played, "after the fault").await;
    if phase != Phase::ColdStart && with_shim {
        played.subscribes = stage.scheduler.subscribes().len() - subscribes;
    }
    if load.is_none() {
        load = Some(Load::start(stage.targets(), &stage.ledger));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // --- calm
    played.calm = Some(Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    if let Some(load) = load {
        load.stop(promised(3.0)).await;
    }
    played.stopped = Some(Instant::now());
    if phase == Phase::Draining && with_shim {
        match drain.join_next().await {
            Some(Ok(Some(200))) => {}
            other => played.complain(format!("/drain was answered {other:?}, not 200")),
        }
    }
    if with_shim {
        end(&stage, row, &mut played).await;
    }
    played.calls = stage.ledger.calls();
    played.received = stage.server.received();
    played.complaints.append(&mut stage.complaints.lock().unwrap());
    played.log = std::fs::read_to_string(stage.log()).unwrap_or_default();
    stage.server.kill().await;
    played
}

async fn begin(stage: &Stage) {
    stage.start_shim().await;
    stage.start_agent();
}

/// A call of `/drain` as a hook makes it; its answer comes when the drain is over.
async fn drained(admin: std::net::SocketAddr) -> Option<u16> {
    let limit = Duration::from_secs(120);
    let call = async {
        let mut client = crate::support::http::Client::connect(admin).await;
        let request = crate::support::http::request("POST", "/drain", "");
        client.start(request).await.ok().map(|r| r.status().as_u16())
    };
    tokio::time::timeout(limit, call).await.ok()?
}

/// What is allocated once is allocated before the baseline is taken.
async fn warm(stage: &Stage) {
    let load = Load::start(stage.targets(), &stage.ledger);
    tokio::time::sleep(Duration::from_millis(600)).await;
    load.stop(promised(3.0)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Server, readiness, belief and models are as they should be.
async fn all_right(stage: &Stage, played: &mut Played, when: &str) {
    let drained = when == "after the fault" && draining(stage).await;
    if stage.with_shim && when == "before the fault" {
        let ready = until(promised(15.0), async || is_ready(stage).await).await;
        if ready.is_none() {
            played.complain(format!("not ready {when}"));
        }
    }
    let limit = match stage.with_shim {
        true => promised(30.0),
        false => promised(2.0),
    };
    if let Some(wrong) = until_right(&stage.scheduler, stage.total(), limit).await {
        played.belief = Some(format!("30 s {when}: {wrong}"));
    }
    let limit = match stage.with_shim {
        true => promised(10.0),
        // Nobody brings them back.
        false => Duration::from_millis(500),
    };
    let models = until(limit, async || stage.lost_models().await.is_empty()).await;
    if models.is_none() && !drained {
        played.lost_models = stage.lost_models().await;
    }
}

async fn draining(stage: &Stage) -> bool {
    let answer = stage.get("/readyz").await;
    answer.is_some_and(|(_, text)| text.contains("not-draining"))
}

async fn is_ready(stage: &Stage) -> bool {
    stage.get("/readyz").await.is_some_and(|(code, _)| code == 200)
}

async fn told_of_fault(stage: &Stage, row: &Row, phase: Phase, played: &mut Played) {
    let expected = match phase {
        // A drain makes it not ready whatever else is so.
        Phase::Draining if row.expect.ready != Ready::Unasked => Ready::Goes,
        _ => row.expect.ready,
    };
    match expected {
        Ready::Unasked => {}
        Ready::Stays => {
            if phase == Phase::ColdStart {
                played.told_fault = until(promised(5.0), async || is_ready(stage).await).await;
                if played.told_fault.is_none() {
                    played.complain("not ready, although the fault does not concern the pod");
                }
            }
            let since = Instant::now();
            while since.elapsed() < row.lasts {
                if phase == Phase::ColdStart && played.told_fault.is_none() {
                    break;
                }
                match stage.get("/readyz").await {
                    Some((200, _)) => {}
                    other => {
                        played.complain(format!("readiness went: {other:?}"));
                        break;
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ready::Goes | Ready::GoesAfterGrace => {
            let grace = match expected {
                Ready::GoesAfterGrace => 2.0,
                _ => 0.0,
            };
            let limit = Duration::from_secs_f64(grace) + promised(3.0);
            let gone = until(limit, async || {
                stage.get("/readyz").await.is_some_and(|(code, _)| code == 503)
            });
            played.told_fault = gone.await;
            if played.told_fault.is_none() {
                played.complain("still ready 3 s after the fault");
            }
        }
    }
}

async fn named(stage: &Stage, row: &Row, phase: Phase, played: &mut Played) {
    if row.expect.findings.is_empty() {
        return;
    }
    let mut seen = Vec::new();
    let named = until(promised(8.0), async || {
        seen = stage.findings().await;
        seen.iter().any(|id| row.expect.findings.contains(&id.as_str()))
    });
    if named.await.is_none() {
        let (wanted, phase) = (row.expect.findings, phase.name());
        played.complain(format!("{phase}: no finding of {wanted:?}, but {seen:?}"));
    }
}

async fn told_of_end(stage: &Stage, phase: Phase, played: &mut Played) {
    if phase == Phase::Draining {
        return;
    }
    played.told_healed = until(promised(3.0), async || is_ready(stage).await).await;
    if played.told_healed.is_none() {
        let text = stage.get("/readyz").await;
        played.complain(format!("not ready 3 s after the end of the fault: {text:?}"));
    }
}

/// Nobody calls any more: what is held is given back, and SIGTERM ends it in order.
async fn end(stage: &Stage, row: &Row, played: &mut Played) {
    let mut shim = stage.shim.lock().await;
    let Some(shim) = shim.as_mut() else {
        return;
    };
    if let Some(code) = shim.ended() {
        played.complain(format!("the shim has ended: {code:?}"));
        return;
    }
    if let Some(before) = played.before {
        let mut now = shim.held();
        // Idle connections to the server are kept for 4 s.
        let back = until(promised(6.0), async || {
            now = shim.held();
            now.descriptors <= before.descriptors + 4
                && now.anonymous <= before.anonymous + row.memory
        });
        if back.await.is_none() {
            played.complain(format!("holds {now:?}, before the fault {before:?}"));
        }
    }
    stage.kill_agent();
    super::process::signal(shim.pid(), "TERM");
    match shim.wait(Duration::from_secs(4) + promised(3.0)).await {
        Some(Some(0)) => {}
        other => played.complain(format!("SIGTERM ended it with {other:?}, not 0")),
    }
}

/// Whether the server's port answers at all, for acts that wait for it.
pub async fn answers(stage: &Stage) -> bool {
    ask(stage.server.http(), "GET", "/v2/health/live", "").await.is_some()
}
