//! What becomes of one admission request.
//!
//! Pure: a question and a policy in, a decision out. Whatever goes wrong in here lets the pod
//! through as it came and says so; only what its author wrote wrongly refuses it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use json_patch::Patch;
use serde::Serialize;
use serde_json::{Map, Value};

use super::metrics::Outcome;
use super::overrides::{self, Allowed, STATUS, Wish};
use super::review::{Question, bounded};
use crate::inject::{self, Error, Options, Report, Skipped, Style};

/// What the administrator has set.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What is injected where a pod does not say otherwise.
    pub defaults: Options,
    /// Which overrides pods may use.
    pub allowed: Allowed,
    /// Namespaces in which nothing is changed: the webhook's own, and the cluster's.
    pub excluded: Vec<String>,
}

/// Puts the shim into a pod; [`crate::inject::inject`] outside tests.
#[derive(Clone)]
pub struct Injector(Arc<Inject>);

type Inject = dyn Fn(&mut Value, &Options) -> Result<Report, Error> + Send + Sync;

impl Injector {
    /// One that does what a closure does.
    pub fn new(
        inject: impl Fn(&mut Value, &Options) -> Result<Report, Error> + Send + Sync + 'static,
    ) -> Self {
        Injector(Arc::new(inject))
    }
}

impl Default for Injector {
    fn default() -> Self {
        Injector::new(crate::inject::inject)
    }
}

impl fmt::Debug for Injector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Injector")
    }
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Which way it went.
    pub outcome: Outcome,
    /// The change; `None` where there is none.
    pub patch: Option<Patch>,
    /// For whoever creates the pod.
    pub warnings: Vec<String>,
    /// Why, in words: the refusal, the failure, or the reason for doing nothing.
    pub why: Option<String>,
}

impl Decision {
    fn new(outcome: Outcome) -> Self {
        Decision {
            outcome,
            patch: None,
            warnings: Vec::new(),
            why: None,
        }
    }

    fn because(outcome: Outcome, why: impl Into<String>) -> Self {
        Decision {
            why: Some(why.into()),
            ..Decision::new(outcome)
        }
    }

    fn warning(mut self, warning: impl Into<String>) -> Self {
        self.warnings.push(warning.into());
        self
    }

    fn failed_open(why: &str) -> Self {
        Decision::because(Outcome::FailedOpen, why).warning(format!(
            "agent-shim: the shim was not put into this pod because the webhook failed: {why}"
        ))
    }
}

/// As [`decide`]; a panic becomes a pod that goes through as it came. True where there was one.
pub fn safely(question: &Question, policy: &Policy, injector: &Injector) -> (Decision, bool) {
    // Nothing that is shared is written in there, so nothing can be left half done.
    let decided = catch_unwind(AssertUnwindSafe(|| decide(question, policy, injector)));
    match decided {
        Ok(decision) => (decision, false),
        Err(_) => {
            let why = "an internal error (panic); its log has the place";
            (Decision::failed_open(why), true)
        }
    }
}

/// Decides.
pub fn decide(question: &Question, policy: &Policy, injector: &Injector) -> Decision {
    let pod = &question.object;
    if let Some(why) = not_ours(question, policy) {
        return Decision::because(Outcome::Unchanged, why);
    }
    match overrides::wish(pod) {
        Ok(Wish::Enabled) => {}
        Ok(Wish::Disabled) => return Decision::new(Outcome::OptedOut),
        Ok(Wish::Silent) => return Decision::because(Outcome::Unchanged, "not asked for"),
        Err(refusal) => return Decision::because(Outcome::Rejected, refusal.to_string()),
    }
    let (options, unknown) = match overrides::apply(pod, &policy.defaults, &policy.allowed) {
        Ok(applied) => applied,
        Err(refusal) => return Decision::because(Outcome::Rejected, refusal.to_string()),
    };
    if is_done(pod, &options) {
        return Decision::new(Outcome::Already);
    }
    let mut decision = put(pod, &options, policy, injector);
    for name in unknown {
        let version = crate::VERSION;
        decision = decision.warning(format!(
            "agent-shim: annotation {name} means nothing to version {version} and has no effect"
        ));
    }
    decision
}

