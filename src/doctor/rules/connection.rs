//! The way to the scheduler: its name, its port, and TLS. One outcome of one connection, so that
//! exactly one rule claims a scheduler that cannot be reached.

use super::scheduler::refusal;
use crate::doctor::evidence::{Evidence, PortFact, PortOutcome, PortUse};
use crate::doctor::rule::{Found, Link, Need, Rule, Verdict};

const fn port(
    id: &'static str,
    name: &'static str,
    link: Link,
    check: fn(&Evidence) -> Verdict,
) -> Rule {
    Rule::cause(id, name, link, &[Need::Ports], check)
}

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        title: "the scheduler's name does not resolve",
        symptoms: &[
            "no such host",
            "cannot look up seldon-scheduler",
            "Temporary failure in name resolution",
            "dial tcp: lookup seldon-scheduler",
        ],
        fix: "name the scheduler with its namespace: seldon-scheduler.NAMESPACE.svc.cluster.local; allow egress to port 53 (UDP and TCP)",
        ..port("AS040", "scheduler-unresolved", Link::Names, |e| {
            claim(e, PortOutcome::Unresolved)
        })
    },
    Rule {
        title: "the scheduler's port refuses",
        symptoms: &[
            "dial tcp 10.0.0.1:9005: connect: connection refused",
            "Scheduler not ready",
        ],
        fix: "kubectl get pods -l app=seldon-scheduler: is it running, and is the port 9005 (9055 with TLS)?",
        ..port("AS041", "scheduler-refused", Link::Network, |e| {
            claim(e, PortOutcome::Refused)
        })
    },
    Rule {
        title: "packets to the scheduler are dropped",
        symptoms: &[
            "dial tcp 10.0.0.1:9005: i/o timeout",
            "no connection within 3s",
        ],
        fix: "a NetworkPolicy must allow egress from this namespace, and ingress in the scheduler's, for TCP 9002, 9004 and 9005 (9044 and 9055 with TLS)",
        ..port("AS042", "scheduler-dropped", Link::Network, |e| {
            claim(e, PortOutcome::TimedOut)
        })
    },
    Rule {
        title: "the connection to the scheduler is closed before an answer",
        symptoms: &[
            "connection reset by peer",
            "error reading server preface: EOF",
        ],
        fix: "look for a proxy or service mesh between the two, and at the scheduler's log",
        ..port("AS043", "scheduler-reset", Link::Network, |e| {
            claim(e, PortOutcome::Reset)
        })
    },
    Rule {
        title: "something else than the scheduler's agent service listens there",
        symptoms: &[
            "unknown service seldon.mlops.agent.AgentService",
            "cannot speak HTTP/2 to",
            "Unimplemented",
        ],
        fix: "SHIM_SCHEDULER is the agent service: port 9005, or 9055 with TLS; 9004 and 9044 are for SHIM_SCHEDULER_STATUS, 9002 is Envoy's",
        rules_out: &["agent-not-subscribed", "not-registered"],
        ..port("AS044", "scheduler-wrong-port", Link::Network, |e| {
            claim(e, PortOutcome::WrongProtocol)
        })
    },
    Rule {
        title: "the scheduler takes connections and does not answer",
        symptoms: &[
            "did not answer within 10s",
            "no answer within 5s",
            "error reading server preface: context deadline exceeded",
        ],
        fix: "look at the scheduler's log and at the processor time it gets; restart it: kubectl rollout restart statefulset seldon-scheduler",
        rules_out: &["agent-not-subscribed", "not-registered"],
        ..port("AS052", "scheduler-silent", Link::Network, silent)
    },
    Rule {
        title: "the scheduler's certificate is not trusted",
        symptoms: &[
            "x509: certificate signed by unknown authority",
            "UnknownIssuer",
        ],
        fix: "SHIM_SCHEDULER_CA_FILE must name the CA that signed the scheduler's certificate",
        ..port("AS045", "scheduler-tls-untrusted", Link::Tls, |e| {
            claim(e, PortOutcome::TlsUntrusted)
        })
    },
    Rule {
        title: "the scheduler's certificate has expired",
        symptoms: &[
            "x509: certificate has expired or is not yet valid",
            "certificate expired",
        ],
        fix: "renew the scheduler's certificate and restart the scheduler",
        ..port("AS046", "scheduler-tls-expired", Link::Tls, |e| {
            claim(e, PortOutcome::TlsExpired)
        })
    },
    Rule {
        title: "the scheduler's certificate is for another name",
        symptoms: &["x509: certificate is valid for", "NotValidForName"],
        fix: "use a name in SHIM_SCHEDULER that is in the certificate",
        ..port("AS047", "scheduler-tls-name", Link::Tls, |e| {
            claim(e, PortOutcome::TlsWrongName)
        })
    },
    Rule {
        title: "the scheduler ends the TLS handshake",
        symptoms: &[
            "tls: bad certificate",
            "remote error: tls: certificate required",
            "CertificateRequired",
        ],
        fix: "give the shim the agent's client certificate: SHIM_SCHEDULER_CERT_FILE and SHIM_SCHEDULER_KEY_FILE",
        ..port("AS048", "scheduler-tls-refused", Link::Tls, |e| {
            claim(e, PortOutcome::TlsRefused)
        })
    },
    Rule {
        title: "the scheduler speaks plain text on this port",
        symptoms: &[
            "tls: first record does not look like a TLS handshake",
            "the scheduler does not speak TLS on this port",
        ],
        fix: "SHIM_SCHEDULER_TLS: \"off\" with port 9005, or port 9055 with TLS",
        ..port("AS049", "scheduler-not-tls", Link::Tls, |e| {
            claim(e, PortOutcome::NotTls)
        })
    },
    Rule {
        title: "the scheduler wants TLS",
        symptoms: &["http2: server sent GOAWAY", "error reading server preface"],
        fix: "SHIM_SCHEDULER_TLS: \"on\" with SHIM_SCHEDULER_CA_FILE, or port 9005 for plain text",
        ..port("AS050", "scheduler-wants-tls", Link::Tls, |e| {
            claim(e, PortOutcome::WantsTls)
        })
    },
    Rule {
        title: "the files for TLS cannot be used",
        symptoms: &["is the secret with the certificates mounted into this container?"],
        fix: "mount the secret with the certificates into agent-shim as into the agent",
        ..port("AS051", "scheduler-tls-files", Link::Tls, |e| {
            claim(e, PortOutcome::TlsFiles)
        })
    },
];

