//! How much memory the inference server has for models: the policy over sources, and the
//! arithmetic of agent and scheduler.
//!
//! Pure: [`memory`] and [`cgroup`] read the numbers, this decides. It never invents one: where
//! nothing was observed the agent's own figure is passed on, with a reason. No figure that is
//! sent is 0 by way of a reserve.
//!
//! For the interposer: build [`Sources`] (or take [`crate::observer::Observed`]), call
//! [`observe`] once a look and [`report()`] once a message with the agent's own `memoryBytes`.

use std::fmt;
use std::time::Duration;

pub mod cgroup;
pub mod memory;
pub mod quantity;
mod report;

pub use report::{Reported, Why, report};

#[cfg(test)]
mod tests;

/// What the agent sends as its total when `MEMORY_REQUEST` is missing from its environment.
pub const AGENT_DEFAULT: u64 = 1_000_000;

/// Which figure of the container counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The request where it is set, as Seldon does; else the limit.
    Auto,
    /// The request; without one, the cgroup and the node.
    Request,
    /// The limit; without one, the cgroup and the node.
    Limit,
}

impl Basis {
    /// The name used in the environment.
    pub fn as_str(self) -> &'static str {
        match self {
            Basis::Auto => "auto",
            Basis::Request => "request",
            Basis::Limit => "limit",
        }
    }
}

/// What is kept free of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Bytes.
    Bytes(u64),
    /// Percent of the figure that was chosen, at most 100.
    Percent(u8),
    /// What the server itself needs: its resident memory with no model loaded.
    Measured,
}

impl fmt::Display for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reserve::Bytes(bytes) => write!(f, "{bytes}"),
            Reserve::Percent(percent) => write!(f, "{percent}%"),
            Reserve::Measured => f.write_str("measured"),
        }
    }
}

/// A part of a whole in thousandths, so that the arithmetic stays in whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction(u16);

impl Fraction {
    /// From above 0 to 1, with at most three digits after the point.
    pub fn parse(text: &str) -> Option<Fraction> {
        let (whole, digits) = text.split_once('.').unwrap_or((text, ""));
        let digit = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if whole.len() > 1 || digits.len() > 3 || !digit(whole) || !digit(digits) {
            return None;
        }
        let thousandths: u16 = format!("{whole:0>1}{digits:0<3}").parse().ok()?;
        (1..=1000)
            .contains(&thousandths)
            .then_some(Fraction(thousandths))
    }

    /// This part of `bytes`, rounded down.
    pub fn of(self, bytes: u64) -> u64 {
        scale(bytes, u64::from(self.0), 1000)
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

/// What the operator has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The container's memory as the operator states it.
    pub explicit: Option<u64>,
    /// Which figure of the container counts.
    pub basis: Basis,
    /// What is kept free of models.
    pub reserve: Reserve,
    /// The part of the node's memory that is taken where nothing else is known.
    pub node_fraction: Fraction,
}

/// Where a figure comes from, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// `SHIM_MEMORY_BYTES`.
    Explicit,
    /// The downward API's request of the inference container.
    Request,
    /// The downward API's limit of the inference container.
    Limit,
    /// The limit of the inference container's cgroup.
    Cgroup,
    /// A part of the node's memory.
    Node,
}

impl Source {
    /// All, in the order in which they are asked.
    pub const ALL: [Source; 5] = [
        Source::Explicit,
        Source::Request,
        Source::Limit,
        Source::Cgroup,
        Source::Node,
    ];

    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Explicit => "explicit",
            Source::Request => "request",
            Source::Limit => "limit",
            Source::Cgroup => "cgroup",
            Source::Node => "node",
        }
    }
}

/// What one look at one source found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Found {
    /// Nobody has looked, or the variable is not set.
    #[default]
    Unset,
    /// A number of bytes.
    Bytes(u64),
    /// The source says that there is no limit.
    Unlimited,
    /// It could not be read, and why.
    Unavailable(&'static str),
}

/// A look and when it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// What was found.
    pub found: Found,
    /// When, since the start of the process.
    pub at: Duration,
}

impl Reading {
    fn bytes(&self) -> Option<u64> {
        match self.found {
            Found::Bytes(bytes) => Some(bytes),
            Found::Unset | Found::Unlimited | Found::Unavailable(_) => None,
        }
    }
}

/// Every number that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sources {
    /// The time of the observation, for ages.
    pub now: Duration,
    /// `SHIM_MEMORY_REQUEST`.
    pub request: Reading,
    /// `SHIM_MEMORY_LIMIT`.
    pub limit: Reading,
    /// The cgroup's limit.
    pub cgroup: Reading,
    /// The node's memory, whole.
    pub node: Reading,
    /// The server's resident memory with no model loaded.
    pub baseline: Reading,
}

