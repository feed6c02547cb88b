//! How the story is told: as text in 80 columns while it happens, or as a JSON object a step.

use std::fmt::Display;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::caller::{Answer, seconds};

const WIDTH: usize = 80;
/// Where the text of an answer begins: indent, side, call.
const ANSWERS: usize = 27;
/// Where the text of a fact begins.
const FACTS: usize = 17;

/// Who made a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// A caller that dials the server itself.
    Without,
    /// One that dials the shim.
    With,
}

/// A step as machines read it.
#[derive(Debug, Serialize)]
struct Step {
    step: usize,
    title: String,
    did: String,
    /// When it began, from the start of the demo.
    at_ms: u64,
    took_ms: u64,
    without: Vec<Answer>,
    with: Vec<Answer>,
    facts: Vec<Fact>,
    notes: Vec<String>,
    passed: bool,
    problems: Vec<String>,
}

/// Something that the shim says of itself.
#[derive(Debug, Serialize)]
struct Fact {
    name: &'static str,
    value: Value,
    text: String,
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    situation: &'static str,
    without: String,
    with: String,
}

pub(super) struct Teller {
    json: bool,
    started: Instant,
    step: Option<Step>,
    steps: usize,
    problems: usize,
    table: Vec<Row>,
}

impl Teller {
    pub(super) fn new(json: bool) -> Self {
        Teller {
            json,
            started: Instant::now(),
            step: None,
            steps: 0,
            problems: 0,
            table: Vec::new(),
        }
    }

    /// Says something outside of a step; machines are not told.
    pub(super) fn say(&self, text: &str) {
        if !self.json {
            line(&wrapped("", text, 0));
        }
    }

    /// Begins a step: what it is, and what was done.
    pub(super) fn step(&mut self, title: &str, did: &str) {
        self.steps += 1;
        let at = self.started.elapsed();
        if !self.json {
            let head = format!("{}. {title}", self.steps);
            let time = format!("{:.1} s", at.as_secs_f64());
            line("");
            line(&format!("{head:<70}{time:>10}"));
            line(&wrapped("   ", did, 3));
        }
        self.step = Some(Step {
            step: self.steps,
            title: title.into(),
            did: did.into(),
            at_ms: at.as_millis() as u64,
            took_ms: 0,
            without: Vec::new(),
            with: Vec::new(),
            facts: Vec::new(),
            notes: Vec::new(),
            passed: true,
            problems: Vec::new(),
        });
    }

    /// Tells what a caller got.
    pub(super) fn got(&mut self, side: Side, answer: &Answer) {
        let Some(step) = &mut self.step else { return };
        let (name, answers) = match side {
            Side::Without => ("without", &mut step.without),
            Side::With => ("with", &mut step.with),
        };
        // The side is named once.
        let name = if answers.is_empty() { name } else { "" };
        if !self.json {
            let head = format!("   {name:<10}{:<14}", answer.call);
            let text = format!("{} ({})", answer.answer, milliseconds(answer.ms));
            line(&wrapped(&head, &text, ANSWERS));
        }
        answers.push(answer.clone());
    }

    /// Tells something that the shim says of itself: in words, and as machines want it.
    pub(super) fn fact(&mut self, name: &'static str, value: impl Into<Value>, text: String) {
        let Some(step) = &mut self.step else { return };
        if !self.json {
            line(&wrapped(&format!("   {name:<14}"), &text, FACTS));
        }
        let value = value.into();
        step.facts.push(Fact { name, value, text });
    }

    /// Tells what else was seen.
    pub(super) fn note(&mut self, text: &str) {
        let Some(step) = &mut self.step else { return };
        if !self.json {
            line(&wrapped("   -> ", text, 6));
        }
        step.notes.push(text.into());
    }

    /// Checks the story against what happened.
    pub(super) fn expect(&mut self, holds: bool, what: impl Display) {
        let Some(step) = &mut self.step else { return };
        if holds {
            return;
        }
        if !self.json {
            line(&wrapped("   !! ", &format!("not as told: {what}"), 6));
        }
        step.passed = false;
        step.problems.push(what.to_string());
        self.problems += 1;
    }

    /// Adds a line to the table at the end.
    pub(super) fn row(&mut self, situation: &'static str, without: &str, with: &str) {
        self.table.push(Row {
            situation,
            without: without.into(),
            with: with.into(),
        });
    }

    /// Ends a step.
    pub(super) fn end(&mut self) {
        let Some(mut step) = self.step.take() else {
            return;
        };
        let began = Duration::from_millis(step.at_ms);
        step.took_ms = self.started.elapsed().saturating_sub(began).as_millis() as u64;
        if self.json {
            object(&step);
        }
    }

