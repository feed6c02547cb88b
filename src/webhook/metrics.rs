//! The webhook's series. They live in a registry of this process and are listed in
//! `docs/webhook.md`, apart from those of the sidecar.

use prometheus::{Gauge, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::metrics::Metrics;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The shim was put in.
    Injected,
    /// Nothing to do here: not asked for, not a new pod, an excluded namespace, or no agent.
    Unchanged,
    /// The shim is there already.
    Already,
    /// The pod says that it does not want it.
    OptedOut,
    /// The pod asks for something that is not understood or not allowed; its author is told.
    Rejected,
    /// The webhook failed; the pod goes through as it came.
    FailedOpen,
    /// What came was no admission review, or not in time.
    BadRequest,
    /// Too much was under way at once; the API server goes on without.
    Overloaded,
}

impl Outcome {
    /// All, in the order in which they are exported.
    pub const ALL: [Outcome; 8] = [
        Outcome::Injected,
        Outcome::Unchanged,
        Outcome::Already,
        Outcome::OptedOut,
        Outcome::Rejected,
        Outcome::FailedOpen,
        Outcome::BadRequest,
        Outcome::Overloaded,
    ];

    /// The label, and the word in the API server's audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Injected => "injected",
            Outcome::Unchanged => "unchanged",
            Outcome::Already => "already",
            Outcome::OptedOut => "opted-out",
            Outcome::Rejected => "rejected",
            Outcome::FailedOpen => "failed-open",
            Outcome::BadRequest => "bad-request",
            Outcome::Overloaded => "overloaded",
        }
    }
}

/// Why a secured connection did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// The caller does not accept the certificate.
    CertificateRefused,
    /// The caller did not finish in time.
    Timeout,
    /// There is no certificate to show yet.
    NoCertificate,
    /// The caller closed, spoke something else, or nothing that both know.
    Other,
}

impl Handshake {
    /// All, in the order in which they are exported.
    pub const ALL: [Handshake; 4] = [
        Handshake::CertificateRefused,
        Handshake::Timeout,
        Handshake::NoCertificate,
        Handshake::Other,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Handshake::CertificateRefused => "certificate-refused",
            Handshake::Timeout => "timeout",
            Handshake::NoCertificate => "no-certificate",
            Handshake::Other => "other",
        }
    }
}

/// The series. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Series {
    /// Requests by outcome.
    pub requests: IntCounterVec,
    /// Time from a request's head to its answer, by outcome.
    pub duration: HistogramVec,
    /// Connections that did not come about.
    pub handshakes: IntCounterVec,
    /// Connections open now.
    pub connections: IntGauge,
    /// When the certificate ends; NaN before there is one.
    pub expiry: Gauge,
    /// Looks at new certificate files, by result.
    pub loads: IntCounterVec,
    /// Panics that were caught.
    pub panics: IntCounter,
    /// 1 while a condition of readiness holds.
    pub conditions: IntGaugeVec,
}

impl Series {
    /// Registers them, each label at zero.
    pub fn new(metrics: &Metrics) -> Self {
        let series = Series {
            requests: metrics.counter_vec(
                "agent_shim_webhook_requests_total",
                "Requests by what became of them.",
                &["outcome"],
            ),
            duration: metrics.latency_vec(
                "agent_shim_webhook_request_duration_seconds",
                "Time from the head of a request to its answer.",
                &["outcome"],
            ),
            handshakes: metrics.counter_vec(
                "agent_shim_webhook_handshake_failures_total",
                "Secured connections that did not come about, by reason.",
                &["reason"],
            ),
            connections: metrics.int_gauge(
                "agent_shim_webhook_open_connections",
                "Secured connections open now.",
            ),
            expiry: metrics.gauge(
                "agent_shim_webhook_certificate_expiry_timestamp_seconds",
                "When the certificate that is shown to the API server ends; the earliest of its chain; NaN before there is one.",
            ),
            loads: metrics.counter_vec(
                "agent_shim_webhook_certificate_loads_total",
                "Readings of new certificate files; after a refused one the pair before stays in use.",
                &["result"],
            ),
            panics: metrics.counter(
                "agent_shim_webhook_panics_total",
                "Panics of the injection; each let a pod through as it came.",
            ),
            conditions: metrics.int_gauge_vec(
                "agent_shim_webhook_condition",
                "1 while the condition holds; the webhook is ready when all do.",
                &["condition"],
            ),
        };
        for outcome in Outcome::ALL {
            series.requests.with_label_values(&[outcome.as_str()]);
            series.duration.with_label_values(&[outcome.as_str()]);
        }
        for reason in Handshake::ALL {
            series.handshakes.with_label_values(&[reason.as_str()]);
        }
        for result in ["ok", "refused"] {
            series.loads.with_label_values(&[result]);
        }
        series.expiry.set(f64::NAN);
        series
    }

    /// Counts a failed handshake.
    pub fn failed(&self, reason: Handshake) {
        self.handshakes.with_label_values(&[reason.as_str()]).inc();
    }
}
