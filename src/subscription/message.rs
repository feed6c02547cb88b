//! The three messages that are read and changed, over [`wire`]: which fields mean what. Pure.
//!
//! Reading uses the generated types, which see what a decoder sees; changing never re-encodes a
//! message, so fields that later releases add survive.

use prost::Message;

use super::ledger::{Corrected, Key, Listed, Restored};
use super::wire::{self, Malformed};
use crate::proto::agent::model_event_message::Event as EventKind;
use crate::proto::agent::model_operation_message::Operation as OperationKind;
use crate::proto::agent::{
    AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage, ModelVersion, Original,
};
use crate::proto::scheduler::{ModelRuntimeInfo, model_runtime_info::Runtime};

/// Why a message is forwarded as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The bytes are no message.
    #[error("it is no protobuf message: {0}")]
    Malformed(#[from] Malformed),
    /// The bytes are a message, of some other kind.
    #[error("it is not the message that was expected: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// `AgentSubscribeRequest.replicaConfig`.
const REPLICA_CONFIG: u32 = 4;
/// `AgentSubscribeRequest.loadedModels`.
const LOADED_MODELS: u32 = 5;
/// `AgentSubscribeRequest.availableMemoryBytes`.
const SUBSCRIBE_AVAILABLE: u32 = 6;
/// `ReplicaConfig.memoryBytes`.
const CONFIG_MEMORY: u32 = 4;
/// `ReplicaConfig.capabilities`.
const CONFIG_CAPABILITIES: u32 = 5;
/// `ModelOperationMessage.modelVersion`.
const MODEL_VERSION: u32 = 2;
/// `ModelVersion.model.modelSpec.memoryBytes`.
const MEMORY: [u32; 3] = [1, 2, 5];
/// `ModelVersion.model.modelSpec.modelRuntimeInfo.mlserver.parallelWorkers`.
const WORKERS: [u32; 5] = [1, 2, 9, 1, 1];
/// `ModelVersion.agentShimOriginal`.
const ORIGINAL: u32 = 50605;
/// `ModelEventMessage.availableMemoryBytes`.
const EVENT_AVAILABLE: u32 = 7;
/// `ModelEventMessage.runtimeInfo.mlserver.parallelWorkers`.
const EVENT_WORKERS: [u32; 3] = [8, 1, 1];

/// What is read of a subscribe request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// The server.
    pub server: String,
    /// Which of its replicas.
    pub replica: u32,
    /// Whether models that name no server may come to it.
    pub shared: bool,
    /// Total memory as requested.
    pub memory: u64,
    /// Over-commit, in percent.
    pub over_commit: u32,
    /// Capabilities as requested.
    pub capabilities: Vec<String>,
    /// Free memory by the agent's own account.
    pub available: u64,
    /// What the agent has loaded.
    pub loaded: Vec<Listed>,
}

/// Reads a subscribe request.
pub fn subscribe(message: &[u8]) -> Result<Subscribe, Unreadable> {
    let request = AgentSubscribeRequest::decode(message)?;
    let config = request.replica_config.unwrap_or_default();
    Ok(Subscribe {
        server: request.server_name,
        replica: request.replica_idx,
        shared: request.shared,
        memory: config.memory_bytes,
        over_commit: config.over_commit_percentage,
        capabilities: config.capabilities,
        available: request.available_memory_bytes,
        loaded: request.loaded_models.into_iter().map(listed).collect(),
    })
}

fn listed(model: ModelVersion) -> Listed {
    let original = model.agent_shim_original.map(|o| o.memory_bytes);
    let (key, memory, workers) = parts(Some(model));
    Listed {
        key,
        memory,
        workers,
        original,
    }
}

fn parts(version: Option<ModelVersion>) -> (Key, Option<u64>, Option<u32>) {
    let version = version.unwrap_or_default();
    let model = version.model.unwrap_or_default();
    let spec = model.model_spec.unwrap_or_default();
    let key = Key {
        name: model.meta.unwrap_or_default().name,
        version: version.version,
    };
    (key, spec.memory_bytes, workers(spec.model_runtime_info))
}

