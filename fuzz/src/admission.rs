//! An `AdmissionReview`, up to the answer and back: its patch applies, and once is enough.

use agent_shim::inject::Options;
use agent_shim::webhook::decide::{Injector, Policy, decide, safely};
use agent_shim::webhook::metrics::Outcome;
use agent_shim::webhook::overrides::Allowed;
use agent_shim::webhook::review::{Answer, parse};
use serde_json::Value;

pub fn check(body: &[u8]) {
    let Ok(mut question) = parse(body).inspect_err(|error| {
        let said = error.to_string();
        assert!(said.len() < 600 && !said.is_empty(), "{said}");
    }) else {
        return;
    };
    let policy = Policy {
        defaults: Options::default(),
        allowed: Allowed::All,
        excluded: vec!["kube-system".into()],
    };
    let (decision, panicked) = safely(&question, &policy, &Injector::default());
    assert!(!panicked, "the webhook panicked");
    let outcome = decision.outcome;
    assert_eq!(decision.patch.is_some(), outcome == Outcome::Injected);
    if let Some(why) = &decision.why {
        assert_ne!(outcome, Outcome::Injected, "{why}");
        // The text may quote an annotation that has these words in it.
        assert!(!why.starts_with("its patch"), "{why}");
    }
    let why = decision.why.clone().unwrap_or_default();
    let mut answer = match outcome {
        Outcome::Rejected => Answer::refused(&question, outcome.as_str(), &why),
        _ => Answer::allowed(&question, outcome.as_str(), &decision.warnings),
    };
    if let Some(patch) = &decision.patch {
        answer = answer.with_patch(patch).expect("a patch is JSON");
    }
    let bytes = answer.body().expect("an answer is JSON");
    let said: Value = serde_json::from_slice(&bytes).expect("an answer is JSON");
    assert_eq!(said["response"]["uid"], question.uid.as_str());
    assert_eq!(said["response"]["allowed"], outcome != Outcome::Rejected);
    assert!(
        bytes.len() <= 16 * body.len() + 64 * 1024,
        "the size of the answer is bounded"
    );
    // What the API server makes of it is not changed a second time.
    if let Some(patch) = &decision.patch {
        json_patch::patch(&mut question.object, patch).expect("the patch applies");
        let again = decide(&question, &policy, &Injector::default());
        assert!(again.patch.is_none(), "injected twice: {:?}", again.patch);
        assert_eq!(again.outcome, Outcome::Already);
    }
}
