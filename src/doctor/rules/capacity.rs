//! Memory for models: is there any, is it the right figure, and does the model fit?

use crate::capacity::AGENT_DEFAULT;
use crate::capacity::quantity::shown;
use crate::doctor::evidence::Evidence;
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};
use crate::registration::facts::{ModelFact, ReplicaFact};

const REQUEST: &str = "Server.spec.podSpec.containers: [{name: mlserver, resources: {requests: {memory: \"4Gi\"}}}]   # or SHIM_MEMORY_BYTES: \"4Gi\" on agent-shim, with SHIM_MODE: correct";

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        id: "AS060",
        name: "memory-zero",
        link: Link::Capacity,
        kind: Kind::Cause,
        title: "the replica has no memory for models",
        symptoms: &["Memory will go below zero 0", "totalMemoryBytes: 0"],
        needs: &[],
        rules_out: &[
            "memory-below-one-model",
            "memory-exhausted",
            "over-commit-above-one-model",
        ],
        fix: "give the container mlserver a memory request: the agent takes its total from it",
        check: zero,
    },
    Rule {
        id: "AS061",
        name: "memory-default",
        link: Link::Capacity,
        kind: Kind::Cause,
        title: "the replica has 1,000,000 bytes for models: the agent's variable is missing",
        symptoms: &["Memory will go below zero 1000000", "memoryBytes: 1000000"],
        needs: &[],
        rules_out: &[
            "memory-below-one-model",
            "memory-exhausted",
            "over-commit-above-one-model",
        ],
        fix: "give the agent MEMORY_REQUEST from the downward API: requests.memory of the container mlserver",
        check: million,
    },
    Rule {
        id: "AS062",
        name: "memory-above-limit",
        link: Link::Capacity,
        kind: Kind::Cause,
        title: "the reported memory is above the container's limit",
        symptoms: &["OOMKilled", "SHIM_MEMORY_BYTES is above the limit"],
        needs: &[Need::Subscription],
        rules_out: &[],
        fix: "lower SHIM_MEMORY_BYTES or the request, or raise the limit: models up to the reported figure will be killed",
        check: above_limit,
    },
    Rule {
        id: "AS063",
        name: "memory-below-one-model",
        link: Link::Capacity,
        kind: Kind::Cause,
        title: "a model asks for more memory than any replica has",
        symptoms: &[
            "Failed to schedule model as no matching server had enough suitable replicas",
            "Memory will go below zero",
            "it cannot fit, whatever is unloaded",
        ],
        needs: &[Need::Scheduler],
        rules_out: &[],
        fix: "lower Model.spec.memory, or raise the memory request of the server",
        check: below_one_model,
    },
    Rule {
        id: "AS064",
        name: "over-commit-above-one-model",
        link: Link::Capacity,
        kind: Kind::Cause,
        title: "over-commit promises more than one model can use",
        symptoms: &["Memory will go below zero", "SELDON_OVERCOMMIT_PERCENTAGE"],
        needs: &[Need::Scheduler],
        rules_out: &["memory-below-one-model"],
        fix: "over-commit helps many models take turns, never one that is larger than the total: raise the memory request",
        check: over_commit,
    },
    Rule {
        id: "AS065",
        name: "memory-exhausted",
        link: Link::Capacity,
        kind: Kind::Cause,
        title: "the memory of the server is taken by other models",
        symptoms: &["Failed to schedule model as no matching server had enough suitable replicas"],
        needs: &[Need::Scheduler],
        rules_out: &[],
        fix: "unload a model, add a replica, or raise the memory request",
        check: exhausted,
    },
    Rule {
        id: "AS066",
        name: "workers-not-counted",
        link: Link::Capacity,
        kind: Kind::Cause,
        title: "the copies of a model in parallel workers are not counted",
        symptoms: &["OOMKilled", "MLSERVER_PARALLEL_WORKERS"],
        needs: &[Need::Subscription],
        rules_out: &[],
        fix: "SHIM_MODE: correct counts them; or MLSERVER_PARALLEL_WORKERS on the agent container as on mlserver",
        check: workers,
    },
];

fn reported(e: &Evidence) -> Option<u64> {
    e.status.as_ref()?.capacity.reported
}

