//! The model: does the scheduler know it, may it come here, does it load, and is it still there?

use crate::doctor::evidence::Evidence;
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};
use crate::nearest::nearest;
use crate::registration::facts::ModelFact;

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        id: "AS080",
        name: "model-unknown",
        link: Link::Placement,
        kind: Kind::Cause,
        title: "the scheduler does not know the model",
        symptoms: &["failed to find model", "model not found"],
        needs: &[Need::Scheduler],
        rules_out: &[],
        fix: "kubectl get model -A: is it in a namespace that this scheduler serves?",
        check: unknown,
    },
    Rule {
        id: "AS081",
        name: "model-pinned-nowhere",
        link: Link::Placement,
        kind: Kind::Cause,
        title: "the model names a server that the scheduler does not have",
        symptoms: &["Failed to schedule model as no matching servers are available"],
        needs: &[Need::Scheduler],
        rules_out: &["model-not-scheduled"],
        fix: "correct Model.spec.server, or remove it",
        check: pinned_nowhere,
    },
    Rule {
        id: "AS082",
        name: "model-pinned-elsewhere",
        link: Link::Placement,
        kind: Kind::Cause,
        title: "the model names another server",
        symptoms: &["Failed to schedule model as no matching server"],
        needs: &[Need::Scheduler, Need::Subscription],
        rules_out: &["model-not-scheduled"],
        fix: "look at that server, or change Model.spec.server",
        check: pinned_elsewhere,
    },
    Rule {
        id: "AS083",
        name: "server-not-shared",
        link: Link::Placement,
        kind: Kind::Cause,
        title: "the server takes only models that name it",
        symptoms: &["Failed to schedule model as no matching servers are available"],
        needs: &[Need::Scheduler, Need::Subscription],
        rules_out: &["model-not-scheduled"],
        fix: "Model.spec.server: NAME",
        check: not_shared,
    },
    Rule {
        id: "AS084",
        name: "too-few-replicas",
        link: Link::Placement,
        kind: Kind::Cause,
        title: "the model wants more replicas than the server has",
        symptoms: &["Failed to schedule model as no matching server had enough suitable replicas"],
        needs: &[Need::Scheduler],
        rules_out: &["model-not-scheduled"],
        fix: "scale the Server, or lower Model.spec.replicas",
        check: too_few,
    },
    Rule {
        id: "AS089",
        name: "model-not-scheduled",
        link: Link::Placement,
        kind: Kind::Effect,
        title: "the model is not scheduled",
        symptoms: &[
            "Empty server for test-model-simple:1 so ignoring event",
            "ScheduleFailed",
            "Failed to schedule model",
        ],
        needs: &[Need::Scheduler],
        rules_out: &[],
        fix: "mend what comes before it; the scheduler tries again when an agent connects, or when the Model is applied again",
        check: not_scheduled,
    },
    Rule {
        id: "AS090",
        name: "model-load-failed",
        link: Link::Load,
        kind: Kind::Cause,
        title: "the server failed to load the model",
        symptoms: &[
            "ModelFailed",
            "LoadFailed",
            "rpc error: code = InvalidArgument",
        ],
        needs: &[Need::Scheduler],
        rules_out: &[],
        fix: "look at the server's own message and at its log",
        check: load_failed,
    },
    Rule {
        id: "AS095",
        name: "model-lost",
        link: Link::Traffic,
        kind: Kind::Cause,
        title: "the scheduler believes in a model that the server has lost",
        symptoms: &["Model test-model-simple_1 not found", "404 Not Found"],
        needs: &[Need::Scheduler, Need::Subscription],
        rules_out: &[],
        fix: "a request for it loads it again; kubectl exec POD -c agent -- kill 1 brings all of them back",
        check: lost,
    },
];

fn unknown(e: &Evidence) -> Verdict {
    let (Some(asked), Some(facts)) = (&e.asked_model, &e.scheduler) else {
        return Verdict::CLEAR;
    };
    if let Some(model) = facts.models.iter().find(|m| m.name == *asked) {
        return Verdict::Clear(format!(
            "the scheduler knows {asked} in version {}, as {}",
            model.version, model.state
        ));
    }
    if !facts.complete {
        return Verdict::Unknown("only models in trouble are known here".into());
    }
    let known = facts.models.iter().map(|m| m.name.as_str());
    let hint =
        nearest(asked, known).map_or_else(String::new, |n| format!("; the nearest name is {n:?}"));
    Found::broken(
        format!("the scheduler does not know a model {asked:?}, of {} that it knows{hint}", facts.models.len()),
        format!("kubectl get model -A | grep {asked}   # its namespace must be one that this scheduler serves"),
    )
    .into()
}

