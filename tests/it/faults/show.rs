//! Shows what came of the matrix.

use super::driver::{Cell, factor};

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
            if cell.complaints.is_empty() { "good" } else { "BAD" },
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
