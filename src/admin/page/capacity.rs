//! Memory as one bar: what was requested, observed, reported, is believed and is used.

use maud::{Markup, html};

use super::Page;
use super::text::{Mark, gib, grouped, icon};

/// One figure of the bar.
struct Figure {
    key: &'static str,
    title: &'static str,
    means: &'static str,
    bytes: Option<u64>,
}

/// How far right the largest figure stands, so that its mark is not cut.
const FULL: f64 = 98.0;

impl Page<'_> {
    pub(super) fn capacity(&self) -> Markup {
        let c = &self.doc.capacity;
        let figure = |key, title, means, bytes| Figure {
            key,
            title,
            means,
            bytes,
        };
        let figures = [
            figure(
                "requested",
                "Requested",
                "the agent asked for it",
                c.requested,
            ),
            figure("observed", "Observed", "was measured here", c.observed),
            figure("reported", "Reported", "the scheduler was told", c.reported),
            figure("believed", "Believed", "the scheduler answered", c.believed),
            figure("used", "Used", "the server's processes hold it now", c.used),
        ];
        let free = [
            ("Free, as told", c.available),
            ("Free, as believed", c.available_believed),
            ("Used by the cgroup, page cache included", c.cgroup_used),
        ];
        let max = figures.iter().filter_map(|f| f.bytes).max().unwrap_or(0);
        html! {
            section #capacity aria-labelledby="capacity-head" {
                h2 #capacity-head { "Capacity" }
                @if max == 0 {
                    p .empty { "No memory figure is known yet: the agent has not subscribed through the shim, and nothing was measured." }
                } @else {
                    (bar(&figures, max))
                    table {
                        caption .quiet { "Memory for models" }
                        thead { tr { th scope="col" { "Figure" } th scope="col" .num { "GiB" } th scope="col" .num { "Bytes" } } }
                        tbody {
                            @for f in &figures {
                                tr { th scope="row" { (key(f.key)) (f.title) " " span .means { (f.means) } } (amount(f.bytes)) }
                            }
                            @for (title, bytes) in free {
                                @if bytes.is_some() { tr { th scope="row" { (title) } (amount(bytes)) } }
                            }
                        }
                    }
                }
                @if let (Some(reported), Some(believed)) = (c.reported, c.believed) {
                    @if reported != believed { p .note { (icon(Mark::Warn)) "The scheduler believes in another figure than it was told." } }
                }
                @if let Some(why) = &c.why { p .small { "Reported because: " (self.sentence(why, 400)) } }
                @if !c.sources.is_empty() {
                    details { summary { "Where the observed figure comes from" }
                        table {
                            thead { tr { th scope="col" { "Source" } th scope="col" .num { "GiB" } th scope="col" { "Why" } } }
                            tbody { @for s in c.sources.iter().take(16) {
                                tr { th scope="row" { (self.name(&s.source)) @if s.chosen { " " span .used { "taken" } } }
                                    td .num { (s.bytes.map_or("–".into(), gib)) }
                                    td { (self.sentence(&s.reason, 200)) } }
                            } }
                        }
                    }
                }
            }
        }
    }
}

fn amount(bytes: Option<u64>) -> Markup {
    match bytes {
        Some(bytes) => html! { td .num { (gib(bytes)) } td .num { (grouped(bytes)) } },
        None => html! { td .num { "–" span .quiet { "not known" } } td .num { "–" } },
    }
}

fn part(bytes: u64, max: u64) -> f64 {
    (bytes as f64 / max as f64 * FULL * 100.0).round() / 100.0
}

/// Reported is the bar, used fills it, the others are marks of different shapes.
fn bar(figures: &[Figure; 5], max: u64) -> Markup {
    let told: Vec<String> = figures
        .iter()
        .filter_map(|f| {
            f.bytes
                .map(|bytes| format!("{} {}", f.title.to_lowercase(), gib(bytes)))
        })
        .collect();
    let at = |f: &Figure| f.bytes.map(|bytes| part(bytes, max));
    let [requested, observed, reported, believed, used] = figures;
    html! {
        svg .bar role="img" aria-label=(told.join(", ")) {
            rect .track x="0" y="16" width="100%" height="20" rx="3" {}
            @if let Some(x) = at(reported) { rect .reported x="0" y="16" width={ (x) "%" } height="20" rx="3" { title { "reported" } } }
            @if let Some(x) = at(used) { rect .used x="0" y="20" width={ (x) "%" } height="12" rx="2" { title { "used" } } }
            @for (f, shape) in [(requested, "M0 14l-5-9h10zM0 14v24"), (observed, "M0 38l-5 9h10zM0 14v24"), (believed, "M0 15v22")] {
                @if let Some(x) = at(f) {
                    svg x={ (x) "%" } y="0" overflow="visible" {
                        path .(f.key) d=(shape) { title { (f.key) } }
                        @if f.key == "believed" { circle .believed cx="0" cy="9" r="4" {} }
                    }
                }
            }
        }
    }
}

/// The shape of a figure, for the legend.
fn key(name: &str) -> Markup {
    html! {
        svg .legend viewBox="0 0 16 16" aria-hidden="true" {
            @match name {
                "requested" => { path .requested d="M8 11l-5-9h10zM8 11v4" {} }
                "observed" => { path .observed d="M8 5l-5 9h10zM8 5V1" {} }
                "believed" => { path .believed d="M8 6v9" {} circle .believed cx="8" cy="5" r="4" {} }
                "reported" => { rect .reported x="1" y="3" width="14" height="10" rx="2" {} }
                _ => { rect .used x="1" y="5" width="14" height="6" rx="2" {} }
            }
        }
    }
}
