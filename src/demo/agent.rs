//! A stand-in for Seldon's agent towards the scheduler: its arithmetic of memory, its loop, and its
//! impatience; towards the inference server it loads and unloads, where it is given one. It keeps
//! the parts of a model that it does not understand, as the real one does.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::proto::agent::agent_service_client::AgentServiceClient;
use crate::proto::agent::model_event_message::Event;
use crate::proto::agent::model_operation_message::Operation;
use crate::proto::agent::{
    AgentDrainRequest, AgentDrainResponse, AgentSubscribeRequest, ModelEventMessage, ModelVersion,
    ReplicaConfig,
};
use crate::proto::scheduler::{MlserverSettings, ModelRuntimeInfo, model_runtime_info::Runtime};

mod repository;

use repository::Repository;

/// How an agent is set up.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Where it thinks the scheduler is.
    pub scheduler: SocketAddr,
    /// Its server.
    pub server: String,
    /// Its index.
    pub replica: u32,
    /// `MEMORY_REQUEST`.
    pub memory: u64,
    /// Over-commit, in percent.
    pub over_commit: u32,
    /// `SELDON_SERVER_CAPABILITIES`.
    pub capabilities: Vec<String>,
    /// `MLSERVER_PARALLEL_WORKERS` of the agent's container.
    pub workers: u32,
    /// First wait after a failure to open a subscription.
    pub retry: Duration,
    /// Whether models that name no server may come to it.
    pub shared: bool,
    /// Where its inference server speaks gRPC; without one, every load succeeds.
    pub inference: Option<SocketAddr>,
}

impl AgentConfig {
    /// An agent as a chart with defaults makes it.
    pub fn new(scheduler: SocketAddr, memory: u64) -> Self {
        AgentConfig {
            scheduler,
            server: "mlserver".into(),
            replica: 0,
            memory,
            over_commit: 0,
            capabilities: vec!["mlserver".into(), "sklearn".into()],
            workers: 1,
            retry: Duration::from_millis(100),
            shared: true,
            inference: None,
        }
    }
}

/// What the agent has seen and done.
#[derive(Debug, Default)]
pub struct Seen {
    /// Subscriptions that it opened.
    pub subscriptions: usize,
    /// Models that it has, by name and version.
    pub loaded: BTreeMap<(String, u32), ModelVersion>,
    /// Models that it could not load, and why.
    pub failed: Vec<(String, String)>,
    /// Models that it unloaded to make room.
    pub evicted: Vec<String>,
    /// Errors of its event calls.
    pub event_errors: Vec<Status>,
    /// In memory, by last use.
    in_memory: Vec<(String, u32)>,
}

/// A running stand-in. Dropping it is a crash.
#[derive(Debug)]
pub struct FakeAgent {
    shared: Shared,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Clone)]
struct Shared {
    config: AgentConfig,
    seen: Arc<Mutex<Seen>>,
    changed: watch::Sender<u64>,
    client: AgentServiceClient<Channel>,
    repository: Option<Repository>,
}

impl FakeAgent {
    /// Starts the loop.
    pub fn start(config: AgentConfig) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", config.scheduler))
            .expect("an address makes a URI");
        let client =
            AgentServiceClient::new(endpoint.connect_lazy()).max_decoding_message_size(usize::MAX);
        let shared = Shared {
            repository: config.inference.map(Repository::new),
            config,
            seen: Arc::default(),
            changed: watch::Sender::new(0),
            client,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(shared.clone().run());
        FakeAgent {
            shared,
            _tasks: tasks,
        }
    }

    /// Reads what it has seen.
    pub fn read<T>(&self, read: impl FnOnce(&Seen) -> T) -> T {
        read(&self.shared.seen())
    }

