//! The complaint, through the whole shim: "Subscribed to scheduler", and no model is scheduled.
//! A stand-in agent and scheduler behave as the real ones do, the stand-in server answers.

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::demo::standin::StandIn;
use agent_shim::demo::store::{NO_REPLICA, NO_SERVER};

use crate::subscription::support::{GI, LIMIT, available, model};
use crate::support::{Shim, eventually};

struct Pod {
    scheduler: FakeScheduler,
    server: StandIn,
    shim: Shim,
    agent: FakeAgent,
}

/// A pod whose agent requests `memory` and declares what Seldon's own configuration declares.
async fn pod(memory: u64, settings: &[(&str, &str)]) -> Pod {
    let scheduler = FakeScheduler::start().await.unwrap();
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let (shim, agent) = put_before(&scheduler, &server, memory, settings).await;
    Pod {
        scheduler,
        server,
        shim,
        agent,
    }
}

async fn put_before(
    scheduler: &FakeScheduler,
    server: &StandIn,
    memory: u64,
    settings: &[(&str, &str)],
) -> (Shim, FakeAgent) {
    let (calls, status) = (scheduler.agent.to_string(), scheduler.status.to_string());
    let mut all = vec![
        ("SHIM_SCHEDULER", calls.as_str()),
        ("SHIM_SCHEDULER_STATUS", status.as_str()),
        ("SHIM_AGENT_PORT", "0"),
        // What the test machine has installed is not this test's business.
        ("SHIM_CAPABILITIES_LIST", "mlserver,sklearn"),
    ];
    all.extend(settings);
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &all);
    let agent = FakeAgent::start(AgentConfig::new(shim.bound.agent[0], memory));
    (shim, agent)
}

impl Pod {
    /// What the scheduler was told, once the agent has subscribed.
    async fn total(&self) -> u64 {
        let there = self
            .scheduler
            .until(LIMIT, |s| !s.replicas.is_empty())
            .await;
        assert!(there, "the agent has not subscribed");
        self.scheduler
            .read(|s| s.replicas.values().next().unwrap().total)
    }
}

#[tokio::test]
async fn the_total_is_what_is_there_whatever_the_agent_was_given() {
    const MILLION: u64 = 1_000_000;
    for (requested, settings, expected) in [
        (0, vec![("SHIM_MEMORY_LIMIT", "2Gi")], 2 * GI),
        (MILLION, vec![("SHIM_MEMORY_LIMIT", "2Gi")], 2 * GI),
        (
            0,
            vec![("SHIM_MEMORY_REQUEST", "1Gi"), ("SHIM_MEMORY_LIMIT", "2Gi")],
            GI,
        ),
        (GI, vec![("SHIM_MEMORY_LIMIT", "2Gi")], GI),
        (1 << 50, vec![("SHIM_MEMORY_LIMIT", "2Gi")], 2 * GI),
        (GI, vec![("SHIM_MEMORY_BYTES", "3Gi")], 3 * GI),
        (
            0,
            vec![
                ("SHIM_MEMORY_LIMIT", "2Gi"),
                ("SHIM_MEMORY_RESERVED", "1Gi"),
            ],
            GI,
        ),
    ] {
        let pod = pod(requested, &settings).await;
        assert_eq!(pod.total().await, expected, "{requested} with {settings:?}");
    }
}

#[tokio::test]
async fn a_model_that_is_never_scheduled_without_the_shim_is_available_with_it() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    scheduler.load(model("memory", &["sklearn"], Some(GI)));
    scheduler.load(model(
        "spelling",
        &["scikit-learn", "mlserver[sklearn]"],
        None,
    ));
    {
        let _agent = FakeAgent::start(AgentConfig::new(scheduler.agent, 0));
        let refused = |name: &'static str, reason: &'static str| {
            scheduler.until(LIMIT, move |s| s.model(name).is_some_and(|m| m.1 == reason))
        };
        assert!(refused("memory", NO_REPLICA).await);
        assert!(refused("spelling", NO_SERVER).await);
    }
    assert!(scheduler.until(LIMIT, |s| s.replicas.is_empty()).await);
    let limit = [("SHIM_MEMORY_LIMIT", "2Gi")];
    let (shim, _agent) = put_before(&scheduler, &server, 0, &limit).await;
    available(&scheduler, "memory").await;
    available(&scheduler, "spelling").await;
    // And the shim can prove it.
    let status = eventually("the scheduler's belief to be read", async || {
        let status = shim.status().await;
        (!status["capacity"]["believed"].is_null()).then_some(status)
    })
    .await;
    let figures = &status["capacity"];
    assert_eq!(figures["requested"], 0);
    for figure in ["observed", "reported", "believed"] {
        assert_eq!(figures[figure], 2 * GI, "{figure}");
    }
    let why = figures["why"].as_str().unwrap();
    assert!(
        why.contains("no memory request") && why.contains("limit"),
        "{why}"
    );
    let conditions = status["conditions"].as_array().unwrap();
    for name in ["subscribed", "registered", "capacity-agrees"] {
        let condition = conditions.iter().find(|c| c["name"] == name).unwrap();
        assert_eq!(condition["status"], true, "{condition}");
    }
    let observed = r#"agent_shim_capacity_bytes{figure="observed"}"#;
    assert_eq!(shim.metric(observed).await, (2 * GI) as f64);
}

