//! The way to the scheduler, and what it makes of the replica.

use crate::capacity::quantity::shown;
use crate::doctor::evidence::{Evidence, PortFact, PortOutcome, PortUse};
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};

/// How long the scheduler may take to list a replica that has subscribed.
const PATIENCE_S: f64 = 15.0;

const fn port(
    id: &'static str,
    name: &'static str,
    link: Link,
    check: fn(&Evidence) -> Verdict,
) -> Rule {
    Rule {
        id,
        name,
        link,
        kind: Kind::Cause,
        title: "",
        symptoms: &[],
        needs: &[Need::Ports],
        rules_out: &[],
        fix: "",
        check,
    }
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
    Rule {
        id: "AS054",
        name: "subscription-refused",
        link: Link::Subscribed,
        kind: Kind::Cause,
        title: "the scheduler refuses the subscription",
        symptoms: &[
            "the scheduler refuses the subscription",
            "Received server error",
        ],
        needs: &[Need::Subscription],
        rules_out: &["agent-not-subscribed", "not-registered"],
        fix: "look at the scheduler's log at the time of the refusal",
        check: refused,
    },
    Rule {
        id: "AS055",
        name: "two-agents",
        link: Link::Registered,
        kind: Kind::Cause,
        title: "two agents subscribe as one replica",
        symptoms: &[
            "Subscribe: replica is already connected",
            "the scheduler believes in",
        ],
        needs: &[Need::Subscription],
        rules_out: &["not-registered", "belief-differs"],
        fix: "give each pod a server name and index of its own: look for a second pod with this name in another namespace that uses the same scheduler",
        check: two_agents,
    },
    Rule {
        id: "AS056",
        name: "not-registered",
        link: Link::Registered,
        kind: Kind::Effect,
        title: "subscribed, and the scheduler does not list the replica",
        symptoms: &[
            "Subscribed to scheduler",
            "the scheduler does not list replica",
        ],
        needs: &[Need::Subscription, Need::Scheduler],
        rules_out: &[],
        fix: "a proxy that accepts for a scheduler that is away, or an older subscription of this replica that has not ended: restart the scheduler's pod last",
        check: not_registered,
    },
    Rule {
        id: "AS057",
        name: "waiting-for-replicas",
        link: Link::Registered,
        kind: Kind::Cause,
        title: "the scheduler waits for other replicas",
        symptoms: &[
            "waiting for server replicas to connect",
            "expected replicas",
        ],
        needs: &[Need::Scheduler],
        rules_out: &[],
        fix: "bring the missing replicas up, or scale the Server to what can run: kubectl scale server NAME --replicas N",
        check: waiting,
    },
    Rule {
        id: "AS058",
        name: "belief-differs",
        link: Link::Registered,
        kind: Kind::Effect,
        title: "the scheduler believes another figure than it was told",
        symptoms: &["and was told"],
        needs: &[Need::Subscription],
        rules_out: &[],
        fix: "it is mended by the next subscription, which the shim brings about by itself",
        check: belief_differs,
    },
    Rule {
        id: "AS059",
        name: "state-mismatch",
        link: Link::Registered,
        kind: Kind::Cause,
        title: "the scheduler holds memory back for models that are gone",
        symptoms: &["State mismatch for"],
        needs: &[Need::Subscription],
        rules_out: &[],
        fix: "restart the agent's container when it is idle: the memory comes back with the next subscription",
        check: mismatch,
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

/// A subscription that has stood for this long was not refused.
fn refusal(e: &Evidence) -> Option<&str> {
    let s = e.subscription()?;
    let stands = s.phase == "open" && s.for_s >= PATIENCE_S;
    s.refusal.as_deref().filter(|_| !stands)
}

fn refused(e: &Evidence) -> Verdict {
    let at = e.subscription().and_then(|s| s.scheduler.clone());
    let at = at.unwrap_or_else(|| "the scheduler".into());
    match refusal(e) {
        // That is another service's port, and another rule's.
        Some(why) if why.starts_with("Unimplemented") => Verdict::CLEAR,
        Some(why) => Found::broken(
            format!("{at} refuses the subscription of {}: {why}", e.who()),
            "kubectl logs seldon-scheduler-0 -c scheduler | grep -i subscribe",
        )
        .into(),
        None if e.is_subscribed() => {
            Verdict::Clear(format!("the agent's subscription stands at {at}"))
        }
        None => Verdict::CLEAR,
    }
}

fn two_agents(e: &Evidence) -> Verdict {
    let Some(s) = e.subscription() else {
        return Verdict::CLEAR;
    };
    let fix = "kubectl get pods -A -o wide | grep NAME   # two pods of one name and one scheduler; rename one Server";
    let same = |p: &&crate::doctor::evidence::PeerFact| {
        !s.server.is_empty() && p.server == s.server && p.replica == s.replica
    };
    if let Some(peer) = e.peers.iter().find(same) {
        return Found::broken(
            format!(
                "two agents subscribe as {}: the scheduler serves only the first",
                e.who()
            ),
            fix,
        )
        .seen(format!(
            "the shim at {} has a subscription of the same name and index",
            peer.admin
        ))
        .into();
    }
    let Some(agrees) = e.condition("capacity-agrees").filter(|c| !c.status) else {
        return Verdict::CLEAR;
    };
    let capacity = e.status.as_ref().map(|s| &s.capacity);
    let totals = capacity.and_then(|c| Some((c.reported?, c.believed?)));
    match totals {
        Some((told, believed)) if told != believed && e.is_subscribed() && s.for_s >= PATIENCE_S => {
            Found::broken(
                format!(
                    "the scheduler believes in {} for {} and was told {}: it still listens to another agent of the same name and index",
                    shown(believed), e.who(), shown(told)
                ),
                fix,
            )
            .seen(agrees.reason.clone())
            .into()
        }
        _ => Verdict::CLEAR,
    }
}

fn belief_differs(e: &Evidence) -> Verdict {
    match e.condition("capacity-agrees") {
        Some(c) if !c.status && e.is_subscribed() => Found::broken(
            c.reason.clone(),
            "wait for the next subscription; kubectl exec POD -c agent -- kill 1 brings it about",
        )
        .into(),
        Some(c) if c.status => Verdict::Clear(c.reason.clone()),
        _ => Verdict::CLEAR,
    }
}

fn not_registered(e: &Evidence) -> Verdict {
    let Some(s) = e.subscription() else {
        return Verdict::CLEAR;
    };
    if !e.is_subscribed() {
        return Verdict::CLEAR;
    }
    if e.our_replica().is_some() {
        return Verdict::Clear(format!("the scheduler lists {}", e.who()));
    }
    if s.for_s < PATIENCE_S {
        return Verdict::Unknown(format!(
            "{} subscribed {:.0}s ago, and is not listed yet",
            e.who(),
            s.for_s
        ));
    }
    Found::broken(
        format!("{} subscribed {:.0}s ago and the scheduler does not list it: its agent service waits for an older subscription of this replica to end, or something in between accepted for it", e.who(), s.for_s),
        "kubectl rollout restart statefulset seldon-scheduler   # ends every older subscription",
    )
    .all_seen(e.condition("registered").map(|c| c.reason.clone()))
    .into()
}

fn waiting(e: &Evidence) -> Verdict {
    let ours = e.subscription().map(|s| s.server.as_str());
    let servers = e.scheduler.iter().flat_map(|s| &s.servers);
    let short = servers
        .filter(|s| ours.is_none_or(|name| name.is_empty() || name == s.name))
        .find(|s| s.expected > s.available);
    let Some(server) = short else {
        return Verdict::CLEAR;
    };
    let text = format!(
        "the scheduler expects {} replicas of {} and {} are there",
        server.expected, server.name, server.available
    );
    let fix = format!(
        "kubectl get pods | grep {0}; or kubectl scale server {0} --replicas {1}",
        server.name,
        server.available.max(1)
    );
    let waits = e
        .troubled()
        .any(|m| m.no_server() || m.reason.contains("waiting"));
    if waits {
        let text = format!(
            "{text}: after its start it places nothing until all have connected, or ten minutes have passed"
        );
        Found::broken(text, fix).into()
    } else {
        Found::warning(text, fix).into()
    }
}

fn mismatch(e: &Evidence) -> Verdict {
    match e.subscription().map(|s| s.mismatches) {
        Some(n) if n > 0 => Found::warning(
            format!("the scheduler has refused {n} of the agent's events (\"State mismatch\"): memory that it holds back for models that were deleted while they were loading comes back only with the next subscription"),
            "kubectl exec POD -c agent -- kill 1   # when it is idle",
        )
        .into(),
        _ => Verdict::CLEAR,
    }
}
