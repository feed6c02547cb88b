//! The shim itself, and the agent: does it run, and does it go through the shim?

use crate::admin::status::SubscriptionStatus;
use crate::doctor::evidence::{Evidence, Vantage};
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};

/// How long an agent may take to subscribe once everything is there for it.
const PATIENCE_S: f64 = 60.0;
/// How long an agent may take whose server has come only now, or whose pod has.
const FIRST_S: f64 = 90.0;
/// How long an agent that was subscribed may take to come back: it does so at once where only its
/// stream has ended.
const BACK_S: f64 = 5.0;
/// How long nobody may listen where the agent called itself ready: in a pod that ends, the server and
/// the shim are told by then.
const ABSENT_S: f64 = 10.0;
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
        id: "AS023",
        name: "callers-wait",
        link: Link::Shim,
        kind: Kind::Cause,
        title: "as many calls run as the shim carries at once",
        symptoms: &["every place is taken and none is idle: new connections wait until others end"],
        needs: &[Need::Status],
        rules_out: &[],
        fix: "more replicas of the server, or look whose calls do not end: agent_shim_relay_running_calls, and the server's own log",
        check: callers_wait,
    },
    Rule {
        id: "AS030",
        name: "agent-past-the-shim",
        link: Link::Agent,
        kind: Kind::Cause,
        title: "the agent does not go through the shim",
        symptoms: &["the agent has not subscribed, or its subscription has ended"],
        needs: &[Need::Subscription],
        rules_out: &["agent-not-subscribed", "agent-gone", "not-registered"],
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
        rules_out: &["agent-not-subscribed", "agent-gone"],
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
        id: "AS034",
        name: "agent-gone",
        link: Link::Agent,
        kind: Kind::Cause,
        title: "the agent was there and is gone",
        symptoms: &[
            "the subscription has ended",
            "received EOF",
            "Failed to subscribe",
        ],
        needs: &[Need::Status],
        rules_out: &["agent-not-subscribed", "not-registered"],
        fix: "kubectl logs POD -c agent --previous: its process has ended, or hangs",
        check: gone,
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

fn callers_wait(e: &Evidence) -> Verdict {
    let Some(around) = e.status.as_ref().map(|s| &s.around) else {
        return Verdict::CLEAR;
    };
    let Some(for_s) = around.places_full_s else {
        return Verdict::CLEAR;
    };
    let text = format!(
        "new connections to a relay have waited for {for_s:.0}s: it carries {} at once, and a call runs on each; those that are open go on, and the others come in as calls end",
        around.places
    );
    Found::broken(
        text,
        "kubectl scale server NAME --replicas N   # or look why the calls do not end: the server is slow, or callers never read",
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
        // One that has been here is another rule's.
        "none" if !s.server.is_empty() || drains(e) => Verdict::CLEAR,
        "none" if waited(e, s) < FIRST_S => Verdict::Unknown(format!(
            "no agent has subscribed yet; it is given {FIRST_S:.0}s from when the server answers, and {:.0}s of them are over",
            waited(e, s)
        )),
        "none" => Found::broken(
            format!("no agent has ever subscribed, {:.0}s after the shim and the server were there for it: it is not running, waits for its other services, or goes past the shim", waited(e, s)),
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

/// For how long an agent could have subscribed.
fn waited(e: &Evidence, s: &SubscriptionStatus) -> f64 {
    let served = e.status.as_ref().and_then(|d| d.around.usable_s);
    s.for_s.min(served.unwrap_or(0.0))
}

fn gone(e: &Evidence) -> Verdict {
    let Some(status) = &e.status else {
        return Verdict::CLEAR;
    };
    let Some(s) = e.subscription() else {
        return absent(e, status.agent.absent_s);
    };
    // Without a server the agent ends by itself, and that is another link's fault.
    if s.phase != "none" || s.server.is_empty() || !e.server_up() {
        return Verdict::CLEAR;
    }
    // In a pod that ends it goes before the shim does: when it has handed its models over, or when a
    // drain without it is over, and then SIGTERM comes here soon as well.
    let drain = &status.drain;
    let over = drain.state != "draining" && drain.for_s < TERMINATION_S;
    let ends = drains(e) && (drain.agent_drains || over);
    if status.around.stopping || s.draining_s.is_some() || ends {
        return Verdict::CLEAR;
    }
    if s.for_s < BACK_S {
        return Verdict::Unknown(format!(
            "the agent's subscription ended {:.0}s ago; it is given {BACK_S:.0}s to come back",
            s.for_s
        ));
    }
    let known = (!matches!(status.agent.state.as_str(), "" | "unknown" | "ready"))
        .then(|| status.agent.reason.clone());
    Found::broken(
        format!(
            "the agent of {} ended its subscription {:.0}s ago and has not come back, although the server answers: its process has ended, or hangs; requests are served while its proxy lives, and the scheduler has taken this replica out",
            e.who(),
            s.for_s
        ),
        "kubectl logs POD -c agent --previous; kubectl describe pod POD   # its last state: OOMKilled, Error, CrashLoopBackOff?",
    )
    .all_seen(known)
    .into()
}

/// As [`gone`], where the agent does not subscribe through the shim.
fn absent(e: &Evidence, for_s: Option<f64>) -> Verdict {
    let Some(for_s) = for_s.filter(|_| e.server_up() && !drains(e)) else {
        return Verdict::CLEAR;
    };
    if for_s < ABSENT_S {
        return Verdict::Unknown(format!(
            "nobody has listened on the agent's readiness port for {for_s:.0}s; it is given {ABSENT_S:.0}s to be started again"
        ));
    }
    Found::broken(
        format!("nobody has listened for {for_s:.0}s on the port on which the agent called itself ready, although the server answers: its process has ended, and nothing comes to the server"),
        "kubectl logs POD -c agent --previous; kubectl describe pod POD   # its last state: OOMKilled, Error, CrashLoopBackOff?",
    )
    .into()
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
