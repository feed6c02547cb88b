//! Everything that rules may look at, as plain values. Filled by [`super::gather`], or by the
//! sidecar from what it knows; never by a rule. Nothing secret goes in here: what is not in it
//! cannot be shown.

use serde::{Deserialize, Serialize};

use super::rule::Need;
use crate::admin::status::Document;
use crate::registration::facts::SchedulerFacts;

pub mod agent;
pub mod control;
pub mod kube;
pub mod ports;
pub mod probes;
pub mod server;

pub use agent::{AgentFacts, Variable};
pub use kube::KubeFacts;
pub use ports::{PortFact, PortOutcome, PortUse};
pub use probes::ProbeFact;
pub use server::Candidate;

/// From where the evidence was gathered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vantage {
    /// By the sidecar, from what it knows.
    Sidecar,
    /// By the command, in the network namespace of the pod.
    Pod,
    /// By the command, from somewhere else.
    #[default]
    Outside,
}

/// Something that could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unavailable {
    /// Which.
    pub what: Need,
    /// Why not, in words.
    pub why: String,
}

/// Another replica of the same server, where its shim could be asked too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerFact {
    /// Where its shim was asked.
    pub admin: String,
    /// Its server.
    pub server: String,
    /// Its index.
    pub replica: u32,
    /// What it reports as capabilities.
    pub capabilities: Vec<String>,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// From where.
    pub vantage: Vantage,
    /// Where the shim was asked; empty in the sidecar.
    pub admin: String,
    /// What the shim knows; the reason why not is in `unavailable`.
    pub status: Option<Document>,
    /// What the scheduler's own API says. In the sidecar it is about this server and about models
    /// in trouble only.
    pub scheduler: Option<SchedulerFacts>,
    /// Attempts to connect to the scheduler.
    pub ports: Vec<PortFact>,
    /// Fresh probes of every candidate.
    pub probes: Vec<ProbeFact>,
    /// The agent's own ports, and what is visible of its environment.
    pub agent: Option<AgentFacts>,
    /// Settings of the containers, as far as they are visible. Names and values of an allow-list.
    pub environment: Vec<Variable>,
    /// Objects of Kubernetes.
    pub kube: Option<KubeFacts>,
    /// Other replicas of the server.
    pub peers: Vec<PeerFact>,
    /// The model that was asked about.
    pub asked_model: Option<String>,
    /// What could not be looked at.
    pub unavailable: Vec<Unavailable>,
}

impl Evidence {
    /// Notes that something could not be looked at.
    pub fn lacks(&mut self, what: Need, why: impl Into<String>) {
        let why = why.into();
        if !self.unavailable.iter().any(|u| u.what == what) {
            self.unavailable.push(Unavailable { what, why });
        }
    }

    /// `None` where the evidence is there; else why it is not.
    pub fn missing(&self, need: Need) -> Option<String> {
        let there = match need {
            Need::Server => {
                !self.probes.is_empty()
                    || self
                        .status
                        .as_ref()
                        .is_some_and(|s| !s.endpoints.is_empty())
            }
            Need::Status => self.status.is_some(),
            Need::Subscription => self
                .status
                .as_ref()
                .is_some_and(|s| s.subscription.is_some()),
            Need::Scheduler => self.scheduler.is_some(),
            Need::Ports => {
                !self.ports.is_empty()
                    || self
                        .status
                        .as_ref()
                        .is_some_and(|s| s.subscription.is_some())
            }
            Need::Agent => {
                self.agent.is_some()
                    || self
                        .status
                        .as_ref()
                        .is_some_and(|s| !matches!(s.agent.state.as_str(), "" | "unknown"))
            }
            Need::Kube => self.kube.is_some(),
        };
        if there {
            return None;
        }
        let why = |need| {
            let known = self.unavailable.iter().find(|u| u.what == need);
            known.map(|u| u.why.clone())
        };
        // What the shim would have told is missing because the shim is.
        let through = match need {
            Need::Subscription | Need::Server | Need::Ports => why(Need::Status),
            _ => None,
        };
        Some(
            why(need)
                .or(through)
                .unwrap_or_else(|| "it was not looked at".into()),
        )
    }
}
