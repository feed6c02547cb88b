//! What is not the shim's business reaches the other side as it was sent, and so does everything around
//! what is.

use agent_shim::config::Mode;
use agent_shim::proto::agent::model_operation_message::Operation;
use agent_shim::proto::agent::{
    AgentSubscribeRequest, ModelOperationMessage, ModelVersion, ReplicaConfig,
};
use agent_shim::subscription::frames::framed;
use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use prost::Message;

use super::raw::*;
use super::support::*;

/// Field 2047 with the text "new": what a later release may add.
const UNKNOWN: &[u8] = &[0xfa, 0x7f, 3, b'n', b'e', b'w'];

async fn between(observed: Option<u64>, mode: Mode) -> (RawScheduler, Shim, RawAgent) {
    let scheduler = RawScheduler::start().await;
    let mut settings = settings(&[scheduler.address]);
    settings.mode = mode;
    let shim = Shim::start(settings, Double::new(observed)).await;
    let agent = RawAgent::connect(shim.address).await;
    (scheduler, shim, agent)
}

fn request(memory: u64) -> Vec<u8> {
    let request = AgentSubscribeRequest {
        server_name: "mlserver".into(),
        replica_config: Some(ReplicaConfig {
            inference_http_port: -9000,
            memory_bytes: memory,
            capabilities: vec!["sklearn".into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    [UNKNOWN, &request.encode_to_vec(), UNKNOWN].concat()
}

fn operation(memory: u64) -> Vec<u8> {
    let operation = ModelOperationMessage {
        operation: Operation::LoadModel.into(),
        model_version: Some(ModelVersion {
            model: Some(model("iris", &[], Some(memory))),
            version: 1,
            agent_shim_original: None,
        }),
        autoscaling_enabled: true,
    };
    [UNKNOWN, &operation.encode_to_vec(), UNKNOWN].concat()
}

#[tokio::test]
async fn a_call_nobody_knows_streams_both_ways_with_headers_trailers_and_status() {
    let (mut scheduler, _shim, agent) = between(Some(8 * GI), Mode::Correct).await;
    let (feeder, answer) = agent.call(
        "/seldon.mlops.agent.AgentService/FromTheFuture",
        &[
            ("grpc-timeout", "30S"),
            ("x-trace-bin", "AAEC"),
            ("grpc-encoding", "gzip"),
        ],
    );
    let answer = tokio::spawn(answer);
    let call = scheduler.call().await;
    assert_eq!(
        call.head.uri.path(),
        "/seldon.mlops.agent.AgentService/FromTheFuture"
    );
    assert_eq!(
        call.head.uri.authority().unwrap().as_str(),
        scheduler.address.to_string()
    );
    for (name, value) in [
        ("grpc-timeout", "30S"),
        ("x-trace-bin", "AAEC"),
        ("te", "trailers"),
    ] {
        assert_eq!(call.head.headers[name], value);
    }
    let (back, mut body) = call.answer(headers(&[
        ("content-type", "application/grpc"),
        ("x-answer", "yes"),
    ]));
    let response = within(answer).await.unwrap().unwrap();
    assert_eq!(response.headers()["x-answer"], "yes");
    let mut answered = response.into_body();
    for i in 0..3u8 {
        feeder.send(Frame::data(Bytes::from(vec![i; 3]))).unwrap();
        assert_eq!(next(&mut body).await, vec![i; 3]);
        back.send(Frame::data(Bytes::from(vec![i; 5]))).unwrap();
        assert_eq!(next(&mut answered).await, vec![i; 5]);
    }
    drop(feeder);
    assert!(within(body.collect()).await.unwrap().to_bytes().is_empty());
    back.send(Frame::trailers(headers(&[
        ("grpc-status", "9"),
        ("grpc-message", "no%20way"),
        ("x-t", "1"),
    ])))
    .unwrap();
    let trailers = within(answered.frame())
        .await
        .unwrap()
        .unwrap()
        .into_trailers()
        .unwrap();
    assert_eq!(
        trailers,
        headers(&[
            ("grpc-status", "9"),
            ("grpc-message", "no%20way"),
            ("x-t", "1")
        ])
    );
}

#[tokio::test]
async fn a_corrected_subscription_keeps_every_other_byte_header_and_trailer() {
    let (mut scheduler, shim, agent) = between(Some(8 * GI), Mode::Correct).await;
    let sent = request(0);
    let answer = agent.unary(SUBSCRIBE, framed(&sent), &[("x-agent", "a")]);
    let answer = tokio::spawn(answer);
    let mut call = scheduler.call().await;
    assert_eq!(call.head.headers["x-agent"], "a");
    let got = call.whole().await;
    let mut expected = AgentSubscribeRequest::decode(&sent[..]).unwrap();
    expected.replica_config.as_mut().unwrap().memory_bytes = 8 * GI;
    expected.available_memory_bytes = 8 * GI;
    assert_eq!(AgentSubscribeRequest::decode(&got[5..]).unwrap(), expected);
    assert!(got[5..].starts_with(UNKNOWN));
    assert_eq!(
        got.windows(UNKNOWN.len()).filter(|w| *w == UNKNOWN).count(),
        2
    );
    let (back, _) = call.answer(headers(&[
        ("content-type", "application/grpc"),
        ("x-s", "s"),
    ]));
    // An operation that is put into the agent's measure, one that is compressed, one that is not
    // for the shim to change; and then in pieces, and in one go.
    let (load, compressed) = (operation(GI), Bytes::from_static(&[1, 0, 0, 0, 3, 7, 8, 9]));
    let unload = framed(&[&operation(GI)[..], &[8, 2]].concat());
    let stream = [framed(&load), compressed.clone(), unload.clone()].concat();
    back.send(Frame::data(Bytes::copy_from_slice(&stream[..7])))
        .unwrap();
    back.send(Frame::data(Bytes::copy_from_slice(&stream[7..])))
        .unwrap();
    let end = headers(&[("grpc-status", "0"), ("x-end", "e")]);
    back.send(Frame::trailers(end.clone())).unwrap();
    let response = within(answer).await.unwrap().unwrap();
    assert_eq!(response.headers()["x-s"], "s");
    let (body, trailers) = read(response).await;
    assert_eq!(trailers, end);
    let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
    let changed = &body[5..5 + length];
    assert!(changed.starts_with(UNKNOWN) && changed.ends_with(UNKNOWN));
    let decoded = ModelOperationMessage::decode(changed).unwrap();
    assert!(decoded.autoscaling_enabled);
    let spec = decoded
        .model_version
        .unwrap()
        .model
        .unwrap()
        .model_spec
        .unwrap();
    assert_eq!(
        (spec.memory_bytes, spec.uri.as_str()),
        (Some(0), "gs://models/iris")
    );
    assert_eq!(body[5 + length..], [&compressed[..], &unload[..]].concat());
    assert_eq!(shim.messages("operation", "changed"), 1.0);
    assert_eq!(shim.messages("operation", "compressed"), 1.0);
}

#[tokio::test]
async fn observing_changes_not_one_byte_in_either_direction() {
    let (mut scheduler, _shim, agent) = between(Some(8 * GI), Mode::Observe).await;
    let sent = framed(&request(0));
    let answer = tokio::spawn(agent.unary(SUBSCRIBE, sent.clone(), &[]));
    let mut call = scheduler.call().await;
    assert_eq!(call.whole().await, sent);
    let (back, _) = call.answer(grpc_headers());
    // One that would be scaled, and one that would be refused.
    let stream = [framed(&operation(GI)), framed(&operation(100 * GI))].concat();
    back.send(Frame::data(stream.clone().into())).unwrap();
    back.send(Frame::trailers(headers(&[("grpc-status", "0")])))
        .unwrap();
    assert_eq!(read(within(answer).await.unwrap().unwrap()).await.0, stream);
    let event = framed(&[0x0a, 1, b'm', 0x28, 2]);
    let answer = tokio::spawn(agent.unary(EVENT, event.clone(), &[]));
    let mut call = scheduler.call().await;
    assert_eq!(call.whole().await, event);
    call.status("0");
    within(answer).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_goes_on_as_it_came_and_is_counted() {
    let (mut scheduler, shim, agent) = between(Some(8 * GI), Mode::Correct).await;
    let huge = {
        let capabilities = vec!["x".repeat(1 << 20)];
        let config = ReplicaConfig {
            capabilities,
            ..Default::default()
        };
        framed(
            &AgentSubscribeRequest {
                replica_config: Some(config),
                ..Default::default()
            }
            .encode_to_vec(),
        )
    };
    let garbage: Vec<(Bytes, bool)> = vec![
        (framed(&[0xff; 40]), true),
        (Bytes::from_static(b"GET / HTTP/1.1"), true),
        (Bytes::from_static(&[1, 0, 0, 0, 1, 0]), true),
        (Bytes::new(), true),
        (huge, false),
    ];
    for (body, identical) in garbage {
        let answer = tokio::spawn(agent.unary(SUBSCRIBE, body.clone(), &[]));
        let mut call = scheduler.call().await;
        let got = call.whole().await;
        assert_eq!(got == body, identical, "{} bytes", body.len());
        assert!(got.len() >= body.len());
        let (back, _) = call.answer(grpc_headers());
        // A scheduler that answers garbage, too.
        back.send(Frame::data(Bytes::from_static(
            b"\xff\xfe garbage, and no end",
        )))
        .unwrap();
        back.send(Frame::trailers(headers(&[("grpc-status", "0")])))
            .unwrap();
        let (got, trailers) = read(within(answer).await.unwrap().unwrap()).await;
        assert_eq!(got, &b"\xff\xfe garbage, and no end"[..]);
        assert_eq!(trailers["grpc-status"], "0");
    }
    assert_eq!(shim.messages("subscribe", "unreadable"), 3.0);
    assert_eq!(shim.messages("subscribe", "compressed"), 1.0);
    assert_eq!(shim.messages("operation", "large"), 5.0);
}

#[tokio::test]
async fn a_message_far_above_the_usual_limit_of_grpc_passes() {
    let (mut scheduler, _shim, agent) = between(Some(8 * GI), Mode::Correct).await;
    let mut message = request(8 * GI);
    message.extend([0xfa, 0x7f, 0x80, 0x80, 0x80, 0x06]);
    message.resize(message.len() + (12 << 20), 7);
    let sent = framed(&message);
    let answer = tokio::spawn(agent.unary(EVENT, sent.clone(), &[]));
    let mut call = scheduler.call().await;
    assert!(call.whole().await == sent);
    let (back, _) = call.answer(grpc_headers());
    back.send(Frame::data(sent.clone())).unwrap();
    back.send(Frame::trailers(headers(&[("grpc-status", "0")])))
        .unwrap();
    assert!(read(within(answer).await.unwrap().unwrap()).await.0 == sent);
}

#[tokio::test]
async fn cancelling_either_side_ends_the_other_at_once() {
    let (mut scheduler, shim, agent) = between(Some(8 * GI), Mode::Correct).await;
    // The agent, before the scheduler has answered, on every kind of call.
    for path in [
        SUBSCRIBE,
        EVENT,
        "/seldon.mlops.agent.AgentService/AgentDrain",
    ] {
        let answer = tokio::spawn(agent.unary(path, framed(&request(0)), &[]));
        let call = scheduler.call().await;
        answer.abort();
        call.cancelled().await;
    }
    // The agent, in the middle of a stream.
    let answer = tokio::spawn(agent.unary(SUBSCRIBE, framed(&request(0)), &[]));
    let (back, _) = scheduler.call().await.answer(grpc_headers());
    let response = within(answer).await.unwrap().unwrap();
    drop(response);
    within(back.closed()).await;
    shim.until(|s| s.phase == agent_shim::subscription::status::Phase::None)
        .await;
    // The agent's whole connection.
    let answer = tokio::spawn(agent.unary(SUBSCRIBE, framed(&request(0)), &[]));
    let call = scheduler.call().await;
    drop(agent);
    answer.abort();
    call.cancelled().await;
    // The scheduler.
    let agent = RawAgent::connect(shim.address).await;
    let answer = tokio::spawn(agent.unary(SUBSCRIBE, framed(&request(0)), &[]));
    let (back, _) = scheduler.call().await.answer(grpc_headers());
    let response = within(answer).await.unwrap().unwrap();
    drop(scheduler);
    let (_, trailers) = read(response).await;
    assert_eq!(trailers["grpc-status"], "14");
    drop(back);
}
