//! What the doctor reads with `--kube` and from the shim's own `/status`: a kubeconfig, the API
//! server's answers, a status document.

use agent_shim::admin::status::Document;
use agent_shim::doctor::evidence::Evidence;
use agent_shim::fuzzing;
use serde_json::Value;

use super::scheduler::diagnosed;

/// Answers to all questions in their order, each of them JSON; as a whole also a kubeconfig and a
/// status document.
pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    kubeconfig(&text);
    let answers: Vec<Value> = super::parts(&text)
        .map(|part| serde_json::from_str(part).unwrap_or_default())
        .take(15)
        .collect();
    let status = serde_json::from_str::<Document>(&text).ok();
    if status.is_none() && answers.iter().all(Value::is_null) {
        return;
    }
    diagnosed(&Evidence {
        status,
        kube: Some(fuzzing::kubernetes(&answers)),
        ..Evidence::default()
    });
}

fn kubeconfig(text: &str) {
    match fuzzing::kubeconfig(text) {
        Ok(value) => {
            let (depth, size) = measured(&value);
            assert!(depth <= 34, "{depth}");
            // A scalar in double quotes may say `\L` for three bytes.
            assert!(size <= 3 * text.len(), "{size} bytes out of {}", text.len());
        }
        Err(why) => assert!(why.len() < 100, "no text is shown: {why}"),
    }
    if let Ok(json) = serde_json::from_str::<Value>(text)
        && let Ok(value) = fuzzing::kubeconfig(text)
        && plain(text)
        && let Some(json) = in_words(json)
    {
        assert_eq!(value, json, "JSON is YAML");
    }
}

/// Whether JSON means the same to both: tabs, escapes and very long keys aside.
fn plain(text: &str) -> bool {
    text.len() < 1000
        && text
            .bytes()
            .all(|b| (b' '..=b'~').contains(&b) && b != b'\\' && b != b'-' && b != b'?')
}

/// `None` where a number may be written in two ways.
fn in_words(value: Value) -> Option<Value> {
    Some(match value {
        Value::Number(number) if number.is_f64() => return None,
        Value::Bool(_) | Value::Number(_) => Value::String(value.to_string()),
        Value::Array(all) => all.into_iter().map(in_words).collect::<Option<_>>()?,
        Value::Object(all) => {
            let all = all
                .into_iter()
                .map(|(key, value)| Some((key, in_words(value)?)));
            Value::Object(all.collect::<Option<_>>()?)
        }
        other => other,
    })
}

fn measured(value: &Value) -> (usize, usize) {
    match value {
        Value::Array(all) => all
            .iter()
            .map(measured)
            .fold((1, 0), |a, b| (a.0.max(b.0 + 1), a.1 + b.1)),
        Value::Object(all) => all
            .iter()
            .map(|(key, value)| {
                let (depth, size) = measured(value);
                (depth, size + key.len())
            })
            .fold((1, 0), |a, b| (a.0.max(b.0 + 1), a.1 + b.1)),
        Value::String(text) => (1, text.len()),
        _ => (1, 0),
    }
}
