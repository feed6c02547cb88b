//! A document as a tree of values that know where in the text they stand.
//!
//! Owns what YAML and JSON mean as far as Kubernetes reads them. Never changes a text.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Value};

use super::scalar;

/// How a node is written.
#[derive(Debug, Clone)]
pub(super) enum Form {
    Scalar(ScalarStyle),
    /// `*name`.
    Alias,
    Seq {
        flow: bool,
        items: Vec<Node>,
    },
    Map {
        flow: bool,
        entries: Vec<(Node, Node)>,
    },
}

/// A value and its place, in bytes.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) form: Form,
    pub(super) value: Value,
    pub(super) start: usize,
    /// Behind its last character that is not blank.
    pub(super) end: usize,
    /// Column of a block's first key or dash.
    pub(super) column: usize,
}

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// Counted from 0 within the text.
    pub(super) line: usize,
    pub(super) why: String,
}

/// One document.
#[derive(Debug)]
pub(super) struct Document {
    /// `None` where there is nothing but comments.
    pub(super) root: Option<Node>,
    /// A key that stands twice in one map.
    pub(super) duplicate: Option<Unreadable>,
}

struct Builder<'t> {
    text: &'t str,
    /// The byte of each character.
    bytes: Vec<usize>,
    anchors: HashMap<usize, Value>,
    duplicate: Option<Unreadable>,
}

/// Reads a text of at most one document.
pub(super) fn read(text: &str) -> Result<Document, Unreadable> {
    let mut bytes: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    bytes.push(text.len());
    let mut builder = Builder {
        text,
        bytes,
        anchors: HashMap::new(),
        duplicate: None,
    };
    let mut parser = Parser::new_from_str(text);
    let mut root = None;
    while let Some((event, span)) = builder.next(&mut parser)? {
        match event {
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::Nothing => {}
            event if root.is_none() => {
                let node = builder.node(&mut parser, event, span)?;
                // Only comments, or nothing.
                let blank = node.value.is_null() && node.start == node.end;
                root = (!blank).then_some(node);
            }
            _ => {
                return Err(Unreadable {
                    line: span.start.line().saturating_sub(1),
                    why: "a second document without a line of --- before it".into(),
                });
            }
        }
    }
    Ok(Document {
        root,
        duplicate: builder.duplicate,
    })
}

type Source<'t> = Parser<'t, saphyr_parser::StrInput<'t>>;

impl<'t> Builder<'t> {
    fn next(&mut self, parser: &mut Source<'t>) -> Result<Option<(Event<'t>, Span)>, Unreadable> {
        parser.next_event().transpose().map_err(|error| Unreadable {
            line: error.marker().line().saturating_sub(1),
            why: error.info().into(),
        })
    }

    fn some(&mut self, parser: &mut Source<'t>) -> Result<(Event<'t>, Span), Unreadable> {
        self.next(parser)?.ok_or_else(|| Unreadable {
            line: 0,
            why: "the text ends too early".into(),
        })
    }

    fn at(&self, index: usize) -> usize {
        self.bytes.get(index).copied().unwrap_or(self.text.len())
    }

