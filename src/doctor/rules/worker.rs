//! The server's worker and the models in its hands: what the server's own health calls do not see.
//! MLServer's live and ready come from its main process and stay good while every inference fails.

use crate::admin::status::{Restoring, WorkerStatus};
use crate::doctor::evidence::Evidence;
use crate::doctor::rule::{Found, Link, Need, Rule, Verdict};
use crate::worker::{CONDITION, HELD_UP, PASSIVE_FAILURES, PASSIVE_TIME, STUCK};

const LOG: &str = "kubectl logs POD -c mlserver";
/// Models that are named in one finding.
const NAMED: usize = 5;

const fn rule(
    id: &'static str,
    name: &'static str,
    link: Link,
    check: fn(&Evidence) -> Verdict,
) -> Rule {
    Rule::cause(id, name, link, &[Need::Status], check)
}

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        title: "the server's workers die at their start",
        symptoms: &["Worker process stopped unexpectedly", "uvloop"],
        rules_out: &["worker-missing", "worker-fatal", "canary-failing"],
        fix: "look at the server's log; an image with a uvloop of 0.22 or later is a known cause. After 30 s the pod is not ready",
        ..rule(
            "AS007",
            "worker-crash-loop",
            Link::ServerProcess,
            crash_loop,
        )
    },
    Rule {
        title: "the server has no worker process",
        symptoms: &["no worker process"],
        rules_out: &["worker-fatal", "canary-failing"],
        fix: "look at the server's log and restart its container; after 30 s the pod is not ready",
        ..rule("AS008", "worker-missing", Link::ServerProcess, missing)
    },
    Rule {
        title: "canary inferences fail or have no answer",
        symptoms: &["a canary inference"],
        fix: "look at the server's log and restart its container. Behind one very long call a canary is late too: choose its model accordingly",
        ..rule("AS009", "canary-failing", Link::Traffic, canary_failing)
    },
    Rule {
        title: "a killed server has left its workers behind",
        fix: "they hold their memory until they are killed or the pod ends: kubectl delete pod POD",
        ..rule("AS019", "worker-orphans", Link::ServerProcess, orphans)
    },
    Rule {
        title: "every inference fails in the server",
        symptoms: &["500 Internal Server Error", "Internal Server Error"],
        rules_out: &["canary-failing"],
        fix: "after a worker has died, one model that cannot be loaded again breaks all of them: put its files back and load it, or restart the server, as SHIM_MEND=fatal does. An unload does not help: the server keeps it on the list of what a new worker has to load",
        ..rule("AS013", "worker-fatal", Link::Traffic, fatal)
    },
    Rule {
        title: "the canary request is no good",
        fix: "SHIM_CANARY_REQUEST must be a request that its model answers, in a file of at most 1 MiB",
        ..rule("AS014", "canary-refused", Link::Traffic, canary_refused)
    },
    Rule {
        title: "a load was cut off, and its model is neither there nor gone",
        symptoms: &["UNKNOWN"],
        fix: "unload the model; SHIM_MEND=stuck does so after 60 s. Leave that off where loads do not pass through the shim",
        ..rule("AS096", "model-stuck", Link::Load, stuck)
    },
    Rule {
        title: "a model is READY and its worker does not have it",
        symptoms: &["mlserver.errors.ModelNotFound"],
        fix: "unload the model and load it again; SHIM_MEND=lost does so",
        ..rule("AS097", "model-lost-by-worker", Link::Load, lost)
    },
    Rule {
        title: "models are being loaded again after a restart of the server",
        fix: "wait: the shim loads what the restart has taken, the most recently used first",
        ..rule("AS098", "models-restoring", Link::Load, restoring)
    },
    Rule {
        title: "models could not be loaded again after a restart of the server",
        fix: "put the files of the model back; the agent loads it at its next request",
        ..rule("AS099", "models-not-restored", Link::Load, given_up)
    },
];

fn worker(e: &Evidence) -> Option<&WorkerStatus> {
    Some(&e.status.as_ref()?.worker)
}

