//! Faults of memory, capabilities, placement and load: the complaint itself.

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::proto::scheduler::Model;

use super::support::*;
use crate::subscription::support::{available, model};
use crate::support::eventually;

fn pinned(mut model: Model, server: &str) -> Model {
    model.model_spec.as_mut().unwrap().server = Some(server.into());
    model
}

#[tokio::test]
async fn no_memory_and_the_agents_default_are_told_apart() {
    let observe = [("SHIM_MODE", "observe")];
    for (memory, id, part) in [
        (0, "AS060", "requests"),
        (1_000_000, "AS061", "resourceFieldRef"),
    ] {
        let pod = Pod::start(agent(memory), &observe).await;
        pod.scheduler.load(model("iris", &["sklearn"], Some(GI)));
        let d = pod.visit().only(id).await;
        let first = d.first.as_ref().unwrap();
        assert!(first.fix.contains(part), "{first:?}");
        assert_eq!(d.follows[0].name, "model-not-scheduled");
    }
}

#[tokio::test]
async fn memory_above_the_limit_is_a_fault_before_anything_is_killed() {
    let settings = [("SHIM_MODE", "observe"), ("SHIM_MEMORY_LIMIT", "2Gi")];
    let pod = Pod::start(agent(8 * GI), &settings).await;
    let d = pod.visit().only("AS062").await;
    let text = d.first.unwrap().text;
    assert!(text.contains("8.0Gi") && text.contains("2.0Gi"), "{text}");
}

#[tokio::test]
async fn a_model_that_can_never_fit_is_told_from_one_that_finds_no_room_now() {
    let pod = Pod::start(agent(2 * GI), &[]).await;
    pod.scheduler
        .load(model("huge", &["sklearn"], Some(8 * GI)));
    let d = pod.visit().only("AS063").await;
    let text = d.first.unwrap().text;
    assert!(text.contains("8.0Gi") && text.contains("2.0Gi"), "{text}");

    let pod = Pod::start(agent(2 * GI), &[]).await;
    pod.scheduler
        .load(model("first", &["sklearn"], Some(GI + GI / 2)));
    available(&pod.scheduler, "first").await;
    pod.scheduler.load(model("second", &["sklearn"], Some(GI)));
    let d = pod.visit().about("second").only("AS065").await;
    assert!(d.first.unwrap().text.contains("1 models have the rest"));
}

#[tokio::test]
async fn over_commit_that_promises_more_than_one_model_can_use_is_named() {
    let config = AgentConfig {
        over_commit: 100,
        ..agent(GI)
    };
    let pod = Pod::start(config, &[]).await;
    pod.scheduler
        .load(model("large", &["sklearn"], Some(GI + GI / 2)));
    let d = pod.visit().only("AS064").await;
    assert!(d.first.unwrap().text.contains("100% over-commit"));
}

#[tokio::test]
async fn a_requirement_under_another_spelling_is_told_from_one_that_is_missing() {
    let declared = [
        ("SHIM_CAPABILITIES", "declared"),
        ("SHIM_CAPABILITIES_LIST", ""),
    ];
    for (requirement, id, part) in [
        ("SKLearn", "AS070", "\"sklearn\" instead of \"SKLearn\""),
        (
            "mlserver[sklearn]",
            "AS070",
            "\"sklearn\" instead of \"mlserver[sklearn]\"",
        ),
        (
            "scikit-learn",
            "AS070",
            "\"sklearn\" instead of \"scikit-learn\"",
        ),
        ("sklearm", "AS071", "\"sklearn\" instead of \"sklearm\""),
        ("torch", "AS071", "pip install torch"),
        ("gpu-a100", "AS071", "Server.spec.capabilities"),
    ] {
        let pod = Pod::start(agent(GI), &declared).await;
        pod.scheduler.load(model("iris", &[requirement], None));
        let d = pod.visit().only(id).await;
        let first = d.first.as_ref().unwrap();
        assert!(first.fix.contains(part), "{requirement}: {first:?}");
        assert_eq!(d.follows[0].name, "model-not-scheduled");
    }
}