/// One source, as it was weighed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// Which.
    pub source: Source,
    /// Its figure for the container, before the reserve.
    pub bytes: Option<u64>,
    /// How old the reading is.
    pub age: Duration,
    /// Whether this is the one.
    pub chosen: bool,
    /// Why it was chosen, or why not.
    pub reason: &'static str,
}

/// What became of the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reserved {
    /// None is configured.
    #[default]
    No,
    /// So many bytes were taken off.
    Bytes(u64),
    /// The baseline is not measured yet, or cannot be: nothing was taken off.
    NotMeasured,
    /// So many bytes would leave nothing for models: nothing was taken off.
    LeavesNothing(u64),
}

impl Reserved {
    /// The bytes that were taken off.
    pub fn bytes(self) -> u64 {
        match self {
            Reserved::Bytes(bytes) => bytes,
            Reserved::No | Reserved::NotMeasured | Reserved::LeavesNothing(_) => 0,
        }
    }
}

/// The memory of the inference container, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// What models may use: the chosen figure without the reserve. `None`: nothing is known.
    pub bytes: Option<u64>,
    /// The source that was chosen.
    pub source: Option<Source>,
    /// The chosen figure before the reserve.
    pub gross: Option<u64>,
    /// What became of the reserve.
    pub reserved: Reserved,
    /// What the container is killed above.
    pub ceiling: Option<u64>,
    /// The server's resident memory with no model loaded, where it was measured.
    pub baseline: Option<u64>,
    /// An explicit figure is above the ceiling. It stands: the operator said so.
    pub explicit_above_ceiling: bool,
    /// Every source with its value, age and verdict, in order.
    pub considered: Vec<Considered>,
}

/// Weighs the sources.
pub fn observe(policy: &Policy, sources: &Sources) -> Observation {
    let limit = container_limit(sources);
    let ceiling = [limit.ok(), sources.cgroup.bytes()]
        .into_iter()
        .flatten()
        .filter(|bytes| *bytes > 0)
        .min();
    let mut considered: Vec<Considered> = Vec::with_capacity(Source::ALL.len());
    let mut chosen: Option<(Source, u64)> = None;
    for source in Source::ALL {
        let (reading, verdict) = weigh(source, policy, sources, limit);
        let (bytes, reason) = match (verdict, chosen) {
            (Ok((bytes, _)), Some((first, _))) => (Some(bytes), after(first)),
            (Ok((bytes, why)), None) => {
                // Whatever a source says, the container is killed above its limit.
                let usable = match (source, ceiling) {
                    (Source::Explicit, _) | (_, None) => bytes,
                    (_, Some(ceiling)) => bytes.min(ceiling),
                };
                chosen = Some((source, usable));
                (Some(bytes), why)
            }
            (Err(why), _) => (reading.bytes(), why),
        };
        considered.push(Considered {
            source,
            bytes,
            age: sources.now.saturating_sub(reading.at),
            chosen: chosen.is_some_and(|(s, _)| s == source),
            reason,
        });
    }
    let baseline = sources.baseline.bytes();
    let gross = chosen.map(|(_, bytes)| bytes);
    let (bytes, reserved) = match gross {
        Some(gross) => {
            let (bytes, reserved) = keep_free(gross, policy.reserve, baseline);
            (Some(bytes), reserved)
        }
        None => (None, Reserved::No),
    };
    Observation {
        bytes,
        source: chosen.map(|(source, _)| source),
        gross,
        reserved,
        ceiling,
        baseline,
        explicit_above_ceiling: policy
            .explicit
            .zip(ceiling)
            .is_some_and(|(explicit, ceiling)| explicit > ceiling),
        considered,
    }
}

