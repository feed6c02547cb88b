//! When the probe model is run: once for each start of the server, before the agent can see it.
//!
//! Owns the moment; [`probe_model`] does the work and [`Gate`] keeps the agent away meanwhile.
//! One round at a time, and a round that has begun runs to its end: half a probe leaves a loaded
//! model. A stop of the shim waits for it like for a caller's connection, within the drain time;
//! what is left after all is removed at the next start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, IntGauge};
use reqwest::Client;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::gate::Gate;
use super::probe_model::{self, Answer, Failed};
use crate::clock::Clock;
use crate::drain::Drain;
use crate::endpoint::Protocol;
use crate::health::State;
use crate::metrics::Metrics;
use crate::models::Poke;
use crate::observer::{ProbeAnswer, Probed, Probing};
use crate::prober::Watching;
use crate::view::{Usable, View};

/// How long the first probe may keep the agent from starting, from the server's first answer.
pub const GATE_LIMIT: Duration = Duration::from_secs(30);
/// Limit of one call to the server, which freezes for ten seconds in normal work.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// Pause before a server that was busy at its first start is looked at again.
const PAUSE: Duration = Duration::from_millis(250);
/// Pause before what could not be removed is tried again.
const CLEAN_INTERVAL: Duration = Duration::from_secs(60);

/// Outcomes as they are counted.
const OUTCOMES: [&str; 3] = ["answered", "failed", "skipped"];

/// What the runner works with.
#[derive(Debug)]
pub struct Parts {
    /// What the prober knows.
    pub watching: Watching,
    /// The process clock.
    pub clock: Clock,
    /// The client that asks.
    pub client: Client,
    /// The folder of models, as the shim sees it.
    pub models_dir: PathBuf,
    /// The gate before the agent.
    pub gate: Gate,
    /// Waits for a probe under way.
    pub drain: Drain,
    /// Told after each probe: the index has changed twice.
    pub poke: Poke,
}

/// Runs the probe model.
#[derive(Debug)]
pub struct Runner {
    parts: Parts,
    out: watch::Sender<Option<Arc<ProbeAnswer>>>,
    series: Series,
}

/// The runner's series; there from the start, also where nothing is ever probed.
#[derive(Debug, Clone)]
pub struct Series {
    rounds: IntCounterVec,
    distributions: IntGauge,
}

impl Series {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let rounds = metrics.counter_vec(
            "agent_shim_capability_probes_total",
            "Starts of the server at which it was to be asked through the probe model, by outcome.",
            &["outcome"],
        );
        for outcome in OUTCOMES {
            rounds.with_label_values(&[outcome]);
        }
        let distributions = metrics.int_gauge(
            "agent_shim_capability_probe_distributions",
            "Python distributions in the last answer of the probe model.",
        );
        Series {
            rounds,
            distributions,
        }
    }
}

/// Why a round gave no answer.
enum Not {
    /// It was no moment for it; nothing was placed.
    Now(String),
    /// It was tried.
    Failed(Failed),
}

impl Runner {
    /// A runner, and the channel for the observer.
    pub fn new(parts: Parts, series: Series) -> (Self, Probed) {
        let (out, probed) = watch::channel(None);
        (Runner { parts, out, series }, probed)
    }

    /// Runs for ever. Returns only when the prober is gone, which is a fault of the process.
    pub async fn run(self) {
        tokio::select! {
            () = self.rounds() => {}
            () = self.bound() => {}
        }
    }

    /// Opens the gate where the first round takes too long; the round goes on.
    async fn bound(&self) {
        let up = |view: &View| {
            let up = |p: &Protocol| view.usable(*p) == Usable::Up;
            Protocol::ALL.iter().any(up).then_some(())
        };
        if self.until(up).await.is_some() {
            sleep(GATE_LIMIT).await;
            if !self.parts.gate.is_open() {
                tracing::warn!(limit = ?GATE_LIMIT, "the probe model has not answered in time: the agent may start without it");
                self.parts.gate.open();
            }
        }
        std::future::pending().await
    }

    async fn rounds(&self) {
        let mut first = true;
        while let Some(address) = self.until(answering).await {
            let base = format!("http://{address}");
            // A restart during the round is a start of its own, and must not be missed.
            let (mut left, mut fallen) = {
                let mut round = pin!(self.round(&base, first));
                tokio::select! {
                    left = &mut round => (left, false),
                    _ = self.until(gone) => (round.await, true),
                }
            };
            self.parts.gate.open();
            first = false;
            while !fallen {
                tokio::select! {
                    gone = self.until(gone) => match gone {
                        Some(()) => fallen = true,
                        None => return,
                    },
                    () = sleep(CLEAN_INTERVAL), if left => left = self.clean_up(&base).await,
                }
            }
        }
    }