fn workers(info: Option<ModelRuntimeInfo>) -> Option<u32> {
    match info?.runtime? {
        Runtime::Mlserver(settings) => Some(settings.parallel_workers),
    }
}

/// What changes in a subscribe request; `None` leaves a field as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscribeChange {
    /// Total memory.
    pub memory: Option<u64>,
    /// The list of capabilities.
    pub capabilities: Option<Vec<String>>,
    /// Free memory.
    pub available: Option<u64>,
    /// One for each loaded model, in order.
    pub loaded: Vec<Restored>,
}

/// Changes a subscribe request.
pub fn change_subscribe(message: &[u8], change: &SubscribeChange) -> Result<Vec<u8>, Malformed> {
    let mut out = message.to_vec();
    if let Some(memory) = change.memory {
        out = wire::set_number(&out, &[REPLICA_CONFIG, CONFIG_MEMORY], memory)?;
    }
    if let Some(list) = &change.capabilities {
        out = wire::set_texts(&out, &[REPLICA_CONFIG, CONFIG_CAPABILITIES], list)?;
    }
    if let Some(available) = change.available {
        out = wire::set_number(&out, &[SUBSCRIBE_AVAILABLE], available)?;
    }
    if change.loaded.iter().any(|restored| !restored.is_nothing()) {
        let mut restored = change.loaded.iter();
        out = wire::edit_each(&out, LOADED_MODELS, |element| {
            restored.next().map_or(Ok(None), |r| restore(element, r))
        })?;
    }
    Ok(out)
}

fn restore(element: &[u8], restored: &Restored) -> Result<Option<Vec<u8>>, Malformed> {
    if restored.is_nothing() {
        return Ok(None);
    }
    // The scheduler keeps what it is told: our own field is not for it.
    let mut out = wire::remove(element, &[ORIGINAL])?;
    match restored.memory {
        None => {}
        Some(Some(memory)) => out = wire::set_number(&out, &MEMORY, memory)?,
        Some(None) => out = wire::remove(&out, &MEMORY)?,
    }
    if let Some(workers) = restored.workers {
        out = wire::set_number(&out, &WORKERS, workers.into())?;
    }
    Ok(Some(out))
}

/// What is read of an operation that the scheduler asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What is asked for.
    pub kind: OperationKind,
    /// Of which model.
    pub key: Key,
    /// The memory that the model asks for.
    pub memory: Option<u64>,
}

/// Reads an operation.
pub fn operation(message: &[u8]) -> Result<Operation, Unreadable> {
    let operation = ModelOperationMessage::decode(message)?;
    let kind = operation.operation();
    let (key, memory, _) = parts(operation.model_version);
    Ok(Operation { kind, key, memory })
}

/// Puts the memory of a load request into the agent's measure; the original travels along.
pub fn scale_operation(message: &[u8], sent: u64, read: &Operation) -> Result<Vec<u8>, Malformed> {
    let [model, spec, memory] = MEMORY;
    let out = wire::set_number(message, &[MODEL_VERSION, model, spec, memory], sent)?;
    let original = Original {
        memory_bytes: read.memory,
    };
    wire::append(&out, &[MODEL_VERSION, ORIGINAL], &original.encode_to_vec())
}

/// What is read of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What has happened.
    pub kind: EventKind,
    /// To which model.
    pub key: Key,
    /// Free memory by the agent's own account.
    pub available: u64,
    /// Workers by the agent's own account.
    pub workers: Option<u32>,
}

/// Reads an event.
pub fn event(message: &[u8]) -> Result<Event, Unreadable> {
    let event = ModelEventMessage::decode(message)?;
    Ok(Event {
        kind: event.event(),
        key: Key {
            name: event.model_name,
            version: event.model_version,
        },
        available: event.available_memory_bytes,
        workers: workers(event.runtime_info),
    })
}

