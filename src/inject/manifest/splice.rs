//! From a document and the value it is to have to the fewest edits of its text.
//!
//! Only adds, replaces and deletes where the values differ; every other byte stays. It may fail
//! to find edits, or find wrong ones where anchors are in play: who uses it reads the result
//! and compares.

use std::ops::Range;

use saphyr_parser::ScalarStyle;
use serde_json::{Map, Value};

use super::render::{self, Layout};
use super::scalar;
use super::tree::{Form, Node, dash, name};

/// Put `text` in place of these bytes.
#[derive(Debug)]
struct Edit {
    range: Range<usize>,
    text: String,
}

/// The text with the value, or `None` where there is no way that keeps the rest.
pub(super) fn apply(text: &str, root: &Node, value: &Value) -> Option<String> {
    let mut splicer = Splicer {
        text,
        layout: Layout {
            dashes: dashes(root, 0).unwrap_or(0),
        },
        edits: Vec::new(),
    };
    splicer.node(root, value)?;
    let mut edits = splicer.edits;
    edits.sort_by_key(|e| (e.range.start, e.range.end));
    let mut out = String::with_capacity(text.len() + 4096);
    let mut at = 0;
    for edit in edits {
        if edit.range.start < at {
            return None;
        }
        out.push_str(&text[at..edit.range.start]);
        out.push_str(&edit.text);
        at = edit.range.end;
    }
    out.push_str(&text[at..]);
    Some(out)
}

/// How the first list below a key is indented.
fn dashes(node: &Node, column: usize) -> Option<usize> {
    match &node.form {
        Form::Seq { flow: false, .. } => Some(node.column.saturating_sub(column).min(4)),
        Form::Map {
            flow: false,
            entries,
        } => entries.iter().find_map(|(_, v)| dashes(v, node.column)),
        _ => None,
    }
}

struct Splicer<'t> {
    text: &'t str,
    layout: Layout,
    edits: Vec<Edit>,
}

