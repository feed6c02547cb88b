//! Attempts to connect to the scheduler's ports.

use serde::{Deserialize, Serialize};

/// What a port of the scheduler is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortUse {
    /// The agent service: 9005, or 9055 with TLS.
    AgentService,
    /// The scheduler's own API: 9004, or 9044 with TLS.
    SchedulerApi,
    /// Envoy's configuration: 9002.
    Xds,
}

/// What came of an attempt. Closed set; the first that fails is the one that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortOutcome {
    /// A connection, and where it was asked for, the protocol was spoken on it.
    Connected,
    /// The name does not resolve.
    Unresolved,
    /// Nothing listens there, or the address cannot be reached.
    Refused,
    /// Neither accepted nor refused in time: packets are dropped.
    TimedOut,
    /// Accepted, and then nothing: not even a greeting.
    Silent,
    /// Closed before an answer.
    Reset,
    /// The port speaks plain text where TLS was tried.
    NotTls,
    /// The port speaks TLS where plain text was tried.
    WantsTls,
    /// The peer ended the handshake: it wants a client certificate, or another one.
    TlsRefused,
    /// The peer's certificate is not signed by the CA that is configured.
    TlsUntrusted,
    /// The peer's certificate has expired, or is not valid yet.
    TlsExpired,
    /// The peer's certificate is for another name.
    TlsWrongName,
    /// The files for TLS cannot be used.
    TlsFiles,
    /// Something else listens there: no HTTP/2, or another gRPC service.
    WrongProtocol,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortFact {
    /// What the port is for.
    pub purpose: PortUse,
    /// The host as configured.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether TLS was tried.
    pub tls: bool,
    /// Whether the shim or the agent is configured to use it; the others are tried for comparison.
    pub configured: bool,
    /// What came of it.
    pub outcome: PortOutcome,
    /// What was seen, in words, without a secret.
    pub detail: String,
    /// The address that was tried last, where the name resolved.
    pub address: Option<String>,
    /// How long it took, in milliseconds.
    pub ms: u64,
}
