use serde_json::json;

use super::*;

#[test]
fn the_schedulers_namespace_is_read_from_its_name() {
    for (host, namespace) in [
        ("seldon-scheduler", None),
        ("seldon-scheduler.seldon-system", Some("seldon-system")),
        ("seldon-scheduler.a.svc.cluster.local", Some("a")),
        ("10.0.0.1", None),
        ("scheduler.example.org", None),
    ] {
        assert_eq!(namespace_of(host), namespace, "{host}");
    }
    assert!(checked("a/../b".into()).is_err());
    assert!(checked(String::new()).is_err());
}

#[test]
fn nothing_secret_is_taken_over_from_a_pod() {
    let pod = read::pod(&json!({
        "metadata": {"name": "mlserver-0", "annotations": {"note": "sesame"}},
        "spec": {"containers": [{
            "name": "agent",
            "command": ["/bin/agent", "--password=sesame", "--scheduler-host=a"],
            "args": ["--token", "sesame"],
            "env": [
                {"name": "SELDON_SCHEDULER_HOST", "value": "seldon-scheduler"},
                {"name": "SELDON_API_TOKEN", "value": "sesame"},
                {"name": "DATABASE", "value": "sesame"},
                {"name": "SELDON_X", "valueFrom": {"secretKeyRef": {"name": "sesame", "key": "a"}}},
                {"name": "MEMORY_REQUEST", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory"}}},
            ],
        }]},
        "status": {"phase": "Running"}
    }));
    let text = serde_json::to_string(&pod).unwrap();
    assert!(!text.contains("sesame"), "{text}");
    let agent = pod.agent().unwrap();
    assert_eq!(
        agent.value("SELDON_SCHEDULER_HOST"),
        Some("seldon-scheduler")
    );
    assert_eq!(agent.flags, ["--scheduler-host=a"]);
    let from = |name| agent.variable(name).unwrap().from.as_deref();
    assert_eq!(from("SELDON_X"), Some("secret"));
    assert_eq!(from("MEMORY_REQUEST"), Some("resource"));
    assert_eq!(from("DATABASE"), Some("hidden"));
}

#[test]
fn how_a_container_stands_and_ended_is_read() {
    let pod = read::pod(&json!({
        "metadata": {"name": "p"},
        "spec": {
            "initContainers": [{"name": "agent-shim", "restartPolicy": "Always"}],
            "containers": [{"name": "mlserver", "startupProbe": {"periodSeconds": 10, "failureThreshold": 10}}]
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes\nare available"}],
            "containerStatuses": [{
                "name": "mlserver", "restartCount": 3, "ready": false, "started": false,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137,
                    "startedAt": "2026-01-31T12:00:00Z", "finishedAt": "2026-01-31T12:01:30Z"}}
            }]
        }
    }));
    assert!(pod.container("agent-shim").unwrap().sidecar);
    assert_eq!(
        pod.unschedulable.as_deref(),
        Some("0/3 nodes are available")
    );
    let server = pod.inference().unwrap();
    assert_eq!(server.restarts, 3);
    assert_eq!(server.startup.as_ref().unwrap().seconds(), 100);
    assert_eq!(server.waiting.as_ref().unwrap().0, "CrashLoopBackOff");
    let last = server.last.as_ref().unwrap();
    assert_eq!(
        (last.reason.as_str(), last.code, last.ran_s),
        ("OOMKilled", 137, Some(90))
    );
}

#[test]
fn a_policy_without_types_speaks_of_egress_only_where_it_has_rules() {
    let with = |spec| read::policy(&json!({"metadata": {"name": "x"}, "spec": spec}));
    assert!(!with(json!({"podSelector": {}})).egress);
    assert!(with(json!({"podSelector": {}, "egress": []})).egress);
    assert!(with(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})).egress);
    assert!(!with(json!({"podSelector": {}, "policyTypes": ["Ingress"]})).egress);
}

#[test]
fn only_ready_addresses_count() {
    let slices = json!({"items": [{"endpoints": [
        {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
        {"addresses": ["10.0.0.3"], "conditions": {}},
    ]}, {"endpoints": null}]});
    assert_eq!(read::ready_addresses(&slices), 2);
}