impl Splicer<'_> {
    fn edit(&mut self, range: Range<usize>, text: impl Into<String>) {
        self.edits.push(Edit {
            range,
            text: text.into(),
        });
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |n| n + 1)
    }

    /// The end of the line that `at` is on, before its line break.
    fn line_end(&self, at: usize) -> usize {
        let end = self.text[at..]
            .find('\n')
            .map_or(self.text.len(), |n| at + n);
        match self.text[at..end].strip_suffix('\r') {
            Some(_) => end - 1,
            None => end,
        }
    }

    fn line_break(&self) -> &'static str {
        if self.text.contains("\r\n") {
            "\r\n"
        } else {
            "\n"
        }
    }

    fn lines(&self, text: &str) -> String {
        text.replace('\n', self.line_break())
    }

    fn node(&mut self, node: &Node, value: &Value) -> Option<()> {
        if node.value == *value {
            return Some(());
        }
        match (&node.form, value) {
            (Form::Map { flow, entries }, Value::Object(map))
                if !entries.is_empty() && !map.is_empty() =>
            {
                self.map(node, *flow, entries, map)
            }
            (Form::Seq { flow, items }, Value::Array(list))
                if !items.is_empty() && !list.is_empty() =>
            {
                self.seq(node, *flow, items, list)
            }
            (Form::Scalar(style), Value::String(_))
                if !matches!(style, ScalarStyle::Literal | ScalarStyle::Folded)
                    && node.start < node.end =>
            {
                self.edit(node.start..node.end, scalar::write(value, Some(*style)));
                Some(())
            }
            // Of another shape: the caller knows where it begins.
            _ => None,
        }
    }

    /// The value behind a key of a block map, whatever it was.
    fn replace_behind(
        &mut self,
        key: &Node,
        node: &Node,
        value: &Value,
        column: usize,
    ) -> Option<()> {
        let colon = key.end + self.text[key.end..].find(':')? + 1;
        let end = node.end.max(colon);
        let text = self.lines(&render::behind_key(value, column, self.layout));
        self.edit(colon..end, text);
        Some(())
    }

    fn map(
        &mut self,
        node: &Node,
        flow: bool,
        entries: &[(Node, Node)],
        map: &Map<String, Value>,
    ) -> Option<()> {
        let stated = |key: &str| entries.iter().rfind(|(k, _)| name(k) == key);
        let old = node.value.as_object()?;
        let mut gone: Vec<&String> = old.keys().filter(|k| !map.contains_key(*k)).collect();
        let mut new: Vec<(&String, &Value)> = Vec::new();
        for (key, value) in map {
            match (old.get(key), stated(key)) {
                (Some(there), _) if there == value => {}
                (Some(_), Some((k, child))) => {
                    let mark = self.edits.len();
                    if self.node(child, value).is_none() {
                        self.edits.truncate(mark);
                        if flow {
                            self.edit(child.start..child.end, render::flow(value, None));
                        } else {
                            self.replace_behind(k, child, value, node.column)?;
                        }
                    }
                }
                // From a merge key, or new: stated here, it counts.
                _ => new.push((key, value)),
            }
        }
        // One key instead of another takes its place.
        while !gone.is_empty() && !new.is_empty() {
            let (k, child) = stated(gone.remove(0))?;
            let (key, value) = new.remove(0);
            let end = child.end.max(k.end + 1);
            let text = if flow {
                format!("{}: {}", scalar::double(key), render::flow(value, None))
            } else {
                self.lines(&render::entry(key, value, node.column, self.layout))
            };
            self.edit(k.start..end, text);
        }
        for key in gone {
            let at = entries.iter().rposition(|(k, _)| name(k) == *key)?;
            let spans: Vec<Range<usize>> = entries
                .iter()
                .map(|(k, v)| k.start..v.end.max(k.end + 1))
                .collect();
            self.delete(flow, &spans, at)?;
        }
        if !new.is_empty() {
            let (last_key, last) = entries.last()?;
            let end = last.end.max(last_key.end + 1);
            if flow {
                let several = self.flow_column(node, last_key.start);
                for (key, value) in new {
                    let value = render::flow(value, several);
                    self.flow_add(end, several, &format!("{}: {value}", scalar::double(key)));
                }
            } else {
                for (key, value) in new {
                    let text = render::entry(key, value, node.column, self.layout);
                    self.block_add(end, node.column, &text);
                }
            }
        }
        Some(())
    }

    fn seq(&mut self, node: &Node, flow: bool, items: &[Node], list: &[Value]) -> Option<()> {
        let keys_old: Vec<String> = keys(items.iter().map(|n| &n.value));
        let keys_new: Vec<String> = keys(list.iter());
        let spans: Vec<Range<usize>> = items
            .iter()
            .map(|n| {
                let start = if flow {
                    n.start
                } else {
                    dash(self.text, n.start)
                };
                start..n.end.max(start + 1)
            })
            .collect();
        for (at, key) in keys_old.iter().enumerate() {
            if !keys_new.contains(key) {
                self.delete(flow, &spans, at)?;
            }
        }
        let mut last = 0;
        for (key, value) in keys_new.iter().zip(list) {
            match keys_old.iter().position(|k| k == key) {
                Some(at) if at < last => return None,
                Some(at) => {
                    last = at;
                    if self.node(&items[at], value).is_none() {
                        let text = if flow {
                            render::flow(value, None)
                        } else {
                            self.lines(&render::block(value, node.column + 2, self.layout))
                        };
                        self.edit(items[at].start..items[at].end, text);
                    }
                }
                // Only at the end is anything ever added.
                None => {
                    last = items.len();
                    let end = spans.last()?.end;
                    if flow {
                        let several = self.flow_column(node, items[0].start);
                        self.flow_add(end, several, &render::flow(value, several));
                    } else {
                        let text = render::item(value, node.column, self.layout);
                        self.block_add(end, node.column, &text);
                    }
                }
            }
        }
        Some(())
    }

    /// New lines after the one that `end` is on.
    fn block_add(&mut self, end: usize, column: usize, text: &str) {
        let at = self.line_end(end);
        let text = self.lines(&format!("\n{}{text}", " ".repeat(column)));
        self.edit(at..at, text);
    }

    /// The column of a flow collection's entries, where it stands on several lines.
    fn flow_column(&self, node: &Node, first: usize) -> Option<usize> {
        let several = self.text[node.start..node.end].contains('\n');
        several.then(|| self.text[self.line_start(first)..first].chars().count())
    }

    fn flow_add(&mut self, end: usize, several: Option<usize>, text: &str) {
        let text = match several {
            Some(column) => self.lines(&format!(",\n{}{text}", " ".repeat(column))),
            None => format!(", {text}"),
        };
        self.edit(end..end, text);
    }

    /// Deletes one of several neighbours: whole lines of a block, or up to a comma of a flow.
    fn delete(&mut self, flow: bool, spans: &[Range<usize>], at: usize) -> Option<()> {
        let span = &spans[at];
        if flow {
            let range = match (at.checked_sub(1), spans.get(at + 1)) {
                (Some(before), _) => spans[before].end..span.end,
                (None, Some(next)) => span.start..next.start,
                (None, None) => return None,
            };
            self.edit(range, "");
            return Some(());
        }
        let start = self.line_start(span.start);
        // Shares its line with the dash or the key that it belongs to.
        if !self.text[start..span.start].trim().is_empty() {
            return None;
        }
        let end = self.line_end(span.end);
        // With the line break before it, or, where it is the first line, the one behind it.
        let before = self.text[..start].strip_suffix('\n').map(|t| {
            let t = t.strip_suffix('\r').unwrap_or(t);
            t.len()
        });
        match before {
            Some(before) => self.edit(before..end, ""),
            None => {
                let after = self.text[end..].find('\n').map_or(end, |n| end + n + 1);
                self.edit(start..after, "");
            }
        }
        Some(())
    }
}

/// What items of a list are told apart by: name and how many of that name came before, or the
/// position.
fn keys<'v>(values: impl Iterator<Item = &'v Value>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (at, value) in values.enumerate() {
        match value.get("name").and_then(Value::as_str) {
            Some(name) => {
                let before = seen.iter().filter(|s| **s == name).count();
                seen.push(name);
                out.push(format!("{before} {name}"));
            }
            None => out.push(format!("#{at}")),
        }
    }
    out
}