fn unnamed(target: &str) -> PortFact {
    let (host, port) = target.rsplit_once(':').unwrap_or((target, "0"));
    PortFact {
        purpose: PortUse::AgentService,
        host: host.into(),
        port: port.parse().unwrap_or(0),
        tls: false,
        configured: true,
        outcome: PortOutcome::WrongProtocol,
        detail: String::new(),
        address: None,
        ms: 0,
    }
}

fn words(p: &PortFact, outcome: PortOutcome) -> (String, String) {
    let at = format!("{}:{}", p.host, p.port);
    let policy = "NetworkPolicy, spec.egress: [{to: [{namespaceSelector: {}}], ports: [{port: 9002}, {port: 9004}, {port: 9005}, {port: 9044}, {port: 9055}, {port: 53, protocol: UDP}, {port: 53}]}]";
    match outcome {
        PortOutcome::Unresolved => (
            format!("the scheduler's name {} does not resolve", p.host),
            "SHIM_SCHEDULER: \"seldon-scheduler.NAMESPACE.svc.cluster.local:9005\"; a NetworkPolicy must allow port 53".into(),
        ),
        PortOutcome::Refused => (
            format!("the scheduler refuses connections at {at}: it is not running, or listens on another port"),
            "kubectl get pods -A | grep seldon-scheduler; kubectl get svc seldon-scheduler -o yaml".into(),
        ),
        PortOutcome::TimedOut => (
            format!("connections to the scheduler at {at} are neither accepted nor refused: packets are dropped, as by a NetworkPolicy"),
            policy.into(),
        ),
        PortOutcome::Reset => (
            format!("connections to the scheduler at {at} are closed before an answer"),
            "kubectl logs seldon-scheduler-0 -c scheduler; look for a proxy or mesh between the two".into(),
        ),
        PortOutcome::Silent => (
            format!("the scheduler at {at} takes connections and says nothing on them, where a greeting comes at once: its process is stopped or starved, or a proxy accepts for it"),
            SILENT_FIX.into(),
        ),
        PortOutcome::WrongProtocol => (
            format!("what listens at {at} is not the scheduler's agent service"),
            "SHIM_SCHEDULER: \"HOST:9005\" (9055 with TLS); 9004 and 9044 belong in SHIM_SCHEDULER_STATUS".into(),
        ),
        PortOutcome::TlsUntrusted => (
            format!("the certificate of the scheduler at {at} is not signed by the configured CA"),
            "SHIM_SCHEDULER_CA_FILE: the ca.crt of the secret that the scheduler uses".into(),
        ),
        PortOutcome::TlsExpired => (
            format!("the certificate of the scheduler at {at} has expired or is not valid yet"),
            "renew it (cmctl renew, or the team's own way) and restart the scheduler: kubectl rollout restart statefulset seldon-scheduler".into(),
        ),
        PortOutcome::TlsWrongName => (
            format!("the certificate of the scheduler at {at} is for another name"),
            "SHIM_SCHEDULER: a name that is in the certificate; openssl x509 -noout -ext subjectAltName shows them".into(),
        ),
        PortOutcome::TlsRefused => (
            format!("the scheduler at {at} ends the TLS handshake: it wants a client certificate, or another one"),
            "SHIM_SCHEDULER_CERT_FILE and SHIM_SCHEDULER_KEY_FILE: the tls.crt and tls.key of the agent's secret".into(),
        ),
        PortOutcome::NotTls => (
            format!("the scheduler at {at} speaks plain text, and TLS was tried"),
            "SHIM_SCHEDULER_TLS: \"off\", or port 9055".into(),
        ),
        PortOutcome::WantsTls => (
            format!("the scheduler at {at} speaks TLS, and plain text was tried"),
            "SHIM_SCHEDULER_TLS: \"on\" and SHIM_SCHEDULER_CA_FILE, or port 9005".into(),
        ),
        PortOutcome::TlsFiles => (
            "the files for TLS to the scheduler cannot be used".into(),
            "volumeMounts of agent-shim: the secret that the agent mounts, and SHIM_SCHEDULER_CA_FILE below it".into(),
        ),
        PortOutcome::Connected => (String::new(), String::new()),
    }
}

