//! What the inference server can run: names, and making the agent's list agree with what is
//! installed.
//!
//! Pure: [`installed`], [`listed`] and [`probe_model`] learn what there is, [`table`] knows the
//! names, this decides; [`runner`] chooses the moment of the probe model. A name that the table
//! does not know is a label of the operator's and always stays; under `add` nothing that was
//! declared ever goes.
//!
//! For the interposer: call [`reconcile`] with the agent's list, an [`Observation`] (from
//! [`crate::observer::Observed`]) and the [`Policy`]; send [`Reconciled::reported`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub mod gate;
pub mod installed;
pub mod listed;
pub mod probe_model;
pub mod runner;
pub mod table;

#[cfg(test)]
mod tests;

/// What is done with the agent's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What is installed is added; what is declared stays.
    Add,
    /// As `add`, and a known name that is not installed goes.
    Strict,
    /// The agent's list as it is.
    Declared,
    /// The operator's list as it is.
    Explicit,
}

impl Mode {
    /// The name used in the environment.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Add => "add",
            Mode::Strict => "strict",
            Mode::Declared => "declared",
            Mode::Explicit => "explicit",
        }
    }
}

/// What the operator has set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What is done with the agent's list.
    pub mode: Mode,
    /// `SHIM_CAPABILITIES_LIST`; empty where it is not set.
    pub list: Vec<String>,
}

/// Where the knowledge comes from, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// `SHIM_CAPABILITIES_LIST`.
    Explicit,
    /// The server's Python distributions, read through `/proc`.
    Distributions,
    /// The server itself, asked through a tiny model.
    ProbeModel,
    /// The file at `SHIM_CAPABILITIES_FILE`.
    File,
    /// Nothing answered: the agent's own list.
    Declared,
}

impl Source {
    /// All, in the order in which they are asked.
    pub const ALL: [Source; 5] = [
        Source::Explicit,
        Source::Distributions,
        Source::ProbeModel,
        Source::File,
        Source::Declared,
    ];

    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Explicit => "explicit",
            Source::Distributions => "distributions",
            Source::ProbeModel => "probe-model",
            Source::File => "file",
            Source::Declared => "declared",
        }
    }
}

/// An installed Python distribution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distribution {
    /// Its name as PEP 503 normalises it.
    pub name: String,
    /// Its version; empty where it is not known.
    pub version: String,
}

/// A source that was asked and did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// Which.
    pub source: Source,
    /// Why not.
    pub reason: String,
}

/// What is known of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The source that answered; [`Source::Declared`] where none did.
    pub source: Source,
    /// Installed distributions, sorted by name.
    pub distributions: Vec<Distribution>,
    /// Names that the source gave as capabilities.
    pub names: Vec<String>,
    /// The sources before it and why they did not answer.
    pub unanswered: Vec<Unanswered>,
    /// Every source has had its turn: what is not known now will not be known by waiting a
    /// little longer. The interposer may hold Subscribe until this is true.
    pub settled: bool,
    /// When, since the start of the process.
    pub at: Duration,
}

impl Default for Observation {
    fn default() -> Self {
        Observation {
            source: Source::Declared,
            distributions: Vec::new(),
            names: Vec::new(),
            unanswered: Vec::new(),
            settled: false,
            at: Duration::ZERO,
        }
    }
}

impl Observation {
    /// Whether two observations say the same of the server; the time does not matter.
    pub fn says_the_same_as(&self, other: &Observation) -> bool {
        self.source == other.source
            && self.names == other.names
            && self.distributions == other.distributions
    }

    /// The version of a distribution, for display.
    pub fn version(&self, distribution: &str) -> Option<&str> {
        let name = table::normalise(distribution);
        let found = self.distributions.iter().find(|d| d.name == name)?;
        Some(&found.version)
    }
}

/// The list to send, and how it came to be. Every list is sorted and without repeats, except
/// `reported` under `declared` and `explicit`, which is in the order it was given in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconciled {
    /// What the scheduler is told.
    pub reported: Vec<String>,
    /// Declared names that are still there.
    pub kept: Vec<String>,
    /// Names that are there because the observation says so.
    pub added: Vec<String>,
    /// Declared names that are gone.
    pub dropped: Vec<String>,
    /// Names that are there only as another spelling of a declared one.
    pub aliased: Vec<String>,
    /// Declared names that the table knows and the observation does not: a finding. A model may
    /// bring its own environment, so under `add` they stay.
    pub missing_but_declared: Vec<String>,
    /// Of `reported`: replicas that differ have different ones. Fits a gauge exactly.
    pub hash: u64,
    /// The source of the observation.
    pub source: Source,
}

/// Makes the agent's list agree with what is known of the server.
pub fn reconcile(requested: &[String], observation: &Observation, policy: &Policy) -> Reconciled {
    match policy.mode {
        Mode::Declared => as_it_is(requested, requested.to_vec(), observation),
        // Without a list there is nothing to be explicit about; no list is never an empty one.
        Mode::Explicit if trimmed(&policy.list).next().is_none() => {
            as_it_is(requested, requested.to_vec(), observation)
        }
        Mode::Explicit => {
            let mut seen = BTreeSet::new();
            let list = trimmed(&policy.list).filter(|name| seen.insert(*name));
            let list: Vec<String> = list.map(str::to_string).collect();
            as_it_is(requested, list, observation)
        }
        Mode::Add | Mode::Strict => merge(requested, observation, policy.mode),
    }
}

