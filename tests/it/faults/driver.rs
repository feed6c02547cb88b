//! Plays the rows of the fault matrix; how one is written says `row`.
//!
//! **A cell** is a row in a [`Phase`]. It is played twice, with the shim and without it, on its own
//! address of loopback: everything is started, the callers of `load` come as the phase has it, the
//! fault is injected, what the row says is awaited (`watch`), the fault lasts for `Row::lasts` at
//! least, it is healed, everything must be right again, callers whom it has met are waited for, and
//! they go on for a calm second. Then all is quiet, what the shim holds is compared with before, and it
//! gets SIGTERM. `judge` says what was wrong; a cell without complaints is good.
//!
//! `FAULTS_AT_ONCE` says how many cells are played at once (8), `FAULTS` and `FAULTS_PHASE` choose rows
//! and a phase by a part of their names, `FAULTS_LOG` prints the log of a bad one, and `FAULTS_BOOK`
//! names a folder for the account of each (`show`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::judge::{self, Played};
use super::load::Load;
use super::look::Looking;
use super::pace::promised;
use super::process::variable;
use super::row::{self, Phase, Ready, Row, true_in};
use super::stage::{Stage, until};
use super::watch::{
    all_right, end, failed_loads_are_named, found, named, nothing_left, told_of_end, told_of_fault,
};

/// What came of a cell.
pub struct Cell {
    pub row: String,
    pub phase: Phase,
    pub complaints: Vec<String>,
    pub with: Played,
    pub without: Option<Played>,
    pub took: Duration,
}

/// Whether all that there is is played: all phases, all pairs, the whole huge message.
pub fn everything() -> bool {
    variable("FAULTS_FULL").is_some()
}

/// Plays the rows in their phases.
pub async fn run(rows: &[Row]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for row in rows {
        let phases = row.played(everything());
        cells.extend(phases.into_iter().map(|phase| (*row, None, phase)));
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
                with: Played::default(),
                without: None,
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
    let complaints = judge::all(&row, second.as_ref(), phase, &with, without.as_ref());
    let cell = Cell {
        row: title(&planned),
        phase,
        complaints,
        with,
        without,
        took: since.elapsed(),
    };
    super::book::account(&cell);
    cell
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
    played.found_before = match with_shim && phase != Phase::ColdStart {
        true => stage
            .findings()
            .await
            .unwrap_or_default()
            .into_iter()
            .collect(),
        false => BTreeSet::new(),
    };
    // --- the fault
    let ready = second.map_or(row.ready, |second| row.ready.and(second.ready));
    let looking = (with_shim && ready != Ready::Unasked).then(|| Looking::start(stage.admin()));
    played.injected = Some(Instant::now());
    (row.inject)(&stage).await;
    if let Some(second) = second {
        tokio::time::sleep(Duration::from_millis(300)).await;
        (second.inject)(&stage).await;
    }
    let since = Instant::now();
    played.struck = Some(since);
    if phase == Phase::ColdStart {
        begin(&stage).await;
    }
    if with_shim {
        told_of_fault(&stage, ready, phase, &mut played).await;
        if stage.get("/livez").await.is_some() {
            named(&stage, &row::telling(row, second), &mut played).await;
        }
    }
    played.settled = Some(Instant::now());
    tokio::time::sleep(row.lasts.saturating_sub(since.elapsed())).await;
    if stage.shim_runs().await {
        let true_of = judge::true_of(row, second, phase);
        found(&stage, &true_of, &mut played).await;
    }
    played.looks = looking.map(Looking::stop).unwrap_or_default();
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
    if with_shim {
        failed_loads_are_named(&stage, &mut played).await;
        nothing_left(&stage, true_in(phase), &mut played).await;
    }
    if phase == Phase::ColdStart && with_shim {
        // It had nothing before: what it is to come back to is what it holds now.
        warm(&stage).await;
        played.before = stage.shim.lock().await.as_ref().map(|shim| shim.held());
    }
    if phase != Phase::ColdStart && with_shim {
        let all = stage.scheduler.subscribes();
        played.subscribes = all.len() - subscribes;
        // The tight loop's carry nothing.
        let wrong = |total: &&u64| **total != stage.total() && **total != 0;
        if let Some(wrong) = all.iter().find(wrong) {
            played.complain(format!("the scheduler was told of {wrong} bytes"));
        }
    }
    // --- calm: as soon as there are callers where none has met the fault; where they have, from when
    // those calls are over, which may be long after it.
    let mended = Instant::now();
    if load.is_none() {
        load = Some(Load::start(stage.targets(), &stage.ledger));
        tokio::time::sleep(Duration::from_millis(200)).await;
        played.calm = Some(Instant::now());
    }
    let late = second.map_or(row.late, |second| row.late.max(second.late));
    let limit = promised(3.0) + late;
    let over = until(limit, async || stage.ledger.is_over(mended)).await;
    if with_shim && over.is_none() {
        played.complain("some callers are not served again");
    }
    played.calm.get_or_insert_with(Instant::now);
    tokio::time::sleep(Duration::from_secs(1)).await;
    if let Some(load) = load {
        load.stop(limit).await;
    }
    played.stopped = Some(Instant::now());
    if phase == Phase::Draining && with_shim {
        match drain.join_next().await {
            Some(Ok(Some(200))) => {}
            _ if !row.drains => {}
            other => played.complain(format!("/drain was answered {other:?}, not 200")),
        }
    }
    if with_shim {
        end(&stage, row, &mut played).await;
    }
    played.calls = stage.ledger.calls();
    played.received = stage.server.received();
    played.loads = stage.server.loads();
    played.unasked = stage.ledger.all_unasked();
    played.messages = stage.scheduler.messages();
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
