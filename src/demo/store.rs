//! What the stand-in scheduler believes, and how it decides: filters in the real one's order, with
//! its reasons. No sockets.

use std::collections::BTreeMap;

use tokio::sync::mpsc::UnboundedSender;

use crate::proto::agent::model_event_message::Event;
use crate::proto::agent::model_operation_message::Operation;
use crate::proto::agent::{
    AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage, ModelScalingTriggerMessage,
    ModelVersion,
};
use crate::proto::scheduler::model_runtime_info::Runtime;
use crate::proto::scheduler::model_status::ModelState;
use crate::proto::scheduler::{
    Model, ModelSpec, ModelStatus, ModelStatusResponse, ModelVersionStatus, ServerReplicaResources,
    ServerStatusResponse,
};

/// Reason of a model that no server can take.
pub const NO_SERVER: &str = "Failed to schedule model as no matching servers are available";
/// Reason of a model that no replica has room for.
pub const NO_REPLICA: &str =
    "Failed to schedule model as no matching server had enough suitable replicas";

/// State of a model on its replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReplica {
    /// Not anywhere.
    Nowhere,
    /// The agent was asked.
    Loading,
    /// The agent has it.
    Loaded,
    /// The agent failed.
    LoadFailed,
    /// The agent was asked to let it go.
    Unloading,
    /// It has.
    Unloaded,
}

/// A model as the scheduler keeps it.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its definition.
    pub model: Model,
    /// Its version.
    pub version: u32,
    /// Where it is.
    pub on: Option<(String, u32)>,
    /// Its state there.
    pub state: OnReplica,
    /// Why it is not available.
    pub reason: String,
    /// Its workers, once the agent has said.
    pub workers: u64,
    deleted: bool,
}

/// A subscribed replica.
#[derive(Debug)]
pub struct Replica {
    /// Total memory.
    pub total: u64,
    /// Free memory.
    pub available: u64,
    /// Held back for models that are being loaded.
    pub reserved: u64,
    /// Capabilities.
    pub capabilities: Vec<String>,
    over_commit: u32,
    shared: bool,
    draining: bool,
    operations: Option<UnboundedSender<ModelOperationMessage>>,
}

impl Replica {
    /// From its request.
    pub fn new(
        request: &AgentSubscribeRequest,
        operations: UnboundedSender<ModelOperationMessage>,
    ) -> Self {
        let config = request.replica_config.clone().unwrap_or_default();
        Replica {
            total: config.memory_bytes,
            available: request.available_memory_bytes,
            reserved: 0,
            capabilities: config.capabilities,
            over_commit: config.over_commit_percentage,
            shared: request.shared,
            draining: false,
            operations: Some(operations),
        }
    }
}

/// Everything the scheduler knows.
#[derive(Debug, Default)]
pub struct Store {
    /// Subscribed replicas.
    pub replicas: BTreeMap<(String, u32), Replica>,
    /// Models by name.
    pub models: BTreeMap<String, Record>,
    /// Every subscription that came.
    pub requests: Vec<AgentSubscribeRequest>,
    /// Every event that came.
    pub events: Vec<ModelEventMessage>,
    /// Replicas that a server is expected to have, where somebody has said so.
    pub expected: BTreeMap<String, i32>,
    /// Every scaling trigger that came.
    pub triggers: Vec<ModelScalingTriggerMessage>,
}

fn name_of(model: &Model) -> String {
    model.meta.clone().unwrap_or_default().name
}

fn spec_of(model: &Model) -> ModelSpec {
    model.model_spec.clone().unwrap_or_default()
}

impl Record {
    /// Memory as the scheduler counts it.
    pub fn needs(&self) -> u64 {
        spec_of(&self.model).memory_bytes.unwrap_or(0) * self.workers
    }

    /// The state that users see.
    pub fn shown(&self) -> ModelState {
        match self.state {
            OnReplica::Loaded => ModelState::ModelAvailable,
            OnReplica::Loading => ModelState::ModelProgressing,
            OnReplica::LoadFailed => ModelState::ModelFailed,
            OnReplica::Nowhere => ModelState::ScheduleFailed,
            OnReplica::Unloading => ModelState::ModelTerminating,
            OnReplica::Unloaded => ModelState::ModelTerminated,
        }
    }
}

impl Store {
    /// The state that users see, and its reason.
    pub fn model(&self, name: &str) -> Option<(ModelState, &str)> {
        let record = self.models.get(name)?;
        Some((record.shown(), &record.reason))
    }

