//! The agent: its own ports, and settings that are visible.

use serde::{Deserialize, Serialize};

/// The agent's ports on loopback; asked only in the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFacts {
    /// The status code of `/ready` on 9008, where something answered.
    pub ready: Option<u16>,
    /// Why nothing answered there. Releases before 2.9.1 have no such port.
    pub ready_error: Option<String>,
    /// Whether the metrics on 9006 answered.
    pub metrics: Option<bool>,
}

/// A setting that is visible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Whose: `agent`, `mlserver` or `agent-shim`.
    pub of: String,
    /// Its name; one of an allow-list.
    pub name: String,
    /// Its value.
    pub value: String,
}
