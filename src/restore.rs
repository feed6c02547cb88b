//! What is in the server's memory, and putting it back after the server was restarted.
//!
//! When the inference server restarts its models are gone, while agent and scheduler believe
//! otherwise. [`Book`] remembers what belongs in memory and decides; [`runner`] sees the restart
//! and loads. The relay tells every load and unload that passes, and asks whether a load would be
//! needless. Knows only what it has seen since its own start: a shim that restarts together with
//! the server takes what the agent lists when it subscribes again. Loads over HTTP, which the server finishes even when
//! its caller is gone; no load or unload is ever given a deadline or cancelled here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::drain::{Busy, Drain};
use crate::metrics::Metrics;
use crate::readiness::Condition;
use crate::subscription::status::{Held, Phase, Status};

pub(crate) mod back;
pub mod book;
pub mod files;
pub mod runner;
mod series;
pub mod server;

pub use book::{Book, Loaded, Restoring, Stage};
use files::Fingerprint;
use series::Series;

/// The name of the condition.
pub const CONDITION: &str = "models-restored";

/// What may be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether lost models are loaded again.
    pub restore: bool,
    /// Whether needless loads are answered without loading.
    pub coalesce: bool,
    /// The folder of models, as the shim sees it.
    pub models_dir: PathBuf,
}

/// Work that must go on although its caller has gone.
pub(crate) type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How a load of a caller's was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coalesced {
    /// The model was READY and its files unchanged.
    Ready,
    /// The same load was under way.
    Shared,
}

impl Coalesced {
    /// Both, in the order in which they are exported.
    pub const ALL: [Coalesced; 2] = [Coalesced::Ready, Coalesced::Shared];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Coalesced::Ready => "ready",
            Coalesced::Shared => "shared",
        }
    }
}

/// What is known of the server's memory, shared by the relays, the runner and the reporters.
/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Memory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    clock: Clock,
    drain: Drain,
    book: Mutex<Book>,
    changes: watch::Sender<u64>,
    jobs: mpsc::UnboundedSender<Job>,
    shown: Mutex<Option<Condition>>,
    room: watch::Sender<Option<String>>,
    /// The agent's subscription, where it passes here.
    agent: OnceLock<watch::Receiver<Status>>,
    series: Series,
}

/// The runner's end of [`Memory`].
#[derive(Debug)]
pub struct Jobs(mpsc::UnboundedReceiver<Job>);

impl Jobs {
    /// The next one; `None` when nobody can give any more.
    pub(crate) async fn next(&mut self) -> Option<Job> {
        self.0.recv().await
    }
}

impl Memory {
    /// An empty account.
    pub fn new(settings: Settings, clock: Clock, drain: Drain, metrics: &Metrics) -> (Self, Jobs) {
        let (jobs, taken) = mpsc::unbounded_channel();
        let memory = Memory(Arc::new(Inner {
            settings,
            clock,
            drain,
            book: Mutex::default(),
            changes: watch::Sender::new(0),
            jobs,
            shown: Mutex::default(),
            room: watch::Sender::new(None),
            agent: OnceLock::new(),
            series: Series::new(metrics),
        }));
        (memory, Jobs(taken))
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.0.clock.now()
    }

    /// Changes the account and tells whoever waits for it.
    fn change<T>(&self, change: impl FnOnce(&mut Book, Duration) -> T) -> T {
        let result = change(&mut self.book(), self.now());
        self.0.changes.send_modify(|n| *n += 1);
        result
    }

    /// A load of a caller's passes, until the guard is told how it ended or dropped.
    pub fn loading(&self, model: &str, files: Option<Fingerprint>) -> Loading {
        let mark = self.change(|book, now| book.load_begins(model, now));
        Loading {
            memory: self.clone(),
            model: model.into(),
            mark,
            files,
            begun: self.now(),
            ok: false,
            left: false,
        }
    }

    /// An unload of a caller's passes, until the guard is dropped.
    pub fn unloading(&self, model: &str) -> Unloading {
        self.change(|book, now| book.unload_begins(model, now));
        Unloading {
            memory: self.clone(),
            model: model.into(),
        }
    }

