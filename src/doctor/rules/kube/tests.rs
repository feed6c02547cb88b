//! Each fault in an otherwise healthy namespace: its rule speaks first, and no other one does.

use serde_json::json;

use super::*;
use crate::doctor::diagnose;
use crate::doctor::evidence::kube::pod::{Budget, Ended, EnvFact};
use crate::doctor::evidence::kube::*;

fn env(name: &str, value: &str) -> EnvFact {
    EnvFact {
        name: name.into(),
        value: Some(value.into()),
        from: None,
    }
}

fn map(all: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    let all = all.iter();
    all.map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

fn container(name: &str, variables: &[(&str, &str)]) -> ContainerFact {
    ContainerFact {
        name: name.into(),
        image: format!("{name}:1"),
        env: variables.iter().map(|(n, v)| env(n, v)).collect(),
        requests: map(&[("cpu", "1"), ("memory", "1Gi")]),
        limits: map(&[("cpu", "1"), ("memory", "1Gi")]),
        ready: true,
        started: true,
        ..ContainerFact::default()
    }
}

fn healthy() -> Evidence {
    let mut agent = container(
        "agent",
        &[
            ("SELDON_SERVER_CAPABILITIES", "sklearn,mlserver"),
            ("SELDON_SERVER_HTTP_PORT", "9000"),
            ("SELDON_SERVER_HTTP_PORT", "9600"),
            ("SELDON_SERVER_GRPC_PORT", "9650"),
            ("SELDON_SCHEDULER_PORT", "9605"),
        ],
    );
    agent.env.push(EnvFact {
        name: "MEMORY_REQUEST".into(),
        value: None,
        from: Some("resource".into()),
    });
    let mut server = container("mlserver", &[("MLSERVER_HTTP_PORT", "9000")]);
    server.startup = Some(Budget {
        delay_s: 0,
        period_s: 10,
        failures: 10,
    });
    let shim = container("agent-shim", &[("SHIM_SCHEDULER", "seldon-scheduler:9005")]);
    let containers = vec![container("rclone", &[]), agent, server, shim];
    let kube = KubeFacts {
        namespace: "ml".into(),
        scheduler_namespace: "seldon-system".into(),
        scheduler_known: true,
        operator_namespace: Some("seldon-system".into()),
        server: Some("mlserver".into()),
        servers: vec![ServerFact {
            name: "mlserver".into(),
            config: "mlserver".into(),
            capabilities: vec!["sklearn".into()],
            replicas: 1,
            ..ServerFact::default()
        }],
        configs: vec![ConfigFact {
            namespace: "seldon-system".into(),
            name: "mlserver".into(),
            containers: Vec::new(),
        }],
        models: vec![ModelFact {
            name: "iris".into(),
            server: Some("mlserver".into()),
            ..ModelFact::default()
        }],
        workloads: vec![WorkloadFact {
            kind: "StatefulSet".into(),
            name: "mlserver".into(),
            replicas: 1,
            current: 1,
            ready: 1,
            observed: true,
            containers: containers.clone(),
        }],
        pods: vec![PodFact {
            name: "mlserver-0".into(),
            labels: map(&[("seldon-server-name", "mlserver")]),
            phase: "Running".into(),
            ready: true,
            containers,
            ..PodFact::default()
        }],
        scheduler_pods: vec![PodFact {
            name: "seldon-scheduler-0".into(),
            labels: map(&[("app.kubernetes.io/name", "seldon-scheduler")]),
            phase: "Running".into(),
            ready: true,
            ..PodFact::default()
        }],
        scheduler_ready: Some(1),
        quotas: vec![QuotaFact {
            name: "compute".into(),
            hard: map(&[
                ("requests.memory", "8Gi"),
                ("limits.cpu", "8"),
                ("pods", "10"),
            ]),
            ..QuotaFact::default()
        }],
        ..KubeFacts::default()
    };
    Evidence {
        kube: Some(kube),
        asked_model: Some("iris".into()),
        ..Evidence::default()
    }
}

fn table() -> impl Iterator<Item = &'static crate::doctor::Rule> {
    let files = [
        config::RULES,
        quota::RULES,
        super::pod::RULES,
        inject::RULES,
        network::RULES,
    ];
    files.into_iter().flatten()
}

fn found(e: &Evidence) -> Vec<String> {
    let diagnosis = diagnose(e, table());
    assert_eq!(diagnosis.unchecked, [], "something was not checked");
    diagnosis.findings().map(|f| f.name.clone()).collect()
}

