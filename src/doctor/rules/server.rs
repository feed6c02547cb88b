//! The inference server: is it there, where, and does it speak what is expected? One judgement,
//! so that exactly one rule claims a server that does not answer.

use crate::doctor::evidence::{Candidate, Evidence};
use crate::doctor::rule::{Found, Link, Need, Rule, Verdict};
use crate::endpoint::Protocol;

const LOG: &str = "kubectl logs POD -c mlserver --previous; kubectl logs POD -c mlserver";

const fn rule(
    id: &'static str,
    name: &'static str,
    link: Link,
    check: fn(&Evidence) -> Verdict,
) -> Rule {
    Rule::cause(id, name, link, &[Need::Server], check)
}

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        title: "the inference server has not started",
        symptoms: &[
            "Waiting for Inference Server service to become ready",
            "dial tcp 0.0.0.0:9500: connect: connection refused",
            "the server has not started yet, or is bound to an address that is not in SHIM_INFERENCE_HOSTS",
        ],
        fix: "look at the server's log: it is still starting, or it has failed before it listened",
        ..rule("AS001", "server-not-started", Link::ServerProcess, |e| {
            claim(e, Fault::NotStarted)
        })
    },
    Rule {
        title: "the inference server crashes and is started again",
        symptoms: &[
            "CrashLoopBackOff",
            "OOMKilled",
            "Back-off restarting failed container",
        ],
        fix: "look at the last log of the container and at its memory limit (exit code 137 is the limit)",
        ..rule("AS002", "server-crash-looping", Link::ServerProcess, |e| {
            claim(e, Fault::CrashLoop)
        })
    },
    Rule {
        title: "the inference server has stopped",
        symptoms: &["nothing listens there any more: the server has stopped or is restarting"],
        fix: "look at the last log of the container; it comes back by itself if its container restarts",
        ..rule("AS003", "server-stopped", Link::ServerProcess, |e| {
            claim(e, Fault::Stopped)
        })
    },
    Rule {
        title: "the inference server accepts connections and does not answer",
        symptoms: &[
            "context deadline exceeded",
            "it accepts connections and does not answer",
        ],
        fix: "delete the pod, since MLServer in this state ignores SIGTERM; it stays so for ever where MLSERVER_HOST is `::`, `[::]` or empty, or where one of its ports is taken",
        ..rule("AS004", "server-wedged", Link::ServerProcess, |e| {
            claim(e, Fault::Wedged)
        })
    },
    Rule {
        title: "the inference server neither accepts nor refuses",
        symptoms: &[
            "i/o timeout",
            "connections are neither accepted nor refused",
        ],
        fix: "look for a stopped process (SIGSTOP, a debugger) and for a firewall within the pod",
        ..rule("AS005", "server-unreachable", Link::ServerProcess, |e| {
            claim(e, Fault::Unreachable)
        })
    },
    Rule {
        title: "the inference server is slow at the moment",
        symptoms: &["stalled: the inference server does not answer"],
        fix: "wait: the first import of a framework, a large body or an index of many models freezes MLServer for seconds",
        ..rule("AS006", "server-stalled", Link::ServerProcess, |e| {
            claim(e, Fault::Stalled)
        })
    },
    Rule {
        title: "the inference server is bound to another address",
        symptoms: &[
            "the server is bound to another address: somebody listens on",
            "connect: connection refused",
        ],
        fix: "set MLSERVER_HOST to 0.0.0.0 or 127.0.0.1, or add the address to SHIM_INFERENCE_HOSTS",
        ..rule(
            "AS010",
            "server-bound-elsewhere",
            Link::ServerListens,
            |e| claim(e, Fault::Elsewhere),
        )
    },
    Rule {
        title: "a host in SHIM_INFERENCE_HOSTS does not resolve",
        symptoms: &["a host name in SHIM_INFERENCE_HOSTS does not resolve"],
        fix: "SHIM_INFERENCE_HOSTS: 127.0.0.1,::1",
        ..rule(
            "AS011",
            "server-host-unresolved",
            Link::ServerListens,
            |e| claim(e, Fault::Dns),
        )
    },
    Rule {
        title: "only one protocol of the inference server answers",
        symptoms: &[
            "only HTTP answers",
            "only gRPC answers",
            "Address already in use",
        ],
        fix: "compare MLSERVER_HTTP_PORT and MLSERVER_GRPC_PORT with SHIM_INFERENCE_HTTP_PORT and SHIM_INFERENCE_GRPC_PORT",
        ..rule("AS012", "server-half-open", Link::ServerListens, |e| {
            claim(e, Fault::OneProtocol)
        })
    },
    Rule {
        title: "the inference server expects TLS",
        symptoms: &[
            "it answers with a TLS alert: it expects TLS",
            "first record does not look like a TLS handshake",
        ],
        fix: "turn TLS off on the server's own ports: the agent speaks plain text to it, and loopback needs no TLS",
        ..rule("AS015", "server-expects-tls", Link::Protocol, |e| {
            claim(e, Fault::Tls)
        })
    },
    Rule {
        title: "something else listens on the inference server's port",
        symptoms: &[
            "does not speak gRPC; compare SHIM_INFERENCE_GRPC_PORT",
            "it answers HTTP/1",
            "http2: frame too large",
            "server preface",
        ],
        fix: "compare SHIM_INFERENCE_GRPC_PORT and SHIM_INFERENCE_HTTP_PORT with the server's MLSERVER_GRPC_PORT and MLSERVER_HTTP_PORT: often they are swapped",
        ..rule("AS016", "server-wrong-protocol", Link::Protocol, |e| {
            claim(e, Fault::WrongProtocol)
        })
    },
    Rule {
        title: "the inference server closes connections before it answers",
        symptoms: &[
            "connection reset by peer",
            "connections are closed before an answer",
        ],
        fix: "look at the server's log: it crashes at the first request, or a proxy stands in between",
        ..rule("AS017", "server-resets", Link::Protocol, |e| {
            claim(e, Fault::Resets)
        })
    },
    Rule {
        title: "the inference server says that it is not live",
        symptoms: &[
            "ServerLive answered live=false",
            "it answers that it is not live",
        ],
        fix: "look at the server's log; restart its container",
        ..rule("AS018", "server-not-live", Link::Protocol, |e| {
            claim(e, Fault::NotLive)
        })
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NotStarted,
    CrashLoop,
    Stopped,
    Wedged,
    Unreachable,
    Stalled,
    Elsewhere,
    Dns,
    OneProtocol,
    Tls,
    WrongProtocol,
    Resets,
    NotLive,
}

