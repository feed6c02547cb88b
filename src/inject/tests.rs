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

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = pod();
    change(&mut object);
    object
}

/// What is warned about, besides the limits that the pod above does not state.
fn ids(object: &Value, options: &Options) -> Vec<&'static str> {
    let report = check(object, options).unwrap();
    let ids = report.warnings.iter().map(|w| w.id);
    ids.filter(|id| *id != "incomplete-resources").collect()
}

fn push_env(object: &mut Value, container: usize, entry: Value) {
    let list = &mut object["spec"]["containers"][container]["env"];
    list.as_array_mut().unwrap().push(entry);
}

#[test]
fn what_will_go_wrong_is_said() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 18] = [
        ("agent-flag-wins", |o| {
            o["spec"]["containers"][1]["args"] = json!(["--scheduler-host=x"]);
        }),
        ("agent-flag-wins", |o| {
            o["spec"]["containers"][1]["command"] =
                json!(["/bin/agent", "-inference-http-port", "9000"]);
        }),
        ("agent-flag-wins", |o| {
            o["spec"]["containers"][1]["command"] =
                json!(["sh", "-c", "exec agent --inference-host 10.0.0.1"]);
        }),
        ("port-taken", |o| {
            o["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 9680 }]);
        }),
        ("port-in-range", |o| {
            o["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 9699 }]);
        }),
        ("host-network", |o| o["spec"]["hostNetwork"] = json!(true)),
        ("server-host", |o| {
            push_env(o, 2, json!({ "name": "MLSERVER_HOST", "value": "[::]" }))
        }),
        ("server-host", |o| {
            push_env(o, 2, json!({ "name": "MLSERVER_HOST" }))
        }),
        ("memory-limit", |o| {
            o["spec"]["containers"][2]["resources"]["limits"] = json!({ "memory": "900M" });
        }),
        ("no-memory-request", |o| {
            o["spec"]["containers"][2]["resources"] = json!({ "requests": { "cpu": 1 } });
        }),
        ("parallel-workers", |o| {
            push_env(
                o,
                2,
                json!({ "name": "MLSERVER_PARALLEL_WORKERS", "value": "4" }),
            );
        }),
        ("duplicate-env", |o| {
            push_env(
                o,
                1,
                json!({ "name": "SELDON_SCHEDULER_HOST", "value": "other" }),
            );
        }),
        ("short-grace", |o| {
            o["spec"]["terminationGracePeriodSeconds"] = json!(60)
        }),
        ("scheduler-assumed", |o| {
            o["spec"]["containers"][1]["env"]
                .as_array_mut()
                .unwrap()
                .remove(2);
        }),
        ("tls-unknown", |o| {
            let from = json!({ "configMapKeyRef": { "name": "c", "key": "k" } });
            push_env(
                o,
                1,
                json!({ "name": "CONTROL_PLANE_SECURITY_PROTOCOL", "valueFrom": from }),
            );
            push_env(
                o,
                1,
                json!({ "name": "CONTROL_PLANE_CLIENT_TLS_SECRET_NAME", "value": "c" }),
            );
        }),
        ("tls-files-unknown", |o| {
            push_env(
                o,
                1,
                json!({ "name": "CONTROL_PLANE_SECURITY_PROTOCOL", "value": "SSL" }),
            );
        }),
        ("serverconfig-namespace", |o| {
            *o = json!({ "apiVersion": "mlops.seldon.io/v1alpha1", "kind": "ServerConfig",
                "metadata": { "namespace": "team" }, "spec": { "podSpec": o["spec"] } });
            push_env_of_config(o);
        }),
        ("capabilities-ignored", |o| {
            *o = json!({ "apiVersion": "mlops.seldon.io/v1alpha1", "kind": "ServerConfig",
                "metadata": {}, "spec": { "podSpec": o["spec"] } });
        }),
    ];
    assert!(ids(&pod(), &Options::default()).is_empty());
    for (id, change) in cases {
        assert_eq!(ids(&with(change), &Options::default()), [id]);
    }
}

fn push_env_of_config(object: &mut Value) {
    let list = &mut object["spec"]["podSpec"]["containers"][1]["env"];
    let entry = json!({ "name": "SELDON_SERVER_CAPABILITIES", "value": "sklearn" });
    list.as_array_mut().unwrap().push(entry);
}

#[test]
fn flags_that_repeat_the_variables_are_no_fault() {
    let object = with(|o| {
        o["spec"]["containers"][1]["args"] = json!([
            "--scheduler-host=$(SELDON_SCHEDULER_HOST)",
            "--inference-host=0.0.0.0",
            "--log-level=info"
        ]);
    });
    assert!(ids(&object, &Options::default()).is_empty());
}

#[test]
fn quotas_are_told_every_container_that_states_too_little() {
    let report = check(&pod(), &Options::default()).unwrap();
    let quota = report
        .warnings
        .iter()
        .find(|w| w.id == "incomplete-resources")
        .unwrap();
    assert!(
        quota.text.contains("mlserver (limits.cpu, limits.memory)"),
        "{}",
        quota.text
    );
    assert!(!quota.text.contains("agent-shim"));
}

#[test]
fn servers_override_and_operator_made_objects_are_told() {
    let server = |spec: Value| json!({ "apiVersion": "mlops.seldon.io/v1alpha1", "kind": "Server", "metadata": { "name": "s" }, "spec": spec });
    // No podSpec at all: one is made, and goes again.
    let mut object = server(json!({ "serverConfig": "mlserver" }));
    let before = object.clone();
    assert!(inject(&mut object, &Options::default()).unwrap().changed);
    assert_eq!(object["spec"]["podSpec"]["containers"][0]["name"], "agent");
    remove(&mut object, &Options::default()).unwrap();
    assert_eq!(object, before);
    let capabilities = server(json!({
        "serverConfig": "mlserver", "capabilities": ["a"],
        "podSpec": { "containers": [{ "name": "agent", "env": [{ "name": "SELDON_SERVER_CAPABILITIES", "value": "b" }] }] },
    }));
    assert_eq!(
        ids(&capabilities, &Options::default()),
        ["capabilities-ignored"]
    );
    let triton = check(
        &server(json!({ "serverConfig": "triton" })),
        &Options::default(),
    )
    .unwrap();
    assert_eq!(triton.skipped, Some(Skipped::OtherRuntime("triton".into())));
    let owned = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "ownerReferences": [{ "kind": "Server", "name": "s" }] },
        "spec": { "template": { "spec": pod()["spec"] } },
    });
    assert_eq!(ids(&owned, &Options::default()), ["operator-owned"]);
}

