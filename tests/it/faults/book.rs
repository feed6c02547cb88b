//! What is kept of the matrix: the account of a run, every call and every message of every cell, and the
//! tables of the documentation.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use super::driver::Cell;
use super::judge::Played;
use super::process::variable;
use super::row::{Phase, Ready, Row};
use super::show::{calls, found, verdict};

/// The folder of `FAULTS_BOOK`, where somebody wants the accounts.
fn folder() -> Option<PathBuf> {
    let folder = PathBuf::from(variable("FAULTS_BOOK")?);
    std::fs::create_dir_all(&folder).unwrap();
    Some(folder)
}

/// The account of a cell: every call with its beginning, end, fate and how often the server received
/// it, and every message to the scheduler, with the shim and without. And a line in `cells.tsv`.
pub fn account(cell: &Cell) {
    let Some(folder) = folder() else { return };
    let name = format!("{}.{}", cell.row, cell.phase.name()).replace(' ', "-");
    let mut text = format!("{} {}\n", verdict(cell), found(&cell.with));
    for complaint in &cell.complaints {
        let _ = writeln!(text, "! {complaint}");
    }
    write_down(&mut text, "with the shim", &cell.with);
    if let Some(without) = &cell.without {
        write_down(&mut text, "without the shim", without);
    }
    std::fs::write(folder.join(name), text).unwrap();
    let numbers = |played: &Played| {
        let tally = played.tally();
        format!("{} {}", tally.served, tally.lost())
    };
    let line = format!(
        "{}\t{}\t{}\t{}\t{}\n",
        cell.row,
        cell.phase.name(),
        verdict(cell),
        numbers(&cell.with),
        cell.without.as_ref().map_or(String::new(), numbers),
    );
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(folder.join("cells.tsv"));
    file.unwrap().write_all(line.as_bytes()).unwrap();
}

fn write_down(text: &mut String, title: &str, played: &Played) {
    let _ = writeln!(text, "\n{title}: {}", calls(played));
    let Some(zero) = played.injected else { return };
    // Seconds from the fault; before it they are negative.
    let at = |then: tokio::time::Instant| match then.checked_duration_since(zero) {
        Some(after) => after.as_secs_f64(),
        None => -(zero - then).as_secs_f64(),
    };
    for (what, then) in [
        ("the fault is known", played.settled),
        ("the fault ends", played.healed),
        ("everything is right again", played.calm),
    ] {
        if let Some(then) = then {
            let _ = writeln!(text, "{:+9.3} {what}", at(then));
        }
    }
    for call in &played.calls {
        let times = played.received.get(&call.id).copied().unwrap_or(0);
        let end = call.end.as_ref();
        let end = end.map_or("no end".into(), |(then, fate)| {
            format!("{:+9.3} {fate:?}", at(*then))
        });
        let (id, kind) = (call.id, format!("{:?}", call.kind));
        let _ = writeln!(
            text,
            "{:+9.3} {id:6} {kind:10} {end}, received {times} times",
            at(call.begun)
        );
    }
    for message in &played.messages {
        let _ = writeln!(text, "scheduler told: {}", message.words());
    }
}

/// Writes, or compares, the tables of docs/reliability.md.
pub fn documented(rows: &[Row], worst: &[&str]) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reliability.md");
    let text = std::fs::read_to_string(path).unwrap();
    let table = markdown(rows, worst);
    let (_, block, _) = parts(&text, "fault matrix");
    if variable("FAULTS_WRITE").is_none() {
        assert_eq!(block, table, "write it with FAULTS_WRITE=1");
        return;
    }
    let mut text = with(&text, "fault matrix", &table);
    if let Some(cells) = folder().map(|folder| folder.join("cells.tsv")) {
        let cells = std::fs::read_to_string(cells).unwrap();
        text = with(&text, "fault matrix run", &outcome(rows, worst, &cells));
    }
    std::fs::write(path, text).unwrap();
}

/// The text before a block, the block, and what follows.
fn parts<'a>(text: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let (before, rest) = text.split_once(&begin).unwrap();
    let (block, after) = rest.split_once(&end).unwrap();
    (before, block, after)
}

