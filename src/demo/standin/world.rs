//! What the stand-in says of itself, and what its tests may count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::calls::Journal;
use super::gate::Gate;
use crate::endpoint::Protocol;

/// One model of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// Its version; empty where it has none.
    pub version: String,
    /// `READY`, `UNAVAILABLE` or `UNKNOWN`.
    pub state: String,
}

#[derive(Debug)]
pub(super) struct Settings {
    pub(super) live: bool,
    pub(super) ready: bool,
    pub(super) models: Vec<Model>,
    pub(super) load_delay: Duration,
    pub(super) load_error: Option<String>,
    pub(super) idle_close: Duration,
    pub(super) said: Option<String>,
    /// Models whose files are not there.
    pub(super) broken: Vec<String>,
    /// Models that the worker has lost although they are READY.
    pub(super) lost: Vec<String>,
    /// Whether the worker is dead, as for 2.5 s after SIGKILL, or for good in the fatal state.
    pub(super) worker_dead: bool,
    /// Whether the worker hangs: inferences over HTTP wait for a release.
    pub(super) worker_hangs: bool,
    /// Whether answers to inferences are broken off.
    pub(super) breaks_off: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            live: true,
            ready: true,
            models: vec![Model {
                name: "iris".into(),
                version: "v0.1.0".into(),
                state: READY.into(),
            }],
            load_delay: Duration::ZERO,
            load_error: None,
            idle_close: Duration::from_secs(5),
            said: None,
            broken: Vec::new(),
            lost: Vec::new(),
            worker_dead: false,
            worker_hangs: false,
            breaks_off: false,
        }
    }
}

pub(super) const READY: &str = "READY";
pub(super) const UNAVAILABLE: &str = "UNAVAILABLE";
/// MLServer's word for loading.
pub(super) const UNKNOWN: &str = "UNKNOWN";

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) open: usize,
    pub(super) accepted: usize,
    pub(super) pings: usize,
}

/// The events of the `/sse` streams.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) data: Vec<String>,
    pub(super) ended: bool,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) gate: Gate,
    pub(super) journal: Arc<Journal>,
    pub(super) released: watch::Sender<u64>,
    settings: Mutex<Settings>,
    counts: Mutex<[Counts; 2]>,
    events: Mutex<watch::Sender<Events>>,
    connections: AtomicU64,
}

impl World {
    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings());
        self.journal.changed();
    }

    pub(super) fn count(&self, protocol: Protocol) -> Counts {
        lock(&self.counts)[protocol.index()]
    }

    pub(super) fn counted(&self, protocol: Protocol, change: impl FnOnce(&mut Counts)) {
        change(&mut lock(&self.counts)[protocol.index()]);
        self.journal.changed();
    }

    /// The number of a new connection.
    pub(super) fn number(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn is_ready(&self) -> bool {
        let settings = self.settings();
        settings.ready && settings.models.iter().all(|m| m.state != UNKNOWN)
    }

    /// The state of a model, if it is in the repository.
    pub(super) fn model_state(&self, name: &str) -> Option<String> {
        let settings = self.settings();
        let model = settings.models.iter().find(|m| m.name == name)?;
        Some(model.state.clone())
    }

    /// Begins a load; a model that serves goes on while it is loaded again. A model that was not
    /// in the repository is now, unlike MLServer's: a test need not set it up first.
    pub(super) fn load_begins(&self, name: &str) -> Duration {
        let mut settings = self.settings();
        match settings.models.iter_mut().find(|m| m.name == name) {
            Some(model) if model.state == READY => {}
            Some(model) => model.state = UNKNOWN.into(),
            None => settings.models.push(Model {
                name: name.into(),
                version: String::new(),
                state: UNKNOWN.into(),
            }),
        }
        settings.load_delay
    }

    /// The end of a load: MLServer's text where it fails. A model that served goes on serving, one
    /// that did not is listed as not loaded.
    pub(super) fn load_ends(&self, name: &str) -> Result<(), String> {
        let broken = self.settings().broken.iter().any(|b| b == name);
        if broken {
            let mut settings = self.settings();
            if let Some(model) = settings.models.iter_mut().find(|m| m.name == name)
                && model.state == UNKNOWN
            {
                model.state = UNAVAILABLE.into();
            }
            drop(settings);
            self.journal.changed();
            return Err(format!(
                "mlserver.errors.InvalidModelURI: Invalid URI specified for model {name} (nope.joblib)"
            ));
        }
        self.settings().lost.retain(|l| l != name);
        self.put(name, READY);
        Ok(())
    }

    /// Puts a model of the repository in a state; false where it is not there.
    pub(super) fn put(&self, name: &str, state: &str) -> bool {
        let mut settings = self.settings();
        let model = settings.models.iter_mut().find(|m| m.name == name);
        let found = model.map(|m| m.state = state.into()).is_some();
        drop(settings);
        self.journal.changed();
        found
    }

    /// Completes at the next release. Counts from the call, not from the first poll.
    pub(super) fn release(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut released = self.released.subscribe();
        async move {
            // An error means that the stand-in is going away, and this call with it.
            let _ = released.changed().await;
        }
    }

    pub(super) fn push_event(&self, data: &str) {
        let mut events = lock(&self.events);
        if events.borrow().ended {
            *events = watch::Sender::default();
        }
        events.send_modify(|e| e.data.push(data.into()));
    }

    pub(super) fn end_events(&self) {
        lock(&self.events).send_modify(|e| e.ended = true);
    }

    pub(super) fn events(&self) -> watch::Receiver<Events> {
        lock(&self.events).subscribe()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
