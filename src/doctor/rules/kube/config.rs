//! Servers, ServerConfigs, Models: what was asked for, and what the operator made of it.

use super::{Checked, facts, kubectl, settled};
use crate::doctor::evidence::Evidence;
use crate::doctor::evidence::kube::{KubeFacts, ServerFact};
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};

const CAPABILITIES: &str = "SELDON_SERVER_CAPABILITIES";

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        id: "AS100",
        name: "server-not-in-namespace",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "there is no such Server in the namespace",
        symptoms: &["Error from server (NotFound): servers.mlops.seldon.io"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "look in the right namespace: --namespace",
        check: |e| settled(no_server(e)),
    },
    Rule {
        id: "AS101",
        name: "server-config-not-found",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "the ServerConfig is not in the operator's namespace",
        symptoms: &[
            "failed to get ServerConfig",
            "ServerConfig.mlops.seldon.io \"mlserver\" not found",
        ],
        needs: &[Need::Kube],
        rules_out: &["workload-not-rendered"],
        fix: "create the ServerConfig in the operator's namespace, which is the only one where it is looked up",
        check: |e| settled(no_config(e)),
    },
    Rule {
        id: "AS102",
        name: "workload-not-rendered",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "the operator has not made the Server's StatefulSet",
        symptoms: &["Failed creating server reconciler", "Failed reconciling"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "read the operator's log: it says what it could not render or write",
        check: |e| settled(not_rendered(e)),
    },
    Rule {
        id: "AS103",
        name: "server-scaled-to-zero",
        link: Link::Pod,
        kind: Kind::Cause,
        title: "the Server has no replicas",
        symptoms: &["waiting for server replicas to connect"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "spec.replicas: 1 in the Server",
        check: |e| settled(no_replicas(e)),
    },
    Rule {
        id: "AS104",
        name: "capabilities-ignored",
        link: Link::Capabilities,
        kind: Kind::Cause,
        title: "the Server's capabilities do not reach the agent",
        symptoms: &["no matching servers are available", "so ignoring event"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "list SELDON_SERVER_CAPABILITIES in env of the agent's container in the ServerConfig: the operator only rewrites what is there",
        check: |e| settled(capabilities_ignored(e)),
    },
    Rule {
        id: "AS105",
        name: "model-not-found",
        link: Link::Placement,
        kind: Kind::Cause,
        title: "there is no such Model in the namespace",
        symptoms: &["Error from server (NotFound): models.mlops.seldon.io"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "apply the Model in this namespace, or name another one with --namespace",
        check: |e| settled(no_model(e)),
    },
    Rule {
        id: "AS106",
        name: "model-names-no-server",
        link: Link::Placement,
        kind: Kind::Cause,
        title: "the Model names a Server that does not exist",
        symptoms: &["no matching servers are available", "Empty server for"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "correct spec.server of the Model, or leave it out",
        check: |e| settled(names_no_server(e)),
    },
];

fn no_server(e: &Evidence) -> Checked {
    let k = facts(e, &["servers"])?;
    let names: Vec<&str> = k.servers.iter().map(|s| s.name.as_str()).collect();
    let Some(asked) = &k.server else {
        return Ok(match names.is_empty() {
            true => Found::broken(
                format!("there is no Server in namespace {}", k.namespace),
                "kubectl get servers.mlops.seldon.io --all-namespaces, then --namespace",
            )
            .into(),
            false => Verdict::CLEAR,
        });
    };
    if names.contains(&asked.as_str()) {
        return Ok(Verdict::CLEAR);
    }
    Ok(Found::broken(
        format!("namespace {} has no Server {asked}", k.namespace),
        "kubectl get servers.mlops.seldon.io --all-namespaces, then --namespace",
    )
    .seen(format!("Servers there: {}", listed(&names)))
    .into())
}

fn no_config(e: &Evidence) -> Checked {
    let k = facts(e, &["servers"])?;
    for server in k.asked_servers() {
        let complaint = complaints(server)
            .find(|words| words.contains("ServerConfig") && words.contains("not found"));
        let missing = match &k.operator_namespace {
            Some(operator) => {
                let readable = match *operator == k.namespace {
                    true => k.unreadable("serverconfigs").is_none(),
                    false => k.unreadable("operator-serverconfigs").is_none(),
                };
                let there = |c: &_| -> bool { config_at(c, operator, &server.config) };
                readable && !k.configs.iter().any(there)
            }
            None => false,
        };
        if complaint.is_none() && !missing {
            continue;
        }
        let operator = k.operator_namespace.as_deref();
        let place = operator.unwrap_or("the operator's namespace");
        let beside = operator != Some(k.namespace.as_str())
            && k.configs
                .iter()
                .any(|c| config_at(c, &k.namespace, &server.config));
        let text = format!(
            "Server {} names ServerConfig {}, which is not in {place}{}",
            server.name,
            server.config,
            match beside {
                true => format!("; it is in {}, where it is never looked up", k.namespace),
                false => String::new(),
            }
        );
        let to = operator.unwrap_or("OPERATOR-NAMESPACE");
        let fix = match beside {
            true => format!(
                "metadata: {{name: {}, namespace: {to}}}   # ServerConfig: apply its manifest again there",
                server.config
            ),
            false => format!(
                "kubectl -n {to} get serverconfigs, and spec.serverConfig: NAME in Server {}",
                server.name
            ),
        };
        return Ok(Found::broken(text, fix)
            .all_seen(complaint.map(|words| format!("Server {}: {words}", server.name)))
            .into());
    }
    Ok(Verdict::CLEAR)
}

fn config_at(
    config: &crate::doctor::evidence::kube::ConfigFact,
    namespace: &str,
    name: &str,
) -> bool {
    config.namespace == namespace && config.name == name
}

/// What a Server's conditions complain of.
fn complaints(server: &ServerFact) -> impl Iterator<Item = &str> {
    let bad = server.conditions.iter().filter(|c| c.status == "False");
    bad.map(|c| c.words.as_str())
}

fn not_rendered(e: &Evidence) -> Checked {
    let k = facts(e, &["servers"])?;
    let unread = ["statefulsets", "deployments"].map(|kind| k.unreadable(kind).is_some());
    for server in k.asked_servers() {
        let rendered = k.workloads.iter().find(|w| w.name == server.name);
        let complaint = complaints(server)
            // Not ready is no failure to render.
            .find(|words| !words.is_empty() && !words.contains("replicas"));
        let text = match rendered {
            None if unread.contains(&true) => continue,
            None => format!(
                "Server {} has no StatefulSet and no Deployment",
                server.name
            ),
            Some(w) if !w.observed => format!(
                "the latest change of {} {} has not been taken up by its controller",
                w.kind, w.name
            ),
            Some(w) if complaint.is_some() => {
                format!(
                    "{} {} is not what Server {} asks for",
                    w.kind, w.name, server.name
                )
            }
            Some(_) => continue,
        };
        let operator = k
            .operator_namespace
            .as_deref()
            .unwrap_or("OPERATOR-NAMESPACE");
        return Ok(Found::broken(
            text,
            format!(
                "kubectl -n {operator} logs deploy/seldon-v2-controller-manager | grep {}",
                server.name
            ),
        )
        .all_seen(complaint.map(|words| format!("Server {}: {words}", server.name)))
        .into());
    }
    Ok(match k.workloads.is_empty() {
        true => Verdict::CLEAR,
        false => Verdict::Clear("the operator has rendered the Server".into()),
    })
}

fn no_replicas(e: &Evidence) -> Checked {
    let k = facts(e, &["servers"])?;
    for server in k.asked_servers() {
        let workload = k.workloads.iter().find(|w| w.name == server.name);
        let scaled = workload.is_some_and(|w| w.replicas == 0);
        if server.replicas == 0 || scaled {
            return Ok(Found::broken(
                format!("Server {} is scaled to 0 replicas", server.name),
                kubectl(
                    k,
                    &format!("scale servers.mlops.seldon.io {} --replicas=1", server.name),
                ),
            )
            .seen(format!(
                "Server {}: spec.replicas {}",
                server.name, server.replicas
            ))
            .all_seen(
                workload.map(|w| format!("{} {}: spec.replicas {}", w.kind, w.name, w.replicas)),
            )
            .into());
        }
    }
    Ok(Verdict::CLEAR)
}

fn capabilities_ignored(e: &Evidence) -> Checked {
    let k = facts(e, &["servers"])?;
    for server in k.asked_servers() {
        let wanted = match server.capabilities.is_empty() {
            false => &server.capabilities,
            true if server.extra_capabilities.is_empty() => continue,
            true => &server.extra_capabilities,
        };
        let Some(workload) = k.workloads.iter().find(|w| w.name == server.name) else {
            continue;
        };
        let found = |text: String, seen: String| {
            let line = format!(
                "- {{name: {CAPABILITIES}, value: \"\"}}   # in env of container agent, ServerConfig {}",
                server.config
            );
            Found::broken(text, line)
                .seen(format!(
                    "Server {}: capabilities {}",
                    server.name,
                    wanted.join(",")
                ))
                .seen(seen)
        };
        let mut with = workload
            .containers
            .iter()
            .filter(|c| c.env.iter().any(|v| v.name == CAPABILITIES));
        let Some(container) = with.clone().find(|c| !c.init) else {
            let place = match with.next() {
                Some(c) => format!("only init container {} lists {CAPABILITIES}", c.name),
                None => format!("no container lists {CAPABILITIES}"),
            };
            return Ok(found(
                format!(
                    "the capabilities of Server {} are ignored: {place}",
                    server.name
                ),
                format!("{} {}: {place}", workload.kind, workload.name),
            )
            .into());
        };
        let Some(value) = container.value(CAPABILITIES) else {
            continue;
        };
        let has: Vec<&str> = value.split(',').map(str::trim).collect();
        if let Some(missing) = wanted.iter().find(|w| !has.contains(&w.trim())) {
            return Ok(found(
                format!(
                    "capability {missing} of Server {} has not reached container {}",
                    server.name, container.name
                ),
                format!(
                    "{} {}: {CAPABILITIES}={value}",
                    workload.kind, workload.name
                ),
            )
            .into());
        }
        if has.contains(&"") {
            return Ok(found(
                format!("the capabilities of Server {} hold an empty name, because they were added to an empty value: use spec.capabilities", server.name),
                format!("{} {}: {CAPABILITIES}={value}", workload.kind, workload.name),
            )
            .into());
        }
    }
    Ok(Verdict::CLEAR)
}

fn no_model(e: &Evidence) -> Checked {
    let Some(asked) = &e.asked_model else {
        return Ok(Verdict::CLEAR);
    };
    let k = facts(e, &["models"])?;
    if k.models.iter().any(|m| m.name == *asked) {
        return Ok(Verdict::CLEAR);
    }
    let names: Vec<&str> = k.models.iter().map(|m| m.name.as_str()).collect();
    Ok(Found::broken(
        format!("namespace {} has no Model {asked}", k.namespace),
        "kubectl get models.mlops.seldon.io --all-namespaces, then --namespace",
    )
    .seen(format!("Models there: {}", listed(&names)))
    .into())
}

fn names_no_server(e: &Evidence) -> Checked {
    let k = facts(e, &["models", "servers"])?;
    let asked = |name: &String| e.asked_model.as_ref().is_none_or(|m| m == name);
    for model in k.models.iter().filter(|m| asked(&m.name)) {
        let Some(server) = &model.server else {
            continue;
        };
        if k.servers.iter().any(|s| s.name == *server) {
            continue;
        }
        return Ok(Found::broken(
            format!("Model {} asks for Server {server}, which is not in {}", model.name, k.namespace),
            kubectl(k, &format!("patch models.mlops.seldon.io {} --type merge -p '{{\"spec\":{{\"server\":\"{}\"}}}}'", model.name, suggestion(k, server))),
        )
        .seen(format!("Servers there: {}", listed(&names(k))))
        .into());
    }
    Ok(Verdict::CLEAR)
}

fn names(k: &KubeFacts) -> Vec<&str> {
    k.servers.iter().map(|s| s.name.as_str()).collect()
}

fn suggestion<'a>(k: &'a KubeFacts, asked: &str) -> &'a str {
    let near = crate::nearest::nearest(asked, names(k));
    near.or(names(k).first().copied()).unwrap_or("NAME")
}

/// At most ten names.
fn listed(names: &[&str]) -> String {
    match names {
        [] => "none".into(),
        names if names.len() <= 10 => names.join(", "),
        names => format!("{} and {} more", names[..10].join(", "), names.len() - 10),
    }
}
