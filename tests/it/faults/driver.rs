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
//! multiplied by what it says, up to 8, and the factor is printed. `FAULTS_FACTOR` sets it.
//! `FAULTS_AT_ONCE` says how many cells are played at once (8), `FAULTS` and `FAULTS_PHASE` choose rows
//! and a phase by a part of their names.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::judge::{self, Played};
use super::load::Load;
use super::place::Place;
use super::process::variable;
use super::scheduler::until_right;
use super::stage::{Stage, Wants, until};

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
    /// It may go, and comes back within 3 s although the fault lasts.
    Recovers,
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
    /// Whether the shim refuses by its own answer, though the server might have served in the end:
    /// a caller never hangs on a server known to be dead.
    pub answers: bool,
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
    /// Seconds within which a finding has to name it.
    pub named: f64,
    /// How many turns it takes, where it keeps the machine busy by itself.
    pub weight: u32,
    /// Whether it is played without the shim too; not where the shim itself is what breaks.
    pub direct: bool,
    /// What the shim may hold more than before, in KiB, where the usual is not enough.
    pub memory: u64,
}

/// Nothing besides the usual.
pub fn usual(_: &Place) -> Wants {
    Wants::default()
}

/// `SHIM_OUTAGE_GRACE` of a cell, before it is scaled, in milliseconds.
pub const GRACE: u64 = 2000;

/// The usual tolerance of memory, in KiB.
pub const MEMORY: u64 = 12 << 10;

/// How much slower this machine is than promised.
pub fn factor() -> f64 {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    *FACTOR.get_or_init(measured)
}

/// The periods of the shim are short here, and longer where the machine is slow: a server that
/// gets no processor for seconds would be called silent, and rightly.
pub fn scaled(millis: u64) -> Duration {
    Duration::from_millis(millis).mul_f64((factor() / 2.0).min(2.5))
}

fn measured() -> f64 {
    if let Some(set) = variable("FAULTS_FACTOR") {
        return set.parse().unwrap();
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let now: f64 = load
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1.0);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()) as f64;
    // The cells themselves keep both cores busy for a part of the time.
    (1.0 + now / cores).clamp(2.0, 8.0)
}

/// A duration that is promised on a quiet machine.
pub fn promised(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * factor())
}

/// What came of a cell.
pub struct Cell {
    pub row: String,
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
    let mut cells = Vec::new();
    for row in rows {
        cells.extend(row.phases.iter().map(|phase| (*row, None, *phase)));
    }
    play_all(cells).await
}

/// Plays pairs of rows under load, with the shim: the second fault strikes while the first lasts,
/// and is healed first.
pub async fn run_pairs(pairs: &[(Row, Row)]) -> Vec<Cell> {
    let cells = pairs.iter();
    play_all(
        cells
            .map(|(first, second)| (*first, Some(*second), Phase::UnderLoad))
            .collect(),
    )
    .await
}

type Planned = (Row, Option<Row>, Phase);

fn title((row, second, _): &Planned) -> String {
    second.map_or(row.name.into(), |second| {
        format!("{} + {}", row.name, second.name)
    })
}

async fn play_all(mut plan: Vec<Planned>) -> Vec<Cell> {
    let chosen = |name: &str, by: &str| variable(by).is_none_or(|part| name.contains(&part));
    plan.retain(|cell| chosen(&title(cell), "FAULTS") && chosen(cell.2.name(), "FAULTS_PHASE"));
    let at_once = variable("FAULTS_AT_ONCE").map_or(8, |n| n.parse().unwrap());
    let turns = Arc::new(Semaphore::new(at_once));
    let mut cells = JoinSet::new();
    for (place, planned) in plan.into_iter().enumerate() {
        let turns = turns.clone();
        cells.spawn(async move {
            let weight = planned.0.weight.min(at_once as u32);
            let _turn = turns.acquire_many_owned(weight).await.unwrap();
            let name = title(&planned);
            // A thread for each: a cell that computes does not hold up the callers of others.
            let played = move || super::process::runtime().block_on(play(planned));
            let cell = tokio::task::spawn_blocking(played).await;
            let cell = cell.unwrap_or_else(|error| Cell {
                row: name,
                phase: planned.2,
                complaints: vec![format!("the driver itself failed: {error}")],
                told: [None; 2],
                served: 0,
                lost: [0; 2],
                took: Duration::ZERO,
            });
            (place, cell)
        });
    }
    let mut all = cells.join_all().await;
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, cell)| cell).collect()
}

