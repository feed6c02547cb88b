//! The one place where messages between agent and scheduler are judged: bytes in, bytes out, and
//! the account kept. No sockets, no waiting. In `observe` mode everything is computed and
//! nothing is changed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use tokio::sync::watch;

use super::correct::{CapabilityReport, CapacityReport, Correct};
use super::held_back::{self, Answer, HeldBack};
use super::ledger::{Balance, Ledger, Load, Totals};
use super::message::{self, Operation, SubscribeChange, Unreadable};
use super::metrics::{Fate, Kind, SubscriptionMetrics};
use super::order::{OnItsWay, Order};
use super::status::{Refused, Requested, Status, Wanted};
use crate::config::Mode;
use crate::proto::agent::ModelEventMessage;
use crate::proto::agent::model_event_message::Event as EventKind;
use crate::proto::agent::model_operation_message::Operation as OperationKind;

/// Refused models that are kept to be shown; the oldest gives way.
const MOST_REFUSED: usize = 100;

/// Judges messages. Cheap to clone.
#[derive(Clone)]
pub struct Editor {
    mode: Mode,
    correct: Arc<dyn Correct>,
    ledger: Arc<Mutex<Ledger>>,
    held_back: Arc<Mutex<HeldBack>>,
    order: Order,
    status: watch::Sender<Status>,
    metrics: SubscriptionMetrics,
}

impl std::fmt::Debug for Editor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Editor")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// What becomes of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the agent as it came.
    Forward,
    /// It goes to the agent changed.
    Replace(Vec<u8>),
    /// It does not go to the agent; the scheduler is sent this event.
    Refuse(Vec<u8>),
}

/// An event that has been taken into account.
#[derive(Debug, Clone)]
pub struct Accounted(Option<message::Event>);

impl Accounted {
    /// What it says, where it could be read.
    pub fn read(&self) -> Option<&message::Event> {
        self.0.as_ref()
    }
}

