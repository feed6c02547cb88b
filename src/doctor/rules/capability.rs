//! What models require, against what the replica says it can run.

use crate::capability::{self, Verdict as Match, table};
use crate::doctor::evidence::Evidence;
use crate::doctor::rule::{Found, Kind, Link, Need, Rule, Verdict};
use crate::registration::facts::ModelFact;

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        id: "AS070",
        name: "requirement-spelling",
        link: Link::Capabilities,
        kind: Kind::Cause,
        title: "a requirement is there under another spelling",
        symptoms: &[
            "Failed to schedule model as no matching servers are available",
            "Empty server for test-model-simple:1 so ignoring event",
            "requirements: [mlserver[sklearn]]",
            "requirements: [scikit-learn]",
        ],
        needs: &[Need::Subscription, Need::Scheduler],
        rules_out: &[],
        fix: "write the requirement as the server reports it: the scheduler compares exact strings; or SHIM_CAPABILITIES: add, which reports every spelling",
        check: spelling,
    },
    Rule {
        id: "AS071",
        name: "requirement-missing",
        link: Link::Capabilities,
        kind: Kind::Cause,
        title: "no replica reports what a model requires",
        symptoms: &[
            "Failed to schedule model as no matching servers are available",
            "Empty server for test-model-simple:1 so ignoring event",
        ],
        needs: &[Need::Subscription, Need::Scheduler],
        rules_out: &["requirement-spelling"],
        fix: "correct Model.spec.requirements, or install the package that brings it into the server's image",
        check: missing,
    },
    Rule {
        id: "AS072",
        name: "replicas-differ",
        link: Link::Capabilities,
        kind: Kind::Cause,
        title: "replicas of one server report different capabilities",
        symptoms: &["the model is scheduled after one restart and not after another"],
        needs: &[Need::Subscription],
        rules_out: &[],
        fix: "run one image on all replicas: the scheduler takes the capabilities of any one of them for the server",
        check: differ,
    },
    Rule {
        id: "AS073",
        name: "declared-not-installed",
        link: Link::Capabilities,
        kind: Kind::Cause,
        title: "a capability is declared and not installed",
        symptoms: &[
            "ModuleNotFoundError: No module named",
            "MLSERVER_MODEL_IMPLEMENTATION",
        ],
        needs: &[Need::Subscription],
        rules_out: &[],
        fix: "SHIM_CAPABILITIES: strict leaves it out; or install it",
        check: declared,
    },
];

/// Requirements of models that no server could take, which this server does not report.
fn lacking(e: &Evidence) -> Vec<(&ModelFact, &str, Match)> {
    let Some(status) = &e.status else {
        return Vec::new();
    };
    let reported = &status.capabilities.reported;
    if reported.is_empty() {
        return Vec::new();
    }
    let mut all = Vec::new();
    for model in e.troubled().filter(|m| m.no_server()) {
        for requirement in &model.requirements {
            let how = match capability::check(requirement, reported) {
                Match::Satisfied => continue,
                Match::Spelling(name) => Match::Spelling(name),
                // The other half of the same capability: the library of a runtime.
                other => match reported
                    .iter()
                    .find(|name| table::related(requirement, name))
                {
                    Some(name) => Match::Spelling(name.clone()),
                    None => other,
                },
            };
            all.push((model, requirement.trim(), how));
        }
    }
    all
}

fn spelling(e: &Evidence) -> Verdict {
    for (model, requirement, how) in lacking(e) {
        if let Match::Spelling(name) = how {
            return Found::broken(
                format!("model {} requires {requirement:?}, and the server reports the same thing as {name:?}: the scheduler compares exact strings", model.name),
                format!("Model.spec.requirements of {}: {name:?} instead of {requirement:?}; or SHIM_CAPABILITIES: \"add\" on agent-shim", model.name),
            )
            .seen(format!("the scheduler: {}", model.reason))
            .into();
        }
    }
    let reported = e
        .status
        .iter()
        .map(|s| s.capabilities.reported.len())
        .sum::<usize>();
    if reported == 0 {
        return Verdict::Unknown("nothing has been reported as capabilities yet".into());
    }
    match e.models().any(|m| !m.requirements.is_empty()) {
        true => Verdict::Clear(format!(
            "{reported} capabilities are reported, and every model that is asked about finds its own"
        )),
        false => Verdict::Clear(format!("{reported} capabilities are reported")),
    }
}

