//! What the inference server says of itself: JSON of its index and metadata, errors, the probe
//! model's answer; and the small texts of callers of the admin port.

use std::time::Duration;

use agent_shim::capability::table;
use agent_shim::capability::{
    Distribution, Mode, Observation, Policy, Source, check as fits, reconcile,
};
use agent_shim::fuzzing::{drain_limit, probe_model};
use agent_shim::models::{Model, ServerMetadata};
use agent_shim::subscription::hello::Listening;
use agent_shim::worker::canary::Answer;

pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(models) = serde_json::from_slice::<Vec<Model>>(input) {
        let again = serde_json::to_string(&models).expect("an index is JSON");
        assert_eq!(
            serde_json::from_str::<Vec<Model>>(&again).ok(),
            Some(models)
        );
    }
    if let Ok(server) = serde_json::from_slice::<ServerMetadata>(input) {
        let again = serde_json::to_string(&server).expect("metadata are JSON");
        assert_eq!(
            serde_json::from_str::<ServerMetadata>(&again).ok(),
            Some(server)
        );
    }
    assert!(probe_model(&text).is_none_or(|n| n <= text.len()));
    let bound = Duration::from_secs(90);
    if let Some(limit) = drain_limit(&text, bound) {
        assert!(limit <= bound + Duration::from_secs(2), "{limit:?}");
    }
    for (status, plain) in [(200, false), (404, false), (500, true), (500, false)] {
        let answer = Answer::judge(status, plain, Some(text.to_string()));
        assert!(Answer::ALL.contains(&answer.as_str()));
    }
    names(&text);
    first_bytes(input);
}

/// Names of capabilities and of distributions, one a line.
fn names(text: &str) {
    let names: Vec<String> = text.lines().take(20).map(str::to_string).collect();
    for name in &names {
        let normal = table::normalise(name);
        assert_eq!(table::normalise(&normal), normal, "{name:?}");
    }
    let distributions = names.iter().map(|name| Distribution {
        name: table::normalise(name),
        version: String::new(),
    });
    let mut distributions: Vec<Distribution> = distributions.collect();
    distributions.sort();
    distributions.dedup();
    let observation = Observation {
        source: Source::File,
        distributions,
        ..Observation::default()
    };
    let mode = if text.len().is_multiple_of(2) {
        Mode::Add
    } else {
        Mode::Strict
    };
    let list = Vec::new();
    let policy = Policy { mode, list };
    let first = reconcile(&names, &observation, &policy);
    let second = reconcile(&first.reported, &observation, &policy);
    assert_eq!(
        second.reported, first.reported,
        "it is at rest after one turn"
    );
    for name in &names {
        let _ = fits(name, &first.reported);
    }
}

/// Every byte passes through whoever listens for the first ones.
fn first_bytes(input: &[u8]) {
    let (mut stream, heard) = Listening::new(input);
    let mut out = Vec::new();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        let mut room = [0; 5];
        let mut buffer = tokio::io::ReadBuf::new(&mut room);
        let read = tokio::io::AsyncRead::poll_read(
            std::pin::Pin::new(&mut stream),
            &mut context,
            &mut buffer,
        );
        assert!(matches!(read, std::task::Poll::Ready(Ok(()))));
        if buffer.filled().is_empty() {
            break;
        }
        out.extend_from_slice(buffer.filled());
    }
    assert_eq!(out, input);
    use agent_shim::subscription::hello::Heard;
    let expected = match input {
        [0x15 | 0x16, 3, ..] => Heard::Tls,
        [_, _, _, 4, _, _, _, _, _, ..] => Heard::Settings,
        [_, _, _, _, _, _, _, _, _, ..] => Heard::Else,
        _ => Heard::Nothing,
    };
    assert_eq!(*heard.borrow(), expected);
}
