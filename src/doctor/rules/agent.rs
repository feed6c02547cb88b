//! The shim itself, and the agent: does it run, and does it go through the shim?

use crate::admin::status::SubscriptionStatus;
use crate::doctor::evidence::{Evidence, Vantage};
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};

/// How long an agent may take to subscribe once everything is there for it.
const PATIENCE_S: f64 = 60.0;
/// How long SIGTERM may take after a drain that was called for has ended.
const TERMINATION_S: f64 = 10.0;
/// What brings an agent back that is alive and does nothing.
const RESTART: &str = "kubectl exec POD -c agent -- kill 1   # and give it a livenessProbe on the shim: GET :9680/livez/agent";

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        id: "AS020",
        name: "shim-unreachable",
        link: Link::Shim,
        kind: Kind::Cause,
        title: "the shim does not answer",
        symptoms: &["no answer from http://127.0.0.1:9680/status"],
        needs: &[],
        rules_out: &[],
        fix: "kubectl logs POD -c agent-shim --previous",
        check: shim_unreachable,
    },
    Rule {
        id: "AS021",
        name: "shim-stopping",
        link: Link::Shim,
        kind: Kind::Cause,
        title: "the shim was told to stop",
        symptoms: &["told to stop", "the shim was told to stop"],
        needs: &[Need::Status],
        rules_out: &["agent-draining", "agent-not-subscribed"],
        fix: "nothing, where the pod is being ended; else look who sent SIGTERM (kubectl describe pod POD)",
        check: shim_stopping,
    },
    Rule {
        id: "AS022",
        name: "descriptors-short",
        link: Link::Shim,
        kind: Kind::Cause,
        title: "the shim has no descriptors left for more callers",
        symptoms: &["Too many open files", "cannot accept a connection"],
        needs: &[Need::Status],
        rules_out: &[],
        fix: "raise the limit on open files of the container runtime (hard limit, `ulimit -Hn`), or look who opens so many connections",
        check: descriptors_short,
    },
    Rule {
        id: "AS030",
        name: "agent-past-the-shim",
        link: Link::Agent,
        kind: Kind::Cause,
        title: "the agent does not go through the shim",
        symptoms: &["the agent has not subscribed, or its subscription has ended"],
        needs: &[Need::Subscription],
        rules_out: &["agent-not-subscribed", "not-registered"],
        fix: "give the agent SELDON_SERVER_HTTP_PORT=9600, SELDON_SERVER_GRPC_PORT=9650, SELDON_SCHEDULER_HOST=127.0.0.1 and SELDON_SCHEDULER_PORT=9605",
        check: past_the_shim,
    },
    Rule {
        id: "AS031",
        name: "agent-stuck",
        link: Link::Agent,
        kind: Kind::Cause,
        title: "the agent is alive and stuck",
        symptoms: &[
            "Readiness probe failed: HTTP probe failed with statuscode: 404",
            "Stopping control loop",
        ],
        needs: &[Need::Agent],
        rules_out: &["agent-not-subscribed"],
        fix: "restart the agent's container: kubectl exec POD -c agent -- kill 1",
        check: stuck,
    },
    Rule {
        id: "AS032",
        name: "agent-not-subscribed",
        link: Link::Agent,
        kind: Kind::Effect,
        title: "the agent does not subscribe",
        symptoms: &[
            "All critical agent subservices ready",
            "Starting control loop",
        ],
        needs: &[Need::Subscription],
        rules_out: &[],
        fix: "kubectl logs POD -c agent",
        check: not_subscribed,
    },
    Rule {
        id: "AS033",
        name: "agent-draining",
        link: Link::Agent,
        kind: Kind::Cause,
        title: "the agent drains although the pod is not ending",
        symptoms: &["Draining", "isDraining", "drainer"],
        needs: &[Need::Status],
        rules_out: &["agent-not-subscribed", "not-registered"],
        fix: "restart the agent's container: its drain never ends by itself",
        check: draining,
    },
];

fn shim_unreachable(e: &Evidence) -> Verdict {
    let Some(why) = e.missing(Need::Status) else {
        let mode = e.status.as_ref().map_or("", |s| &s.mode);
        return Verdict::Clear(format!("it answers, in mode {mode}"));
    };
    if e.vantage != Vantage::Pod {
        return Verdict::Unknown(why);
    }
    Found::broken(
        "the shim of this pod does not answer on its admin port",
        "kubectl logs POD -c agent-shim --previous; kubectl logs POD -c agent-shim",
    )
    .seen(why)
    .into()
}

