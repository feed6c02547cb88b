//! The probing loop: one task for each candidate and protocol, one reducer that owns the truth.
//!
//! Owns when to probe; what a probe does is behind [`Probe`], what an outcome means is in
//! [`crate::health`], which candidate is taken in [`crate::endpoint`]. The reducer is the only
//! writer of the [`View`]; a loop that ends is a fault of the process, not of the server.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::clock::Clock;
use crate::config::Config;
use crate::endpoint::{Candidate, Protocol, Selector, Standing};
use crate::health::{Health, Outcome, Reason, State};
use crate::history::{Change, History, What};
use crate::metrics::Metrics;
use crate::view::{Endpoint, View};

use self::metrics::ProberMetrics;
use self::pace::{Pace, jittered};

pub mod connect;
pub mod grpc;
pub mod http;
mod metrics;
mod pace;
pub mod resolve;
pub mod server;

/// Time between probes until a protocol has answered, and while a fall is being confirmed.
pub const FAST: Duration = Duration::from_millis(100);
/// How long it is hurried while nothing of a protocol is up: whoever calls later than that still
/// tries a candidate that refuses, and brings a probe forward.
const HURRY: Duration = Duration::from_secs(60);
/// The least time between two probes of one candidate, however often callers ask for one.
const HINT_GAP: Duration = Duration::from_millis(20);
/// The least time between two looks at the kernel's table of listeners.
const LOOK_GAP: Duration = Duration::from_secs(1);

/// What one probe found, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The outcome.
    pub outcome: Outcome,
    /// The address that was asked, where the host resolved.
    pub address: Option<SocketAddr>,
}

/// A boxed future, so that probes of both protocols fit one type.
pub type ProbeFuture = Pin<Box<dyn Future<Output = Report> + Send>>;

/// Asks one candidate once. Must end within its own time limits.
pub trait Probe: Send + Sync + 'static {
    /// One probe.
    fn probe(&self, candidate: &Candidate) -> ProbeFuture;
}

/// Callers' hints that a probe is worth making now.
#[derive(Debug, Clone)]
pub struct Hints {
    asked: [Arc<watch::Sender<()>>; 2],
}

impl Default for Hints {
    fn default() -> Self {
        Hints {
            asked: Protocol::ALL.map(|_| Arc::new(watch::Sender::new(()))),
        }
    }
}

impl Hints {
    /// A caller could not connect, or could where that was not expected.
    pub fn probe_now(&self, protocol: Protocol) {
        self.asked[protocol.index()].send_replace(());
    }
}

/// What the rest of the process sees of the prober.
#[derive(Debug, Clone)]
pub struct Watching {
    /// The latest snapshot, replaced at every probe.
    pub view: watch::Receiver<Arc<View>>,
    /// Counts changes of state or selection; wakes only then.
    pub changes: watch::Receiver<u64>,
    /// For callers' hints.
    pub hints: Hints,
    /// What happened lately.
    pub history: History,
}

/// The prober, ready to run.
pub struct Prober<P> {
    probe: Arc<P>,
    interval: Duration,
    clock: Clock,
    view: View,
    selectors: [Selector; 2],
    looked: [Option<Duration>; 2],
    /// Since when nothing of a protocol is up.
    none_up: [Option<Duration>; 2],
    hints: Hints,
    history: History,
    view_out: watch::Sender<Arc<View>>,
    changes_out: watch::Sender<u64>,
    metrics: ProberMetrics,
}

impl<P> std::fmt::Debug for Prober<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prober")
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

impl<P: Probe> Prober<P> {
    /// A prober over the configured candidates, and the reading side of what it finds.
    pub fn new(config: &Config, probe: P, clock: Clock, metrics: &Metrics) -> (Self, Watching) {
        let mut view = View::default();
        for protocol in Protocol::ALL {
            view.endpoints[protocol.index()] = config
                .candidates(protocol)
                .into_iter()
                .map(|c| Endpoint::new(c, Health::new(config.probe.thresholds)))
                .collect();
        }
        let metrics = ProberMetrics::new(metrics, &view);
        let (view_out, view_in) = watch::channel(Arc::new(view.clone()));
        let (changes_out, changes_in) = watch::channel(0);
        let hints = Hints::default();
        let candidates = [0, 1].map(|i| view.endpoints[i].len());
        let history = History::new(candidates, config.probe.interval);
        let watching = Watching {
            view: view_in,
            changes: changes_in,
            hints: hints.clone(),
            history: history.clone(),
        };
        let selector = Selector::new(config.failback_hold);
        let prober = Prober {
            probe: Arc::new(probe),
            interval: config.probe.interval,
            clock,
            view,
            selectors: [selector.clone(), selector],
            looked: [None; 2],
            none_up: [None; 2],
            hints,
            history,
            view_out,
            changes_out,
            metrics,
        };
        (prober, watching)
    }

