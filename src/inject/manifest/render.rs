//! New values as text: in block style, in flow style, and a whole document without anchors.

use saphyr_parser::ScalarStyle;
use serde_json::Value;

use super::scalar;
use super::tree::{Form, Node, name};

/// How a document is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// How far a list's dashes stand behind the key above: 0 or 2.
    pub(super) dashes: usize,
}

fn pad(column: usize) -> String {
    " ".repeat(column)
}

/// A value behind `key:`: a blank and a scalar, or a line break and a block whose column is
/// that of the key.
pub(super) fn behind_key(value: &Value, column: usize, layout: Layout) -> String {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let column = column + 2;
            let lines = block(value, column, layout);
            format!("\n{}{lines}", pad(column))
        }
        Value::Array(list) if !list.is_empty() => {
            let column = column + layout.dashes;
            let lines = block(value, column, layout);
            format!("\n{}{lines}", pad(column))
        }
        _ => format!(" {}", scalar_or_empty(value)),
    }
}

/// An entry of a block map, without the first line's indentation.
pub(super) fn entry(key: &str, value: &Value, column: usize, layout: Layout) -> String {
    let key = scalar::write(&Value::String(key.into()), None);
    format!("{key}:{}", behind_key(value, column, layout))
}

/// An item of a block list, with its dash.
pub(super) fn item(value: &Value, column: usize, layout: Layout) -> String {
    format!("- {}", block(value, column + 2, layout))
}

/// A block, without the first line's indentation.
pub(super) fn block(value: &Value, column: usize, layout: Layout) -> String {
    let lines: Vec<String> = match value {
        Value::Object(map) if !map.is_empty() => map
            .iter()
            .map(|(key, value)| entry(key, value, column, layout))
            .collect(),
        Value::Array(list) if !list.is_empty() => list
            .iter()
            .map(|value| item(value, column, layout))
            .collect(),
        _ => return scalar_or_empty(value),
    };
    lines.join(&format!("\n{}", pad(column)))
}

fn scalar_or_empty(value: &Value) -> String {
    match value {
        Value::Object(_) => "{}".into(),
        Value::Array(_) => "[]".into(),
        value => scalar::write(value, None),
    }
}

/// A value in flow style, as JSON; over several lines where `column` says where they begin.
pub(super) fn flow(value: &Value, column: Option<usize>) -> String {
    let Some(column) = column else {
        return value.to_string();
    };
    let pretty = serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string());
    pretty.replace('\n', &format!("\n{}", pad(column)))
}

/// A document written out: no anchors, no comments, one style. Scalars keep their spelling.
pub(super) fn canonical(node: &Node, text: &str) -> String {
    let mut out = canonical_block(node, text, 0);
    out.push('\n');
    out
}

fn canonical_block(node: &Node, text: &str, column: usize) -> String {
    let break_to = |column| format!("\n{}", pad(column));
    let layout = Layout { dashes: 0 };
    match &node.form {
        Form::Map { entries, .. } if !entries.is_empty() => {
            let mut lines: Vec<String> = Vec::new();
            let Value::Object(map) = &node.value else {
                return block(&node.value, column, layout);
            };
            for (key, value) in map {
                let stated = entries.iter().rfind(|(k, _)| name(k) == *key);
                lines.push(match stated {
                    Some((_, child)) => {
                        let key = scalar::write(&Value::String(key.clone()), None);
                        let nested = |flow_or_empty: bool| !flow_or_empty;
                        match &child.form {
                            Form::Map { entries, .. } if nested(entries.is_empty()) => {
                                let inner = canonical_block(child, text, column + 2);
                                format!("{key}:{}{inner}", break_to(column + 2))
                            }
                            Form::Seq { items, .. } if nested(items.is_empty()) => {
                                let inner = canonical_block(child, text, column);
                                format!("{key}:{}{inner}", break_to(column))
                            }
                            Form::Alias => entry_of(&key, &child.value, column, layout),
                            _ => format!("{key}: {}", canonical_block(child, text, column)),
                        }
                    }
                    // From a merge key.
                    None => entry(key, value, column, layout),
                });
            }
            lines.join(&break_to(column))
        }
        Form::Seq { items, .. } if !items.is_empty() => {
            let lines: Vec<String> = items
                .iter()
                .map(|child| format!("- {}", canonical_block(child, text, column + 2)))
                .collect();
            lines.join(&break_to(column))
        }
        Form::Scalar(ScalarStyle::Plain)
            if !text[node.start..node.end].contains(['\n', '&', '!']) =>
        {
            text[node.start..node.end].trim().to_string()
        }
        Form::Scalar(_) => match &node.value {
            Value::String(value) => scalar::write(
                &Value::String(value.clone()),
                Some(ScalarStyle::DoubleQuoted),
            ),
            value => value.to_string(),
        },
        _ => block(&node.value, column, layout),
    }
}

fn entry_of(key: &str, value: &Value, column: usize, layout: Layout) -> String {
    format!("{key}:{}", behind_key(value, column, layout))
}
