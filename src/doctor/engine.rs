//! Applies the table to the evidence. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::evidence::Evidence;
use super::rule::{Found, Kind, Link, Rule, Severity, Verdict};

/// A finding, with the rule that it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `AS` and three digits.
    pub rule: String,
    /// The rule's name.
    pub name: String,
    /// Where in the chain it is.
    pub link: Link,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in general.
    pub title: String,
    /// What is wrong here.
    pub text: String,
    /// The exact line of YAML or the command.
    pub fix: String,
    /// What was seen.
    pub evidence: Vec<String>,
}

/// How a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Nothing is wrong with it.
    Fine,
    /// It works now, with a warning.
    Warning,
    /// A cause is here.
    Broken,
    /// It does not work because of something earlier.
    Affected,
    /// It could not be checked, or only in part and nothing good is known.
    Unknown,
}

/// One link of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Which.
    pub link: Link,
    /// How it stands.
    pub standing: Standing,
    /// What is fine there, in sentences.
    pub fine: Vec<String>,
    /// Rules that found something there.
    pub rules: Vec<String>,
}

/// Something that could not be checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unchecked {
    /// What.
    pub what: String,
    /// Why not.
    pub why: String,
    /// Rules that are unknown for it.
    pub rules: Vec<String>,
}

/// The whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing is broken, as far as could be checked.
    Healthy,
    /// Something is.
    Finding,
    /// Neither the shim nor the scheduler could be asked.
    Unchecked,
}

/// What is fine, what is broken, what follows, what could not be checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// In one word.
    pub outcome: Outcome,
    /// The model that was asked about.
    pub model: Option<String>,
    /// The chain, in the order of cause; links of which nothing is known are left out.
    pub chain: Vec<LinkReport>,
    /// The first thing that is broken.
    pub first: Option<Finding>,
    /// What follows from it.
    pub follows: Vec<Finding>,
    /// Other faults, which stay when the first is mended, in the order of cause.
    pub also: Vec<Finding>,
    /// What works now and may not tomorrow.
    pub warnings: Vec<Finding>,
    /// What could not be checked.
    pub unchecked: Vec<Unchecked>,
}

impl Diagnosis {
    /// Every finding, in the order in which they are shown.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        let broken = self.first.iter().chain(&self.follows).chain(&self.also);
        broken.chain(&self.warnings)
    }
}

/// Applies a table; the order of its rules counts within a link.
pub fn diagnose<'a>(evidence: &Evidence, table: impl IntoIterator<Item = &'a Rule>) -> Diagnosis {
    let mut judged: Vec<(&Rule, Verdict)> = Vec::new();
    let mut unchecked: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for rule in table {
        let missing = rule
            .needs
            .iter()
            .find_map(|need| Some((need.title().to_string(), evidence.missing(*need)?)));
        let unknown = match missing {
            Some(both) => both,
            None => match (rule.check)(evidence) {
                Verdict::Unknown(why) => (format!("whether {}", rule.title), why),
                verdict => {
                    judged.push((rule, verdict));
                    continue;
                }
            },
        };
        unchecked.entry(unknown).or_default().push(rule.id.into());
    }
    judged.sort_by_key(|(rule, _)| rule.link);
    silence_the_less_clear(&mut judged);

    let mut chain = chain(&judged);
    let mut diagnosis = Diagnosis {
        outcome: Outcome::Healthy,
        model: evidence.asked_model.clone(),
        chain: Vec::new(),
        first: None,
        follows: Vec::new(),
        also: Vec::new(),
        warnings: Vec::new(),
        unchecked: Vec::new(),
    };
    for (rule, verdict) in judged {
        let Verdict::Found(found) = verdict else {
            continue;
        };
        let effect = rule.kind == Kind::Effect && diagnosis.first.is_some();
        let finding = finding(rule, found);
        match finding.severity {
            Severity::Warning => diagnosis.warnings.push(finding),
            Severity::Broken if effect => diagnosis.follows.push(finding),
            Severity::Broken if diagnosis.first.is_none() => diagnosis.first = Some(finding),
            Severity::Broken => diagnosis.also.push(finding),
        }
    }
    let only_affected = |report: &LinkReport| {
        let is_cause = |f: &Finding| report.rules.contains(&f.rule);
        !diagnosis.first.iter().chain(&diagnosis.also).any(is_cause)
    };
    for report in &mut chain {
        if report.standing == Standing::Broken && only_affected(report) {
            report.standing = Standing::Affected;
        }
    }
    let blind = evidence.status.is_none() && evidence.scheduler.is_none();
    diagnosis.outcome = match (&diagnosis.first, blind) {
        (Some(_), _) => Outcome::Finding,
        (None, true) => Outcome::Unchecked,
        (None, false) => Outcome::Healthy,
    };
    diagnosis.chain = chain;
    diagnosis.unchecked = unchecked
        .into_iter()
        .map(|((what, why), rules)| Unchecked { what, why, rules })
        .collect();
    diagnosis
}

/// A rule that sees a fault more clearly silences those that see it less clearly.
fn silence_the_less_clear(judged: &mut Vec<(&Rule, Verdict)>) {
    let silenced: Vec<&str> = judged
        .iter()
        .filter(|(_, verdict)| matches!(verdict, Verdict::Found(_)))
        .flat_map(|(rule, _)| rule.rules_out.iter().copied())
        .collect();
    judged.retain(|(rule, verdict)| {
        !(matches!(verdict, Verdict::Found(_)) && silenced.contains(&rule.name))
    });
}

fn chain(judged: &[(&Rule, Verdict)]) -> Vec<LinkReport> {
    let mut chain: Vec<LinkReport> = Vec::new();
    for (rule, verdict) in judged {
        if chain.last().is_none_or(|last| last.link != rule.link) {
            chain.push(LinkReport {
                link: rule.link,
                standing: Standing::Unknown,
                fine: Vec::new(),
                rules: Vec::new(),
            });
        }
        let report = chain.last_mut().expect("one was just put there");
        match verdict {
            Verdict::Clear(text) => {
                if !text.is_empty() && !report.fine.contains(text) {
                    report.fine.push(text.clone());
                }
                if report.standing == Standing::Unknown && !text.is_empty() {
                    report.standing = Standing::Fine;
                }
            }
            Verdict::Found(found) => {
                report.rules.push(rule.id.into());
                let now = match found.severity {
                    Severity::Broken => Standing::Broken,
                    Severity::Warning => Standing::Warning,
                };
                if report.standing != Standing::Broken {
                    report.standing = now;
                }
            }
            Verdict::Unknown(_) => {}
        }
    }
    chain
}

fn finding(rule: &Rule, found: Found) -> Finding {
    Finding {
        rule: rule.id.into(),
        name: rule.name.into(),
        link: rule.link,
        severity: found.severity,
        title: rule.title.into(),
        text: found.text,
        fix: found.fix,
        evidence: found.evidence,
    }
}