fn zero(e: &Evidence) -> Verdict {
    if let Some(total) = reported(e) {
        let requested = e.status.as_ref().and_then(|s| s.capacity.requested);
        if total > 0 {
            return Verdict::Clear(match requested {
                Some(0) => format!(
                    "the agent said 0 bytes, the scheduler was told {} instead",
                    shown(total)
                ),
                _ => format!("{} has {} for models", e.who(), shown(total)),
            });
        }
        return Found::broken(
            format!(
                "{} reports 0 bytes for models: its container mlserver has no memory request",
                e.who()
            ),
            REQUEST,
        )
        .seen(format!(
            "the agent requested {}",
            shown(requested.unwrap_or(0))
        ))
        .into();
    }
    let Some(facts) = &e.scheduler else {
        let why = e.missing(Need::Subscription);
        return Verdict::Unknown(why.unwrap_or_else(|| "the agent has not subscribed yet".into()));
    };
    let empty = |r: &&ReplicaFact| r.total == 0;
    let servers = facts.servers.iter();
    let mut found = servers.filter_map(|s| Some((s, s.replicas.iter().find(empty)?)));
    match found.next() {
        Some((server, replica)) => Found::broken(
            format!(
                "the scheduler believes that replica {} of {} has 0 bytes for models",
                replica.index, server.name
            ),
            REQUEST,
        )
        .into(),
        None => Verdict::CLEAR,
    }
}

fn million(e: &Evidence) -> Verdict {
    let ours = reported(e);
    let seen = e.scheduler.iter().flat_map(|s| &s.servers);
    let theirs = seen
        .flat_map(|s| s.replicas.iter().map(move |r| (s, r)))
        .find(|(_, r)| r.total == AGENT_DEFAULT);
    let text = match (ours, theirs) {
        (Some(AGENT_DEFAULT), _) => format!("{} reports 1,000,000 bytes for models", e.who()),
        (None, Some((s, r))) => format!(
            "replica {} of {} has 1,000,000 bytes for models",
            r.index, s.name
        ),
        _ => return Verdict::CLEAR,
    };
    Found::broken(
        format!("{text}: the agent's variable MEMORY_REQUEST is missing, and that is its default"),
        "env of the container agent: [{name: MEMORY_REQUEST, valueFrom: {resourceFieldRef: {containerName: mlserver, resource: requests.memory}}}]",
    )
    .into()
}

fn above_limit(e: &Evidence) -> Verdict {
    let Some(status) = &e.status else {
        return Verdict::CLEAR;
    };
    let limits = status.capacity.sources.iter();
    let limit = limits
        .filter(|s| matches!(s.source.as_str(), "limit" | "cgroup"))
        .filter_map(|s| s.bytes)
        .min();
    match (status.capacity.reported, limit) {
        (Some(total), Some(limit)) if total > limit => Found::broken(
            format!(
                "{} reports {} for models, and its container may use {}: it will be killed before they are all loaded",
                e.who(), shown(total), shown(limit)
            ),
            format!("resources.limits.memory of mlserver: at least {}; or SHIM_MODE: correct without SHIM_MEMORY_BYTES", shown(total)),
        )
        .all_seen(status.capacity.why.clone())
        .into(),
        _ => Verdict::CLEAR,
    }
}

/// The replicas that a model may come to, as the scheduler sees them.
fn replicas<'a>(e: &'a Evidence, model: &'a ModelFact) -> impl Iterator<Item = &'a ReplicaFact> {
    let ours = e
        .subscription()
        .map(|s| s.server.as_str())
        .filter(|s| !s.is_empty());
    let servers = e.scheduler.iter().flat_map(|s| &s.servers);
    servers
        .filter(move |s| match (&model.pinned, ours) {
            (Some(pinned), _) => *pinned == s.name,
            // Other servers may not be able to run it; this one is what can be judged.
            (None, Some(ours)) => ours == s.name,
            (None, None) => true,
        })
        .flat_map(|s| &s.replicas)
}

fn copies(e: &Evidence) -> Option<u32> {
    e.subscription().and_then(|s| s.workers)
}

/// Models that have failed for want of memory, with what they need.
fn hungry(e: &Evidence) -> impl Iterator<Item = (&ModelFact, u64)> {
    e.troubled()
        .filter(|m| m.no_replica() || m.failed_for_memory())
        .map(|m| (m, m.needs(copies(e))))
        .filter(|(_, needs)| *needs > 0)
}

