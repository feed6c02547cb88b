//! What the shim says of itself at the end: memory and capabilities, as its `/status` has them.

use std::collections::BTreeSet;

use serde_json::json;

use super::{DECLARED, MODELS};
use crate::admin::status::Document;
use crate::capacity::quantity::shown as bytes;
use crate::demo::stage::Stage;
use crate::demo::story::until;
use crate::demo::tell::Teller;

/// What the shim says of all that. Gives the total that the scheduler believes.
pub(super) async fn tell(teller: &mut Teller, stage: &Stage) -> String {
    teller.step(
        "What the shim says of it",
        &format!(
            "From http://{}/status: what the agent requested, what the shim observed, what it reported, and what the scheduler believes when it is asked.",
            stage.admin()
        ),
    );
    // Read back after the last event, which is a moment ago.
    let settled = |status: &Option<Document>| {
        status.as_ref().is_some_and(|s| {
            let c = &s.capacity;
            c.requested == Some(0)
                && c.believed.is_some()
                && c.believed == c.reported
                && c.available_believed == c.available
        })
    };
    let (status, _) = until(async || stage.status().await, settled).await;
    teller.expect(
        settled(&status),
        "the scheduler believes what it was told, and the shim has read it back",
    );
    let mut believed = "nothing".to_string();
    if let Some(status) = status {
        capacity(teller, &status);
        capabilities(teller, &status);
        believed = shown(status.capacity.believed);
    }
    teller.end();
    believed
}

fn capacity(teller: &mut Teller, status: &Document) {
    let c = &status.capacity;
    let source = c.sources.iter().find(|s| s.chosen);
    let source = source.map_or("nothing", |s| s.source.as_str());
    teller.fact(
        "requested",
        c.requested,
        format!("{}, by the agent", shown(c.requested)),
    );
    teller.fact(
        "observed",
        json!({"bytes": c.observed, "source": source}),
        format!("{}, from the {source}", shown(c.observed)),
    );
    let why = c.why.as_deref().unwrap_or("no reason");
    teller.fact(
        "reported",
        c.reported,
        format!("{}: {why}", shown(c.reported)),
    );
    teller.fact(
        "believed",
        c.believed,
        format!(
            "{}, {} of it free, by the scheduler's own API",
            shown(c.believed),
            shown(c.available_believed)
        ),
    );
    teller.expect(source == "limit", "the figure is the container's limit");
    teller.expect(
        c.observed == Some(4 << 30) && c.reported == c.observed,
        "4Gi are observed and reported",
    );
}

fn capabilities(teller: &mut Teller, status: &Document) {
    let c = &status.capabilities;
    let reported: BTreeSet<&str> = c.reported.iter().map(String::as_str).collect();
    let kept: Vec<String> = c
        .requested
        .iter()
        .filter(|name| reported.contains(name.as_str()))
        .cloned()
        .collect();
    for (name, list) in [
        ("kept", &kept),
        ("added", &c.added),
        ("aliased", &c.aliased),
        ("dropped", &c.dropped),
        ("not installed", &c.missing),
    ] {
        let text = match list.len() {
            0 => "none".to_string(),
            n => format!("{n}: {}", list.join(", ")),
        };
        teller.fact(name, list.clone(), text);
    }
    for (name, requirements, _) in MODELS {
        teller.expect(
            requirements.iter().all(|r| reported.contains(r)),
            format!("all that {name} requires is reported"),
        );
    }
    teller.expect(
        kept == DECLARED && c.dropped.is_empty(),
        "nothing that was declared is gone",
    );
    teller.expect(
        !c.added.is_empty() && !c.aliased.is_empty(),
        "names were added, and other spellings",
    );
    teller.note(
        "What is declared and not installed stays, because a model may bring its own environment; SHIM_CAPABILITIES=strict drops it.",
    );
}

fn shown(figure: Option<u64>) -> String {
    figure.map_or("unknown".to_string(), bytes)
}