    /// A request for a model was seen.
    pub fn used(&self, model: &str) {
        self.book().used(model, self.now());
    }

    /// An inference of a model was seen to succeed.
    pub fn worked(&self, model: &str) {
        self.book().worked(model, self.now());
    }

    /// An inference of a model was answered as by a server that does not have it.
    pub fn missed(&self, model: &str) {
        self.book().missed(model);
    }

    /// A worker of the server has ended: what it had in its hands is not known any more.
    pub fn worker_ended(&self) {
        self.book().worker_ended();
    }

    /// From now on an agent that has subscribed is known not to be starting.
    pub fn heed_agent(&self, status: watch::Receiver<Status>) {
        // Told once, at the start of the program.
        let _ = self.0.agent.set(status);
    }

    /// Somebody has asked for the index over gRPC, as an agent does at its start, before it
    /// subscribes. While a subscription stands it was somebody else, or the agent for another
    /// reason: nothing is given up for that.
    pub fn agent_starts(&self) {
        let agent = self.0.agent.get();
        if agent.is_some_and(|status| status.borrow().phase != Phase::None) {
            return;
        }
        let dropped = self.change(|book, _| {
            let before = book.restoring().len();
            book.agent_starts();
            before - book.restoring().len()
        });
        if dropped > 0 {
            tracing::info!(
                models = dropped,
                "an agent starts: what it does not know of is not restored"
            );
        }
    }

    /// What the agent lists as loaded, where it has just subscribed: as much of it as fits into
    /// `total` bytes counts.
    pub(crate) fn listed(&self, models: &[Held], total: u64) {
        if !self.0.settings.restore {
            return;
        }
        // A total of 0 is none that anybody knows.
        let mut room = if total == 0 { u64::MAX } else { total };
        let fitting = models.iter().filter(|m| {
            let fits = m.bytes <= room;
            room -= if fits { m.bytes } else { 0 };
            fits
        });
        let names: Vec<String> = fitting.map(|m| m.name.clone()).collect();
        let left_out = models.len() - names.len();
        let models = self.change(|book, now| book.listed(names, now));
        if models > 0 {
            tracing::info!(
                models,
                left_out,
                "the server has no model in memory, and the agent lists some: looking after those"
            );
        }
    }

    /// Whether the model would be loaded from the files that it was loaded from, and was seen to
    /// work not long ago. The server has still to be asked whether it has it.
    pub fn is_fresh(&self, model: &str, files: &Fingerprint) -> bool {
        self.book().is_fresh(model, files, self.now())
    }

    /// The fingerprint of a model's files as they are now.
    pub async fn files(&self, model: &str) -> Option<Fingerprint> {
        let (folder, model) = (self.0.settings.models_dir.clone(), model.to_string());
        let look = tokio::task::spawn_blocking(move || files::fingerprint(&folder, &model));
        // A look that panics has seen nothing.
        look.await.unwrap_or(None)
    }

    /// Takes a model whose load was cut off, to unload it; loads of it over gRPC wait until the
    /// guard is dropped. `None` where its owner or the shim is at it already.
    pub(crate) fn putting_out(&self, model: &str) -> Option<PuttingOut> {
        let takes = self.change(|book, now| book.put_out_begins(model, now));
        takes.then(|| PuttingOut {
            memory: self.clone(),
            model: model.into(),
            unloads: false,
        })
    }

    /// Whether the shim itself is loading or unloading the model.
    pub fn is_restoring(&self, model: &str) -> bool {
        self.book().is_running(model)
    }

    /// Loads and unloads of the model under way, callers' and the shim's.
    pub fn calls(&self, model: &str) -> usize {
        self.book().calls(model)
    }

    /// Whether any model is being loaded or unloaded, as far as is known.
    pub fn is_changing(&self) -> bool {
        self.book().is_changing(self.now())
    }

    /// Whether a load of the model goes on in the server although its caller has gone.
    pub fn is_left(&self, model: &str) -> bool {
        self.book().is_left(model, self.now())
    }

    /// Whether that is so of any model.
    pub fn any_left(&self) -> bool {
        self.book().any_left(self.now())
    }

