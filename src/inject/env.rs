//! The environment of a container as a manifest states it.

use serde_json::{Value, json};

/// How a variable is stated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stated<'v> {
    /// Not at all, or as an empty text, which the agent takes for unset.
    No,
    /// As a text.
    Text(&'v str),
    /// From elsewhere: the value is not known here.
    From(&'v Value),
}

fn entries(container: &Value) -> &[Value] {
    let list = container.get("env").and_then(Value::as_array);
    list.map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn name(entry: &Value) -> &str {
    entry.get("name").and_then(Value::as_str).unwrap_or("")
}

/// The entry of a name that counts: the last.
pub(super) fn entry<'v>(container: &'v Value, wanted: &str) -> Option<&'v Value> {
    entries(container).iter().rfind(|e| name(e) == wanted)
}

/// How a variable is stated.
pub(super) fn stated<'v>(container: &'v Value, wanted: &str) -> Stated<'v> {
    let Some(entry) = entry(container, wanted) else {
        return Stated::No;
    };
    match (entry.get("value"), entry.get("valueFrom")) {
        (_, Some(from)) if !from.is_null() => Stated::From(from),
        (Some(Value::String(text)), _) if !text.is_empty() => Stated::Text(text),
        _ => Stated::No,
    }
}

/// The text of a variable, where it is known.
pub(super) fn text<'v>(container: &'v Value, wanted: &str) -> Option<&'v str> {
    match stated(container, wanted) {
        Stated::Text(text) => Some(text),
        _ => None,
    }
}

/// Names that stand more than once.
pub(super) fn duplicates(container: &Value) -> Vec<&str> {
    let names: Vec<&str> = entries(container).iter().map(name).collect();
    let mut twice: Vec<&str> = Vec::new();
    for (at, n) in names.iter().enumerate() {
        if names[..at].contains(n) && !twice.contains(n) {
            twice.push(n);
        }
    }
    twice
}

/// A variable with a text.
pub(super) fn variable(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

/// The names that a text refers to as `$(NAME)`.
pub(super) fn references(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        if let Some(escaped) = rest.strip_prefix('$') {
            rest = escaped;
        } else if let Some(inner) = rest.strip_prefix('(')
            && let Some(end) = inner.find(')')
        {
            out.push(&inner[..end]);
            rest = &inner[end + 1..];
        }
    }
    out
}

/// The entries of these names and all that they refer to, in the order of the container, which
/// is the order that Kubernetes expands them in. Only what counts: each name once.
pub(super) fn with_references(container: &Value, names: &[&str]) -> Vec<Value> {
    let mut wanted: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut at = 0;
    while let Some(next) = wanted.get(at).cloned() {
        at += 1;
        if let Stated::Text(text) = stated(container, &next) {
            for name in references(text) {
                if !wanted.iter().any(|w| w == name) && entry(container, name).is_some() {
                    wanted.push(name.to_string());
                }
            }
        }
    }
    let list = entries(container);
    (0..list.len())
        .filter(|&i| wanted.iter().any(|w| w == name(&list[i])))
        .filter(|&i| !list[i + 1..].iter().any(|e| name(e) == name(&list[i])))
        .map(|i| list[i].clone())
        .collect()
}
