//! The way from the pod to the scheduler: policies of the network, and whether anybody is there.

use super::{Checked, facts, settled};
use crate::doctor::evidence::Evidence;
use crate::doctor::evidence::kube::policy::{Destination, Egress, egress};
use crate::doctor::evidence::kube::{KubeFacts, Labels, PodFact};
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        id: "AS140",
        name: "policy-blocks-dns",
        link: Link::Names,
        kind: Kind::Cause,
        title: "a NetworkPolicy lets no name look-up out",
        symptoms: &[
            "i/o timeout",
            "Temporary failure in name resolution",
            "lookup seldon-scheduler",
        ],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "allow egress to port 53, UDP and TCP",
        check: |e| settled(blocks_dns(e)),
    },
    Rule {
        id: "AS141",
        name: "scheduler-not-running",
        link: Link::Network,
        kind: Kind::Cause,
        title: "no pod of the scheduler is ready",
        symptoms: &[
            "connect: connection refused",
            "no endpoints available for service \"seldon-scheduler\"",
        ],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "start the scheduler: its StatefulSet has no ready pod",
        check: |e| settled(no_scheduler(e)),
    },
    Rule {
        id: "AS142",
        name: "policy-blocks-scheduler",
        link: Link::Network,
        kind: Kind::Cause,
        title: "a NetworkPolicy keeps the pod from the scheduler",
        symptoms: &[
            "dial tcp: i/o timeout",
            "connection timed out",
            "context deadline exceeded",
        ],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "allow egress to the scheduler's ports 9005 and 9004 (9055 and 9044 with TLS)",
        check: |e| settled(blocks_scheduler(e)),
    },
];

/// The label that Kubernetes gives every namespace.
const NAMESPACE: &str = "kubernetes.io/metadata.name";

fn blocks_dns(e: &Evidence) -> Checked {
    let k = facts(e, &["pods", "networkpolicies"])?;
    for pod in k.asked_pods() {
        // Who answers is not the same in every cluster: only what nobody may is a finding.
        let to = |protocol, port| Destination {
            protocol,
            port,
            port_name: "dns",
            ..Destination::default()
        };
        let ways = [("UDP", 53), ("UDP", 5353), ("TCP", 53)];
        let ways =
            ways.map(|(protocol, port)| egress(&k.policies, &pod.labels, &to(protocol, port)));
        let Some(Egress::Denied(names)) = ways.iter().find(|way| matches!(way, Egress::Denied(_)))
        else {
            continue;
        };
        if ways.iter().all(|way| matches!(way, Egress::Denied(_))) {
            return Ok(Found::broken(
                format!("no name can be looked up from pod {}: {} lets nothing out on port 53", pod.name, of(names)),
                "egress: [{ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]   # in a NetworkPolicy that selects the pod",
            )
            .seen(format!("{} selects pod {}", of(names), pod.name))
            .into());
        }
    }
    Ok(Verdict::CLEAR)
}

fn of(names: &[String]) -> String {
    format!("NetworkPolicy {}", names.join(" and "))
}

fn no_scheduler(e: &Evidence) -> Checked {
    let k = facts(e, &["scheduler-pods"])?;
    if k.scheduler_pods.iter().any(|p| p.ready) {
        return Ok(Verdict::Clear("a pod of the scheduler is ready".into()));
    }
    let ns = &k.scheduler_namespace;
    let (text, fix) = match k.scheduler_pods.first() {
        // Another Service than the usual one may still lead to a scheduler.
        None if k.scheduler_ready.unwrap_or(0) > 0 => return Ok(Verdict::CLEAR),
        None if !k.scheduler_known => return Err(elsewhere()),
        None => (
            format!("there is no scheduler in namespace {ns}"),
            format!(
                "kubectl -n {ns} get statefulset seldon-scheduler; SHIM_SCHEDULER: seldon-scheduler.NAMESPACE:9005 where it is elsewhere"
            ),
        ),
        Some(pod) => (
            format!("no pod of the scheduler in namespace {ns} is ready"),
            format!("kubectl -n {ns} describe pod {}", pod.name),
        ),
    };
    let seen = k
        .scheduler_pods
        .iter()
        .map(|p| format!("pod {}: {}", p.name, state(p)));
    Ok(Found::broken(text, fix).all_seen(seen).into())
}