/// One fault, and all that is said of it: evidence and fix have to hold `parts`.
fn fault(name: &str, parts: &[&str], break_it: impl Fn(&mut Evidence, &mut KubeFacts)) {
    let mut e = healthy();
    let mut kube = e.kube.take().unwrap();
    break_it(&mut e, &mut kube);
    e.kube = Some(kube);
    assert_eq!(found(&e), [name]);
    let diagnosis = diagnose(&e, table());
    let finding = diagnosis.findings().next().unwrap();
    let said = format!(
        "{} | {} | {}",
        finding.text,
        finding.fix,
        finding.evidence.join(" | ")
    );
    for part in parts {
        assert!(said.contains(part), "{name}: no {part:?} in: {said}");
    }
}

fn refused(k: &mut KubeFacts, message: &str) {
    k.pods.clear();
    k.workloads[0].current = 0;
    k.events.push(EventFact {
        about: "StatefulSet/mlserver".into(),
        reason: "FailedCreate".into(),
        message: message.into(),
        last: "2026-01-31T12:00:00Z".into(),
        count: 7,
    });
}

fn waits(k: &mut KubeFacts, container: usize, reason: &str, message: &str) {
    let it = &mut k.pods[0].containers[container];
    it.waiting = Some((reason.into(), message.into()));
    it.ready = false;
    it.started = false;
    k.pods[0].ready = false;
}

fn ended(k: &mut KubeFacts, reason: &str, code: i64, ran_s: i64) {
    waits(k, 2, "CrashLoopBackOff", "back-off");
    let it = &mut k.pods[0].containers[2];
    it.restarts = 4;
    it.last = Some(Ended {
        reason: reason.into(),
        code,
        ran_s: Some(ran_s),
    });
}

fn policy(rules: serde_json::Value) -> NetworkPolicy {
    NetworkPolicy {
        name: "default-deny".into(),
        egress: true,
        rules: serde_json::from_value(rules).unwrap(),
        ..NetworkPolicy::default()
    }
}

#[test]
fn a_healthy_namespace_has_no_finding() {
    assert_eq!(found(&healthy()), [] as [&str; 0]);
}

#[test]
fn every_fault_of_the_configuration_has_its_rule() {
    fault(
        "server-not-in-namespace",
        &["mlserver2", "Servers there: mlserver"],
        |_, k| {
            k.server = Some("mlserver2".into());
        },
    );
    fault(
        "server-config-not-found",
        &["it is in ml, where", "namespace: seldon-system"],
        |_, k| {
            k.configs[0].namespace = "ml".into();
        },
    );
    fault(
        "server-config-not-found",
        &["not found", "OPERATOR-NAMESPACE"],
        |_, k| {
            k.operator_namespace = None;
            k.configs.clear();
            k.workloads.clear();
            k.pods.clear();
            k.servers[0].conditions = vec![ConditionFact {
            kind: "StatefulSetOrDeploymentReady".into(),
            status: "False".into(),
            words: "failed to get ServerConfig: ServerConfig.mlops.seldon.io \"mlserver\" not found".into(),
        }];
        },
    );
    fault(
        "workload-not-rendered",
        &["no StatefulSet", "seldon-v2-controller-manager"],
        |_, k| {
            k.workloads.clear();
            k.pods.clear();
        },
    );
    fault(
        "server-scaled-to-zero",
        &["scale servers.mlops.seldon.io mlserver --replicas=1"],
        |_, k| {
            k.servers[0].replicas = 0;
            k.pods.clear();
        },
    );
    fault("model-not-found", &["Models there: wine"], |_, k| {
        k.models[0].name = "wine".into();
    });
    fault(
        "model-names-no-server",
        &["mlservr", "\"server\":\"mlserver\""],
        |_, k| {
            k.models[0].server = Some("mlservr".into());
        },
    );
}

#[test]
fn capabilities_that_do_not_arrive_are_found() {
    let name = "SELDON_SERVER_CAPABILITIES";
    fault("capabilities-ignored", &["no container lists"], |_, k| {
        k.workloads[0].containers[1].env.retain(|v| v.name != name);
    });
    fault(
        "capabilities-ignored",
        &["only init container agent"],
        |_, k| {
            k.workloads[0].containers[1].init = true;
        },
    );
    fault("capabilities-ignored", &["capability torch"], |_, k| {
        k.servers[0].capabilities.push("torch".into());
    });
    fault("capabilities-ignored", &["empty name"], |_, k| {
        k.servers[0].capabilities.clear();
        k.servers[0].extra_capabilities = vec!["sklearn".into()];
        k.workloads[0].containers[1].env[0] = env(name, ",sklearn");
    });
}

