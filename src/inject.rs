//! A manifest in, the manifest with the shim in place and a report out; and back again.
//!
//! Pure: no clock, no environment, no file. The command line (`cli::inject`) and the admission
//! webhook are thin loops around [`inject`], [`remove`] and [`check`]. Every change to an object
//! is logged in an annotation of its own, so that it can be undone exactly, and again with
//! other options. An object that cannot be done in full is left as it was, with an [`Error`].

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::Mode;

mod agent;
mod container;
mod difference;
mod drain;
mod edit;
mod env;
pub mod manifest;
mod options;
mod original;
mod target;
mod tls;
mod warnings;

pub use difference::{Difference, differences};
pub use options::{Options, Resources, Style, Tls};
pub use target::Kind;

use edit::Editor;
use original::Original;
use target::Target;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

/// Annotation with the version of the program that put the shim in place.
pub const INJECTED: &str = "agent-shim.io/injected";
/// Annotation with what was there before: the log by which [`remove`] goes back.
pub const ORIGINAL: &str = "agent-shim.io/original";

/// What became of one object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// What it is; `None` where it is of no kind that the shim goes into.
    pub kind: Option<Kind>,
    /// `kind/namespace/name`, as far as they are stated; for messages.
    pub name: String,
    /// Whether the object was changed, or would be.
    pub changed: bool,
    /// Why nothing was done to an object of a known kind; `None` where it was looked at in full.
    pub skipped: Option<Skipped>,
    /// What an operator should know, worst first.
    pub warnings: Vec<Warning>,
    /// What differs from a complete injection; filled by [`check`] only.
    pub missing: Vec<Difference>,
}

impl Report {
    /// Whether the object is of a kind, and of a shape, that the shim goes into.
    pub fn applies(&self) -> bool {
        self.kind.is_some() && self.skipped.is_none()
    }

    /// Whether a warning of this id is among them.
    pub fn warns(&self, id: &str) -> bool {
        self.warnings.iter().any(|w| w.id == id)
    }
}

/// Why an object of a known kind is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skipped {
    /// It has no container of this name, so it is no MLServer pod of Seldon.
    NoContainer(String),
    /// The shim came with the object of this kind that this one was made from.
    Inherited(String),
    /// A `Server` of a runtime that is not MLServer.
    OtherRuntime(String),
    /// A `Server` whose `ServerConfig` of this name has the shim.
    Covered(String),
    /// There is nothing to remove.
    NotInjected,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Skipped::NoContainer(name) => write!(f, "it has no container named {name}"),
            Skipped::Inherited(kind) => {
                write!(f, "it has the shim from the {kind} it was made from")
            }
            Skipped::OtherRuntime(name) => write!(f, "its ServerConfig {name} is not MLServer's"),
            Skipped::Covered(name) => write!(f, "its ServerConfig {name} has the shim"),
            Skipped::NotInjected => f.write_str("it was not injected"),
        }
    }
}

/// One thing that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Closed set, kebab case; stable between releases.
    pub id: &'static str,
    /// What is the case, as one sentence.
    pub text: String,
    /// What to do.
    pub fix: String,
}

/// Why an object was left as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An option is wrong: the caller's mistake.
    #[error("{option}: {why}")]
    Option {
        /// Which.
        option: String,
        /// What is wrong, and what is expected.
        why: String,
    },
    /// The object is not shaped as Kubernetes shapes it.
    #[error("{path}: expected {expected}")]
    Malformed {
        /// Where in the object.
        path: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// There is a container of the shim's name that this program did not put there.
    #[error(
        "there is a container {0:?} that was not put there by `agent-shim inject`: remove it, or choose another name for the shim"
    )]
    Foreign(String),
    /// The annotation with the original cannot be read.
    #[error(
        "annotation {ORIGINAL} cannot be read ({0}): the original is lost; remove the container and the variables by hand"
    )]
    Lost(String),
}