fn missing(e: &Evidence) -> Verdict {
    let all = lacking(e);
    let absent = |how: &Match| matches!(how, Match::Near(_) | Match::Absent);
    let Some((model, requirement, how)) = all.iter().find(|(_, _, how)| absent(how)) else {
        return Verdict::CLEAR;
    };
    let dropped = e
        .status
        .as_ref()
        .is_some_and(|s| s.capabilities.dropped.iter().any(|d| d == requirement));
    let mut text = format!(
        "model {} requires {requirement:?}, and no replica of this server reports that",
        model.name
    );
    let mut fixes = Vec::new();
    if let Match::Near(name) = how {
        text.push_str(&format!("; the nearest name that is reported is {name:?}"));
        fixes.push(format!(
            "Model.spec.requirements of {}: {name:?} instead of {requirement:?}",
            model.name
        ));
    }
    if dropped {
        fixes.push(
            "SHIM_CAPABILITIES: \"add\": strict left it out because it is not installed".into(),
        );
    }
    match table::providers(requirement).first() {
        Some(package) => fixes.push(format!(
            "RUN pip install {package} in the image of mlserver"
        )),
        None => fixes.push(format!(
            "Server.spec.capabilities: [..., {requirement:?}] if the server has it"
        )),
    }
    let also = all
        .iter()
        .filter(|(m, r, _)| (&m.name, r) != (&model.name, requirement));
    let also = also
        .map(|(m, r, _)| format!("model {} also lacks {r:?}", m.name))
        .take(5);
    Found::broken(text, fixes.join("; or "))
        .seen(format!("the scheduler: {}", model.reason))
        .all_seen(also)
        .into()
}

fn differ(e: &Evidence) -> Verdict {
    let Some(s) = e.subscription() else {
        return Verdict::CLEAR;
    };
    let ours = e.status.as_ref().map(|d| &d.capabilities.reported);
    for peer in e.peers.iter().filter(|p| p.server == s.server) {
        let Some(ours) = ours.filter(|o| **o != peer.capabilities) else {
            continue;
        };
        let only = |a: &[String], b: &[String]| {
            let names: Vec<&str> = a
                .iter()
                .filter(|n| !b.contains(n))
                .map(String::as_str)
                .collect();
            names.join(", ")
        };
        let (here, there) = (
            only(ours, &peer.capabilities),
            only(&peer.capabilities, ours),
        );
        return Found::broken(
            format!("replica {} and replica {} of {} report different capabilities: which models can be placed is left to chance", s.replica, peer.replica, s.server),
            format!("kubectl rollout restart statefulset {}   # once all pods have one image", s.server),
        )
        .seen(format!("only replica {}: {here}", s.replica))
        .seen(format!("only replica {}: {there}", peer.replica))
        .into();
    }
    match e.peers.len() {
        0 => Verdict::CLEAR,
        n => Verdict::Clear(format!("{n} other replicas report the same capabilities")),
    }
}

fn declared(e: &Evidence) -> Verdict {
    let missing = e.status.iter().flat_map(|s| &s.capabilities.missing);
    let names: Vec<&str> = missing.map(String::as_str).collect();
    if names.is_empty() {
        return Verdict::CLEAR;
    }
    let list = names.join(", ");
    Found::warning(
        format!("{list}: declared in SELDON_SERVER_CAPABILITIES and not installed in the server: a model that requires it and does not bring its own environment will fail to load"),
        "SHIM_CAPABILITIES: \"strict\" on agent-shim, or Server.spec.capabilities with what is installed",
    )
    .into()
}
