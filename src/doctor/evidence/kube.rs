//! Objects of Kubernetes, as far as the service account or kubeconfig may read them. Only what a
//! rule looks at; values of variables only where [`pod`] allows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod pod;
pub mod policy;

pub use pod::{ContainerFact, PodFact};
pub use policy::NetworkPolicy;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// What is known of the objects around the pod. A list that could not be read is in `unreadable`
/// and empty here, so that nothing is concluded from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubeFacts {
    /// The namespace of the Server.
    pub namespace: String,
    /// Its labels.
    pub namespace_labels: Labels,
    /// The namespace of the scheduler.
    pub scheduler_namespace: String,
    /// Whether a setting says so; else it is only looked for beside the Server.
    pub scheduler_known: bool,
    /// Its labels.
    pub scheduler_labels: Labels,
    /// The operator's namespace, where it is known: the only one in which ServerConfigs count.
    pub operator_namespace: Option<String>,
    /// The Server that is asked about; `None` for all of the namespace.
    pub server: Option<String>,
    /// Kinds that could not be read, and why.
    pub unreadable: Vec<(String, String)>,
    /// Servers of the namespace.
    pub servers: Vec<ServerFact>,
    /// ServerConfigs of the namespace and of the operator's.
    pub configs: Vec<ConfigFact>,
    /// Models of the namespace.
    pub models: Vec<ModelFact>,
    /// StatefulSets and Deployments of Servers.
    pub workloads: Vec<WorkloadFact>,
    /// Pods of Servers.
    pub pods: Vec<PodFact>,
    /// Pods of the scheduler.
    pub scheduler_pods: Vec<PodFact>,
    /// Addresses of the scheduler's Service that are ready.
    pub scheduler_ready: Option<usize>,
    /// Warnings, the latest first.
    pub events: Vec<EventFact>,
    /// ResourceQuotas.
    pub quotas: Vec<QuotaFact>,
    /// LimitRanges, which give containers what they do not say themselves.
    pub limit_ranges: Vec<LimitRangeFact>,
    /// NetworkPolicies of the namespace.
    pub policies: Vec<NetworkPolicy>,
}

impl KubeFacts {
    /// Why a kind could not be read; `None` where it was.
    pub fn unreadable(&self, kind: &str) -> Option<&str> {
        let known = self.unreadable.iter().find(|(what, _)| what == kind);
        known.map(|(_, why)| why.as_str())
    }

    /// Servers that are asked about.
    pub fn asked_servers(&self) -> impl Iterator<Item = &ServerFact> {
        let all = self.servers.iter();
        all.filter(|s| self.server.as_ref().is_none_or(|name| s.name == *name))
    }

    /// Pods of the Servers that are asked about; those that are going are no finding.
    pub fn asked_pods(&self) -> impl Iterator<Item = &PodFact> {
        let all = self.pods.iter().filter(|p| !p.deleting);
        all.filter(|p| {
            self.server
                .as_ref()
                .is_none_or(|name| p.server() == Some(name))
        })
    }
}

/// A condition of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionFact {
    /// Its type.
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Reason and message, shortened.
    pub words: String,
}

/// A Server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFact {
    /// Its name.
    pub name: String,
    /// Which ServerConfig it names.
    pub config: String,
    /// `spec.capabilities`.
    pub capabilities: Vec<String>,
    /// `spec.extraCapabilities`.
    pub extra_capabilities: Vec<String>,
    /// `spec.replicas`; 1 where it is not said.
    pub replicas: i64,
    /// Conditions.
    pub conditions: Vec<ConditionFact>,
}

/// A ServerConfig.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFact {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its containers.
    pub containers: Vec<ContainerFact>,
}

/// A Model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFact {
    /// Its name.
    pub name: String,
    /// `spec.server`.
    pub server: Option<String>,
    /// `spec.requirements`.
    pub requirements: Vec<String>,
    /// Conditions.
    pub conditions: Vec<ConditionFact>,
}

/// A StatefulSet or Deployment of a Server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadFact {
    /// `StatefulSet` or `Deployment`.
    pub kind: String,
    /// Its name, which is the Server's.
    pub name: String,
    /// `spec.replicas`.
    pub replicas: i64,
    /// Pods that exist.
    pub current: i64,
    /// Pods that are ready.
    pub ready: i64,
    /// Whether its controller has seen the latest change.
    pub observed: bool,
    /// Containers of the pods to come.
    pub containers: Vec<ContainerFact>,
}

/// A warning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFact {
    /// `Kind/name` of what it is about.
    pub about: String,
    /// Its reason.
    pub reason: String,
    /// Its message, shortened.
    pub message: String,
    /// When it came last, as written.
    pub last: String,
    /// How often.
    pub count: i64,
}

/// A ResourceQuota.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaFact {
    /// Its name.
    pub name: String,
    /// What it limits, with the limit.
    pub hard: BTreeMap<String, String>,
    /// What is in use.
    pub used: BTreeMap<String, String>,
    /// Whether it applies to some pods only.
    pub scoped: bool,
}

/// Defaults of a LimitRange for containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRangeFact {
    /// Its name.
    pub name: String,
    /// Limits that are given to containers without.
    pub limits: BTreeMap<String, String>,
    /// Requests that are given to containers without.
    pub requests: BTreeMap<String, String>,
}
