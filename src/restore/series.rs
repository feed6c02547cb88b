//! The metrics of restoring and of loads that were saved.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::Coalesced;
use super::book::{Restoring, Then};
use crate::metrics::Metrics;

/// How a load of the shim's own ended, as it is counted.
const OUTCOMES: [&str; 4] = ["restored", "failed", "given-up", "undone"];
/// How far models are, as they are exported.
const STAGES: [&str; 3] = ["due", "loading", "given-up"];

#[derive(Debug, Clone)]
pub(super) struct Series {
    loads: IntCounterVec,
    models: IntGaugeVec,
    restarts: IntCounter,
    coalesced: IntCounterVec,
}

impl Series {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let series = Series {
            loads: metrics.counter_vec(
                "agent_shim_restore_loads_total",
                "Loads by which the shim puts models back after a restart of the server, by outcome.",
                &["outcome"],
            ),
            models: metrics.int_gauge_vec(
                "agent_shim_restore_models",
                "Models that the server has lost in a restart and that are not back, by stage.",
                &["stage"],
            ),
            restarts: metrics.counter(
                "agent_shim_server_restarts_total",
                "Restarts of the inference server that were seen.",
            ),
            coalesced: metrics.counter_vec(
                "agent_shim_loads_coalesced_total",
                "Loads of the agent's that were answered without loading: the model was READY from unchanged files, or the same load was under way.",
                &["reason"],
            ),
        };
        for outcome in OUTCOMES {
            series.loads.with_label_values(&[outcome]);
        }
        for stage in STAGES {
            series.models.with_label_values(&[stage]);
        }
        for how in Coalesced::ALL {
            series.coalesced.with_label_values(&[how.as_str()]);
        }
        series
    }

    pub(super) fn coalesced(&self, how: Coalesced) {
        self.coalesced.with_label_values(&[how.as_str()]).inc();
    }

    pub(super) fn restarted(&self) {
        self.restarts.inc();
    }

    pub(super) fn done(&self, then: Then, ok: bool) {
        let outcome = match then {
            Then::Restored => "restored",
            Then::Undo => "undone",
            Then::GivenUp => "given-up",
            Then::Later if !ok => "failed",
            Then::Later | Then::Dropped | Then::Wait => return,
        };
        self.loads.with_label_values(&[outcome]).inc();
    }

    pub(super) fn show(&self, all: &[Restoring]) {
        for stage in STAGES {
            let n = all.iter().filter(|r| r.stage.as_str() == stage).count();
            self.models.with_label_values(&[stage]).set(n as i64);
        }
    }
}
