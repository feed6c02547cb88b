//! What the scheduler's own API says, as plain values: all of it that rules look at.

use serde::{Deserialize, Serialize};

use super::Believed;
use crate::proto::scheduler::model_runtime_info::Runtime;
use crate::proto::scheduler::{ModelStatusResponse, ServerStatusResponse};

/// Everything that was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerFacts {
    /// Where.
    pub target: String,
    /// Servers.
    pub servers: Vec<ServerFact>,
    /// Models, the latest version of each.
    pub models: Vec<ModelFact>,
    /// Whether this is all that the scheduler knows; the sidecar keeps what concerns it.
    pub complete: bool,
}

/// A server as the scheduler sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFact {
    /// Its name.
    pub name: String,
    /// Replicas that are there.
    pub replicas: Vec<ReplicaFact>,
    /// Replicas that it expects; negative until somebody has told it.
    pub expected: i32,
    /// Replicas that it counts.
    pub available: i32,
}

/// A replica as the scheduler sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaFact {
    /// Its index.
    pub index: u32,
    /// Total memory.
    pub total: u64,
    /// Free memory.
    pub available: u64,
    /// Models on it.
    pub models: i32,
    /// Over-commit, in percent.
    pub over_commit: u32,
}

/// A model as the scheduler sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFact {
    /// Its name.
    pub name: String,
    /// Its latest version.
    pub version: u32,
    /// `available`, `schedule-failed` and so on.
    pub state: String,
    /// The scheduler's reason.
    pub reason: String,
    /// The server that it is on; empty where it is on none.
    pub server: String,
    /// Its replicas: index, the scheduler's number of the state, the reason.
    pub replicas: Vec<(i32, i32, String)>,
    /// Replicas that serve.
    pub available: u32,
    /// Replicas that it wants.
    pub wanted: u32,
    /// Its requirements.
    pub requirements: Vec<String>,
    /// Its memory, where it states one.
    pub memory: Option<u64>,
    /// The server that it names.
    pub pinned: Option<String>,
    /// Workers that hold a copy each, once an agent has said.
    pub workers: Option<u32>,
}

impl ServerFact {
    /// What the scheduler believes of one replica; `None` where it does not list it.
    pub fn believed(&self, index: u32) -> Option<Believed> {
        let replica = self.replicas.iter().find(|r| r.index == index)?;
        Some(Believed {
            total: replica.total,
            available: replica.available,
            models: replica.models,
            replicas: self.available,
            expected: self.expected,
        })
    }
}

/// Facts of an answer about servers.
pub fn server(answer: &ServerStatusResponse) -> ServerFact {
    let replicas = answer.resources.iter().map(|r| ReplicaFact {
        index: r.replica_idx,
        total: r.total_memory_bytes,
        available: r.available_memory_bytes,
        models: r.num_loaded_models,
        over_commit: r.over_commit_percentage,
    });
    ServerFact {
        name: answer.server_name.clone(),
        replicas: replicas.collect(),
        expected: answer.expected_replicas,
        available: answer.available_replicas,
    }
}

/// Facts of an answer about a model; `None` where it is deleted or has no version.
pub fn model(answer: &ModelStatusResponse) -> Option<ModelFact> {
    if answer.deleted {
        return None;
    }
    let version = answer.versions.iter().max_by_key(|v| v.version)?;
    let state = version.state.clone().unwrap_or_default();
    let defined = version.model_defn.clone().unwrap_or_default();
    let spec = defined.model_spec.unwrap_or_default();
    let runtime = spec.model_runtime_info.and_then(|info| info.runtime);
    let workers = runtime.map(|Runtime::Mlserver(settings)| settings.parallel_workers);
    let mut replicas: Vec<(i32, i32, String)> = version
        .model_replica_state
        .iter()
        .map(|(index, r)| (*index, r.state, r.reason.clone()))
        .collect();
    replicas.sort_unstable();
    Some(ModelFact {
        name: answer.model_name.clone(),
        version: version.version,
        state: state_name(state.state).into(),
        reason: state.reason.clone(),
        server: version.server_name.clone(),
        replicas,
        available: state.available_replicas,
        wanted: defined.deployment_spec.map_or(1, |d| d.replicas).max(1),
        requirements: spec.requirements,
        memory: spec.memory_bytes,
        pinned: spec.server.filter(|s| !s.is_empty()),
        workers,
    })
}

/// The scheduler's numbers in words; later releases have more.
fn state_name(state: i32) -> &'static str {
    match state {
        1 => "progressing",
        2 => "available",
        3 => "failed",
        4 => "terminating",
        5 => "terminated",
        6 => "terminate-failed",
        7 => "schedule-failed",
        8 => "scaled-down",
        9 => "create",
        10 => "terminate",
        _ => "unknown",
    }
}
