//! TLS towards the scheduler moves from the agent to the shim.
//!
//! The agent speaks plain text to the shim over loopback, so its `CONTROL_PLANE_SECURITY_PROTOCOL`
//! becomes `PLAINTEXT`. In the agent that variable decides about the connection to the scheduler
//! and nothing else (its data plane has `ENVOY_SECURITY_PROTOCOL`).

use serde_json::{Value, json};

use super::agent::Plan;
use super::env::{self, Stated, variable};
use super::target::Target;
use super::{Options, Tls, Warning};
use crate::config::scheduler::SELDON_VARIABLES;

const PROTOCOL: &str = "CONTROL_PLANE_SECURITY_PROTOCOL";
const FOLDER: &str = "/etc/agent-shim/tls";

/// Gives the shim what the agent had. Returns whether the scheduler is spoken to with TLS.
pub(super) fn plan(
    plan: &mut Plan,
    agent: &Value,
    target: &Target,
    options: &Options,
    warnings: &mut Vec<Warning>,
) -> bool {
    let stated = env::stated(agent, PROTOCOL);
    let agent_may = match stated {
        Stated::No => target.kind.is_fragment() && matches!(options.tls, Tls::Secrets { .. }),
        Stated::Text(text) => text == "SSL" || !env::references(text).is_empty(),
        Stated::From(_) => true,
    };
    if agent_may {
        plan.agent.push(variable(PROTOCOL, "PLAINTEXT"));
    }
    match &options.tls {
        Tls::Off => {
            plan.tell(variable("SHIM_SCHEDULER_TLS", "off"));
            false
        }
        Tls::Secrets { client, server } => {
            secrets(plan, agent, client, server.as_deref());
            true
        }
        Tls::Auto if !agent_may => false,
        Tls::Auto => {
            if stated != Stated::Text("SSL") {
                warnings.push(Warning {
                    id: "tls-unknown",
                    text: format!("the agent's {PROTOCOL} comes from elsewhere, so it cannot be told here whether the scheduler wants TLS; it is taken to want it"),
                    fix: "say so with --tls-client-secret, or --tls off".into(),
                });
            }
            from_agent(plan, agent, warnings);
            true
        }
    }
}

fn from_agent(plan: &mut Plan, agent: &Value, warnings: &mut Vec<Warning>) {
    let secret = |side: &str| env::stated(agent, &format!("CONTROL_PLANE_{side}_TLS_SECRET_NAME"));
    match (secret("CLIENT"), secret("SERVER")) {
        (Stated::No, Stated::No) => files(plan, agent, warnings),
        (Stated::Text(client), Stated::Text(server)) => secrets(plan, agent, client, Some(server)),
        (Stated::Text(client), Stated::No) => secrets(plan, agent, client, None),
        (Stated::No, _) | (Stated::From(_), _) | (_, Stated::From(_)) => warnings.push(Warning {
            id: "tls-secret-unknown",
            text: "the agent has TLS to the scheduler, and the names of its secrets cannot be told from the manifest: the shim cannot mount them and will not start".into(),
            fix: "name them with --tls-client-secret and --tls-server-secret".into(),
        }),
    }
}

/// The agent reads secrets through the API; the shim has no token, so the pod mounts them. The
/// mode is Kubernetes' own (0644): the user of the pod may be any, and nobody else mounts them.
/// Only what is read is mounted: the server's secret also holds the scheduler's private key.
fn secrets(plan: &mut Plan, agent: &Value, client: &str, server: Option<&str>) {
    let ca = match server {
        Some(_) => key(agent, "CONTROL_PLANE_SERVER_TLS_CA_LOCATION", "ca.crt"),
        None => key(agent, "CONTROL_PLANE_CLIENT_TLS_CA_LOCATION", "ca.crt"),
    };
    let certificate = key(agent, "CONTROL_PLANE_CLIENT_TLS_CRT_LOCATION", "tls.crt");
    let private = key(agent, "CONTROL_PLANE_CLIENT_TLS_KEY_LOCATION", "tls.key");
    let mut own = vec![certificate, private];
    if server.is_none() {
        own.push(ca);
    }
    mount(plan, "client", client, &own);
    if let Some(server) = server {
        mount(plan, "server", server, &[ca]);
    }
    let authority = if server.is_some() { "server" } else { "client" };
    for (setting, value) in [
        ("SHIM_SCHEDULER_TLS", "on".to_string()),
        (
            "SHIM_SCHEDULER_CA_FILE",
            format!("{FOLDER}/{authority}/{ca}"),
        ),
        (
            "SHIM_SCHEDULER_CERT_FILE",
            format!("{FOLDER}/client/{certificate}"),
        ),
        (
            "SHIM_SCHEDULER_KEY_FILE",
            format!("{FOLDER}/client/{private}"),
        ),
    ] {
        plan.tell(variable(setting, &value));
    }
}

