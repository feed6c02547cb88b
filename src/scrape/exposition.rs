//! Several expositions made into one that is still valid: text format 0.0.4 out, that or
//! OpenMetrics text in. Pure.
//!
//! Samples are kept as they came, grouped by family, since a family may stand in a document only
//! once. The shim's own series never change. A family of another source that would meet one of
//! another's, or that every process has, gets a label that says whose it is; that depends on its
//! name alone, so that no series changes its labels when another source fails, except where two
//! programs happen to share a name. A document that is not understood is refused whole: one bad
//! line would cost the scrape of everything.

use std::borrow::Cow;
use std::collections::HashMap;

/// The label of series that need to be told apart.
pub const LABEL: &str = "merged_from";

/// What every process exports about itself.
const OF_EVERY_PROCESS: [&str; 4] = ["process_", "go_", "python_", "promhttp_"];

/// Why a document was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not a metric: {text:?}")]
pub struct Malformed {
    line: usize,
    text: String,
}

/// One family as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Family {
    name: String,
    help: Option<String>,
    kind: Option<String>,
    samples: Vec<Sample>,
}

impl Family {
    fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("untyped")
    }
}

/// One sample: name, what stands between the braces, and value with an optional timestamp.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sample {
    name: String,
    labels: String,
    rest: String,
}

/// A document that has been read.
#[derive(Debug, Clone, Default)]
pub struct Document {
    families: Vec<Family>,
    places: HashMap<String, usize>,
    /// OpenMetrics names some families without the suffix of their samples.
    renamed: HashMap<String, String>,
}

/// The suffixes of the samples of a family, by its type.
fn suffixes(kind: &str) -> &'static [&'static str] {
    match kind {
        "histogram" => &["_bucket", "_sum", "_count"],
        "summary" => &["_sum", "_count"],
        _ => &[],
    }
}

impl Document {
    /// Reads one document. `openmetrics` as its content type says.
    pub fn read(text: &str, openmetrics: bool) -> Result<Document, Malformed> {
        let mut document = Document::default();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            let malformed = || Malformed {
                line: i + 1,
                text: line.chars().take(80).collect(),
            };
            if line.is_empty() {
                continue;
            }
            if openmetrics && line == "# EOF" {
                break;
            }
            if let Some(comment) = line.strip_prefix('#') {
                document
                    .comment(comment, openmetrics)
                    .ok_or_else(malformed)?;
                continue;
            }
            let sample = sample(line, openmetrics).ok_or_else(malformed)?;
            document.add(sample, openmetrics);
        }
        document
            .families
            .retain(|family| !family.samples.is_empty());
        document.index();
        Ok(document)
    }

    /// Whether it has a family of this name.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    fn index(&mut self) {
        let names = self.families.iter().enumerate();
        self.places = names.map(|(i, f)| (f.name.clone(), i)).collect();
    }

    fn family(&mut self, name: &str) -> &mut Family {
        let next = self.families.len();
        let place = *self.places.entry(name.into()).or_insert(next);
        if place == next {
            self.families.push(Family {
                name: name.into(),
                ..Family::default()
            });
        }
        &mut self.families[place]
    }

    /// `# HELP name text` and `# TYPE name type`; every other comment is dropped.
    fn comment(&mut self, comment: &str, openmetrics: bool) -> Option<()> {
        let (word, rest) = split(comment);
        if word != "HELP" && word != "TYPE" {
            return Some(());
        }
        let (name, text) = split(rest);
        if !is_name(name) {
            return None;
        }
        if word == "HELP" {
            let name = self.renamed.get(name).cloned().unwrap_or(name.into());
            self.family(&name).help = Some(text.into());
            return Some(());
        }
        // Types that only OpenMetrics has, as what an older reader makes of them.
        let kind = match text {
            "counter" | "gauge" | "histogram" | "summary" | "untyped" => text,
            "info" | "stateset" if openmetrics => "gauge",
            "unknown" | "gaugehistogram" if openmetrics => "untyped",
            _ => return None,
        };
        let suffix = match text {
            "counter" if openmetrics => "_total",
            "info" => "_info",
            _ => "",
        };
        if suffix.is_empty() || name.ends_with(suffix) {
            self.family(name).kind = Some(kind.into());
            return Some(());
        }
        let full = format!("{name}{suffix}");
        let help = self.family(name).help.take();
        self.renamed.insert(name.into(), full.clone());
        let family = self.family(&full);
        family.help = family.help.take().or(help);
        family.kind = Some(kind.into());
        Some(())
    }

    fn add(&mut self, sample: Sample, openmetrics: bool) {
        let named = |suffix: &&str| {
            let base = sample.name.strip_suffix(*suffix)?;
            let family = &self.families[*self.places.get(base)?];
            suffixes(family.kind())
                .contains(suffix)
                .then(|| base.to_string())
        };
        let own = self.places.get(&sample.name);
        let typed = own.is_some_and(|place| self.families[*place].kind.is_some());
        let base = match typed {
            true => None,
            false => ["_bucket", "_sum", "_count"].iter().find_map(named),
        };
        // A time of creation is a family of its own in text format; OpenMetrics has it inside.
        let created = openmetrics && base.is_none() && sample.name.ends_with("_created");
        let name = base.unwrap_or_else(|| sample.name.clone());
        let family = self.family(&name);
        if created && family.kind.is_none() {
            family.kind = Some("gauge".into());
        }
        family.samples.push(sample);
    }
}

