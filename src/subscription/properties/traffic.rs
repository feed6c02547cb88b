//! What passes between agent and scheduler, and what each of them makes of it.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use prost::Message;

use super::oracle::{Asked, Fact};
use super::sides::{keeps_later, later, memory_of, name_of, version};
use super::world::{Undelivered, World, ending};
use crate::config::Mode;
use crate::proto::agent::model_event_message::Event as EventKind;
use crate::proto::agent::model_operation_message::Operation as OperationKind;
use crate::proto::agent::{AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage};
use crate::proto::scheduler::model_runtime_info::Runtime;
use crate::proto::scheduler::{MlserverSettings, ModelRuntimeInfo};
use crate::subscription::editor::Verdict;
use crate::subscription::live::{Ending, Live};
use crate::subscription::metrics::{Fate, Kind};
use crate::subscription::status::Phase;

impl World {
    /// A subscription begins; never are there two: the scheduler would keep the newer one waiting.
    fn enters(&mut self) -> Result<Live, TestCaseError> {
        let older = self.live.take();
        let live = self.shim.registry.enter();
        if let Some(older) = older {
            prop_assert_eq!(ending(&older), Some(Ending::Superseded));
            // The end of the older one says nothing of the newer one, nor does its report.
            let held = Phase::Held("the server".into());
            live.phase(held.clone());
            drop(older);
            prop_assert_eq!(&self.shim.status.borrow().phase, &held);
        }
        let _ = self.shim.look();
        prop_assert_eq!(ending(&live), None);
        Ok(live)
    }

    /// The agent subscribes in words that nobody here can read: compressed, broken, or of a later
    /// release. They go on as they are, and from then on the agent speaks for itself.
    pub(super) fn subscribes_unread(&mut self, how: u8) -> Result<(), TestCaseError> {
        let mut live = self.enters()?;
        match how % 3 {
            0 => self.shim.editor.opaque(Kind::Subscribe, Fate::Compressed),
            1 => self.shim.editor.opaque(Kind::Subscribe, Fate::Unreadable),
            _ => {
                let mut came = later(&self.agent.request());
                came.extend_from_slice(b"\x08");
                prop_assert_eq!(self.shim.editor.subscribe(&came), None);
            }
        }
        live.open("scheduler:9005".into(), self.shim.editor.wanted());
        self.live = Some(live);
        self.told = None;
        self.earlier = self.pending.len();
        self.believed = self.agent.free();
        self.believed_total = self.agent.total;
        Ok(())
    }

    /// The agent opens its one stream, as at its start and whenever the last has ended.
    pub(super) fn subscribes(&mut self) -> Result<(), TestCaseError> {
        let request = self.agent.request();
        let came = later(&request);
        let mut live = self.enters()?;
        let changed = self.shim.editor.subscribe(&came);
        live.open("scheduler:9005".into(), self.shim.editor.wanted());
        self.live = Some(live);
        self.told = Some((self.clock.now(), self.would_report()));
        self.earlier = self.pending.len();
        let told = self.told.clone().unwrap().1;
        // What waited for a stream that has ended tells its news all the same, later.
        let sent = changed.clone().unwrap_or_else(|| came.clone());
        prop_assert!(keeps_later(&sent));
        let read = AgentSubscribeRequest::decode(&sent[..]).unwrap();
        if self.mode == Mode::Observe {
            prop_assert_eq!(changed, None);
            self.believed = read.available_memory_bytes;
            self.believed_total = self.agent.total;
            return self.agrees();
        }
        let config = read.replica_config.clone().unwrap();
        prop_assert_eq!(config.memory_bytes, told.memory);
        prop_assert_eq!(&config.capabilities, &told.capabilities);
        // Each model as the scheduler once asked for it, and no mark of the shim's.
        let truth = self.in_memory();
        let listed: BTreeSet<String> = read.loaded_models.iter().map(name_of).collect();
        let expected: BTreeSet<String> = truth.keys().map(|m| format!("m{m}")).collect();
        prop_assert_eq!(listed, expected);
        for model in &read.loaded_models {
            let m: usize = name_of(model)[1..].parse().unwrap();
            prop_assert_eq!(memory_of(model), truth[&m].memory);
            prop_assert_eq!(&model.agent_shim_original, &None);
        }
        // Nothing else is touched.
        let mut back = read.clone();
        back.replica_config = request.replica_config.clone();
        back.available_memory_bytes = request.available_memory_bytes;
        back.loaded_models = request.loaded_models.clone();
        prop_assert_eq!(back, request);
        self.believed = read.available_memory_bytes;
        self.believed_total = config.memory_bytes;
        self.agrees()
    }

