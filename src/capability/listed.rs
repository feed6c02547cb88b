//! Lists that people or scripts write: `SHIM_CAPABILITIES_LIST`, and the file at
//! `SHIM_CAPABILITIES_FILE` as JSON or as `pip freeze` prints it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::capability::table::normalise;
use crate::capability::{Distribution, Observation, Source};
use crate::procfs::{self, Unreadable};

/// What a list said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Entries with a version: Python distributions.
    pub distributions: Vec<Distribution>,
    /// Entries without one: capabilities as they are.
    pub names: Vec<String>,
}

/// A `pip freeze` of thousands of packages is far below it.
const MAX_FILE: usize = 4 * 1024 * 1024;
/// What pip prints between names and versions.
const VERSION_MARKS: [&str; 2] = ["==", " @ "];

/// Reads the file.
pub fn read(path: &Path) -> Result<Listed, Unreadable> {
    parse(&procfs::read(path, MAX_FILE)?).ok_or(Unreadable::Malformed)
}

/// A JSON list of names, a JSON object of names and versions, the JSON of `pip list`, an object
/// with `capabilities` and `distributions`, or lines as `pip freeze` prints them. `None` where
/// the text looks like JSON and is none of these, or is empty.
pub fn parse(text: &str) -> Option<Listed> {
    let text = text.trim_start_matches('\u{feff}').trim();
    let mut listed = Listed::default();
    match text.chars().next()? {
        '{' | '[' => match serde_json::from_str(text).ok()? {
            Json::Sections {
                capabilities,
                distributions,
            } => {
                listed.names = capabilities;
                distributions.into_iter().for_each(|d| listed.take(d));
            }
            Json::List(items) => items.into_iter().for_each(|item| listed.take(item)),
            Json::Versions(versions) => {
                let items = versions.into_iter();
                items.for_each(|(name, version)| listed.take(Item::Package { name, version }));
            }
        },
        _ => text.lines().for_each(|line| listed.line(line)),
    }
    listed.distributions.sort();
    listed.distributions.dedup_by(|a, b| a.name == b.name);
    Some(listed).filter(|l| !l.names.is_empty() || !l.distributions.is_empty())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Json {
    List(Vec<Item>),
    Sections {
        capabilities: Vec<String>,
        #[serde(default)]
        distributions: Vec<Item>,
    },
    Versions(BTreeMap<String, String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Name(String),
    Package { name: String, version: String },
}

impl Listed {
    fn take(&mut self, item: Item) {
        match item {
            Item::Name(text) => self.line(&text),
            Item::Package { name, version } => self.distribution(&name, &version),
        }
    }

    fn distribution(&mut self, name: &str, version: &str) {
        let name = normalise(name);
        // A URL is no version, and may hold a password.
        let version = if version.contains("://") { "" } else { version };
        if !name.is_empty() {
            let version = version.trim().to_string();
            self.distributions.push(Distribution { name, version });
        }
    }

    fn line(&mut self, line: &str) {
        // A `#` starts a comment only after a space: URLs have them too.
        let line = line.split(" #").next().unwrap_or_default().trim();
        // `-e git+https://...#egg=name` and options say nothing about what is installed.
        if line.is_empty() || line.starts_with(['#', '-']) {
            return;
        }
        let marked = VERSION_MARKS.iter().find_map(|mark| line.split_once(mark));
        match marked {
            Some((name, version)) => {
                let version = if version.contains("://") { "" } else { version };
                let version = version.split(';').next().unwrap_or_default();
                let name = name.split('[').next().unwrap_or_default();
                self.distribution(name, version);
            }
            None => self.names.push(line.to_string()),
        }
    }
}

/// The observation of a list.
pub fn observation(listed: Listed, source: Source) -> Observation {
    Observation {
        source,
        distributions: listed.distributions,
        names: listed.names,
        ..Observation::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::tree::Tree;
    use proptest::prelude::*;

    fn shown(text: &str) -> Option<String> {
        let listed = parse(text)?;
        let versions = listed.distributions.iter();
        let versions: Vec<String> = versions
            .map(|d| format!("{}={}", d.name, d.version))
            .collect();
        Some(format!(
            "{} | {}",
            versions.join(","),
            listed.names.join(",")
        ))
    }

    #[test]
    fn every_form_of_a_list_is_read() {
        for (text, expected) in [
            (r#"["sklearn", " gpu-a100"]"#, Some(" | sklearn,gpu-a100")),
            (r#"["numpy==1.2", "sklearn"]"#, Some("numpy=1.2 | sklearn")),
            (
                r#"{"Scikit_Learn": "1.5", "numpy": "2"}"#,
                Some("numpy=2,scikit-learn=1.5 | "),
            ),
            (
                r#"[{"name": "torch", "version": "2.1"}, {"name": "A", "version": "1", "location": "/x"}]"#,
                Some("a=1,torch=2.1 | "),
            ),
            (
                r#"{"capabilities": ["sklearn"], "distributions": [{"name": "numpy", "version": "2"}]}"#,
                Some("numpy=2 | sklearn"),
            ),
            (
                "# comment\nnumpy==2.0  # pinned\n\n-e git+https://x#egg=y\nuvicorn[standard]==0.5; python_version > '3'\nlocal @ https://user:secret@host/x.whl\nsklearn\n",
                Some("local=,numpy=2.0,uvicorn=0.5 | sklearn"),
            ),
            ("\u{feff}sklearn", Some(" | sklearn")),
            ("", None),
            ("\n# nothing\n", None),
            ("[]", None),
            ("{\"a\": 1}", None),
            ("[1, 2]", None),
            ("[\"unfinished", None),
        ] {
            assert_eq!(shown(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_or_is_no_list_has_a_name() {
        let tree = Tree::new();
        tree.file("good", "numpy==1\n").file("bad", "{");
        let at = |name: &str| read(&tree.path().join(name)).map(|l| l.distributions.len());
        assert_eq!(at("good"), Ok(1));
        assert_eq!(at("bad"), Err(Unreadable::Malformed));
        assert_eq!(at("none"), Err(Unreadable::NotFound));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }
    }
}
