//! Pods that are made and do not live, and what they have for models.

use super::{Checked, facts, kubectl, settled};
use crate::doctor::evidence::Evidence;
use crate::doctor::evidence::kube::pod::{self, Budget};
use crate::doctor::evidence::kube::{ContainerFact, KubeFacts, PodFact};
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        id: "AS120",
        name: "pod-unschedulable",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "no node takes the pod",
        symptoms: &[
            "FailedScheduling",
            "Insufficient memory",
            "nodes are available",
            "didn't match Pod's node affinity",
        ],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "lower the requests, or add a node that has what they ask for",
        check: |e| settled(unschedulable(e)),
    },
    Rule {
        id: "AS121",
        name: "image-not-pulled",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "an image cannot be pulled",
        symptoms: &["ImagePullBackOff", "ErrImagePull", "Failed to pull image"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "correct the image's name, or give the pod imagePullSecrets",
        check: |e| settled(image(e)),
    },
    Rule {
        id: "AS122",
        name: "container-not-created",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "a container cannot be created",
        symptoms: &[
            "CreateContainerConfigError",
            "CreateContainerError",
            "secret not found",
            "container has runAsNonRoot and image will run as root",
        ],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "create what the message misses, or correct the setting that it names",
        check: |e| settled(not_created(e)),
    },
    Rule {
        id: "AS123",
        name: "container-out-of-memory",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "a container was killed because it used more memory than its limit",
        symptoms: &["OOMKilled", "exit code 137", "Last State: Terminated"],
        needs: &[Need::Kube],
        rules_out: &["container-crash-loop", "start-budget-too-short"],
        fix: "raise the memory limit, or put fewer models or workers on the replica",
        check: |e| settled(out_of_memory(e)),
    },
    Rule {
        id: "AS124",
        name: "start-budget-too-short",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "probes end the container before it has started",
        symptoms: &[
            "Startup probe failed",
            "Liveness probe failed",
            "failed startup probe, will be restarted",
        ],
        needs: &[Need::Kube],
        rules_out: &["container-crash-loop"],
        fix: "raise failureThreshold of the startupProbe, so that a cold start fits",
        check: |e| settled(short_budget(e)),
    },
    Rule {
        id: "AS125",
        name: "container-crash-loop",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "a container ends again and again",
        symptoms: &["CrashLoopBackOff", "Back-off restarting failed container"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "read the log of the container that ended: kubectl logs POD -c CONTAINER --previous",
        check: |e| settled(crash_loop(e)),
    },
    Rule {
        id: "AS126",
        name: "no-memory-request",
        link: Link::Capacity,
        kind: Kind::Cause,
        title: "the inference container states no memory, so the agent reports 0 bytes",
        symptoms: &[
            "no matching server had enough suitable replicas",
            "MEMORY_REQUEST",
        ],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "resources.requests.memory on the inference container",
        check: |e| settled(no_memory_request(e)),
    },
    Rule {
        id: "AS127",
        name: "memory-variable-missing",
        link: Link::Capacity,
        kind: Kind::Cause,
        title: "the agent is not told the memory, so it reports 1,000,000 bytes",
        symptoms: &[
            "no matching server had enough suitable replicas",
            "MEMORY_REQUEST",
        ],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "MEMORY_REQUEST from resourceFieldRef requests.memory of the inference container",
        check: |e| settled(no_memory_variable(e)),
    },
];

const PULL: [&str; 6] = [
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
];
const CREATE: [&str; 4] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PreCreateHookError",
];

/// Every container of the pods that are asked about.
fn containers(k: &KubeFacts) -> impl Iterator<Item = (&PodFact, &ContainerFact)> {
    k.asked_pods()
        .flat_map(|p| p.containers.iter().map(move |c| (p, c)))
}

fn waiting<'a>(
    k: &'a KubeFacts,
    reasons: &[&str],
) -> Option<(&'a PodFact, &'a ContainerFact, &'a (String, String))> {
    containers(k).find_map(|(pod, container)| {
        let why = container.waiting.as_ref()?;
        reasons
            .contains(&why.0.as_str())
            .then_some((pod, container, why))
    })
}

