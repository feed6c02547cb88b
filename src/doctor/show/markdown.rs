//! For a ticket.

use std::fmt::Write as _;

use super::text::{clean, headline, ids, reasons};
use crate::doctor::engine::{Diagnosis, Finding, Standing};

/// The whole. Writing to a string cannot fail.
pub fn shown(d: &Diagnosis) -> String {
    let mut out = format!("## agent-shim doctor\n\n**{}**\n\n", inline(&headline(d)));
    out.push_str("| | link | |\n|---|---|---|\n");
    for report in &d.chain {
        let found = d.findings().find(|f| report.rules.contains(&f.rule));
        let (mark, words) = match (report.standing, found) {
            (Standing::Fine, _) => ("✓", report.fine.join("; ")),
            (Standing::Warning, Some(f)) => ("!", format!("{} ({})", f.title, f.rule)),
            (Standing::Affected, Some(f)) => ("–", format!("{} (follows)", f.title)),
            (_, Some(f)) => ("✗", format!("{} ({})", f.title, f.rule)),
            (_, None) => continue,
        };
        let _ = writeln!(
            out,
            "| {mark} | {} | {} |",
            report.link.title(),
            cell(&words)
        );
    }
    if let Some(first) = &d.first {
        out.push_str("\n### The first thing that is broken\n\n");
        finding(&mut out, first);
    }
    if !d.follows.is_empty() {
        out.push_str("\n### What follows from it\n\n");
        for f in &d.follows {
            let _ = writeln!(out, "- {} `{}`: {}", f.rule, f.name, inline(&f.text));
        }
    }
    for (title, list) in [
        ("Broken as well, and not by it", &d.also),
        ("Works now, and is worth a look", &d.warnings),
    ] {
        if !list.is_empty() {
            let _ = writeln!(out, "\n### {title}\n");
            for f in list {
                finding(&mut out, f);
            }
        }
    }
    if !d.unchecked.is_empty() {
        out.push_str("\n### Could not check\n\n");
        for one in reasons(d) {
            let _ = writeln!(
                out,
                "- {}: {} ({})",
                inline(&one.what),
                inline(&one.why),
                ids(&one.rules)
            );
        }
    }
    out
}

fn finding(out: &mut String, f: &Finding) {
    let _ = writeln!(out, "**{} `{}`**: {}\n", f.rule, f.name, inline(&f.text));
    for line in &f.evidence {
        let _ = writeln!(out, "- seen: {}", code(line));
    }
    let _ = writeln!(out, "- fix: {}", code(&f.fix));
}

/// Text of others in a line of Markdown: it must not become a heading, a link or a tag.
fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in clean(text).chars() {
        if matches!(
            c,
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|'
        ) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn cell(text: &str) -> String {
    inline(text)
}

/// As code, with a fence that is longer than any in it.
fn code(text: &str) -> String {
    let text = clean(text);
    let runs = text.split(|c| c != '`').map(str::len);
    match runs.max().unwrap_or(0) {
        0 => format!("`{text}`"),
        longest => {
            let fence = "`".repeat(longest.max(2) + 1);
            format!("{fence} {text} {fence}")
        }
    }
}
