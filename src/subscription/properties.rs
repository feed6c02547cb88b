//! Subscription and ledger against an oracle: an agent, a scheduler and the shim between them,
//! over long random histories of loads, unloads, reconnects, restarts of each of the three, and
//! of what is observed of the server.
//!
//! The agent and the scheduler are a few lines of the contract each, and real messages pass
//! between them. The oracle is a log of what happened, from which everything is worked out anew
//! after each step: what is in memory, what the scheduler has to believe, and whether the shim may
//! end a subscription.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex as Lock, MutexGuard as Locked};
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use prost::Message;

use super::correct::{CapabilityReport, CapacityReport, Known};
use super::editor::{Accounted, Verdict};
use super::live::{Ending, Live};
use super::status::Wanted;
use super::*;
use crate::proto::agent::model_event_message::Event as EventKind;
use crate::proto::agent::model_operation_message::Operation as OperationKind;
use crate::proto::agent::{
    AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage, ModelVersion, ReplicaConfig,
};
use crate::proto::scheduler::model_runtime_info::Runtime;
use crate::proto::scheduler::{MetaData, MlserverSettings, Model, ModelRuntimeInfo, ModelSpec};

const MIB: u64 = 1 << 20;
const MIN_INTERVAL: Duration = Duration::from_secs(300);
const SETTLE: Duration = pace::SETTLE;
/// A field that no release of today has.
const LATER: [u8; 6] = [0xfa, 0x7f, 3, b'n', b'e', b'w'];

/// What is observed of the server, as the interposer asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Observed {
    /// 0 where nothing is known.
    bytes: u64,
    installed: Vec<String>,
    workers: Option<u32>,
}

#[derive(Debug)]
struct Observing {
    now: Lock<Observed>,
    known: watch::Sender<Known>,
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

/// The agent, by the contract: it counts in its own total and refuses what goes below zero.
#[derive(Debug, Clone)]
struct Agent {
    total: u64,
    declared: Vec<String>,
    /// What it multiplies by and says.
    workers: Option<u32>,
    /// As it keeps and lists them, unknown fields included.
    loaded: BTreeMap<String, ModelVersion>,
}

impl Agent {
    fn booked(&self, model: &ModelVersion) -> u64 {
        memory_of(model).unwrap_or(0) * u64::from(self.workers.unwrap_or(1))
    }

    fn free(&self) -> u64 {
        let booked: u64 = self.loaded.values().map(|m| self.booked(m)).sum();
        self.total.saturating_sub(booked)
    }
}

/// A model as the scheduler asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    memory: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fact {
    Loaded(usize, Asked),
    Unloaded(usize),
    AgentRestarted,
}

/// An event of the agent's that the shim has taken into account and not delivered.
struct Undelivered {
    bytes: Vec<u8>,
    accounted: Accounted,
}

#[derive(Debug, Clone)]
enum Step {
    Load(usize, Option<u64>),
    Finish(usize, bool),
    Unload(usize),
    Deliver(usize),
    Observe(u8, u64),
    Ready(bool),
    Pass(u64),
    Reconnect,
    AgentRestarts,
    ShimRestarts,
    Drain,
}

const MODELS: usize = 5;

fn step() -> impl Strategy<Value = Step> {
    let memory = prop::option::weighted(0.9, 0..9 * 1024u64);
    prop_oneof![
        8 => (0..MODELS, memory).prop_map(|(m, mib)| Step::Load(m, mib.map(|n| n * MIB))),
        8 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(m, ok)| Step::Finish(m, ok)),
        4 => (0..MODELS).prop_map(Step::Unload),
        12 => any::<usize>().prop_map(Step::Deliver),
        2 => (0..4u8, 0..12u64).prop_map(|(what, n)| Step::Observe(what, n)),
        2 => any::<bool>().prop_map(Step::Ready),
        6 => (1..100_000u64).prop_map(Step::Pass),
        1 => (100_000..1_000_000u64).prop_map(Step::Pass),
        2 => Just(Step::Reconnect),
        1 => Just(Step::AgentRestarts),
        1 => Just(Step::ShimRestarts),
        1 => Just(Step::Drain),
    ]
}

