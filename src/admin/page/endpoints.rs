//! The candidates, each with its state and its last probes as a strip.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::super::status::{EndpointStatus, RecentProbes};
use super::Page;
use super::text::{Mark, icon, millis};
use super::verdict::selected;
use crate::history::SLOTS;

/// Candidates that are shown; hosts are configured, so this is a precaution.
const SHOWN: usize = 24;
/// Width of a slot in the strip.
const STEP: usize = 6;
/// Runs that the strip tells to those who do not see it.
const TOLD: usize = 6;

impl Page<'_> {
    pub(super) fn endpoints(&self) -> Markup {
        let all = &self.doc.endpoints;
        html! {
            section #endpoints aria-labelledby="endpoints-head" {
                h2 #endpoints-head { "Endpoints" }
                p .hint { "Where the server may be, in order of preference; the first that answers is used. Each mark of a strip is about one probe interval, the newest on the right: "
                    span .key { svg .strip viewBox="0 0 6 20" aria-hidden="true" { path .ok d="M3 4v12" {} } "ok" } ", "
                    span .key { svg .strip viewBox="0 0 6 20" aria-hidden="true" { path .slow d="M3 1v18" {} } "slow" } ", "
                    span .key { svg .strip viewBox="0 0 6 20" aria-hidden="true" { path .failed d="M1 6l4 8m0-8l-4 8" {} } "failed" } "." }
                ul .cards {
                    @for e in all.iter().take(SHOWN) { (self.endpoint(e)) }
                }
                @if all.len() > SHOWN { p .hint { "and " (all.len() - SHOWN) " more, see " a href="status" { "/status" } } }
            }
        }
    }

    fn endpoint(&self, e: &EndpointStatus) -> Markup {
        let used = selected(self.doc, &e.protocol).is_some_and(|s| s.host == e.host);
        let address = if e.host.contains(':') {
            format!("[{}]:{}", e.host, e.port)
        } else {
            format!("{}:{}", e.host, e.port)
        };
        // A candidate that is not needed is no fault.
        let mark = match Mark::of_state(&e.state) {
            Mark::Bad if e.last_success.is_none() && selected(self.doc, &e.protocol).is_some() => {
                Mark::Off
            }
            mark => mark,
        };
        html! {
            li .ep.(mark.class()) {
                p .line {
                    span .tag { @if e.protocol == "http" { "HTTP" } @else { "gRPC" } }
                    code { (self.name(&address)) }
                    @if used { span .used { "in use" } }
                    span .state { (icon(mark)) (e.state)
                        @if let Some(reason) = &e.reason { ", " (reason) } }
                }
                (self.strip(e))
                p .small {
                    "since " (self.moment(&e.since))
                    @if let (Some(ms), None) = (e.latency_ms, &e.reason) { " · answers in " (millis(ms)) }
                    @if e.server_ready == Some(false) && e.reason.is_none() { " · says it is not ready: a model loads" }
                    @if let (Some(at), Some(_)) = (&e.last_success, &e.reason) { " · last answer " (self.moment(at)) }
                    @if let Some(detail) = e.detail.as_deref().filter(|d| !d.is_empty()) { " · " (self.sentence(detail, 200)) }
                }
            }
        }
    }

    fn strip(&self, e: &EndpointStatus) -> Markup {
        let slots: usize = e.recent.iter().map(|r| r.slots as usize).sum();
        let mut slot = SLOTS.saturating_sub(slots);
        let mut marks = Vec::with_capacity(e.recent.len());
        for run in &e.recent {
            let mut d = String::with_capacity(run.slots as usize * 8);
            for _ in 0..run.slots {
                let x = slot * STEP + STEP / 2;
                slot += 1;
                // Writing to a string cannot fail.
                let _ = match run.outcome.as_str() {
                    "ok" => write!(d, "M{x} 4v12"),
                    "slow" => write!(d, "M{x} 1v18"),
                    _ => write!(d, "M{} 6l4 8m0-8l-4 8", x - 2),
                };
            }
            marks.push((run, d));
        }
        let told: Vec<String> = e.recent.iter().rev().take(TOLD).map(in_short).collect();
        let said = match told.is_empty() {
            true => "no probe yet".into(),
            false => format!("recent probes, newest first: {}", told.join(", ")),
        };
        html! {
            svg .strip viewBox={ "0 0 " (SLOTS * STEP) " 20" } role="img" aria-label=(said) {
                path .base d={ "M0 19.5H" (SLOTS * STEP) } {}
                @for (run, d) in &marks {
                    path class=(run.outcome) d=(d) { title { (self.told(run)) } }
                }
            }
            @if e.recent.len() > 1 {
                details .runs { summary { "Recent probes in words" }
                    ol { @for run in e.recent.iter().rev().take(20) { li { (self.told(run)) } }
                    @if e.recent.len() > 20 { li { "and " (e.recent.len() - 20) " earlier, see /status" } } }
                }
            }
        }
    }

    fn told(&self, run: &RecentProbes) -> String {
        let mut text = format!(
            "{} to {}: {}",
            self.at(&run.from),
            self.at(&run.to),
            in_short(run)
        );
        if let Some(ms) = run.slowest_ms {
            let _ = write!(text, ", slowest {}", millis(ms));
        }
        text
    }
}

fn in_short(run: &RecentProbes) -> String {
    match &run.reason {
        Some(reason) => format!("{} {} ({reason})", run.probes, run.outcome),
        None => format!("{} {}", run.probes, run.outcome),
    }
}