/// Restarts within ten minutes that are no accident.
const LOOP: usize = 3;

/// What is wrong with the server, over everything that fails; `Err` while it cannot be told.
fn fault(e: &Evidence, all: &[Candidate]) -> Result<Option<Fault>, String> {
    let restarts = e.status.as_ref().map_or(0, |s| s.around.restarts);
    let of = |p: Protocol| all.iter().filter(move |c| c.protocol == p);
    let up = |p: Protocol| of(p).any(|c| c.answers);
    let failing: Vec<&Candidate> = Protocol::ALL
        .into_iter()
        .filter(|p| !up(*p))
        .flat_map(of)
        .collect();
    if restarts >= LOOP {
        return Ok(Some(Fault::CrashLoop));
    }
    if failing.is_empty() {
        return Ok(None);
    }
    if failing.iter().any(|c| c.open && c.reason.is_none()) {
        return Err("the server has not been probed yet".into());
    }
    let any = |reason: &str| failing.iter().any(|c| c.failed_by(reason));
    let all_refuse = failing
        .iter()
        .all(|c| c.failed_by("refused") || c.failed_by("dns"));
    let silent = failing.iter().filter(|c| c.failed_by("response-timeout"));
    Ok(Some(if failing.iter().any(|c| c.tls) {
        Fault::Tls
    } else if any("protocol") {
        Fault::WrongProtocol
    } else if any("status") {
        Fault::NotLive
    } else if any("response-timeout") {
        if silent.clone().all(|c| c.stalled && c.answered_before) {
            Fault::Stalled
        } else {
            Fault::Wedged
        }
    } else if any("connect-timeout") {
        Fault::Unreachable
    } else if all_refuse && any("refused") {
        let one_is_up = Protocol::ALL.into_iter().any(up);
        if !elsewhere(e).is_empty() {
            Fault::Elsewhere
        } else if one_is_up {
            Fault::OneProtocol
        } else if failing.iter().any(|c| c.answered_before) {
            Fault::Stopped
        } else {
            Fault::NotStarted
        }
    } else if any("dns") {
        Fault::Dns
    } else if any("reset") {
        Fault::Resets
    } else {
        return Err("the probes fail in a way that has no name".into());
    }))
}

/// Addresses that listen at a port of the server although every candidate refuses.
fn elsewhere(e: &Evidence) -> Vec<String> {
    let around = e.status.iter().map(|s| &s.around);
    let mut all: Vec<String> = around
        .flat_map(|a| a.elsewhere_http.iter().chain(&a.elsewhere_grpc))
        .filter_map(|text| text.parse::<std::net::SocketAddr>().ok())
        .map(|address| address.ip().to_string())
        .collect();
    all.sort();
    all.dedup();
    all
}

