//! Tables over whole objects.

use serde_json::{Value, json};

use super::*;

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "mlserver-0", "namespace": "team" },
        "spec": {
            "terminationGracePeriodSeconds": 120,
            "containers": [
                { "name": "rclone", "image": "rclone" },
                { "name": "agent", "image": "agent", "env": [
                    { "name": "SELDON_SERVER_HTTP_PORT", "value": "9000" },
                    { "name": "SELDON_SERVER_GRPC_PORT", "value": "9500" },
                    { "name": "SELDON_SCHEDULER_HOST", "value": "seldon-scheduler" },
                    { "name": "SELDON_SCHEDULER_PORT", "value": "9005" },
                    { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                ] },
                { "name": "mlserver", "image": "mlserver", "env": [
                    { "name": "MLSERVER_HTTP_PORT", "value": "9000" },
                    { "name": "MLSERVER_GRPC_PORT", "value": "9500" },
                ], "resources": { "requests": { "cpu": 1, "memory": "1G" } } },
            ],
        },
    })
}

fn shim(object: &Value) -> &Value {
    &object["spec"]["initContainers"][0]
}

fn env_of<'v>(container: &'v Value, name: &str) -> &'v Value {
    env::entry(container, name).unwrap_or(&Value::Null)
}

#[test]
fn a_pod_gets_the_container_and_the_agent_its_four_variables_once() {
    let mut object = pod();
    let report = inject(&mut object, &Options::default()).unwrap();
    assert!(report.changed && report.applies());
    assert_eq!(report.name, "Pod/team/mlserver-0");
    let shim = shim(&object);
    assert_eq!(shim["name"], "agent-shim");
    assert_eq!(shim["restartPolicy"], "Always");
    assert_eq!(
        env_of(shim, "SHIM_SCHEDULER")["value"],
        "seldon-scheduler:9005"
    );
    assert_eq!(
        env_of(shim, "SHIM_SCHEDULER_STATUS")["value"],
        "seldon-scheduler:9004"
    );
    let agent = &object["spec"]["containers"][1];
    for (name, value) in [
        ("SELDON_SERVER_HTTP_PORT", "9600"),
        ("SELDON_SERVER_GRPC_PORT", "9650"),
        ("SELDON_SCHEDULER_HOST", "127.0.0.1"),
        ("SELDON_SCHEDULER_PORT", "9605"),
    ] {
        assert_eq!(env_of(agent, name)["value"], value);
    }
    assert_eq!(agent["env"].as_array().unwrap().len(), 5);
    assert!(env::duplicates(agent).is_empty());
}

#[test]
fn injecting_twice_changes_nothing_and_removing_gives_the_original_back() {
    let mut object = pod();
    inject(&mut object, &Options::default()).unwrap();
    let once = object.clone();
    let again = inject(&mut object, &Options::default()).unwrap();
    assert!(!again.changed);
    assert_eq!(object.to_string(), once.to_string());
    let removed = remove(&mut object, &Options::default()).unwrap();
    assert!(removed.changed);
    assert_eq!(object.to_string(), pod().to_string());
}