fn merge(requested: &[String], observation: &Observation, mode: Mode) -> Reconciled {
    let declared: BTreeSet<&str> = trimmed(requested).collect();
    let evidence = Evidence::new(observation);
    let mut why: BTreeMap<String, Origin> = BTreeMap::new();
    let mut put = |name: &str, origin: Origin| {
        // Declared beats observed beats alias; the order of the calls must not matter.
        let entry = why.entry(name.to_string()).or_insert(origin);
        *entry = (*entry).min(origin);
    };
    let (mut dropped, mut missing) = (Vec::new(), Vec::new());
    for name in &declared {
        let known = table::lookup(name);
        let absent = !known.is_empty() && !known.iter().any(|form| evidence.supports(*form));
        if absent && evidence.complete && !evidence.names.contains(*name) {
            missing.push((*name).to_string());
            if mode == Mode::Strict {
                dropped.push((*name).to_string());
                continue;
            }
        }
        put(name, Origin::Declared);
        for form in known {
            // Where it is known that only the library is there, its other name, which stands
            // for the server's runtime, would promise what the server cannot keep.
            let only = evidence.supports(*form);
            for alias in form.aliases().filter(|a| !only || evidence.supports(*a)) {
                alias.spellings().for_each(|s| put(&s, Origin::Alias));
            }
        }
    }
    for name in &evidence.names {
        put(name, Origin::Observed);
    }
    for form in &evidence.forms {
        form.spellings().for_each(|s| put(&s, Origin::Observed));
    }
    let reported: Vec<String> = why.keys().cloned().collect();
    let of = |origin: Origin| -> Vec<String> {
        let named = why.iter().filter(|(_, o)| **o == origin);
        named.map(|(name, _)| name.clone()).collect()
    };
    Reconciled {
        hash: hash(&reported),
        kept: of(Origin::Declared),
        added: of(Origin::Observed),
        aliased: of(Origin::Alias),
        dropped,
        missing_but_declared: missing,
        source: observation.source,
        reported,
    }
}

/// Why a name is in the list; the first that applies counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Declared,
    Observed,
    Alias,
}

/// What the observation proves.
struct Evidence {
    /// Forms of capabilities that are there.
    forms: BTreeSet<table::Form>,
    /// Names that are there as they are.
    names: BTreeSet<String>,
    /// Whether what is not proven is not there.
    complete: bool,
}

impl Evidence {
    fn new(observation: &Observation) -> Self {
        let names: BTreeSet<String> = trimmed(&observation.names).map(str::to_string).collect();
        // A list is written by people: every spelling of a name is meant.
        let listed = names.iter().flat_map(|name| table::lookup(name));
        let mut forms: BTreeSet<table::Form> = listed.flat_map(|form| form.aliases()).collect();
        for distribution in &observation.distributions {
            forms.extend(table::provided_by(&distribution.name));
        }
        // Whoever lists the server means what comes with it: custom code.
        if names.contains("mlserver") {
            forms.extend(table::provided_by("mlserver"));
        }
        Evidence {
            forms,
            names,
            complete: observation.source != Source::Declared,
        }
    }

    fn supports(&self, form: table::Form) -> bool {
        self.forms.contains(&form)
    }
}

fn as_it_is(requested: &[String], list: Vec<String>, observation: &Observation) -> Reconciled {
    let reported: BTreeSet<&str> = trimmed(&list).collect();
    let declared: BTreeSet<&str> = trimmed(requested).collect();
    let owned = |names: Vec<&&str>| names.into_iter().map(|n| (*n).to_string()).collect();
    let evidence = Evidence::new(observation);
    let missing = declared.iter().filter(|name| {
        let known = table::lookup(name);
        evidence.complete && !known.is_empty() && !known.iter().any(|form| evidence.supports(*form))
    });
    Reconciled {
        hash: hash(&list),
        kept: owned(declared.intersection(&reported).collect()),
        added: owned(reported.difference(&declared).collect()),
        dropped: owned(declared.difference(&reported).collect()),
        aliased: Vec::new(),
        missing_but_declared: owned(missing.collect()),
        source: observation.source,
        reported: list,
    }
}

fn trimmed(names: &[String]) -> impl Iterator<Item = &str> {
    names.iter().map(|n| n.trim()).filter(|n| !n.is_empty())
}

/// FNV-1a over the names in order, cut to 52 bits: a gauge is a floating-point number on its way
/// to Prometheus. The same on every build, unlike the standard library's.
pub fn hash(names: &[String]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for name in names {
        for byte in name.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    (hash ^ (hash >> 52)) & ((1 << 52) - 1)
}

/// What stands in the way of one requirement of a model, for the diagnosis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the list, as the scheduler compares: exactly, after trimming.
    Satisfied,
    /// It is not; the same thing is there under this name.
    Spelling(String),
    /// It is not; this is the nearest name in the list.
    Near(String),
    /// Nothing like it is there.
    Absent,
}

/// How a requirement fares against a list.
pub fn check(requirement: &str, reported: &[String]) -> Verdict {
    let wanted = requirement.trim();
    if trimmed(reported).any(|name| name == wanted) {
        return Verdict::Satisfied;
    }
    let forms = table::lookup(wanted);
    let same = |name: &str| {
        table::fold(name) == table::fold(wanted)
            || table::lookup(name).iter().any(|form| forms.contains(form))
    };
    if let Some(name) = trimmed(reported).find(|name| same(name)) {
        return Verdict::Spelling(name.to_string());
    }
    match crate::nearest::nearest(&table::fold(wanted), trimmed(reported)) {
        Some(name) => Verdict::Near(name.to_string()),
        None => Verdict::Absent,
    }
}
