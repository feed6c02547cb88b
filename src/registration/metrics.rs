//! The four figures of capacity side by side, and the models in trouble.

use prometheus::{Gauge, GaugeVec, IntCounterVec, IntGaugeVec};

use super::{Check, Troubled};
use crate::metrics::Metrics;
use crate::subscription::status::Status;

/// The read-back's series.
#[derive(Debug, Clone)]
pub struct RegistrationMetrics {
    capacity: GaugeVec,
    free: GaugeVec,
    reads: IntCounterVec,
    troubled: IntGaugeVec,
    capabilities: Gauge,
    difference: Gauge,
}

impl RegistrationMetrics {
    /// Registers them. A figure that is not known is NaN: 0 is one that agents do request.
    pub fn new(metrics: &Metrics) -> Self {
        let reads = metrics.counter_vec(
            "agent_shim_scheduler_reads_total",
            "Readings of what the scheduler believes.",
            &["outcome"],
        );
        let troubled = metrics.int_gauge_vec(
            "agent_shim_unavailable_models",
            "Models that this server could be meant for and that are not available, by what they lack here.",
            &["lacks"],
        );
        for outcome in ["read", "failed"] {
            reads.with_label_values(&[outcome]);
        }
        for lacks in ["capability", "memory", "nothing"] {
            troubled.with_label_values(&[lacks]);
        }
        let this = RegistrationMetrics {
            capacity: metrics.gauge_vec(
                "agent_shim_capacity_bytes",
                "Total memory for models: requested by the agent, observed by the shim, reported to the scheduler, believed by it.",
                &["figure"],
            ),
            free: metrics.gauge_vec(
                "agent_shim_capacity_free_bytes",
                "Free memory for models: by the agent's account, as reported to the scheduler, as believed by it.",
                &["figure"],
            ),
            capabilities: metrics.gauge(
                "agent_shim_capabilities_reported_hash",
                "A hash of the capabilities that are reported to the scheduler: replicas of one server that differ in it are scheduled by chance; NaN before the first report.",
            ),
            difference: metrics.gauge(
                "agent_shim_capacity_difference_bytes",
                "Total memory that the scheduler believes in, less what it was told; NaN where either is not known.",
            ),
            reads,
            troubled,
        };
        for figure in ["requested", "observed", "reported", "believed"] {
            set(&this.capacity, figure, None);
        }
        for figure in ["requested", "reported", "believed"] {
            set(&this.free, figure, None);
        }
        this.capabilities.set(f64::NAN);
        this.difference.set(f64::NAN);
        this
    }

    /// The figure that is known to the observing side only.
    pub fn observed(&self, bytes: Option<u64>) {
        set(&self.capacity, "observed", bytes);
    }

    pub(super) fn figures(&self, status: &Status, check: &Check) {
        let requested = status.requested.as_ref();
        set(&self.capacity, "requested", requested.map(|r| r.memory));
        set(
            &self.capacity,
            "reported",
            status.reported.as_ref().map(|r| r.memory),
        );
        if let Some(reported) = &status.reported {
            let hash = crate::capability::hash(&reported.capabilities);
            self.capabilities.set(hash as f64);
        }
        set(&self.free, "requested", requested.map(|r| r.available));
        set(&self.free, "reported", status.available);
        let believed = match check {
            Check::Read(believed) => *believed,
            _ => None,
        };
        set(&self.capacity, "believed", believed.map(|b| b.total));
        let difference = match (&believed, &status.reported) {
            (Some(believed), Some(reported)) => believed.total as f64 - reported.memory as f64,
            _ => f64::NAN,
        };
        self.difference.set(difference);
        set(&self.free, "believed", believed.map(|b| b.available));
    }

    pub(super) fn read(&self, ok: bool) {
        let outcome = if ok { "read" } else { "failed" };
        self.reads.with_label_values(&[outcome]).inc();
    }

    pub(super) fn troubled(&self, all: &[Troubled]) {
        let count = |lacks: &str, of: &dyn Fn(&&Troubled) -> bool| {
            let n = all.iter().filter(of).count();
            self.troubled.with_label_values(&[lacks]).set(n as i64);
        };
        count("capability", &|t| !t.requirements.is_empty());
        count("memory", &|t| t.memory.is_some());
        count("nothing", &|t| {
            t.requirements.is_empty() && t.memory.is_none()
        });
    }
}

fn set(gauge: &GaugeVec, figure: &str, bytes: Option<u64>) {
    let value = bytes.map_or(f64::NAN, |bytes| bytes as f64);
    gauge.with_label_values(&[figure]).set(value);
}