    /// Completes when the shim itself is not loading or unloading the model.
    pub async fn until_not_restoring(&self, model: &str) {
        let mut changes = self.0.changes.subscribe();
        while self.is_restoring(model) {
            // The sender is held by `self`, so waiting cannot fail.
            let _ = changes.changed().await;
            changes.mark_unchanged();
        }
    }

    /// What is to become of a model that was loaded while its owner unloaded it, when that is over.
    pub(crate) async fn settled(&self, model: &str) -> book::Then {
        let mut changes = self.0.changes.subscribe();
        loop {
            let settled = self.book().settled(model);
            if let Some(then) = settled {
                return then;
            }
            // The sender is held by `self`, so waiting cannot fail.
            let _ = changes.changed().await;
        }
    }

    /// Counts a load that was answered without loading.
    pub fn coalesced(&self, how: Coalesced) {
        self.0.series.coalesced(how);
    }

    /// Counts work that a stop of the shim waits for, until the guard is dropped.
    pub fn busy(&self) -> Busy {
        self.0.drain.busy()
    }

    /// Whether the pod is to end, or calls of `/drain` wait.
    pub fn drains(&self) -> bool {
        self.0.drain.has_begun() || self.0.drain.is_called()
    }

    /// Carries a call on whatever becomes of its caller. False where the shim is at its end.
    pub(crate) fn carry(&self, job: Job) -> bool {
        self.0.jobs.send(job).is_ok()
    }

    /// Models that are being restored or could not be, by name.
    pub fn restoring(&self) -> BTreeMap<String, Restoring> {
        let all = self.book().restoring().into_iter();
        all.map(|r| (r.model.clone(), r)).collect()
    }

    /// For tests: an empty account that counts in the same series.
    #[cfg(test)]
    pub(crate) fn anew(&self, drain: Drain) -> (Self, Jobs) {
        let (jobs, taken) = mpsc::unbounded_channel();
        let memory = Memory(Arc::new(Inner {
            settings: self.0.settings.clone(),
            clock: self.0.clock,
            drain,
            book: Mutex::default(),
            changes: watch::Sender::new(0),
            jobs,
            shown: Mutex::default(),
            room: watch::Sender::new(None),
            agent: OnceLock::new(),
            series: self.0.series.clone(),
        }));
        (memory, Jobs(taken))
    }

    /// For tests: the server has been restarted just now, and that is seen.
    #[cfg(test)]
    pub(crate) fn server_restarted(&self) {
        self.change(|book, now| book.restarted(now, now));
    }

    /// For tests: what the loop would look at next.
    #[cfg(test)]
    pub(crate) fn next_to_restore(&self) -> Option<String> {
        self.book().next(self.now())
    }

    /// How many models belong in memory.
    pub fn wanted(&self) -> usize {
        self.book().wanted()
    }

    /// The condition of this moment. It decides nothing: a model that is not there yet is loaded
    /// by the agent when a request comes.
    pub fn condition(&self) -> Condition {
        let (holds, reason) = self.verdict();
        let mut shown = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let same = shown.as_ref().filter(|c| c.holds == holds);
        let since = same.map_or_else(|| self.now(), |c| c.since);
        let condition = Condition {
            name: CONDITION,
            holds,
            reason,
            since,
        };
        *shown = Some(condition.clone());
        condition
    }

    fn verdict(&self) -> (bool, String) {
        let (all, wanted) = {
            let book = self.book();
            (book.restoring(), book.wanted())
        };
        if all.is_empty() {
            let reason = match self.0.settings.restore {
                true => format!("{wanted} models are remembered, none is to be restored"),
                false => "lost models are not restored (SHIM_RESTORE_MODELS, SHIM_MODE)".into(),
            };
            return (true, reason);
        }
        let names = |given_up: bool| -> Vec<String> {
            all.iter()
                .filter(|r| (r.stage == Stage::GivenUp) == given_up)
                .map(|r| match &r.error {
                    Some(error) => format!("{} ({}. try failed: {error})", r.model, r.failures),
                    None => r.model.clone(),
                })
                .collect()
        };
        let (pending, given_up) = (names(false), names(true));
        let mut parts = Vec::new();
        if !pending.is_empty() {
            parts.push(format!(
                "the server was restarted and has lost its models; being loaded again: {}",
                pending.join(", ")
            ));
            if let Some(why) = self.0.room.borrow().as_deref() {
                parts.push(why.to_string());
            }
        }
        if !given_up.is_empty() {
            parts.push(format!(
                "could not be loaded again and wait for a request, at which the agent loads them: {}",
                given_up.join(", ")
            ));
        }
        (false, parts.join("; "))
    }
}

