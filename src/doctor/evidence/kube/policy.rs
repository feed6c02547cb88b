//! NetworkPolicies, as far as they decide what leaves a pod. Pure.
//!
//! A policy that selects a pod and speaks of egress forbids everything that no policy allows. The
//! answer has three values: an address range can be judged only where the other end's address is
//! known.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Labels;

/// A NetworkPolicy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Its name.
    pub name: String,
    /// Which pods it is for.
    pub selector: Selector,
    /// Whether it speaks of egress.
    pub egress: bool,
    /// What it allows to leave.
    pub rules: Vec<EgressRule>,
}

/// A label selector; empty selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    /// Labels that have to be there.
    pub match_labels: Labels,
    /// Conditions that have to hold.
    pub match_expressions: Vec<Expression>,
}

/// A condition on a label.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Expression {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// Values.
    pub values: Vec<String>,
}

impl Selector {
    /// Whether it selects an object with these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        let equal = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(equal)
            && self.match_expressions.iter().all(|e| e.holds(labels))
    }
}

impl Expression {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator.as_str() {
            "In" => value.is_some_and(|v| self.values.contains(v)),
            "NotIn" => value.is_none_or(|v| !self.values.contains(v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    }
}

/// One rule: to any of these, on any of these ports. Empty lists mean everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EgressRule {
    /// To whom.
    pub to: Vec<Peer>,
    /// On which ports.
    pub ports: Vec<PortRule>,
}

/// Who may be spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    /// Pods with these labels, in the policy's namespace unless the next field says otherwise.
    pub pod_selector: Option<Selector>,
    /// In namespaces with these labels.
    pub namespace_selector: Option<Selector>,
    /// Addresses.
    pub ip_block: Option<IpBlock>,
}

/// A range of addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    /// `address/bits`.
    pub cidr: String,
    /// Without these.
    pub except: Vec<String>,
}

/// Ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortRule {
    /// `TCP` where it is not said.
    pub protocol: Option<String>,
    /// A number, or the name of a container's port; everything where it is not said.
    pub port: Option<PortName>,
    /// The end of a range that begins with `port`.
    pub end_port: Option<u16>,
}

/// A port's number or name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortName {
    /// Its number.
    Number(u16),
    /// Its name in the other pod.
    Name(String),
}

/// The other end of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destination<'a> {
    /// Labels of its pods; `None` where they are not known.
    pub pod: Option<&'a Labels>,
    /// Labels of its namespace.
    pub namespace: Option<&'a Labels>,
    /// Whether it is the policy's own namespace.
    pub same_namespace: bool,
    /// Its addresses, where they are known.
    pub addresses: &'a [IpAddr],
    /// `TCP` or `UDP`.
    pub protocol: &'a str,
    /// The port's number at the pod.
    pub port: u16,
    /// The port's name at the pod.
    pub port_name: &'a str,
}

/// Whether something may leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Egress {
    /// No policy speaks of it, or one allows it.
    Allowed,
    /// These policies select the pod, and nothing allows it.
    Denied(Vec<String>),
    /// It depends on something that is not known.
    Unknown,
}

/// Whether a pod with these labels may reach a destination.
pub fn egress(policies: &[NetworkPolicy], pod: &Labels, to: &Destination<'_>) -> Egress {
    let for_pod = policies
        .iter()
        .filter(|p| p.egress && p.selector.selects(pod));
    let (mut names, mut unknown) = (Vec::new(), false);
    for policy in for_pod {
        names.push(policy.name.clone());
        for rule in &policy.rules {
            match rule.allows(to) {
                Some(true) => return Egress::Allowed,
                Some(false) => {}
                None => unknown = true,
            }
        }
    }
    match (names.is_empty(), unknown) {
        (true, _) => Egress::Allowed,
        (false, true) => Egress::Unknown,
        (false, false) => Egress::Denied(names),
    }
}

impl EgressRule {
    /// `None`: it depends on something that is not known.
    fn allows(&self, to: &Destination<'_>) -> Option<bool> {
        let port = self.ports.is_empty() || self.ports.iter().any(|p| p.covers(to));
        if !port {
            return Some(false);
        }
        any(self.to.is_empty(), self.to.iter().map(|p| p.covers(to)))
    }
}

fn any(empty: bool, mut all: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    if empty {
        return Some(true);
    }
    all.try_fold(Some(false), |so_far, one| match (so_far, one) {
        (_, Some(true)) => Err(()),
        (None, _) | (_, None) => Ok(None),
        _ => Ok(Some(false)),
    })
    .unwrap_or(Some(true))
}

impl PortRule {
    fn covers(&self, to: &Destination<'_>) -> bool {
        let protocol = self.protocol.as_deref().unwrap_or("TCP");
        protocol == to.protocol
            && match (&self.port, self.end_port) {
                (None, _) => true,
                (Some(PortName::Number(first)), Some(last)) => (*first..=last).contains(&to.port),
                (Some(PortName::Number(only)), None) => *only == to.port,
                (Some(PortName::Name(name)), _) => name == to.port_name,
            }
    }
}

impl Peer {
    fn covers(&self, to: &Destination<'_>) -> Option<bool> {
        if let Some(block) = &self.ip_block {
            // Whether a range is compared with a Service's address or a pod's is up to the network.
            return match to.addresses {
                [] => None,
                all => Some(all.iter().any(|a| block.has(*a))),
            };
        }
        let namespace = match &self.namespace_selector {
            None => Some(to.same_namespace),
            Some(selector) if *selector == Selector::default() => Some(true),
            Some(selector) => to.namespace.map(|labels| selector.selects(labels)),
        };
        let pod = match &self.pod_selector {
            None => Some(true),
            Some(selector) if *selector == Selector::default() => Some(true),
            Some(selector) => to.pod.map(|labels| selector.selects(labels)),
        };
        match (namespace, pod) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        }
    }
}

impl IpBlock {
    fn has(&self, address: IpAddr) -> bool {
        within(&self.cidr, address) && !self.except.iter().any(|e| within(e, address))
    }
}

/// Whether an address is in `address/bits`.
fn within(cidr: &str, address: IpAddr) -> bool {
    let Some((base, bits)) = cidr.split_once('/') else {
        return false;
    };
    let (Ok(base), Ok(bits)) = (base.parse::<IpAddr>(), bits.parse::<u32>()) else {
        return false;
    };
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) if bits <= 32 => {
            let shift = 32 - bits;
            let cut = |ip| u32::from(ip).checked_shr(shift).unwrap_or(0);
            cut(base) == cut(address)
        }
        (IpAddr::V6(base), IpAddr::V6(address)) if bits <= 128 => {
            let shift = 128 - bits;
            let cut = |ip| u128::from(ip).checked_shr(shift).unwrap_or(0);
            cut(base) == cut(address)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