/// The first word, and the rest without leading blanks.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    match text.split_once([' ', '\t']) {
        Some((word, rest)) => (word, rest.trim_start()),
        None => (text, ""),
    }
}

fn is_name(name: &str) -> bool {
    let ok = |(i, b): (usize, u8)| {
        b.is_ascii_alphabetic() || b == b'_' || b == b':' || (i > 0 && b.is_ascii_digit())
    };
    !name.is_empty() && name.bytes().enumerate().all(ok)
}

fn sample(line: &str, openmetrics: bool) -> Option<Sample> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => {
            let end = end_of_labels(inside)?;
            let labels = inside[..end].trim().trim_end_matches(',').trim_end();
            (labels, &inside[end + 1..])
        }
        None => ("", rest),
    };
    // An exemplar belongs to OpenMetrics alone.
    let rest = match openmetrics {
        true => rest.split(" # ").next()?,
        false => rest,
    };
    let mut words = rest.split_whitespace();
    let value = words.next().filter(|value| is_value(value))?;
    let rest = match words.next() {
        None => value.to_string(),
        Some(time) if openmetrics => {
            let seconds: f64 = time.parse().ok().filter(|s: &f64| s.is_finite())?;
            format!("{value} {}", (seconds * 1000.0).round() as i64)
        }
        Some(time) => {
            time.parse::<i64>().ok()?;
            format!("{value} {time}")
        }
    };
    let ok = is_name(name) && words.next().is_none();
    ok.then(|| Sample {
        name: name.into(),
        labels: labels.into(),
        rest,
    })
}

/// Where the closing brace is; `None` unless everything before it is `name="value"` with commas
/// between.
fn end_of_labels(inside: &str) -> Option<usize> {
    let bytes = inside.as_bytes();
    let blank = |mut at: usize| {
        while matches!(bytes.get(at), Some(b' ' | b'\t')) {
            at += 1;
        }
        at
    };
    let mut at = 0;
    loop {
        at = blank(at);
        if *bytes.get(at)? == b'}' {
            return Some(at);
        }
        let equals = at + inside[at..].find('=')?;
        let name = inside[at..equals].trim_end();
        if !is_name(name) || name.contains(':') {
            return None;
        }
        at = blank(equals + 1);
        if *bytes.get(at)? != b'"' {
            return None;
        }
        at += 1;
        loop {
            match *bytes.get(at)? {
                b'"' => break,
                // Another escape than these makes a strict reader refuse the whole document.
                b'\\' if matches!(bytes.get(at + 1)?, b'\\' | b'"' | b'n') => at += 2,
                b'\\' => return None,
                _ => at += 1,
            }
        }
        at = blank(at + 1);
        match *bytes.get(at)? {
            b',' => at += 1,
            b'}' => return Some(at),
            _ => return None,
        }
    }
}

fn is_value(text: &str) -> bool {
    // Rust also reads `infinity` and signs before `nan`, as Go does.
    text.parse::<f64>().is_ok()
}

/// One document of all of them: the first is the shim's own and stays as it is, the others have
/// a name each.
pub fn merge(own: Document, others: Vec<(&'static str, Document)>) -> String {
    let mut all = own;
    // How often a name occurs among the sources.
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (_, document) in &others {
        for family in &document.families {
            *seen.entry(family.name.clone()).or_default() += 1;
        }
    }
    for family in &all.families {
        *seen.entry(family.name.clone()).or_default() += 1;
    }
    for (source, document) in others {
        for family in document.families {
            let shared = seen.get(&family.name).is_some_and(|n| *n > 1);
            let marked = shared || OF_EVERY_PROCESS.iter().any(|p| family.name.starts_with(p));
            let into = all.family(&family.name);
            // One name with two types cannot stand in one document: the first has it.
            if !into.samples.is_empty() && into.kind() != family.kind() {
                continue;
            }
            into.help = into.help.take().or(family.help);
            into.kind = family.kind;
            into.samples.extend(family.samples.into_iter().map(|mut s| {
                if marked {
                    s.labels = labelled(&s.labels, source);
                }
                s
            }));
        }
    }
    all.write()
}

/// The labels with the source's; one that is there already has a meaning of its own and stays.
fn labelled(labels: &str, source: &str) -> String {
    let own = format!("{LABEL}=\"{source}\"");
    match labels {
        "" => own,
        _ if labels.contains(&format!("{LABEL}=")) => labels.into(),
        _ => format!("{labels},{own}"),
    }
}

impl Document {
    fn write(&self) -> String {
        let mut out = String::new();
        for family in self.families.iter().filter(|f| !f.samples.is_empty()) {
            if let Some(help) = &family.help {
                out.push_str(&format!("# HELP {} {}\n", family.name, escaped(help)));
            }
            out.push_str(&format!("# TYPE {} {}\n", family.name, family.kind()));
            for sample in &family.samples {
                let labels = match sample.labels.as_str() {
                    "" => Cow::Borrowed(""),
                    labels => Cow::Owned(format!("{{{labels}}}")),
                };
                out.push_str(&format!("{}{labels} {}\n", sample.name, sample.rest));
            }
        }
        out
    }
}

/// OpenMetrics also escapes quotes in a help text, which the text format takes as a mistake.
fn escaped(help: &str) -> Cow<'_, str> {
    match help.contains("\\\"") {
        true => Cow::Owned(help.replace("\\\"", "\"")),
        false => Cow::Borrowed(help),
    }
}

#[cfg(test)]
#[path = "exposition_tests.rs"]
mod tests;
