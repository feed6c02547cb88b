//! Fresh probes of the inference server.

use serde::{Deserialize, Serialize};

use crate::endpoint::Protocol;

/// One probe of one candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeFact {
    /// The host as configured.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `http` or `grpc`.
    pub protocol: String,
    /// Whether it answered.
    pub healthy: bool,
    /// Why not: a reason of the closed set of probes.
    pub reason: Option<String>,
    /// What was seen, in words.
    pub detail: String,
    /// Whether the port speaks TLS, where that was tried because the probe failed.
    pub tls: bool,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

impl ProbeFact {
    /// Whether it is of this protocol.
    pub fn is(&self, protocol: Protocol) -> bool {
        self.protocol == protocol.as_str()
    }
}