fn elsewhere() -> Verdict {
    Verdict::Unknown(
        "in which namespace the scheduler is, is not known: give --scheduler NAME.NAMESPACE:9005"
            .into(),
    )
}

fn state(pod: &PodFact) -> String {
    let waiting = pod.containers.iter().find_map(|c| c.waiting.as_ref());
    let why = pod.unschedulable.clone().or(pod.reason.clone());
    match (waiting, why) {
        (Some((reason, _)), _) => format!("{}, {reason}", pod.phase),
        (None, Some(why)) => format!("{}, {why}", pod.phase),
        (None, None) => format!("{}, not ready", pod.phase),
    }
}

fn blocks_scheduler(e: &Evidence) -> Checked {
    let k = facts(e, &["pods", "networkpolicies"])?;
    if !k.scheduler_known && k.scheduler_pods.is_empty() && !k.policies.is_empty() {
        return Err(elsewhere());
    }
    let namespace = scheduler_labels(k);
    let labels = match k.scheduler_pods.first() {
        Some(pod) => pod.labels.clone(),
        None => Labels::from([("app.kubernetes.io/name".into(), "seldon-scheduler".into())]),
    };
    let mut open = None;
    for pod in k.asked_pods() {
        let way = |port, port_name| {
            let to = Destination {
                pod: Some(&labels),
                namespace: Some(&namespace),
                same_namespace: k.scheduler_namespace == k.namespace,
                addresses: &[],
                protocol: "TCP",
                port,
                port_name,
            };
            egress(&k.policies, &pod.labels, &to)
        };
        // Either is enough: which one is in use is a setting.
        let agent = better(way(9005, "agent"), way(9055, "agent-mtls"));
        let api = better(way(9004, "scheduler"), way(9044, "scheduler-mtls"));
        let fix = |ports: [u16; 2]| {
            format!(
                "egress: [{{to: [{{namespaceSelector: {{matchLabels: {{{NAMESPACE}: {}}}}}}}], ports: [{{port: {}}}, {{port: {}}}]}}]   # in a NetworkPolicy that selects the pod",
                k.scheduler_namespace, ports[0], ports[1]
            )
        };
        let seen = |names: &[String]| format!("{} selects pod {}", of(names), pod.name);
        match (agent, api) {
            (Egress::Denied(names), _) => {
                return Ok(Found::broken(
                    format!("pod {} may not reach the agents' service of the scheduler in {}: {} allows neither 9005 nor 9055", pod.name, k.scheduler_namespace, of(&names)),
                    fix([9005, 9004]),
                )
                .seen(seen(&names))
                .into());
            }
            (_, Egress::Denied(names)) => {
                return Ok(Found::warning(
                    format!("pod {} may not reach the scheduler's API: what the scheduler believes cannot be read back", pod.name),
                    fix([9004, 9044]),
                )
                .seen(seen(&names))
                .into());
            }
            (Egress::Unknown, _) | (_, Egress::Unknown) => open = Some(&pod.name),
            (Egress::Allowed, Egress::Allowed) => {}
        }
    }
    Ok(match open {
        Some(pod) => Verdict::Unknown(format!(
            "NetworkPolicies of pod {pod} name ranges of addresses, and which one the scheduler has at this point of the network is not known"
        )),
        None if k.policies.is_empty() => Verdict::CLEAR,
        None => Verdict::Clear("NetworkPolicies let the pod reach the scheduler".into()),
    })
}

fn scheduler_labels(k: &KubeFacts) -> Labels {
    let mut labels = k.scheduler_labels.clone();
    // Kubernetes sets it itself, so it is known without permission to look.
    labels.insert(NAMESPACE.into(), k.scheduler_namespace.clone());
    labels
}

/// The better one of two ways.
fn better(one: Egress, other: Egress) -> Egress {
    match (one, other) {
        (Egress::Allowed, _) | (_, Egress::Allowed) => Egress::Allowed,
        (Egress::Unknown, _) | (_, Egress::Unknown) => Egress::Unknown,
        (denied, _) => denied,
    }
}
