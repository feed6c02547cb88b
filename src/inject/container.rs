//! The shim's own container.

use serde_json::{Map, Value, json};

use super::agent::Plan;
use super::edit::{Editor, path};
use super::env::{self, variable};
use super::target::{Kind, Target};
use super::{Error, Options, Style, mode_setting};

/// The user id that images without a root account mean by "nobody".
const UNPRIVILEGED: u64 = 65532;

/// Puts the container and its volumes into the pod.
pub(super) fn place(
    editor: &mut Editor<'_>,
    target: &Target,
    options: &Options,
    plan: &Plan,
) -> Result<(), Error> {
    let container = build(editor.root(), target, options, plan);
    // Last: what a mesh puts in front must be up before the shim dials the scheduler, and an
    // ordinary init container must not wait for it.
    let list = match options.style {
        Style::Native => "initContainers",
        Style::Plain => "containers",
    };
    editor.append(&target.list(list), container)?;
    for volume in &plan.volumes {
        editor.put(&target.list("volumes"), volume.clone())?;
    }
    let host_pid = target.field(editor.root(), "hostPID") == Some(&Value::Bool(true));
    if options.share_process_namespace && !host_pid {
        let place = path(&target.spec, ["shareProcessNamespace"]);
        editor.set(&place, json!(true))?;
    }
    Ok(())
}

fn build(object: &Value, target: &Target, options: &Options, plan: &Plan) -> Value {
    let mut c = Map::new();
    let mut add = |key: &str, value: Value| c.insert(key.into(), value);
    add("name", json!(options.shim));
    add("image", json!(options.image));
    if let Some(policy) = &options.pull_policy {
        add("imagePullPolicy", json!(policy));
    }
    if options.style == Style::Native {
        add("restartPolicy", json!("Always"));
    }
    add(
        "env",
        Value::Array(environment(object, target, options, plan)),
    );
    let admin = options.port("SHIM_ADMIN_PORT");
    add(
        "ports",
        json!([{ "name": "shim-admin", "containerPort": admin, "protocol": "TCP" }]),
    );
    add("resources", resources(options));
    let get = |path: &str| json!({ "path": path, "port": admin });
    // Up within two seconds, because /startupz never waits for the server: that one may not
    // even have started.
    add(
        "startupProbe",
        json!({
            "httpGet": get("/startupz"), "periodSeconds": 1, "timeoutSeconds": 2,
            "failureThreshold": options.startup_seconds,
        }),
    );
    // The verdict is damped already (three failures make an endpoint `down`), so two suffice.
    add(
        "readinessProbe",
        json!({
            "httpGet": get("/readyz"), "periodSeconds": 5, "timeoutSeconds": 2,
            "failureThreshold": 2,
        }),
    );
    // Never about the server, and slow: a restart of the shim cuts every call it carries.
    add(
        "livenessProbe",
        json!({
            "httpGet": get("/livez"), "periodSeconds": 10, "timeoutSeconds": 5,
            "failureThreshold": 3,
        }),
    );
    add("securityContext", security(object, target, options));
    add("terminationMessagePolicy", json!("FallbackToLogsOnError"));
    if !plan.mounts.is_empty() {
        add("volumeMounts", Value::Array(plan.mounts.clone()));
    }
    Value::Object(c)
}

fn environment(object: &Value, target: &Target, options: &Options, plan: &Plan) -> Vec<Value> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let memory = |name: &str, resource: &str| {
        json!({ "name": name, "valueFrom": { "resourceFieldRef": {
            "containerName": options.inference, "resource": resource,
        } } })
    };
    let mut list = vec![
        field("POD_IP", "status.podIP"),
        field("POD_IPS", "status.podIPs"),
        // 0 where there is none; where only a limit is stated Kubernetes makes it the request.
        memory("SHIM_MEMORY_REQUEST", "requests.memory"),
    ];
    // Without a limit this would be the node's allocatable memory, so it is asked for only
    // where one is stated; or may be, by the `Server` or the `ServerConfig` that the pod is made
    // from besides: the shim knows the node's figure when it sees it.
    let limit = target
        .container(object, &options.inference)
        .and_then(|c| c.pointer("/resources/limits/memory"));
    let may_be = matches!(target.kind, Kind::Server | Kind::ServerConfig);
    if limit.is_some() || may_be {
        list.push(memory("SHIM_MEMORY_LIMIT", "limits.memory"));
    }
    list.extend(mode_setting(options.mode).map(|(name, value)| variable(name, value)));
    for entry in &plan.shim {
        // What was carried over from the agent may be what the shim has anyway.
        if !list.iter().any(|e| env::name(e) == env::name(entry)) {
            list.push(entry.clone());
        }
    }
    for (name, value) in &options.settings {
        let entry = variable(name, value);
        match list.iter_mut().find(|e| env::name(e) == name) {
            Some(derived) => *derived = entry,
            None => list.push(entry),
        }
    }
    list
}

/// A quota of the namespace refuses a pod unless every container states all four.
fn resources(options: &Options) -> Value {
    let r = &options.resources;
    let part = |cpu: &str, memory: &str| {
        let mut map = Map::new();
        for (name, quantity) in [("cpu", cpu), ("memory", memory)] {
            if !quantity.is_empty() {
                map.insert(name.into(), json!(quantity));
            }
        }
        map
    };
    let mut out = Map::new();
    for (key, map) in [
        ("requests", part(&r.cpu_request, &r.memory_request)),
        ("limits", part(&r.cpu_limit, &r.memory_limit)),
    ] {
        if !map.is_empty() {
            out.insert(key.into(), Value::Object(map));
        }
    }
    Value::Object(out)
}

/// Passes Pod Security's "restricted". No user id of its own: the pod's, or the image's, which
/// is a number, or one that the platform chooses. Only where the shim is to look into the
/// server's processes it runs as the server does, because else it may not.
fn security(object: &Value, target: &Target, options: &Options) -> Value {
    let mut context = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    let of_server = target
        .container(object, &options.inference)
        .and_then(|c| c.pointer("/securityContext/runAsUser"))
        .and_then(Value::as_u64)
        .filter(|user| options.share_process_namespace && *user > 0);
    let of_pod = target
        .field(object, "securityContext")
        .and_then(|c| c.get("runAsUser"))
        .and_then(Value::as_u64);
    if let Some(user) = of_server {
        context["runAsUser"] = json!(user);
    } else if of_pod == Some(0) {
        // The pod's root would beat the image's user, and the container would not start.
        context["runAsUser"] = json!(UNPRIVILEGED);
    }
    context
}
