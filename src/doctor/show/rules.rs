//! The table of rules as it stands in docs/diagnosis.md.

use std::fmt::Write as _;

use crate::doctor::rule::{Link, Need, Rule};
use crate::doctor::rules;

/// Where the generated part begins and ends in the document.
pub const MARKERS: [&str; 2] = [
    "<!-- rules: made by `agent-shim doctor --rules-markdown`, do not edit -->",
    "<!-- end of rules -->",
];

/// Symptom to rule, then every rule in the order of the chain.
pub fn markdown() -> String {
    let mut all: Vec<&Rule> = rules::all().collect();
    all.sort_by_key(|rule| rule.link);
    let mut out = String::from(
        "## By the line that you see\n\n| line | rules, the earlier in the chain first |\n|---|---|\n",
    );
    let mut lines: Vec<(&str, Vec<&Rule>)> = Vec::new();
    for rule in &all {
        for line in rule.symptoms {
            match lines.iter_mut().find(|(known, _)| known == line) {
                Some((_, rules)) => rules.push(rule),
                None => lines.push((line, vec![rule])),
            }
        }
    }
    lines.sort_by_key(|(line, _)| line.to_ascii_lowercase());
    for (line, rules) in lines {
        let rules: Vec<String> = rules
            .iter()
            .map(|r| {
                format!(
                    "[{}](#{}-{}) {}",
                    r.id,
                    r.id.to_ascii_lowercase(),
                    r.name,
                    r.title
                )
            })
            .collect();
        let _ = writeln!(
            out,
            "| `{}` | {} |",
            line.replace('|', "\\|"),
            rules.join("; ")
        );
    }
    out.push_str("\n## The rules\n");
    for link in Link::ALL {
        for rule in all.iter().filter(|r| r.link == link) {
            let needs: Vec<&str> = rule.needs.iter().map(|n| Need::title(*n)).collect();
            let _ = write!(
                out,
                "\n### {} {}\n\n{}. Link: {}.",
                rule.id,
                rule.name,
                capital(rule.title),
                rule.link.title()
            );
            if !needs.is_empty() {
                let _ = write!(out, " Needs {}.", needs.join(", "));
            }
            if !rule.rules_out.is_empty() {
                let _ = write!(out, " Rules out `{}`.", rule.rules_out.join("`, `"));
            }
            let _ = writeln!(out, "\n\nFix: {}.", rule.fix);
        }
    }
    out
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}