/// In a secret the agent looks for keys named as the files that it writes them to.
fn key<'a>(agent: &'a Value, variable: &str, default: &'a str) -> &'a str {
    let location = env::text(agent, variable).unwrap_or(default);
    let name = location.rsplit('/').next().unwrap_or_default();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    // A name that Kubernetes would refuse, such as a reference, is none.
    let usable = !["", ".", ".."].contains(&name) && name.bytes().all(allowed);
    if usable { name } else { default }
}

fn mount(plan: &mut Plan, side: &str, secret: &str, keys: &[&str]) {
    let name = format!("agent-shim-tls-{side}");
    let items: Vec<Value> = (keys.iter().enumerate())
        .filter(|(at, key)| !keys[..*at].contains(key))
        .map(|(_, key)| json!({ "key": key, "path": key }))
        .collect();
    plan.volumes
        .push(json!({ "name": name, "secret": { "secretName": secret, "items": items } }));
    plan.mounts
        .push(json!({ "name": name, "mountPath": format!("{FOLDER}/{side}"), "readOnly": true }));
}

/// The agent has files: the shim gets the same variables, which it knows, and the same mounts.
fn files(plan: &mut Plan, agent: &Value, warnings: &mut Vec<Warning>) {
    for entry in env::with_references(agent, &SELDON_VARIABLES) {
        plan.tell(entry);
    }
    let locations: Vec<&str> = SELDON_VARIABLES[1..]
        .iter()
        .filter_map(|name| env::text(agent, name))
        .collect();
    let mounts = agent.get("volumeMounts").and_then(Value::as_array);
    for mount in mounts.into_iter().flatten() {
        let at = mount.get("mountPath").and_then(Value::as_str).unwrap_or("");
        let at = at.trim_end_matches('/');
        let holds = |file: &&str| {
            !at.is_empty()
                && (file.strip_prefix(at))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if locations.iter().any(holds) {
            let mut mount = mount.clone();
            mount["readOnly"] = json!(true);
            plan.mounts.push(mount);
        }
    }
    if plan.mounts.is_empty() {
        warnings.push(Warning {
            id: "tls-files-unknown",
            text: "the agent has TLS to the scheduler, and no mount of it holds the files that its variables name: the shim cannot read them".into(),
            fix: "name the secrets with --tls-client-secret and --tls-server-secret, or mount the files and set SHIM_SCHEDULER_CA_FILE".into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes(server: Option<&str>, agent: Value) -> Vec<(Value, Value)> {
        let mut made = Plan::default();
        secrets(&mut made, &agent, "own", server);
        let volumes = made.volumes.iter();
        volumes
            .map(|v| {
                let keys = v["secret"]["items"].as_array().unwrap().iter();
                let keys = keys.map(|i| i["key"].clone()).collect();
                (v["secret"]["secretName"].clone(), keys)
            })
            .collect()
    }

    /// The scheduler's own certificate and key are in the second one.
    #[test]
    fn of_the_schedulers_secret_nothing_but_its_authority_is_mounted() {
        let of = |secret: &str, keys: &[&str]| (json!(secret), json!(keys));
        assert_eq!(
            volumes(Some("scheduler"), json!({})),
            [
                of("own", &["tls.crt", "tls.key"]),
                of("scheduler", &["ca.crt"])
            ]
        );
        assert_eq!(
            volumes(None, json!({})),
            [of("own", &["tls.crt", "tls.key", "ca.crt"])]
        );
        let renamed = json!({ "env": [
            { "name": "CONTROL_PLANE_SERVER_TLS_CA_LOCATION", "value": "/tmp/certs/root.pem" },
            { "name": "CONTROL_PLANE_CLIENT_TLS_KEY_LOCATION", "value": "$(FOLDER)/own.key" },
            { "name": "CONTROL_PLANE_CLIENT_TLS_CRT_LOCATION", "value": "/tmp/$(NAME)" },
        ] });
        assert_eq!(
            volumes(Some("scheduler"), renamed),
            [
                of("own", &["tls.crt", "own.key"]),
                of("scheduler", &["root.pem"])
            ]
        );
    }
}
