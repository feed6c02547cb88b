//! The two sides of the shim in the histories, and the words between them: the agent by the contract, what is
//! observed of the server, and the messages.

use std::collections::BTreeMap;
use std::sync::Mutex as Lock;

use prost::Message;
use tokio::sync::watch;

use crate::proto::agent::{AgentSubscribeRequest, ModelVersion, ReplicaConfig};
use crate::proto::scheduler::{MetaData, Model, ModelSpec};
use crate::subscription::correct::{CapabilityReport, CapacityReport, Correct, Known};

/// A field that no release of today has.
pub(super) const LATER: [u8; 6] = [0xfa, 0x7f, 3, b'n', b'e', b'w'];

/// What is observed of the server, as the interposer asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Observed {
    /// 0 where nothing is known.
    pub(super) bytes: u64,
    pub(super) installed: Vec<String>,
    pub(super) workers: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Observing {
    pub(super) now: Lock<Observed>,
    pub(super) known: watch::Sender<Known>,
}

impl Correct for Observing {
    fn capacity(&self, _: u64) -> CapacityReport {
        CapacityReport {
            bytes: self.now.lock().unwrap().bytes,
            why: "observed".into(),
        }
    }

    fn capabilities(&self, requested: &[String]) -> CapabilityReport {
        let installed = self.now.lock().unwrap().installed.clone();
        let added = installed.into_iter().filter(|c| !requested.contains(c));
        CapabilityReport {
            reported: requested.iter().cloned().chain(added).collect(),
            ..Default::default()
        }
    }

    fn workers(&self) -> Option<u32> {
        self.now.lock().unwrap().workers
    }

    fn known(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }
}

/// A total with what is promised beyond it.
pub(super) fn with(total: u64, over_commit: u32) -> u64 {
    total + total * u64::from(over_commit) / 100
}

/// The agent, by the contract: it counts in its own total and refuses what goes below zero.
#[derive(Debug, Clone, Default)]
pub(super) struct Agent {
    pub(super) total: u64,
    pub(super) declared: Vec<String>,
    /// What it multiplies by and says.
    pub(super) workers: Option<u32>,
    /// Promised beyond the total, in percent: what does not fit is evicted and loaded again.
    pub(super) over_commit: u32,
    /// As it keeps and lists them, unknown fields included.
    pub(super) loaded: BTreeMap<String, ModelVersion>,
}

impl Agent {
    pub(super) fn booked(&self, model: &ModelVersion) -> u64 {
        memory_of(model).unwrap_or(0) * u64::from(self.workers.unwrap_or(1))
    }

    pub(super) fn free(&self) -> u64 {
        let booked: u64 = self.loaded.values().map(|m| self.booked(m)).sum();
        with(self.total, self.over_commit).saturating_sub(booked)
    }

    /// Whether a model may come: into what is free, or, where others can be evicted, into the total.
    pub(super) fn accepts(&self, model: &ModelVersion) -> bool {
        let booked = self.booked(model);
        booked <= self.free() && (self.over_commit == 0 || booked <= self.total)
    }

    /// What it says when it subscribes.
    pub(super) fn request(&self) -> AgentSubscribeRequest {
        AgentSubscribeRequest {
            server_name: "mlserver".into(),
            replica_config: Some(ReplicaConfig {
                memory_bytes: self.total,
                capabilities: self.declared.clone(),
                over_commit_percentage: self.over_commit,
                ..Default::default()
            }),
            loaded_models: self.loaded.values().cloned().collect(),
            available_memory_bytes: self.free(),
            ..Default::default()
        }
    }
}

pub(super) fn memory_of(model: &ModelVersion) -> Option<u64> {
    let spec = model.model.as_ref()?.model_spec.as_ref()?;
    spec.memory_bytes
}

pub(super) fn name_of(model: &ModelVersion) -> String {
    let meta = model.model.as_ref().and_then(|m| m.meta.clone());
    meta.unwrap_or_default().name
}

pub(super) fn version(m: usize, memory: Option<u64>) -> ModelVersion {
    ModelVersion {
        model: Some(Model {
            meta: Some(MetaData {
                name: format!("m{m}"),
            }),
            model_spec: Some(ModelSpec {
                memory_bytes: memory,
                ..Default::default()
            }),
            ..Default::default()
        }),
        version: 1,
        agent_shim_original: None,
    }
}

/// A message with a field of a later release behind it.
pub(super) fn later(message: &impl Message) -> Vec<u8> {
    [&message.encode_to_vec()[..], &LATER].concat()
}

pub(super) fn keeps_later(message: &[u8]) -> bool {
    message.windows(LATER.len()).any(|w| w == LATER)
}
