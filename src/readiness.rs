//! Conditions, and the verdicts that probes get from them.
//!
//! Local facts only decide readiness: a newer agent waits for its own pod to be ready before it
//! takes work, so a readiness that waited for the scheduler would wait for itself. Pure.

use std::time::Duration;

use crate::endpoint::Protocol;
use crate::view::{Usable, View};

/// One named fact; good when it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its name: closed set, kebab case.
    pub name: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// Why it does or does not, in words.
    pub reason: String,
    /// When it last changed.
    pub since: Duration,
}

/// The names of all conditions, in the order in which they are shown.
pub const NAMES: [&str; 4] = ["probed", "inference-http", "inference-grpc", "not-draining"];

/// Facts that are not in the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Whether SIGTERM has come.
    pub draining: bool,
    /// Whether somebody has called for a drain.
    pub called: bool,
}

/// The conditions of this moment. `before` carries the times of change on.
pub fn conditions(
    view: &View,
    facts: Facts,
    now: Duration,
    before: &[Condition],
) -> Vec<Condition> {
    let probed = if view.all_probed() {
        (true, "every candidate has been probed".to_string())
    } else {
        (false, "not every candidate has been probed yet".to_string())
    };
    let usable = |protocol: Protocol| match view.usable(protocol) {
        Usable::Up => {
            let at = view
                .selected(protocol)
                .map_or_else(String::new, |e| e.candidate.to_string());
            (true, format!("{at} answers"))
        }
        // Slow is not dead: callers are relayed and wait.
        Usable::Stalled => (true, format!("stalled: {}", view.why_not(protocol, now))),
        Usable::Unknown | Usable::Down => (false, view.why_not(protocol, now)),
    };
    let draining = if facts.draining {
        (false, "the shim was told to stop".to_string())
    } else if facts.called {
        (
            false,
            "the pod drains: /drain was called, and no SIGTERM has come yet".to_string(),
        )
    } else {
        (true, "the shim has not been told to stop".to_string())
    };
    let values = [
        probed,
        never_proven(view, Protocol::Http).unwrap_or_else(|| usable(Protocol::Http)),
        never_proven(view, Protocol::Grpc).unwrap_or_else(|| usable(Protocol::Grpc)),
        draining,
    ];
    NAMES
        .into_iter()
        .zip(values)
        .map(|(name, (holds, reason))| {
            let same = before.iter().find(|c| c.name == name && c.holds == holds);
            Condition {
                name,
                holds,
                reason,
                since: same.map_or(now, |c| c.since),
            }
        })
        .collect()
    // `since` of the first look is the start of the process, which is when it began to hold.
}

/// A server that accepts and has never answered is not usable, however short it has been silent:
/// only an answer proves anything.
fn never_proven(view: &View, protocol: Protocol) -> Option<(bool, String)> {
    let stalled = view.usable(protocol) == Usable::Stalled;
    (stalled && view.last_success(protocol).is_none())
        .then(|| (false, view.why_not(protocol, view.updated)))
}

/// Whether the pod should get traffic: every condition holds.
pub fn ready(conditions: &[Condition]) -> bool {
    conditions.iter().all(|c| c.holds)
}

/// Whether the shim has started: its ports are bound (or nobody could ask) and every candidate
/// has been looked at once. It must not wait for the server: a native sidecar's startup probe
/// holds back the very container that the server is in.
pub fn started(conditions: &[Condition]) -> bool {
    conditions.iter().any(|c| c.name == "probed" && c.holds)
}

