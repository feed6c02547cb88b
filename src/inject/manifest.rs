//! Manifests as text: YAML or JSON, many documents, lists of objects.
//!
//! Owns that a document that is not changed keeps every byte, that a changed one keeps all that
//! is not touched (comments, quotes, order), and that [`remove`] gives back the text that
//! [`inject`] was given. Edits are read back and compared with what was meant; where no edit of
//! the text does it (anchors, mostly), the document is written out anew, and that is said.

use serde_json::Value;

use super::{Error, Kind, Options, Report, Warning};

mod hint;
mod render;
mod scalar;
mod splice;
#[cfg(test)]
mod tests;
mod tree;

use tree::{Document, Unreadable};

/// What became of a text.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The text after it; the same where nothing was done.
    pub text: String,
    /// One for each object that was looked at, in order.
    pub reports: Vec<Found>,
}

impl Outcome {
    /// Whether any object was of a kind and a shape that the shim goes into.
    pub fn applies(&self) -> bool {
        self.reports.iter().any(|f| f.report.applies())
    }
}

/// An object of a text.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its document, counted from 1.
    pub document: usize,
    /// The document's first line, counted from 1.
    pub line: usize,
    /// What became of it.
    pub report: Report,
}

/// Why a text was refused; where in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("document {document}, line {line}: {why}")]
pub struct Refused {
    /// Counted from 1.
    pub document: usize,
    /// Counted from 1 in the whole text.
    pub line: usize,
    /// What was found, and what was expected.
    pub why: String,
}

/// Puts the shim into every object of the text that it goes into.
pub fn inject(text: &str, options: &Options) -> Result<Outcome, Refused> {
    each(text, |part| part.inject(options))
}

/// Takes it out again.
pub fn remove(text: &str, options: &Options) -> Result<Outcome, Refused> {
    each(text, |part| part.remove(options))
}

/// What [`inject`] would change; the text stays.
pub fn check(text: &str, options: &Options) -> Result<Outcome, Refused> {
    each(text, |part| {
        let mut reports = Vec::new();
        part.objects(|object| {
            reports.push(super::check(object, options)?);
            Ok(())
        })?;
        Ok((part.text.to_string(), reports))
    })
}

/// The objects of a text as values: its documents, and the items of lists.
pub fn values(text: &str) -> Result<Vec<Value>, Refused> {
    let values = std::cell::RefCell::new(Vec::new());
    each(text, |part| {
        let root = part.read()?.root;
        let mut value = root.map(|root| root.value);
        let objects = value.as_mut().map(objects_of).unwrap_or_default();
        let mut values = values.borrow_mut();
        values.extend(objects.into_iter().map(|object| object.clone()));
        Ok((String::new(), Vec::new()))
    })?;
    Ok(values.into_inner())
}

/// One document of a text.
struct Part<'t> {
    text: &'t str,
    document: usize,
    /// Of its first line, counted from 0.
    line: usize,
}

