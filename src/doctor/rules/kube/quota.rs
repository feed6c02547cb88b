//! Pods that the namespace does not let in: quotas and pod security.

use super::{Checked, facts, kubectl, settled};
use crate::doctor::evidence::Evidence;
use crate::doctor::evidence::kube::{ContainerFact, EventFact, KubeFacts, WorkloadFact};
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        id: "AS110",
        name: "quota-needs-resources",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "a ResourceQuota refuses pods whose containers do not state their resources",
        symptoms: &[
            "failed quota:",
            "must specify limits.cpu",
            "must specify requests.memory",
        ],
        needs: &[Need::Kube],
        rules_out: &["quota-exceeded"],
        fix: "state requests and limits for cpu and memory on every container, or give defaults with a LimitRange",
        check: |e| settled(needs_resources(e)),
    },
    Rule {
        id: "AS111",
        name: "quota-exceeded",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "a ResourceQuota is used up",
        symptoms: &["exceeded quota:", "FailedCreate"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "raise the quota, lower the requests, or scale something else down",
        check: |e| settled(exceeded(e)),
    },
    Rule {
        id: "AS112",
        name: "pod-security-refuses",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "the namespace's pod security level refuses the pod",
        symptoms: &["violates PodSecurity \"restricted", "FailedCreate"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "set the securityContext that the message names on every container",
        check: |e| settled(insecure(e)),
    },
];

/// The latest refusal to create a pod of a Server that is asked about, where pods are missing.
fn refusal<'a>(k: &'a KubeFacts, parts: &[&str]) -> Option<(&'a WorkloadFact, &'a EventFact)> {
    k.asked_servers().find_map(|server| {
        let workload = k.workloads.iter().find(|w| w.name == server.name)?;
        // An old event is history once the pods are there.
        if workload.current >= workload.replicas {
            return None;
        }
        let about = format!("{}/{}", workload.kind, workload.name);
        // A Deployment's pods are made by a ReplicaSet, whose name begins with the Deployment's.
        let replica_set = format!("ReplicaSet/{}-", workload.name);
        let event = k.events.iter().find(|event| {
            event.reason == "FailedCreate"
                && (event.about == about || event.about.starts_with(&replica_set))
                && parts.iter().any(|part| event.message.contains(part))
        })?;
        Some((workload, event))
    })
}

fn shown(event: &EventFact) -> String {
    format!(
        "{} {} ({}x): {}",
        event.about, event.reason, event.count, event.message
    )
}

fn needs_resources(e: &Evidence) -> Checked {
    let k = facts(e, &["servers"])?;
    if let Some((workload, event)) = refusal(k, &["must specify"]) {
        return Ok(Found::broken(
            format!(
                "a quota refuses the pods of {} {}: containers do not state their resources",
                workload.kind, workload.name
            ),
            fix(&silent(k, workload)),
        )
        .seen(shown(event))
        .into());
    }
    for kind in ["resourcequotas", "limitranges"] {
        if let Some(why) = k.unreadable(kind) {
            return Err(Verdict::Unknown(format!("{kind}: {why}")));
        }
    }
    for server in k.asked_servers() {
        let Some(workload) = k.workloads.iter().find(|w| w.name == server.name) else {
            continue;
        };
        let silent = silent(k, workload);
        if let Some((container, resource)) = silent.first() {
            let text = format!(
                "ResourceQuota in {} wants {resource} from every container, and container {container} of {} {} does not state it",
                k.namespace, workload.kind, workload.name
            );
            let missing = workload.current < workload.replicas;
            let found = match missing {
                true => Found::broken(text, fix(&silent)),
                false => Found::warning(text, fix(&silent)),
            };
            let lines = silent.iter().map(|(c, r)| format!("container {c}: no {r}"));
            return Ok(found.all_seen(lines).into());
        }
    }
    Ok(Verdict::CLEAR)
}

/// Container and resource, for everything that a quota wants and nobody states.
fn silent(k: &KubeFacts, workload: &WorkloadFact) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let quotas = k.quotas.iter().filter(|q| !q.scoped);
    let wanted: std::collections::BTreeSet<&str> = quotas
        .flat_map(|q| q.hard.keys())
        .filter_map(|key| match key.as_str() {
            "cpu" | "requests.cpu" => Some("requests.cpu"),
            "memory" | "requests.memory" => Some("requests.memory"),
            "limits.cpu" => Some("limits.cpu"),
            "limits.memory" => Some("limits.memory"),
            _ => None,
        })
        .collect();
    for container in &workload.containers {
        for resource in &wanted {
            if !states(k, container, resource) {
                all.push((container.name.clone(), (*resource).to_string()));
            }
        }
    }
    all
}

fn states(k: &KubeFacts, container: &ContainerFact, resource: &str) -> bool {
    let (kind, name) = resource.split_once('.').unwrap_or(("", resource));
    let limit = container.limits.contains_key(name)
        || k.limit_ranges.iter().any(|r| r.limits.contains_key(name));
    match kind {
        "limits" => limit,
        // A limit is the request as well, where none is stated.
        _ => {
            limit
                || container.requests.contains_key(name)
                || k.limit_ranges.iter().any(|r| r.requests.contains_key(name))
        }
    }
}

fn fix(silent: &[(String, String)]) -> String {
    let name = silent.first().map_or("NAME", |(container, _)| container);
    format!(
        "resources: {{requests: {{cpu: 100m, memory: 128Mi}}, limits: {{cpu: 500m, memory: 128Mi}}}}   # container {name}, in spec.podSpec of the Server"
    )
}

fn exceeded(e: &Evidence) -> Checked {
    let k = facts(e, &["servers", "events"])?;
    let Some((workload, event)) = refusal(k, &["exceeded quota"]) else {
        return Ok(Verdict::CLEAR);
    };
    let used = k
        .quotas
        .iter()
        .filter(|q| event.message.contains(&q.name))
        .flat_map(|q| {
            q.hard.iter().map(move |(resource, hard)| {
                let used = q.used.get(resource).map_or("?", String::as_str);
                format!("ResourceQuota {}: {resource} {used} of {hard}", q.name)
            })
        });
    Ok(Found::broken(
        format!(
            "a quota leaves no room for the pods of {} {}",
            workload.kind, workload.name
        ),
        kubectl(
            k,
            "describe resourcequota, then raise spec.hard or lower the Server's requests",
        ),
    )
    .seen(shown(event))
    .all_seen(used)
    .into())
}

fn insecure(e: &Evidence) -> Checked {
    let k = facts(e, &["servers", "events"])?;
    let Some((workload, event)) = refusal(k, &["violates PodSecurity"]) else {
        return Ok(Verdict::CLEAR);
    };
    let label = "pod-security.kubernetes.io/enforce";
    let level = k.namespace_labels.get(label);
    Ok(Found::broken(
        format!("pod security refuses the pods of {} {}", workload.kind, workload.name),
        "securityContext: {runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}   # on each container that the message names",
    )
    .seen(shown(event))
    .all_seen(level.map(|level| format!("namespace {}: {label}={level}", k.namespace)))
    .into())
}
