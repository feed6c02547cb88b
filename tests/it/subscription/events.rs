//! Events reach the scheduler, and drains end.

use std::time::Duration;

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::{FakeScheduler, Manners};
use agent_shim::proto::agent::model_event_message::Event;
use agent_shim::proto::agent::model_operation_message::Operation;
use agent_shim::proto::agent::{
    AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage, ModelVersion, ReplicaConfig,
};
use agent_shim::subscription::frames::framed;
use http::Response;
use http_body::Frame;
use hyper::body::Incoming;
use prost::Message;
use tokio::net::TcpListener;

use super::hold::nobody;
use super::raw::*;
use super::support::*;

pub fn event() -> bytes::Bytes {
    event_of(Event::Loaded)
}

fn event_of(kind: Event) -> bytes::Bytes {
    let event = ModelEventMessage {
        server_name: "mlserver".into(),
        model_name: "iris".into(),
        model_version: 1,
        event: kind.into(),
        ..Default::default()
    };
    framed(&event.encode_to_vec())
}

fn delivered(shim: &Shim, result: &str) -> f64 {
    shim.series(&format!(
        "agent_shim_agent_events_total{{result=\"{result}\"}}"
    ))
}

#[tokio::test]
async fn an_event_is_sent_again_after_a_transport_error() {
    // The first connection is taken and cut; then the scheduler is there.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shim = Shim::start(settings(&[address]), Double::new(Some(8 * GI))).await;
    let agent = RawAgent::connect(shim.address).await;
    let answer = tokio::spawn(agent.unary(EVENT, event(), &[]));
    let (stream, _) = within(listener.accept()).await.unwrap();
    drop((stream, listener));
    let any = ([127, 0, 0, 1], 0).into();
    let scheduler = FakeScheduler::start_at(address, any, Manners::default())
        .await
        .unwrap();
    let response = within(answer).await.unwrap().unwrap();
    // It does not know the replica, and says so: the call got through, and the answer is its own.
    assert_eq!(response.headers()["grpc-status"], "13");
    assert_eq!(scheduler.read(|s| s.events.len()), 1);
    assert!(delivered(&shim, "sent-again") >= 1.0);
    assert_eq!(delivered(&shim, "refused"), 1.0);
}

/// What moves a model on while the end of its load has no answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Move {
    Event,
    Operation,
    Subscribe,
}

#[tokio::test]
async fn an_event_is_not_sent_again_once_its_model_has_moved_on() {
    for what in [Move::Event, Move::Operation, Move::Subscribe] {
        let mut scheduler = RawScheduler::start().await;
        let shim = Shim::start(settings(&[scheduler.address]), Double::new(Some(8 * GI))).await;
        let agent = RawAgent::connect(shim.address).await;
        let (operations, _body, mut stream) = standing(&agent, &mut scheduler, request()).await;
        let first = tokio::spawn(agent.unary(EVENT, event(), &[]));
        let unanswered = scheduler.call().await;
        match what {
            Move::Event => {
                let newer = tokio::spawn(agent.unary(EVENT, event_of(Event::Unloaded), &[]));
                scheduler.call().await.status("0");
                within(newer).await.unwrap().unwrap();
            }
            Move::Operation => {
                operations.send(Frame::data(unload())).unwrap();
                assert_eq!(next(&mut stream).await, unload());
            }
            Move::Subscribe => {
                let again = tokio::spawn(agent.unary(SUBSCRIBE, request(), &[]));
                let (_operations, _body) = scheduler.call().await.answer(grpc_headers());
                within(again).await.unwrap().unwrap();
            }
        }
        // The stream breaks, and the scheduler may have seen the event or not.
        drop(unanswered);
        let answer = within(first).await.unwrap().unwrap();
        assert_eq!(answer.headers()["grpc-status"], "14", "{what:?}");
        let said = answer.headers()["grpc-message"].to_str().unwrap();
        assert!(said.contains("moved"), "{what:?}: {said}");
        assert_eq!(delivered(&shim, "sent-again"), 0.0, "{what:?}");
        assert_eq!(delivered(&shim, "overtaken"), 1.0, "{what:?}");
    }
}

fn unload() -> bytes::Bytes {
    let operation = ModelOperationMessage {
        operation: Operation::UnloadModel.into(),
        model_version: Some(ModelVersion {
            model: Some(model("iris", &["sklearn"], Some(GI))),
            version: 1,
            agent_shim_original: None,
        }),
        autoscaling_enabled: false,
    };
    framed(&operation.encode_to_vec())
}

