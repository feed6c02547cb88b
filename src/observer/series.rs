//! The observer's metrics. A number that is not known is NaN, so that a zero always means zero.

use prometheus::{Gauge, GaugeVec, IntGauge, IntGaugeVec};

use crate::capability;
use crate::capacity::Source;
use crate::metrics::Metrics;
use crate::observer::Observed;

/// What is measured of the server's use.
const USES: [&str; 4] = ["rss", "pss", "cgroup", "cgroup-peak"];
/// The roles of processes.
const PROCESSES: [&str; 4] = ["main", "worker", "tracker", "other"];

#[derive(Debug)]
pub(super) struct Series {
    observed: Gauge,
    limit: Gauge,
    reserved: Gauge,
    source: IntGaugeVec,
    figures: GaugeVec,
    used: GaugeVec,
    processes: IntGaugeVec,
    capabilities_source: IntGaugeVec,
    distributions: IntGauge,
    distributions_hash: Gauge,
}

impl Series {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let series = Series {
            observed: metrics.gauge(
                "agent_shim_memory_observed_bytes",
                "Memory for models as observed, without the reserve; NaN where nothing is known.",
            ),
            limit: metrics.gauge(
                "agent_shim_memory_limit_bytes",
                "What the inference container is killed above; NaN where no limit is known.",
            ),
            reserved: metrics.gauge(
                "agent_shim_memory_reserved_bytes",
                "Memory that is kept free of models.",
            ),
            source: metrics.int_gauge_vec(
                "agent_shim_memory_source",
                "1 for the source of the observed memory, 0 for the others.",
                &["source"],
            ),
            figures: metrics.gauge_vec(
                "agent_shim_memory_source_bytes",
                "The figure of each source before the reserve; NaN where it has none.",
                &["source"],
            ),
            used: metrics.gauge_vec(
                "agent_shim_memory_used_bytes",
                "Memory that the server's processes use; NaN where it cannot be read.",
                &["measure"],
            ),
            processes: metrics.int_gauge_vec(
                "agent_shim_server_processes",
                "Visible processes of the inference server, by role.",
                &["role"],
            ),
            capabilities_source: metrics.int_gauge_vec(
                "agent_shim_capabilities_source",
                "1 for the source of the observed capabilities, 0 for the others.",
                &["source"],
            ),
            distributions: metrics.int_gauge(
                "agent_shim_capabilities_distributions",
                "Installed Python distributions that were found.",
            ),
            distributions_hash: metrics.gauge(
                "agent_shim_capabilities_distributions_hash",
                "A hash of names and versions of the distributions: replicas that differ in it differ in what they have installed.",
            ),
        };
        series.show(&Observed::default());
        series
    }

    pub(super) fn show(&self, observed: &Observed) {
        let capacity = &observed.capacity;
        self.observed.set(number(capacity.bytes));
        self.limit.set(number(capacity.ceiling));
        self.reserved.set(number(Some(capacity.reserved.bytes())));
        for source in Source::ALL {
            let name = source.as_str();
            let chosen = capacity.source == Some(source);
            self.source
                .with_label_values(&[name])
                .set(i64::from(chosen));
            let figure = capacity.considered.iter().find(|c| c.source == source);
            let figure = number(figure.and_then(|c| c.bytes));
            self.figures.with_label_values(&[name]).set(figure);
        }
        let live = &observed.live;
        let values = [live.rss, live.pss, live.cgroup_current, live.cgroup_peak];
        for (measure, value) in USES.into_iter().zip(values) {
            self.used.with_label_values(&[measure]).set(number(value));
        }
        for role in PROCESSES {
            let server = observed.server.iter();
            let all = server.flat_map(|s| std::iter::once(&s.main).chain(&s.children));
            let count = all.filter(|p| p.role.as_str() == role).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.processes.with_label_values(&[role]).set(count);
        }
        let capabilities = &observed.capabilities;
        for source in capability::Source::ALL {
            // Before the first look nothing has answered, not even the agent.
            let chosen = observed.looks > 0 && capabilities.source == source;
            let gauge = self
                .capabilities_source
                .with_label_values(&[source.as_str()]);
            gauge.set(i64::from(chosen));
        }
        let distributions = &capabilities.distributions;
        let count = i64::try_from(distributions.len()).unwrap_or(i64::MAX);
        self.distributions.set(count);
        let versions = distributions
            .iter()
            .map(|d| format!("{}=={}", d.name, d.version));
        let hash = capability::hash(&versions.collect::<Vec<_>>());
        self.distributions_hash.set(number(Some(hash)));
    }
}

/// Gauges are floating-point numbers; bytes are exact up to 8 PiB.
fn number(value: Option<u64>) -> f64 {
    value.map_or(f64::NAN, |value| value as f64)
}
