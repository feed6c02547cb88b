//! Every row of the complaint: what the agent requests, what is observed, what is believed.

use agent_shim::config::Mode;
use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::demo::store::{NO_REPLICA, NO_SERVER};
use agent_shim::proto::scheduler::model_status::ModelState;

use super::support::*;

struct World {
    scheduler: FakeScheduler,
    shim: Shim,
    agent: FakeAgent,
}

async fn world(
    observed: Option<u64>,
    capabilities: Option<&[&str]>,
    change: impl FnOnce(&mut AgentConfig),
) -> World {
    let scheduler = FakeScheduler::start().await.unwrap();
    let double = Double::new(observed);
    double.set(observed, capabilities);
    let shim = Shim::start(settings(&[scheduler.agent]), double).await;
    let mut config = AgentConfig::new(shim.address, 0);
    change(&mut config);
    let agent = FakeAgent::start(config);
    let subscribed = scheduler
        .until(LIMIT, |store| !store.replicas.is_empty())
        .await;
    assert!(subscribed);
    World {
        scheduler,
        shim,
        agent,
    }
}

impl World {
    fn believed(&self) -> (u64, u64) {
        let key = ("mlserver".to_string(), 0);
        self.scheduler
            .read(|store| (store.replicas[&key].total, store.replicas[&key].available))
    }
}

#[tokio::test]
async fn without_the_shim_a_model_is_never_scheduled_and_the_reason_is_the_schedulers_own() {
    let scheduler = FakeScheduler::start().await.unwrap();
    scheduler.load(model("iris", &["sklearn"], Some(GI)));
    let reason = scheduler.read(|s| s.model("iris").unwrap().1.to_string());
    assert!(reason.contains("waiting for server replicas to connect"));
    let _agent = FakeAgent::start(AgentConfig::new(scheduler.agent, 0));
    let failed = |reason| {
        move |store: &agent_shim::demo::store::Store| {
            store.model("iris") == Some((ModelState::ScheduleFailed, reason))
        }
    };
    assert!(scheduler.until(LIMIT, failed(NO_REPLICA)).await);
    scheduler.load(model("iris", &["scikit-learn"], Some(0)));
    assert!(scheduler.until(LIMIT, failed(NO_SERVER)).await);
}

#[tokio::test]
async fn a_model_is_scheduled_whatever_the_agent_requested() {
    for (what, requested, over_commit, observed, total, free) in [
        ("total 0", 0, 0, Some(8 * GI), 8 * GI, 8 * GI),
        (
            "total 1,000,000",
            1_000_000,
            0,
            Some(8 * GI),
            8 * GI,
            8 * GI,
        ),
        (
            "total above the limit",
            64 * GI,
            0,
            Some(8 * GI),
            8 * GI,
            8 * GI,
        ),
        (
            "plausible total",
            8 * GI,
            10,
            None,
            8 * GI,
            8 * GI * 110 / 100,
        ),
        ("over-commit", 1_000_000, 50, Some(8 * GI), 8 * GI, 12 * GI),
    ] {
        let world = world(observed, None, |config| {
            config.memory = requested;
            config.over_commit = over_commit;
        })
        .await;
        assert_eq!(world.believed(), (total, free), "{what}");
        world
            .scheduler
            .load(model("iris", &["sklearn"], Some(3 * GI)));
        available(&world.scheduler, "iris").await;
        assert_eq!(world.believed(), (total, free - 3 * GI), "{what}");
        world
            .scheduler
            .load(model("wine", &["sklearn"], Some(4 * GI)));
        available(&world.scheduler, "wine").await;
        assert_eq!(world.believed(), (total, free - 7 * GI), "{what}");
        world.scheduler.unload("iris");
        let gone = world
            .scheduler
            .until(LIMIT, |s| s.model("iris").is_none())
            .await;
        assert!(gone, "{what}");
        assert_eq!(world.believed(), (total, free - 4 * GI), "{what}");
        world.agent.read(|seen| {
            assert!(seen.failed.is_empty(), "{what}: {:?}", seen.failed);
            assert!(seen.evicted.is_empty(), "{what}: {:?}", seen.evicted);
            assert_eq!(seen.subscriptions, 1, "{what}");
        });
    }
}

#[tokio::test]
async fn where_nothing_is_known_the_agents_word_stands() {
    let world = world(Some(0), None, |config| config.memory = 1_000_000).await;
    assert_eq!(world.believed(), (1_000_000, 1_000_000));
    assert_eq!(world.shim.messages("subscribe", "unchanged"), 1.0);
}

#[tokio::test]
async fn a_requirement_is_met_by_the_reported_list_and_labels_stay() {
    let list = [
        "mlserver",
        "sklearn",
        "scikit-learn",
        "mlserver[sklearn]",
        "gpu-a100",
    ];
    let world = world(Some(8 * GI), Some(&list), |_| {}).await;
    for (i, spelling) in [
        "sklearn",
        " sklearn ",
        "scikit-learn",
        "mlserver[sklearn]",
        "gpu-a100",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("m{i}");
        world
            .scheduler
            .load(model(&name, &["mlserver", spelling], None));
        available(&world.scheduler, &name).await;
    }
    world
        .scheduler
        .load(model("missing", &["tensorflow"], None));
    let state = world
        .scheduler
        .read(|s| s.model("missing").unwrap().1.to_string());
    assert_eq!(state, NO_SERVER);
}