    /// Waits until what it has seen satisfies a condition; false when not within the limit.
    pub async fn until(&self, limit: Duration, holds: impl Fn(&Seen) -> bool) -> bool {
        let mut changed = self.shared.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if holds(&self.shared.seen()) {
                    return;
                }
                // The sender lives in `self`.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    /// The drain of a pod that stops.
    pub async fn drain(&self) -> Result<AgentDrainResponse, Status> {
        let request = AgentDrainRequest {
            server_name: self.shared.config.server.clone(),
            replica_idx: self.shared.config.replica,
        };
        let mut client = self.shared.client.clone();
        client
            .agent_drain(request)
            .await
            .map(tonic::Response::into_inner)
    }
}

fn key(version: &ModelVersion) -> (String, u32) {
    let meta = version.model.as_ref().and_then(|m| m.meta.as_ref());
    (
        meta.map(|m| m.name.clone()).unwrap_or_default(),
        version.version,
    )
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Seen) -> T) -> T {
        let out = act(&mut self.seen());
        self.changed.send_modify(|n| *n += 1);
        out
    }

    /// A stream that ends is opened again at once; only a failure to open one waits.
    async fn run(self) {
        let mut wait = self.config.retry;
        let mut events = JoinSet::new();
        loop {
            while events.try_join_next().is_some() {}
            match self.subscription(&mut events).await {
                Ok(()) => wait = self.config.retry,
                Err(_) => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(self.config.retry * 15);
                }
            }
            // Even the real loop yields to the network.
            tokio::task::yield_now().await;
        }
    }

    async fn subscription(&self, events: &mut JoinSet<()>) -> Result<(), Status> {
        let request = self.with(|seen| {
            seen.subscriptions += 1;
            AgentSubscribeRequest {
                server_name: self.config.server.clone(),
                shared: self.config.shared,
                replica_idx: self.config.replica,
                replica_config: Some(ReplicaConfig {
                    inference_svc: "127.0.0.1".into(),
                    inference_http_port: 9001,
                    inference_grpc_port: 9501,
                    memory_bytes: self.config.memory,
                    capabilities: self.config.capabilities.clone(),
                    over_commit_percentage: self.config.over_commit,
                }),
                loaded_models: seen.loaded.values().cloned().collect(),
                available_memory_bytes: self.available(seen),
            }
        });
        let mut stream = match self.client.clone().subscribe(request).await {
            Ok(stream) => stream.into_inner(),
            // A status from the far side is an end of the stream; the rest is a failure to open one.
            Err(status) if status.source().is_none() => return Ok(()),
            Err(status) => return Err(status),
        };
        while let Ok(Some(operation)) = stream.message().await {
            let Some(version) = operation.model_version.clone() else {
                continue;
            };
            let event = match operation.operation() {
                Operation::LoadModel => self.load(version),
                Operation::UnloadModel => self.unload(&version),
                Operation::UnknownEvent => continue,
            };
            let agent = self.clone();
            events.spawn(async move {
                let event = agent.carried_out(operation.operation(), event).await;
                if let Err(status) = agent.client.clone().agent_event(event).await {
                    agent.with(|seen| seen.event_errors.push(status));
                }
            });
        }
        Ok(())
    }

    fn cost(&self, version: &ModelVersion) -> u64 {
        let spec = version.model.as_ref().and_then(|m| m.model_spec.as_ref());
        let memory = spec.and_then(|s| s.memory_bytes).unwrap_or(0);
        memory.saturating_mul(self.config.workers.into())
    }

    fn booked(&self, seen: &Seen) -> u64 {
        let costs = seen.in_memory.iter().filter_map(|key| seen.loaded.get(key));
        costs.map(|version| self.cost(version)).sum()
    }

    fn available(&self, seen: &Seen) -> u64 {
        let over_commit = self.config.memory * u64::from(self.config.over_commit) / 100;
        let all: u64 = seen.loaded.values().map(|v| self.cost(v)).sum();
        (self.config.memory + over_commit).saturating_sub(all)
    }

    fn load(&self, mut version: ModelVersion) -> ModelEventMessage {
        let runtime = ModelRuntimeInfo {
            runtime: Some(Runtime::Mlserver(MlserverSettings {
                parallel_workers: self.config.workers,
            })),
        };
        if let Some(spec) = version.model.as_mut().and_then(|m| m.model_spec.as_mut()) {
            spec.model_runtime_info = Some(runtime);
        }
        let key = key(&version);
        self.with(|seen| {
            let cost = self.cost(&version);
            while self.booked(seen) + cost > self.config.memory && !seen.in_memory.is_empty() {
                let (name, _) = seen.in_memory.remove(0);
                seen.evicted.push(name);
            }
            let free = self.config.memory.saturating_sub(self.booked(seen));
            if cost > free && !seen.loaded.contains_key(&key) {
                let why = format!("Memory will go below zero {free}");
                seen.failed.push((key.0.clone(), why.clone()));
                return self.event(&key, Event::LoadFailed, why, None, seen);
            }
            seen.in_memory.push(key.clone());
            seen.loaded.insert(key.clone(), version);
            self.event(&key, Event::Loaded, String::new(), Some(runtime), seen)
        })
    }

    /// The event after the inference server was asked too.
    async fn carried_out(
        &self,
        operation: Operation,
        event: ModelEventMessage,
    ) -> ModelEventMessage {
        // What the agent itself has refused is not asked for.
        let Some(repository) = self
            .repository
            .as_ref()
            .filter(|_| event.event() != Event::LoadFailed)
        else {
            return event;
        };
        let key = (event.model_name.clone(), event.model_version);
        let name = format!("{}_{}", key.0, key.1);
        let Err(status) = repository.ask(operation, name).await else {
            return event;
        };
        let why = status.message().to_string();
        self.with(|seen| {
            seen.failed.push((key.0.clone(), why.clone()));
            if operation == Operation::UnloadModel {
                return self.event(&key, Event::UnloadFailed, why, None, seen);
            }
            seen.loaded.remove(&key);
            seen.in_memory.retain(|k| *k != key);
            self.event(&key, Event::LoadFailed, why, None, seen)
        })
    }

    fn unload(&self, version: &ModelVersion) -> ModelEventMessage {
        let key = key(version);
        self.with(|seen| {
            seen.loaded.remove(&key);
            seen.in_memory.retain(|k| *k != key);
            self.event(&key, Event::Unloaded, String::new(), None, seen)
        })
    }

    fn event(
        &self,
        key: &(String, u32),
        event: Event,
        message: String,
        runtime_info: Option<ModelRuntimeInfo>,
        seen: &Seen,
    ) -> ModelEventMessage {
        ModelEventMessage {
            server_name: self.config.server.clone(),
            replica_idx: self.config.replica,
            model_name: key.0.clone(),
            model_version: key.1,
            event: event.into(),
            message,
            available_memory_bytes: self.available(seen),
            runtime_info,
        }
    }
}