#[tokio::test]
async fn what_is_missing_is_named_with_the_nearest_name() {
    let pod = pod(GI, &[]).await;
    pod.total().await;
    pod.scheduler.load(model("typo", &["sklearm"], None));
    let text = eventually("the finding", async || {
        let findings = pod.shim.status().await["findings"].clone();
        let all = findings.as_array().unwrap().clone();
        let found = all
            .into_iter()
            .find(|f| f["name"] == "requirement-missing")?;
        Some(format!(
            "{} {}",
            found["text"].as_str()?,
            found["evidence"][0].as_str()?
        ))
    })
    .await;
    for part in ["model typo", NO_SERVER, "\"sklearm\"", "\"sklearn\""] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    drop(pod.agent);
}

#[tokio::test]
async fn a_requirement_may_be_spelled_in_any_of_six_ways_and_a_label_stays() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let strict = [("SHIM_CAPABILITIES", "strict")];
    let (shim, first) = put_before(&scheduler, &server, GI, &strict).await;
    drop(first);
    let mut config = AgentConfig::new(shim.bound.agent[0], GI);
    config.capabilities = ["mlserver", "xgboost", "gpu-a100"].map(String::from).into();
    let _agent = FakeAgent::start(config);
    for (i, spelling) in [
        "sklearn",
        "scikit-learn",
        "scikit_learn",
        "SKLearn",
        "mlserver[sklearn]",
        "mlserver-sklearn",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("m{i}");
        scheduler.load(model(&name, &[spelling, "gpu-a100"], None));
        available(&scheduler, &name).await;
    }
    // In strict mode what is known not to be installed goes.
    scheduler.load(model("x", &["xgboost"], None));
    let refused = scheduler
        .until(LIMIT, |s| s.model("x").is_some_and(|m| m.1 == NO_SERVER))
        .await;
    assert!(refused);
}

#[tokio::test]
async fn a_subscription_waits_for_the_server_and_readiness_does_not_wait_for_the_scheduler() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    server.stop().await;
    let (shim, _agent) = put_before(&scheduler, &server, GI, &[]).await;
    let held = eventually("the hold", async || {
        let status = shim.status().await;
        let all = status["conditions"].as_array().unwrap().clone();
        let subscribed = all.into_iter().find(|c| c["name"] == "subscribed")?;
        let reason = subscribed["reason"].as_str().unwrap().to_string();
        reason.contains("held").then_some(reason)
    })
    .await;
    assert!(
        held.contains("the inference server to answer gRPC"),
        "{held}"
    );
    assert!(scheduler.read(|s| s.replicas.is_empty()));
    server.restart().await.unwrap();
    assert!(scheduler.until(LIMIT, |s| !s.replicas.is_empty()).await);

    // A scheduler that is away: the pod is ready all the same, and says what is missing.
    let nowhere = crate::support::refused().await;
    let away = nowhere.0.to_string();
    let settings = [("SHIM_SCHEDULER", away.as_str()), ("SHIM_AGENT_PORT", "0")];
    let lonely = Shim::before("127.0.0.1", server.http(), server.grpc(), &settings);
    lonely.ready().await;
    let status = lonely.status().await;
    let conditions = status["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c["name"] == "subscribed" && c["status"] == false)
    );
}

#[tokio::test]
async fn observe_mode_reports_the_agents_own_word() {
    let settings = [("SHIM_MODE", "observe"), ("SHIM_MEMORY_LIMIT", "2Gi")];
    let pod = pod(0, &settings).await;
    assert_eq!(pod.total().await, 0);
    eventually("the measurement, which is made all the same", async || {
        let status = pod.shim.status().await;
        (status["capacity"]["observed"] == 2 * GI).then_some(())
    })
    .await;
    drop(pod.server);
}