fn unschedulable(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    let stuck = k
        .asked_pods()
        .find_map(|p| Some((p, p.unschedulable.as_ref()?)));
    let Some((pod, why)) = stuck else {
        return Ok(Verdict::CLEAR);
    };
    let wants = pod.containers.iter().filter_map(|c| {
        let request = c.requests.get("memory")?;
        Some(format!("container {}: requests.memory {request}", c.name))
    });
    let fix = match why.contains("Insufficient") {
        true => "resources: {requests: {memory: 1Gi}}   # in spec.podSpec of the Server: what a node has left, see kubectl describe nodes".into(),
        false => kubectl(k, &format!("describe pod {}: mend what its last event names", pod.name)),
    };
    Ok(
        Found::broken(format!("no node takes pod {}", pod.name), fix)
            .seen(format!("pod {}: {why}", pod.name))
            .all_seen(wants)
            .into(),
    )
}

fn image(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    let Some((pod, container, (reason, message))) = waiting(k, &PULL) else {
        return Ok(Verdict::CLEAR);
    };
    let denied = ["unauthorized", "401", "403", "denied", "authentication"];
    let fix = match denied.iter().any(|part| message.contains(part)) {
        true => {
            "imagePullSecrets: [{name: REGISTRY-SECRET}]   # in spec.podSpec of the Server".into()
        }
        false => format!(
            "image: {}   # correct name and tag of container {}",
            container.image, container.name
        ),
    };
    Ok(Found::broken(
        format!(
            "the image of container {} of pod {} cannot be pulled",
            container.name, pod.name
        ),
        fix,
    )
    .seen(format!("image {}: {reason}: {message}", container.image))
    .into())
}

fn not_created(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    let Some((pod, container, (reason, message))) = waiting(k, &CREATE) else {
        return Ok(Verdict::CLEAR);
    };
    Ok(Found::broken(
        format!(
            "container {} of pod {} cannot be created",
            container.name, pod.name
        ),
        kubectl(
            k,
            &format!(
                "describe pod {}: create or correct what the message names",
                pod.name
            ),
        ),
    )
    .seen(format!("{reason}: {message}"))
    .into())
}

fn out_of_memory(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    let killed = |c: &ContainerFact| c.last.as_ref().is_some_and(|l| l.reason == "OOMKilled");
    // One that is down counts more than one that has recovered.
    let mut all: Vec<_> = containers(k).filter(|(_, c)| killed(c)).collect();
    all.sort_by_key(|(_, c)| c.ready);
    let Some((pod, container)) = all.first() else {
        return Ok(Verdict::CLEAR);
    };
    let limit = container
        .limits
        .get("memory")
        .map_or("none", String::as_str);
    let text = format!(
        "container {} of pod {} was killed for using more memory than its limit of {limit}",
        container.name, pod.name
    );
    let fix = format!(
        "resources: {{limits: {{memory: MORE-THAN-{limit}}}}}   # container {}, in spec.podSpec of the Server",
        container.name
    );
    let found = match container.ready {
        true => Found::warning(text, fix),
        false => Found::broken(text, fix),
    };
    let ran = container.last.as_ref().and_then(|l| l.ran_s);
    let ran = ran.map_or(String::new(), |s| format!(", had run {s} s"));
    Ok(found
        .seen(format!(
            "{} restarts, last OOMKilled{ran}",
            container.restarts
        ))
        .into())
}

fn short_budget(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    for pod in k.asked_pods() {
        let Some(container) = pod.inference() else {
            continue;
        };
        let (probe, budget) = match (&container.startup, &container.liveness) {
            (Some(budget), _) => ("startupProbe", budget),
            (None, Some(budget)) => ("livenessProbe", budget),
            (None, None) => continue,
        };
        let Some(last) = container.last.as_ref().filter(|_| container.restarts > 0) else {
            continue;
        };
        // Ended by a signal, as long after its start as the probe allows: not by itself.
        let signalled = [137, 143, 0].contains(&last.code) && last.reason != "OOMKilled";
        if container.started && container.ready || !signalled || !ended_by(budget, last.ran_s) {
            continue;
        }
        let enough = budget
            .seconds()
            .saturating_mul(3)
            .div_ceil(budget.period_s.max(1));
        let words = format!("{} probe failed", probe.trim_end_matches("Probe"));
        let event = k.events.iter().find(|event| {
            event.about == format!("Pod/{}", pod.name)
                && event.message.to_lowercase().contains(&words)
        });
        return Ok(Found::broken(
            format!(
                "container {} of pod {} is ended after {} s, which is all that its {probe} allows, before it has started",
                container.name, pod.name, last.ran_s.unwrap_or(0)
            ),
            format!(
                "startupProbe: {{periodSeconds: {}, failureThreshold: {enough}}}   # container {}, in spec.podSpec of the Server",
                budget.period_s.max(1), container.name
            ),
        )
        .seen(format!(
            "{probe}: {} s + {} x {} s = {} s; {} restarts",
            budget.delay_s, budget.failures, budget.period_s, budget.seconds(), container.restarts
        ))
        .all_seen(event.map(|event| format!("{}: {}", event.reason, event.message)))
        .into());
    }
    Ok(Verdict::CLEAR)
}

