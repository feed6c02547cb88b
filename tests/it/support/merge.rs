//! What Seldon's operator makes of a `ServerConfig` and a `Server`: the pod template.
//!
//! Four rules: containers are matched by name and the rest is added, the overriding ones first;
//! lists are appended to, so a variable may stand twice and the later counts; a scalar counts
//! where it is not empty; labels and annotations of both reach the pod, the `Server`'s first.
//! Init containers and volumes are lists like others: never matched by name.

use serde_json::{Map, Value, json};

/// The template: `metadata` and `spec`.
pub fn merge(config: &Value, server: &Value) -> Value {
    let none = json!({});
    let base = &config["spec"]["podSpec"];
    let over = server["spec"].get("podSpec").unwrap_or(&none);
    let mut spec = base.clone();
    deep(&mut spec, over);
    spec["containers"] = containers(&base["containers"], &over["containers"]);
    capabilities(&mut spec, server);
    let mut meta = Map::new();
    for key in ["labels", "annotations"] {
        let mut map = server["metadata"][key]
            .as_object()
            .cloned()
            .unwrap_or_default();
        for (name, value) in config["metadata"][key].as_object().into_iter().flatten() {
            map.entry(name).or_insert_with(|| value.clone());
        }
        meta.insert(key.into(), Value::Object(map));
    }
    json!({ "metadata": meta, "spec": spec })
}

/// The template as the pod that Kubernetes would be asked to run.
pub fn pod(template: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"] })
}

fn deep(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match base.get_mut(key) {
                    Some(there) => deep(there, value),
                    None => {
                        base.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(base), Value::Array(over)) => base.extend(over.iter().cloned()),
        (base, over) => {
            let empty = match over {
                Value::Null | Value::Bool(false) => true,
                Value::String(text) => text.is_empty(),
                Value::Number(n) => n.as_f64() == Some(0.0),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::Bool(true) => false,
            };
            if !empty {
                *base = over.clone();
            }
        }
    }
}

fn containers(base: &Value, over: &Value) -> Value {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let (base, over) = (list(base), list(over));
    let mut out: Vec<Value> = Vec::new();
    for wanted in &over {
        match base.iter().find(|c| c["name"] == wanted["name"]) {
            Some(there) => {
                let mut merged = there.clone();
                deep(&mut merged, wanted);
                out.push(merged);
            }
            None => out.push(wanted.clone()),
        }
    }
    let rest = base
        .iter()
        .filter(|c| !over.iter().any(|o| o["name"] == c["name"]));
    out.extend(rest.cloned());
    Value::Array(out)
}

/// `Server.spec.capabilities` is written over the variable wherever one stands.
fn capabilities(spec: &mut Value, server: &Value) {
    let Some(list) = server["spec"]["capabilities"].as_array() else {
        return;
    };
    let names: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    let containers = spec["containers"].as_array_mut().into_iter().flatten();
    for entry in containers.filter_map(|c| c["env"].as_array_mut()).flatten() {
        if entry["name"] == "SELDON_SERVER_CAPABILITIES" {
            *entry = json!({ "name": "SELDON_SERVER_CAPABILITIES", "value": names.join(",") });
        }
    }
}

/// A container of a pod, init containers included.
pub fn container<'v>(pod: &'v Value, name: &str) -> Option<&'v Value> {
    ["containers", "initContainers"]
        .iter()
        .filter_map(|list| pod["spec"][list].as_array())
        .flatten()
        .find(|c| c["name"] == name)
}

/// The value of a variable as the container's process gets it: the last one counts.
pub fn variable<'v>(container: &'v Value, name: &str) -> Option<&'v str> {
    let list = container["env"].as_array()?;
    list.iter().rfind(|e| e["name"] == name)?["value"].as_str()
}