fn stuck(e: &Evidence) -> impl Iterator<Item = &ModelFact> {
    e.models().filter(|m| m.in_trouble())
}

fn pinned_nowhere(e: &Evidence) -> Verdict {
    let Some(facts) = e.scheduler.as_ref().filter(|f| f.complete) else {
        return Verdict::CLEAR;
    };
    for model in stuck(e) {
        let Some(pinned) = &model.pinned else {
            continue;
        };
        if facts.servers.iter().any(|s| s.name == *pinned) {
            continue;
        }
        let names: Vec<&str> = facts.servers.iter().map(|s| s.name.as_str()).collect();
        let hint = nearest(pinned, names.iter().copied())
            .map_or_else(String::new, |n| format!(": {n:?} is near"));
        return Found::broken(
            format!("model {} names the server {pinned:?}, and the scheduler has no replica of it; it has {}{hint}", model.name, list(&names)),
            format!("Model.spec.server of {}: {}; or remove the field", model.name, names.first().unwrap_or(&"NAME")),
        )
        .seen(format!("the scheduler: {}", model.reason))
        .into();
    }
    Verdict::CLEAR
}

fn list(names: &[&str]) -> String {
    match names {
        [] => "none".into(),
        names => names.join(", "),
    }
}

fn pinned_elsewhere(e: &Evidence) -> Verdict {
    let (Some(facts), Some(s)) = (&e.scheduler, e.subscription()) else {
        return Verdict::CLEAR;
    };
    // Asked about one model: it is no fault of this pod that others are elsewhere.
    if e.asked_model.is_none() || s.server.is_empty() {
        return Verdict::CLEAR;
    }
    for model in stuck(e) {
        let there =
            |name: &&String| **name != s.server && facts.servers.iter().any(|f| f.name == **name);
        if let Some(pinned) = model.pinned.as_ref().filter(there) {
            return Found::broken(
                format!("model {} names the server {pinned:?}, and this pod is {}: whatever is wrong with it is wrong there", model.name, e.who()),
                format!("kubectl exec {pinned}-0 -c agent-shim -- agent-shim doctor {}; or Model.spec.server: {:?}", model.name, s.server),
            )
            .seen(format!("the scheduler: {}", model.reason))
            .into();
        }
    }
    Verdict::CLEAR
}

fn not_shared(e: &Evidence) -> Verdict {
    let Some(s) = e.subscription().filter(|s| s.shared == Some(false)) else {
        return Verdict::CLEAR;
    };
    for model in stuck(e).filter(|m| m.no_server() && m.pinned.is_none()) {
        let reported = e.status.iter().flat_map(|d| &d.capabilities.reported);
        let reported: Vec<&str> = reported.map(String::as_str).collect();
        // A requirement that is missing is missing for a model that names the server as well.
        if model
            .requirements
            .iter()
            .all(|r| reported.contains(&r.trim()))
        {
            return Found::broken(
                format!("server {} is not shared, and model {} does not name it: it takes only models that do", s.server, model.name),
                format!("Model.spec.server of {}: {:?}", model.name, s.server),
            )
            .seen(format!("the scheduler: {}", model.reason))
            .into();
        }
    }
    Verdict::CLEAR
}

fn too_few(e: &Evidence) -> Verdict {
    for model in e.troubled().filter(|m| m.no_replica() && m.wanted > 1) {
        let ours = model
            .pinned
            .clone()
            .or_else(|| e.subscription().map(|s| s.server.clone()));
        let servers = e.scheduler.iter().flat_map(|s| &s.servers);
        let mine = servers.filter(|s| ours.as_ref().is_none_or(|name| *name == s.name));
        let Some(most) = mine.max_by_key(|s| s.replicas.len()) else {
            continue;
        };
        let there = most.replicas.len();
        if (model.wanted as usize) > there {
            return Found::broken(
                format!(
                    "model {} wants {} replicas, and {} has {there}",
                    model.name, model.wanted, most.name
                ),
                format!(
                    "kubectl scale server {} --replicas {}; or Model.spec.replicas of {}: {there}",
                    most.name, model.wanted, model.name
                ),
            )
            .seen(format!("the scheduler: {}", model.reason))
            .into();
        }
    }
    Verdict::CLEAR
}

