//! The `/status` document: one JSON object whose shape is documented in docs/status.md and pinned
//! by a test. Also read back by `agent-shim status`, so both sides are one type.

use serde::{Deserialize, Serialize};

use crate::endpoint::Protocol;
use crate::models::{Model, ServerMetadata};
use crate::state::Shared;

mod lately;
mod reporting;

/// The whole document.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Document {
    /// The build.
    pub build: Build,
    /// `correct` or `observe`.
    pub mode: String,
    /// Every candidate, for each protocol in order.
    pub endpoints: Vec<EndpointStatus>,
    /// The host in use, for each protocol.
    pub selection: Selection,
    /// The server's metadata, once known.
    pub server: Option<ServerStatus>,
    /// The repository index as last read.
    pub models: Vec<Model>,
    /// Memory; null where nothing is known.
    pub capacity: Capacity,
    /// Capability names.
    pub capabilities: Capabilities,
    /// Named facts.
    pub conditions: Vec<ConditionStatus>,
    /// What is wrong, in words.
    pub findings: Vec<Finding>,
    /// The last changes, newest first.
    #[serde(default)]
    pub transitions: Vec<TransitionStatus>,
}

/// Which build this is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Build {
    /// Version.
    pub version: String,
    /// Target triple.
    pub target: String,
}

/// One candidate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// The host as configured.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `http` or `grpc`.
    pub protocol: String,
    /// `up`, `stalled`, `down` or `unknown`.
    pub state: String,
    /// The reason of the last failed probe; null while the last probe succeeded.
    pub reason: Option<String>,
    /// What that probe saw.
    pub detail: Option<String>,
    /// When the state began, RFC 3339.
    pub since: String,
    /// When the server last answered here.
    pub last_success: Option<String>,
    /// Latency of that answer, in milliseconds.
    pub latency_ms: Option<f64>,
    /// The server's own readiness in it.
    pub server_ready: Option<bool>,
    /// The last probes, oldest first; neighbours with one outcome are one entry.
    #[serde(default)]
    pub recent: Vec<RecentProbes>,
}

/// Probes in a row with one outcome.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RecentProbes {
    /// `ok`, `slow` (answered, later than 100 ms) or `failed`.
    pub outcome: String,
    /// Why they failed.
    pub reason: Option<String>,
    /// How many probes.
    pub probes: u32,
    /// How long, in slots of about one probe interval; the last 60 are kept.
    pub slots: u32,
    /// When the first slot began, RFC 3339.
    pub from: String,
    /// When the last slot began, RFC 3339.
    pub to: String,
    /// The slowest answer, in milliseconds.
    pub slowest_ms: Option<f64>,
}

/// A change of an endpoint, a selection or a condition.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TransitionStatus {
    /// When, RFC 3339.
    pub at: String,
    /// `endpoint`, `selection`, `condition` (of the pod) or `registration` (beyond it).
    pub kind: String,
    /// Which endpoint, protocol or condition.
    pub subject: String,
    /// The state before; null where there was none.
    pub from: Option<String>,
    /// The state after.
    pub to: String,
    /// Why, in words.
    pub reason: Option<String>,
}

/// The host in use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Selection {
    /// For HTTP.
    pub http: Option<String>,
    /// For gRPC.
    pub grpc: Option<String>,
}

/// The server, and how fresh the knowledge of it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Name, version and extensions.
    #[serde(flatten)]
    pub metadata: ServerMetadata,
    /// When the repository index was read last.
    pub read_at: Option<String>,
    /// Why the last look failed.
    pub error: Option<String>,
}