const SILENT_FIX: &str = "kubectl logs seldon-scheduler-0 -c scheduler --tail 50; kubectl rollout restart statefulset seldon-scheduler";

/// A scheduler that greets nobody; or one whose connection stands, and whose answers do not come.
fn silent(e: &Evidence) -> Verdict {
    let claimed = claim(e, PortOutcome::Silent);
    if matches!(claimed, Verdict::Found(_)) {
        return claimed;
    }
    match e.unanswered().filter(|_| e.is_subscribed()) {
        Some(why) => Found::broken(
            format!("the scheduler keeps its connections and does not answer: {why}; requests are served as before, and no model is placed, moved or removed"),
            SILENT_FIX,
        )
        .seen(format!("what it was asked is what it knows of {}; a scheduler that works answers from memory", e.who()))
        .into(),
        None => Verdict::CLEAR,
    }
}

fn claim(e: &Evidence, mine: PortOutcome) -> Verdict {
    let answered = refusal(e).filter(|why| why.starts_with("Unimplemented"));
    if let (Some(why), PortOutcome::WrongProtocol) = (answered, mine) {
        let at = e.subscription().and_then(|s| s.scheduler.clone());
        let (text, fix) = words(&unnamed(at.as_deref().unwrap_or("it")), mine);
        return Found::broken(text, fix).seen(why).into();
    }
    let Some(p) = e.agent_service() else {
        return match mine {
            PortOutcome::Unresolved => {
                Verdict::Unknown("the shim has not tried to reach the scheduler yet".into())
            }
            _ => Verdict::CLEAR,
        };
    };
    if p.outcome == PortOutcome::Connected {
        let at = format!("{}:{}", p.host, p.port);
        return match mine {
            PortOutcome::Unresolved => Verdict::Clear(format!("{} resolves", p.host)),
            PortOutcome::Refused => Verdict::Clear(format!("{at} takes connections")),
            PortOutcome::TlsUntrusted if p.tls => {
                Verdict::Clear(format!("TLS with {at} is agreed"))
            }
            _ => Verdict::CLEAR,
        };
    }
    if p.outcome != mine {
        return Verdict::CLEAR;
    }
    let (text, fix) = words(&p, mine);
    let mut found = Found::broken(text, fix);
    if !p.detail.is_empty() {
        found = found.seen(p.detail.clone());
    }
    if let Some(s) = e.subscription().filter(|s| s.phase == "unreachable") {
        found = found.seen(format!(
            "the agent's subscription has waited for {:.0}s, with {} attempts",
            s.for_s, s.failures
        ));
    }
    found.into()
}