#[tokio::test]
async fn a_model_larger_than_the_total_is_refused_with_a_sentence() {
    // Within over-commit, the scheduler would place it and the agent would evict all for nothing.
    let world = world(Some(4 * GI), None, |config| {
        config.memory = 64 * GI;
        config.over_commit = 100;
    })
    .await;
    world.scheduler.load(model("small", &[], Some(GI)));
    available(&world.scheduler, "small").await;
    world.scheduler.load(model("big", &[], Some(5 * GI)));
    let failed = world
        .scheduler
        .until(LIMIT, |s| {
            s.model("big")
                .is_some_and(|(state, _)| state == ModelState::ModelFailed)
        })
        .await;
    assert!(failed);
    let reason = world
        .scheduler
        .read(|s| s.model("big").unwrap().1.to_string());
    assert!(
        reason.contains("asks for 5.0Gi and this replica has 4.0Gi for models in all"),
        "{reason}"
    );
    assert!(world.scheduler.read(|s| s.is_available("small")));
    assert_eq!(world.believed(), (4 * GI, 7 * GI));
    world.agent.read(|seen| assert_eq!(seen.loaded.len(), 1));
    let status = world.shim.until(|s| !s.refused.is_empty()).await;
    assert_eq!(status.refused[0].model.name, "big");
}

#[tokio::test]
async fn an_over_committed_agent_evicts_when_the_true_total_is_full() {
    let world = world(Some(4 * GI), None, |config| {
        config.memory = 64 * GI;
        config.over_commit = 100;
    })
    .await;
    for name in ["a", "b"] {
        world.scheduler.load(model(name, &[], Some(3 * GI)));
        available(&world.scheduler, name).await;
    }
    world.agent.read(|seen| assert_eq!(seen.evicted, ["a"]));
    assert_eq!(world.believed(), (4 * GI, 2 * GI));
}

#[tokio::test]
async fn workers_are_counted_where_they_are_known() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let double = Double::new(Some(8 * GI));
    double.set_workers(4);
    let shim = Shim::start(settings(&[scheduler.agent]), double).await;
    let _agent = FakeAgent::start(AgentConfig::new(shim.address, 8 * GI));
    scheduler.load(model("iris", &["sklearn"], Some(GI)));
    available(&scheduler, "iris").await;
    scheduler.read(|store| {
        assert_eq!(store.models["iris"].workers, 4);
        assert_eq!(
            store.replicas[&("mlserver".to_string(), 0)].available,
            4 * GI
        );
    });
}

#[tokio::test]
async fn what_the_server_does_not_load_is_failed_and_its_memory_is_free_again() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let world = world(Some(4 * GI), None, |config| {
        config.inference = Some(address);
    })
    .await;
    world.scheduler.load(model("iris", &["sklearn"], Some(GI)));
    let failed = world
        .scheduler
        .until(LIMIT, |s| {
            s.model("iris")
                .is_some_and(|(state, _)| state == ModelState::ModelFailed)
        })
        .await;
    assert!(failed);
    assert_eq!(world.believed(), (4 * GI, 4 * GI));
    world.agent.read(|seen| assert!(seen.loaded.is_empty()));
}

#[tokio::test]
async fn observing_changes_nothing_and_still_says_what_it_would_change() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let mut observe = settings(&[scheduler.agent]);
    observe.mode = Mode::Observe;
    let shim = Shim::start(observe, Double::new(Some(8 * GI))).await;
    let _agent = FakeAgent::start(AgentConfig::new(shim.address, 1_000_000));
    let status = shim.until(|s| s.wanted.is_some()).await;
    assert_eq!(status.wanted.unwrap().memory, 8 * GI);
    assert_eq!(status.reported.unwrap().memory, 1_000_000);
    assert!(scheduler.until(LIMIT, |s| !s.replicas.is_empty()).await);
    let believed = scheduler.read(|s| s.replicas[&("mlserver".to_string(), 0)].total);
    assert_eq!(believed, 1_000_000);
}

#[tokio::test]
async fn a_thousand_models_are_loaded_and_accounted_for() {
    let world = world(Some(8 * GI), None, |config| config.memory = 1_000_000).await;
    let size = 1_000_000;
    for i in 0..1000 {
        world
            .scheduler
            .load(model(&format!("m{i}"), &["sklearn"], Some(size)));
    }
    let all = world
        .scheduler
        .until(LIMIT, |s| {
            (0..1000).all(|i| s.is_available(&format!("m{i}")))
        })
        .await;
    let mut states = std::collections::BTreeMap::<String, usize>::new();
    world.scheduler.read(|s| {
        for i in 0..1000 {
            *states
                .entry(format!("{:?}", s.model(&format!("m{i}"))))
                .or_default() += 1;
        }
    });
    assert!(all, "{states:?} {:?}", world.shim.until(|_| true).await);
    let status = world.shim.until(|s| s.balance.loaded == 1000).await;
    assert_eq!(status.balance.available, Some(8 * GI - 1000 * size));
    world.agent.read(|seen| assert!(seen.failed.is_empty()));
}