/// The figure of one source with the reason for taking it, or the reason against.
fn weigh(
    source: Source,
    policy: &Policy,
    sources: &Sources,
    limit: Result<u64, &'static str>,
) -> (Reading, Result<(u64, &'static str), &'static str>) {
    let other_basis = "SHIM_MEMORY_BASIS names the other figure";
    match source {
        Source::Explicit => {
            let reading = Reading {
                found: policy.explicit.map_or(Found::Unset, Found::Bytes),
                at: Duration::ZERO,
            };
            (reading, figure(reading, "SHIM_MEMORY_BYTES is set"))
        }
        Source::Request => {
            let verdict = match policy.basis {
                Basis::Limit => Err(other_basis),
                Basis::Auto => figure(
                    sources.request,
                    "the container's request, as Seldon takes it",
                ),
                Basis::Request => figure(sources.request, "SHIM_MEMORY_BASIS is request"),
            };
            (sources.request, verdict)
        }
        Source::Limit => {
            let verdict = match policy.basis {
                Basis::Request => Err(other_basis),
                Basis::Auto => limit.map(|b| (b, "no request; the container's limit")),
                Basis::Limit => limit.map(|b| (b, "SHIM_MEMORY_BASIS is limit")),
            };
            (sources.limit, verdict)
        }
        Source::Cgroup => (
            sources.cgroup,
            figure(sources.cgroup, "the limit of the container's cgroup"),
        ),
        Source::Node => {
            let whole = sources.node;
            let verdict = figure(whole, "nothing limits the container but the node");
            let part = verdict.map(|(bytes, why)| (policy.node_fraction.of(bytes), why));
            (
                whole,
                part.and_then(|(b, why)| if b == 0 { Err("it is 0") } else { Ok((b, why)) }),
            )
        }
    }
}

/// What the downward API calls the limit, where it is one.
///
/// Without a limit the downward API gives the node's allocatable memory instead: a number that
/// is as good as the node's, from 90% of its memory up. The cgroup, which is read while the
/// container runs, also knows of limits that were changed in place.
fn container_limit(sources: &Sources) -> Result<u64, &'static str> {
    let (bytes, _) = figure(sources.limit, "")?;
    match sources.cgroup.found {
        Found::Bytes(real) if real != bytes && real > 0 => {
            return Err("the cgroup has another limit now: it was changed after the start");
        }
        Found::Bytes(_) => return Ok(bytes),
        // A limit may stand above the cgroup that can be read, so a figure below the node's counts.
        Found::Unlimited | Found::Unset | Found::Unavailable(_) => {}
    }
    match sources.node.bytes() {
        Some(node) if bytes >= scale(node, 9, 10) => {
            Err("as large as the node: its allocatable memory, which stands for no limit")
        }
        _ => Ok(bytes),
    }
}

fn figure(reading: Reading, why: &'static str) -> Result<(u64, &'static str), &'static str> {
    match reading.found {
        Found::Bytes(0) => Err("it is 0"),
        Found::Bytes(bytes) => Ok((bytes, why)),
        Found::Unset => Err("not set"),
        Found::Unlimited => Err("no limit"),
        Found::Unavailable(reason) => Err(reason),
    }
}

fn after(first: Source) -> &'static str {
    match first {
        Source::Explicit => "SHIM_MEMORY_BYTES comes first",
        Source::Request => "the request comes first",
        Source::Limit => "the limit comes first",
        Source::Cgroup => "the cgroup comes first",
        Source::Node => "the node comes first",
    }
}

/// Takes the reserve off. A reserve that leaves nothing is not applied: a total of 0 is the
/// fault that the shim is there to mend.
fn keep_free(gross: u64, reserve: Reserve, baseline: Option<u64>) -> (u64, Reserved) {
    let off = match reserve {
        Reserve::Bytes(bytes) => bytes,
        Reserve::Percent(percent) => scale(gross, u64::from(percent.min(100)), 100),
        Reserve::Measured => match baseline {
            Some(bytes) => bytes,
            None => return (gross, Reserved::NotMeasured),
        },
    };
    match gross.checked_sub(off) {
        _ if off == 0 => (gross, Reserved::No),
        Some(0) | None => (gross, Reserved::LeavesNothing(off)),
        Some(net) => (net, Reserved::Bytes(off)),
    }
}

/// What over-commit adds to a total: total x percent / 100, rounded down, as agent and scheduler
/// reckon it. Where they would overflow this is the largest number.
pub fn overcommit(total: u64, percent: u32) -> u64 {
    scale(total, u64::from(percent), 100)
}

/// What agent and scheduler call available: the total with over-commit, less what loaded models
/// use; 0 where they use more.
pub fn available(total: u64, overcommit_percent: u32, used: u64) -> u64 {
    // The sum is taken in 128 bits so that a saturated total still shrinks with use.
    let with = u128::from(total) + u128::from(overcommit(total, overcommit_percent));
    let left = with.saturating_sub(u128::from(used));
    u64::try_from(left).unwrap_or(u64::MAX)
}

/// `bytes` x `by` / `of`, without overflow on the way.
fn scale(bytes: u64, by: u64, of: u64) -> u64 {
    let product = u128::from(bytes) * u128::from(by) / u128::from(of.max(1));
    u64::try_from(product).unwrap_or(u64::MAX)
}