/// Why a request is none of this webhook's business.
fn not_ours(question: &Question, policy: &Policy) -> Option<String> {
    let kind = &question.kind;
    let is_pod = kind.group.is_empty() && kind.version == "v1" && kind.kind == "Pod";
    let whole = question.sub_resource.as_deref().unwrap_or_default();
    if !is_pod || !whole.is_empty() {
        return Some("not a pod".into());
    }
    if question.operation != "CREATE" {
        return Some("not a new pod".into());
    }
    let metadata = question.object.get("metadata");
    let stated = metadata.and_then(|m| m.get("namespace")?.as_str());
    let namespace = question.namespace.as_deref().or(stated);
    let excluded = namespace.is_some_and(|n| policy.excluded.iter().any(|e| e == n));
    excluded.then(|| "an excluded namespace".into())
}

/// Whether this program has put the shim in before: kept, even where another webhook has changed
/// something since, so that two of them never undo each other's work.
fn is_done(pod: &Value, options: &Options) -> bool {
    let marked = pod.get("metadata").and_then(|m| m.get("annotations"));
    let marked = marked.and_then(|a| a.get(inject::ORIGINAL)).is_some();
    let named = |list: &str| {
        let list = pod.get("spec").and_then(|s| s.get(list)?.as_array());
        let mut names = list.into_iter().flatten().filter_map(|c| c.get("name"));
        names.any(|name| name == options.shim.as_str())
    };
    marked && (named("containers") || named("initContainers"))
}

fn put(pod: &Value, options: &Options, policy: &Policy, injector: &Injector) -> Decision {
    let mut injected = pod.clone();
    let report = match (injector.0)(&mut injected, options) {
        Ok(report) => report,
        // Without overrides it would be the administrator's mistake, which blocks no pod.
        Err(error @ Error::Option { .. }) if *options != policy.defaults => {
            return Decision::because(Outcome::Rejected, error.to_string());
        }
        Err(error @ Error::Foreign(_)) => {
            let why = error.to_string();
            return Decision::because(Outcome::Already, &why)
                .warning(format!("agent-shim: left as it is: {why}"));
        }
        Err(error) => return Decision::failed_open(&error.to_string()),
    };
    match report.skipped {
        Some(Skipped::Inherited(_)) => return Decision::new(Outcome::Already),
        Some(skipped) => {
            let why = skipped.to_string();
            return Decision::because(Outcome::Unchanged, &why).warning(format!(
                "agent-shim: {}=enabled has no effect on this pod: {why}",
                overrides::INJECT
            ));
        }
        None if report.kind.is_none() => {
            return Decision::because(Outcome::Unchanged, "not a pod with containers");
        }
        None => {}
    }
    let warnings: Vec<String> = report
        .warnings
        .iter()
        .map(|w| format!("agent-shim: {}: {}; {}", w.id, w.text, w.fix))
        .collect();
    if report.changed {
        note(&mut injected, options, &report);
    }
    if injected == *pod {
        return Decision {
            warnings,
            ..Decision::new(Outcome::Already)
        };
    }
    let patch = json_patch::diff(pod, &injected);
    // A patch that the API server could not apply would block the pod.
    let mut proof = pod.clone();
    match json_patch::patch(&mut proof, &patch) {
        Ok(()) if proof == injected => Decision {
            patch: Some(patch),
            warnings,
            ..Decision::new(Outcome::Injected)
        },
        Ok(()) => Decision::failed_open("its patch does not give the pod that was meant"),
        Err(error) => Decision::failed_open(&format!("its patch does not apply: {error}")),
    }
}

/// What stands in the annotation on an injected pod. Nothing in it depends on time or chance.
#[derive(Serialize)]
struct Status<'a> {
    injected: bool,
    version: &'a str,
    style: &'a str,
    mode: &'a str,
    warnings: Vec<String>,
}

fn note(pod: &mut Value, options: &Options, report: &Report) {
    let warnings: Vec<String> = report
        .warnings
        .iter()
        .map(|w| format!("{}: {}", w.id, w.text))
        .collect();
    let status = Status {
        injected: true,
        version: crate::VERSION,
        style: match options.style {
            Style::Native => "native",
            Style::Plain => "plain",
        },
        mode: options.mode.as_str(),
        warnings: bounded(&warnings),
    };
    let Ok(text) = serde_json::to_string(&status) else {
        return;
    };
    let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    let annotations = metadata
        .entry("annotations")
        .or_insert_with(|| Value::Object(Map::new()));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(STATUS.into(), Value::String(text));
    }
}