    /// Probes for ever. Returns only when a loop has ended, which is a fault.
    pub async fn run(mut self) {
        let (reports, mut inbox) = mpsc::channel(16);
        let mut loops = JoinSet::new();
        for protocol in Protocol::ALL {
            for (index, endpoint) in self.view.of(protocol).iter().enumerate() {
                loops.spawn(probe_loop(Loop {
                    probe: self.probe.clone(),
                    candidate: endpoint.candidate.clone(),
                    index,
                    hint: self.hints.asked[protocol.index()].subscribe(),
                    reports: reports.clone(),
                }));
            }
        }
        drop(reports);
        let mut pace = Pace::new(self.interval);
        loop {
            tokio::select! {
                Some(probed) = inbox.recv() => {
                    let Probed { protocol, index, report, took, next } = probed;
                    self.take(protocol, index, report, took);
                    let chance = fastrand::f64();
                    let now = self.clock.now();
                    let hurried = match hurry(&self.view, protocol, index) {
                        Hurry::No => false,
                        Hurry::Falls => true,
                        Hurry::NoneUp => {
                            let since = self.none_up[protocol.index()].get_or_insert(now);
                            now.saturating_sub(*since) < HURRY
                        }
                    };
                    let wait = match hurried {
                        true => jittered(FAST.min(self.interval), chance),
                        false => pace.wait(now, chance),
                    };
                    // A loop that is gone is reported by the join below.
                    let _ = next.send(wait);
                }
                ended = loops.join_next() => {
                    tracing::error!(?ended, "a probe loop has ended");
                    return;
                }
            }
        }
    }

    fn take(&mut self, protocol: Protocol, index: usize, report: Report, took: Duration) {
        let now = self.clock.now();
        let endpoint = &mut self.view.endpoints[protocol.index()][index];
        let transition = endpoint.health.observe(&report.outcome, now);
        if report.address.is_some() {
            endpoint.address = report.address;
        }
        self.metrics.probed(protocol, &report.outcome, took);
        self.history.probed(protocol, index, &report.outcome, now);
        self.view.updated = now;
        let health = &endpoint.health;
        let reason = health.reason.map_or("", Reason::as_str);
        let (from, to) = match transition {
            Some(t) => (t.from.as_str(), t.to.as_str()),
            None => ("", ""),
        };
        if transition.is_some() {
            self.history.changed(Change {
                at: now,
                what: What::Endpoint,
                subject: format!("{} {}", protocol.title(), endpoint.candidate).into(),
                from: from.into(),
                to: to.into(),
                reason: health.in_words(),
            });
        }
        match transition {
            None => {
                tracing::debug!(endpoint = %endpoint.candidate, %protocol, reason, detail = health.detail, "probed");
            }
            Some(t) if t.to == State::Up => {
                tracing::info!(endpoint = %endpoint.candidate, %protocol, from, to, "endpoint changed");
            }
            // A candidate that never was up is an alternative that is not in use, not a fault.
            Some(_) if health.last_success.is_none() => {
                tracing::info!(endpoint = %endpoint.candidate, %protocol, from, to, reason, detail = health.detail, "endpoint changed");
            }
            Some(_) => {
                tracing::warn!(endpoint = %endpoint.candidate, %protocol, from, to, reason, detail = health.detail, "endpoint changed");
            }
        }
        let up = |e: &Endpoint| e.health.state == State::Up;
        if self.view.of(protocol).iter().any(up) {
            self.none_up[protocol.index()] = None;
        }
        let moved = self.select(protocol, now);
        self.look_elsewhere(protocol, now);
        self.metrics.shown(protocol, &self.view);
        self.view_out.send_replace(Arc::new(self.view.clone()));
        if transition.is_some() || moved {
            self.changes_out.send_modify(|n| *n += 1);
        }
    }

