//! What is seen of the agent, and `/livez/agent`.

use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::demo::standin::StandIn;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::pages::{Page, Pages};
use crate::support::{Shim, eventually, pair, refused};

const LIVE: &str = "/livez/agent";

/// A usable server, an agent that is ready, and a shim that knows it, with a short bound.
async fn trio(scheduler: &str) -> (StandIn, Pages, Shim) {
    let agent = Pages::start().await;
    agent.set("/ready", Page::new(200, ""));
    let port = agent.port();
    let (server, shim) = pair(&[
        ("SHIM_AGENT_READY_PORT", port.as_str()),
        ("SHIM_AGENT_STUCK_AFTER", "1s"),
        ("SHIM_SCHEDULER", scheduler),
        ("SHIM_AGENT_PORT", "0"),
    ])
    .await;
    state(&shim, "ready").await;
    (server, agent, shim)
}

async fn state(shim: &Shim, state: &str) -> serde_json::Value {
    eventually(&format!("the agent to be {state}"), async || {
        let status = shim.status().await;
        (status["agent"]["state"] == state).then_some(status)
    })
    .await
}

/// Enough looks of one outcome for three times the bound.
async fn looks(shim: &Shim, outcome: &str) {
    let series = format!("agent_shim_agent_looks_total{{outcome=\"{outcome}\"}}");
    let now = shim.metric(&series).await;
    shim.metric_reaches(&series, now + 30.0).await;
}

fn condition(status: &serde_json::Value) -> Option<serde_json::Value> {
    let conditions = status["conditions"].as_array().unwrap();
    conditions
        .iter()
        .find(|c| c["name"] == "agent-ready")
        .cloned()
}

#[tokio::test]
async fn an_older_agent_without_the_port_is_unknown_and_never_stuck() {
    let (nowhere, _port) = refused().await;
    let port = nowhere.port().to_string();
    let scheduler = FakeScheduler::start().await.unwrap();
    let (_server, shim) = pair(&[
        ("SHIM_AGENT_READY_PORT", port.as_str()),
        ("SHIM_AGENT_STUCK_AFTER", "1s"),
        ("SHIM_SCHEDULER", &scheduler.agent.to_string()),
        ("SHIM_AGENT_PORT", "0"),
    ])
    .await;
    looks(&shim, "gone").await;
    let status = shim.status().await;
    assert_eq!(status["agent"]["state"], "unknown");
    assert_eq!(condition(&status), None, "nothing is claimed");
    let (code, text) = shim.get(LIVE).await;
    assert_eq!(code, 200);
    assert!(text.contains("an older agent has none"), "{text}");
}

#[tokio::test]
async fn an_agent_that_stays_unready_without_a_reason_fails_its_probe_and_not_the_pods() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let (_server, mut agent, shim) = trio(&scheduler.agent.to_string()).await;
    let ready = condition(&shim.status().await).unwrap();
    assert_eq!(ready["status"], true);
    assert_eq!(shim.get(LIVE).await.0, 200);

    agent.set("/ready", Page::new(404, ""));
    let status = state(&shim, "not-ready").await;
    assert_eq!(condition(&status).unwrap()["status"], false);
    assert_eq!(shim.get(LIVE).await.0, 200, "not at once");
    let status = state(&shim, "stuck").await;
    assert_eq!(status["agent"]["live"], false);
    let finding = status["findings"].as_array().unwrap();
    assert!(finding.iter().any(|f| f["name"] == "agent-stuck"));
    let (code, text) = shim.get(LIVE).await;
    assert_eq!(code, 503);
    assert!(
        text.starts_with("stuck: the agent says that it is not ready (404), for "),
        "{text}"
    );
    assert_eq!(shim.get("/readyz").await.0, 200, "no fault of the pod's");
    let series = "agent_shim_agent_state{state=\"stuck\"}";
    assert_eq!(shim.metric(series).await, 1.0);
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", shim.admin()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = HealthClient::new(channel);
    eventually("gRPC health to say so too", async || {
        let service = "livez/agent".into();
        let answer = health.check(HealthCheckRequest { service }).await.unwrap();
        (answer.into_inner().status == 2).then_some(())
    })
    .await;

    // The kill: nothing listens, which is nobody's fault; its successor starts anew.
    agent.stop();
    state(&shim, "unknown").await;
    assert_eq!(shim.get(LIVE).await.0, 200);
    agent.set("/ready", Page::new(503, ""));
    agent.restart().await;
    state(&shim, "not-ready").await;
    looks(&shim, "not-ready").await;
    assert_eq!(shim.get(LIVE).await.0, 200, "it has the time to start");
    agent.set("/ready", Page::new(200, ""));
    state(&shim, "ready").await;
}

#[tokio::test]
async fn an_agent_that_was_ready_and_hangs_is_stuck() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let (_server, agent, shim) = trio(&scheduler.agent.to_string()).await;
    let hanging = Page::new(200, "").after(std::time::Duration::from_secs(60));
    agent.set("/ready", hanging);
    state(&shim, "silent").await;
    state(&shim, "stuck").await;
    assert_eq!(shim.get(LIVE).await.0, 503);
}

#[tokio::test]
async fn an_agent_is_not_blamed_for_a_server_that_is_down() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let (server, agent, shim) = trio(&scheduler.agent.to_string()).await;
    server.stop().await;
    shim.state("127.0.0.1", "grpc", "down").await;
    agent.set("/ready", Page::new(503, ""));
    state(&shim, "not-ready").await;
    looks(&shim, "not-ready").await;
    let (code, text) = shim.get(LIVE).await;
    assert_eq!(code, 200);
    assert!(text.contains("the pod is not ready itself"), "{text}");
    server.restart().await.unwrap();
    state(&shim, "stuck").await;
}

#[tokio::test]
async fn an_agent_is_not_blamed_for_a_scheduler_that_does_not_answer() {
    let (nowhere, _port) = refused().await;
    // Accepts and says nothing, as one that hangs.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for scheduler in [nowhere, mute.local_addr().unwrap()] {
        let (_server, agent, shim) = trio(&scheduler.to_string()).await;
        agent.set("/ready", Page::new(503, ""));
        let text = eventually("the look at the scheduler", async || {
            let (code, text) = shim.get(LIVE).await;
            assert_eq!(code, 200, "{text}");
            text.contains("the scheduler has not been seen")
                .then_some(text)
        })
        .await;
        looks(&shim, "not-ready").await;
        assert_eq!(shim.get(LIVE).await.0, 200, "{text}");
    }
}

#[tokio::test]
async fn without_an_interposer_nothing_is_held_against_the_agent() {
    let (_server, agent, shim) = trio("").await;
    agent.set("/ready", Page::new(503, ""));
    state(&shim, "not-ready").await;
    looks(&shim, "not-ready").await;
    assert_eq!(shim.get(LIVE).await.0, 200);
}
