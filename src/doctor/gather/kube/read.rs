//! Objects as the API server writes them, reduced to what rules look at. What is missing or of
//! another shape is as good as not there.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::doctor::evidence::kube::pod::{self, Budget, ContainerFact, Ended, EnvFact, PodFact};
use crate::doctor::evidence::kube::{
    ConditionFact, ConfigFact, EventFact, Labels, LimitRangeFact, ModelFact, NetworkPolicy,
    QuotaFact, ServerFact, WorkloadFact,
};

/// Longest message that is kept, in characters.
const MESSAGE: usize = 400;
/// Flags of the agent that a rule knows.
const FLAGS: [&str; 13] = [
    "inference-host",
    "inference-http-port",
    "inference-grpc-port",
    "scheduler-host",
    "scheduler-port",
    "scheduler-tls-port",
    "server-name",
    "server-idx",
    "replica-config",
    "memory-bytes",
    "capabilities",
    "over-commit-percentage",
    "server-type",
];

pub(super) fn items<T>(list: &Value, one: impl Fn(&Value) -> T) -> Vec<T> {
    let all = list["items"].as_array().into_iter().flatten();
    all.map(one).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

/// Words of somebody else: on one line, and not without end.
fn words(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(MESSAGE).collect()
}

fn texts(value: &Value) -> Vec<String> {
    let all = value.as_array().into_iter().flatten();
    all.filter_map(|v| v.as_str().map(Into::into)).collect()
}

fn map(value: &Value) -> BTreeMap<String, String> {
    let all = value.as_object().into_iter().flatten();
    all.map(|(key, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), Into::into);
        (key.clone(), value)
    })
    .collect()
}

fn typed<T: DeserializeOwned + Default>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

fn name(object: &Value) -> String {
    text(&object["metadata"]["name"])
}

pub(super) fn labels(object: &Value) -> Labels {
    map(&object["metadata"]["labels"])
}

fn conditions(object: &Value) -> Vec<ConditionFact> {
    let all = object["status"]["conditions"].as_array();
    all.into_iter()
        .flatten()
        .map(|c| {
            let parts = [words(&c["reason"]), words(&c["message"])];
            let parts: Vec<String> = parts.into_iter().filter(|p| !p.is_empty()).collect();
            ConditionFact {
                kind: text(&c["type"]),
                status: text(&c["status"]),
                words: parts.join(": "),
            }
        })
        .collect()
}

pub(super) fn server(object: &Value) -> ServerFact {
    let spec = &object["spec"];
    ServerFact {
        name: name(object),
        config: text(&spec["serverConfig"]),
        capabilities: texts(&spec["capabilities"]),
        extra_capabilities: texts(&spec["extraCapabilities"]),
        replicas: spec["replicas"].as_i64().unwrap_or(1),
        conditions: conditions(object),
    }
}

pub(super) fn config(object: &Value) -> ConfigFact {
    ConfigFact {
        namespace: text(&object["metadata"]["namespace"]),
        name: name(object),
        containers: containers(&object["spec"]["podSpec"]),
    }
}

pub(super) fn model(object: &Value) -> ModelFact {
    let spec = &object["spec"];
    ModelFact {
        name: name(object),
        server: spec["server"].as_str().map(Into::into),
        requirements: texts(&spec["requirements"]),
        conditions: conditions(object),
    }
}

pub(super) fn workload(kind: &str, object: &Value) -> WorkloadFact {
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    WorkloadFact {
        kind: kind.into(),
        name: name(object),
        replicas: spec["replicas"].as_i64().unwrap_or(1),
        current: number(&status["replicas"]),
        ready: number(&status["readyReplicas"]),
        observed: number(&status["observedGeneration"])
            >= number(&object["metadata"]["generation"]),
        containers: containers(&spec["template"]["spec"]),
    }
}

pub(super) fn pod(object: &Value) -> PodFact {
    let status = &object["status"];
    let all = status["conditions"].as_array();
    let condition = |kind: &str| all?.iter().find(|c| c["type"] == kind);
    let unschedulable = condition("PodScheduled").filter(|c| c["reason"] == "Unschedulable");
    let mut containers = containers(&object["spec"]);
    for list in ["initContainerStatuses", "containerStatuses"] {
        for now in status[list].as_array().into_iter().flatten() {
            if let Some(known) = containers.iter_mut().find(|c| now["name"] == c.name) {
                standing(known, now);
            }
        }
    }
    PodFact {
        name: name(object),
        labels: labels(object),
        phase: text(&status["phase"]),
        ready: condition("Ready").is_some_and(|c| c["status"] == "True"),
        deleting: !object["metadata"]["deletionTimestamp"].is_null(),
        unschedulable: unschedulable.map(|c| words(&c["message"])),
        reason: status["reason"].as_str().map(|_| {
            let parts = [words(&status["reason"]), words(&status["message"])];
            parts.join(": ").trim_end_matches(": ").to_string()
        }),
        containers,
    }
}

fn containers(spec: &Value) -> Vec<ContainerFact> {
    let list = |name: &str| spec[name].as_array().into_iter().flatten();
    let init = list("initContainers").map(|c| ContainerFact {
        init: true,
        sidecar: c["restartPolicy"] == "Always",
        ..container(c)
    });
    init.chain(list("containers").map(container)).collect()
}

