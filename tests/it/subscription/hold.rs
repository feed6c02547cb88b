//! A subscription is held, never refused; renewed when it must be, and never for a flap.

use std::net::SocketAddr;
use std::time::Duration;

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::{FakeScheduler, Manners};
use agent_shim::proto::agent::AgentSubscribeRequest;
use agent_shim::subscription::frames::framed;
use agent_shim::subscription::status::Phase;
use http_body::Frame;
use http_body_util::BodyExt;
use prost::Message;
use tokio::net::TcpListener;

use super::events::{event, request};
use super::raw::*;
use super::support::*;
use crate::support::eventually;

/// An address where nobody listens.
pub async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

const ANY: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

#[tokio::test]
async fn a_subscription_waits_until_enough_is_known_and_then_goes_on_corrected() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let double = Double::new(None);
    double.ready(false);
    let shim = Shim::start(settings(&[scheduler.agent]), double.clone()).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    let held = shim.until(|s| matches!(s.phase, Phase::Held(_))).await;
    assert_eq!(held.phase, Phase::Held("the server's memory".into()));
    assert!(scheduler.read(|s| s.requests.is_empty()));
    double.set(Some(8 * GI), None);
    double.ready(true);
    shim.until(|s| s.phase == Phase::Open).await;
    assert!(scheduler.until(LIMIT, |s| !s.replicas.is_empty()).await);
    let requests = scheduler.read(|s| s.requests.clone());
    assert_eq!(
        requests[0].replica_config.as_ref().unwrap().memory_bytes,
        8 * GI
    );
    agent.read(|seen| assert_eq!(seen.subscriptions, 1));
}

#[tokio::test]
async fn a_held_subscription_is_asked_for_anew_where_models_have_changed_meanwhile() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let double = Double::new(Some(8 * GI));
    double.ready(false);
    let shim = Shim::start(settings(&[scheduler.agent]), double.clone()).await;
    let agent = RawAgent::connect(shim.address).await;
    let subscribing = tokio::spawn(agent.unary(SUBSCRIBE, request(), &[]));
    shim.until(|s| matches!(s.phase, Phase::Held(_))).await;
    // What it has listed is out of date from here on.
    within(agent.unary(EVENT, event(), &[])).await.unwrap();
    double.ready(true);
    let answer = within(subscribing).await.unwrap().unwrap();
    assert_eq!(answer.headers()["grpc-status"], "14");
    assert_eq!(scheduler.read(|store| store.requests.len()), 0);
}

#[tokio::test]
async fn after_the_hold_a_subscription_goes_on_with_what_is_known() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let double = Double::new(Some(0));
    double.ready(false);
    let mut short = settings(&[scheduler.agent]);
    short.hold = Duration::from_millis(200);
    let shim = Shim::start(short, double).await;
    let _agent = FakeAgent::start(AgentConfig::new(shim.address, 1_000_000));
    shim.until(|s| s.phase == Phase::Open).await;
    let unready = "agent_shim_subscriptions_total{event=\"unready\"}";
    assert_eq!(shim.series(unready), 1.0);
}

#[tokio::test]
async fn a_scheduler_that_is_down_keeps_the_agent_waiting_and_not_calling() {
    let down = nobody().await;
    let shim = Shim::start(settings(&[down]), Double::new(Some(8 * GI))).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    let status = shim
        .until(|s| matches!(&s.phase, Phase::Unreachable { failures, .. } if *failures >= 3))
        .await;
    let Phase::Unreachable { why, .. } = status.phase else {
        unreachable!()
    };
    assert!(why.contains(&format!("cannot connect to {down}")), "{why}");
    agent.read(|seen| assert_eq!(seen.subscriptions, 1));
    let scheduler = FakeScheduler::start_at(down, ANY.into(), Manners::default())
        .await
        .unwrap();
    assert!(scheduler.until(LIMIT, |s| !s.replicas.is_empty()).await);
    agent.read(|seen| assert_eq!(seen.subscriptions, 1));
}

#[tokio::test]
async fn the_next_scheduler_is_asked_when_the_first_does_not_answer() {
    let second = FakeScheduler::start().await.unwrap();
    let targets = [nobody().await, second.agent];
    let shim = Shim::start(settings(&targets), Double::new(Some(8 * GI))).await;
    let _agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    assert!(second.until(LIMIT, |s| !s.replicas.is_empty()).await);
    let status = shim.until(|s| s.phase == Phase::Open).await;
    assert_eq!(status.scheduler, Some(second.agent.to_string()));
}

#[tokio::test]
async fn a_scheduler_that_ends_every_subscription_is_not_called_in_a_tight_loop() {
    let manners = Manners {
        refuse: Some("not today".into()),
        ..Default::default()
    };
    let scheduler = FakeScheduler::start_at(ANY.into(), ANY.into(), manners)
        .await
        .unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    assert!(scheduler.until(LIMIT, |s| s.requests.len() >= 4).await);
    // Each refusal reached the agent, which asked again at once, and had to wait.
    let (asked, subscribed) = (
        scheduler.read(|s| s.requests.len()),
        agent.read(|seen| seen.subscriptions),
    );
    assert!(subscribed <= asked + 1, "{subscribed} against {asked}");
    assert!(asked < 8, "{asked}");
}

