//! The environment, read once: raw strings through `envy`, then one validated [`Config`].
//!
//! Owns the table of variables ([`VARIABLES`]); README, `agent-shim config` and the warnings about
//! unknown names are made from it. Nothing else in the crate reads the environment.
//! All problems are collected before any is reported, so an operator sees every mistake at once.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::capability;
use crate::capacity;
use crate::endpoint::{Candidate, Host, Protocol};
use crate::health::Thresholds;

pub mod agent;
pub mod models;
mod reader;
pub mod scheduler;
#[cfg(test)]
mod tests;
mod variables;

pub use variables::{POD_VARIABLES, VARIABLES, Variable, markdown_table};

use agent::{AgentConfig, DrainConfig, MergeConfig};
use models::ModelsConfig;
use reader::Reader;
use scheduler::SchedulerConfig;

/// What the shim may do to the traffic it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Answers health calls, corrects what is wrong.
    Correct,
    /// Relays every byte as it came and only measures.
    Observe,
}

impl Mode {
    /// The name used in the environment, in JSON and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Correct => "correct",
            Mode::Observe => "observe",
        }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How candidates are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeConfig {
    /// Time between two probes of one candidate once it has answered.
    pub interval: Duration,
    /// Limit for opening a connection, of probes and of relayed callers alike.
    pub connect_timeout: Duration,
    /// Limit for one answer once connected.
    pub timeout: Duration,
    /// When states flip.
    pub thresholds: Thresholds,
}

/// How the server's memory is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryConfig {
    /// What counts, and what is kept free.
    pub policy: capacity::Policy,
    /// The inference container's request, from the downward API.
    pub request: Option<u64>,
    /// Its limit, from the downward API; the node's allocatable memory where it has none.
    pub limit: Option<u64>,
}

/// How the server's capabilities are learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapabilitiesConfig {
    /// What is done with the agent's list, and the operator's own.
    pub policy: capability::Policy,
    /// A list that the pod itself writes.
    pub file: Option<PathBuf>,
    /// Whether the server may be asked through a model of the shim's.
    pub probe: bool,
    /// Where the shim would put that model.
    pub models_dir: PathBuf,
}

/// The validated settings of `agent-shim run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `SHIM_MODE`.
    pub mode: Mode,
    /// Candidate hosts in order: the configured ones, then the pod's own addresses.
    pub hosts: Vec<Host>,
    /// The server's HTTP port.
    pub http_port: u16,
    /// The server's gRPC port.
    pub grpc_port: u16,
    /// Addresses of the two relay listeners.
    pub relay_listen: Vec<IpAddr>,
    /// Port of the HTTP relay; 0 takes a free one.
    pub relay_http_port: u16,
    /// Port of the gRPC relay; 0 takes a free one.
    pub relay_grpc_port: u16,
    /// Addresses of the admin listener.
    pub admin_listen: Vec<IpAddr>,
    /// Port of the admin listener; 0 takes a free one.
    pub admin_port: u16,
    /// Probing.
    pub probe: ProbeConfig,
    /// How long a preferred candidate must have been up before it is used again.
    pub failback_hold: Duration,
    /// How long after the last answer the server still counts as live.
    pub outage_grace: Duration,
    /// How long a gRPC `ServerLive` whose caller has the time is held instead of answered with no.
    pub live_hold: Duration,
    /// Limit for a caller's first bytes and for every header that it has begun to send.
    pub header_timeout: Duration,
    /// How long connections are carried on after SIGTERM.
    pub drain_time: Duration,
    /// Time between two looks at the repository index without an event.
    pub index_interval: Duration,
    /// Capacity.
    pub memory: MemoryConfig,
    /// Capabilities.
    pub capabilities: CapabilitiesConfig,
    /// Lost models, and a worker that does not work.
    pub models: ModelsConfig,
    /// The scheduler, and the agent's way to it.
    pub scheduler: SchedulerConfig,
    /// Looking at the agent.
    pub agent: AgentConfig,
    /// `/drain`.
    pub drain: DrainConfig,
    /// One scrape for the pod.
    pub merge: MergeConfig,
    /// Log filter.
    pub log: LogFilter,
    /// Log format.
    pub log_format: LogFormat,
}

/// A log filter that has been checked: a level, or a comma list of `target=level`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl std::str::FromStr for LogFilter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match crate::telemetry::is_filter(text) {
            true => Ok(LogFilter(text.into())),
            false => Err(
                "expected a level (off, error, warn, info, debug, trace), or a list of target=level",
            ),
        }
    }
}

impl LogFilter {
    /// The directives as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Config {
    /// The candidates of one protocol, in order.
    pub fn candidates(&self, protocol: Protocol) -> Vec<Candidate> {
        let port = match protocol {
            Protocol::Http => self.http_port,
            Protocol::Grpc => self.grpc_port,
        };
        self.hosts
            .iter()
            .map(|host| Candidate {
                host: host.clone(),
                port,
                protocol,
            })
            .collect()
    }
}

/// One thing wrong with the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable.
    pub variable: String,
    /// Its value, as found.
    pub value: String,
    /// What would be accepted, or which rule is broken.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}={:?}: expected {}",
            self.variable, self.value, self.expected
        )
    }
}

/// All problems of one reading.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {} problem(s):{}", .0.len(), .0.iter().map(|p| format!("\n  {p}")).collect::<String>())]
pub struct Problems(pub Vec<Problem>);

/// A reading that worked.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Names set in the environment, so that each value's origin can be shown.
    pub from_environment: Vec<&'static str>,
    /// Things worth a look that stop nothing: unknown names, ignored service links.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// Every variable with its effective value and where that came from, in the table's order.
    pub fn effective(&self) -> Vec<(&'static Variable, String, &'static str)> {
        VARIABLES
            .iter()
            .map(|variable| {
                let origin = if self.from_environment.contains(&variable.name) {
                    "environment"
                } else {
                    "default"
                };
                (variable, (variable.show)(&self.config), origin)
            })
            .collect()
    }
}

/// A variable that is not the shim's own, such as `HOME`; `None` where it is empty or no text.
pub fn foreign(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.into_string().ok()?;
    (!value.is_empty()).then_some(value)
}

/// Reads the process environment.
pub fn load() -> Result<Loaded, Problems> {
    load_from(std::env::vars_os())
}

/// Whether the person at the terminal wants no colours, by the custom of <https://no-color.org>.
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Reads any list of names and values; tests pass their own.
pub fn load_from<I, N, V>(variables: I) -> Result<Loaded, Problems>
where
    I: IntoIterator<Item = (N, V)>,
    N: Into<OsString>,
    V: Into<OsString>,
{
    let mut reader = Reader::new(variables);
    let config = reader.config();
    reader.warn_unknown();
    if !reader.problems.is_empty() {
        return Err(Problems(reader.problems));
    }
    let from_environment = VARIABLES
        .iter()
        .map(|v| v.name)
        .filter(|name| reader.text(name).is_some())
        .collect();
    Ok(Loaded {
        config,
        from_environment,
        warnings: reader.warnings,
    })
}
