//! What the scheduler makes of the subscription and of the replica.

use crate::capacity::quantity::shown;
use crate::doctor::evidence::Evidence;
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};

/// How long the scheduler may take to list a replica that has subscribed.
const PATIENCE_S: f64 = 15.0;

/// The rules.
pub const RULES: &[Rule] = &[
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

/// A subscription that has stood for this long was not refused.
pub(super) fn refusal(e: &Evidence) -> Option<&str> {
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
    let subscription = e.subscription().filter(|s| s.phase == "open");
    match subscription.map(|s| (s.held_back, s.mismatches)) {
        Some((n, all)) if n > 0 => Found::warning(
            format!("the scheduler has refused to hear of the end of {n} load{} (\"State mismatch\"): what it holds back for models that were deleted while they were loading comes back only with the next subscription", if n == 1 { "" } else { "s" }),
            "kubectl exec POD -c agent -- kill 1   # when it is idle",
        )
        .seen(format!("\"State mismatch\" answers in all: {all}"))
        .into(),
        _ => Verdict::CLEAR,
    }
}