    /// Whether users can call the model.
    pub fn is_available(&self, name: &str) -> bool {
        self.model(name)
            .is_some_and(|(state, _)| state == ModelState::ModelAvailable)
    }

    pub(super) fn load(&mut self, model: Model) {
        let name = name_of(&model);
        let version = self.models.get(&name).map_or(1, |r| r.version + 1);
        let record = Record {
            model,
            version,
            on: None,
            state: OnReplica::Nowhere,
            reason: String::new(),
            workers: 1,
            deleted: false,
        };
        self.models.insert(name.clone(), record);
        self.schedule(&name);
    }

    pub(super) fn unload(&mut self, name: &str) {
        let Some(record) = self.models.get_mut(name) else {
            return;
        };
        record.deleted = true;
        if let Some(on) = record.on.clone() {
            record.state = OnReplica::Unloading;
            self.send(&on, Operation::UnloadModel, name);
        }
    }

    fn send(&self, on: &(String, u32), operation: Operation, name: &str) {
        let record = &self.models[name];
        let message = ModelOperationMessage {
            operation: operation.into(),
            model_version: Some(ModelVersion {
                model: Some(record.model.clone()),
                version: record.version,
                agent_shim_original: None,
            }),
            autoscaling_enabled: false,
        };
        if let Some(sender) = self.replicas.get(on).and_then(|r| r.operations.as_ref()) {
            // A replica that has gone is about to be removed.
            let _ = sender.send(message);
        }
    }

    /// Places a model: servers first, then replicas, in the order of the real filters.
    fn schedule(&mut self, name: &str) {
        let record = &self.models[name];
        if record.deleted || matches!(record.state, OnReplica::Loading | OnReplica::Loaded) {
            return;
        }
        let (spec, needs) = (spec_of(&record.model), record.needs());
        let waits = |(server, expected): (&String, &i32)| {
            let there = self.replicas.keys().filter(|(s, _)| s == server);
            (there.count() as i32) < *expected
        };
        let chosen = if self.replicas.is_empty() || self.expected.iter().any(waits) {
            Err(format!(
                "{NO_SERVER} (waiting for server replicas to connect)"
            ))
        } else {
            let suitable = |server: &str| {
                // Capabilities are those of the server's first replica.
                let first = self.replicas.iter().find(|((s, _), _)| s == server);
                let shared = first.is_some_and(|(_, replica)| replica.shared);
                let named = match spec.server.as_deref() {
                    Some(wanted) => wanted == server,
                    None => shared,
                };
                let able = first.is_some_and(|(_, replica)| {
                    let has = |r: &String| replica.capabilities.iter().any(|c| c == r.trim());
                    spec.requirements.iter().all(has)
                });
                named && able
            };
            let servers: Vec<_> = self
                .replicas
                .iter()
                .filter(|((s, _), _)| suitable(s))
                .collect();
            if servers.is_empty() {
                Err(NO_SERVER.to_string())
            } else {
                let room =
                    |r: &Replica| !r.draining && needs <= r.available.saturating_sub(r.reserved);
                let found = servers.iter().find(|(_, replica)| room(replica));
                found
                    .map(|(key, _)| (*key).clone())
                    .ok_or_else(|| NO_REPLICA.to_string())
            }
        };
        let record = self
            .models
            .get_mut(name)
            .expect("it was there a moment ago");
        match chosen {
            Err(reason) => {
                record.state = OnReplica::Nowhere;
                record.on = None;
                record.reason = reason;
            }
            Ok(key) => {
                record.state = OnReplica::Loading;
                record.on = Some(key.clone());
                record.reason.clear();
                if let Some(replica) = self.replicas.get_mut(&key) {
                    replica.reserved += needs;
                }
                self.send(&key, Operation::LoadModel, name);
            }
        }
    }

    fn schedule_failed(&mut self) {
        let failed: Vec<String> = self
            .models
            .iter()
            .filter(|(_, r)| matches!(r.state, OnReplica::Nowhere | OnReplica::LoadFailed))
            .map(|(name, _)| name.clone())
            .collect();
        for name in failed {
            self.schedule(&name);
        }
    }

