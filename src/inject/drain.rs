//! preStop hooks on the shim's `/drain`, where [`Options::drain_hook`] asks for them.
//!
//! They stand on the inference server's container, whose SIGTERM cuts the calls that run, and on
//! the agent's, through which those calls go. A container has room for one hook, so Seldon's own
//! on the agent's `/terminate` gives way there (and comes back with `remove`): the shim makes
//! those calls instead. A hook of anybody else's stays, and is warned about.

use serde_json::{Value, json};

use super::agent::Plan;
use super::edit::{Editor, path};
use super::env::variable;
use super::target::Target;
use super::{Error, Options, Warning};
use crate::config::Mode;

/// Whose hook a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    None,
    /// Seldon's, which tells the agent that one more container ends.
    Terminate,
    /// This program's, or one that a person wrote alike.
    Drain,
    Other,
}

/// What the shim is told, and what is in the way.
pub(super) fn plan(
    plan: &mut Plan,
    object: &Value,
    target: &Target,
    options: &Options,
    warnings: &mut Vec<Warning>,
) {
    if !options.drain_hook {
        return;
    }
    if observes(options) {
        warnings.push(Warning {
            id: "drain-hook-left-out",
            text: "in mode observe /drain does nothing, and Seldon's own hooks are needed: none is replaced".into(),
            fix: "leave --drain-hook out, or the mode".into(),
        });
        return;
    }
    // The kubelet calls from the node's address.
    plan.tell(variable("SHIM_DRAIN_ENDPOINT", "true"));
    // Not the hooks that are found: the restart of one container must never make the agent drain.
    plan.tell(variable("SHIM_DRAIN_HOOKS", "2"));
    for name in [&options.inference, &options.agent] {
        let Some(container) = target.container(object, name) else {
            continue;
        };
        if whose(container, options) == Hook::Other {
            warnings.push(Warning {
                id: "own-pre-stop",
                text: format!("container {name} has a preStop hook of its own, which stays: it does not wait for the shim's /drain"),
                fix: "let that hook call /drain of the shim last, or take it out".into(),
            });
        }
    }
}

/// Puts the hooks in.
pub(super) fn place(
    editor: &mut Editor<'_>,
    target: &Target,
    options: &Options,
) -> Result<(), Error> {
    if !options.drain_hook || observes(options) {
        return Ok(());
    }
    let containers = target.list("containers");
    for name in [&options.agent, &options.inference] {
        let Some(container) = target.container(editor.root(), name) else {
            // A fragment: the operator finds the container by its name.
            let hook = json!({ "preStop": hook(options) });
            editor.append(&containers, json!({ "name": name, "lifecycle": hook }))?;
            continue;
        };
        if whose(container, options) != Hook::Other {
            let item = format!("={name}");
            let place = path(&containers, [item.as_str(), "lifecycle", "preStop"]);
            editor.set(&place, hook(options))?;
        }
    }
    Ok(())
}

fn observes(options: &Options) -> bool {
    match options.settings.get("SHIM_MODE") {
        Some(mode) => mode.trim() == Mode::Observe.as_str(),
        None => options.mode == Mode::Observe,
    }
}

fn hook(options: &Options) -> Value {
    json!({ "httpGet": { "path": "/drain", "port": options.port("SHIM_ADMIN_PORT") } })
}