fn claim(e: &Evidence, mine: Fault) -> Verdict {
    let all = e.candidates();
    let fault = match fault(e, &all) {
        Ok(Some(fault)) if fault == mine => fault,
        // Said once, by the first rule.
        Err(why) if mine == Fault::NotStarted => return Verdict::Unknown(why),
        Ok(None) => return fine(&all, mine),
        Ok(Some(_)) | Err(_) => return Verdict::CLEAR,
    };
    let failing = |p: Protocol| !all.iter().any(|c| c.protocol == p && c.answers);
    let titles: Vec<&str> = Protocol::ALL
        .into_iter()
        .filter(|p| failing(*p))
        .map(Protocol::title)
        .collect();
    let what = titles.join(" and ");
    // An alternative that refuses explains nothing while another one answers.
    let lines = all.iter().filter(|c| failing(c.protocol));
    let lines: Vec<String> = lines.map(Candidate::line).collect();
    let (text, fix) = words(e, fault, &what);
    let found = match fault {
        Fault::Stalled => Found::warning(text, fix),
        // Between two crashes; whatever else is broken is broken now.
        Fault::CrashLoop if titles.is_empty() => Found::warning(text, fix),
        _ => Found::broken(text, fix),
    };
    let process = e.status.as_ref().and_then(|s| s.around.process);
    let mut found = found.all_seen(lines);
    if process == Some(true) && matches!(fault, Fault::NotStarted | Fault::Wedged) {
        found = found.seen("a process of the server is running");
    }
    found.into()
}

fn words(e: &Evidence, fault: Fault, what: &str) -> (String, String) {
    let list = elsewhere(e).join(",");
    let log = LOG.to_string();
    match fault {
        Fault::NotStarted => (
            "nothing listens on the inference server's ports, and it has never answered: it has not started yet, or failed before it listened".into(),
            log,
        ),
        Fault::CrashLoop => (
            format!(
                "the inference server was lost or started anew {} times within ten minutes",
                e.status.as_ref().map_or(0, |s| s.around.restarts)
            ),
            "kubectl logs POD -c mlserver --previous; kubectl get pod POD -o jsonpath='{.status.containerStatuses[?(@.name==\"mlserver\")].lastState}'".into(),
        ),
        Fault::Stopped => (
            "nothing listens on the inference server's ports any more; it answered before: it has stopped, or is starting again".into(),
            log,
        ),
        Fault::Wedged => (
            format!("the inference server accepts {what} connections and does not answer"),
            "kubectl delete pod POD   # MLServer in this state ignores SIGTERM, and no kill -9 from inside its container reaches process 1".into(),
        ),
        Fault::Unreachable => (
            format!("{what} connections to the inference server are neither accepted nor refused: its process is stopped, or packets to it are dropped"),
            "kubectl exec POD -c mlserver -- kill -CONT 1".into(),
        ),
        Fault::Stalled => (
            format!("the inference server is silent on {what} at the moment, for less than the grace: callers are carried on and wait"),
            "wait; if it stays so, restart the server's container".into(),
        ),
        Fault::Elsewhere => (
            format!("the inference server listens on {list}, and not where it is looked for"),
            format!("set MLSERVER_HOST to \"0.0.0.0\" on the mlserver container, or SHIM_INFERENCE_HOSTS: \"127.0.0.1,::1,{list}\" on agent-shim"),
        ),
        Fault::Dns => (
            "a host name in SHIM_INFERENCE_HOSTS does not resolve, and no other candidate answers".into(),
            "SHIM_INFERENCE_HOSTS: \"127.0.0.1,::1\"".into(),
        ),
        Fault::OneProtocol => {
            let variable = if what == Protocol::Http.title() { "HTTP" } else { "GRPC" };
            (
                format!("only one protocol of the inference server answers: nothing listens on the {what} port"),
                format!("compare MLSERVER_{variable}_PORT on mlserver with SHIM_INFERENCE_{variable}_PORT on agent-shim; the server's log says whether the port was taken"),
            )
        }
        Fault::Tls => (
            format!("the inference server expects TLS on its {what} port, and its callers speak plain text"),
            "remove the TLS settings (ssl_keyfile, ssl_certfile) from the server: the agent has no TLS towards it".into(),
        ),
        Fault::WrongProtocol => {
            let variable = if what == Protocol::Http.title() { "HTTP" } else { "GRPC" };
            (
                format!("what listens on the {what} port does not speak {what}"),
                format!("set SHIM_INFERENCE_{variable}_PORT to the server's MLSERVER_{variable}_PORT; often HTTP and gRPC are swapped"),
            )
        }
        Fault::Resets => (
            format!("the inference server closes {what} connections before it answers"),
            log,
        ),
        Fault::NotLive => (
            format!("the inference server itself answers on {what} that it is not live"),
            log,
        ),
    }
}

fn fine(all: &[Candidate], asked: Fault) -> Verdict {
    let at = |p: Protocol| {
        let found = all.iter().find(|c| c.protocol == p && c.answers);
        found.map_or_else(String::new, |c| c.line())
    };
    match asked {
        Fault::NotStarted => Verdict::Clear("the inference server runs".into()),
        Fault::Elsewhere => Verdict::Clear("it listens where it is looked for".into()),
        Fault::WrongProtocol => {
            Verdict::Clear(format!("{}; {}", at(Protocol::Http), at(Protocol::Grpc)))
        }
        _ => Verdict::CLEAR,
    }
}
