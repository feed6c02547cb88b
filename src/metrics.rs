//! The metrics registry, and small helpers so that each module can declare its metrics beside
//! its code. Label sets are closed and exported as zeros from the start.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Owns every series that `/metrics` shows. Cheap to clone; never the process-wide default.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
}

/// Upper bounds of latency histograms, in seconds: from a loopback answer to a stall.
pub const LATENCY_BUCKETS: [f64; 10] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 2.5, 10.0,
];

impl Metrics {
    /// A registry with the build and the process in it.
    pub fn new() -> Self {
        let metrics = Metrics {
            registry: Registry::new(),
        };
        let build = metrics.gauge_vec(
            "agent_shim_build_info",
            "Always 1; the labels say which build this is.",
            &["version", "target"],
        );
        build
            .with_label_values(&[crate::VERSION, crate::TARGET])
            .set(1.0);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        metrics
            .registry
            .register(Box::new(process))
            .expect("nothing else has the process's names");
        metrics.register(crate::telemetry::lost());
        metrics
    }

    fn register<C: Collector + Clone + 'static>(&self, collector: C) -> C {
        self.registry
            .register(Box::new(collector.clone()))
            .expect("metric names are unique and well formed");
        collector
    }

    /// A counter.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help).expect("metric names are well formed"))
    }

    /// A counter with labels.
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(
            IntCounterVec::new(Opts::new(name, help), labels)
                .expect("metric names are well formed"),
        )
    }

    /// A whole-number gauge.
    pub fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help).expect("metric names are well formed"))
    }

    /// A whole-number gauge with labels.
    pub fn int_gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(
            IntGaugeVec::new(Opts::new(name, help), labels).expect("metric names are well formed"),
        )
    }

    /// A gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help).expect("metric names are well formed"))
    }

    /// A gauge with labels.
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(
            GaugeVec::new(Opts::new(name, help), labels).expect("metric names are well formed"),
        )
    }

    /// A latency histogram with labels, in seconds.
    pub fn latency_vec(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
        self.register(HistogramVec::new(options, labels).expect("metric names are well formed"))
    }

    /// The text exposition, format 0.0.4.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(16 * 1024);
        // Only a broken collector could fail; what was encoded before it is still worth sending.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }

    /// Name, type and help of every family, sorted by name: the catalogue in the docs.
    pub fn catalogue(&self) -> Vec<(String, String, String)> {
        let mut all: Vec<_> = self
            .registry
            .gather()
            .iter()
            .map(|family| {
                (
                    family.name().to_string(),
                    format!("{:?}", family.get_field_type()).to_ascii_lowercase(),
                    family.help().to_string(),
                )
            })
            .collect();
        all.sort();
        all
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// Seconds as the histograms want them.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