fn whose(container: &Value, options: &Options) -> Hook {
    let Some(there) = container
        .pointer("/lifecycle/preStop")
        .filter(|h| !h.is_null())
    else {
        return Hook::None;
    };
    let get = there.get("httpGet");
    let path = get.and_then(|g| g.get("path")?.as_str());
    match path.map(|p| p.trim_matches('/')) {
        Some("terminate") => Hook::Terminate,
        Some("drain") if *there == hook(options) => Hook::Drain,
        _ => Hook::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{inject, remove};
    use super::*;

    fn pod(server: Value, agent: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
            "spec": { "terminationGracePeriodSeconds": 120, "containers": [
                { "name": "rclone", "lifecycle": seldons() },
                { "name": "agent", "lifecycle": agent },
                { "name": "mlserver", "lifecycle": server },
            ] },
        })
    }

    fn seldons() -> Value {
        json!({ "preStop": { "httpGet": { "port": 9007, "path": "terminate" } } })
    }

    fn with_hooks() -> Options {
        Options {
            drain_hook: true,
            ..Options::default()
        }
    }

    fn lifecycle<'v>(object: &'v Value, name: &str) -> &'v Value {
        let list = object["spec"]["containers"].as_array().unwrap();
        &list.iter().find(|c| c["name"] == name).unwrap()["lifecycle"]
    }

    fn told<'v>(object: &'v Value, name: &str) -> &'v Value {
        let list = object["spec"]["initContainers"][0]["env"].as_array();
        let entry = list.unwrap().iter().find(|e| e["name"] == name);
        entry.map_or(&Value::Null, |e| &e["value"])
    }

    #[test]
    fn seldons_hooks_give_way_on_two_containers_and_come_back() {
        let before = pod(seldons(), seldons());
        let mut object = before.clone();
        let report = inject(&mut object, &with_hooks()).unwrap();
        assert!(!report.warns("own-pre-stop"));
        let ours = json!({ "preStop": { "httpGet": { "path": "/drain", "port": 9680 } } });
        assert_eq!(lifecycle(&object, "mlserver"), &ours);
        assert_eq!(lifecycle(&object, "agent"), &ours);
        assert_eq!(lifecycle(&object, "rclone"), &seldons());
        assert_eq!(told(&object, "SHIM_DRAIN_ENDPOINT"), "true");
        assert_eq!(told(&object, "SHIM_DRAIN_HOOKS"), "2");
        let shim = &object["spec"]["initContainers"][0];
        assert_eq!(shim.get("lifecycle"), None, "it drains on SIGTERM");
        let once = object.clone();
        assert!(!inject(&mut object, &with_hooks()).unwrap().changed);
        assert_eq!(object, once);
        // Without the option, and back.
        inject(&mut object, &Options::default()).unwrap();
        assert_eq!(lifecycle(&object, "mlserver"), &seldons());
        assert_eq!(told(&object, "SHIM_DRAIN_ENDPOINT"), &Value::Null);
        inject(&mut object, &with_hooks()).unwrap();
        assert_eq!(object.to_string(), once.to_string());
        remove(&mut object, &with_hooks()).unwrap();
        assert_eq!(object.to_string(), before.to_string());
    }

    #[test]
    fn a_hook_of_somebody_elses_stays_and_is_told() {
        let own = json!({ "preStop": { "exec": { "command": ["sleep", "9"] } }, "postStart": {} });
        let before = pod(own.clone(), Value::Null);
        let mut object = before.clone();
        let report = inject(&mut object, &with_hooks()).unwrap();
        assert!(report.warns("own-pre-stop"));
        assert_eq!(lifecycle(&object, "mlserver"), &own);
        assert!(lifecycle(&object, "agent")["preStop"]["httpGet"].is_object());
        assert_eq!(told(&object, "SHIM_DRAIN_HOOKS"), "2");
        remove(&mut object, &with_hooks()).unwrap();
        assert_eq!(object.to_string(), before.to_string());
    }

    #[test]
    fn a_mode_that_does_not_drain_leaves_seldons_hooks() {
        let by_setting = [("SHIM_MODE".to_string(), "observe".to_string())];
        for options in [
            Options {
                mode: Mode::Observe,
                ..with_hooks()
            },
            Options {
                settings: by_setting.into(),
                ..with_hooks()
            },
        ] {
            let mut object = pod(seldons(), seldons());
            let report = inject(&mut object, &options).unwrap();
            assert!(report.warns("drain-hook-left-out"));
            assert_eq!(lifecycle(&object, "mlserver"), &seldons());
            assert_eq!(told(&object, "SHIM_DRAIN_ENDPOINT"), &Value::Null);
        }
    }

    #[test]
    fn hooks_and_ports_follow_the_settings() {
        let mut options = with_hooks();
        for (name, value) in [("SHIM_ADMIN_PORT", "9690"), ("SHIM_DRAIN_HOOKS", "3")] {
            options.settings.insert(name.into(), value.into());
        }
        let mut object = pod(Value::Null, seldons());
        object["spec"]["containers"][1]["env"] = json!([
            { "name": "SELDON_DRAINER_PORT", "value": "9107" },
            { "name": "SELDON_READINESS_PORT", "value": "9008" },
        ]);
        inject(&mut object, &options).unwrap();
        for name in ["mlserver", "agent"] {
            let port = lifecycle(&object, name).pointer("/preStop/httpGet/port");
            assert_eq!(port, Some(&json!(9690)), "{name}");
        }
        assert_eq!(told(&object, "SHIM_DRAIN_HOOKS"), "3");
        assert_eq!(told(&object, "SHIM_AGENT_DRAIN_PORT"), "9107");
        assert_eq!(told(&object, "SHIM_AGENT_READY_PORT"), &Value::Null);
    }
}