async fn play(planned: Planned) -> Cell {
    let (row, second, phase) = planned;
    let since = Instant::now();
    let with = once(&row, second.as_ref(), phase, true).await;
    let without = match row.direct && second.is_none() {
        true => {
            // For as long as the shim's fault lasted, which is until it was named: what a longer one
            // breaks by itself must not be counted against the shim.
            let (injected, healed) = (with.injected, with.healed);
            let lasted = injected.zip(healed).map(|(from, to)| to - from);
            let lasts = row.lasts.max(lasted.unwrap_or_default());
            Some(once(&Row { lasts, ..row }, None, phase, false).await)
        }
        false => None,
    };
    let subscribes = row.expect.subscribes + second.map_or(0, |s| s.expect.subscribes + 2);
    let complaints = judge::all(&row, phase, subscribes, &with, without.as_ref());
    if !complaints.is_empty() {
        eprintln!(
            "--- {} / {}: {complaints:#?}",
            title(&planned),
            phase.name()
        );
        if variable("FAULTS_LOG").is_some() {
            eprintln!("{}", with.log);
        }
    }
    Cell {
        row: title(&planned),
        phase,
        complaints,
        told: [with.told_fault, with.told_healed],
        served: with.served(),
        lost: [with.lost(), without.as_ref().map_or(0, Played::lost)],
        took: since.elapsed(),
    }
}

/// One performance of a cell.
async fn once(row: &Row, second: Option<&Row>, phase: Phase, with_shim: bool) -> Played {
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
    if let Some(second) = second {
        tokio::time::sleep(Duration::from_millis(300)).await;
        (second.inject)(&stage).await;
    }
    let since = Instant::now();
    if phase == Phase::ColdStart {
        begin(&stage).await;
    }
    if with_shim {
        let mut findings = row.expect.findings.to_vec();
        match second {
            None => told_of_fault(&stage, row, phase, &mut played).await,
            // What has no name may hide what has one.
            Some(second) if second.expect.findings.is_empty() => findings.clear(),
            Some(second) => findings.extend(second.expect.findings),
        }
        if stage.get("/livez").await.is_some() {
            let limit = row.named.max(second.map_or(0.0, |s| s.named));
            named(&stage, &findings, (phase, limit), &mut played).await;
        }
    }
    played.settled = Some(Instant::now());
    tokio::time::sleep(row.lasts.saturating_sub(since.elapsed())).await;
    // --- its end
    if let Some(second) = second {
        (second.heal)(&stage).await;
    }
    (row.heal)(&stage).await;
    played.healed = Some(Instant::now());
    stage.tasks.lock().await.shutdown().await;
    if with_shim {
        told_of_end(&stage, phase, &mut played).await;
    }
    all_right(&stage, &mut played, "after the fault").await;
    if phase != Phase::ColdStart && with_shim {
        let all = stage.scheduler.subscribes();
        played.subscribes = all.len() - subscribes;
        // The tight loop's carry nothing.
        let wrong = |s: &&super::scheduler::Subscribed| s.total != stage.total() && s.total != 0;
        if let Some(wrong) = all.iter().find(wrong) {
            played.complain(format!("the scheduler was told of {} bytes", wrong.total));
        }
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
    played
        .complaints
        .append(&mut stage.complaints.lock().unwrap());
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
        client
            .start(request)
            .await
            .ok()
            .map(|r| r.status().as_u16())
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
    stage
        .get("/readyz")
        .await
        .is_some_and(|(code, _)| code == 200)
}

async fn told_of_fault(stage: &Stage, row: &Row, phase: Phase, played: &mut Played) {
    let expected = match phase {
        // A drain makes it not ready whatever else is so.
        Phase::Draining if row.expect.ready != Ready::Unasked => Ready::Goes,
        _ => row.expect.ready,
    };
    match expected {
        Ready::Unasked => {}
        Ready::Recovers => {
            played.told_fault = until(promised(3.0), async || is_ready(stage).await).await;
            if played.told_fault.is_none() {
                played.complain("not ready again 3 s after the fault, while it lasts");
            }
        }
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
                Ready::GoesAfterGrace => scaled(GRACE),
                _ => Duration::ZERO,
            };
            let limit = grace + promised(3.0);
            let gone = until(limit, async || {
                stage
                    .get("/readyz")
                    .await
                    .is_some_and(|(code, _)| code == 503)
            });
            played.told_fault = gone.await;
            if played.told_fault.is_none() {
                played.complain("still ready 3 s after the fault");
            }
        }
    }
}

async fn named(stage: &Stage, wanted: &[&str], (phase, limit): (Phase, f64), played: &mut Played) {
    if wanted.is_empty() {
        return;
    }
    let mut seen = Vec::new();
    let named = until(promised(limit), async || {
        seen = stage.findings().await;
        seen.iter().any(|id| wanted.contains(&id.as_str()))
    });
    if named.await.is_none() {
        let phase = phase.name();
        played.complain(format!("{phase}: no finding of {wanted:?}, but {seen:?}"));
    }
}

async fn told_of_end(stage: &Stage, phase: Phase, played: &mut Played) {
    played.told_healed = until(promised(3.0), async || match phase {
        // It is not ready for the drain alone. A shim that was started anew does not drain.
        Phase::Draining => stage
            .get("/readyz")
            .await
            .is_some_and(|(_, text)| !text.contains("inference-") && !text.contains("probed")),
        _ => is_ready(stage).await,
    })
    .await;
    if played.told_healed.is_none() {
        let text = stage.get("/readyz").await;
        played.complain(format!(
            "not ready 3 s after the end of the fault: {text:?}"
        ));
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
