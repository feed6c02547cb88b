//! Which pods are changed, how, and what goes through when something fails.

use agent_shim::inject::{self, Error, Options};
use agent_shim::webhook::decide::Injector;
use serde_json::{Value, json};

use super::support::*;

/// The pod that `inject` makes, with the webhook's own annotation taken out of `from`.
fn injected(pod: &Value, options: &Options, from: &Value) -> Value {
    let mut expected = pod.clone();
    let report = inject::inject(&mut expected, options).unwrap();
    assert!(report.changed);
    let status = &from["metadata"]["annotations"]["agent-shim.io/status"];
    expected["metadata"]["annotations"]["agent-shim.io/status"] = status.clone();
    expected
}

#[tokio::test]
async fn the_patch_gives_exactly_the_injected_pod_over_both_versions_of_http() {
    let hook = Hook::start();
    let pod = pod();
    for (alpn, two) in [
        (&["h2", "http/1.1"][..], true),
        (&["http/1.1"], false),
        (&[], false),
    ] {
        let client = hook.authority.client(alpn);
        let mut caller = Caller::connect(hook.review, client).await;
        assert_eq!(caller.is_http2(), two, "{alpn:?}");
        // More than one on a connection.
        for _ in 0..3 {
            let review = review(&pod);
            let (status, answer) = caller.post(review.to_string()).await;
            assert_eq!(status, 200, "{answer}");
            let response = response(&review, &answer);
            assert_eq!(response["allowed"], true);
            let patched = patched(&pod, &response);
            assert_ne!(patched, pod);
            assert_eq!(patched, injected(&pod, &Options::default(), &patched));
        }
    }
    let series = r#"agent_shim_webhook_requests_total{outcome="injected"}"#;
    assert_eq!(hook.series(series).await, 9.0);
}

#[tokio::test]
async fn the_status_annotation_says_what_was_done() {
    let hook = Hook::start();
    let mut pod = pod();
    pod["spec"]["containers"][2]["resources"] = json!({});
    pod["metadata"]["annotations"]["agent-shim.io/style"] = json!("plain");
    let response = hook.review(&pod).await;
    let patched = patched(&pod, &response);
    let status = &patched["metadata"]["annotations"]["agent-shim.io/status"];
    let status: Value = serde_json::from_str(status.as_str().unwrap()).unwrap();
    assert_eq!(status["injected"], true);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["style"], "plain");
    assert_eq!(status["mode"], "correct");
    // A server without a memory request is warned about, in both places.
    let warnings = status["warnings"].as_array().unwrap();
    assert!(!warnings.is_empty(), "{status}");
    let told = response["warnings"].as_array().unwrap();
    assert_eq!(told.len(), warnings.len());
    for warning in told {
        let warning = warning.as_str().unwrap();
        assert!(warning.starts_with("agent-shim: ") && warning.len() <= 256);
    }
}

#[tokio::test]
async fn only_new_pods_that_ask_for_it_are_changed() {
    let hook = Hook::start();
    let with = |place: &str, value: &str| {
        let mut pod = silent_pod();
        pod["metadata"][place]["agent-shim.io/inject"] = json!(value);
        pod
    };
    let both = |annotation: &str, label: &str| {
        let mut pod = with("annotations", annotation);
        pod["metadata"]["labels"]["agent-shim.io/inject"] = json!(label);
        pod
    };
    for (name, pod, outcome) in [
        ("silent", silent_pod(), "unchanged"),
        ("annotation", with("annotations", "enabled"), "injected"),
        ("annotation true", with("annotations", "true"), "injected"),
        ("label", with("labels", "enabled"), "injected"),
        ("no", with("annotations", "disabled"), "opted-out"),
        ("false", with("labels", "false"), "opted-out"),
        ("label no", both("enabled", "disabled"), "opted-out"),
        ("annotation no", both("disabled", "enabled"), "opted-out"),
        (
            "no wins over nonsense",
            both("nonsense", "disabled"),
            "opted-out",
        ),
        ("nonsense", with("labels", "on"), "rejected"),
        ("half nonsense", both("enabled", "Yes"), "rejected"),
    ] {
        let response = hook.review(&pod).await;
        assert_eq!(response["auditAnnotations"]["outcome"], outcome, "{name}");
        assert_eq!(response["allowed"], outcome != "rejected", "{name}");
        assert_eq!(response.get("patch").is_some(), outcome == "injected");
        let series = format!("agent_shim_webhook_requests_total{{outcome=\"{outcome}\"}}");
        assert!(hook.series(&series).await >= 1.0, "{name}");
    }
    let refused = hook.review(&with("labels", "on")).await;
    assert_eq!(
        refused["status"]["message"],
        "agent-shim: label agent-shim.io/inject=\"on\": expected enabled or disabled"
    );
    assert_eq!(refused["status"]["code"], 400);
}

