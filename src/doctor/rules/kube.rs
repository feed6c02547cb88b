//! What the objects in Kubernetes say: why a pod is not there, does not live, cannot reach the
//! scheduler, or was put together wrongly.

use crate::doctor::evidence::{Evidence, KubeFacts};
use crate::doctor::rule::Verdict;

pub mod config;
pub mod inject;
pub mod network;
pub mod pod;
pub mod quota;
#[cfg(test)]
mod tests;

/// The facts, where these kinds could be read; else why the rule cannot judge.
fn facts<'a>(e: &'a Evidence, kinds: &[&str]) -> Result<&'a KubeFacts, Verdict> {
    let Some(facts) = &e.kube else {
        return Err(Verdict::Unknown("Kubernetes was not asked".into()));
    };
    match kinds
        .iter()
        .find_map(|kind| Some((kind, facts.unreadable(kind)?)))
    {
        Some((kind, why)) => Err(Verdict::Unknown(format!("{kind}: {why}"))),
        None => Ok(facts),
    }
}

/// `kubectl -n <namespace> <rest>`.
fn kubectl(facts: &KubeFacts, rest: &str) -> String {
    format!("kubectl -n {} {rest}", facts.namespace)
}

/// The part of a rule that every check of pods shares.
type Checked = Result<Verdict, Verdict>;

fn settled(checked: Checked) -> Verdict {
    checked.unwrap_or_else(|verdict| verdict)
}
