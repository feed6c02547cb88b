//! The account of model memory: makes the agent and the scheduler agree with what is reported.
//!
//! The agent counts in its own total, `requested`, and refuses what exceeds it; the scheduler counts in
//! what the shim reported. Where the two differ, each load request is put into the agent's measure
//! on its way down (`sent`), so that the agent accepts exactly what truly fits and still evicts at
//! the right moment, and free memory is put into the reported measure on its way up.
//!
//! A model that is listed as loaded in a later Subscribe must carry its own figure again, because a
//! scheduler that has lost its store takes the definition from there. The shim has no disk and may
//! have been restarted in between, and the measure cannot be undone by arithmetic (with a
//! requested total of 0 everything is 0). So the original travels in the load request itself, as a
//! field of `ModelVersion` that the agent does not know: it keeps such fields, and lists them when
//! it subscribes. It has to be `ModelVersion`, which the scheduler does not store, so that a field
//! that was not taken off again (the shim removed from the pod) ends there. Asking
//! the scheduler (`ModelStatus`) would not do: the case that matters is the one in which it forgot.
//!
//! Over-commit is a promise to evict. An agent whose own total is 0 cannot evict, since all its
//! models count 0, so its over-commit is not reported.

use std::collections::BTreeMap;

use super::status::Held;
use crate::capacity::quantity::shown;
use crate::proto::agent::model_event_message::Event as EventKind;

/// One version of one model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
}

/// A model in the agent's list of loaded ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub key: Key,
    /// Its memory as listed.
    pub memory: Option<u64>,
    /// Its workers as listed.
    pub workers: Option<u32>,
    /// Its memory before the shim changed it, where the shim did.
    pub original: Option<Option<u64>>,
}

/// What is put back into a listed model; nothing where everything is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// Its own memory, or none.
    pub memory: Option<Option<u64>>,
    /// Its true workers.
    pub workers: Option<u32>,
}

impl Restored {
    /// Whether the model stays as it was listed.
    pub fn is_nothing(&self) -> bool {
        *self == Restored::default()
    }
}

/// The totals of one subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// The agent's own.
    pub requested: u64,
    /// What the scheduler is told. 0 where nothing is known: then nothing is changed.
    pub reported: u64,
    /// In percent.
    pub over_commit: u32,
}

/// What becomes of a load request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Load {
    /// It goes to the agent as it is.
    Pass,
    /// It goes to the agent with this memory.
    Send(u64),
    /// It cannot fit, ever: the scheduler is told this at once.
    Refuse(String),
}

/// What changes in an event; `None` leaves a field as it came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Corrected {
    /// Free memory.
    pub available: Option<u64>,
    /// Workers.
    pub workers: Option<u32>,
}

/// The account as it stands, for display.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Balance {
    /// What all loaded models need.
    pub needed: u64,
    /// Loaded models.
    pub loaded: usize,
    /// Models being loaded.
    pub loading: usize,
    /// What the scheduler is told is free; `None` before the first Subscribe.
    pub available: Option<u64>,
    /// Models whose memory nobody has told the shim.
    pub unknown: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Loading,
    Loaded,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// As the model asks for it.
    memory: Option<u64>,
    /// As the agent was given it.
    sent: u64,
    stage: Stage,
    known: bool,
}

/// The account.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    totals: Option<Totals>,
    /// What the server really has, where that is known.
    workers: Option<u32>,
    /// What the agent multiplies by, once it has said so.
    agent_workers: Option<u32>,
    /// It had occasion to say so and has not: then it multiplies by nothing.
    silent: bool,
    models: BTreeMap<Key, Entry>,
    /// Loads that were under way when the agent subscribed again: it does not list them, and may
    /// report their end all the same. They are counted only then.
    asked: BTreeMap<Key, Entry>,
    /// Free memory as the agent last said it.
    said: Option<u64>,
}

/// Models in the account; far above what one agent holds. A scheduler that asks for more has its
/// requests carried as before: the agent judges them, and free memory is without them.
pub(super) const MOST: usize = 10_000;
/// Longest name in the account, in bytes; Kubernetes allows 253.
const LONGEST_NAME: usize = 1024;
/// Loads from before a Subscribe that are remembered; an agent works at far fewer at a time.
const MOST_ASKED: usize = 1000;

/// Whether one more model may be kept beside as many, under this name.
pub(super) fn counts(models: usize, key: &Key) -> bool {
    models < MOST && key.name.len() <= LONGEST_NAME
}

