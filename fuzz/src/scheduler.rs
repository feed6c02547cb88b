//! The scheduler's answers, as the doctor and the conditions read them.

use agent_shim::doctor::engine::diagnose;
use agent_shim::doctor::evidence::Evidence;
use agent_shim::doctor::{rules, show};
use agent_shim::proto::scheduler::{ModelStatusResponse, ServerStatusResponse};
use agent_shim::registration::facts::{self, SchedulerFacts};
use prost::Message;

/// Messages: what it is, its length in two bytes, its content.
pub fn check(mut script: &[u8]) {
    let mut all = SchedulerFacts {
        target: "seldon-scheduler:9004".into(),
        complete: true,
        ..SchedulerFacts::default()
    };
    for _ in 0..64 {
        let Some((&[kind, high, low], rest)) = script.split_first_chunk::<3>() else {
            break;
        };
        let length = usize::from(high) << 8 | usize::from(low);
        let (message, rest) = rest.split_at(length.min(rest.len()));
        script = rest;
        if kind % 2 == 0 {
            if let Ok(answer) = ServerStatusResponse::decode(message) {
                let fact = facts::server(&answer);
                assert_eq!(fact.name, answer.server_name);
                assert_eq!(fact.replicas.len(), answer.resources.len());
                for replica in &fact.replicas {
                    let believed = fact.believed(replica.index).expect("it is listed");
                    assert_eq!(believed.expected, answer.expected_replicas);
                }
                all.servers.push(fact);
            }
        } else if let Ok(answer) = ModelStatusResponse::decode(message) {
            let fact = facts::model(&answer);
            assert_eq!(fact.is_none(), answer.deleted || answer.versions.is_empty());
            if let Some(fact) = fact {
                let latest = answer.versions.iter().map(|v| v.version).max();
                assert_eq!(Some(fact.version), latest);
                assert!(fact.wanted > 0 && fact.replicas.is_sorted());
                all.models.push(fact);
            }
        }
    }
    let again = serde_json::to_string(&all).expect("facts are JSON");
    assert_eq!(
        serde_json::from_str::<SchedulerFacts>(&again).ok().as_ref(),
        Some(&all)
    );
    let evidence = Evidence {
        asked_model: all.models.first().map(|m| m.name.clone()),
        scheduler: Some(all),
        ..Evidence::default()
    };
    diagnosed(&evidence);
}

/// A diagnosis comes about, and nothing in it can drive the terminal of who reads it.
pub fn diagnosed(evidence: &Evidence) {
    let diagnosis = diagnose(evidence, rules::all());
    for width in [40, 100] {
        let text = show::text::shown(&diagnosis, width, false);
        let wild = text.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(wild, None, "a control character is shown: {text:?}");
    }
    let text = show::markdown::shown(&diagnosis);
    let wild = text.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(wild, None, "a control character is shown: {text:?}");
    for line in text.lines() {
        let quoted = line
            .strip_prefix("- seen: ")
            .or(line.strip_prefix("- fix: "));
        quoted.inspect(|code| assert!(is_fenced(code), "text of others gets out: {code}"));
    }
    let json = show::json(&diagnosis);
    assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
}

/// Whether a text of Markdown is code from one end to the other.
fn is_fenced(code: &str) -> bool {
    let rest = code.trim_start_matches('`');
    let fence = code.len() - rest.len();
    let inner = rest.strip_suffix(&"`".repeat(fence));
    let runs = |inner: &str| inner.split(|c| c != '`').all(|run| run.len() != fence);
    fence > 0 && inner.is_some_and(|inner| !inner.ends_with('`') && runs(inner)) || code == "``"
}