/// Changes an event.
pub fn change_event(message: &[u8], change: Corrected) -> Result<Vec<u8>, Malformed> {
    let mut out = message.to_vec();
    if let Some(available) = change.available {
        out = wire::set_number(&out, &[EVENT_AVAILABLE], available)?;
    }
    if let Some(workers) = change.workers {
        out = wire::set_number(&out, &EVENT_WORKERS, workers.into())?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::agent::ReplicaConfig;
    use crate::proto::scheduler::{MetaData, Model, ModelSpec};

    fn version(memory: Option<u64>) -> ModelVersion {
        ModelVersion {
            model: Some(Model {
                meta: Some(MetaData {
                    name: "iris".into(),
                }),
                model_spec: Some(ModelSpec {
                    memory_bytes: memory,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            version: 3,
            agent_shim_original: None,
        }
    }

    /// A message with a field that no release of today has, in front and behind.
    fn around(message: &impl Message) -> Vec<u8> {
        let unknown = [0xfa, 0x7f, 3, b'n', b'e', b'w'];
        [&unknown[..], &message.encode_to_vec(), &unknown[..]].concat()
    }

    #[test]
    fn a_scaled_load_lists_its_original_and_the_scheduler_gets_the_model_as_it_was() {
        for memory in [Some(1 << 30), Some(0), None] {
            let asked = around(&ModelOperationMessage {
                operation: OperationKind::LoadModel as i32,
                model_version: Some(version(memory)),
                autoscaling_enabled: true,
            });
            let read = operation(&asked).unwrap();
            assert_eq!((read.memory, read.key.version), (memory, 3));
            let sent = scale_operation(&asked, 17, &read).unwrap();
            let decoded = ModelOperationMessage::decode(&sent[..]).unwrap();
            assert!(decoded.autoscaling_enabled);
            assert!(sent.starts_with(&asked[..6]) && sent.ends_with(&asked[..6]));
            // What the agent keeps is what it lists.
            let listing = around(&AgentSubscribeRequest {
                loaded_models: vec![version(Some(5)), decoded.model_version.unwrap()],
                ..Default::default()
            });
            let listed = subscribe(&listing).unwrap().loaded;
            assert_eq!(listed[1].memory, Some(17));
            assert_eq!(listed[1].original, Some(memory));
            let change = SubscribeChange {
                loaded: vec![
                    Restored::default(),
                    Restored {
                        memory: Some(memory),
                        workers: None,
                    },
                ],
                ..Default::default()
            };
            let restored = change_subscribe(&listing, &change).unwrap();
            let expected = around(&AgentSubscribeRequest {
                loaded_models: vec![version(Some(5)), version(memory)],
                ..Default::default()
            });
            let (restored, expected) = (&restored[..], &expected[..]);
            assert_eq!(
                AgentSubscribeRequest::decode(restored),
                AgentSubscribeRequest::decode(expected)
            );
            assert_eq!(restored.len(), expected.len());
        }
    }

    #[test]
    fn a_request_without_a_change_keeps_every_byte() {
        let request = around(&AgentSubscribeRequest {
            server_name: "mlserver".into(),
            replica_config: Some(ReplicaConfig {
                inference_http_port: -1,
                memory_bytes: 5,
                capabilities: vec!["sklearn".into()],
                ..Default::default()
            }),
            loaded_models: vec![version(None)],
            ..Default::default()
        });
        let none = SubscribeChange {
            loaded: vec![Restored::default()],
            ..Default::default()
        };
        assert_eq!(change_subscribe(&request, &none).unwrap(), request);
        let event = around(&ModelEventMessage::default());
        assert_eq!(change_event(&event, Corrected::default()).unwrap(), event);
    }

    #[test]
    fn an_event_is_changed_in_place() {
        let before = around(&ModelEventMessage {
            model_name: "iris".into(),
            event: EventKind::Loaded as i32,
            available_memory_bytes: 3,
            runtime_info: Some(ModelRuntimeInfo {
                runtime: Some(Runtime::Mlserver(Default::default())),
            }),
            ..Default::default()
        });
        let change = Corrected {
            available: Some(900),
            workers: Some(4),
        };
        let after = event(&change_event(&before, change).unwrap()).unwrap();
        assert_eq!((after.available, after.workers), (900, Some(4)));
        assert_eq!(after.key.name, "iris");
    }
}