    pub(super) fn connect(
        &mut self,
        key: (String, u32),
        replica: Replica,
        loaded: &[ModelVersion],
    ) {
        self.replicas.insert(key.clone(), replica);
        for version in loaded {
            let model = version.model.clone().unwrap_or_default();
            let record = self
                .models
                .entry(name_of(&model))
                .or_insert_with(|| Record {
                    model,
                    version: version.version,
                    on: None,
                    state: OnReplica::Nowhere,
                    reason: String::new(),
                    workers: 1,
                    deleted: false,
                });
            record.on = Some(key.clone());
            record.state = OnReplica::Loaded;
        }
        self.schedule_failed();
    }

    pub(super) fn disconnect(&mut self, key: &(String, u32)) {
        self.replicas.remove(key);
        for record in self
            .models
            .values_mut()
            .filter(|r| r.on.as_ref() == Some(key))
        {
            record.on = None;
            record.state = OnReplica::Nowhere;
            record.reason = NO_SERVER.into();
        }
        self.schedule_failed();
    }

    pub(super) fn disconnect_all(&mut self) {
        for replica in self.replicas.values_mut() {
            replica.operations = None;
        }
    }

    pub(super) fn drain(&mut self, key: &(String, u32)) {
        if let Some(replica) = self.replicas.get_mut(key) {
            replica.draining = true;
        }
    }

    pub(super) fn event(&mut self, event: ModelEventMessage) -> Result<(), String> {
        self.events.push(event.clone());
        let (expected, desired) = match event.event() {
            Event::Loaded => (OnReplica::Loading, OnReplica::Loaded),
            Event::Unloaded => (OnReplica::Unloading, OnReplica::Unloaded),
            Event::LoadFailed | Event::LoadFailMemory => {
                (OnReplica::Loading, OnReplica::LoadFailed)
            }
            _ => return Ok(()),
        };
        let key = (event.server_name.clone(), event.replica_idx);
        let replica = self
            .replicas
            .get_mut(&key)
            .ok_or_else(|| format!("failed to find server {}", key.0))?;
        let record = self
            .models
            .get_mut(&event.model_name)
            .filter(|r| r.version == event.model_version)
            .ok_or_else(|| format!("failed to find model {}", event.model_name))?;
        if record.state != expected {
            return Err(format!(
                "State mismatch for {}:{} expected state {expected:?} but was {:?} when trying to move to state {desired:?}",
                event.model_name, event.model_version, record.state,
            ));
        }
        if expected == OnReplica::Loading {
            replica.reserved = replica.reserved.saturating_sub(record.needs());
        }
        if let Some(Runtime::Mlserver(settings)) = event.runtime_info.and_then(|i| i.runtime) {
            record.workers = settings.parallel_workers.into();
        }
        replica.available = event.available_memory_bytes;
        record.state = desired;
        record.reason = event.message;
        if record.deleted && desired == OnReplica::Unloaded {
            self.models.remove(&event.model_name);
        }
        Ok(())
    }

    pub(super) fn servers(&self, name: Option<&str>) -> Vec<ServerStatusResponse> {
        let mut servers: BTreeMap<&str, ServerStatusResponse> = BTreeMap::new();
        for ((server, index), replica) in &self.replicas {
            if name.is_some_and(|name| name != server) {
                continue;
            }
            let answer = servers.entry(server).or_default();
            answer.server_name = server.clone();
            answer.expected_replicas += 1;
            answer.available_replicas += 1;
            answer.resources.push(ServerReplicaResources {
                replica_idx: *index,
                total_memory_bytes: replica.total,
                available_memory_bytes: replica.available,
                num_loaded_models: self
                    .models
                    .values()
                    .filter(|r| r.on.as_ref() == Some(&(server.clone(), *index)))
                    .count() as i32,
                over_commit_percentage: replica.over_commit,
            });
        }
        for (name, answer) in &mut servers {
            if let Some(expected) = self.expected.get(*name) {
                answer.expected_replicas = *expected;
            }
        }
        servers.into_values().collect()
    }

    pub(super) fn models(&self, name: Option<&str>) -> Vec<ModelStatusResponse> {
        let wanted = self
            .models
            .iter()
            .filter(|(n, _)| name.is_none_or(|name| name == *n));
        wanted
            .map(|(name, record)| ModelStatusResponse {
                model_name: name.clone(),
                versions: vec![ModelVersionStatus {
                    version: record.version,
                    server_name: record.on.clone().map(|on| on.0).unwrap_or_default(),
                    state: Some(ModelStatus {
                        state: record.shown().into(),
                        reason: record.reason.clone(),
                        ..Default::default()
                    }),
                    model_defn: Some(record.model.clone()),
                    ..Default::default()
                }],
                deleted: record.deleted,
            })
            .collect()
    }
}