fn descriptors_short(e: &Evidence) -> Verdict {
    let Some(around) = e.status.as_ref().map(|s| &s.around) else {
        return Verdict::Clear(String::new());
    };
    let Some(for_s) = around.places_short_s else {
        return Verdict::Clear(String::new());
    };
    let text = format!(
        "new connections to a relay have waited for {for_s:.0}s: the limit on descriptors allows {} at once, and a call runs on each; those that are open go on",
        around.places
    );
    Found::broken(
        text,
        "raise the hard limit on open files of the container runtime, or look who opens so many connections",
    )
    .into()
}

fn shim_stopping(e: &Evidence) -> Verdict {
    if !e.status.as_ref().is_some_and(|s| s.around.stopping) {
        return Verdict::CLEAR;
    }
    Found::broken(
        "the shim was told to stop: the pod is ending, and its replica is leaving the scheduler",
        "kubectl describe pod POD   # who ends it: a scale-down, an eviction, a new version?",
    )
    .into()
}

fn setting<'a>(e: &'a Evidence, of: &str, name: &str) -> Option<&'a str> {
    // Of a name that is set twice the later one wins in the container.
    let found = e.environment.iter().rev();
    let mut found = found.filter(|v| v.of == of && v.name == name);
    found.next().map(|v| v.value.as_str())
}

fn past_the_shim(e: &Evidence) -> Verdict {
    let Some(s) = e.subscription() else {
        return Verdict::CLEAR;
    };
    if s.phase != "none" {
        return Verdict::CLEAR;
    }
    let fix = "on the agent container: SELDON_SCHEDULER_HOST: \"127.0.0.1\", SELDON_SCHEDULER_PORT: \"9605\", SELDON_SERVER_HTTP_PORT: \"9600\", SELDON_SERVER_GRPC_PORT: \"9650\"";
    let port = setting(e, "agent", "SELDON_SCHEDULER_PORT");
    let host = setting(e, "agent", "SELDON_SCHEDULER_HOST");
    let own = setting(e, "agent-shim", "SHIM_AGENT_PORT").unwrap_or("9605");
    if port.is_some() || host.is_some() {
        let (host, port) = (host.unwrap_or("0.0.0.0"), port.unwrap_or("9005"));
        if port == own {
            return Verdict::CLEAR;
        }
        return Found::broken(
            format!("the agent goes to the scheduler at {host}:{port} itself, past the shim: nothing that it reports is corrected"),
            fix,
        )
        .seen(format!("agent: SELDON_SCHEDULER_HOST={host} SELDON_SCHEDULER_PORT={port}"))
        .into();
    }
    // Without its environment the scheduler can tell: it lists a replica that never came by here.
    let listed = !s.server.is_empty() && e.our_replica().is_some() && s.for_s > PATIENCE_S;
    if listed {
        return Found::broken(
            format!("the scheduler lists {} although its agent is not subscribed through the shim: it goes past it", e.who()),
            fix,
        )
        .into();
    }
    Verdict::CLEAR
}