/// Memory in bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// What the agent asked for.
    pub requested: Option<u64>,
    /// What was measured.
    pub observed: Option<u64>,
    /// What was sent to the scheduler.
    pub reported: Option<u64>,
    /// What the scheduler answered.
    pub believed: Option<u64>,
    /// Why the reported figure is what it is.
    pub why: Option<String>,
    /// Free memory as last told to the scheduler.
    pub available: Option<u64>,
    /// Free memory as the scheduler answered.
    pub available_believed: Option<u64>,
    /// Every source of the observed figure, in order.
    pub sources: Vec<CapacitySource>,
    /// Resident memory of the server's processes now.
    pub used: Option<u64>,
    /// What its cgroup uses now, page cache included.
    pub cgroup_used: Option<u64>,
}

/// One source of the observed figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CapacitySource {
    /// Its name.
    pub source: String,
    /// Its figure.
    pub bytes: Option<u64>,
    /// Age in seconds.
    pub age_s: f64,
    /// Whether it was taken.
    pub chosen: bool,
    /// Why it was or was not.
    pub reason: String,
}

/// Capability names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// What the agent asked for.
    pub requested: Vec<String>,
    /// What was sent to the scheduler.
    pub reported: Vec<String>,
    /// In the second and not in the first.
    pub added: Vec<String>,
    /// In the first and not in the second.
    pub dropped: Vec<String>,
    /// Other spellings that were added.
    pub aliased: Vec<String>,
    /// Declared, and known not to be installed.
    pub missing: Vec<String>,
    /// Where the knowledge of what is installed comes from.
    pub source: Option<String>,
    /// How many distributions the server has.
    pub distributions: usize,
}

/// One condition.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConditionStatus {
    /// Its name.
    pub name: String,
    /// Whether it holds.
    pub status: bool,
    /// Why, in words.
    pub reason: String,
    /// When it last changed, RFC 3339.
    pub since: String,
}

/// One thing that is wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    /// The condition or rule it comes from.
    pub rule: String,
    /// The sentence.
    pub text: String,
}

/// The document of this moment.
pub fn document(shared: &Shared) -> Document {
    let view = shared.view();
    let clock = &shared.clock;
    let inventory = shared.inventory.borrow().clone();
    let mut conditions = shared.conditions();
    conditions.extend(shared.remote_conditions());
    let endpoints = Protocol::ALL
        .into_iter()
        .flat_map(|protocol| view.of(protocol).iter().enumerate())
        .map(|(index, e)| EndpointStatus {
            recent: lately::recent(shared, e.candidate.protocol, index),
            host: e.candidate.host.to_string(),
            port: e.candidate.port,
            protocol: e.candidate.protocol.as_str().into(),
            state: e.health.state.as_str().into(),
            reason: e.health.reason.map(|r| r.as_str().into()),
            detail: e.health.reason.map(|_| e.health.detail.clone()),
            since: clock.rfc3339(e.health.since),
            last_success: e.health.last_success.map(|at| clock.rfc3339(at)),
            latency_ms: e
                .health
                .latency
                .map(|l| (l.as_secs_f64() * 1e6).round() / 1e3),
            server_ready: e.health.server_ready,
        })
        .collect();
    let selected = |protocol| {
        view.selected(protocol)
            .map(|e| e.candidate.host.to_string())
    };
    Document {
        build: Build {
            version: crate::VERSION.into(),
            target: crate::TARGET.into(),
        },
        mode: shared.mode.as_str().into(),
        endpoints,
        selection: Selection {
            http: selected(Protocol::Http),
            grpc: selected(Protocol::Grpc),
        },
        server: inventory.server.clone().map(|metadata| ServerStatus {
            metadata,
            read_at: inventory.read_at.map(|at| clock.rfc3339(at)),
            error: inventory.error.clone(),
        }),
        models: inventory.models.clone(),
        findings: reporting::findings(shared, &conditions),
        transitions: lately::transitions(shared),
        capacity: reporting::capacity(shared),
        capabilities: reporting::capabilities(shared),
        conditions: conditions
            .into_iter()
            .map(|c| ConditionStatus {
                name: c.name.into(),
                status: c.holds,
                reason: c.reason,
                since: clock.rfc3339(c.since),
            })
            .collect(),
    }
}