    pub(super) fn loads(&mut self, m: usize, memory: Option<u64>) -> Result<(), TestCaseError> {
        let known = self.pending.iter().any(|(p, ..)| *p == m);
        if known {
            return Ok(());
        }
        if let Some(loaded) = self.in_memory().get(&m) {
            return self.loads_again(m, *loaded);
        }
        let asked = Asked { memory };
        let request = ModelOperationMessage {
            operation: OperationKind::LoadModel.into(),
            model_version: Some(version(m, memory)),
            autoscaling_enabled: true,
        };
        let came = later(&request);
        let total = self.told.as_ref().map_or(0, |(_, told)| told.memory);
        // What is not known to be measured in another total, and truly fits.
        let needed: u64 = self.in_memory().values().map(|a| self.need(*a)).sum();
        let under_way: u64 = self.pending.iter().map(|(_, a, _)| self.need(*a)).sum();
        let fits = needed + under_way + self.need(asked) <= total && self.earlier == 0;
        let verdict = self.shim.editor.operation(&came);
        let given = match &verdict {
            Verdict::Forward => came,
            Verdict::Replace(bytes) => bytes.clone(),
            Verdict::Refuse(event) => {
                // Only what can never fit, and the scheduler is told at once, and the truth.
                prop_assert!(self.mode == Mode::Correct && self.need(asked) > total && total > 0);
                let event = ModelEventMessage::decode(&event[..]).unwrap();
                prop_assert_eq!(event.event(), EventKind::LoadFailMemory);
                self.believed = event.available_memory_bytes;
                prop_assert_eq!(self.believed, self.truly_free());
                return Ok(());
            }
        };
        if self.mode == Mode::Observe {
            prop_assert_eq!(&verdict, &Verdict::Forward);
        } else {
            prop_assert!(total == 0 || self.need(asked) <= total);
        }
        prop_assert!(keeps_later(&given));
        let read = ModelOperationMessage::decode(&given[..]).unwrap();
        let kept = read.model_version.clone().unwrap();
        let mut back = read.clone();
        back.model_version = request.model_version.clone();
        prop_assert_eq!(back, request);
        if let Some(original) = &kept.agent_shim_original {
            prop_assert_eq!(original.memory_bytes, memory);
        } else {
            prop_assert_eq!(memory_of(&kept), memory);
        }
        if self.mode == Mode::Correct && fits {
            let before = self
                .pending
                .iter()
                .map(|(_, _, kept)| self.agent.booked(kept));
            let free = self.agent.free().saturating_sub(before.sum());
            prop_assert!(self.agent.booked(&kept) <= free, "what fits is not refused");
        }
        if self.told.is_none() {
            prop_assert_eq!(&verdict, &Verdict::Forward);
        }
        self.pending.push((m, asked, kept));
        Ok(())
    }

    /// The scheduler asks for what is in memory already: the agent only confirms it.
    fn loads_again(&mut self, m: usize, asked: Asked) -> Result<(), TestCaseError> {
        let request = later(&ModelOperationMessage {
            operation: OperationKind::LoadModel.into(),
            model_version: Some(version(m, asked.memory)),
            autoscaling_enabled: true,
        });
        prop_assert_eq!(self.shim.editor.operation(&request), Verdict::Forward);
        self.reports(m, EventKind::Loaded)
    }

    /// The agent has done what it was asked, or could not.
    pub(super) fn finishes(&mut self, which: usize, works: bool) -> Result<(), TestCaseError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let i = which % self.pending.len();
        self.earlier -= usize::from(i < self.earlier);
        let (m, asked, kept) = self.pending.remove(i);
        let accepts = self.agent.accepts(&kept);
        let kind = match (accepts, works) {
            (false, _) => EventKind::LoadFailMemory,
            (true, false) => EventKind::LoadFailed,
            (true, true) => {
                self.agent.loaded.insert(format!("m{m}"), kept);
                self.log.push(Fact::Loaded(m, asked));
                EventKind::Loaded
            }
        };
        self.reports(m, kind)
    }

    pub(super) fn unloads(&mut self, m: usize) -> Result<(), TestCaseError> {
        let request = later(&ModelOperationMessage {
            operation: OperationKind::UnloadModel.into(),
            model_version: Some(version(m, None)),
            autoscaling_enabled: false,
        });
        prop_assert_eq!(self.shim.editor.operation(&request), Verdict::Forward);
        if self.agent.loaded.remove(&format!("m{m}")).is_none() {
            return Ok(());
        }
        self.log.push(Fact::Unloaded(m));
        self.reports(m, EventKind::Unloaded)
    }

    /// An event of the agent's reaches the shim, which counts it once.
    pub(super) fn reports(&mut self, m: usize, kind: EventKind) -> Result<(), TestCaseError> {
        let runtime = |n| {
            Runtime::Mlserver(MlserverSettings {
                parallel_workers: n,
            })
        };
        let bytes = later(&ModelEventMessage {
            model_name: format!("m{m}"),
            model_version: 1,
            event: kind.into(),
            available_memory_bytes: self.agent.free(),
            runtime_info: self.agent.workers.map(|n| ModelRuntimeInfo {
                runtime: Some(runtime(n)),
            }),
            ..Default::default()
        });
        let accounted = self.shim.editor.account(&bytes);
        self.undelivered.push(Undelivered { bytes, accounted });
        Ok(())
    }

    /// One of the events reaches the scheduler, whichever; now and then one does so twice.
    pub(super) fn delivers(&mut self, which: usize) -> Result<(), TestCaseError> {
        if self.undelivered.is_empty() {
            return Ok(());
        }
        let i = which % self.undelivered.len();
        let again = which.is_multiple_of(3);
        let event = &self.undelivered[i];
        let changed = self.shim.editor.event(&event.bytes, &event.accounted);
        if self.mode == Mode::Observe {
            prop_assert_eq!(&changed, &None);
        }
        let sent = changed.unwrap_or_else(|| event.bytes.clone());
        prop_assert!(keeps_later(&sent));
        let read = ModelEventMessage::decode(&sent[..]).unwrap();
        let came = ModelEventMessage::decode(&event.bytes[..]).unwrap();
        prop_assert_eq!(
            (&read.model_name, read.event),
            (&came.model_name, came.event)
        );
        self.believed = read.available_memory_bytes;
        if self.mode == Mode::Correct {
            if let Some(info) = read.runtime_info {
                let Some(Runtime::Mlserver(settings)) = info.runtime else {
                    return Err(TestCaseError::fail("the runtime is lost"));
                };
                prop_assert_eq!(u64::from(settings.parallel_workers), self.copies());
            }
            self.agrees()?;
        } else {
            prop_assert_eq!(self.believed, came.available_memory_bytes);
        }
        if !again {
            self.undelivered.remove(i);
        }
        Ok(())
    }
}