fn stuck(e: &Evidence) -> Verdict {
    let fresh = e.agent.as_ref().and_then(|a| a.ready);
    let known = e.status.as_ref().map(|s| &s.agent);
    // The shim has looked for minutes; a single good answer of now says more than that.
    if let Some(known) = known.filter(|a| a.state == "stuck" && fresh != Some(200)) {
        return Found::broken(
            "the agent is alive and takes no work, although the server answers, the scheduler can be reached and nothing drains: it has given up and does not end",
            RESTART,
        )
        .seen(known.reason.clone())
        .into();
    }
    let Some(agent) = &e.agent else {
        return match known {
            Some(a) if a.state == "ready" => {
                Verdict::Clear("the agent says that it is ready".into())
            }
            Some(a) => Verdict::Unknown(a.reason.clone()),
            None => Verdict::CLEAR,
        };
    };
    match agent.ready {
        Some(200) => Verdict::Clear("the agent says that it is ready".into()),
        None => match &agent.ready_error {
            Some(why) => Verdict::Unknown(format!(
                "the agent's readiness on 9008 (releases before 2.9.1 have none): {why}"
            )),
            None => Verdict::CLEAR,
        },
        Some(code) => {
            let reached = e
                .agent_service()
                .is_none_or(|p| p.outcome == crate::doctor::evidence::PortOutcome::Connected);
            let waiting = e.subscription().is_some_and(|s| s.phase == "held");
            if !e.server_up() || !reached || waiting || drains(e) {
                // It says so because of something else.
                return Verdict::CLEAR;
            }
            let young = |s: &&SubscriptionStatus| s.phase == "none" && s.for_s < PATIENCE_S;
            if let Some(s) = e.subscription().filter(young) {
                return Verdict::Unknown(format!(
                    "the agent is not ready ({code}) and has had no subscription for {:.0}s; it is given {PATIENCE_S:.0}s to start",
                    s.for_s
                ));
            }
            Found::broken(
                format!("the agent answers {code} on its readiness port although the server answers and the scheduler can be reached: it has given up and does not end"),
                RESTART,
            )
            .seen(format!("GET http://127.0.0.1:9008/ready: {code}"))
            .into()
        }
    }
}

/// Whether a drain is why the agent takes no work.
fn drains(e: &Evidence) -> bool {
    let pod = e.status.as_ref().is_some_and(|s| {
        s.around.stopping || matches!(s.drain.state.as_str(), "draining" | "drained" | "gave-up")
    });
    pod || e.subscription().is_some_and(|s| s.draining_s.is_some())
}

fn not_subscribed(e: &Evidence) -> Verdict {
    let Some(s) = e.subscription() else {
        return Verdict::CLEAR;
    };
    match s.phase.as_str() {
        "none" if !e.server_up() => Verdict::CLEAR,
        "none" if s.for_s < PATIENCE_S => Verdict::Unknown(format!(
            "the agent has not subscribed for {:.0}s; it is given {PATIENCE_S:.0}s",
            s.for_s
        )),
        "none" => Found::broken(
            format!("the agent has not subscribed for {:.0}s although the server answers: it is not running, waits for its other services, or goes past the shim", s.for_s),
            "kubectl logs POD -c agent; its SELDON_SCHEDULER_HOST and SELDON_SCHEDULER_PORT must be those of the shim (127.0.0.1, 9605)",
        )
        .into(),
        "held" => {
            let what = s.detail.clone().unwrap_or_default();
            let found = format!("the agent's subscription is held for {what}, for {:.0}s now", s.for_s);
            if e.server_up() && s.for_s < PATIENCE_S {
                return Verdict::Unknown(found);
            }
            Found::broken(found, "mend what it waits for; it goes on by itself after SHIM_SUBSCRIBE_HOLD").into()
        }
        _ => Verdict::Clear("the agent goes through the shim".into()),
    }
}

fn draining(e: &Evidence) -> Verdict {
    let Some(status) = &e.status else {
        return Verdict::CLEAR;
    };
    let drain = &status.drain;
    let called = matches!(drain.state.as_str(), "draining" | "drained" | "gave-up");
    let asked = e.subscription().and_then(|s| s.draining_s);
    let since = asked.or((called && drain.agent_drains).then_some(drain.for_s));
    let Some(since) = since.filter(|_| !status.around.stopping) else {
        return Verdict::CLEAR;
    };
    // A pod that ends calls for a drain first, and is told to stop when that is over.
    if called && (drain.state == "draining" || drain.for_s < TERMINATION_S) {
        return Verdict::Unknown(
            "the pod drains, as it was called to: whether it ends is known when SIGTERM comes"
                .into(),
        );
    }
    let mut found = Found::broken(
        format!(
            "the agent drained {} {since:.0}s ago although the pod is not ending: the scheduler places nothing on it any more",
            e.who()
        ),
        "kubectl exec POD -c agent -- kill 1   # three calls of /terminate on 9007 within 100 ms begin a drain: look for preStop hooks of containers that only restarted",
    );
    if let Some(asked) = asked {
        found = found.seen(format!(
            "the agent's AgentDrain passed through the shim {asked:.0}s ago, without SIGTERM"
        ));
    }
    if called {
        found = found.seen(format!(
            "/drain ended {:.0}s ago ({}), without SIGTERM",
            drain.for_s, drain.summary
        ));
    }
    found.into()
}
