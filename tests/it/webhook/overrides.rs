//! What a pod's annotations change, and how mistakes in them are told.

use agent_shim::config::Mode;
use agent_shim::inject::{self, Options, Style, Tls};
use agent_shim::webhook::decide::Injector;
use agent_shim::webhook::overrides::OVERRIDES;
use serde_json::{Value, json};

use super::support::*;

fn with(annotations: &[(&str, &str)]) -> Value {
    let mut pod = pod();
    for (name, value) in annotations {
        pod["metadata"]["annotations"][format!("agent-shim.io/{name}")] = json!(value);
    }
    pod
}

#[tokio::test]
async fn each_override_has_its_effect() {
    let hook = Hook::start();
    type Change = fn(&mut Options);
    let all: [(&str, &str, Change); OVERRIDES.len()] = [
        ("image", "other:2", |o| o.image = "other:2".into()),
        ("pull-policy", "Always", |o| {
            o.pull_policy = Some("Always".into());
        }),
        ("style", "plain", |o| o.style = Style::Plain),
        ("mode", "observe", |o| o.mode = Mode::Observe),
        ("interpose", "false", |o| o.interpose = false),
        ("scheduler", "s.x.svc:9005", |o| {
            o.scheduler = Some("s.x.svc:9005".into());
        }),
        ("scheduler-status", "s.x.svc:9004", |o| {
            o.scheduler_status = Some("s.x.svc:9004".into());
        }),
        ("tls", "off", |o| o.tls = Tls::Off),
        ("cpu-request", "20m", |o| {
            o.resources.cpu_request = "20m".into();
        }),
        ("cpu-limit", "2", |o| o.resources.cpu_limit = "2".into()),
        ("memory-request", "48Mi", |o| {
            o.resources.memory_request = "48Mi".into();
        }),
        ("memory-limit", " 128Mi ", |o| {
            o.resources.memory_limit = "128Mi".into();
        }),
        ("agent-container", "rclone", |o| o.agent = "rclone".into()),
        ("inference-container", "rclone", |o| {
            o.inference = "rclone".into();
        }),
        ("share-process-namespace", "true", |o| {
            o.share_process_namespace = true;
        }),
        ("agent-watchdog", "true", |o| o.agent_watchdog = true),
        ("drain-hook", "true", |o| o.drain_hook = true),
        (
            "settings",
            "# slower\nSHIM_PROBE_INTERVAL = 2s\n\nSHIM_INFERENCE_HOSTS=127.0.0.1,::1\n",
            |o| {
                o.settings.insert("SHIM_PROBE_INTERVAL".into(), "2s".into());
                let hosts = "127.0.0.1,::1".into();
                o.settings.insert("SHIM_INFERENCE_HOSTS".into(), hosts);
            },
        ),
    ];
    for (override_, (name, value, change)) in OVERRIDES.iter().zip(all) {
        assert_eq!(override_.name, name, "each override is tested");
        let pod = with(&[(name, value)]);
        let response = hook.review(&pod).await;
        assert_eq!(response["allowed"], true, "{name}: {response}");
        let mut got = patched(&pod, &response);
        let annotations = got["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.remove("agent-shim.io/status").unwrap();
        let mut options = Options::default();
        change(&mut options);
        let mut expected = pod.clone();
        inject::inject(&mut expected, &options).unwrap();
        assert_eq!(got, expected, "{name}");
    }
}

#[tokio::test]
async fn overrides_of_requests_and_limits_are_judged_together() {
    let hook = Hook::start();
    // Each alone is above, or below, what the administrator has set for the other.
    let pod = with(&[("cpu-request", "2"), ("cpu-limit", "3")]);
    assert_eq!(hook.review(&pod).await["allowed"], true);
    let refused = hook.review(&with(&[("cpu-request", "2")])).await;
    assert_eq!(refused["allowed"], false);
    let said = refused["status"]["message"].as_str().unwrap();
    let start =
        "agent-shim: annotation agent-shim.io/cpu-request=\"2\": expected a Kubernetes quantity";
    assert!(said.starts_with(start), "{said}");
    assert!(said.contains("not above the limit"), "{said}");
}

#[tokio::test]
async fn a_bad_override_is_refused_with_what_was_expected() {
    let hook = Hook::start();
    for (name, value, part) in [
        ("image", "", "expected an image"),
        ("image", "two words", "expected an image"),
        ("style", "sidecar", "expected native or plain"),
        ("mode", "watch", "expected correct or observe"),
        ("interpose", "yes", "expected \"true\" or \"false\""),
        ("scheduler", "no port", "expected host:port"),
        ("scheduler-status", "", "expected host:port"),
        ("tls", "on", "expected auto or off"),
        (
            "pull-policy",
            "Sometimes",
            "expected Always, IfNotPresent or Never",
        ),
        ("cpu-request", "lots", "expected a Kubernetes quantity"),
        ("memory-limit", "1MB", "expected a Kubernetes quantity"),
        ("agent-container", "A_B", "expected the name of a container"),
        ("inference-container", "agent", "three different names"),
        ("settings", "SHIM_MODE", "expected NAME=value on each line"),
        (
            "settings",
            "SHIM_PROBE_RISES=2",
            "did you mean SHIM_PROBE_RISE?",
        ),
        (
            "settings",
            "SHIM_PROBE_INTERVAL=soon",
            "SHIM_PROBE_INTERVAL",
        ),
        ("settings", "PATH=/", "there is no such setting"),
        ("imagee", "x", "did you mean agent-shim.io/image?"),
    ] {
        let response = hook.review(&with(&[(name, value)])).await;
        assert_eq!(response["allowed"], false, "{name}={value}");
        assert_eq!(response.get("patch"), None);
        assert_eq!(response["status"]["code"], 400);
        assert_eq!(response["auditAnnotations"]["outcome"], "rejected");
        let said = response["status"]["message"].as_str().unwrap();
        assert!(said.contains(&format!("agent-shim.io/{name}")), "{said}");
        assert!(said.contains(part), "{name}={value}: {said}");
        if name != "imagee" {
            assert!(
                said.contains(&format!("{value:?}")),
                "{name}={value}: {said}"
            );
        }
    }
    // No value of an annotation is repeated at length, nor anything that is not printable.
    let long = "\u{1F600}\u{0}x".repeat(10_000);
    let response = hook.review(&with(&[("style", &long)])).await;
    let said = response["status"]["message"].as_str().unwrap();
    assert!(said.len() < 250 && said.is_ascii(), "{said}");
}

#[tokio::test]
async fn who_does_not_ask_for_the_shim_may_write_what_he_likes() {
    let hook = Hook::start();
    let mut pod = with(&[("style", "nonsense")]);
    pod["metadata"]["annotations"]["agent-shim.io/inject"] = json!("disabled");
    assert_eq!(hook.review(&pod).await["allowed"], true);
    let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
    annotations.remove("agent-shim.io/inject");
    assert_eq!(hook.review(&pod).await["allowed"], true);
}

#[tokio::test]
async fn an_annotation_of_a_later_release_is_warned_about_and_not_refused() {
    let hook = Hook::start();
    let response = hook.review(&with(&[("quantum-flux", "1")])).await;
    assert_eq!(response["auditAnnotations"]["outcome"], "injected");
    let warnings = response["warnings"].to_string();
    assert!(warnings.contains("annotation agent-shim.io/quantum-flux means nothing"));
}

#[tokio::test]
async fn the_administrator_can_switch_overrides_off() {
    let only = |allowed: &'static str| {
        Hook::with(
            |s| s.policy.allowed = allowed.parse().unwrap(),
            Injector::default(),
        )
    };
    for (allowed, name, value, ok) in [
        ("none", "image", "x:1", false),
        ("none", "mode", "observe", false),
        ("mode, settings", "mode", "observe", true),
        ("mode,settings", "image", "x:1", false),
        ("all", "image", "x:1", true),
    ] {
        let hook = only(allowed);
        let response = hook.review(&with(&[(name, value)])).await;
        assert_eq!(response["allowed"], ok, "{allowed} {name}");
        if !ok {
            let said = response["status"]["message"].as_str().unwrap();
            assert!(
                said.contains(name) && said.contains("--allow-overrides"),
                "{said}"
            );
        }
        // Whether it is injected at all remains its own decision.
        assert_eq!(
            hook.review(&pod()).await["auditAnnotations"]["outcome"],
            "injected"
        );
    }
}