    /// Tells the end: the table, and where the shim can be asked. True where all went as told.
    pub(super) fn finish(&mut self, admin: SocketAddr, stays: bool) -> bool {
        let took = self.started.elapsed();
        let passed = self.problems == 0;
        let url = format!("http://{admin}");
        if self.json {
            object(&serde_json::json!({
                "summary": {
                    "passed": passed,
                    "steps": self.steps,
                    "problems": self.problems,
                    "took_ms": took.as_millis() as u64,
                    "admin": url,
                    "table": self.table,
                }
            }));
            return passed;
        }
        line("");
        line(&columns("", "without the shim", "with the shim"));
        line(&"-".repeat(WIDTH));
        for row in &self.table {
            line(&columns(row.situation, &row.without, &row.with));
        }
        line("");
        let verdict = match self.problems {
            0 => "All of it went as told".to_string(),
            n => format!("{n} thing(s) did not go as told"),
        };
        line(&format!("{verdict}, in {}.", seconds(took)));
        if stays {
            line("");
            line("The shim stays up until Ctrl-C. Ask it:");
            for path in ["readyz?verbose", "status", "metrics"] {
                line(&format!("   curl '{url}/{path}'"));
            }
            line(&format!("   agent-shim status --admin {url}"));
        }
        passed
    }
}

/// Says what went wrong, on standard error.
pub(super) fn complain(why: &str) {
    // Nobody can be told that nobody listens.
    let _ = writeln!(std::io::stderr(), "agent-shim: {why}");
}

/// One line now; a reader that has left is no fault (`agent-shim demo | head`).
fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn object(value: &impl Serialize) {
    // The values are plain data.
    if let Ok(text) = serde_json::to_string(value) {
        line(&text);
    }
}

fn milliseconds(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// Columns of the table: 26, 24 and the rest.
fn columns(situation: &str, without: &str, with: &str) -> String {
    let cells = [(situation, 25), (without, 23), (with, 28)];
    let split = cells.map(|(text, width)| lines(text, width, width));
    let height = split.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |column: usize, row: usize| split[column].get(row).map_or("", String::as_str);
    let rows: Vec<String> = (0..height)
        .map(|row| {
            let text = format!("{:<26}{:<24}{}", cell(0, row), cell(1, row), cell(2, row));
            text.trim_end().to_string()
        })
        .collect();
    rows.join("\n")
}

/// Text behind a head, with its other lines indented.
fn wrapped(head: &str, text: &str, indent: usize) -> String {
    let room = WIDTH.saturating_sub(indent);
    let begin = WIDTH.saturating_sub(head.len());
    let pad = format!("\n{}", " ".repeat(indent));
    format!("{head}{}", lines(text, begin, room).join(&pad))
}

/// Breaks text at blanks: the first line has `first` columns, the others `room`.
fn lines(text: &str, first: usize, room: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    for word in text.split(' ') {
        let width = if all.len() == 1 { first } else { room };
        let last = all.len() - 1;
        let used = all[last].chars().count();
        if used > 0 && used + 1 + word.chars().count() > width {
            all.push(word.into());
        } else {
            if used > 0 {
                all[last].push(' ');
            }
            all[last].push_str(word);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_at_blanks_and_never_within_words() {
        assert_eq!(lines("aa bb cc", 5, 2), ["aa bb", "cc"]);
        assert_eq!(lines("aaaaaa b", 3, 3), ["aaaaaa", "b"]);
        assert_eq!(lines("", 3, 3), [""]);
        assert_eq!(wrapped("x  ", "a b", 3), "x  a b");
        let long = wrapped("x  ", &"word ".repeat(30), 3);
        assert!(long.lines().all(|l| l.len() <= WIDTH), "{long}");
        assert!(long.lines().skip(1).all(|l| l.starts_with("   word")));
    }

    #[test]
    fn one_thing_not_as_told_fails_the_demo() {
        for (holds, passed) in [(true, true), (false, false)] {
            let mut teller = Teller::new(true);
            teller.step("a step", "something was done");
            teller.expect(holds, "this");
            teller.end();
            assert_eq!(teller.finish(([127, 0, 0, 1], 1).into(), false), passed);
        }
    }

    #[test]
    fn the_table_stays_within_its_columns() {
        let row = columns("a b", &"word ".repeat(9), &"other ".repeat(9));
        assert!(row.lines().all(|l| l.len() <= WIDTH), "{row}");
        assert!(row.lines().nth(1).unwrap().starts_with(&" ".repeat(26)));
    }
}
