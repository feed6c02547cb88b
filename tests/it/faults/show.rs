//! Shows what came of the matrix, with the shim and without it, a line a cell.

use std::fmt::Write as _;
use std::time::Duration;

use super::driver::Cell;
use super::judge::Played;
use super::ledger::Tally;
use super::pace::factor;
use super::process::variable;
use super::scheduler::Message;
use crate::os::means::loud;

/// One line a cell, then what is wrong with the bad ones.
pub fn print(cells: &[Cell]) {
    eprintln!("promises times {:.1}", factor());
    for cell in cells {
        let seconds =
            |d: Option<Duration>| d.map_or("-".into(), |d| format!("{:.1}", d.as_secs_f64()));
        eprintln!(
            "{:42} {:10} {:4} readiness told {:>4} s, its end {:>4} s | with the shim: {} | without: {} | {} | {:.0} s",
            cell.row,
            cell.phase.name(),
            verdict(cell),
            seconds(cell.with.told_fault),
            seconds(cell.with.told_healed),
            calls(&cell.with),
            cell.without.as_ref().map_or("not played".into(), calls),
            found(&cell.with),
            cell.took.as_secs_f64(),
        );
    }
    for cell in cells.iter().filter(|c| !c.complaints.is_empty()) {
        loud(&format!("{} / {}:", cell.row, cell.phase.name()));
        for complaint in &cell.complaints {
            loud(&format!("    {complaint}"));
        }
        if variable("FAULTS_LOG").is_some() {
            eprintln!("{}", cell.with.log);
        }
    }
}

pub fn verdict(cell: &Cell) -> &'static str {
    match cell.complaints.is_empty() {
        true => "good",
        false => "BAD",
    }
}

pub fn found(played: &Played) -> String {
    let all: Vec<_> = played.found.iter().map(String::as_str).collect();
    match all.is_empty() {
        true => "nothing found".into(),
        false => all.join(" "),
    }
}

/// A tally in words, what did not happen left out; then what the scheduler was told.
pub fn calls(played: &Played) -> String {
    let Tally { begun, served, .. } = played.tally();
    let tally = played.tally();
    let mut text = format!("{begun} calls, {served} served");
    for (n, what) in [
        (tally.by_shim, "refused by the shim"),
        (tally.by_server, "failed by the server"),
        (tally.broken, "broken off"),
        (tally.not_connected, "not connected"),
        (tally.not_sent, "not sent"),
        (tally.hung, "HUNG"),
    ] {
        if n > 0 {
            let _ = write!(text, ", {n} {what}");
        }
    }
    let count = |of: fn(&Message) -> bool| played.messages.iter().filter(|m| of(m)).count();
    let subscribes = count(|m| matches!(m, Message::Subscribe { .. }));
    let events = count(|m| matches!(m, Message::Event(_)));
    let _ = write!(text, "; {subscribes} Subscribes, {events} events");
    text
}