#[test]
fn every_refusal_of_a_pod_has_its_rule() {
    let must = "pods \"mlserver-0\" is forbidden: failed quota: compute: must specify limits.cpu for: agent-shim";
    fault("quota-needs-resources", &["must specify", "7x"], |_, k| {
        refused(k, must)
    });
    let over = "is forbidden: exceeded quota: compute, requested: requests.memory=4Gi, used: requests.memory=7Gi, limited: requests.memory=8Gi";
    fault("quota-exceeded", &["requests.memory ? of 8Gi"], |_, k| {
        refused(k, over)
    });
    let insecure = "violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false";
    fault("pod-security-refuses", &["enforce=restricted"], |_, k| {
        refused(k, insecure);
        k.namespace_labels = map(&[("pod-security.kubernetes.io/enforce", "restricted")]);
    });
    // Before it happens: the next pod will be refused.
    fault(
        "quota-needs-resources",
        &["container agent-shim: no limits.cpu"],
        |_, k| {
            k.workloads[0].containers[3].limits.clear();
        },
    );
    // A LimitRange states it for the container.
    let mut e = healthy();
    let k = e.kube.as_mut().unwrap();
    k.workloads[0].containers[3].limits.clear();
    k.limit_ranges.push(LimitRangeFact {
        name: "defaults".into(),
        limits: map(&[("cpu", "1")]),
        ..LimitRangeFact::default()
    });
    assert_eq!(found(&e), [] as [&str; 0]);
    // What happened before the pods were there is history.
    let mut e = healthy();
    let k = e.kube.as_mut().unwrap();
    let pods = k.pods.clone();
    refused(k, over);
    k.pods = pods;
    k.workloads[0].current = 1;
    assert_eq!(found(&e), [] as [&str; 0]);
}

#[test]
fn every_way_not_to_live_has_its_rule() {
    fault(
        "pod-unschedulable",
        &["Insufficient memory", "requests: {memory"],
        |_, k| {
            k.pods[0].unschedulable =
                Some("0/3 nodes are available: 3 Insufficient memory.".into());
        },
    );
    fault(
        "image-not-pulled",
        &["mlserver:1", "correct name and tag"],
        |_, k| {
            waits(
                k,
                2,
                "ImagePullBackOff",
                "Back-off pulling image: not found",
            );
        },
    );
    fault("image-not-pulled", &["imagePullSecrets"], |_, k| {
        waits(k, 2, "ErrImagePull", "401 Unauthorized: unauthorized");
    });
    fault(
        "container-not-created",
        &["secret \"seldon\" not found"],
        |_, k| {
            waits(
                k,
                1,
                "CreateContainerConfigError",
                "secret \"seldon\" not found",
            );
        },
    );
    fault(
        "container-out-of-memory",
        &["limit of 1Gi", "had run 90 s"],
        |_, k| {
            ended(k, "OOMKilled", 137, 90);
        },
    );
    fault(
        "start-budget-too-short",
        &["10 x 10 s = 100 s", "failureThreshold: 30"],
        |_, k| {
            ended(k, "Error", 137, 131);
        },
    );
    fault(
        "container-crash-loop",
        &["exit code 1", "--previous"],
        |_, k| {
            ended(k, "Error", 1, 3);
        },
    );
}

#[test]
fn a_container_that_recovered_is_a_warning_only() {
    let mut e = healthy();
    let k = e.kube.as_mut().unwrap();
    ended(k, "OOMKilled", 137, 90);
    let it = &mut k.pods[0].containers[2];
    (it.waiting, it.ready) = (None, true);
    let diagnosis = diagnose(&e, table());
    assert_eq!(diagnosis.first, None);
    assert_eq!(diagnosis.warnings[0].name, "container-out-of-memory");
}

#[test]
fn every_fault_of_the_memory_has_its_rule() {
    fault(
        "no-memory-request",
        &["0 bytes", "requests: {memory"],
        |_, k| {
            k.quotas.clear();
            for all in [&mut k.pods[0].containers, &mut k.workloads[0].containers] {
                all[2].requests.clear();
                all[2].limits.clear();
            }
        },
    );
    fault(
        "memory-variable-missing",
        &["1,000,000 bytes", "containerName: mlserver"],
        |_, k| {
            k.pods[0].containers[1]
                .env
                .retain(|v| v.name != "MEMORY_REQUEST");
        },
    );
}

