//! The shim's own place in the pod: is it there, once, and does the agent go through it?

use super::{Checked, facts, settled};
use crate::doctor::evidence::Evidence;
use crate::doctor::evidence::kube::{ContainerFact, pod};
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        id: "AS130",
        name: "shim-not-injected",
        link: Link::Shim,
        kind: Kind::Cause,
        title: "the pod has no agent-shim",
        symptoms: &["container agent-shim is not valid for pod"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "inject it: agent-shim inject, or the chart's webhook, then let the pod be made again",
        check: |e| settled(not_injected(e)),
    },
    Rule {
        id: "AS131",
        name: "shim-injected-twice",
        link: Link::Shim,
        kind: Kind::Cause,
        title: "the pod has more than one agent-shim",
        symptoms: &["address already in use"],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "inject in one place only: the ServerConfig, the Server, or the webhook",
        check: |e| settled(injected_twice(e)),
    },
    Rule {
        id: "AS132",
        name: "agent-flags-beat-variables",
        link: Link::Agent,
        kind: Kind::Cause,
        title: "flags of the agent beat the variables that lead it through the shim",
        symptoms: &["Setting inference-http-port from SELDON_SERVER_HTTP_PORT"],
        needs: &[Need::Kube],
        rules_out: &["agent-bypasses-shim"],
        fix: "take the flags off the agent's command line, in the ServerConfig",
        check: |e| settled(flags(e)),
    },
    Rule {
        id: "AS133",
        name: "agent-bypasses-shim",
        link: Link::Agent,
        kind: Kind::Cause,
        title: "the agent's variables do not lead through the shim",
        symptoms: &[
            "Waiting for Inference Server service to become ready",
            "connect: connection refused",
        ],
        needs: &[Need::Kube],
        rules_out: &[],
        fix: "SELDON_SERVER_HTTP_PORT and SELDON_SERVER_GRPC_PORT of the agent have to be the shim's ports",
        check: |e| settled(bypasses(e)),
    },
];

fn not_injected(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    for p in k.asked_pods() {
        if p.agent().is_some() && pod::shims(&p.containers).next().is_none() {
            return Ok(Found::warning(
                format!(
                    "pod {} has no agent-shim: its agent dials the server and the scheduler itself",
                    p.name
                ),
                "agent-shim inject, or the chart's webhook, then kubectl delete pod",
            )
            .seen(format!("containers: {}", names(&p.containers)))
            .into());
        }
    }
    Ok(Verdict::CLEAR)
}

fn injected_twice(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    for p in k.asked_pods() {
        let shims: Vec<&str> = pod::shims(&p.containers).map(|c| c.name.as_str()).collect();
        if shims.len() > 1 {
            return Ok(Found::broken(
                format!(
                    "pod {} has {} shims, which fight for the same ports",
                    p.name,
                    shims.len()
                ),
                format!(
                    "take container {} out of the ServerConfig or the Server",
                    shims[1]
                ),
            )
            .seen(format!("containers: {}", shims.join(", ")))
            .into());
        }
    }
    Ok(Verdict::CLEAR)
}

fn names(all: &[ContainerFact]) -> String {
    let all: Vec<&str> = all.iter().map(|c| c.name.as_str()).collect();
    all.join(", ")
}

/// Flags that decide where the agent dials.
const DIALS: [&str; 6] = [
    "inference-host",
    "inference-http-port",
    "inference-grpc-port",
    "scheduler-host",
    "scheduler-port",
    "scheduler-tls-port",
];

fn flags(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    for p in k.asked_pods() {
        let (Some(agent), Some(_)) = (p.agent(), pod::shims(&p.containers).next()) else {
            continue;
        };
        let given: Vec<&str> = agent
            .flags
            .iter()
            .filter(|f| {
                let f = f.trim_start_matches('-');
                DIALS.contains(&f.split('=').next().unwrap_or_default())
            })
            .map(String::as_str)
            .collect();
        if !given.is_empty() {
            return Ok(Found::broken(
                format!(
                    "flags of the agent of pod {} beat the variables that lead it through the shim",
                    p.name
                ),
                format!(
                    "take {} out of args of container agent, in the ServerConfig",
                    given.join(" ")
                ),
            )
            .seen(format!("container agent: {}", given.join(" ")))
            .into());
        }
    }
    Ok(Verdict::CLEAR)
}

fn bypasses(e: &Evidence) -> Checked {
    let k = facts(e, &["pods"])?;
    for p in k.asked_pods() {
        let (Some(agent), Some(shim)) = (p.agent(), pod::shims(&p.containers).next()) else {
            continue;
        };
        let at = |name: &str, usual: &str| shim.value(name).unwrap_or(usual).to_string();
        let mut expected = vec![
            (
                "SELDON_SERVER_HTTP_PORT",
                at("SHIM_RELAY_HTTP_PORT", "9600"),
            ),
            (
                "SELDON_SERVER_GRPC_PORT",
                at("SHIM_RELAY_GRPC_PORT", "9650"),
            ),
        ];
        if shim.variable("SHIM_SCHEDULER").is_some() {
            expected.push(("SELDON_SCHEDULER_PORT", at("SHIM_AGENT_PORT", "9605")));
        }
        for (name, port) in expected {
            let seen = match agent.variable(name) {
                // From elsewhere: what it is cannot be seen.
                Some(variable) if variable.value.is_none() => continue,
                Some(variable) => variable.value.clone().unwrap_or_default(),
                None => "not set".into(),
            };
            if seen != port {
                return Ok(Found::broken(
                    format!("the agent of pod {} goes past the shim: {name} is {seen}, and the shim listens on {port}", p.name),
                    format!("- {{name: {name}, value: \"{port}\"}}   # in env of container agent, in spec.podSpec of the Server"),
                )
                .seen(format!("container agent: {name} {seen}"))
                .into());
            }
        }
    }
    Ok(Verdict::CLEAR)
}