impl Editor {
    /// An editor with an empty account.
    pub fn new(
        mode: Mode,
        correct: Arc<dyn Correct>,
        status: watch::Sender<Status>,
        metrics: SubscriptionMetrics,
    ) -> Self {
        Editor {
            mode,
            correct,
            ledger: Arc::default(),
            held_back: Arc::default(),
            order: Order::default(),
            status,
            metrics,
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_back(&self) -> MutexGuard<'_, HeldBack> {
        let held_back = self.held_back.lock();
        held_back.unwrap_or_else(PoisonError::into_inner)
    }

    /// The replica subscribes: what was told before is of the past.
    fn begins_anew(&self) {
        self.held_back().subscribed();
        self.order.subscribed();
    }

    /// What would be reported for the latest request now; `None` before the first.
    pub fn wanted(&self) -> Option<Wanted> {
        let requested = self.status.borrow().requested.clone()?;
        Some(self.wanted_for(&requested).0)
    }

    fn wanted_for(&self, requested: &Requested) -> (Wanted, CapacityReport, CapabilityReport) {
        let capacity = self.correct.capacity(requested.memory);
        let capabilities = self.correct.capabilities(&requested.capabilities);
        let wanted = Wanted {
            // Nothing is known: nothing is changed, and no number invented.
            memory: match capacity.bytes {
                0 => requested.memory,
                bytes => bytes,
            },
            capabilities: capabilities.reported.clone(),
            workers: self.correct.workers(),
        };
        (wanted, capacity, capabilities)
    }

    /// Whether nothing is being loaded.
    pub fn is_idle(&self) -> bool {
        self.ledger().is_idle()
    }

    /// A subscription begins. The message to send, where it is not the one that came.
    pub fn subscribe(&self, message: &[u8]) -> Option<Vec<u8>> {
        let read = match message::subscribe(message) {
            Ok(read) => read,
            Err(error) => {
                self.unreadable(Kind::Subscribe, &error);
                self.unread();
                return None;
            }
        };
        let requested = Requested {
            memory: read.memory,
            over_commit: read.over_commit,
            capabilities: read.capabilities,
            available: read.available,
            shared: read.shared,
        };
        let (wanted, capacity, capabilities) = self.wanted_for(&requested);
        let totals = Totals {
            requested: requested.memory,
            reported: wanted.memory,
            over_commit: requested.over_commit,
        };
        let (available, loaded, held) = {
            let mut ledger = self.ledger();
            ledger.said(requested.available);
            let (available, loaded) = ledger.subscribe(totals, wanted.workers, &read.loaded);
            (available, loaded, ledger.held(&read.loaded))
        };
        self.begins_anew();
        let change = SubscribeChange {
            memory: Some(wanted.memory).filter(|m| *m != requested.memory),
            capabilities: Some(wanted.capabilities.clone())
                .filter(|c| *c != requested.capabilities),
            available: available.filter(|a| *a != requested.available),
            loaded,
        };
        let observe = self.mode == Mode::Observe;
        let sent = match observe {
            true => None,
            false => self.changed(Kind::Subscribe, message, |m| {
                message::change_subscribe(m, &change)
            }),
        };
        let corrected = !observe && sent.is_some();
        let reported = match corrected {
            true => wanted.clone(),
            false => Wanted {
                memory: requested.memory,
                capabilities: requested.capabilities.clone(),
                workers: None,
            },
        };
        tracing::info!(
            server = read.server,
            replica = read.replica,
            requested = requested.memory,
            reported = reported.memory,
            why = capacity.why,
            available = available.unwrap_or(requested.available),
            loaded = read.loaded.len(),
            capabilities = reported.capabilities.join(","),
            added = capabilities.added.join(","),
            dropped = capabilities.dropped.join(","),
            mode = self.mode.as_str(),
            "the agent subscribes"
        );
        self.status.send_modify(|status| {
            status.server = read.server;
            status.replica = read.replica;
            status.loaded = Some(held.into());
            status.available = Some(match corrected {
                true => available.unwrap_or(requested.available),
                false => requested.available,
            });
            status.requested = Some(requested);
            status.reported = Some(reported);
            status.wanted = Some(wanted);
            status.capacity_why = capacity.why;
            status.capabilities = capabilities;
            status.refused.clear();
            status.drain_asked = None;
        });
        self.publish();
        sent
    }

    /// An operation on its way to the agent.
    pub fn operation(&self, message: &[u8]) -> Verdict {
        let read = match message::operation(message) {
            Ok(read) => read,
            Err(error) => {
                self.unreadable(Kind::Operation, &error);
                return Verdict::Forward;
            }
        };
        tracing::debug!(kind = ?read.kind, model = read.key.name, version = read.key.version, memory = read.memory, "the scheduler asks");
        self.order.asked(&read.key);
        let verdict = match read.kind {
            OperationKind::LoadModel => {
                self.held_back().asked(&read.key);
                self.load(message, &read)
            }
            OperationKind::UnloadModel | OperationKind::UnknownEvent => Verdict::Forward,
        };
        if verdict == Verdict::Forward {
            self.metrics.message(Kind::Operation, Fate::Unchanged);
        }
        self.publish();
        verdict
    }

    fn load(&self, message: &[u8], read: &Operation) -> Verdict {
        let load = self.ledger().load(&read.key, read.memory);
        match load {
            Load::Pass => Verdict::Forward,
            Load::Send(_) if self.mode == Mode::Observe => Verdict::Forward,
            Load::Send(sent) => {
                let changed = self.changed(Kind::Operation, message, |m| {
                    message::scale_operation(m, sent, read)
                });
                changed.map_or(Verdict::Forward, Verdict::Replace)
            }
            Load::Refuse(why) => {
                tracing::warn!(
                    model = read.key.name,
                    version = read.key.version,
                    why,
                    mode = self.mode.as_str(),
                    "a model cannot fit"
                );
                let available = self.ledger().available();
                let refused = Refused {
                    model: read.key.clone(),
                    why: why.clone(),
                };
                let mut event = ModelEventMessage {
                    model_name: read.key.name.clone(),
                    model_version: read.key.version,
                    event: EventKind::LoadFailMemory.into(),
                    message: why,
                    available_memory_bytes: available.unwrap_or(0),
                    ..Default::default()
                };
                self.status.send_modify(|status| {
                    event.server_name.clone_from(&status.server);
                    event.replica_idx = status.replica;
                    status.refused.retain(|r| r.model != refused.model);
                    if status.refused.len() >= MOST_REFUSED {
                        status.refused.remove(0);
                    }
                    status.refused.push(refused);
                });
                match self.mode {
                    Mode::Observe => {
                        self.ledger().let_pass(&read.key, read.memory);
                        Verdict::Forward
                    }
                    Mode::Correct => {
                        self.metrics.message(Kind::Operation, Fate::Refused);
                        Verdict::Refuse(event.encode_to_vec())
                    }
                }
            }
        }
    }

    /// An event of the agent's, taken into account once.
    pub fn account(&self, message: &[u8]) -> Accounted {
        match message::event(message) {
            Ok(event) => {
                tracing::debug!(kind = ?event.kind, model = event.key.name, version = event.key.version, available = event.available, "the agent reports");
                {
                    let mut ledger = self.ledger();
                    ledger.said(event.available);
                    ledger.event(event.kind, &event.key, event.workers);
                }
                self.publish();
                Accounted(Some(event))
            }
            Err(error) => {
                self.unreadable(Kind::Event, &error);
                Accounted(None)
            }
        }
    }

    /// The event as it should be sent at this moment, where that is not as it came. Free memory is
    /// that of now, since other events may have overtaken one that is sent again.
    pub fn event(&self, message: &[u8], accounted: &Accounted) -> Option<Vec<u8>> {
        let event = accounted.0.as_ref()?;
        let mut corrected = self.ledger().corrected_now(event.workers);
        corrected.available = corrected.available.filter(|a| *a != event.available);
        let available = match self.mode {
            Mode::Correct => corrected.available.unwrap_or(event.available),
            Mode::Observe => event.available,
        };
        self.status
            .send_modify(|status| status.available = Some(available));
        if self.mode == Mode::Observe {
            return None;
        }
        self.changed(Kind::Event, message, |m| {
            message::change_event(m, corrected)
        })
    }

    /// An event sets out for the scheduler.
    pub fn sets_out(&self, event: &message::Event) -> OnItsWay {
        self.order.sets_out(&event.key)
    }

    /// Which subscription an event that is sent now belongs to.
    pub fn turn(&self) -> u64 {
        self.held_back().turn()
    }

    /// What the scheduler has answered to an event that was sent in `turn`.
    pub fn answered(&self, event: &message::Event, turn: u64, answer: Answer) {
        if held_back::ends_load(event.kind) {
            self.held_back().ended(&event.key, turn, answer);
            self.publish();
        }
    }

    /// Applies a change and counts what became of it; `None` where the original goes on.
    fn changed<E: std::fmt::Display>(
        &self,
        kind: Kind,
        message: &[u8],
        change: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Option<Vec<u8>> {
        match change(message) {
            Ok(new) if new == message => {
                self.metrics.message(kind, Fate::Unchanged);
                None
            }
            Ok(new) => {
                self.metrics.message(kind, Fate::Changed);
                Some(new)
            }
            Err(error) => {
                tracing::warn!(%error, kind = kind.as_str(), "a message cannot be changed: it goes on as it is");
                self.metrics.message(kind, Fate::Unreadable);
                None
            }
        }
    }

    fn unreadable(&self, kind: Kind, error: &Unreadable) {
        tracing::warn!(%error, kind = kind.as_str(), "a message cannot be read: it goes on as it is");
        self.metrics.message(kind, Fate::Unreadable);
    }

    /// A message that was not looked into.
    pub fn opaque(&self, kind: Kind, fate: Fate) {
        tracing::debug!(
            kind = kind.as_str(),
            fate = fate.as_str(),
            "a message goes on unread"
        );
        if kind == Kind::Subscribe {
            self.unread();
        }
        self.metrics.message(kind, fate);
    }

    /// A subscription whose request was not read: nobody knows what was asked for and told, so there
    /// is nothing that could differ from it or be worth another one.
    fn unread(&self) {
        self.ledger().unread();
        self.begins_anew();
        self.status.send_modify(|status| {
            status.requested = None;
            status.reported = None;
            status.wanted = None;
            status.capacity_why.clear();
            status.capabilities = CapabilityReport::default();
            status.available = None;
            status.refused.clear();
            status.drain_asked = None;
        });
        self.publish();
    }

    fn publish(&self) {
        let balance: Balance = self.ledger().balance();
        let held_back = self.held_back().count();
        self.status.send_if_modified(|status| {
            let changed = (status.balance, status.held_back) != (balance, held_back);
            (status.balance, status.held_back) = (balance, held_back);
            changed
        });
    }
}