/// Why the pod is not ready for its worker's sake.
fn held_against(e: &Evidence) -> Option<&str> {
    let condition = e.condition(CONDITION).filter(|c| !c.status);
    condition.map(|c| c.reason.as_str())
}

/// Broken once it has lasted so long that the pod is not ready for it, a warning until then.
fn weighed(e: &Evidence, text: String, fix: &str) -> Found {
    match held_against(e) {
        Some(why) => Found::broken(text, fix).seen(format!("the pod is not ready: {why}")),
        None => Found::warning(text, fix),
    }
}

fn crash_loop(e: &Evidence) -> Verdict {
    let Some(w) = worker(e).filter(|w| w.state == "looping") else {
        return Verdict::CLEAR;
    };
    weighed(
        e,
        format!(
            "the server's workers have died at their start for {:.0}s ({} exits within a minute): every inference fails while its health calls stay good",
            w.for_s.unwrap_or_default(),
            w.recent_exits
        ),
        "kubectl logs POD -c mlserver   # an image with a uvloop of 0.22 or later is a known cause",
    )
    .into()
}

fn missing(e: &Evidence) -> Verdict {
    let Some(w) = worker(e) else {
        return Verdict::CLEAR;
    };
    match w.state.as_str() {
        "unseen" if e.server_up() => Verdict::Unknown(
            "its processes cannot be seen (spec.shareProcessNamespace)".into(),
        ),
        "there" => Verdict::Clear(format!(
            "{} worker processes are there",
            w.processes.unwrap_or_default()
        )),
        "missing" => weighed(
            e,
            format!(
                "the server has had no worker process for {:.0}s: every inference fails while its health calls stay good",
                w.for_s.unwrap_or_default()
            ),
            LOG,
        )
        .into(),
        _ => Verdict::CLEAR,
    }
}

fn orphans(e: &Evidence) -> Verdict {
    let Some(w) = worker(e).filter(|w| !w.orphans.is_empty()) else {
        return Verdict::CLEAR;
    };
    let all: Vec<String> = w.orphans.iter().map(u32::to_string).collect();
    Found::warning(
        format!(
            "a killed server has left worker processes that still hold their memory: {}",
            all.join(", ")
        ),
        format!(
            "kubectl exec POD -c mlserver -- kill {}; they end with the pod as well",
            all.join(" ")
        ),
    )
    .into()
}

fn fatal(e: &Evidence) -> Verdict {
    let Some(w) = worker(e) else {
        return Verdict::CLEAR;
    };
    let lasting = w.failed >= PASSIVE_FAILURES && w.failed_for_s >= PASSIVE_TIME.as_secs_f64();
    if !lasting || !e.server_up() {
        return Verdict::CLEAR;
    }
    Found::broken(
        format!(
            "{} inferences in a row, over {:.0}s, were answered with an internal error of the server that is no model's",
            w.failed, w.failed_for_s
        ),
        "kubectl logs POD -c mlserver   # one model that cannot be loaded again breaks all: put its files back and load it, or restart the container",
    )
    .into()
}

fn canary_failing(e: &Evidence) -> Verdict {
    let Some(w) = worker(e) else {
        return Verdict::CLEAR;
    };
    // Of the workers themselves other rules speak.
    let by_canary = !matches!(w.state.as_str(), "missing" | "looping");
    let failed = w.canary.as_deref() == Some("failed");
    match held_against(e).filter(|_| by_canary) {
        Some(why) => Found::broken(why, LOG).into(),
        None if w.unanswered_for_s.is_some() => Found::warning(
            format!(
                "inferences run, and none has been answered for {:.0}s, nor a canary inference beside them: the worker hangs, or is held up by one long call; after {} s of it the pod is not ready",
                w.unanswered_for_s.unwrap_or_default(),
                HELD_UP.as_secs()
            ),
            LOG,
        )
        .into(),
        None if failed && e.server_up() => Found::warning(
            format!(
                "a canary inference has failed in the server: {}",
                w.canary_said.as_deref().unwrap_or("it does not say why")
            ),
            LOG,
        )
        .into(),
        None if w.canary.as_deref() == Some("worked") => {
            Verdict::Clear("the last canary inference worked".into())
        }
        None => Verdict::CLEAR,
    }
}

