//! Shows what came of the matrix.

use super::driver::{Cell, Ready, Row, factor};

pub fn print(cells: &[Cell]) {
    eprintln!("promises times {:.1}", factor());
    for cell in cells {
        let seconds = |d: Option<std::time::Duration>| {
            d.map_or("-".to_string(), |d| format!("{:.1}", d.as_secs_f64()))
        };
        eprintln!(
            "{:26} {:10} {:4} not ready after {:>4} s, ready again after {:>4} s, served {:4}, lost {:3} (without: {:3}), {:.0} s",
            cell.row,
            cell.phase.name(),
            if cell.complaints.is_empty() {
                "good"
            } else {
                "BAD"
            },
            seconds(cell.told[0]),
            seconds(cell.told[1]),
            cell.served,
            cell.lost[0],
            cell.lost[1],
            cell.took.as_secs_f64(),
        );
    }
    for cell in cells.iter().filter(|c| !c.complaints.is_empty()) {
        eprintln!("{} / {}:", cell.row, cell.phase.name());
        for complaint in &cell.complaints {
            eprintln!("    {complaint}");
        }
    }
}

/// The table for people: rows, phases and what is expected, nothing that was measured.
pub fn markdown(rows: &[Row], worst: &[&str]) -> String {
    let mut out = String::from(
        "| row | fault | phases | readiness | finding | what callers and scheduler get |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let phases: Vec<_> = row.phases.iter().map(|p| p.name()).collect();
        let ready = match row.expect.ready {
            Ready::Stays => "stays",
            Ready::Goes => "goes",
            Ready::GoesAfterGrace => "goes after the grace",
            Ready::Recovers => "is back while it lasts",
            Ready::Unasked => "of the new process",
        };
        let findings = match row.expect.findings {
            [] => "none".to_string(),
            all => all.join(" or "),
        };
        let (name, fault, words) = (row.name, row.fault, row.expect.words);
        let phases = phases.join(", ");
        out += &format!("| `{name}` | {fault} | {phases} | {ready} | {findings} | {words} |\n");
    }
    let worst: Vec<_> = worst.iter().map(|name| format!("`{name}`")).collect();
    out + &format!(
        "\nThe ten worst, of which all pairs are played: {}.\n",
        worst.join(", ")
    )
}
