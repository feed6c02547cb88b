//! The lists of the page: findings, capabilities, models, conditions, what changed.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::Page;
use super::text::{Mark, count, fitted, icon};
use super::verdict::is_local;

/// Rows of each list that are shown; `/status` has all of them.
const FINDINGS: usize = 50;
const MODELS: usize = 100;
/// Lines of one finding's evidence, and models that are being restored.
const EVIDENCE: usize = 12;
const RESTORING: usize = 40;
/// Names of each kind: shown at once, and behind a click.
const NAMES: usize = 40;
const MORE_NAMES: usize = 160;
/// Changes that are shown at once; the rest is behind a click.
const CHANGES: usize = 12;
/// Lines of conditions; a precaution.
const CONDITIONS: usize = 32;

fn more(all: usize, shown: usize) -> Markup {
    html! { @if all > shown { p .hint { "and " (all - shown) " more, see " a href="status" { "/status" } } } }
}

impl Page<'_> {
    pub(super) fn findings(&self) -> Markup {
        html! {
            section #findings aria-labelledby="findings-head" {
                h2 #findings-head { "Findings" }
                @if self.findings.is_empty() { p .empty { (icon(Mark::Good)) "Nothing is known to be wrong." } }
                @else { ol .cards {
                    @for finding in self.findings.iter().take(FINDINGS) { (self.finding(finding)) }
                } }
                (more(self.findings.len(), FINDINGS))
            }
        }
    }

    /// Keys beside `rule` and `text` may be there or not.
    fn finding(&self, finding: &serde_json::Value) -> Markup {
        let said = |key: &str| finding[key].as_str().filter(|text| !text.is_empty());
        let (mark, word) = match said("severity") {
            Some("broken") => (Mark::Bad, "broken"),
            Some("warning") => (Mark::Warn, "works, worth a look"),
            _ => (Mark::Warn, "found"),
        };
        let lines = finding["evidence"].as_array().into_iter().flatten();
        let evidence: Vec<&str> = lines.filter_map(|line| line.as_str()).collect();
        html! {
            li .finding {
                p .line {
                    @if let Some(name) = said("name") { strong { (self.name(name)) } }
                    span .tag { (self.name(said("rule").unwrap_or("finding"))) }
                    span .state { (icon(mark)) (word) } }
                p { (self.sentence(said("text").unwrap_or_default(), 800)) }
                @if !evidence.is_empty() { p .small .because { "Because" } ul .evidence {
                    @for line in evidence.iter().take(EVIDENCE) { li { (self.sentence(line, 300)) } } }
                    (more(evidence.len(), EVIDENCE)) }
                @if let Some(fix) = said("fix") { div .fix { p .small { "What to do" } pre tabindex="0" aria-label="What to do" { code { (self.lines(fix)) } } } }
            }
        }
    }

    /// Several lines of text, each made visible for itself.
    fn lines(&self, text: &str) -> Markup {
        html! { @for (i, line) in text.lines().take(40).enumerate() { @if i > 0 { "\n" } (self.sentence(line, 400)) } }
    }

    pub(super) fn capabilities(&self) -> Markup {
        let c = &self.doc.capabilities;
        let kept: Vec<&String> = c
            .requested
            .iter()
            .filter(|name| !c.dropped.contains(name))
            .collect();
        let added: Vec<&String> = c.added.iter().filter(|n| !c.aliased.contains(n)).collect();
        let list = |names: &[String]| -> usize { names.len() };
        html! {
            section #capabilities aria-labelledby="capabilities-head" {
                h2 #capabilities-head { "Capabilities" }
                @if c.requested.is_empty() && c.reported.is_empty() {
                    p .empty { "The agent has not said what it can run: it has not subscribed through the shim." }
                } @else {
                    p .hint { (count(list(&c.requested), "name")) " requested, " (list(&c.reported)) " reported"
                        @if let Some(source) = &c.source { "; what is installed is known from " (source_in_words(source)) @if c.distributions > 0 { " (" (count(c.distributions, "package")) ")" } } "." }
                    (self.chips("Kept", "kept", "✓", &kept))
                    (self.chips("Added", "added", "+", &added))
                    (self.chips("Aliased", "added", "≈", &c.aliased.iter().collect::<Vec<_>>()))
                    (self.chips("Dropped", "dropped", "−", &c.dropped.iter().collect::<Vec<_>>()))
                    (self.chips("Missing: declared and not installed", "missing", "!", &c.missing.iter().collect::<Vec<_>>()))
                }
            }
        }
    }

    fn chips(&self, title: &str, class: &str, sign: &str, names: &[&String]) -> Markup {
        let chip = |name: &str| html! { li { span .sign aria-hidden="true" { (sign) } (self.name(name)) } };
        let (first, rest) = names.split_at(names.len().min(NAMES));
        html! { @if !names.is_empty() {
            h3 { (title) " " span .n { (names.len()) } }
            ul .chips.(class) { @for name in first { (chip(name)) } }
            @if !rest.is_empty() { details { summary { "the other " (rest.len()) }
                ul .chips.(class) { @for name in rest.iter().take(MORE_NAMES) { (chip(name)) } }
                (more(rest.len(), MORE_NAMES)) } }
        } }
    }

    pub(super) fn models(&self) -> Markup {
        let models = &self.doc.models;
        let mut by_state: BTreeMap<&str, usize> = BTreeMap::new();
        for model in models {
            *by_state.entry(model_state(&model.state).2).or_default() += 1;
        }
        let mut sorted: Vec<_> = models.iter().collect();
        sorted.sort_by_key(|m| (model_state(&m.state).0, m.name.as_str(), m.version.as_str()));
        let counts: Vec<String> = by_state
            .iter()
            .map(|(word, n)| format!("{n} {word}"))
            .collect();
        html! {
            section #models aria-labelledby="models-head" {
                h2 #models-head { "Models" }
                @if let Some(server) = &self.doc.server {
                    p .hint { (self.name(&server.metadata.name)) " " (self.name(&server.metadata.version))
                        @if let Some(at) = &server.read_at { ", its repository read " (self.moment(at)) }
                        @if !counts.is_empty() { ": " (counts.join(", ")) } }
                    @if self.verdict.mark == Mark::Bad && !models.is_empty() { p .note { (icon(Mark::Warn)) "The server does not answer: this is what it last said." } }
                    @if let Some(error) = &server.error { p .note { (icon(Mark::Warn)) "The last look failed: " (self.sentence(error, 300)) } }
                }
                (self.restoring())
                @if models.is_empty() {
                    p .empty { @if self.doc.server.is_some() { "The server's repository is empty." } @else { "The server has not been heard yet." } }
                } @else {
                    table {
                        caption .quiet { "Models in the server's repository" }
                        thead { tr { th scope="col" { "Name" } th scope="col" { "Version" } th scope="col" { "State" } } }
                        tbody { @for m in sorted.iter().take(MODELS) {
                            @let (_, mark, word) = model_state(&m.state);
                            tr data-key=(fitted(&m.name, 80)) { th scope="row" { (self.name(&m.name)) } td { @if m.version.is_empty() { "–" } @else { (self.name(&m.version)) } }
                                td { span .state { (icon(mark)) @if word == "other" { (self.name(&m.state)) } @else { (word) } }
                                    @if !m.reason.is_empty() { " " span .means { (self.sentence(&m.reason, 200)) } } } }
                        } }
                    }
                    (more(models.len(), MODELS))
                }
            }
        }
    }

    /// Models that a restart of the server has taken and that are not back.
    fn restoring(&self) -> Markup {
        let all = &self.doc.restoring;
        let words = |stage: &str| match stage {
            "due" => (Mark::Busy, "is to be loaded again"),
            "loading" => (Mark::Busy, "is being loaded again"),
            "given-up" => (Mark::Bad, "could not be loaded again"),
            _ => (Mark::Warn, "is not back"),
        };
        html! { @if !all.is_empty() {
            h3 { "Lost by a restart of the server " span .n { (all.len()) } }
            ul .rows .restoring { @for r in all.iter().take(RESTORING) {
                @let (mark, word) = words(&r.stage);
                li { span .state { (icon(mark)) strong { (self.name(&r.model)) } " " (word) }
                    @if r.failures > 0 { span .small { (count(r.failures as usize, "failed try").replace("trys", "tries")) } }
                    @if let Some(error) = &r.error { p { (self.sentence(error, 300)) } } }
            } }
            (more(all.len(), RESTORING))
        } }
    }

    pub(super) fn conditions(&self) -> Markup {
        html! {
            section #conditions aria-labelledby="conditions-head" {
                h2 #conditions-head { "Conditions" }
                ul .rows {
                    @for c in self.doc.conditions.iter().take(CONDITIONS) {
                        li {
                            span .state { (icon(if c.status { Mark::Good } else if is_local(c) { Mark::Bad } else { Mark::Warn }))
                                strong { (self.name(&c.name)) } " " (if c.status { "holds" } else { "does not hold" }) }
                            span .small { "since " (self.moment(&c.since)) @if !is_local(c) { " · does not decide readiness" } }
                            p { (self.sentence(&c.reason, 400)) }
                        }
                    }
                }
            }
        }
    }

    pub(super) fn transitions(&self) -> Markup {
        let all = &self.doc.transitions;
        let (first, rest) = all.split_at(all.len().min(CHANGES));
        html! {
            section #transitions aria-labelledby="transitions-head" {
                h2 #transitions-head { "What changed" }
                @if all.is_empty() { p .empty { "Nothing yet." } }
                ol .timeline { @for t in first { (self.transition(t)) } }
                @if !rest.is_empty() { details { summary { "the " (rest.len()) " before" }
                    ol .timeline { @for t in rest.iter().take(100) { (self.transition(t)) } } } }
            }
        }
    }

    fn transition(&self, t: &super::super::status::TransitionStatus) -> Markup {
        let mark = match (t.kind.as_str(), t.to.as_str()) {
            // An address that never answered is an alternative that is not in use.
            ("endpoint", "down") if t.from.as_deref() == Some("unknown") => Mark::Off,
            ("endpoint", state) => Mark::of_state(state),
            ("selection", "none") => Mark::Bad,
            ("condition" | "registration", "false") => Mark::Bad,
            _ => Mark::Good,
        };
        let word = |value: &str| match (t.kind.as_str(), value) {
            ("condition" | "registration", "true") => "holds".to_string(),
            ("condition" | "registration", "false") => "does not hold".to_string(),
            (_, other) => other.to_string(),
        };
        html! {
            li data-key={ (t.at) (fitted(&t.subject, 80)) (t.kind) } {
                time datetime=(t.at) { (self.at(&t.at)) }
                div { (icon(mark)) span .tag { (self.name(&t.kind)) } strong { (self.name(&t.subject)) } " "
                    @if let Some(from) = &t.from { span .from { (self.name(&word(from))) } span aria-label="then" { " → " } }
                    span { (self.name(&word(&t.to))) }
                    @if let Some(reason) = &t.reason { p .small { (self.sentence(reason, 240)) } } }
            }
        }
    }
}

/// Where the knowledge of what is installed comes from.
fn source_in_words(source: &str) -> &str {
    match source {
        "explicit" => "SHIM_CAPABILITIES_LIST",
        "file" => "SHIM_CAPABILITIES_FILE",
        "distributions" => "the packages in the server's container",
        "probe-model" => "the server itself, asked through the probe model",
        "declared" => "the agent's declaration alone",
        other => other,
    }
}

/// Order in the table, mark and word of a model's state.
fn model_state(state: &str) -> (u8, Mark, &'static str) {
    match state {
        "READY" => (2, Mark::Good, "ready"),
        "UNAVAILABLE" => (3, Mark::Off, "on disk, not loaded"),
        "UNKNOWN" | "LOADING" => (1, Mark::Busy, "loading"),
        _ => (0, Mark::Warn, "other"),
    }
}
