//! The headline: ready, degraded or down, why, and since when. Pure.
//!
//! Other than readiness it looks beyond the pod: a pod that is ready and that the scheduler does
//! not know is degraded.

use super::super::status::{ConditionStatus, Document, EndpointStatus};
use super::text::Mark;
use crate::readiness::NAMES;
use crate::{agent, restore, worker};

/// The headline.
#[derive(Debug, Clone)]
pub(super) struct Verdict {
    pub(super) mark: Mark,
    pub(super) word: &'static str,
    /// A clause without figures that change by themselves: it is read out when it changes.
    pub(super) short: String,
    /// The whole reason.
    pub(super) long: String,
    /// RFC 3339.
    pub(super) since: String,
    /// What `/readyz` answers.
    pub(super) pod_ready: bool,
}

/// Whether a condition is one of the pod's own, which decide readiness.
pub(super) fn is_local(condition: &ConditionStatus) -> bool {
    NAMES.contains(&condition.name.as_str()) || condition.name == worker::CONDITION
}

/// The candidate of a protocol that is in use.
pub(super) fn selected<'d>(doc: &'d Document, protocol: &str) -> Option<&'d EndpointStatus> {
    let host = match protocol {
        "http" => doc.selection.http.as_deref(),
        _ => doc.selection.grpc.as_deref(),
    }?;
    let mut all = doc.endpoints.iter();
    all.find(|e| e.protocol == protocol && e.host == host)
}

/// How a protocol stands over all its candidates: the state of the one in use; else `unknown`
/// while one is not probed enough, else `down`.
pub(super) fn protocol_state<'d>(doc: &'d Document, protocol: &str) -> &'d str {
    if let Some(used) = selected(doc, protocol) {
        return &used.state;
    }
    let mut all = doc.endpoints.iter().filter(|e| e.protocol == protocol);
    if all.any(|e| e.state == "unknown") {
        "unknown"
    } else {
        "down"
    }
}

/// The headline of a document.
pub(super) fn of(doc: &Document) -> Verdict {
    let find = |name: &str| doc.conditions.iter().find(|c| c.name == name);
    let failed = |name: &str| find(name).filter(|c| !c.status);
    let pod_ready = doc
        .conditions
        .iter()
        .filter(|c| is_local(c))
        .all(|c| c.status);
    let verdict = |mark, word, short: &str, long: String, since: &str| Verdict {
        mark,
        word,
        short: short.into(),
        long,
        since: since.into(),
        pod_ready,
    };
    if let Some(c) = failed("not-draining").filter(|_| is_called(&doc.drain.state)) {
        let (word, short) = match doc.drain.state.as_str() {
            "draining" => (
                "draining",
                "the pod takes no more traffic, and what runs is waited for",
            ),
            "drained" => (
                "drained",
                "the pod takes no traffic, and no call runs any more",
            ),
            _ => (
                "drained",
                "the pod takes no traffic; calls still ran when the time was over",
            ),
        };
        let long = match (doc.drain.summary.as_str(), doc.drain.agent.as_str()) {
            ("", "") => capital(&c.reason),
            ("", agent) => format!("{}. The agent: {agent}", capital(&c.reason)),
            (summary, _) => format!("{}. {}", capital(&c.reason), capital(summary)),
        };
        return verdict(Mark::Warn, word, short, long, &c.since);
    }
    if let Some(c) = failed("not-draining") {
        return verdict(
            Mark::Warn,
            "stopping",
            "the shim was told to stop and carries on what is under way",
            String::new(),
            &c.since,
        );
    }
    let (http, grpc) = (failed("inference-http"), failed("inference-grpc"));
    if let (Some(http), Some(grpc)) = (http, grpc) {
        let starting = failed("probed").is_some();
        // The same meaning once is enough; each candidate is listed below.
        let meaning = |c: &ConditionStatus| c.reason.rsplit("): ").next().map(str::to_string);
        let long = match meaning(http) == meaning(grpc) {
            true => format!("{}. The same holds for gRPC.", capital(&http.reason)),
            false => format!("{}. {}", capital(&http.reason), capital(&grpc.reason)),
        };
        let since = http.since.as_str().max(&grpc.since);
        return if starting {
            let short = "the inference server has not been asked often enough to tell";
            verdict(Mark::Busy, "starting", short, long, since)
        } else {
            let short = "the inference server does not answer";
            verdict(Mark::Bad, "down", short, long, since)
        };
    }
    // What is nearest to the server comes first: the rest may follow from it.
    for (failed, protocol, title) in [(http, "http", "HTTP"), (grpc, "grpc", "gRPC")] {
        if let Some(c) = failed {
            let short = format!("the inference server does not answer {title}");
            return verdict(Mark::Warn, "degraded", &short, capital(&c.reason), &c.since);
        }
        if let Some(used) = selected(doc, protocol).filter(|e| e.state == "stalled") {
            let short = format!("the inference server is silent on {title}");
            let long = find(&format!("inference-{protocol}"))
                .map_or_else(String::new, |c| capital(&c.reason));
            return verdict(Mark::Warn, "degraded", &short, long, &used.since);
        }
    }
    if let Some(c) = doc.conditions.iter().find(|c| !c.status) {
        let short = match c.name.as_str() {
            "subscribed" => "the agent has no subscription with the scheduler".into(),
            "registered" => "the scheduler does not list this replica".into(),
            "capacity-agrees" => "the scheduler believes in another capacity".into(),
            "probed" => "not every address has been tried yet".into(),
            agent::CONDITION => "the agent does not call itself ready".into(),
            restore::CONDITION => "models are missing since the server was restarted".into(),
            worker::CONDITION => "the inference server's worker does not work".into(),
            other => format!("{other} does not hold"),
        };
        return verdict(Mark::Warn, "degraded", &short, capital(&c.reason), &c.since);
    }
    let since = doc.conditions.iter().map(|c| c.since.as_str()).max();
    let beyond = match (find("registered"), find("subscribed")) {
        (Some(_), _) => ", and the scheduler lists this replica",
        (None, Some(_)) => ", and the agent is subscribed",
        (None, None) => "",
    };
    let short = format!("the inference server answers HTTP and gRPC{beyond}");
    verdict(
        Mark::Good,
        "ready",
        &short,
        String::new(),
        since.unwrap_or_default(),
    )
}

/// Whether a drain was called for, and no SIGTERM has come.
pub(super) fn is_called(state: &str) -> bool {
    matches!(state, "draining" | "drained" | "gave-up")
}

/// A reason as the beginning of a sentence.
fn capital(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}
