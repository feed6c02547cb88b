//! Manifests as text: in and out again, byte for byte.

use agent_shim::inject::manifest::{check as missing, inject, remove, values};
use agent_shim::inject::{Options, Style};

/// A byte of options, then a text.
pub fn check(input: &[u8]) {
    let Some((&how, text)) = input.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let options = Options {
        style: if how & 1 == 0 {
            Style::Native
        } else {
            Style::Plain
        },
        drain_hook: how & 2 != 0,
        share_process_namespace: how & 4 != 0,
        agent_watchdog: how & 8 != 0,
        ..Options::default()
    };
    let _ = missing(&text, &options);
    let Ok(done) = inject(&text, &options) else {
        return;
    };
    values(&done.text).expect("what comes out can be read");
    let before = remove(&text, &options).expect("what could be injected can be removed");
    let again = inject(&done.text, &options).expect("what comes out can go in");
    assert_eq!(again.text, done.text, "a second time changes nothing");
    assert!(again.reports.iter().all(|f| !f.report.changed));
    let back = remove(&done.text, &options).expect("what was injected can be removed");
    assert_eq!(back.text, before.text, "the text comes back byte for byte");
    if !done.reports.iter().any(|f| f.report.changed) {
        assert_eq!(done.text, text, "nothing is touched");
    }
    // The log of what was there is a copy of it in JSON, and a hint of the text beside it.
    assert!(done.text.len() <= 16 * text.len() + 32 * 1024);
}