struct World {
    mode: Mode,
    clock: Clock,
    observing: Arc<Observing>,
    shim: Interposer,
    live: Option<Live>,
    agent: Agent,
    /// Loads that the agent has been given and works at.
    pending: Vec<(usize, Asked, ModelVersion)>,
    /// How many of those, the first ones, are from before the last Subscribe.
    earlier: usize,
    undelivered: Vec<Undelivered>,
    /// The log, from which the oracle works.
    log: Vec<Fact>,
    /// Every value that would have been reported, and since when; begins anew when the server is
    /// not there to be asked.
    wanted: Vec<(Duration, Wanted)>,
    /// What was told at the last Subscribe, and when.
    told: Option<(Duration, Wanted)>,
    /// What the scheduler believes is free.
    believed: u64,
    next_look: Duration,
}

fn memory_of(model: &ModelVersion) -> Option<u64> {
    let spec = model.model.as_ref()?.model_spec.as_ref()?;
    spec.memory_bytes
}

fn name_of(model: &ModelVersion) -> String {
    let meta = model.model.as_ref().and_then(|m| m.meta.clone());
    meta.unwrap_or_default().name
}

fn version(m: usize, memory: Option<u64>) -> ModelVersion {
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
fn later(message: &impl Message) -> Vec<u8> {
    [&message.encode_to_vec()[..], &LATER].concat()
}

fn keeps_later(message: &[u8]) -> bool {
    message.windows(LATER.len()).any(|w| w == LATER)
}

fn interposer(mode: Mode, observing: &Arc<Observing>, clock: Clock) -> Interposer {
    let settings = Settings {
        mode,
        targets: Vec::new(),
        tls: None,
        hold: Duration::from_secs(60),
        resubscribe_min_interval: MIN_INTERVAL,
        settle: SETTLE,
        drain_limit: Duration::from_secs(90),
    };
    Interposer::new(settings, observing.clone(), clock, &Metrics::new()).0
}

impl World {
    fn new(mode: Mode, total: u64, agents_workers: Option<u32>, bytes: u64) -> Self {
        let clock = Clock::start();
        let observing = Arc::new(Observing {
            now: Lock::new(Observed {
                bytes,
                installed: vec!["sklearn".into()],
                workers: None,
            }),
            known: watch::Sender::new(Known {
                ready: true,
                ..Default::default()
            }),
        });
        let shim = interposer(mode, &observing, clock);
        let mut world = World {
            mode,
            clock,
            observing,
            shim,
            live: None,
            agent: Agent {
                total,
                declared: vec!["mlserver".into(), "sklearn".into()],
                workers: agents_workers,
                loaded: BTreeMap::new(),
            },
            pending: Vec::new(),
            earlier: 0,
            undelivered: Vec::new(),
            log: Vec::new(),
            wanted: Vec::new(),
            told: None,
            believed: 0,
            next_look: clock.now() + LOOK_INTERVAL,
        };
        world.remember_wanted();
        world
    }

    fn observed(&self) -> Locked<'_, Observed> {
        self.observing.now.lock().unwrap()
    }

    fn is_ready(&self) -> bool {
        self.observing.known.borrow().ready
    }

    // ---- the oracle --------------------------------------------------------------------------

    /// What is in memory: what was loaded and not unloaded since.
    fn in_memory(&self) -> BTreeMap<usize, Asked> {
        let mut models = BTreeMap::new();
        for (at, fact) in self.log.iter().enumerate() {
            let Fact::Loaded(m, asked) = fact else {
                continue;
            };
            let gone = self.log[at..].iter().any(|f| match f {
                Fact::Unloaded(other) => other == m,
                Fact::AgentRestarted => true,
                Fact::Loaded(..) => false,
            });
            if !gone {
                models.insert(*m, *asked);
            }
        }
        models
    }

    /// What would be reported: the agent's own word where nothing better is known.
    fn would_report(&self) -> Wanted {
        let observed = self.observed().clone();
        let more = observed.installed.iter();
        let more = more.filter(|c| !self.agent.declared.contains(c));
        Wanted {
            memory: match observed.bytes {
                0 => self.agent.total,
                bytes => bytes,
            },
            capabilities: self.agent.declared.iter().chain(more).cloned().collect(),
            workers: observed.workers,
        }
    }

    /// How often a model is in memory: by the report of the last Subscribe.
    fn copies(&self) -> u64 {
        let (_, told) = self.told.as_ref().unwrap();
        let copies = told.workers.or(self.agent.workers).unwrap_or(1);
        u64::from(copies.max(1))
    }

    fn need(&self, asked: Asked) -> u64 {
        asked.memory.unwrap_or(0) * self.copies()
    }

    /// What the scheduler has to believe is free.
    fn truly_free(&self) -> u64 {
        let (_, told) = self.told.as_ref().unwrap();
        if self.mode == Mode::Observe || told.memory == 0 {
            return self.agent.free();
        }
        let models = self.in_memory();
        let needed: u64 = models.values().map(|asked| self.need(*asked)).sum();
        told.memory.saturating_sub(needed)
    }

    fn remember_wanted(&mut self) {
        let wanted = self.would_report();
        if self.wanted.last().is_none_or(|(_, last)| *last != wanted) {
            self.wanted.push((self.clock.now(), wanted));
        }
    }

    /// Whether the shim may end the subscription now, and whether it must.
    fn is_renewal_due(&self, at: Duration) -> bool {
        let Some((opened, told)) = &self.told else {
            return false;
        };
        let (since, wanted) = self.wanted.last().unwrap();
        self.mode == Mode::Correct
            && self.live.is_some()
            && self.is_ready()
            && wanted != told
            && at - *since >= SETTLE
            && at - *opened >= MIN_INTERVAL
            && self.pending.len() == self.earlier
    }

    // ---- the steps ---------------------------------------------------------------------------

    /// The agent opens its one stream, as at its start and whenever the last has ended.
    fn subscribes(&mut self) -> Result<(), TestCaseError> {
        let request = AgentSubscribeRequest {
            server_name: "mlserver".into(),
            replica_config: Some(ReplicaConfig {
                memory_bytes: self.agent.total,
                capabilities: self.agent.declared.clone(),
                ..Default::default()
            }),
            loaded_models: self.agent.loaded.values().cloned().collect(),
            available_memory_bytes: self.agent.free(),
            ..Default::default()
        };
        let came = later(&request);
        let older = self.live.take();
        let mut live = self.shim.registry.enter();
        if let Some(older) = older {
            // Never two: the scheduler would keep the newer one waiting.
            prop_assert_eq!(ending(&older), Some(Ending::Superseded));
            drop(older);
        }
        prop_assert_eq!(ending(&live), None);
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
        self.agrees()
    }

    /// Right after the scheduler was told, it believes what is true.
    fn agrees(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.believed, self.truly_free());
        let status = self.shim.status.borrow();
        prop_assert_eq!(status.available, Some(self.believed));
        Ok(())
    }

    fn loads(&mut self, m: usize, memory: Option<u64>) -> Result<(), TestCaseError> {
        let known = self.pending.iter().any(|(p, ..)| *p == m);
        if known || self.in_memory().contains_key(&m) {
            return Ok(());
        }
        let asked = Asked { memory };
        let request = ModelOperationMessage {
            operation: OperationKind::LoadModel.into(),
            model_version: Some(version(m, memory)),
            autoscaling_enabled: true,
        };
        let came = later(&request);
        let (_, told) = self.told.clone().unwrap();
        let verdict = self.shim.editor.operation(&came);
        let given = match &verdict {
            Verdict::Forward => came,
            Verdict::Replace(bytes) => bytes.clone(),
            Verdict::Refuse(event) => {
                // Only what can never fit, and the scheduler is told at once, and the truth.
                prop_assert!(self.mode == Mode::Correct && self.need(asked) > told.memory);
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
            prop_assert!(told.memory == 0 || self.need(asked) <= told.memory);
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
        self.pending.push((m, asked, kept));
        Ok(())
    }

    /// The agent has done what it was asked, or could not.
    fn finishes(&mut self, which: usize, works: bool) -> Result<(), TestCaseError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let i = which % self.pending.len();
        self.earlier -= usize::from(i < self.earlier);
        let (m, asked, kept) = self.pending.remove(i);
        let accepts = self.agent.booked(&kept) <= self.agent.free();
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

    fn unloads(&mut self, m: usize) -> Result<(), TestCaseError> {
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
    fn reports(&mut self, m: usize, kind: EventKind) -> Result<(), TestCaseError> {
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
    fn delivers(&mut self, which: usize) -> Result<(), TestCaseError> {
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

    /// The background task looks, as it does at every change and from time to time.
    fn looks(&mut self) -> Result<(), TestCaseError> {
        let now = self.clock.now();
        let due = self.is_renewal_due(now);
        let wait = self.shim.look();
        prop_assert!(wait <= LOOK_INTERVAL);
        self.next_look = now + wait;
        let ended = self.live.as_ref().and_then(ending);
        // Ended for a lasting difference and for nothing else; and surely for that.
        prop_assert_eq!(ended == Some(Ending::Renewed), due, "{:?}", self.wanted);
        if due {
            self.subscribes()?;
        }
        Ok(())
    }

    async fn passes(&mut self, ms: u64) -> Result<(), TestCaseError> {
        let until = self.clock.now() + Duration::from_millis(ms);
        while self.next_look <= until {
            let wait = self.next_look.saturating_sub(self.clock.now());
            tokio::time::advance(wait).await;
            self.looks()?;
        }
        tokio::time::advance(until.saturating_sub(self.clock.now())).await;
        Ok(())
    }

    async fn does(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Load(m, memory) => self.loads(*m, *memory)?,
            Step::Finish(which, works) => self.finishes(*which, *works)?,
            Step::Unload(m) => self.unloads(*m)?,
            Step::Deliver(which) => self.delivers(*which)?,
            Step::Observe(what, n) => {
                let mut observed = self.observed();
                match what {
                    0 | 1 => observed.bytes = n * 1024 * MIB,
                    2 => observed.installed = vec!["sklearn".into(), format!("runtime-{}", n % 3)],
                    _ => observed.workers = [None, Some(1), Some(4)][*n as usize % 3],
                }
                drop(observed);
                self.remember_wanted();
                if self.is_ready() {
                    self.looks()?;
                }
            }
            Step::Ready(ready) => {
                if !(self.is_ready() && *ready) {
                    // What a server shows on its way down and up proves nothing.
                    self.wanted.clear();
                }
                self.observing.known.send_modify(|k| k.ready = *ready);
                self.remember_wanted();
                self.looks()?;
            }
            Step::Pass(ms) => self.passes(*ms).await?,
            Step::Reconnect => self.subscribes()?,
            Step::AgentRestarts => {
                self.agent.loaded.clear();
                self.pending.clear();
                self.earlier = 0;
                self.undelivered.clear();
                self.log.push(Fact::AgentRestarted);
                drop(self.live.take());
                self.subscribes()?;
            }
            Step::ShimRestarts => {
                // What the agent was given before, only the agent knows the end of: not asked here.
                while !self.pending.is_empty() {
                    self.finishes(0, true)?;
                }
                self.undelivered.clear();
                self.live = None;
                self.shim = interposer(self.mode, &self.observing, self.clock);
                self.next_look = self.clock.now() + LOOK_INTERVAL;
                self.subscribes()?;
            }
            Step::Drain => {
                self.shim.registry.draining();
                let asked = self.shim.status.borrow().drain_asked;
                prop_assert_eq!(asked, Some(self.clock.now()));
            }
        }
        self.invariants()
    }

    /// What holds after every step.
    fn invariants(&self) -> Result<(), TestCaseError> {
        let truth = self.in_memory();
        let status = self.shim.status.borrow();
        let balance = status.balance;
        let needed: u64 = truth.values().map(|asked| self.need(*asked)).sum();
        prop_assert_eq!(balance.needed, needed);
        prop_assert_eq!(balance.loaded, truth.len());
        prop_assert_eq!(balance.unknown, 0);
        let (_, told) = self.told.as_ref().unwrap();
        let reported = status.reported.clone().unwrap();
        // No figure is invented: it is the agent's own or an observed one.
        match self.mode {
            Mode::Observe => prop_assert_eq!(reported.memory, self.agent.total),
            Mode::Correct => prop_assert_eq!(reported.memory, told.memory),
        }
        if told.memory > 0 {
            prop_assert_eq!(balance.available, Some(told.memory.saturating_sub(needed)));
        }
        // The stream stands: nothing but a lasting difference or the agent itself ends it.
        let live = self.live.as_ref().and_then(ending);
        prop_assert_eq!(live, None);
        prop_assert!(matches!(status.phase, Phase::Open));
        Ok(())
    }
}

/// Whether the shim has told a subscription to end.
fn ending(live: &Live) -> Option<Ending> {
    let mut ended = Box::pin(live.ended());
    match ended.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ending) => Some(ending),
        Poll::Pending => None,
    }
}

fn paused() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_scheduler_believes_what_is_true_and_is_left_alone(
        steps in prop::collection::vec(step(), 200..1200),
        total in prop_oneof![Just(0), Just(1_000_000), (0..12u64).prop_map(|n| n * 1024 * MIB)],
        agents_workers in prop_oneof![Just(None), Just(Some(1))],
        bytes in (0..12u64).prop_map(|n| n * 1024 * MIB),
        observe in prop::bool::weighted(0.2),
    ) {
        let mode = if observe { Mode::Observe } else { Mode::Correct };
        paused().block_on(async {
            let mut world = World::new(mode, total, agents_workers, bytes);
            world.subscribes()?;
            for step in &steps {
                world.does(step).await?;
            }
            Ok::<(), TestCaseError>(())
        })?;
    }

    /// A Subscribe waits until the server can be spoken for, for the configured time at most, and
    /// is never turned away meanwhile.
    #[test]
    fn a_subscription_is_held_until_ready_or_for_the_time_and_no_longer(
        turns in prop::collection::vec((1..20_000u64, any::<bool>()), 0..20),
        observe in any::<bool>(),
    ) {
        let mode = if observe { Mode::Observe } else { Mode::Correct };
        paused().block_on(async {
            let world = World::new(mode, 0, None, 0);
            world.observing.known.send_modify(|k| k.ready = false);
            let live = world.shim.registry.enter();
            let began = world.clock.now();
            // Ready for the first time after so long.
            let mut at = 0;
            let mut expected = 60_000;
            for (ms, ready) in &turns {
                at += ms;
                if *ready {
                    expected = expected.min(at);
                    break;
                }
            }
            if observe {
                expected = 0;
            }
            let turning = async {
                for (ms, ready) in &turns {
                    sleep(Duration::from_millis(*ms)).await;
                    world.observing.known.send_modify(|k| {
                        k.ready = *ready;
                        k.revision += 1;
                    });
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = world.shim.hold(&live) => {}
                () = turning => {}
            }
            let held = (world.clock.now() - began).as_millis() as u64;
            prop_assert_eq!(held, expected);
            prop_assert_eq!(ending(&live), None);
            Ok::<(), TestCaseError>(())
        })?;
    }
}