    /// One round; true where something of the probe model's could not be removed.
    async fn round(&self, base: &str, first: bool) -> bool {
        // Also where nothing is probed then: a crash may have left the model.
        if self.clean_up(base).await {
            self.failed("an earlier probe model is still there".into());
            return true;
        }
        let deadline = Instant::now() + GATE_LIMIT;
        let answer = loop {
            match self.attempt(base).await {
                // Nothing else waits for a later start, and the agent may be loading then.
                Err(Not::Now(_)) if first && self.pause(deadline).await => {}
                answer => break answer,
            }
        };
        match answer {
            Ok(answer) => self.answered(answer),
            Err(Not::Now(reason)) => {
                self.count("skipped");
                tracing::info!(reason, "the server is not asked through the probe model");
                self.say(Err(format!("not asked: {reason}")));
                false
            }
            Err(Not::Failed(why)) => {
                self.failed(why.to_string());
                matches!(why, Failed::LeftBehind(_))
            }
        }
    }

    async fn attempt(&self, base: &str) -> Result<Answer, Not> {
        let Parts {
            drain,
            gate,
            client,
            models_dir,
            poke,
            ..
        } = &self.parts;
        if drain.has_begun() {
            return Err(Not::Now("the shim is stopping".into()));
        }
        let loads = gate.loads();
        if loads > 0 {
            let why = format!("{loads} loads or unloads of models are under way");
            return Err(Not::Now(why));
        }
        let busy = drain.busy();
        let answer = probe_model::probe(client, base, models_dir, CALL_LIMIT).await;
        drop(busy);
        match answer {
            Err(Failed::Busy) => Err(Not::Now(Failed::Busy.to_string())),
            other => {
                poke.now();
                other.map_err(Not::Failed)
            }
        }
    }

    /// Removes what was left; true where that failed and may succeed later.
    async fn clean_up(&self, base: &str) -> bool {
        let _busy = self.parts.drain.busy();
        let (client, models_dir) = (&self.parts.client, &self.parts.models_dir);
        match probe_model::clean_up(client, base, models_dir, CALL_LIMIT).await {
            Ok(()) => false,
            Err(why) => {
                tracing::warn!(%why, "cannot remove what an earlier probe has left");
                matches!(why, Failed::LeftBehind(_))
            }
        }
    }

    /// Waits a little; false where there is no time left.
    async fn pause(&self, deadline: Instant) -> bool {
        tokio::select! {
            () = sleep(PAUSE) => Instant::now() < deadline,
            // The agent may start now.
            () = self.parts.gate.opened() => false,
            () = self.parts.drain.begun() => false,
        }
    }

    fn answered(&self, answer: Answer) -> bool {
        self.count("answered");
        let distributions = answer.distributions.len();
        self.series.distributions.set(distributions as i64);
        let left = answer.left_behind.clone();
        match &left {
            None => tracing::info!(distributions, "the server has said what it has installed"),
            Some(why) => tracing::warn!(
                distributions,
                why,
                "the server has said what it has installed; the probe model is still there"
            ),
        }
        let at = self.parts.clock.now();
        self.say(Ok(Probing { answer, at }));
        left.is_some()
    }

    fn failed(&self, why: String) {
        self.count("failed");
        tracing::warn!(why, "the server was not asked what it has installed");
        self.say(Err(why));
    }

    fn count(&self, outcome: &str) {
        self.series.rounds.with_label_values(&[outcome]).inc();
    }

    /// A start at which nothing was learnt takes nothing away from what an earlier one said.
    fn say(&self, answer: ProbeAnswer) {
        self.out.send_if_modified(|known| {
            let news = answer.is_ok() || !matches!(known.as_deref(), Some(Ok(_)));
            if news {
                *known = Some(Arc::new(answer));
            }
            news
        });
    }

    /// Completes when `holds` gives a value of the view; `None` when the prober is gone.
    async fn until<T>(&self, holds: impl Fn(&View) -> Option<T>) -> Option<T> {
        let mut changes = self.parts.watching.changes.clone();
        loop {
            changes.mark_unchanged();
            if let Some(value) = holds(&self.parts.watching.view.borrow()) {
                return Some(value);
            }
            changes.changed().await.ok()?;
        }
    }
}

/// Where the server answers HTTP.
fn answering(view: &View) -> Option<SocketAddr> {
    let endpoint = view.selected(Protocol::Http)?;
    (endpoint.health.state == State::Up).then_some(endpoint.address?)
}

/// Whether its HTTP side has gone: what answers next is another start of it.
fn gone(view: &View) -> Option<()> {
    let there = matches!(view.usable(Protocol::Http), Usable::Up | Usable::Stalled);
    (!there).then_some(())
}