/// Whether a run ended when a probe's time was over: not before, and not longer after it than the
/// process needs to end.
fn ended_by(budget: &Budget, ran: Option<i64>) -> bool {
    let allowed = i64::try_from(budget.seconds()).unwrap_or(i64::MAX);
    let period = i64::try_from(budget.period_s).unwrap_or(0);
    ran.is_some_and(|ran| ran >= allowed - period && ran <= allowed.saturating_add(150))
}

fn crash_loop(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    let looping = containers(k).find(|(_, c)| {
        let backs_off = c
            .waiting
            .as_ref()
            .is_some_and(|w| w.0 == "CrashLoopBackOff");
        backs_off || (c.restarts >= 3 && !c.ready && c.last.is_some())
    });
    let Some((pod, container)) = looping else {
        return Ok(match k.asked_pods().any(|p| p.ready) {
            true => Verdict::Clear("a pod of the Server is ready".into()),
            false => Verdict::CLEAR,
        });
    };
    let last = container.last.as_ref().map(|l| {
        let ran = l.ran_s.map_or(String::new(), |s| format!(" after {s} s"));
        format!("last ended with {} (exit code {}){ran}", l.reason, l.code)
    });
    Ok(Found::broken(
        format!(
            "container {} of pod {} ends again and again: {} restarts",
            container.name, pod.name, container.restarts
        ),
        kubectl(
            k,
            &format!("logs {} -c {} --previous", pod.name, container.name),
        ),
    )
    .all_seen(last)
    .into())
}

/// Containers of the pods that are asked about; of the pods to come where there are none.
fn specified(k: &KubeFacts) -> Vec<(String, &[ContainerFact])> {
    let pods = k
        .asked_pods()
        .map(|p| (format!("pod {}", p.name), &p.containers[..]));
    let all: Vec<_> = pods.collect();
    if !all.is_empty() {
        return all;
    }
    let asked = |name: &String| k.server.as_ref().is_none_or(|s| s == name);
    k.workloads
        .iter()
        .filter(|w| asked(&w.name))
        .map(|w| (format!("{} {}", w.kind, w.name), &w.containers[..]))
        .collect()
}

fn no_memory_request(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    for (of, all) in specified(k) {
        let Some(server) = pod::inference(all) else {
            continue;
        };
        let states = |m: &std::collections::BTreeMap<String, String>| m.contains_key("memory");
        let told = pod::agent(all).is_some_and(|a| is_told(a) && !from_resources(a));
        if !states(&server.requests) && !states(&server.limits) && !told {
            return Ok(Found::broken(
                format!("container {} of {of} states no memory, so the agent reports 0 bytes and no model with a memory fits", server.name),
                format!("resources: {{requests: {{memory: 4Gi}}}}   # container {}, in spec.podSpec of the Server", server.name),
            )
            .seen(format!("container {}: neither requests.memory nor limits.memory", server.name))
            .into());
        }
    }
    Ok(Verdict::CLEAR)
}

fn from_resources(agent: &ContainerFact) -> bool {
    agent
        .variable("MEMORY_REQUEST")
        .is_some_and(|v| v.from.as_deref() == Some("resource"))
}

/// Whether the agent learns a memory at all.
fn is_told(agent: &ContainerFact) -> bool {
    let flag = |f: &String| {
        let f = f.trim_start_matches('-');
        f.starts_with("memory-bytes") || f.starts_with("replica-config")
    };
    agent.variable("MEMORY_REQUEST").is_some()
        || agent.variable("SELDON_REPLICA_CONFIG").is_some()
        || agent.flags.iter().any(flag)
}

fn no_memory_variable(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    for (of, all) in specified(k) {
        let (Some(agent), Some(server)) = (pod::agent(all), pod::inference(all)) else {
            continue;
        };
        if !is_told(agent) {
            return Ok(Found::broken(
                format!("the agent of {of} is not told the memory, so it reports 1,000,000 bytes"),
                format!("- {{name: MEMORY_REQUEST, valueFrom: {{resourceFieldRef: {{containerName: {}, resource: requests.memory}}}}}}   # in env of container agent", server.name),
            )
            .seen("container agent: no MEMORY_REQUEST, no SELDON_REPLICA_CONFIG, no --memory-bytes")
            .into());
        }
    }
    Ok(Verdict::CLEAR)
}