/// A caller's load under way.
#[derive(Debug)]
pub struct Loading {
    memory: Memory,
    model: String,
    /// Of its beginning in the account.
    mark: u64,
    files: Option<Fingerprint>,
    begun: Duration,
    ok: bool,
    left: bool,
}

impl Loading {
    /// It has succeeded.
    pub fn succeeded(mut self) {
        self.ok = true;
    }

    /// Its caller has gone, and the server goes on with it, as MLServer does over HTTP.
    pub fn left(mut self) {
        self.left = true;
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.memory.change(|book, now| {
            if self.left {
                return book.load_left(&self.model, now);
            }
            let in_memory = self.ok && !book.is_overtaken(&self.model, self.mark);
            let loaded = in_memory.then(|| Loaded {
                at: now,
                took: now.saturating_sub(self.begun),
                files: self.files,
            });
            book.load_ended(&self.model, loaded, now);
        });
    }
}

/// A caller's unload under way.
#[derive(Debug)]
pub struct Unloading {
    memory: Memory,
    model: String,
}

impl Drop for Unloading {
    fn drop(&mut self) {
        self.memory
            .change(|book, now| book.unload_ended(&self.model, now));
    }
}

/// A model in the shim's hands whose load was cut off.
#[derive(Debug)]
pub(crate) struct PuttingOut {
    memory: Memory,
    model: String,
    unloads: bool,
}

impl PuttingOut {
    /// The unload sets off. False where the model's owner is at it.
    fn sets_off(&mut self) -> bool {
        self.unloads = self.memory.book().may_put_out(&self.model);
        self.unloads
    }
}

impl Drop for PuttingOut {
    fn drop(&mut self) {
        let unloaded = self.unloads;
        self.memory
            .change(|book, now| book.put_out_ended(&self.model, unloaded, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_the_agent_lists_as_much_is_restored_as_fits_in_its_order() {
        let restored = |total| {
            let settings = Settings {
                restore: true,
                coalesce: true,
                models_dir: "/nonexistent".into(),
            };
            let (clock, drain) = (Clock::start(), Drain::default());
            let (memory, _jobs) = Memory::new(settings, clock, drain, &Metrics::new());
            let none = ["three", "eight", "five"].map(|name| (name, "UNAVAILABLE"));
            memory.change(|book, now| book.index(none.into_iter(), now));
            let held = [("three", 3), ("eight", 8), ("five", 5)].map(|(name, bytes)| Held {
                name: name.into(),
                bytes,
            });
            memory.listed(&held, total);
            memory.restoring().into_keys().collect::<Vec<_>>()
        };
        assert_eq!(restored(8), ["five", "three"], "8 does not fit beside 3");
        assert_eq!(restored(7), ["three"]);
        assert_eq!(restored(16), ["eight", "five", "three"]);
        assert_eq!(restored(0).len(), 3, "nobody knows how much there is");
    }

    #[test]
    fn an_index_that_is_asked_for_while_the_agent_is_subscribed_gives_nothing_up() {
        let settings = Settings {
            restore: true,
            coalesce: true,
            models_dir: "/nonexistent".into(),
        };
        let (clock, drain) = (Clock::start(), Drain::default());
        let (memory, _jobs) = Memory::new(settings, clock, drain, &Metrics::new());
        let status = watch::Sender::new(Status::default());
        memory.heed_agent(status.subscribe());
        memory.loading("iris", None).succeeded();
        memory.server_restarted();
        status.send_modify(|s| s.phase = Phase::Open);
        memory.agent_starts();
        assert_eq!(memory.restoring().len(), 1, "a person has looked");
        status.send_modify(|s| s.phase = Phase::None);
        memory.agent_starts();
        assert!(memory.restoring().is_empty(), "an agent that starts");
    }
}