impl Ledger {
    /// Begins the account anew from what the agent lists. Returns free memory where it must be
    /// corrected, and what is put back into each listed model.
    pub fn subscribe(
        &mut self,
        totals: Totals,
        workers: Option<u32>,
        loaded: &[Listed],
    ) -> (Option<u64>, Vec<Restored>) {
        let before = self.set_aside();
        self.totals = Some(totals);
        self.workers = workers;
        if let Some(said) = loaded.iter().rev().find_map(|m| m.workers) {
            self.agent_workers = Some(said);
        }
        self.silent |= !loaded.is_empty();
        let mut restored = Vec::with_capacity(loaded.len());
        for model in loaded {
            let sent = model.memory.unwrap_or(0);
            // A load that this process changed and whose mark got lost is remembered as well.
            let remembered = before.get(&model.key).filter(|e| e.sent == sent && e.known);
            let original = model.original.or(remembered.map(|e| e.memory));
            let memory = original.unwrap_or(model.memory);
            let entry = Entry {
                memory,
                sent,
                stage: Stage::Loaded,
                known: true,
            };
            if self.has_room(&model.key) {
                self.models.insert(model.key.clone(), entry);
            }
            self.asked.remove(&model.key);
            restored.push(Restored {
                memory: original.filter(|o| model.original.is_some() || *o != model.memory),
                workers: self.true_workers(model.workers),
            });
        }
        (self.corrected(), restored)
    }

    /// What the agent lists, as the inference server knows it: the agent loads version 3 of `iris` as
    /// `iris_3`.
    pub fn held(&self, listed: &[Listed]) -> Vec<Held> {
        let known = listed.iter().filter_map(|m| {
            let entry = self.models.get(&m.key)?;
            Some(Held {
                name: format!("{}_{}", m.key.name, m.key.version),
                bytes: self.need(entry.memory),
            })
        });
        known.collect()
    }

    /// The agent has subscribed, and what it said cannot be read: its own figures stand from now on.
    /// A load that is under way is counted when it ends, as after any other Subscribe.
    pub fn unread(&mut self) {
        self.set_aside();
        *self = Ledger {
            asked: std::mem::take(&mut self.asked),
            agent_workers: self.agent_workers,
            silent: self.silent,
            said: self.said,
            ..Ledger::default()
        };
    }

    /// Empties the list of models and remembers what is under way; what was in the list.
    fn set_aside(&mut self) -> BTreeMap<Key, Entry> {
        let before = std::mem::take(&mut self.models);
        let loading = before.iter().filter(|(_, e)| e.stage == Stage::Loading);
        for (key, entry) in loading {
            if self.asked.len() < MOST_ASKED {
                self.asked.insert(key.clone(), *entry);
            }
        }
        before
    }

    /// A load request on its way to the agent.
    pub fn load(&mut self, key: &Key, memory: Option<u64>) -> Load {
        let need = self.need(memory);
        let held = self.models.get(key).map(|e| e.stage);
        let Some(totals) = self.totals.filter(|t| t.reported > 0) else {
            self.remember(key, memory, memory.unwrap_or(0));
            return Load::Pass;
        };
        if held == Some(Stage::Loaded) {
            // The agent only confirms what it has; its own record stays what it was.
            return Load::Pass;
        }
        if need > totals.reported {
            return Load::Refuse(self.refusal(key, memory.unwrap_or(0), totals.reported));
        }
        self.models.remove(key);
        self.asked.remove(key);
        let sent = self.measure(need, totals);
        self.remember(key, memory, sent);
        if sent == memory.unwrap_or(0) {
            Load::Pass
        } else {
            Load::Send(sent)
        }
    }

    /// A load request that should have been refused went to the agent as it was.
    pub fn let_pass(&mut self, key: &Key, memory: Option<u64>) {
        self.remember(key, memory, memory.unwrap_or(0));
    }

    /// An event on its way to the scheduler.
    pub fn event(&mut self, kind: EventKind, key: &Key, workers: Option<u32>) -> Corrected {
        if workers.is_some() {
            self.agent_workers = workers;
        }
        self.silent |= kind == EventKind::Loaded;
        match kind {
            EventKind::Loaded => match self.models.get_mut(key) {
                Some(entry) => entry.stage = Stage::Loaded,
                None => {
                    // Asked for before this process saw the stream: counted, never guessed.
                    let unknown = Entry {
                        memory: None,
                        sent: 0,
                        stage: Stage::Loaded,
                        known: false,
                    };
                    let mut entry = self.asked.remove(key).unwrap_or(unknown);
                    entry.stage = Stage::Loaded;
                    if self.has_room(key) {
                        self.models.insert(key.clone(), entry);
                    }
                }
            },
            EventKind::LoadFailed
            | EventKind::LoadFailMemory
            | EventKind::Unloaded
            | EventKind::Removed => {
                self.models.remove(key);
                self.asked.remove(key);
            }
            EventKind::UnknownEvent
            | EventKind::UnloadFailed
            | EventKind::RemoveFailed
            | EventKind::Rsync => {}
        }
        self.corrected_now(workers)
    }

    /// Takes the agent's own word on free memory; the latest stands.
    pub fn said(&mut self, available: u64) {
        self.said = Some(available);
    }

    /// What an event that names `workers` should say at this moment. An event may be sent again
    /// after others have overtaken it: where the agent's own figure is right, it is the latest.
    pub fn corrected_now(&self, workers: Option<u32>) -> Corrected {
        Corrected {
            available: self.corrected().or(self.said),
            workers: self.true_workers(workers),
        }
    }

    /// Whether nothing is being loaded.
    pub fn is_idle(&self) -> bool {
        self.models.values().all(|e| e.stage == Stage::Loaded)
    }

