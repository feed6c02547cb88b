//! The `/status` document: one JSON object whose shape is documented in docs/status.md and pinned
//! by a test. Also read back by `agent-shim status`, so both sides are one type.

use serde::{Deserialize, Serialize};

use crate::endpoint::Protocol;
use crate::models::{Model, ServerMetadata};
use crate::state::Shared;

pub mod around;
mod lately;
pub(super) mod reporting;

pub use around::{Around, SubscriptionStatus};

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
    /// Models that a restart of the server has taken and that are not back.
    #[serde(default)]
    pub restoring: Vec<Restoring>,
    /// The server's worker, as far as it can be seen.
    #[serde(default)]
    pub worker: WorkerStatus,
    /// Memory; null where nothing is known.
    pub capacity: Capacity,
    /// Capability names.
    pub capabilities: Capabilities,
    /// Seldon's agent, by its own readiness port.
    #[serde(default)]
    pub agent: AgentStatus,
    /// Drains that were called for on `/drain`.
    #[serde(default)]
    pub drain: DrainStatus,
    /// The agent's way to the scheduler; null where it is off.
    #[serde(default)]
    pub subscription: Option<SubscriptionStatus>,
    /// The shim itself, and what it sees of the server's surroundings.
    #[serde(default)]
    pub around: Around,
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

/// Seldon's agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AgentStatus {
    /// `unknown`, `ready`, `not-ready`, `silent` or `stuck`.
    pub state: String,
    /// When that began, RFC 3339.
    pub since: String,
    /// Why, in words.
    pub reason: String,
    /// Whether `/livez/agent` says that it is alive.
    pub live: bool,
    /// For how long nobody has listened where it called itself ready before, in seconds; null where
    /// somebody does, or it never has.
    #[serde(default)]
    pub absent_s: Option<f64>,
}

/// A drain that was called for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DrainStatus {
    /// `none`, `draining`, `drained`, `gave-up`; `stopping` once SIGTERM has come.
    pub state: String,
    /// When that began, RFC 3339; null before the first.
    pub since: Option<String>,
    /// For how long it has stood so, in seconds.
    #[serde(default)]
    pub for_s: f64,
    /// Whether the agent drains or has drained for it.
    #[serde(default)]
    pub agent_drains: bool,
    /// Inference calls that run now.
    pub running: usize,
    /// Inference calls that ran when it began.
    pub at_start: usize,
    /// Callers that wait for its end.
    pub waiting: usize,
    /// What the agent does, in words.
    pub agent: String,
    /// What the last one came to, in words; empty before its end.
    pub summary: String,
    /// Drains that were no termination, and were taken back.
    pub undone: u64,
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
    /// The id of its rule: `AS` and three digits.
    pub rule: String,
    /// The name of its rule.
    #[serde(default)]
    pub name: String,
    /// `broken` or `warning`.
    #[serde(default)]
    pub severity: String,
    /// The sentence.
    pub text: String,
    /// The line of YAML or the command that mends it.
    #[serde(default)]
    pub fix: String,
    /// What was seen, one line each.
    #[serde(default)]
    pub evidence: Vec<String>,
}

/// The server's worker.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Worker processes that are there; null where they cannot be seen.
    pub processes: Option<usize>,
    /// `unseen`, `none-yet`, `there`, `missing` or `looping` (they end as soon as they start).
    #[serde(default)]
    pub state: String,
    /// For how long they have been missing or looping, in seconds; null in the other states.
    #[serde(default)]
    pub for_s: Option<f64>,
    /// Those that were seen to end while their main process lived.
    pub exits: u64,
    /// Of those, within the last minute.
    #[serde(default)]
    pub recent_exits: usize,
    /// Relayed HTTP inferences in a row that ended with an internal error that is no model's.
    #[serde(default)]
    pub failed: u32,
    /// Time between the first and the last of those, in seconds.
    #[serde(default)]
    pub failed_for_s: f64,
    /// Process ids of those that a killed main process has left behind.
    pub orphans: Vec<u32>,
    /// How the last canary ended: `worked`, `failed`, `lost`, `refused` or `broken`.
    pub canary: Option<String>,
    /// What the server said to the last canary, where it failed or was refused.
    #[serde(default)]
    pub canary_said: Option<String>,
    /// When the last canary ended.
    pub canary_at: Option<String>,
    /// When the canary was sent that is not answered yet.
    pub canary_outstanding_since: Option<String>,
    /// For how long none of the inferences that run was answered, in seconds, where a canary beside
    /// them has no answer either.
    #[serde(default)]
    pub unanswered_for_s: Option<f64>,
    /// Why none is sent at the moment.
    pub canary_skipped: Option<String>,
    /// Models that are UNKNOWN without being loaded.
    pub stuck: Vec<String>,
    /// READY models that the worker does not have.
    pub lost: Vec<String>,
    /// Bad states that were mended.
    pub mended: std::collections::BTreeMap<String, u64>,
}

/// One model that is being restored, or could not be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restoring {
    /// Its name.
    pub model: String,
    /// `due`, `loading` or `given-up`.
    pub stage: String,
    /// Failed tries.
    pub failures: u32,
    /// Why the last one failed.
    pub error: Option<String>,
}

/// The document of this moment.
pub fn document(shared: &Shared) -> Document {
    let document = facts(shared);
    let findings = crate::doctor::watch::judge(shared, document.clone());
    Document {
        findings: findings.findings().map(reporting::finding).collect(),
        ..document
    }
}

/// The document without findings: what they are judged by.
pub fn facts(shared: &Shared) -> Document {
    let view = shared.view();
    let clock = &shared.clock;
    let agent = shared.agent.borrow().clone();
    let inventory = shared.inventory.borrow().clone();
    let mut conditions = shared.conditions();
    conditions.extend(shared.further_conditions());
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
        restoring: reporting::restoring(shared),
        worker: reporting::worker(shared),
        transitions: lately::transitions(shared),
        capacity: reporting::capacity(shared),
        capabilities: reporting::capabilities(shared),
        drain: reporting::drain(shared),
        agent: AgentStatus {
            state: agent.state.as_str().into(),
            since: clock.rfc3339(agent.since),
            live: agent.live(clock.now()).0,
            absent_s: agent
                .absent
                .map(|since| clock.now().saturating_sub(since).as_secs_f64()),
            reason: agent.reason,
        },
        findings: Vec::new(),
        subscription: around::subscription(shared),
        around: around::around(shared, &view),
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