#[tokio::test]
async fn an_event_that_cannot_be_delivered_ends_with_the_callers_deadline() {
    let shim = Shim::start(settings(&[nobody().await]), Double::new(Some(8 * GI))).await;
    let agent = RawAgent::connect(shim.address).await;
    let answer = within(agent.unary(EVENT, event(), &[("grpc-timeout", "1S")]))
        .await
        .unwrap();
    assert_eq!(answer.headers()["grpc-status"], "14");
    let message = answer.headers()["grpc-message"]
        .to_str()
        .unwrap()
        .to_string();
    assert!(
        message.contains("not delivered within 1s: cannot connect to"),
        "{message}"
    );
    assert_eq!(delivered(&shim, "lost"), 1.0);
}

#[tokio::test]
async fn a_state_mismatch_is_counted_and_passed_on() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
    let _agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    scheduler.load(model("iris", &["sklearn"], Some(GI)));
    available(&scheduler, "iris").await;
    let again = RawAgent::connect(shim.address).await;
    let answer = within(again.unary(EVENT, event(), &[])).await.unwrap();
    let message = answer.headers()["grpc-message"]
        .to_str()
        .unwrap()
        .to_string();
    assert!(message.contains("State"), "{message}");
    assert_eq!(delivered(&shim, "state-mismatch"), 1.0);
    assert_eq!(shim.until(|s| s.mismatches == 1).await.mismatches, 1);
}

/// Of a replica with nothing in memory.
pub fn request() -> bytes::Bytes {
    let request = AgentSubscribeRequest {
        server_name: "mlserver".into(),
        shared: true,
        replica_config: Some(ReplicaConfig {
            memory_bytes: 8 * GI,
            capabilities: vec!["sklearn".into()],
            ..Default::default()
        }),
        available_memory_bytes: 8 * GI,
        ..Default::default()
    };
    framed(&request.encode_to_vec())
}

/// Subscribes, and is asked for a load.
async fn subscribed(agent: &RawAgent) -> Response<Incoming> {
    let mut answer = within(agent.unary(SUBSCRIBE, request(), &[]))
        .await
        .unwrap();
    next(answer.body_mut()).await;
    answer
}

#[tokio::test]
async fn a_load_whose_end_is_refused_is_told_until_the_next_subscription() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
    let agent = RawAgent::connect(shim.address).await;
    scheduler.load(model("iris", &["sklearn"], Some(GI)));
    let _stream = subscribed(&agent).await;
    // The model is deleted while it loads.
    scheduler.unload("iris");
    within(agent.unary(EVENT, event(), &[])).await.unwrap();
    assert_eq!(shim.until(|s| s.mismatches == 1).await.held_back, 1);
    scheduler.load(model("wine", &["sklearn"], Some(GI)));
    let _next = subscribed(&agent).await;
    assert_eq!(shim.status.borrow().held_back, 0);
}

#[tokio::test]
async fn the_end_of_a_load_of_an_earlier_subscription_is_refused_and_no_finding() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
    let agent = RawAgent::connect(shim.address).await;
    scheduler.load(model("iris", &["sklearn"], Some(GI)));
    drop(subscribed(&agent).await);
    let gone = scheduler.until(LIMIT, |s| s.replicas.is_empty()).await;
    assert!(gone);
    // The load that was under way ends now, and once more where it was asked for again.
    let _second = subscribed(&agent).await;
    for _ in 0..2 {
        within(agent.unary(EVENT, event(), &[])).await.unwrap();
    }
    let after = shim.until(|s| s.events == 2).await;
    assert_eq!((after.held_back, after.mismatches), (0, 1));
}

#[tokio::test]
async fn a_drain_is_carried_to_its_end_while_the_shim_itself_stops() {
    let any = ([127, 0, 0, 1], 0).into();
    let manners = Manners {
        drain: Duration::from_secs(1),
        ..Default::default()
    };
    let scheduler = FakeScheduler::start_at(any, any, manners).await.unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    scheduler.load(model("iris", &["sklearn"], Some(GI)));
    available(&scheduler, "iris").await;
    shim.drain.begin();
    assert!(within(agent.drain()).await.unwrap().success);
    assert_eq!(shim.drain.running(), 1);
    drop(agent);
    assert!(shim.drain.wait(LIMIT).await);
}

#[tokio::test]
async fn a_drain_that_never_ends_is_answered_in_time() {
    let any = ([127, 0, 0, 1], 0).into();
    let manners = Manners {
        drain: Duration::from_secs(3600),
        ..Default::default()
    };
    let scheduler = FakeScheduler::start_at(any, any, manners).await.unwrap();
    let mut short = settings(&[scheduler.agent]);
    short.drain_limit = Duration::from_millis(300);
    let shim = Shim::start(short, Double::new(Some(8 * GI))).await;
    let agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    let status = within(agent.drain()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert!(
        status
            .message()
            .contains("has not drained this replica within 300ms")
    );
}
