//! The loops that gather the evidence: looks at the processes, the canary, models that are stuck.
//!
//! Thin: what is seen is judged in [`super::record`], [`super::canary`] and [`super`]. Nothing
//! that has been sent to the worker is ever given a limit or cancelled: a hung worker is told by
//! the time that the canary is outstanding, and there is never a second one. Only where its server
//! has gone the canary has, too.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::watch;
use tokio::time::sleep;

use super::canary::{Answer, Canary, Silence};
use super::record::Record;
use super::series::Series;
use super::{HUNG, Worker};
use crate::config::models::{self, Mend};
use crate::drain::in_flight::InFlight;
use crate::endpoint::Protocol;
use crate::health::Reason;
use crate::metrics::Metrics;
use crate::models::{Inventory, Poke};
use crate::observer::Observed;
use crate::prober::Watching;
use crate::process::{self, follow::Follower};
use crate::restore::Memory;
use crate::restore::server::{Asking, Has, address, reason};
use crate::view::{Endpoint, Usable, View};

mod fatal;
mod mending;

/// Time between two looks at the processes: a worker that dies at its start lives for 1.3 s to
/// 2.5 s.
const LOOK: Duration = Duration::from_secs(1);
/// The largest canary request.
const MAX_REQUEST: u64 = 1024 * 1024;

/// What the runner works with.
#[derive(Debug)]
pub struct Parts {
    /// Where what is known is kept.
    pub worker: Worker,
    /// `/proc`, or a test's own.
    pub proc: PathBuf,
    /// The server's ports.
    pub ports: Vec<u16>,
    /// What the prober knows.
    pub watching: Watching,
    /// The inventory.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// What the observer sees; the processes are looked at only where it sees some.
    pub observed: watch::Receiver<Arc<Observed>>,
    /// Loads and unloads that are known.
    pub memory: Memory,
    /// The client that asks.
    pub client: Client,
    /// For a fresh index.
    pub poke: Poke,
    /// Relayed inferences under way.
    pub in_flight: InFlight,
    /// The canary.
    pub canary: Option<models::Canary>,
    /// What is mended.
    pub mend: Mend,
}

/// Gathers the evidence.
#[derive(Debug)]
pub struct Runner {
    parts: Parts,
    series: Series,
    /// How long inferences may run without an answer before a canary is sent beside them.
    patience: Duration,
}

impl Runner {
    /// A runner. Its series are there from the start.
    pub fn new(parts: Parts, metrics: &Metrics) -> Self {
        let series = Series::new(metrics);
        if parts.canary.is_some() {
            let seen = &parts.worker.0.seen;
            seen.send_modify(|seen| seen.canary = Some(Canary::default()));
        }
        Runner {
            parts,
            series,
            patience: HUNG,
        }
    }

    /// Runs for ever. Returns only when the observer is gone, which is a fault of the process.
    pub async fn run(self) {
        tokio::select! {
            () = self.processes() => {}
            () = self.canary() => {}
            () = self.models() => {}
            () = self.fatal() => {}
        }
    }

    fn now(&self) -> Duration {
        self.parts.worker.0.clock.now()
    }

    async fn processes(&self) {
        let mut observed = self.parts.observed.clone();
        let mut record = Record::default();
        let mut follower = Follower::new(&self.parts.proc, &self.parts.ports);
        let mut starts = 0;
        loop {
            let gone = is_gone(&self.parts.watching.view.borrow());
            if gone || record.starts() != starts {
                starts = record.starts();
                // What another process answered says nothing of this one.
                self.parts.worker.forget();
            }
            let visible = observed.borrow_and_update().server.is_some();
            if visible || !record.orphans().is_empty() {
                let proc = self.parts.proc.clone();
                let now = self.now();
                let look = tokio::task::spawn_blocking(move || {
                    let server = follower.look(now).ok();
                    let new = server.as_ref().filter(|s| record.is_new(s)).cloned();
                    record.look(now, server.as_ref(), |p| process::is_running(&proc, p));
                    // Only then, since later ones are seen as they come about.
                    if let Some(server) = new {
                        record.left_before(process::orphans(&proc, &server));
                    }
                    (record, follower)
                });
                let Ok(seen) = look.await else {
                    return;
                };
                (record, follower) = seen;
            }
            self.take(&record);
            tokio::select! {
                () = sleep(LOOK) => {}
                changed = observed.changed(), if !visible => if changed.is_err() { return },
            }
        }
    }

    fn take(&self, record: &Record) {
        let seen = &self.parts.worker.0.seen;
        let before = seen.borrow().exits;
        let now = self.now();
        seen.send_if_modified(|seen| {
            let old = seen.clone();
            seen.workers = record.workers();
            seen.exits = record.exits();
            seen.exited = record.exited();
            seen.recent_exits = record.recent();
            seen.orphans = record.orphans();
            seen.passive = seen.passive.still(now);
            *seen != old
        });
        let exits = record.exits();
        if exits > before {
            self.parts.memory.worker_ended();
            tracing::warn!(exits, "a worker process of the server has ended");
        }
        self.series.show(&seen.borrow(), self.now());
    }

    async fn canary(&self) {
        let Some(canary) = &self.parts.canary else {
            return std::future::pending().await;
        };
        let mut silence = Silence::default();
        loop {
            self.pause(canary.interval, &mut silence).await;
            match self.may_ask(canary, &mut silence).await {
                Ok((server, body)) => {
                    let answer = self.ask(&server, &canary.model, body, &mut silence).await;
                    if answer == Answer::Lost {
                        self.lost(&server, &canary.model).await;
                    } else {
                        self.not_lost(&canary.model);
                    }
                }
                Err(why) => {
                    self.series.canary("skipped");
                    self.with_canary(|canary, now| canary.skipped(why, now));
                }
            }
        }
    }

