//! Pods and their containers, without anything secret: values of variables are kept for an
//! allow-list of names, and never where they come from a Secret or are named like one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Labels;

/// The label that names a pod's Server.
pub const SERVER_LABEL: &str = "seldon-server-name";

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFact {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Why no node takes it: the scheduler of Kubernetes, in its own words.
    pub unschedulable: Option<String>,
    /// Why it failed or was evicted.
    pub reason: Option<String>,
    /// Containers; init containers first.
    pub containers: Vec<ContainerFact>,
}

impl PodFact {
    /// The Server that it belongs to.
    pub fn server(&self) -> Option<&String> {
        self.labels.get(SERVER_LABEL)
    }

    /// A container by its name.
    pub fn container(&self, name: &str) -> Option<&ContainerFact> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The agent's container.
    pub fn agent(&self) -> Option<&ContainerFact> {
        agent(&self.containers)
    }

    /// The inference server's container.
    pub fn inference(&self) -> Option<&ContainerFact> {
        inference(&self.containers)
    }
}

/// The agent among containers.
pub fn agent(containers: &[ContainerFact]) -> Option<&ContainerFact> {
    containers.iter().find(|c| c.name == "agent")
}

/// The inference server among containers.
pub fn inference(containers: &[ContainerFact]) -> Option<&ContainerFact> {
    let named = containers.iter().find(|c| c.name == "mlserver");
    // A Server may name it otherwise; its variables tell.
    named.or_else(|| {
        containers
            .iter()
            .find(|c| !c.init && c.env.iter().any(|v| v.name == "MLSERVER_HTTP_PORT"))
    })
}

/// Shims among containers: normally one.
pub fn shims(containers: &[ContainerFact]) -> impl Iterator<Item = &ContainerFact> {
    containers
        .iter()
        .filter(|c| c.name == "agent-shim" || c.env.iter().any(|v| v.name.starts_with("SHIM_")))
}

/// A container, as specified and, in a pod, as it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFact {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Whether it is an init container.
    pub init: bool,
    /// Whether it is an init container that stays: a native sidecar.
    pub sidecar: bool,
    /// Its variables, in order; a name may come twice, and the last one wins.
    pub env: Vec<EnvFact>,
    /// Flags on its command line that the diagnosis knows, as written.
    pub flags: Vec<String>,
    /// Requests.
    pub requests: BTreeMap<String, String>,
    /// Limits.
    pub limits: BTreeMap<String, String>,
    /// How long the startup probe lets it start.
    pub startup: Option<Budget>,
    /// How long the liveness probe lets it be silent.
    pub liveness: Option<Budget>,
    /// How often it was restarted.
    pub restarts: i64,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it has started, by its startup probe.
    pub started: bool,
    /// Why it waits: reason and message.
    pub waiting: Option<(String, String)>,
    /// How it ended last.
    pub last: Option<Ended>,
}

impl ContainerFact {
    /// The variable that the process sees: the last of its name.
    pub fn variable(&self, name: &str) -> Option<&EnvFact> {
        self.env.iter().rev().find(|v| v.name == name)
    }

    /// Its value as text, where it is plain.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.variable(name)?.value.as_deref()
    }
}

/// A variable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFact {
    /// Its name.
    pub name: String,
    /// Its value, where it is plain and may be shown.
    pub value: Option<String>,
    /// Where it comes from otherwise: `field`, `resource`, `config-map`, `secret` or `hidden`.
    pub from: Option<String>,
}

/// How long a probe waits before a container is ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// `initialDelaySeconds`.
    pub delay_s: u64,
    /// `periodSeconds`.
    pub period_s: u64,
    /// `failureThreshold`.
    pub failures: u64,
}

impl Budget {
    /// All in all, in seconds.
    pub fn seconds(&self) -> u64 {
        self.delay_s
            .saturating_add(self.period_s.saturating_mul(self.failures))
    }
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// `OOMKilled`, `Error`, `Completed`...
    pub reason: String,
    /// Its exit code; above 128 a signal.
    pub code: i64,
    /// For how long it had run, in seconds.
    pub ran_s: Option<i64>,
}

/// Whether the value of a variable may be kept.
pub fn may_show(name: &str) -> bool {
    let listed = ["SELDON_", "MLSERVER_", "SHIM_"];
    let listed = listed.iter().any(|p| name.starts_with(p)) || name == "MEMORY_REQUEST";
    let secret = [
        "SECRET",
        "PASSWORD",
        "PASSWD",
        "TOKEN",
        "KEY",
        "CREDENTIAL",
        "AUTH",
        "PRIVATE",
        "DSN",
    ];
    listed && !secret.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_names_that_are_no_secrets_are_shown() {
        for name in [
            "SELDON_SCHEDULER_HOST",
            "MLSERVER_HOST",
            "SHIM_MODE",
            "MEMORY_REQUEST",
        ] {
            assert!(may_show(name), "{name}");
        }
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "SELDON_API_TOKEN",
            "MLSERVER_DB_PASSWORD",
            "SHIM_SCHEDULER_KEY_FILE",
            "PATH",
            "MEMORY",
        ] {
            assert!(!may_show(name), "{name}");
        }
    }
}