#[test]
fn pods_that_are_none_of_ours_are_left_alone() {
    let mut object =
        json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "containers": [{ "name": "web" }] } });
    let report = inject(&mut object, &Options::default()).unwrap();
    assert_eq!(report.skipped, Some(Skipped::NoContainer("agent".into())));
    let mut other = json!({ "apiVersion": "example.org/v1", "kind": "Pod" });
    assert_eq!(
        inject(&mut other, &Options::default()).unwrap(),
        Report::default()
    );
    assert!(inject(&mut json!(null), &Options::default()).is_ok());
}

#[test]
fn an_object_that_is_refused_is_as_it_was() {
    let broken = with(|o| o["metadata"]["annotations"] = json!({ ORIGINAL: "{}" }));
    let mut object = broken.clone();
    assert!(matches!(
        inject(&mut object, &Options::default()),
        Err(Error::Lost(_))
    ));
    assert!(matches!(
        remove(&mut object, &Options::default()),
        Err(Error::Lost(_))
    ));
    assert_eq!(object, broken);
}

#[test]
fn the_models_are_seen_as_the_agent_sees_them_and_written_to_only_where_that_is_asked_for() {
    let mounts = |folder: &str, probe: &str| {
        let mut object = with(|o| {
            o["spec"]["containers"][1]["volumeMounts"] = json!([
                { "name": "all", "mountPath": "/mnt" },
                { "name": "models", "mountPath": "/mnt/agent", "subPath": "a" },
                { "name": "other", "mountPath": "/mnt/agents" },
            ]);
        });
        let mut options = Options::default();
        for (name, value) in [
            ("SHIM_MODELS_DIR", folder),
            ("SHIM_CAPABILITIES_PROBE", probe),
        ] {
            options.settings.insert(name.into(), value.into());
        }
        inject(&mut object, &options).unwrap();
        shim(&object)["volumeMounts"].clone()
    };
    assert_eq!(
        mounts("/mnt/agent/models", "false"),
        json!([{ "name": "models", "mountPath": "/mnt/agent", "subPath": "a", "readOnly": true }])
    );
    assert_eq!(
        mounts("/mnt/agent/models", "true"),
        json!([{ "name": "models", "mountPath": "/mnt/agent", "subPath": "a" }])
    );
    assert_eq!(
        mounts("/mnt/elsewhere", "false"),
        json!([{ "name": "all", "mountPath": "/mnt", "readOnly": true }])
    );
    assert_eq!(mounts("/models", "false"), json!(null));
}