    /// While every candidate of a protocol refuses: who else listens on its port? Looked up once a
    /// second at most, since the server may bind at any moment.
    fn look_elsewhere(&mut self, protocol: Protocol, now: Duration) {
        let i = protocol.index();
        let endpoints = self.view.of(protocol);
        let refused = |e: &Endpoint| e.health.reason == Some(Reason::Refused);
        if !endpoints.iter().all(refused) {
            self.view.elsewhere[i].clear();
            return;
        }
        if self.looked[i].is_some_and(|at| now.saturating_sub(at) < LOOK_GAP) {
            return;
        }
        let port = endpoints.first().map_or(0, |e| e.candidate.port);
        let began = tokio::time::Instant::now();
        let found = crate::listeners::on_port(port, Path::new("/proc/net"));
        // On the one thread there is: a table so long that a look takes time is looked through
        // less often, for a hundredth of the time at most.
        self.looked[i] = Some(now + 100 * began.elapsed());
        if !found.is_empty() && found != self.view.elsewhere[i] {
            tracing::warn!(%protocol, ?found, "every candidate refuses, and somebody listens at another address: see SHIM_INFERENCE_HOSTS");
        }
        self.view.elsewhere[i] = found;
    }

    /// Moves the selection where the rules say so; true where it moved.
    fn select(&mut self, protocol: Protocol, now: Duration) -> bool {
        let standings: Vec<Standing> = self
            .view
            .of(protocol)
            .iter()
            .map(|e| Standing {
                state: e.health.state,
                since: e.health.since,
                has_fallen: e.health.has_fallen,
            })
            .collect();
        let before = self.view.selection[protocol.index()];
        let after = self.selectors[protocol.index()].choose(&standings, now);
        if before == after {
            return false;
        }
        self.view.selection[protocol.index()] = after;
        self.metrics
            .selections
            .with_label_values(&[protocol.as_str()])
            .inc();
        let used = |index: Option<usize>| {
            let endpoint = index.and_then(|i| self.view.of(protocol).get(i));
            endpoint.map_or("none".into(), |e| e.candidate.to_string().into())
        };
        self.history.changed(Change {
            at: now,
            what: What::Selection,
            subject: protocol.title().into(),
            from: used(before),
            to: used(after),
            reason: match after {
                Some(_) => String::new(),
                None => self.view.why_not(protocol, now),
            },
        });
        match self.view.selected(protocol) {
            Some(chosen) => {
                tracing::info!(%protocol, endpoint = %chosen.candidate, "inference server selected");
            }
            None => {
                tracing::warn!(%protocol, why = self.view.why_not(protocol, now), "no usable inference server");
            }
        }
        true
    }
}

/// One finished probe on its way to the reducer, which answers with the time to wait: it alone
/// knows what the outcome has changed.
struct Probed {
    protocol: Protocol,
    index: usize,
    report: Report,
    took: Duration,
    next: oneshot::Sender<Duration>,
}

struct Loop<P> {
    probe: Arc<P>,
    candidate: Candidate,
    index: usize,
    hint: watch::Receiver<()>,
    reports: mpsc::Sender<Probed>,
}

async fn probe_loop<P: Probe>(mut this: Loop<P>) {
    loop {
        // A hint that comes while this probe is under way asks for another one.
        this.hint.mark_unchanged();
        let started = tokio::time::Instant::now();
        let report = this.probe.probe(&this.candidate).await;
        let (next, wait) = oneshot::channel();
        let probed = Probed {
            protocol: this.candidate.protocol,
            index: this.index,
            report,
            took: started.elapsed(),
            next,
        };
        // The reducer ends only with the whole prober.
        if this.reports.send(probed).await.is_err() {
            return;
        }
        let Ok(wait) = wait.await else {
            return;
        };
        let hinted = async {
            // Fails only when the prober is gone, which ends the loop at its next report.
            let _ = this.hint.changed().await;
            sleep(HINT_GAP).await;
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = hinted => {}
        }
    }
}

/// Why the next probe of a candidate is hurried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hurry {
    /// It is not.
    No,
    /// Its protocol has nothing up.
    NoneUp,
    /// Its fall is being confirmed, and it fails clearly. Silence is not hurried: each silent probe
    /// has waited for its own time limit already.
    Falls,
}

fn hurry(view: &View, protocol: Protocol, index: usize) -> Hurry {
    let endpoints = view.of(protocol);
    if !endpoints.iter().any(|e| e.health.state == State::Up) {
        return Hurry::NoneUp;
    }
    let falls = endpoints.get(index).is_some_and(|e| {
        e.health.state == State::Up && e.health.reason.is_some_and(|r| !r.is_silence())
    });
    if falls { Hurry::Falls } else { Hurry::No }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod properties;
