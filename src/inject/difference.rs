//! In what an object falls short of another.

use std::fmt;

use serde_json::Value;

use super::ORIGINAL;
use super::edit::shown;

/// One place where something is missing or differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Such as `spec.containers[agent].env[SELDON_SERVER_HTTP_PORT].value`.
    pub place: String,
    /// What is there, as compact JSON; `None` where nothing is.
    pub found: Option<String>,
    /// What belongs there, as compact JSON.
    pub expected: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            None => write!(f, "{} is missing", self.place),
            Some(found) => write!(
                f,
                "{} is {}, expected {}",
                self.place,
                short(found),
                short(&self.expected)
            ),
        }
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

/// What of `expected` is not in `found`. What `found` has besides is no difference: the API
/// server fills in defaults.
pub fn differences(found: &Value, expected: &Value) -> Vec<Difference> {
    let mut out = Vec::new();
    compare(Some(found), expected, &mut Vec::new(), &mut out);
    out
}

fn compare(
    found: Option<&Value>,
    expected: &Value,
    place: &mut Vec<String>,
    out: &mut Vec<Difference>,
) {
    let name = |v: &Value| v.get("name").and_then(Value::as_str).map(str::to_string);
    match (found, expected) {
        (Some(Value::Object(there)), Value::Object(wanted)) => {
            for (key, value) in wanted {
                // Says nothing about the pod.
                if key == ORIGINAL {
                    continue;
                }
                place.push(key.clone());
                compare(there.get(key), value, place, out);
                place.pop();
            }
        }
        (Some(Value::Array(there)), Value::Array(wanted))
            if !wanted.is_empty() && wanted.iter().all(|v| name(v).is_some()) =>
        {
            for value in wanted {
                let wanted_name = name(value).unwrap_or_default();
                place.push(format!("={wanted_name}"));
                let same = there
                    .iter()
                    .rfind(|v| name(v).as_ref() == Some(&wanted_name));
                // Of two entries of a name only the later counts.
                let last = wanted
                    .iter()
                    .rfind(|v| name(v).as_ref() == Some(&wanted_name));
                if last.is_some_and(|last| std::ptr::eq(last, value)) {
                    compare(same, value, place, out);
                }
                place.pop();
            }
        }
        (Some(there), wanted) if there == wanted => {}
        (there, wanted) => out.push(Difference {
            place: shown(place),
            found: there.filter(|v| !v.is_null()).map(Value::to_string),
            expected: wanted.to_string(),
        }),
    }
}