#[test]
fn tls_moves_to_the_shim_with_its_files() {
    let mut object = with(|o| {
        for (name, value) in [
            ("CONTROL_PLANE_SECURITY_PROTOCOL", "SSL"),
            (
                "CONTROL_PLANE_CLIENT_TLS_KEY_LOCATION",
                "/certs/client/tls.key",
            ),
            (
                "CONTROL_PLANE_CLIENT_TLS_CRT_LOCATION",
                "/certs/client/tls.crt",
            ),
            (
                "CONTROL_PLANE_CLIENT_TLS_CA_LOCATION",
                "/certs/client/ca.crt",
            ),
            ("CONTROL_PLANE_SERVER_TLS_SECRET_NAME", ""),
        ] {
            push_env(o, 1, json!({ "name": name, "value": value }));
        }
        o["spec"]["containers"][1]["volumeMounts"] = json!([
            { "name": "models", "mountPath": "/mnt/agent" },
            { "name": "cert", "mountPath": "/cert" },
            { "name": "certs", "mountPath": "/certs/client/" },
        ]);
    });
    inject(&mut object, &Options::default()).unwrap();
    let agent = &object["spec"]["containers"][1];
    assert_eq!(
        env_of(agent, "CONTROL_PLANE_SECURITY_PROTOCOL")["value"],
        "PLAINTEXT"
    );
    let shim = shim(&object);
    assert_eq!(
        shim["volumeMounts"],
        json!([
            { "name": "models", "mountPath": "/mnt/agent", "readOnly": true },
            { "name": "certs", "mountPath": "/certs/client/", "readOnly": true },
        ])
    );
    assert_eq!(
        env_of(shim, "SHIM_SCHEDULER")["value"],
        "seldon-scheduler:9055"
    );
    // The program itself takes what it was given.
    let given = shim["env"].as_array().unwrap().iter().filter_map(|e| {
        Some((
            e["name"].as_str()?.to_string(),
            e["value"].as_str()?.to_string(),
        ))
    });
    let config = crate::config::load_from(given).unwrap().config;
    let tls = config.scheduler.tls.unwrap();
    assert_eq!(tls.ca.to_str(), Some("/certs/client/ca.crt"));
    assert!(tls.identity.is_some());
}

#[test]
fn the_user_is_the_pods_the_images_or_the_servers_and_never_root() {
    let user = |object: Value, share: bool| {
        let mut object = object;
        let options = Options {
            share_process_namespace: share,
            ..Options::default()
        };
        inject(&mut object, &options).unwrap();
        shim(&object)["securityContext"]["runAsUser"].clone()
    };
    assert_eq!(user(pod(), true), Value::Null);
    let root = with(|o| o["spec"]["securityContext"] = json!({ "runAsUser": 0 }));
    assert_eq!(user(root, false), 65532);
    let own = |o: &mut Value| {
        o["spec"]["containers"][2]["securityContext"] = json!({ "runAsUser": 1001 })
    };
    assert_eq!(user(with(own), true), 1001);
    assert_eq!(user(with(own), false), Value::Null);
}

#[test]
fn settings_move_both_sides_and_win_over_what_is_derived() {
    let options = Options {
        settings: [
            ("SHIM_RELAY_HTTP_PORT", "9610"),
            ("SHIM_AGENT_PORT", "9615"),
            ("SHIM_SCHEDULER", "[fd00::1]:9005,b:9005"),
            ("SHIM_DRAIN_TIME", "90s"),
        ]
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .into(),
        ..Options::default()
    };
    let mut object = pod();
    inject(&mut object, &options).unwrap();
    let (agent, shim) = (&object["spec"]["containers"][1], shim(&object));
    assert_eq!(env_of(agent, "SELDON_SERVER_HTTP_PORT")["value"], "9610");
    assert_eq!(env_of(agent, "SELDON_SCHEDULER_PORT")["value"], "9615");
    assert_eq!(
        env_of(shim, "SHIM_SCHEDULER")["value"],
        "[fd00::1]:9005,b:9005"
    );
    assert_eq!(
        env_of(shim, "SHIM_SCHEDULER_STATUS")["value"],
        "[fd00::1]:9004"
    );
    assert!(env::duplicates(shim).is_empty());
}
