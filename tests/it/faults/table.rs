//! The table: every row, and the tests that play them. Where the machine lacks a means, the test says
//! which rows were not played.

mod machine;
mod network;
mod pod;
mod scheduler;
mod server;

use super::driver::{Cell, everything, run, run_pairs};
use super::row::{Phase, Row};
use super::{book, show};
use crate::os::means::{Means, alone, has};

/// The rows that need nothing of the machine.
fn everywhere() -> Vec<Row> {
    [server::rows(), scheduler::rows(), pod::rows()].concat()
}

/// Every row of this table.
fn rows() -> Vec<Row> {
    [
        everywhere(),
        network::filtered(),
        network::linked(),
        machine::clock(),
        machine::limits(),
        machine::memory(),
    ]
    .concat()
}

/// The ten worst, of which all pairs are played: what takes the server, the scheduler, the agent or
/// the shim away altogether, or makes one of them lie. The one that obeys nothing while it lasts
/// comes last, so that it strikes second and is healed first.
const WORST: [&str; 10] = [
    "server-killed",
    "server-refuses",
    "server-garbage",
    "server-breaks-off",
    "scheduler-restarted",
    "scheduler-errors",
    "scheduler-wedged",
    "agent-killed",
    "shim-killed",
    "server-wedged",
];

/// All pairs of the worst, 45.
fn pairs() -> Vec<(Row, Row)> {
    let rows = rows();
    let row = |name: &str| {
        *rows
            .iter()
            .find(|r| r.name == name)
            .expect("it is in the table")
    };
    let worst = WORST.map(row);
    let seconds = |i: usize| worst[i + 1..].iter().map(move |second| (worst[i], *second));
    (0..worst.len()).flat_map(seconds).collect()
}

fn all_good(cells: &[Cell]) {
    show::print(cells);
    let bad = cells.iter().filter(|c| !c.complaints.is_empty()).count();
    assert_eq!(
        bad,
        0,
        "of {} cells so many are bad; see above",
        cells.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_survives_what_breaks_beside_it() {
    all_good(&run(&everywhere()).await);
}

/// Every seventh pair; `make faults` plays all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_survives_two_faults_at_once() {
    let step = if everything() { 1 } else { 7 };
    let chosen: Vec<_> = pairs().into_iter().step_by(step).collect();
    all_good(&run_pairs(&chosen).await);
}

#[test]
fn the_shim_survives_packets_that_are_dropped_and_lost() {
    let name = "faults::table::the_shim_survives_packets_that_are_dropped_and_lost";
    alone(name, &[Means::Filter], async {
        all_good(&run(&network::filtered()).await);
    });
}

#[test]
fn the_shim_survives_a_server_that_moves_far_away() {
    let name = "faults::table::the_shim_survives_a_server_that_moves_far_away";
    alone(name, &[Means::Link], async {
        all_good(&run(&network::linked()).await);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_survives_a_clock_that_jumps() {
    if has("the rows of the clock", &[Means::Clock]) {
        all_good(&run(&machine::clock()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_survives_limits_of_the_machine() {
    let means = [Means::Limits, Means::Namespaces];
    if has("the rows of the limits", &means) {
        all_good(&run(&machine::limits()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_survives_a_limit_on_memory() {
    if everything() && has("the rows of memory", &[Means::Memory]) {
        all_good(&run(&machine::memory()).await);
    }
}

/// Nothing is left out in silence.
#[test]
fn every_row_plays_every_phase_and_demands_a_finding_or_says_why_not() {
    let rows = rows();
    for (n, row) in rows.iter().enumerate() {
        let all = row.played(true).len() == Phase::ALL.len();
        assert_eq!(all, row.unplayed.is_empty(), "{}: phases", row.name);
        assert_eq!(
            row.findings.is_empty(),
            !row.nameless.is_empty(),
            "{}: finding",
            row.name
        );
        assert!(
            !row.words.is_empty() && !row.fault.is_empty(),
            "{}",
            row.name
        );
        assert!(
            rows[..n].iter().all(|other| other.name != row.name),
            "{} twice",
            row.name
        );
    }
    assert_eq!(pairs().len(), 45);
}

/// `FAULTS_WRITE=1` writes the table instead, and with the folder of a run (`FAULTS_BOOK`) what came of it.
#[test]
fn the_matrix_in_the_documentation_is_this_table() {
    book::documented(&rows(), &WORST);
}