fn with(text: &str, name: &str, block: &str) -> String {
    let (before, _, after) = parts(text, name);
    format!("{before}<!-- {name}: begin -->\n{block}<!-- {name}: end -->{after}")
}

fn head(columns: &[&str]) -> String {
    format!(
        "| {} |\n|{}\n",
        columns.join(" | "),
        "---|".repeat(columns.len())
    )
}

/// The tables for people: rows, phases and what is expected, nothing that was measured.
fn markdown(rows: &[Row], worst: &[&str]) -> String {
    let mut out = head(&[
        "row",
        "fault",
        "readiness",
        "finding",
        "what callers and scheduler get",
    ]);
    for row in rows {
        let ready = match row.ready {
            Ready::Stays => "stays",
            Ready::Goes => "goes",
            Ready::GoesAfterGrace => "goes after the grace",
            Ready::Recovers => "is back while it lasts",
            Ready::Unasked => "of the new process",
        };
        let findings = match row.findings {
            [] => format!("none: {}", row.nameless),
            all => all.join(" or "),
        };
        let Row {
            name, fault, words, ..
        } = row;
        let _ = writeln!(
            out,
            "| `{name}` | {fault} | {ready} | {findings} | {words} |"
        );
    }
    out += "\nWhich are played in which phase: `x` always, `f` by `make faults`.\n\n";
    let phases = Phase::ALL.iter().map(|phase| phase.name());
    let columns: Vec<_> = std::iter::once("row")
        .chain(phases)
        .chain(["the rest is not, because"])
        .collect();
    out += &head(&columns);
    for row in rows {
        let _ = write!(out, "| `{}` |", row.name);
        for phase in Phase::ALL {
            let mark = match phase {
                phase if row.phases.contains(phase) => "x",
                phase if row.more.contains(phase) => "f",
                _ => "-",
            };
            let _ = write!(out, " {mark} |");
        }
        let _ = writeln!(out, " {} |", row.unplayed);
    }
    let worst: Vec<_> = worst.iter().map(|name| format!("`{name}`")).collect();
    out + &format!(
        "\nThe ten worst, of which all pairs are played: {}.\n",
        worst.join(", ")
    )
}

/// What came of a run: its cells by row and phase, its pairs by one and the other.
fn outcome(rows: &[Row], worst: &[&str], cells: &str) -> String {
    let cells: HashMap<(String, Phase), String> = cells.lines().filter_map(cell).collect();
    let shown = |row: &str, phase: Phase| {
        let said = cells.get(&(row.to_string(), phase));
        said.map_or("-", String::as_str)
    };
    let phases: Vec<_> = Phase::ALL.iter().map(|phase| phase.name()).collect();
    let mut out = head(&[&["row"], phases.as_slice()].concat());
    for row in rows {
        let all: Vec<_> = Phase::ALL
            .iter()
            .map(|phase| shown(row.name, *phase))
            .collect();
        let _ = writeln!(out, "| `{}` | {} |", row.name, all.join(" | "));
    }
    let names: Vec<_> = worst[1..].iter().map(|name| format!("`{name}`")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    out += "\n";
    out += &head(&[&["and"], names.as_slice()].concat());
    for first in &worst[..worst.len() - 1] {
        let pair =
            |second: &&str| shown(&format!("{first} + {second}"), Phase::UnderLoad).to_string();
        let all: Vec<_> = worst[1..].iter().map(pair).collect();
        let _ = writeln!(out, "| `{first}` | {} |", all.join(" | "));
    }
    out
}

/// A line of `cells.tsv` as a cell of the table.
fn cell(line: &str) -> Option<((String, Phase), String)> {
    let fields: Vec<_> = line.split('\t').collect();
    let &[row, phase, verdict, with, without] = fields.as_slice() else {
        return None;
    };
    let numbers = |text: &str| text.replace(' ', "/");
    let mut said = numbers(with);
    if !without.is_empty() {
        let _ = write!(said, " ({})", numbers(without));
    }
    if verdict != "good" {
        said = format!("**bad** {said}");
    }
    let phase = Phase::ALL.iter().find(|p| p.name() == phase)?;
    Some(((row.to_string(), *phase), said))
}
