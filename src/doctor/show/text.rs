//! For a person at a terminal: what a good colleague on call would write.

use crate::doctor::engine::{Diagnosis, Finding, LinkReport, Outcome, Standing, Unchecked};

/// Column in which the words of a link begin.
const INDENT: usize = 22;

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

struct Page {
    out: String,
    width: usize,
    colour: bool,
}

/// The whole, wrapped at `width` columns.
pub fn shown(d: &Diagnosis, width: usize, colour: bool) -> String {
    let mut page = Page {
        out: String::new(),
        width,
        colour,
    };
    page.title(d);
    for report in &d.chain {
        page.link(d, report);
    }
    if let Some(first) = &d.first {
        page.heading("The first thing that is broken", RED);
        page.finding(first);
    }
    if !d.follows.is_empty() {
        page.heading("What follows from it", YELLOW);
        for finding in &d.follows {
            page.item(&format!("{} {}", finding.rule, finding.text));
        }
    }
    if !d.also.is_empty() {
        page.heading("Broken as well, and not by it", RED);
        for finding in &d.also {
            page.finding(finding);
        }
    }
    if !d.warnings.is_empty() {
        page.heading("Works now, and is worth a look", YELLOW);
        for finding in &d.warnings {
            page.finding(finding);
        }
    }
    if !d.unchecked.is_empty() {
        page.heading("Could not check", DIM);
        for one in reasons(d) {
            page.item(&format!("{}: {} ({})", one.what, one.why, ids(&one.rules)));
        }
    }
    let lines: Vec<&str> = page.out.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

/// What could not be checked, once for each reason.
pub(super) fn reasons(d: &Diagnosis) -> Vec<Unchecked> {
    let mut all: Vec<Unchecked> = Vec::new();
    for one in &d.unchecked {
        match all.iter_mut().find(|u| u.why == one.why) {
            Some(same) => {
                same.what = format!("{}, {}", same.what, one.what);
                same.rules.extend(one.rules.iter().cloned());
                same.rules.sort();
            }
            None => all.push(one.clone()),
        }
    }
    all
}

/// `AS001, AS002 and 5 more`.
pub(super) fn ids(rules: &[String]) -> String {
    const MOST: usize = 4;
    match rules.len() {
        0..=MOST => rules.join(", "),
        n => format!("{} and {} more", rules[..MOST - 1].join(", "), n - MOST + 1),
    }
}

/// The first line: what it comes to.
pub(super) fn headline(d: &Diagnosis) -> String {
    let of = match &d.model {
        Some(model) => format!(" for model {model}"),
        None => String::new(),
    };
    match d.outcome {
        Outcome::Healthy if d.unchecked.is_empty() => format!("Nothing is broken{of}."),
        Outcome::Healthy => format!("Nothing is broken{of}, as far as could be checked."),
        Outcome::Unchecked => {
            format!("Could not tell{of}: neither the shim nor the scheduler could be asked.")
        }
        Outcome::Finding => {
            let n = 1 + d.also.len();
            let things = if n == 1 { "thing is" } else { "things are" };
            format!("{n} {things} broken{of}.")
        }
    }
}

impl Page {
    fn title(&mut self, d: &Diagnosis) {
        let text = format!("agent-shim doctor: {}", headline(d));
        self.wrapped(&text, 0, 0, BOLD);
        self.out.push('\n');
    }

    fn heading(&mut self, text: &str, colour: &str) {
        if !self.out.ends_with("\n\n") {
            self.out.push('\n');
        }
        let line = self.painted(text, colour);
        self.out.push_str(&line);
        self.out.push('\n');
    }

    fn painted(&self, text: &str, colour: &str) -> String {
        match self.colour {
            true => format!("{BOLD}{colour}{text}{RESET}"),
            false => text.into(),
        }
    }

    fn link(&mut self, d: &Diagnosis, report: &LinkReport) {
        let (mark, colour) = match report.standing {
            Standing::Fine => ("ok", GREEN),
            Standing::Warning => ("!", YELLOW),
            Standing::Broken => ("X", RED),
            Standing::Affected => ("-", YELLOW),
            Standing::Unknown => ("?", DIM),
        };
        let found = d.findings().find(|f| report.rules.contains(&f.rule));
        let words = match (report.standing, found) {
            (Standing::Fine, _) => report.fine.join("; "),
            (Standing::Affected, Some(f)) => format!("{} (follows from the above)", f.title),
            (_, Some(f)) => format!("{} ({})", f.title, f.rule),
            (Standing::Unknown, None) => return,
            (_, None) => String::new(),
        };
        let mark = match self.colour {
            true => format!("{colour}{mark:>2}{RESET}"),
            false => format!("{mark:>2}"),
        };
        self.out.push_str(&format!(
            "{mark}  {:<width$}",
            report.link.title(),
            width = INDENT - 4
        ));
        self.wrapped(&words, INDENT, INDENT, "");
    }

    fn finding(&mut self, f: &Finding) {
        self.wrapped(
            &format!("{} {}: {}", f.rule, f.name, f.text),
            2,
            2 + f.rule.len() + 1,
            "",
        );
        let label = |text: &str| format!("  {text:<9}");
        for (i, line) in f.evidence.iter().enumerate() {
            let lead = label(if i == 0 { "Because:" } else { "" });
            self.out.push_str(&lead);
            self.wrapped(line, lead.len(), lead.len(), "");
        }
        let lead = label("Fix:");
        self.out.push_str(&lead);
        self.wrapped(&f.fix, lead.len(), lead.len(), GREEN);
    }

    fn item(&mut self, text: &str) {
        self.out.push_str("  - ");
        self.wrapped(text, 4, 4, "");
    }

    /// Text from a column on; later lines begin at `indent`. A word that is longer than a line
    /// stays whole: it may be a command or an address.
    fn wrapped(&mut self, text: &str, from: usize, indent: usize, colour: &str) {
        let mut column = from;
        if from > 0 && self.out.ends_with('\n') {
            self.out.push_str(&" ".repeat(from));
        }
        let paint = self.colour && !colour.is_empty();
        if paint {
            self.out.push_str(colour);
        }
        let mut first = true;
        for word in clean(text).split(' ').filter(|w| !w.is_empty()) {
            let length = word.chars().count();
            if !first && column + 1 + length > self.width {
                self.out.push('\n');
                self.out.push_str(&" ".repeat(indent));
                column = indent;
            } else if !first {
                self.out.push(' ');
                column += 1;
            }
            self.out.push_str(word);
            column += length;
            first = false;
        }
        if paint {
            self.out.push_str(RESET);
        }
        self.out.push('\n');
    }
}

/// What others wrote may hold control characters; a terminal would obey them.
pub(super) fn clean(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(shown).collect()
}