#[tokio::test]
async fn what_is_not_a_new_pod_of_another_namespace_is_left_alone() {
    let hook = Hook::start();
    let change = |path: &str, value: Value| {
        let mut review = review(&pod());
        *review["request"].pointer_mut(path).unwrap() = value;
        review
    };
    let mut status = review(&pod());
    status["request"]["subResource"] = json!("status");
    for (name, review) in [
        ("own namespace", change("/namespace", json!("shim"))),
        ("excluded", change("/namespace", json!("kube-system"))),
        ("update", change("/operation", json!("UPDATE"))),
        ("delete", change("/operation", json!("DELETE"))),
        ("subresource", status),
        ("group", change("/kind/group", json!("apps"))),
        ("kind", change("/kind/kind", json!("Deployment"))),
        ("version", change("/kind/version", json!("v2"))),
        ("no object", change("/object", Value::Null)),
        ("no map", change("/object", json!([1]))),
    ] {
        let response = hook.ask(&review).await;
        assert_eq!(response["allowed"], true, "{name}");
        assert_eq!(response.get("patch"), None, "{name}");
        assert_eq!(
            response["auditAnnotations"]["outcome"], "unchanged",
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_pod_without_an_agent_goes_through_with_a_warning() {
    let hook = Hook::start();
    let mut pod = pod();
    pod["spec"]["containers"].as_array_mut().unwrap().remove(1);
    let response = hook.review(&pod).await;
    assert_eq!(response["allowed"], true);
    assert_eq!(response.get("patch"), None);
    assert_eq!(
        response["warnings"],
        json!([
            "agent-shim: agent-shim.io/inject=enabled has no effect on this pod: it has no container named agent"
        ])
    );
}

#[tokio::test]
async fn asked_again_about_its_own_work_it_changes_nothing() {
    let hook = Hook::start();
    for style in ["native", "plain"] {
        let mut pod = pod();
        pod["metadata"]["annotations"]["agent-shim.io/style"] = json!(style);
        let once = patched(&pod, &hook.review(&pod).await);
        let again = hook.review(&once).await;
        assert_eq!(again.get("patch"), None, "{style}");
        assert_eq!(again["auditAnnotations"]["outcome"], "already");
        // Another webhook, called in between, has put its container in.
        let mut meshed = once.clone();
        let proxy = json!({ "name": "proxy", "image": "proxy:1" });
        let containers = meshed["spec"]["containers"].as_array_mut().unwrap();
        containers.push(proxy);
        let third = hook.review(&meshed).await;
        assert_eq!(patched(&meshed, &third), meshed, "{style}");
    }
}

#[tokio::test]
async fn a_container_of_that_name_by_other_hands_is_left_alone() {
    let hook = Hook::start();
    let mut pod = pod();
    let own = json!({ "name": "agent-shim", "image": "mine" });
    pod["spec"]["containers"].as_array_mut().unwrap().push(own);
    let response = hook.review(&pod).await;
    assert_eq!(response["allowed"], true);
    assert_eq!(response.get("patch"), None);
    assert_eq!(response["auditAnnotations"]["outcome"], "already");
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.contains("\"agent-shim\""), "{warning}");
}

#[tokio::test]
async fn a_dry_run_gets_the_same_answer() {
    let hook = Hook::start();
    let mut review = review(&pod());
    let real = hook.ask(&review).await;
    review["request"]["dryRun"] = json!(true);
    assert_eq!(hook.ask(&review).await, real);
}

#[tokio::test]
async fn the_patch_keeps_off_what_is_not_the_shims() {
    let hook = Hook::start();
    let mut pod = pod();
    // Unknown fields, odd names and numbers of every kind survive.
    pod["spec"]["x-new"] = json!({ "a/b~c": [1, 1.5, u64::MAX, i64::MIN, null, ""] });
    pod["spec"]["initContainers"] = json!([{ "name": "first", "image": "i" }]);
    let response = hook.review(&pod).await;
    for operation in patch_of(&response["patch"]).0 {
        let path = operation.path().to_string();
        let own = path.starts_with("/metadata/annotations/agent-shim.io~1")
            || path == "/spec/initContainers/1"
            || path.starts_with("/spec/containers/1/")
            || path.starts_with("/spec/volumes");
        assert!(own, "{path}");
    }
    let patched = patched(&pod, &response);
    assert_eq!(patched["spec"]["x-new"], pod["spec"]["x-new"]);
    for i in [0, 2] {
        assert_eq!(
            patched["spec"]["containers"][i],
            pod["spec"]["containers"][i]
        );
    }
}

#[tokio::test]
async fn a_failure_of_its_own_lets_the_pod_through() {
    let error = |_: &mut Value, _: &Options| {
        Err(Error::Malformed {
            path: "spec".into(),
            expected: "a map",
        })
    };
    // Without an override an option that is refused is the administrator's mistake.
    let option = |_: &mut Value, _: &Options| {
        Err(Error::Option {
            option: "image".into(),
            why: "no".into(),
        })
    };
    let panic = |_: &mut Value, _: &Options| panic!("on purpose");
    for (injector, part, panics) in [
        (Injector::new(error), "spec: expected a map", 0.0),
        (Injector::new(option), "image: no", 0.0),
        (Injector::new(panic), "an internal error", 1.0),
    ] {
        let hook = Hook::with(|_| {}, injector);
        let mut caller = hook.caller().await;
        let review = review(&pod());
        let (status, answer) = caller.post(review.to_string()).await;
        assert_eq!(status, 200);
        let response = response(&review, &answer);
        assert_eq!(response["allowed"], true);
        assert_eq!(response.get("patch"), None);
        let warning = response["warnings"][0].as_str().unwrap();
        assert!(warning.contains(part), "{warning}");
        let series = r#"agent_shim_webhook_requests_total{outcome="failed-open"}"#;
        assert_eq!(hook.series(series).await, 1.0);
        let series = "agent_shim_webhook_panics_total";
        assert_eq!(hook.series(series).await, panics);
        // The connection and the webhook go on.
        assert_eq!(caller.post(review.to_string()).await.0, 200);
        assert_eq!(hook.get("/readyz").await.0, 200);
    }
}