    /// Waits, and looks at what runs meanwhile.
    async fn pause(&self, interval: Duration, silence: &mut Silence) {
        let until = tokio::time::Instant::now() + interval;
        loop {
            self.look(silence);
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK)).await;
        }
    }

    /// A look at the inferences that run. True where the worker is known to work, or has a load or
    /// unload on its hands, beside which it does nothing.
    fn look(&self, silence: &mut Silence) -> bool {
        let (running, answers) = {
            let calls = &self.parts.in_flight;
            (calls.now(), calls.answers())
        };
        let loads = self.parts.memory.is_changing();
        silence.look(self.now(), running, answers, loads) || loads
    }

    fn with_canary(&self, change: impl FnOnce(&mut Canary, Duration)) {
        let now = self.now();
        self.parts.worker.0.seen.send_modify(|seen| {
            change(seen.canary.get_or_insert_default(), now);
        });
    }

    /// Whether it is a moment for a canary: never on a busy worker, and only to a loaded model.
    async fn may_ask(
        &self,
        canary: &models::Canary,
        silence: &mut Silence,
    ) -> Result<(Asking, Vec<u8>), &'static str> {
        let Some(address) = address(&self.parts.watching.view.borrow()) else {
            return Err("the server does not answer");
        };
        let server = Asking::new(self.parts.client.clone(), address);
        let path = canary.request.clone();
        let read = tokio::task::spawn_blocking(move || {
            let seen = std::fs::metadata(&path).ok()?;
            let fits = seen.is_file() && seen.len() <= MAX_REQUEST;
            fits.then(|| std::fs::read(&path).ok()).flatten()
        });
        let body = read.await.ok().flatten();
        let body = body.ok_or("SHIM_CANARY_REQUEST cannot be read, or is larger than 1 MiB")?;
        // The worker does nothing beside a load, whatever model it is of.
        const LOADS: &str = "a model is being loaded or unloaded";
        if self.parts.memory.is_changing() {
            return Err(LOADS);
        }
        match server.has(&canary.model).await {
            Has::Ready => {}
            Has::Not => {
                // No canary will say that the worker works again.
                self.with_canary(|canary, _| _ = canary.forget());
                self.not_lost(&canary.model);
                return Err("its model is not loaded");
            }
            Has::Loading => {
                self.not_lost(&canary.model);
                return Err("its model is not ready");
            }
            Has::Unclear => return Err("its model is not ready"),
        }
        // Last, since the questions took time.
        self.look(silence);
        if self.parts.memory.is_changing() {
            return Err(LOADS);
        }
        let patient = |since| self.now().saturating_sub(since) < self.patience;
        if silence.since().is_some_and(patient) {
            if silence.was_broken() {
                // A result has come since the last canary.
                self.with_canary(|canary, _| _ = canary.forget());
            }
            return Err("inferences are under way");
        }
        Ok((server, body))
    }

    async fn ask(
        &self,
        server: &Asking,
        model: &str,
        body: Vec<u8>,
        silence: &mut Silence,
    ) -> Answer {
        let Some(url) = server.url(&["models", model, "infer"]) else {
            return Answer::Refused("the model's name does not make an address".into());
        };
        let beside = silence.since();
        self.with_canary(|canary, now| canary.sent(now, beside));
        let asked = self.main();
        let request = self.parts.client.post(url).body(body);
        let request = request.header(CONTENT_TYPE, "application/json");
        let asking = async {
            let Ok(answer) = request.send().await else {
                return Answer::Broken;
            };
            let status = answer.status().as_u16();
            let kind = answer.headers().get(CONTENT_TYPE);
            let plain = kind.is_some_and(|k| k.as_bytes().starts_with(b"text/plain"));
            let said = match status {
                200 => None,
                _ => reason(answer).await,
            };
            Answer::judge(status, plain, said)
        };
        let mut asking = std::pin::pin!(asking);
        let answer = loop {
            tokio::select! {
                answer = &mut asking => break answer,
                () = sleep(LOOK) => {}
            }
            // A connection need not tell that its other end has gone.
            let another = self
                .main()
                .is_some_and(|now| asked.is_some_and(|was| was != now));
            if another || is_gone(&self.parts.watching.view.borrow()) {
                break Answer::Broken;
            }
            if self.look(silence) {
                self.with_canary(Canary::excused);
            }
        };
        self.look(silence);
        silence.ends();
        self.series.canary(answer.as_str());
        let kept = answer.clone();
        self.with_canary(|canary, now| canary.ended(kept, now));
        if answer == Answer::Worked {
            self.parts.worker.worked();
        }
        answer
    }

    /// The server's main process, where it is seen.
    fn main(&self) -> Option<(u32, u64)> {
        let observed = self.parts.observed.borrow();
        let main = &observed.server.as_ref()?.main;
        Some((main.pid, main.start))
    }
}

/// Whether the process that inferences went to has ended: nobody listens any more.
fn is_gone(view: &View) -> bool {
    let refused = |e: &Endpoint| e.health.reason == Some(Reason::Refused);
    let all = view.of(Protocol::Http);
    // Where no address is known, nobody has refused.
    view.usable(Protocol::Http) == Usable::Down && !all.is_empty() && all.iter().all(refused)
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