fn asked(e: &Evidence, model: &ModelFact) -> String {
    let copies = model.workers.or(copies(e)).unwrap_or(1);
    let memory = shown(model.memory.unwrap_or(0));
    match copies {
        0 | 1 => format!("model {} asks for {memory}", model.name),
        n => format!(
            "model {} asks for {memory} in each of {n} workers",
            model.name
        ),
    }
}

fn below_one_model(e: &Evidence) -> Verdict {
    for (model, needs) in hungry(e) {
        let Some(largest) = replicas(e, model).map(|r| r.total).max() else {
            continue;
        };
        if needs > largest {
            return Found::broken(
                format!("{}, {} in all, and the largest replica has {} for models: it can never fit", asked(e, model), shown(needs), shown(largest)),
                format!("Model.spec.memory of {}: at most {}; or requests.memory of mlserver: at least {}", model.name, shown(largest), shown(needs)),
            )
            .seen(format!("the scheduler: {}", model.reason))
            .into();
        }
    }
    let refused = e.subscription().map_or(&[][..], |s| &s.refused);
    let mine = |r: &&crate::admin::status::around::RefusedModel| {
        e.asked_model.as_ref().is_none_or(|name| *name == r.model)
    };
    match refused.iter().find(mine) {
        Some(r) => Found::broken(
            format!("model {} can never fit on {}", r.model, e.who()),
            format!(
                "lower Model.spec.memory of {}, or raise requests.memory of mlserver",
                r.model
            ),
        )
        .seen(r.why.clone())
        .into(),
        None => Verdict::CLEAR,
    }
}

fn over_commit(e: &Evidence) -> Verdict {
    for (model, needs) in hungry(e) {
        let promised = |r: &ReplicaFact| {
            r.total
                .saturating_add(crate::capacity::overcommit(r.total, r.over_commit))
        };
        let tempting = replicas(e, model)
            .filter(|r| r.over_commit > 0)
            .find(|r| needs > r.total && needs <= promised(r));
        if let Some(r) = tempting {
            return Found::broken(
                format!(
                    "{}, {} in all; replica {} has {} and promises {} with {}% over-commit: the agent cannot load one model that is larger than the total",
                    asked(e, model), shown(needs), r.index, shown(r.total), shown(promised(r)), r.over_commit
                ),
                format!("requests.memory of mlserver: at least {}", shown(needs)),
            )
            .seen(format!("the scheduler: {}", model.reason))
            .into();
        }
    }
    Verdict::CLEAR
}

fn exhausted(e: &Evidence) -> Verdict {
    for (model, needs) in hungry(e).filter(|(m, _)| m.no_replica()) {
        let all: Vec<&ReplicaFact> = replicas(e, model).collect();
        let fits = all.iter().any(|r| needs <= r.total);
        let free = all.iter().map(|r| r.available).max().unwrap_or(0);
        if fits && needs > free {
            let loaded: i64 = all.iter().map(|r| i64::from(r.models)).sum();
            return Found::broken(
                format!(
                    "{}, {} in all, and {} are free on the best replica: {loaded} models have the rest",
                    asked(e, model), shown(needs), shown(free)
                ),
                format!("unload a model and apply {} again (the scheduler does not try by itself when memory becomes free), or kubectl scale server NAME --replicas {}", model.name, all.len() + 1),
            )
            .seen(format!("the scheduler: {}", model.reason))
            .into();
        }
    }
    Verdict::CLEAR
}

fn workers(e: &Evidence) -> Verdict {
    let Some(status) = &e.status else {
        return Verdict::CLEAR;
    };
    let n = copies(e).unwrap_or(1);
    if n < 2 {
        return Verdict::CLEAR;
    }
    if status.mode == "correct" {
        return Verdict::Clear(format!(
            "models are counted {n} times, once for each worker"
        ));
    }
    Found::warning(
        format!("the server has {n} parallel workers, each with a copy of every model, and the agent counts one: {n} times the memory that is booked will be used"),
        format!("SHIM_MODE: correct on agent-shim; or MLSERVER_PARALLEL_WORKERS: \"{n}\" on the agent container too"),
    )
    .into()
}