#[test]
fn every_fault_of_the_injection_has_its_rule() {
    fault("shim-not-injected", &["rclone, agent, mlserver"], |_, k| {
        k.pods[0].containers.pop();
    });
    fault("shim-injected-twice", &["agent-shim-2"], |_, k| {
        let mut second = k.pods[0].containers[3].clone();
        second.name = "agent-shim-2".into();
        k.pods[0].containers.push(second);
    });
    fault(
        "agent-flags-beat-variables",
        &["--inference-http-port=9000"],
        |_, k| {
            k.pods[0].containers[1].flags = vec!["--inference-http-port=9000".into()];
        },
    );
    fault(
        "agent-bypasses-shim",
        &["SELDON_SERVER_HTTP_PORT is 9000"],
        |_, k| {
            // The last of a name wins.
            k.pods[0].containers[1]
                .env
                .push(env("SELDON_SERVER_HTTP_PORT", "9000"));
        },
    );
    fault(
        "agent-bypasses-shim",
        &["SELDON_SCHEDULER_PORT is 9005"],
        |_, k| {
            k.pods[0].containers[1]
                .env
                .push(env("SELDON_SCHEDULER_PORT", "9005"));
        },
    );
}

#[test]
fn every_fault_of_the_network_has_its_rule() {
    let dns = json!({"ports": [{"port": 53, "protocol": "UDP"}]});
    fault(
        "policy-blocks-scheduler",
        &["default-deny", "port: 9005", "metadata.name: seldon-system"],
        |_, k| {
            k.policies.push(policy(json!([dns])));
        },
    );
    fault("policy-blocks-dns", &["port: 53"], |_, k| {
        k.policies
            .push(policy(json!([{"ports": [{"port": 9004}, {"port": 9005}]}])));
    });
    fault(
        "scheduler-not-running",
        &["seldon-scheduler-0: Pending", "describe pod"],
        |_, k| {
            k.scheduler_pods[0].ready = false;
            k.scheduler_pods[0].phase = "Pending".into();
        },
    );
    // The read-back alone is no reason for a model to have no place.
    let mut e = healthy();
    let k = e.kube.as_mut().unwrap();
    k.policies
        .push(policy(json!([dns, {"ports": [{"port": 9005}]}])));
    let diagnosis = diagnose(&e, table());
    assert_eq!(diagnosis.first, None);
    assert_eq!(diagnosis.warnings[0].name, "policy-blocks-scheduler");
    // A range of addresses leaves it open, and that is said.
    let k = e.kube.as_mut().unwrap();
    k.policies = vec![policy(
        json!([dns, {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]),
    )];
    let diagnosis = diagnose(&e, table());
    assert_eq!(diagnosis.findings().count(), 0);
    assert!(diagnosis.unchecked[0].why.contains("ranges of addresses"));
}

#[test]
fn a_scheduler_that_may_be_elsewhere_is_not_called_missing() {
    let mut e = healthy();
    let k = e.kube.as_mut().unwrap();
    k.scheduler_known = false;
    k.scheduler_pods.clear();
    k.scheduler_ready = None;
    k.policies.push(policy(
        json!([{"ports": [{"port": 53, "protocol": "UDP"}]}]),
    ));
    let diagnosis = diagnose(&e, table());
    assert_eq!(diagnosis.findings().count(), 0);
    assert!(
        diagnosis
            .unchecked
            .iter()
            .any(|u| u.why.contains("give --scheduler"))
    );
}

#[test]
fn the_earlier_of_two_faults_comes_first() {
    let mut e = healthy();
    let k = e.kube.as_mut().unwrap();
    k.models[0].server = Some("nobody".into());
    k.scheduler_pods[0].ready = false;
    k.configs.clear();
    let found = found(&e);
    let expected = [
        "server-config-not-found",
        "scheduler-not-running",
        "model-names-no-server",
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_may_not_be_read_is_said_and_concludes_nothing() {
    let mut e = healthy();
    let k = e.kube.as_mut().unwrap();
    k.pods.clear();
    k.scheduler_pods.clear();
    let why = "forbidden: a Role in ml with {...} would allow it";
    for kind in ["pods", "scheduler-pods"] {
        k.unreadable.push((kind.into(), why.into()));
    }
    let diagnosis = diagnose(&e, table());
    assert_eq!(diagnosis.findings().count(), 0);
    assert!(
        diagnosis
            .unchecked
            .iter()
            .all(|u| u.why.contains("a Role in ml"))
    );
    let unknown = diagnosis.unchecked.iter().flat_map(|u| &u.rules);
    assert!(unknown.clone().any(|r| r == "AS141"));
    assert!(unknown.clone().any(|r| r == "AS123"));
    // What could be read is judged.
    assert!(!unknown.clone().any(|r| r == "AS101"));
}