fn not_scheduled(e: &Evidence) -> Verdict {
    let all: Vec<&ModelFact> = e
        .troubled()
        .filter(|m| m.state == "schedule-failed")
        .collect();
    let Some(first) = all.first() else {
        let placed = e.models().filter(|m| !m.server.is_empty()).count();
        return match (&e.asked_model, e.models().next()) {
            (Some(_), Some(m)) if !m.server.is_empty() => {
                Verdict::Clear(format!("{} is placed on {}", m.name, m.server))
            }
            _ if placed > 0 => Verdict::Clear(format!("{placed} models are placed")),
            _ => Verdict::CLEAR,
        };
    };
    let more = match all.len() - 1 {
        0 => String::new(),
        n => format!("; and {n} more"),
    };
    Found::broken(
        format!("model {} is not scheduled: {}{more}", first.name, first.reason),
        format!("kubectl get model {} -o yaml   # when the cause is mended: kubectl apply it again, or restart an agent", first.name),
    )
    .all_seen(all.iter().skip(1).take(5).map(|m| format!("model {}: {}", m.name, m.reason)))
    .into()
}

fn load_failed(e: &Evidence) -> Verdict {
    let mut failed = e
        .troubled()
        .filter(|m| m.state == "failed" && !m.failed_for_memory());
    let Some(model) = failed.next() else {
        return Verdict::CLEAR;
    };
    let own = model
        .replicas
        .iter()
        .map(|(_, _, why)| why)
        .find(|why| !why.is_empty());
    let said = own.unwrap_or(&model.reason);
    Found::broken(
        format!("model {} could not be loaded; the server says: {said}", model.name),
        format!("kubectl logs POD -c mlserver | grep {0}; then kubectl apply the Model {0} again: the scheduler does not load it a second time by itself", model.name),
    )
    .all_seen(failed.take(5).map(|m| format!("model {}: {}", m.name, m.reason)))
    .into()
}

/// Models that the scheduler counts on here, and those of them that the server does not have.
/// `None` where nothing can be said: the server is away, or the agent itself takes models out of
/// memory and brings them back.
pub(in crate::doctor) fn counted_on(e: &Evidence) -> Option<(usize, Vec<String>)> {
    let (status, s) = (e.status.as_ref()?, e.subscription()?);
    if s.over_commit > 0 || !e.server_up() {
        return None;
    }
    let alone = e
        .our_server()
        .is_some_and(|server| server.replicas.len() == 1);
    let ours = |m: &ModelFact| {
        let index = |(i, ..): &(i32, i32, String)| u32::try_from(*i) == Ok(s.replica);
        alone || m.replicas.iter().any(index)
    };
    let here = e
        .models()
        .filter(|m| m.state == "available" && m.server == s.server && ours(m));
    let here: Vec<&ModelFact> = here.collect();
    let is_accounted_for = |m: &ModelFact| {
        let name = format!("{}_{}", m.name, m.version);
        let loaded = |i: &crate::models::Model| i.name == name && i.state == "READY";
        // Of what a restart has taken other rules speak.
        status.models.iter().any(loaded) || status.restoring.iter().any(|r| r.model == name)
    };
    let gone = here.iter().filter(|m| !is_accounted_for(m));
    Some((here.len(), gone.map(|m| m.name.clone()).collect()))
}

fn lost(e: &Evidence) -> Verdict {
    let Some(status) = &e.status else {
        return Verdict::CLEAR;
    };
    let Some(index) = status
        .server
        .as_ref()
        .filter(|i| i.error.is_none() && i.read_at.is_some())
    else {
        return Verdict::Unknown("the server's list of models has not been read".into());
    };
    let Some((here, gone)) = counted_on(e) else {
        return Verdict::CLEAR;
    };
    let text = match gone.len() {
        0 if here == 0 => return Verdict::CLEAR,
        0 => {
            return Verdict::Clear(format!(
                "{here} models that the scheduler counts on are loaded here"
            ));
        }
        1 => format!(
            "model {} is available to the scheduler, and the server does not have it",
            gone[0]
        ),
        n => format!(
            "{n} models are available to the scheduler, and the server does not have them: {}",
            gone[..n.min(5)].join(", ")
        ),
    };
    Found::broken(
        format!("{text}: it was restarted after they were loaded, and nobody has told the agent"),
        "kubectl exec POD -c agent -- kill 1   # it loads every model again when it comes back",
    )
    .seen(format!(
        "the server's list was read at {}",
        index.read_at.as_deref().unwrap_or("?")
    ))
    .into()
}