/// Puts the shim into the object, or brings it up to date. Doing it twice changes nothing; doing
/// it with other options is the same as [`remove`] and then `inject`.
///
/// On an error the object is as it was.
pub fn inject(object: &mut Value, options: &Options) -> Result<Report, Error> {
    options.validate()?;
    let (mut report, target) = match begin(object, options)? {
        Begin::Done(report) => return Ok(report),
        Begin::Work(report, target) => (report, target),
    };
    let mut work = object.clone();
    let text = match Original::take(&mut work, &target)? {
        Some(original) => {
            original.undo(&mut work);
            original.text
        }
        None if target.has_container(&work, &options.shim) => {
            return Err(Error::Foreign(options.shim.clone()));
        }
        None => None,
    };
    report.warnings = warnings::look(&work, &target, options);
    let mut editor = Editor::new(&mut work);
    let plan = agent::plan(editor.root(), &target, options, &mut report.warnings);
    container::place(&mut editor, &target, options, &plan)?;
    agent::place(&mut editor, &target, options, &plan)?;
    drain::place(&mut editor, &target, options)?;
    let log = original::prepare(&mut editor, &target)?;
    Original {
        version: original::VERSION,
        kind: target.kind.as_str().into(),
        log,
        text,
    }
    .store(&mut work, &target);
    report.changed = work != *object;
    *object = work;
    Ok(report)
}

/// Takes the shim out again and gives back what was there before. An object that was not
/// injected is left alone.
pub fn remove(object: &mut Value, options: &Options) -> Result<Report, Error> {
    let (mut report, target) = match begin(object, options)? {
        Begin::Done(report) => return Ok(report),
        Begin::Work(report, target) => (report, target),
    };
    let mut work = object.clone();
    let Some(original) = Original::take(&mut work, &target)? else {
        if target.has_container(object, &options.shim) {
            return Err(Error::Foreign(options.shim.clone()));
        }
        report.skipped = Some(Skipped::NotInjected);
        return Ok(report);
    };
    original.undo(&mut work);
    report.changed = work != *object;
    *object = work;
    Ok(report)
}

/// What [`inject`] with these options would change, and what it would warn about. Nothing is
/// missing where it was done before with the same options and by the same version.
pub fn check(object: &Value, options: &Options) -> Result<Report, Error> {
    let mut complete = object.clone();
    let mut report = inject(&mut complete, options)?;
    report.missing = differences(object, &complete);
    Ok(report)
}

/// What the annotation says about the text of the manifest.
fn text_hint(object: &Value, options: &Options) -> Result<Option<Value>, Error> {
    let Begin::Work(_, target) = begin(object, options)? else {
        return Ok(None);
    };
    let original = Original::take(&mut object.clone(), &target)?;
    Ok(original.and_then(|o| o.text))
}

/// Writes it into the annotation. Whether the object has one.
fn set_text_hint(object: &mut Value, options: &Options, hint: &Value) -> bool {
    let Ok(Begin::Work(_, target)) = begin(object, options) else {
        return false;
    };
    match Original::take(object, &target) {
        Ok(Some(mut original)) => {
            original.text = Some(hint.clone());
            original.store(object, &target);
            true
        }
        _ => false,
    }
}

enum Begin {
    Done(Report),
    Work(Report, Target),
}

fn begin(object: &Value, options: &Options) -> Result<Begin, Error> {
    let mut report = Report::default();
    let Some(target) = Target::of(object, options)? else {
        return Ok(Begin::Done(report));
    };
    report.kind = Some(target.kind);
    report.name = target.name(object);
    report.skipped = match original::kind(object, &target) {
        Some(kind) if kind != target.kind.as_str() => Some(Skipped::Inherited(kind)),
        Some(_) => None,
        None => target.skip(object, options),
    };
    Ok(match report.skipped {
        Some(_) => Begin::Done(report),
        None => Begin::Work(report, target),
    })
}

/// Settings by name; sorted, so that what is written is the same from run to run.
pub type Settings = BTreeMap<String, String>;

/// As [`Options::mode`] is written in the environment.
fn mode_setting(mode: Mode) -> Option<(&'static str, &'static str)> {
    (mode == Mode::Observe).then(|| ("SHIM_MODE", mode.as_str()))
}
