//! The inference server: is it there, where, and does it speak what is expected?

use crate::doctor::evidence::Evidence;
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};

/// The rules.
pub const RULES: &[Rule] = &[Rule {
    id: "AS001",
    name: "server-not-started",
    link: Link::ServerProcess,
    kind: Kind::Cause,
    title: "the inference server has not started",
    symptoms: &[
        "Waiting for Inference Server service to become ready",
        "connect: connection refused",
    ],
    needs: &[Need::Server],
    rules_out: &[],
    fix: "look at the server's log; wait if it is still starting",
    check: not_started,
}];

fn not_started(e: &Evidence) -> Verdict {
    let candidates = e.candidates();
    if candidates.iter().any(|c| c.answers) {
        return Verdict::Clear("the inference server answers".into());
    }
    if candidates
        .iter()
        .any(|c| c.reason.as_deref() != Some("refused"))
    {
        return Verdict::CLEAR;
    }
    Found::broken(
        "every candidate refuses, and none has ever answered",
        "kubectl logs POD -c mlserver",
    )
    .into()
}