/// The body of a probe's answer. Short: a line for each unmet condition. Verbose: all of them, in
/// the form of the Kubernetes API server.
pub fn body(name: &str, conditions: &[Condition], ok: bool, verbose: bool) -> String {
    let mut text = String::new();
    for c in conditions {
        if verbose {
            let mark = if c.holds { "[+]" } else { "[-]" };
            let state = if c.holds { "ok" } else { "failed" };
            text.push_str(&format!("{mark}{} {state}: {}\n", c.name, c.reason));
        } else if !c.holds {
            text.push_str(&format!("{}: {}\n", c.name, c.reason));
        }
    }
    match (ok, verbose) {
        (true, false) => "ok\n".into(),
        (true, true) => text + &format!("{name} check passed\n"),
        (false, true) => text + &format!("{name} check failed\n"),
        (false, false) => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Candidate;
    use crate::health::{Health, Outcome, Reason, Thresholds};
    use crate::view::Endpoint;

    fn endpoint(protocol: Protocol, reason: Option<Reason>, answered: bool) -> Endpoint {
        let mut health = Health::new(Thresholds {
            rise: 1,
            fall: 1,
            grace: Duration::from_secs(20),
        });
        let ok = Outcome::Healthy {
            ready: Some(false),
            latency: Duration::ZERO,
        };
        if answered {
            health.observe(&ok, Duration::ZERO);
        }
        if let Some(reason) = reason {
            let bad = Outcome::Unhealthy {
                reason,
                detail: String::new(),
            };
            health.observe(&bad, Duration::from_secs(1));
        }
        let host = "127.0.0.1".parse().unwrap();
        Endpoint::new(
            Candidate {
                host,
                port: 9000,
                protocol,
            },
            health,
        )
    }

    fn unmet(grpc: Endpoint, facts: Facts) -> Vec<&'static str> {
        let view = View {
            endpoints: [vec![endpoint(Protocol::Http, None, true)], vec![grpc]],
            selection: [Some(0), Some(0)],
            elsewhere: Default::default(),
            updated: Duration::from_secs(1),
        };
        conditions(&view, facts, Duration::from_secs(1), &[])
            .into_iter()
            .filter(|c| !c.holds)
            .map(|c| c.name)
            .collect()
    }

    const RUNNING: Facts = Facts {
        draining: false,
        called: false,
    };
    const STOPPING: Facts = Facts {
        draining: true,
        called: false,
    };

    #[test]
    fn only_local_facts_decide_and_a_loading_model_is_not_one_of_them() {
        use Protocol::Grpc;
        // The endpoint's own readiness is false here: some model loads.
        assert!(unmet(endpoint(Grpc, None, true), RUNNING).is_empty());
        assert!(unmet(endpoint(Grpc, Some(Reason::ResponseTimeout), true), RUNNING).is_empty());
        assert_eq!(
            unmet(
                endpoint(Grpc, Some(Reason::ResponseTimeout), false),
                RUNNING
            ),
            ["inference-grpc"]
        );
        assert_eq!(
            unmet(endpoint(Grpc, Some(Reason::Refused), true), RUNNING),
            ["inference-grpc"]
        );
        assert_eq!(
            unmet(endpoint(Grpc, None, true), STOPPING),
            ["not-draining"]
        );
        let called = Facts {
            called: true,
            ..RUNNING
        };
        assert_eq!(unmet(endpoint(Grpc, None, true), called), ["not-draining"]);
        assert_eq!(
            unmet(endpoint(Grpc, None, false), RUNNING),
            ["probed", "inference-grpc"]
        );
    }

    #[test]
    fn the_time_of_change_is_kept_while_nothing_changes() {
        let view = View::default();
        let first = conditions(&view, RUNNING, Duration::from_secs(3), &[]);
        let later = conditions(&view, RUNNING, Duration::from_secs(9), &first);
        assert!(later.iter().all(|c| c.since == Duration::from_secs(3)));
        let changed = conditions(&view, STOPPING, Duration::from_secs(11), &later);
        let times: Vec<u64> = changed.iter().map(|c| c.since.as_secs()).collect();
        assert_eq!(times, [3, 3, 3, 11]);
    }

    #[test]
    fn the_body_names_what_is_unmet_and_verbose_lists_all() {
        let c = |name, holds| Condition {
            name,
            holds,
            reason: "because".into(),
            since: Duration::ZERO,
        };
        let mixed = [c("probed", true), c("not-draining", false)];
        assert_eq!(
            body("readyz", &mixed, false, false),
            "not-draining: because\n"
        );
        assert_eq!(
            body("readyz", &mixed, false, true),
            "[+]probed ok: because\n[-]not-draining failed: because\nreadyz check failed\n"
        );
        assert_eq!(body("readyz", &mixed[..1], true, false), "ok\n");
    }
}