#[tokio::test]
async fn a_newer_subscription_takes_the_place_of_the_older_one() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
    // A connection that is only half there: nobody will end its subscription.
    let stale = RawAgent::connect(shim.address).await;
    let request = AgentSubscribeRequest {
        server_name: "mlserver".into(),
        ..Default::default()
    };
    let body = framed(&request.encode_to_vec());
    let first = tokio::spawn(stale.unary(SUBSCRIBE, body, &[]));
    let connected = scheduler.until(LIMIT, |s| !s.replicas.is_empty());
    assert!(connected.await);
    // The scheduler would keep a second one waiting for as long as the first stands.
    let _newer = FakeAgent::start(AgentConfig::new(shim.address, 0));
    let answer = within(first).await.unwrap().unwrap();
    assert_eq!(answer.headers()["grpc-status"], "14");
    scheduler.load(model("iris", &["sklearn"], None));
    available(&scheduler, "iris").await;
    let superseded = "agent_shim_subscriptions_total{event=\"superseded\"}";
    assert_eq!(shim.series(superseded), 1.0);
}

/// An agent that takes nothing of what it has been sent, as one does that has given its stream up
/// without cancelling it: it subscribes again, and the scheduler must not wait for the first.
#[tokio::test]
async fn a_subscription_that_is_not_read_ends_all_the_same() {
    let mut scheduler = RawScheduler::start().await;
    let shim = Shim::start(settings(&[scheduler.address]), Double::new(Some(8 * GI))).await;
    let stale = RawAgent::with_window(shim.address, Some(100)).await;
    let request = AgentSubscribeRequest {
        server_name: "mlserver".into(),
        ..Default::default()
    };
    let body = framed(&request.encode_to_vec());
    let first = tokio::spawn(stale.unary(SUBSCRIBE, body.clone(), &[]));
    let mut call = scheduler.call().await;
    call.whole().await;
    let (operations, _) = call.answer(grpc_headers());
    // More than the agent's window.
    let large = framed(&[0; 1024]);
    for n in [1.0, 2.0] {
        operations.send(Frame::data(large.clone())).unwrap();
        eventually("an operation to be on its way", async || {
            let counts = ["unchanged", "unreadable"].map(|fate| shim.messages("operation", fate));
            (counts.iter().sum::<f64>() == n).then_some(())
        })
        .await;
    }
    let mut unread = within(first).await.unwrap().unwrap();
    shim.until(|status| status.phase == Phase::Open).await;
    let superseded = "agent_shim_subscriptions_total{event=\"superseded\"}";
    assert_eq!(shim.series(superseded), 0.0);
    let again = RawAgent::connect(shim.address).await;
    let second = tokio::spawn(again.unary(SUBSCRIBE, body, &[]));
    within(operations.closed()).await;
    let call = scheduler.call().await;
    let (_operations, _) = call.answer(grpc_headers());
    let _second = within(second).await.unwrap().unwrap();
    assert_eq!(shim.series(superseded), 1.0);
    // What was on the way is there when the agent reads after all, and then the end with its reason.
    let mut taken = Vec::new();
    let trailers = loop {
        match within(unread.frame()).await.unwrap().unwrap().into_data() {
            Ok(data) => taken.extend_from_slice(&data),
            Err(trailers) => break trailers.into_trailers().unwrap(),
        }
    };
    assert_eq!(trailers["grpc-status"], "14");
    assert!(taken.starts_with(&large), "{} bytes", taken.len());
}

#[tokio::test]
async fn a_slow_scheduler_is_waited_for() {
    let manners = Manners {
        slow: Duration::from_secs(2),
        ..Default::default()
    };
    let scheduler = FakeScheduler::start_at(ANY.into(), ANY.into(), manners)
        .await
        .unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    scheduler.load(model("iris", &["sklearn"], Some(GI)));
    available(&scheduler, "iris").await;
    agent.read(|seen| assert_eq!(seen.subscriptions, 1));
}

#[tokio::test]
async fn a_lasting_change_makes_the_agent_subscribe_again_once_and_a_flap_does_not() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let double = Double::new(Some(8 * GI));
    let mut quick = settings(&[scheduler.agent]);
    quick.settle = Duration::from_millis(300);
    quick.resubscribe_min_interval = Duration::from_millis(500);
    let shim = Shim::start(quick, double.clone()).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.address, 1_000_000));
    scheduler.load(model("iris", &["sklearn"], Some(3 * GI)));
    available(&scheduler, "iris").await;
    scheduler.load(model("large", &["tensorflow"], Some(9 * GI)));
    // Away and back within the settling time, again and again.
    for _ in 0..5 {
        double.set(Some(GI), None);
        tokio::task::yield_now().await;
        double.set(Some(8 * GI), None);
    }
    double.set(Some(16 * GI), Some(&["mlserver", "sklearn", "tensorflow"]));
    available(&scheduler, "large").await;
    available(&scheduler, "iris").await;
    agent.read(|seen| {
        assert_eq!(seen.subscriptions, 2);
        assert!(seen.evicted.is_empty(), "{:?}", seen.evicted);
    });
    let request = scheduler.read(|s| s.requests[1].clone());
    assert_eq!(request.replica_config.unwrap().memory_bytes, 16 * GI);
    assert_eq!(request.available_memory_bytes, 13 * GI);
    let spec = request.loaded_models[0]
        .model
        .clone()
        .unwrap()
        .model_spec
        .unwrap();
    assert_eq!(spec.memory_bytes, Some(3 * GI));
    let renewed = "agent_shim_subscriptions_total{event=\"renewed\"}";
    assert_eq!(shim.series(renewed), 1.0);
}