    fn node(
        &mut self,
        parser: &mut Source<'t>,
        event: Event<'t>,
        span: Span,
    ) -> Result<Node, Unreadable> {
        let (start, end) = (self.at(span.start.index()), self.at(span.end.index()));
        let flow = end > start && matches!(self.text.as_bytes()[end - 1], b'[' | b'{');
        let mut node = Node {
            form: Form::Alias,
            value: Value::Null,
            start,
            end,
            column: span.end.col(),
        };
        let anchor = match event {
            Event::Alias(id) => {
                node.value = self.anchors.get(&id).cloned().unwrap_or(Value::Null);
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let forced = tag.is_some_and(|t| t.suffix != "int" && t.suffix != "bool");
                node.value = match style {
                    ScalarStyle::Plain if !forced => scalar::resolve(&text),
                    _ => Value::String(text.to_string()),
                };
                node.end = match style {
                    ScalarStyle::Literal | ScalarStyle::Folded => {
                        block_end(self.text, start, end, &text)
                    }
                    // The parser's mark may stand behind a comment that follows.
                    ScalarStyle::SingleQuoted => quote_end(self.text, start, b'\''),
                    ScalarStyle::DoubleQuoted => quote_end(self.text, start, b'"'),
                    ScalarStyle::Plain => end,
                };
                node.form = Form::Scalar(style);
                anchor
            }
            Event::SequenceStart(anchor, _) => {
                let mut items: Vec<Node> = Vec::new();
                loop {
                    let (event, span) = self.some(parser)?;
                    if event == Event::SequenceEnd {
                        node.end = match (flow, items.last()) {
                            (false, Some(last)) => last.end,
                            _ => self.at(span.end.index()),
                        };
                        break;
                    }
                    items.push(self.node(parser, event, span)?);
                }
                // Where the dashes are not indented, the parser's mark stands behind the first.
                if let (false, Some(first)) = (flow, items.first()) {
                    let dash = dash(self.text, first.start);
                    let line = self.text[..dash].rfind('\n').map_or(0, |n| n + 1);
                    node.column = self.text[line..dash].chars().count();
                    node.start = dash;
                }
                node.value = Value::Array(items.iter().map(|n| n.value.clone()).collect());
                node.form = Form::Seq { flow, items };
                anchor
            }
            Event::MappingStart(anchor, _) => {
                let mut entries: Vec<(Node, Node)> = Vec::new();
                loop {
                    let (event, span) = self.some(parser)?;
                    if event == Event::MappingEnd {
                        node.end = match (flow, entries.last()) {
                            (false, Some((key, value))) => value.end.max(key.end + 1),
                            _ => self.at(span.end.index()),
                        };
                        break;
                    }
                    let line = span.start.line().saturating_sub(1);
                    let key = self.node(parser, event, span)?;
                    let (event, span) = self.some(parser)?;
                    let value = self.node(parser, event, span)?;
                    if entries.iter().any(|(k, _)| k.value == key.value) && name(&key) != "<<" {
                        self.duplicate.get_or_insert(Unreadable {
                            line,
                            why: format!("the key {} stands twice in one map", name(&key)),
                        });
                    }
                    entries.push((key, value));
                }
                node.value = Value::Object(merged(&entries));
                node.form = Form::Map { flow, entries };
                anchor
            }
            _ => {
                return Err(Unreadable {
                    line: span.start.line().saturating_sub(1),
                    why: "a value is missing here".into(),
                });
            }
        };
        if anchor > 0 {
            self.anchors.insert(anchor, node.value.clone());
        }
        Ok(node)
    }
}

/// The dash before an item of a block that begins at `at`.
pub(super) fn dash(text: &str, at: usize) -> usize {
    let line = text[..at].rfind('\n').map_or(0, |n| n + 1);
    // An anchor or a tag between the two may have dashes of its own.
    let lead = text[line..at]
        .bytes()
        .take_while(|b| matches!(b, b' ' | b'-'));
    let lead = line + lead.count();
    text[line..lead]
        .rfind('-')
        .map(|dash| line + dash)
        .or_else(|| text[..at].rfind('-'))
        .unwrap_or(at)
}

/// A key as text: Kubernetes knows no others.
pub(super) fn name(key: &Node) -> String {
    match &key.value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The entries as a value, with `<<` merged in below what is stated.
fn merged(entries: &[(Node, Node)]) -> Map<String, Value> {
    let mut out = Map::new();
    for (key, node) in entries {
        let key = name(key);
        if key != "<<" {
            out.insert(key, node.value.clone());
        }
    }
    for (_, node) in entries.iter().filter(|(key, _)| name(key) == "<<") {
        let sources = match &node.value {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        for source in sources.iter().filter_map(Value::as_object) {
            for (key, value) in source {
                if !out.contains_key(key) {
                    out.insert(key.clone(), value.clone());
                }
            }
        }
    }
    out
}

/// Where a block scalar ends: its trailing blank lines are its own only where they are kept.
fn block_end(text: &str, start: usize, end: usize, value: &str) -> usize {
    let body = &text[start..end];
    let kept = value.ends_with("\n\n") || value == "\n";
    let trimmed = if kept {
        body.strip_suffix('\n').unwrap_or(body)
    } else {
        body.trim_end()
    };
    start + trimmed.strip_suffix('\r').unwrap_or(trimmed).len()
}

/// Behind the quote that closes the first one from `start` on.
fn quote_end(text: &str, start: usize, quote: u8) -> usize {
    let bytes = text.as_bytes();
    let open = bytes[start..].iter().position(|b| *b == quote);
    let mut at = start + open.unwrap_or(0) + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quote == b'"' => at += 1,
            b'\'' if quote == b'\'' && bytes.get(at + 1) == Some(&b'\'') => at += 1,
            b if b == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}
