//! `GET /` for people: the status document as one self-contained page.
//!
//! Owns what the page looks like and the headers that it is sent with; what it says comes from the
//! [`Document`] alone, so page and `/status` cannot disagree. Names and reasons come from outside:
//! the template engine escapes every value, [`text`] shows what would hide or reorder. Complete
//! without JavaScript; with it, the page fetches `/?fragment` and takes over what has changed.

use std::cell::Cell;
use std::sync::LazyLock;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::status::Document;

mod capacity;
mod chain;
mod endpoints;
mod sections;
mod text;
mod verdict;

use text::{Mark, icon};
use verdict::Verdict;

const CSS: &str = include_str!("page/page.css");
const JS: &str = include_str!("page/page.js");
const ICONS: &str = include_str!("page/icons.svg");

/// Seconds between two looks of a browser that runs no script.
const REFRESH: u32 = 5;
/// Bytes that the full texts behind shortened names may take, all together.
const TITLES: usize = 48 * 1024;

/// Nothing may be loaded, framed or sent; the page's own style and script are known by their
/// hashes, and the script may only ask where the page came from.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text: &str| STANDARD.encode(digest(&SHA256, text.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(CSS),
        hash(JS)
    );
    HeaderValue::from_str(&policy).expect("base64 is a header value")
});

/// Whether a caller wants the page rather than a line of text: browsers name `text/html`, `curl`
/// and scripts do not.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    let named = headers.get_all(ACCEPT).into_iter();
    let mut ranges = named
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    ranges.any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let html = parts
            .next()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
        let refused = |part: &str| {
            let weight = part.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok());
            weight == Some(0.0)
        };
        html && !parts.any(refused)
    })
}

/// The headers of the page and of its fragment.
pub(super) fn headers() -> [(HeaderName, HeaderValue); 7] {
    let fixed = HeaderValue::from_static;
    [
        (CONTENT_TYPE, fixed("text/html; charset=utf-8")),
        (CACHE_CONTROL, fixed("no-store")),
        (CONTENT_SECURITY_POLICY, POLICY.clone()),
        (X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (X_FRAME_OPTIONS, fixed("DENY")),
        (REFERRER_POLICY, fixed("no-referrer")),
        (VARY, fixed("accept")),
    ]
}

/// What a part of the page is made from.
struct Page<'a> {
    doc: &'a Document,
    /// The document's findings as JSON: of its keys only `rule` and `text` are relied on, so that
    /// a finding of another shape is shown with what it has.
    findings: Vec<Value>,
    now: SystemTime,
    verdict: Verdict,
    /// Bytes that full texts may still take.
    titles: Cell<usize>,
}

impl<'a> Page<'a> {
    fn new(doc: &'a Document, now: SystemTime) -> Self {
        let findings = doc.findings.iter();
        Page {
            doc,
            findings: findings
                .filter_map(|finding| serde_json::to_value(finding).ok())
                .collect(),
            now,
            verdict: verdict::of(doc),
            titles: Cell::new(TITLES),
        }
    }
}

/// The document with every text of it made visible, so that none can reach the page otherwise.
fn readable(doc: &Document) -> Document {
    fn walk(value: &mut Value) {
        match value {
            Value::String(text) => *text = text::visible(text),
            Value::Array(all) => all.iter_mut().for_each(walk),
            Value::Object(all) => all.values_mut().for_each(walk),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(doc).expect("a document is JSON");
    walk(&mut value);
    serde_json::from_value(value).expect("a document with other texts is a document")
}

/// The whole page.
pub(super) fn whole(doc: &Document, now: SystemTime) -> Bytes {
    let doc = &readable(doc);
    let page = Page::new(doc, now);
    let title = format!("{} · agent-shim", page.verdict.word);
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) }
                link #favicon rel="icon" href=(favicon(page.verdict.mark));
                noscript { meta http-equiv="refresh" content=(REFRESH); }
                style { (PreEscaped(CSS)) }
            }
            body {
                (PreEscaped(ICONS))
                a .skip href="#main" { "Skip to the status" }
                header {
                    h1 { "agent-shim" }
                    p #fresh { "as of " (text::clock_time(&text::rfc3339(now))) " UTC" }
                    button #pause type="button" hidden { "Pause updates" }
                    p #stale role="status" {}
                }
                (page.main())
                footer {
                    p {
                        "agent-shim " (doc.build.version) " · " (doc.build.target)
                        noscript { " · this page reloads every " (REFRESH) " s" }
                    }
                    nav aria-label="Other views" {
                        a href="status" { "Status as JSON" }
                        a href="metrics" { "Metrics" }
                        a href="readyz?verbose" { "Readiness" }
                    }
                }
                script { (PreEscaped(JS)) }
            }
        }
    };
    Bytes::from(markup.into_string())
}

/// The part of the page that changes.
pub(super) fn fragment(doc: &Document, now: SystemTime) -> Bytes {
    Bytes::from(Page::new(&readable(doc), now).main().into_string())
}

impl Page<'_> {
    fn main(&self) -> Markup {
        let verdict = &self.verdict;
        html! {
            main #main tabindex="-1"
                data-title={ (verdict.word) " · agent-shim" }
                data-icon=(favicon(verdict.mark))
                data-at=(text::clock_time(&text::rfc3339(self.now)))
                data-build=(self.doc.build.version)
            {
                section #verdict .(verdict.mark.class()) aria-labelledby="verdict-head" {
                    h2 #verdict-head .quiet { "Verdict" }
                    p .word role="status" aria-live="polite" {
                        (icon(verdict.mark))
                        strong { (verdict.word) }
                        span { (verdict.short) }
                    }
                    @if !verdict.long.is_empty() {
                        p .why { (self.sentence(&verdict.long, 600)) }
                    }
                    dl .facts {
                        div { dt { "Since" } dd { (self.moment(&verdict.since)) } }
                        div { dt { "Pod readiness" } dd {
                            @if verdict.pod_ready { (icon(Mark::Good)) "ready" } @else { (icon(Mark::Bad)) "not ready" }
                        } }
                        div { dt { "Mode" } dd {
                            (self.doc.mode)
                            @if self.doc.mode == "observe" { ": nothing is changed on its way" }
                        } }
                        div { dt { "Findings" } dd {
                            @if self.findings.is_empty() { "none" } @else { a href="#findings" { (self.findings.len()) } }
                        } }
                    }
                }
                (self.chain())
                (self.findings())
                div .column {
                    (self.endpoints())
                    (self.conditions())
                    (self.capabilities())
                }
                div .column {
                    (self.capacity())
                    (self.models())
                    (self.transitions())
                }
            }
        }
    }
}

/// A picture of the verdict for the browser's tab.
fn favicon(mark: Mark) -> String {
    let (colour, path) = match mark {
        Mark::Good => ("1a7f45", "M4.5 8.5l2.5 2.5 4.5-5.5"),
        Mark::Warn => ("b26a00", "M8 4v5M8 11v1"),
        Mark::Bad => ("b3261e", "M5 5l6 6M11 5l-6 6"),
        Mark::Busy | Mark::Off => ("68707a", "M4.5 8h7"),
    };
    format!(
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ccircle cx='8' cy='8' r='8' fill='%23{colour}'/%3E%3Cpath d='{path}' fill='none' stroke='white' stroke-width='2'/%3E%3C/svg%3E"
    )
}

#[cfg(test)]
mod tests;