    /// The account as it stands.
    pub fn balance(&self) -> Balance {
        let count = |stage| self.models.values().filter(|e| e.stage == stage).count();
        Balance {
            needed: self.needed(),
            loaded: count(Stage::Loaded),
            loading: count(Stage::Loading),
            available: self.available(),
            unknown: self.models.values().filter(|e| !e.known).count(),
        }
    }

    /// Free memory as the scheduler should see it. What is being loaded is not in it: the scheduler
    /// reserves that itself until it hears of the end.
    pub fn available(&self) -> Option<u64> {
        let totals = self.totals.filter(|t| t.reported > 0)?;
        let percent = match totals.requested {
            0 => 100,
            _ => 100 + u128::from(totals.over_commit),
        };
        let limit = u128::from(totals.reported) * percent / 100;
        let free = limit.saturating_sub(self.needed().into());
        Some(u64::try_from(free).unwrap_or(u64::MAX))
    }

    /// Free memory, where the agent's own figure is not right already.
    fn corrected(&self) -> Option<u64> {
        let totals = self.totals?;
        // By how much an agent multiplies that has not said so is not known either.
        let unsaid = self.agent_workers.is_none() && self.workers.is_some();
        let differs = totals.requested != totals.reported
            || (unsaid && !self.models.is_empty())
            || self
                .models
                .values()
                .any(|e| self.booked(e) != self.need(e.memory));
        differs.then(|| self.available()).flatten()
    }

    fn remember(&mut self, key: &Key, memory: Option<u64>, sent: u64) {
        let entry = Entry {
            memory,
            sent,
            stage: Stage::Loading,
            known: true,
        };
        // What is loaded already stays loaded: the agent will only confirm it.
        if self.has_room(key) {
            self.models.entry(key.clone()).or_insert(entry);
        }
    }

    /// Whether a model is in the account, or may be.
    fn has_room(&self, key: &Key) -> bool {
        let room = counts(self.models.len(), key);
        if !room && !self.models.contains_key(key) {
            tracing::warn!(
                models = self.models.len(),
                length = key.name.len(),
                "the account of models is full, or the name too long: the model is carried and not counted"
            );
        }
        room || self.models.contains_key(key)
    }

    /// `need` in the agent's measure, for each of the workers it will multiply by. Proportional, so
    /// that the agent evicts when the true total is full; less where models from an earlier, smaller
    /// total take more of the agent's total than their share. Rounded down, so that what truly fits
    /// is always accepted.
    fn measure(&self, need: u64, totals: Totals) -> u64 {
        let share =
            |part: u64, whole: u64| u128::from(need) * u128::from(part) / u128::from(whole.max(1));
        let mut sent = share(totals.requested, totals.reported);
        let free = totals.reported.saturating_sub(self.needed_by_all());
        if need > 0 && need <= free {
            let booked = self
                .models
                .values()
                .fold(0u64, |sum, e| sum.saturating_add(self.booked(e)));
            sent = sent.min(share(totals.requested.saturating_sub(booked), free));
        }
        let each = sent / u128::from(self.multiplier().max(1));
        u64::try_from(each).unwrap_or(u64::MAX)
    }

    /// What the agent multiplies by. Before it has said so, the server's own number is the one
    /// with which it surely accepts.
    fn multiplier(&self) -> u32 {
        self.agent_multiplies().or(self.workers).unwrap_or(1)
    }

    fn agent_multiplies(&self) -> Option<u32> {
        self.agent_workers.or(self.silent.then_some(1))
    }

    /// Copies of a model: the server's workers where they are known, else what the agent says.
    /// None at all means that the model runs in the main process, once.
    fn copies(&self) -> u32 {
        self.workers.or(self.agent_workers).unwrap_or(1).max(1)
    }

    fn true_workers(&self, said: Option<u32>) -> Option<u32> {
        let copies = self.copies();
        said.filter(|said| *said != copies).map(|_| copies)
    }

    fn need(&self, memory: Option<u64>) -> u64 {
        memory.unwrap_or(0).saturating_mul(self.copies().into())
    }

    fn booked(&self, entry: &Entry) -> u64 {
        // Before the agent has said what it multiplies by, it has booked nothing yet.
        let by = self.agent_multiplies().unwrap_or(self.copies());
        entry.sent.saturating_mul(by.into())
    }

    fn needed(&self) -> u64 {
        let loaded = self.models.values().filter(|e| e.stage == Stage::Loaded);
        loaded.fold(0, |sum, e| sum.saturating_add(self.need(e.memory)))
    }

    fn needed_by_all(&self) -> u64 {
        let all = self.models.values();
        all.fold(0, |sum, e| sum.saturating_add(self.need(e.memory)))
    }

    fn refusal(&self, key: &Key, memory: u64, total: u64) -> String {
        let copies = match self.copies() {
            1 => String::new(),
            n => format!(" for each of {n} workers"),
        };
        format!(
            "agent-shim: model {} version {} asks for {}{copies} and this replica has {} for models in all: it cannot fit, whatever is unloaded; lower the model's memory or give the server more",
            key.name,
            key.version,
            shown(memory),
            shown(total),
        )
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