fn container(spec: &Value) -> ContainerFact {
    let mut flags: Vec<String> = Vec::new();
    let line: Vec<String> = [texts(&spec["command"]), texts(&spec["args"])].concat();
    for word in &line {
        let flag = word.trim_start_matches('-');
        let flag = flag.split('=').next().unwrap_or_default();
        // Only flags that hold no secret are known.
        if word.starts_with('-') && FLAGS.contains(&flag) {
            flags.push(word.chars().take(MESSAGE).collect());
        }
    }
    ContainerFact {
        name: text(&spec["name"]),
        image: text(&spec["image"]),
        env: spec["env"]
            .as_array()
            .into_iter()
            .flatten()
            .map(env)
            .collect(),
        flags,
        requests: map(&spec["resources"]["requests"]),
        limits: map(&spec["resources"]["limits"]),
        startup: budget(&spec["startupProbe"]),
        liveness: budget(&spec["livenessProbe"]),
        ..ContainerFact::default()
    }
}

fn env(entry: &Value) -> EnvFact {
    let name = text(&entry["name"]);
    let source = &entry["valueFrom"];
    let from = [
        ("secretKeyRef", "secret"),
        ("configMapKeyRef", "config-map"),
        ("fieldRef", "field"),
        ("resourceFieldRef", "resource"),
    ];
    let from = from.iter().find(|(key, _)| !source[key].is_null());
    let plain = source.is_null() && pod::may_show(&name);
    EnvFact {
        value: plain.then(|| words(&entry["value"])),
        from: match (from, plain) {
            (Some((_, kind)), _) => Some((*kind).into()),
            (None, false) => Some("hidden".into()),
            (None, true) => None,
        },
        name,
    }
}

/// With the defaults of Kubernetes.
fn budget(probe: &Value) -> Option<Budget> {
    probe.as_object()?;
    let number = |name: &str, default| probe[name].as_u64().unwrap_or(default);
    Some(Budget {
        delay_s: number("initialDelaySeconds", 0),
        period_s: number("periodSeconds", 10),
        failures: number("failureThreshold", 3),
    })
}

fn standing(known: &mut ContainerFact, now: &Value) {
    known.restarts = now["restartCount"].as_i64().unwrap_or(0);
    known.ready = now["ready"] == true;
    known.started = now["started"] == true;
    let waiting = &now["state"]["waiting"];
    known.waiting = waiting
        .as_object()
        .map(|_| (text(&waiting["reason"]), words(&waiting["message"])));
    let ended = match &now["state"]["terminated"] {
        Value::Null => &now["lastState"]["terminated"],
        current => current,
    };
    known.last = ended.as_object().map(|_| Ended {
        reason: text(&ended["reason"]),
        code: ended["exitCode"].as_i64().unwrap_or(0),
        ran_s: seconds(&ended["startedAt"])
            .zip(seconds(&ended["finishedAt"]))
            .map(|(from, to)| to - from),
    });
}

/// `2026-01-31T12:00:00Z` as seconds from some day on: only for differences.
fn seconds(value: &Value) -> Option<i64> {
    let time = humantime::parse_rfc3339(value.as_str()?).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

pub(super) fn event(object: &Value) -> EventFact {
    let about = &object["involvedObject"];
    let last = [
        &object["series"]["lastObservedTime"],
        &object["lastTimestamp"],
        &object["eventTime"],
        &object["metadata"]["creationTimestamp"],
    ];
    EventFact {
        about: format!("{}/{}", text(&about["kind"]), text(&about["name"])),
        reason: text(&object["reason"]),
        message: words(&object["message"]),
        last: last
            .into_iter()
            .find_map(Value::as_str)
            .unwrap_or_default()
            .into(),
        count: object["count"].as_i64().unwrap_or(1),
    }
}

pub(super) fn quota(object: &Value) -> QuotaFact {
    let spec = &object["spec"];
    let hard = match &object["status"]["hard"] {
        Value::Null => &spec["hard"],
        seen => seen,
    };
    QuotaFact {
        name: name(object),
        hard: map(hard),
        used: map(&object["status"]["used"]),
        scoped: !spec["scopes"].is_null() || !spec["scopeSelector"].is_null(),
    }
}

pub(super) fn limit_range(object: &Value) -> LimitRangeFact {
    let mut fact = LimitRangeFact {
        name: name(object),
        ..LimitRangeFact::default()
    };
    for limit in object["spec"]["limits"].as_array().into_iter().flatten() {
        if limit["type"] == "Container" {
            fact.limits.extend(map(&limit["default"]));
            fact.requests.extend(map(&limit["defaultRequest"]));
        }
    }
    // A default limit is the default request as well.
    for (resource, value) in &fact.limits {
        let requests = &mut fact.requests;
        requests.entry(resource.clone()).or_insert(value.clone());
    }
    fact
}

pub(super) fn policy(object: &Value) -> NetworkPolicy {
    let spec = &object["spec"];
    let egress = match spec["policyTypes"].as_array() {
        Some(types) => types.iter().any(|t| t == "Egress"),
        // Where it is not said, rules say it.
        None => !spec["egress"].is_null(),
    };
    NetworkPolicy {
        name: name(object),
        selector: typed(&spec["podSelector"]),
        egress,
        rules: typed(&spec["egress"]),
    }
}

/// Addresses that are ready, of all slices of a Service.
pub(super) fn ready_addresses(slices: &Value) -> usize {
    let slices = slices["items"].as_array().into_iter().flatten();
    let endpoints = slices.flat_map(|s| s["endpoints"].as_array().into_iter().flatten());
    endpoints
        .filter(|e| e["conditions"]["ready"] != false)
        .map(|e| e["addresses"].as_array().map_or(0, Vec::len))
        .sum()
}