fn canary_refused(e: &Evidence) -> Verdict {
    let Some(w) = worker(e) else {
        return Verdict::CLEAR;
    };
    let refused = w.canary.as_deref() == Some("refused");
    // A reason that names a setting is a mistake of the settings.
    let setting = w.canary_skipped.as_deref().filter(|s| s.contains("SHIM_"));
    let text = match setting {
        Some(why) => format!("no canary is sent: {why}"),
        None if refused => format!(
            "the server refuses the canary request: {}",
            w.canary_said.as_deref().unwrap_or("it does not say why")
        ),
        None => return Verdict::CLEAR,
    };
    Found::warning(
        text,
        "SHIM_CANARY_REQUEST: a file with a request that SHIM_CANARY_MODEL answers",
    )
    .into()
}

/// `model a` or `models a, b and 3 more`, with the verb's two forms.
fn named(all: &[&str], one: &str, more: &str) -> String {
    let shown = all[..all.len().min(NAMED)].join(", ");
    match all.len() {
        1 => format!("model {shown} {one}"),
        n if n > NAMED => format!("models {shown} and {} more {more}", n - NAMED),
        _ => format!("models {shown} {more}"),
    }
}

fn stuck(e: &Evidence) -> Verdict {
    let Some(w) = worker(e).filter(|w| !w.stuck.is_empty()) else {
        return Verdict::CLEAR;
    };
    let all: Vec<&str> = w.stuck.iter().map(String::as_str).collect();
    Found::broken(
        format!(
            "{} been UNKNOWN for more than {} s and no load is known to be under way: a gRPC load was cut off, and the server stays not ready until the model is unloaded or loaded; or a load goes on that began before the shim did",
            named(&all, "has", "have"),
            STUCK.as_secs()
        ),
        format!("curl -X POST http://POD:9600/v2/repository/models/{}/unload; or SHIM_MEND: \"stuck\"", all[0]),
    )
    .into()
}

fn lost(e: &Evidence) -> Verdict {
    let Some(w) = worker(e).filter(|w| !w.lost.is_empty()) else {
        return Verdict::CLEAR;
    };
    let all: Vec<&str> = w.lost.iter().map(String::as_str).collect();
    Found::broken(
        format!(
            "{} READY and its worker does not have it: every inference of it is answered 404",
            named(&all, "is", "are")
        ),
        format!(
            "unload {} and load it again; or SHIM_MEND: \"lost\"",
            all[0]
        ),
    )
    .into()
}

fn of(e: &Evidence, given_up: bool) -> Vec<&Restoring> {
    let all = e.status.iter().flat_map(|s| &s.restoring);
    all.filter(|r| (r.stage == "given-up") == given_up)
        .collect()
}

fn errors(all: &[&Restoring]) -> Vec<String> {
    let said = |r: &&Restoring| Some(format!("model {}: {}", r.model, r.error.as_ref()?));
    all.iter().filter_map(said).take(NAMED).collect()
}

fn restoring(e: &Evidence) -> Verdict {
    let all = of(e, false);
    // While the server is away nothing can be loaded, which other rules say.
    if all.is_empty() || !e.server_up() {
        return Verdict::CLEAR;
    }
    let names: Vec<&str> = all.iter().map(|r| r.model.as_str()).collect();
    Found::warning(
        format!(
            "the server was restarted, and {} not back yet: the shim loads what was in memory",
            named(&names, "is", "are")
        ),
        "wait; agent-shim status shows the condition models-restored",
    )
    .all_seen(errors(&all))
    .into()
}

fn given_up(e: &Evidence) -> Verdict {
    let all = of(e, true);
    if all.is_empty() || !e.server_up() {
        return Verdict::CLEAR;
    }
    let names: Vec<&str> = all.iter().map(|r| r.model.as_str()).collect();
    Found::broken(
        format!(
            "the server was restarted, and {} not be loaded again: the shim has given up, and the agent loads at the next request",
            named(&names, "could", "could")
        ),
        format!("{LOG} | grep {}; the files of the model must still be there", names[0]),
    )
    .all_seen(errors(&all))
    .into()
}