#[tokio::test]
async fn replicas_that_differ_are_compared_through_their_shims() {
    let first = Pod::start(agent(GI), &[]).await;
    let mut settings = control(first.scheduler.agent, first.scheduler.status);
    set(
        &mut settings,
        &[("SHIM_CAPABILITIES_LIST", "mlserver,sklearn,xgboost")],
    );
    let shim = shim_with(&first.server, &settings);
    shim.ready().await;
    let _second = FakeAgent::start(AgentConfig {
        scheduler: shim.bound.agent[0],
        replica: 1,
        ..agent(GI)
    });
    let mut visit = first.visit();
    visit.admin.push(format!("http://{}", shim.admin()));
    let d = visit.only("AS072").await;
    let seen = d.first.unwrap().evidence;
    assert!(
        seen[1].contains("only replica 1") && seen[1].contains("xgboost"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn what_is_declared_and_not_installed_is_a_warning() {
    let pod = Pod::start(agent(GI), &[("SHIM_CAPABILITIES_LIST", "mlserver,xgboost")]).await;
    let visit = pod.visit();
    crate::support::eventually("the belief", async || {
        visit.evidence().await.our_replica().is_some().then_some(())
    })
    .await;
    warns(&visit.diagnosis().await, "AS073");
}

#[tokio::test]
async fn a_model_that_nobody_knows_is_told_with_the_nearest_name() {
    let pod = Pod::start(agent(GI), &[]).await;
    pod.scheduler.load(model("iris-model", &["sklearn"], None));
    let d = pod.visit().about("iris-modle").only("AS080").await;
    assert!(d.first.unwrap().text.contains("\"iris-model\""));
}

#[tokio::test]
async fn a_pinned_model_is_told_by_the_server_that_it_names() {
    let pod = Pod::start(agent(GI), &[]).await;
    let _other = FakeAgent::start(AgentConfig {
        server: "triton".into(),
        ..AgentConfig::new(pod.scheduler.agent, GI)
    });
    let both = pod
        .scheduler
        .until(crate::support::PATIENCE, |s| s.replicas.len() == 2);
    assert!(both.await);
    pod.scheduler
        .load(pinned(model("nowhere", &[], None), "tritom"));
    let d = pod.visit().about("nowhere").only("AS081").await;
    assert!(d.first.unwrap().text.contains("\"triton\" is near"));
    pod.scheduler
        .load(pinned(model("there", &["gpu"], None), "triton"));
    let d = pod.visit().about("there").only("AS082").await;
    assert!(d.first.unwrap().fix.contains("kubectl exec triton-0"));
}

#[tokio::test]
async fn a_server_that_is_not_shared_takes_only_models_that_name_it() {
    let config = AgentConfig {
        shared: false,
        ..agent(GI)
    };
    let pod = Pod::start(config, &[]).await;
    pod.scheduler.load(model("iris", &["sklearn"], None));
    let d = pod.visit().only("AS083").await;
    assert!(
        d.first
            .unwrap()
            .fix
            .contains("Model.spec.server of iris: \"mlserver\"")
    );
}

/// An agent that loads into the pod's server.
async fn loading(more: &[(&str, &str)]) -> Pod {
    let mut pod = Pod::start(agent(GI), more).await;
    pod.agent.take();
    let gone = pod
        .scheduler
        .until(crate::support::PATIENCE, |s| s.replicas.is_empty());
    assert!(gone.await);
    pod.agent = Some(FakeAgent::start(AgentConfig {
        inference: Some(pod.shim.grpc()),
        ..AgentConfig::new(pod.shim.bound.agent[0], GI)
    }));
    pod
}

#[tokio::test]
async fn a_load_that_failed_is_told_in_the_servers_own_words() {
    let pod = loading(&[]).await;
    let words = "No module named 'my_runtime'";
    pod.server.set_load_error(Some(words));
    pod.scheduler.load(model("iris", &["sklearn"], None));
    let d = pod.visit().only("AS090").await;
    let text = d.first.unwrap().text;
    assert!(text.contains(words), "{text}");
}

#[tokio::test]
async fn a_model_that_a_restart_has_lost_is_found_missing() {
    let pod = loading(&[("SHIM_RESTORE_MODELS", "false")]).await;
    pod.scheduler.load(model("iris", &["sklearn"], None));
    available(&pod.scheduler, "iris").await;
    let visit = pod.visit();
    crate::support::eventually("the model in the server's list", async || {
        let status = pod.shim.status().await;
        let models = status["models"].as_array().unwrap().clone();
        models
            .iter()
            .any(|m| m["name"] == "iris_1" && m["state"] == "READY")
            .then_some(())
    })
    .await;
    assert_eq!(visit.diagnosis().await.first, None);
    // As after a restart of its container: the repository is empty.
    pod.server.stop().await;
    pod.server.set_models([("", "", ""); 0]);
    pod.server.restart().await.unwrap();
    let d = visit.only("AS095").await;
    assert!(
        d.first
            .unwrap()
            .text
            .contains("model iris is available to the scheduler")
    );
    // The sidecar comes to the same from what it knows anyway, once it has lasted.
    eventually("AS095 in /status", async || {
        let status = pod.shim.status().await;
        let all = status["findings"].as_array().unwrap().clone();
        all.iter().any(|f| f["rule"] == "AS095").then_some(())
    })
    .await;
}
