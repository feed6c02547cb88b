//! Any of the three may go and come back, at any moment.

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::{FakeScheduler, Manners};
use agent_shim::subscription::status::Phase;

use super::support::*;

fn free(scheduler: &FakeScheduler) -> Option<u64> {
    scheduler.read(|s| {
        s.replicas
            .get(&("mlserver".to_string(), 0))
            .map(|r| r.available)
    })
}

#[tokio::test]
async fn a_shim_restarted_between_load_and_unload_lists_the_original_memory() {
    for requested in [0, 1_000_000, 64 * GI] {
        let scheduler = FakeScheduler::start().await.unwrap();
        let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
        let address = shim.address;
        let agent = FakeAgent::start(AgentConfig::new(address, requested));
        scheduler.load(model("iris", &["sklearn"], Some(3 * GI)));
        scheduler.load(model("none", &["sklearn"], None));
        available(&scheduler, "iris").await;
        available(&scheduler, "none").await;
        drop(shim);
        assert!(scheduler.until(LIMIT, |s| s.replicas.is_empty()).await);
        let shim = Shim::start_at(
            address,
            settings(&[scheduler.agent]),
            Double::new(Some(8 * GI)),
        )
        .await;
        assert!(scheduler.until(LIMIT, |s| s.is_available("iris")).await);
        let listed = scheduler.read(|s| s.requests.last().unwrap().loaded_models.clone());
        let memory: Vec<Option<u64>> = listed
            .into_iter()
            .map(|m| {
                assert!(m.agent_shim_original.is_none());
                m.model.unwrap().model_spec.unwrap().memory_bytes
            })
            .collect();
        assert_eq!(memory, [Some(3 * GI), None]);
        assert_eq!(free(&scheduler), Some(5 * GI));
        scheduler.unload("iris");
        assert!(scheduler.until(LIMIT, |s| s.model("iris").is_none()).await);
        assert_eq!(free(&scheduler), Some(8 * GI));
        agent.read(|seen| assert_eq!(seen.loaded.len(), 1));
        drop(shim);
    }
}

#[tokio::test]
async fn a_scheduler_restarted_without_its_store_learns_models_as_they_were() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let (at, status) = (scheduler.agent, scheduler.status);
    let shim = Shim::start(settings(&[at]), Double::new(Some(8 * GI))).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    scheduler.load(model("iris", &["sklearn"], Some(3 * GI)));
    available(&scheduler, "iris").await;
    drop(scheduler);
    shim.until(|s| matches!(s.phase, Phase::Unreachable { .. }))
        .await;
    let scheduler = FakeScheduler::start_at(at, status, Manners::default())
        .await
        .unwrap();
    available(&scheduler, "iris").await;
    let spec = scheduler.read(|s| s.models["iris"].model.model_spec.clone().unwrap());
    assert_eq!(spec.memory_bytes, Some(3 * GI));
    assert_eq!(free(&scheduler), Some(5 * GI));
    let ended = agent.read(|seen| seen.subscriptions);
    assert_eq!(
        ended, 2,
        "the agent's stream ends with the scheduler's, once"
    );
}

#[tokio::test]
async fn a_scheduler_that_stops_in_order_ends_the_agents_stream_too() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    scheduler.load(model("iris", &["sklearn"], Some(GI)));
    available(&scheduler, "iris").await;
    scheduler.end_subscriptions();
    assert!(agent.until(LIMIT, |seen| seen.subscriptions == 2).await);
    assert!(scheduler.until(LIMIT, |s| s.requests.len() == 2).await);
    available(&scheduler, "iris").await;
    assert_eq!(
        shim.series("agent_shim_subscriptions_total{event=\"ended-by-scheduler\"}"),
        1.0
    );
}

#[tokio::test]
async fn an_agent_restarted_begins_with_an_empty_account() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    scheduler.load(model("iris", &["sklearn"], Some(3 * GI)));
    available(&scheduler, "iris").await;
    drop(agent);
    assert!(scheduler.until(LIMIT, |s| s.replicas.is_empty()).await);
    let _agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    available(&scheduler, "iris").await;
    assert_eq!(free(&scheduler), Some(5 * GI));
    assert_eq!(scheduler.read(|s| s.requests[1].loaded_models.len()), 0);
}
