//! The probing loop: one task for each candidate and protocol, one reducer that owns the truth.
//!
//! Owns when to probe; what a probe does is behind [`Probe`], what an outcome means is in
//! [`crate::health`], which candidate is taken in [`crate::endpoint`]. The reducer is the only
//! writer of the [`View`]; a loop that ends is a fault of the process, not of the server.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::clock::Clock;
use crate::config::Config;
use crate::endpoint::{Candidate, Protocol, Selector, Standing};
use crate::health::{Health, Outcome, Reason, State};
use crate::metrics::{Metrics, seconds};
use crate::view::{Endpoint, View};

pub mod grpc;
pub mod http;
pub mod resolve;

/// Time between probes until a protocol has answered, and while a fall is being confirmed.
pub const FAST: Duration = Duration::from_millis(100);
/// The least time between two probes of one candidate, however often callers ask for one.
const HINT_GAP: Duration = Duration::from_millis(20);
/// Part of the interval by which each wait varies, so that replicas do not probe in step.
const JITTER: f64 = 0.1;

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
#[derive(Debug, Clone, Default)]
pub struct Hints {
    notify: [Arc<Notify>; 2],
}

impl Hints {
    /// A caller could not connect, or could where that was not expected.
    pub fn probe_now(&self, protocol: Protocol) {
        self.notify[protocol.index()].notify_waiters();
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
}

/// The prober, ready to run.
pub struct Prober<P> {
    probe: Arc<P>,
    interval: Duration,
    clock: Clock,
    view: View,
    selectors: [Selector; 2],
    hints: Hints,
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
        let watching = Watching {
            view: view_in,
            changes: changes_in,
            hints: hints.clone(),
        };
        let selector = Selector::new(config.failback_hold);
        let prober = Prober {
            probe: Arc::new(probe),
            interval: config.probe.interval,
            clock,
            view,
            selectors: [selector.clone(), selector],
            hints,
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
                    interval: self.interval,
                    hint: self.hints.notify[protocol.index()].clone(),
                    view: self.view_out.subscribe(),
                    reports: reports.clone(),
                }));
            }
        }
        drop(reports);
        loop {
            tokio::select! {
                Some(report) = inbox.recv() => self.take(report),
                ended = loops.join_next() => {
                    tracing::error!(?ended, "a probe loop has ended");
                    return;
                }
            }
        }
    }

    fn take(&mut self, (protocol, index, report, took): (Protocol, usize, Report, Duration)) {
        let now = self.clock.now();
        let endpoint = &mut self.view.endpoints[protocol.index()][index];
        let transition = endpoint.health.observe(&report.outcome, now);
        if report.address.is_some() {
            endpoint.address = report.address;
        }
        self.metrics.probed(protocol, &report.outcome, took);
        self.view.updated = now;
        let health = &endpoint.health;
        let reason = health.reason.map_or("", Reason::as_str);
        let (from, to) = match transition {
            Some(t) => (t.from.as_str(), t.to.as_str()),
            None => ("", ""),
        };
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
        let moved = self.select(protocol, now);
        self.metrics.shown(protocol, &self.view);
        self.view_out.send_replace(Arc::new(self.view.clone()));
        if transition.is_some() || moved {
            self.changes_out.send_modify(|n| *n += 1);
        }
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

struct Loop<P> {
    probe: Arc<P>,
    candidate: Candidate,
    index: usize,
    interval: Duration,
    hint: Arc<Notify>,
    view: watch::Receiver<Arc<View>>,
    reports: mpsc::Sender<(Protocol, usize, Report, Duration)>,
}

async fn probe_loop<P: Probe>(this: Loop<P>) {
    let protocol = this.candidate.protocol;
    loop {
        let started = tokio::time::Instant::now();
        let report = this.probe.probe(&this.candidate).await;
        let took = started.elapsed();
        // The reducer ends only with the whole prober.
        if this
            .reports
            .send((protocol, this.index, report, took))
            .await
            .is_err()
        {
            return;
        }
        let wait = {
            let view = this.view.borrow();
            wait_for(&view, protocol, this.index, this.interval)
        };
        let jittered = wait.mul_f64(1.0 + JITTER * (fastrand::f64() * 2.0 - 1.0));
        let hinted = async {
            this.hint.notified().await;
            sleep(HINT_GAP).await;
        };
        tokio::select! {
            () = sleep(jittered) => {}
            () = hinted => {}
        }
    }
}

/// How long to wait before the next probe of a candidate: fast while its protocol has nothing
/// up, and while the fall of a candidate that fails clearly is being confirmed. Silence is not
/// hurried: each silent probe has waited for its own time limit already.
fn wait_for(view: &View, protocol: Protocol, index: usize, interval: Duration) -> Duration {
    let endpoints = view.of(protocol);
    let none_up = !endpoints.iter().any(|e| e.health.state == State::Up);
    let falling = endpoints.get(index).is_some_and(|e| {
        e.health.state == State::Up && e.health.reason.is_some_and(|r| !r.is_silence())
    });
    if none_up || falling {
        FAST.min(interval)
    } else {
        interval
    }
}

/// The prober's own series.
#[derive(Debug)]
struct ProberMetrics {
    outcomes: IntCounterVec,
    duration: HistogramVec,
    up: IntGaugeVec,
    state: IntGaugeVec,
    reason: IntGaugeVec,
    selected: IntGaugeVec,
    selections: IntCounterVec,
}

impl ProberMetrics {
    fn new(metrics: &Metrics, view: &View) -> Self {
        let this = ProberMetrics {
            outcomes: metrics.counter_vec(
                "agent_shim_probe_outcomes_total",
                "Probes by protocol and outcome: healthy, or the reason why not.",
                &["protocol", "outcome"],
            ),
            duration: metrics.latency_vec(
                "agent_shim_probe_duration_seconds",
                "Time from the start of a probe to its outcome.",
                &["protocol"],
            ),
            up: metrics.int_gauge_vec(
                "agent_shim_endpoint_up",
                "1 while the candidate at this position of the configured order is up.",
                &["protocol", "candidate"],
            ),
            state: metrics.int_gauge_vec(
                "agent_shim_endpoints",
                "Candidates by state.",
                &["protocol", "state"],
            ),
            reason: metrics.int_gauge_vec(
                "agent_shim_endpoint_unhealthy",
                "Candidates whose last probe failed, by reason.",
                &["protocol", "reason"],
            ),
            selected: metrics.int_gauge_vec(
                "agent_shim_selected_candidate",
                "Position of the candidate in use, counted from 1; 0 while there is none.",
                &["protocol"],
            ),
            selections: metrics.counter_vec(
                "agent_shim_selection_changes_total",
                "Changes of the candidate in use, to none included.",
                &["protocol"],
            ),
        };
        for protocol in Protocol::ALL {
            let p = protocol.as_str();
            this.outcomes.with_label_values(&[p, "healthy"]);
            for reason in Reason::ALL {
                this.outcomes.with_label_values(&[p, reason.as_str()]);
            }
            this.duration.with_label_values(&[p]);
            this.selections.with_label_values(&[p]);
            this.shown(protocol, view);
        }
        this
    }

    fn probed(&self, protocol: Protocol, outcome: &Outcome, took: Duration) {
        let label = match outcome {
            Outcome::Healthy { .. } => "healthy",
            Outcome::Unhealthy { reason, .. } => reason.as_str(),
        };
        self.outcomes
            .with_label_values(&[protocol.as_str(), label])
            .inc();
        self.duration
            .with_label_values(&[protocol.as_str()])
            .observe(seconds(took));
    }

    fn shown(&self, protocol: Protocol, view: &View) {
        let p = protocol.as_str();
        let endpoints = view.of(protocol);
        for (i, e) in endpoints.iter().enumerate() {
            let up = i64::from(e.health.state == State::Up);
            self.up
                .with_label_values(&[p, &(i + 1).to_string()])
                .set(up);
        }
        for state in State::ALL {
            let n = endpoints.iter().filter(|e| e.health.state == state).count();
            self.state
                .with_label_values(&[p, state.as_str()])
                .set(n as i64);
        }
        for reason in Reason::ALL {
            let n = endpoints
                .iter()
                .filter(|e| e.health.reason == Some(reason))
                .count();
            self.reason
                .with_label_values(&[p, reason.as_str()])
                .set(n as i64);
        }
        let position = view.selection[protocol.index()].map_or(0, |i| i as i64 + 1);
        self.selected.with_label_values(&[p]).set(position);
    }
}