fn each(
    text: &str,
    work: impl Fn(&Part<'_>) -> Result<(String, Vec<Report>), Refused>,
) -> Result<Outcome, Refused> {
    let (mark, text) = match text.strip_prefix('\u{feff}') {
        Some(rest) => ("\u{feff}", rest),
        None => ("", text),
    };
    let mut out = Outcome {
        text: mark.to_string(),
        reports: Vec::new(),
    };
    let (mut line, mut document) = (0, 0);
    for piece in split(text) {
        let has_content = piece
            .lines()
            .any(|l| !l.trim().is_empty() && !l.starts_with('#') && l.trim_end() != "---");
        document += usize::from(has_content);
        let part = Part {
            text: piece,
            document: document.max(1),
            line,
        };
        let (text, reports) = work(&part)?;
        out.text.push_str(&text);
        out.reports.extend(reports.into_iter().map(|report| Found {
            document: part.document,
            line: line + 1 + piece.lines().take_while(|l| l.starts_with("---")).count(),
            report,
        }));
        line += piece.matches('\n').count();
    }
    Ok(out)
}

/// The documents, each with its line of `---`; put together they are the text.
fn split(text: &str) -> Vec<&str> {
    if text.trim_start().starts_with('{') {
        let mut stream =
            serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
        let mut ends = Vec::new();
        while let Some(Ok(_)) = stream.next() {
            ends.push(stream.byte_offset());
        }
        let whole = ends
            .last()
            .is_some_and(|end| text[*end..].trim().is_empty());
        if whole {
            *ends.last_mut().expect("there is one") = text.len();
            let mut start = 0;
            return ends
                .into_iter()
                .map(|end| {
                    let piece = &text[start..end];
                    start = end;
                    piece
                })
                .collect();
        }
    }
    let mut starts = vec![0];
    let mut at = 0;
    // A directive belongs to the document behind the line of dashes.
    let mut directive = false;
    for line in text.split_inclusive('\n') {
        let rest = line.strip_prefix("---");
        let dashes = rest.is_some_and(|r| r.is_empty() || r.starts_with([' ', '\t', '\r', '\n']));
        if dashes && at > 0 && !directive {
            starts.push(at);
        }
        directive = line.starts_with('%') || (directive && line.starts_with('#'));
        at += line.len();
    }
    starts.push(text.len());
    starts.windows(2).map(|w| &text[w[0]..w[1]]).collect()
}

impl Part<'_> {
    fn refuse(&self, line: usize, why: impl Into<String>) -> Refused {
        Refused {
            document: self.document,
            line: self.line + line + 1,
            why: why.into(),
        }
    }

    fn unreadable(&self, error: Unreadable) -> Refused {
        self.refuse(error.line, error.why)
    }

    fn wrong(&self, object: &Value, error: &Error) -> Refused {
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("?");
        let name = object.pointer("/metadata/name").and_then(Value::as_str);
        let name = name.unwrap_or("?");
        let first = self
            .text
            .lines()
            .take_while(|l| l.starts_with("---"))
            .count();
        self.refuse(first, format!("{} {name}: {error}", text("kind")))
    }

    fn read(&self) -> Result<Document, Refused> {
        tree::read(self.text).map_err(|error| self.unreadable(error))
    }

    /// Shows every object to `look`: the document itself, or the items of a list.
    fn objects(
        &self,
        mut look: impl FnMut(&mut Value) -> Result<(), Error>,
    ) -> Result<Option<(Document, Value)>, Refused> {
        let document = self.read()?;
        let Some(root) = &document.root else {
            return Ok(None);
        };
        let mut value = root.value.clone();
        let mut known = false;
        for object in objects_of(&mut value) {
            known |= Kind::of(object).is_some();
            look(object).map_err(|error| self.wrong(object, &error))?;
        }
        // Which of the two counts is nobody's to guess; a document that is passed on may.
        match &document.duplicate {
            Some(twice) if known => Err(self.unreadable(twice.clone())),
            _ => Ok(Some((document, value))),
        }
    }

    fn remove(&self, options: &Options) -> Result<(String, Vec<Report>), Refused> {
        let mut reports = Vec::new();
        let mut hints = Vec::new();
        let read = self.objects(|object| {
            hints.extend(super::text_hint(object, options)?);
            reports.push(super::remove(object, options)?);
            Ok(())
        })?;
        let text = match read {
            Some((document, value)) if reports.iter().any(|r| r.changed) => {
                let (text, _) = self.write(self.text, &document, &value)?;
                hints
                    .iter()
                    .find_map(|h| hint::apply(h, &text))
                    .filter(|text| tree::read(text).is_ok_and(|d| is(&d, &value)))
                    .unwrap_or(text)
            }
            _ => self.text.to_string(),
        };
        Ok((text, reports))
    }

    fn inject(&self, options: &Options) -> Result<(String, Vec<Report>), Refused> {
        // From what was there before, so that it can be said again how to get back to it.
        let (before, _) = self.remove(options)?;
        let part = Part {
            text: &before,
            ..*self
        };
        let mut reports = Vec::new();
        let read = part.objects(|object| {
            reports.push(super::inject(object, options)?);
            Ok(())
        })?;
        let Some((document, mut value)) = read.filter(|_| reports.iter().any(|r| r.changed)) else {
            return Ok((self.text.to_string(), reports));
        };
        let (mut text, mut rewritten) = part.write(&before, &document, &value)?;
        let back = Part {
            text: &text,
            ..*self
        };
        let (back, _) = back.remove(options)?;
        if back != before {
            let hint = hint::make(&back, &before);
            if hint.to_string().len() <= hint::LIMIT {
                let stored = objects_of(&mut value)
                    .into_iter()
                    .any(|object| super::set_text_hint(object, options, &hint));
                debug_assert!(stored, "something was changed");
                (text, rewritten) = part.write(&before, &document, &value)?;
            } else {
                rewritten = true;
            }
        }
        if rewritten && let Some(report) = reports.iter_mut().find(|r| r.changed) {
            report.warnings.push(Warning {
                id: "rewritten",
                text: format!("document {} uses anchors or a layout in which single places cannot be changed: it was written out anew, without its comments", self.document),
                fix: "nothing, if the result is not read by people; --remove gives the text back as it was".into(),
            });
        }
        let same = text == self.text;
        for report in &mut reports {
            report.changed &= !same;
        }
        Ok((text, reports))
    }

    /// The text with another value, and whether it had to be written anew.
    fn write(
        &self,
        text: &str,
        document: &Document,
        value: &Value,
    ) -> Result<(String, bool), Refused> {
        let Some(root) = &document.root else {
            return Ok((text.to_string(), false));
        };
        let right = |text: &String| tree::read(text).is_ok_and(|d| is(&d, value));
        if let Some(text) = splice::apply(text, root, value).filter(right) {
            return Ok((text, false));
        }
        let anew = render::canonical(root, text);
        let anew = if text.starts_with("---") {
            format!("---\n{anew}")
        } else {
            anew
        };
        let document = tree::read(&anew).map_err(|error| self.unreadable(error))?;
        let root = document.root.as_ref();
        root.and_then(|root| splice::apply(&anew, root, value))
            .filter(right)
            .map(|text| (text, true))
            .ok_or_else(|| {
                self.refuse(0, "the document cannot be changed without changing more than the shim owns: write out its anchors and aliases")
            })
    }
}

fn is(document: &Document, value: &Value) -> bool {
    document.root.as_ref().is_some_and(|r| r.value == *value)
}

/// The objects of a document: itself, or the items of a list.
fn objects_of(value: &mut Value) -> Vec<&mut Value> {
    let kind = value.get("kind").and_then(Value::as_str);
    let list = kind.is_some_and(|k| k.ends_with("List")) && value.get("items").is_some();
    if !list {
        return vec![value];
    }
    let items = value.get_mut("items").and_then(Value::as_array_mut);
    items.into_iter().flatten().collect()
}
