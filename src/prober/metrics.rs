//! The series of the prober: what each probe found, and where the selection stands.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

use crate::endpoint::Protocol;
use crate::health::{Outcome, Reason, State};
use crate::metrics::{Metrics, seconds};
use crate::view::View;

/// The prober's own series.
#[derive(Debug)]
pub(super) struct ProberMetrics {
    outcomes: IntCounterVec,
    duration: HistogramVec,
    up: IntGaugeVec,
    state: IntGaugeVec,
    reason: IntGaugeVec,
    selected: IntGaugeVec,
    pub(super) selections: IntCounterVec,
}

impl ProberMetrics {
    pub(super) fn new(metrics: &Metrics, view: &View) -> Self {
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

    pub(super) fn probed(&self, protocol: Protocol, outcome: &Outcome, took: Duration) {
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

    pub(super) fn shown(&self, protocol: Protocol, view: &View) {
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
