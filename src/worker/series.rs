//! The metrics of the worker's health.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::WorkerSeen;
use super::canary::Answer;
use super::record::Workers;
use crate::metrics::Metrics;

/// How the workers stand, as it is exported.
const STATES: [&str; 5] = ["unseen", "none-yet", "there", "missing", "looping"];
/// What is mended.
pub(super) const MENDED: [&str; 4] = ["stuck", "lost", "fatal", "failed"];

#[derive(Debug, Clone)]
pub(super) struct Series {
    state: IntGaugeVec,
    exits: IntGauge,
    orphans: IntGauge,
    canaries: IntCounterVec,
    outstanding: IntGauge,
    bad: IntGaugeVec,
    mended: IntCounterVec,
}

impl Series {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let series = Series {
            state: metrics.int_gauge_vec(
                "agent_shim_workers",
                "1 for how the server's worker processes stand, 0 for the others; unseen where the process namespace is not shared.",
                &["state"],
            ),
            exits: metrics.int_gauge(
                "agent_shim_worker_exits",
                "Worker processes that were seen to end while their main process lived, since the start of the shim.",
            ),
            orphans: metrics.int_gauge(
                "agent_shim_worker_orphans",
                "Worker processes that a killed main process has left behind.",
            ),
            canaries: metrics.counter_vec(
                "agent_shim_canaries_total",
                "Canary inferences by how they ended; skipped: it was no moment for one.",
                &["outcome"],
            ),
            outstanding: metrics.int_gauge(
                "agent_shim_canary_outstanding_seconds",
                "For how long the canary inference under way has had no answer.",
            ),
            bad: metrics.int_gauge_vec(
                "agent_shim_bad_models",
                "Models in a bad state of the server's: stuck in UNKNOWN, lost by the worker.",
                &["state"],
            ),
            mended: metrics.counter_vec(
                "agent_shim_mended_total",
                "Bad states of models that were mended; failed: it was tried.",
                &["state"],
            ),
        };
        for state in STATES {
            series.state.with_label_values(&[state]);
        }
        for answer in Answer::ALL {
            series.canaries.with_label_values(&[answer]);
        }
        for state in MENDED {
            series.mended.with_label_values(&[state]);
        }
        series.show(&WorkerSeen::default(), std::time::Duration::ZERO);
        series
    }

    pub(super) fn canary(&self, outcome: &str) {
        self.canaries.with_label_values(&[outcome]).inc();
    }

    pub(super) fn mended(&self, state: &str) {
        self.mended.with_label_values(&[state]).inc();
    }

    pub(super) fn show(&self, seen: &WorkerSeen, now: std::time::Duration) {
        let state = match seen.workers {
            Workers::Unseen => "unseen",
            Workers::NoneYet => "none-yet",
            Workers::There { .. } => "there",
            Workers::Missing { .. } => "missing",
            Workers::Looping { .. } => "looping",
        };
        for s in STATES {
            let is = i64::from(s == state);
            self.state.with_label_values(&[s]).set(is);
        }
        self.exits.set(seen.exits as i64);
        self.orphans.set(seen.orphans.len() as i64);
        let outstanding = seen.canary.as_ref().and_then(|c| c.outstanding);
        let seconds = outstanding.map_or(0, |at| now.saturating_sub(at).as_secs());
        self.outstanding.set(seconds as i64);
        for (state, models) in [("stuck", &seen.stuck), ("lost", &seen.lost)] {
            let n = models.len() as i64;
            self.bad.with_label_values(&[state]).set(n);
        }
    }
}
