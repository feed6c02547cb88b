//! The stand-in's own promises: a fake that is wrong makes every test above it worthless.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use agent_shim::demo::standin::{FAIL_MESSAGE, Outcome, RESET_MESSAGE_BYTES, StandIn};
use agent_shim::endpoint::Protocol;
use agent_shim::proto::grpc_inference_service_client::GrpcInferenceServiceClient;
use agent_shim::proto::{RepositoryIndexRequest, ServerLiveRequest, ServerReadyRequest};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

type Piece = Result<Frame<Bytes>, hyper::Error>;
type Body = StreamBody<ReceiverStream<Piece>>;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .unwrap_or_else(|_| panic!("{what} took too long"))
}

/// A body that the test writes piece by piece.
fn body() -> (mpsc::Sender<Piece>, Body) {
    let (pieces, receiver) = mpsc::channel(4);
    (pieces, StreamBody::new(ReceiverStream::new(receiver)))
}

fn full(data: impl Into<Bytes>) -> Body {
    let (pieces, body) = body();
    let data = data.into();
    if !data.is_empty() {
        pieces.try_send(Ok(Frame::data(data))).unwrap();
    }
    body
}

fn message(content: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(content.len() as u32);
    framed.put_slice(content);
    framed.freeze()
}

async fn http(at: SocketAddr) -> http1::SendRequest<Body> {
    let stream = TcpStream::connect(at).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn grpc(at: SocketAddr) -> http2::SendRequest<Body> {
    let stream = TcpStream::connect(at).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

async fn client(at: SocketAddr) -> GrpcInferenceServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{at}")).unwrap();
    GrpcInferenceServiceClient::new(endpoint.connect().await.unwrap())
}

fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    request.header("host", "standin").body(body).unwrap()
}

fn get(path: &str) -> Request<Body> {
    request(Method::GET, path, full(""))
}

fn post(path: &str, data: &str) -> Request<Body> {
    request(Method::POST, path, full(data.to_string()))
}

fn call(at: SocketAddr, method: &str, body: Body) -> Request<Body> {
    Request::post(format!(
        "http://{at}/inference.GRPCInferenceService/{method}"
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .body(body)
    .unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let all = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(all.to_vec()).unwrap()
}

async fn piece(body: &mut Incoming) -> Bytes {
    let frame = within("a piece", body.frame()).await.unwrap().unwrap();
    frame.into_data().unwrap()
}

#[tokio::test]
async fn http_has_the_shapes_of_mlserver() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    standin.set_models([("iris", "v0.1.0", "READY"), ("bare", "", "UNAVAILABLE")]);
    for (asked, status, body) in [
        (get("/v2/health/live"), 200, ""),
        (get("/v2/health/ready"), 200, ""),
        (
            get("/v2"),
            200,
            r#"{"name":"mlserver","version":"1.7.1","extensions":[]}"#,
        ),
        (request(Method::HEAD, "/v2/health/live", full("")), 405, ""),
        (get("/"), 404, r#"{"detail":"Not Found"}"#),
        (
            post("/v2/repository/index", ""),
            422,
            r#"{"detail":[{"type":"missing","loc":["body"],"msg":"Field required"}]}"#,
        ),
        (
            post("/v2/repository/index", "{}"),
            200,
            r#"[{"name":"iris","reason":"","state":"READY","version":"v0.1.0"},{"name":"bare","reason":"","state":"UNAVAILABLE"}]"#,
        ),
        (
            post("/v2/repository/index", r#"{"ready":true}"#),
            200,
            r#"[{"name":"iris","reason":"","state":"READY","version":"v0.1.0"}]"#,
        ),
        (get("/v2/models/iris/ready"), 200, ""),
        (
            get("/v2/models/none/ready"),
            404,
            r#"{"error":"Model none not found"}"#,
        ),
        (
            post("/v2/models/iris/infer", r#"{"id":"7","inputs":[]}"#),
            200,
            r#"{"id":"7","model_name":"iris","model_version":"v0.1.0","outputs":[{"data":[1],"datatype":"INT64","name":"predict","shape":[1,1]}],"parameters":{}}"#,
        ),
        (post("/v2/repository/models/bare/load", ""), 200, ""),
        (get("/v2/models/bare/ready"), 200, ""),
        (post("/v2/repository/models/bare/unload", ""), 200, ""),
        (
            post("/v2/repository/models/none/unload", ""),
            404,
            r#"{"error":"Model none not found"}"#,
        ),
    ] {
        let path = asked.uri().path().to_string();
        let answer = within(&path, http(standin.http()).await.send_request(asked)).await;
        let answer = answer.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert_eq!(answer.headers()["server"], "uvicorn");
        // The order of keys is nobody's concern.
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        let said = text(answer).await;
        assert_eq!(json(&said), json(body), "{path}: {said}");
        assert_eq!(said.is_empty(), body.is_empty(), "{path}: {said}");
    }
    standin.set_ready(false);
    standin.set_live(false);
    let mut http = http(standin.http()).await;
    let ready = http.send_request(get("/v2/health/ready")).await.unwrap();
    assert_eq!(ready.status(), StatusCode::BAD_REQUEST);
    assert_eq!(text(ready).await, "");
    let live = http.send_request(get("/v2/health/live")).await.unwrap();
    assert_eq!(live.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_load_takes_its_time_and_makes_the_server_not_ready() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    standin.set_models([("slow", "", "UNAVAILABLE")]);
    standin.set_load_delay(Duration::from_millis(300));
    let (mut loader, mut asker) = (http(standin.http()).await, http(standin.http()).await);
    let load = tokio::spawn(loader.send_request(post("/v2/repository/models/slow/load", "")));
    within(
        "the load",
        standin.wait_for_call("/v2/repository/models/slow/load"),
    )
    .await;
    within(
        "loading",
        standin.wait_until(|s| s.models()[0].state == "UNKNOWN"),
    )
    .await;
    let ready = asker.send_request(get("/v2/health/ready")).await.unwrap();
    assert_eq!(ready.status(), StatusCode::BAD_REQUEST);
    assert_eq!(load.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(standin.models()[0].state, "READY");
}

#[tokio::test]
async fn an_echo_streams_and_carries_trailers() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let mut http = http(standin.http()).await;
    let (pieces, body) = body();
    let mut asked = request(Method::POST, "/echo", body);
    for (name, value) in [("te", "trailers"), ("trailer", "x-sum")] {
        asked.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = within("the head", http.send_request(asked)).await.unwrap();
    let mut echoed = answer.into_body();
    for n in ["one", "two"] {
        pieces.send(Ok(Frame::data(n.into()))).await.unwrap();
        assert_eq!(piece(&mut echoed).await, n);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "6".parse().unwrap());
    pieces
        .send(Ok(Frame::trailers(trailers.clone())))
        .await
        .unwrap();
    drop(pieces);
    let last = within("the trailers", echoed.frame()).await.unwrap();
    assert_eq!(last.unwrap().into_trailers().unwrap(), trailers);
    let call = standin.wait_for_call("/echo").await;
    assert_eq!((call.body_bytes, call.trailers), (6, Some(trailers)));
}

#[tokio::test]
async fn events_flow_one_by_one_until_they_end() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    standin.push_event("before");
    let mut http = http(standin.http()).await;
    let answer = within("the head", http.send_request(get("/sse"))).await;
    let mut events = answer.unwrap().into_body();
    assert_eq!(piece(&mut events).await, "data: before\n\n");
    standin.push_event("after");
    assert_eq!(piece(&mut events).await, "data: after\n\n");
    standin.end_events();
    assert!(within("the end", events.frame()).await.is_none());
    standin.push_event("anew");
    let answer = within("the head", http.send_request(get("/sse"))).await;
    assert_eq!(piece(answer.unwrap().body_mut()).await, "data: anew\n\n");
}

#[tokio::test]
async fn a_call_that_hangs_is_released_or_cancelled_and_recorded_as_such() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let mut released = http(standin.http()).await;
    let mut cancelled = http(standin.http()).await;
    let waiting = tokio::spawn(cancelled.send_request(get("/hang?c")));
    within("the call", standin.wait_for_call("/hang")).await;
    assert_eq!(standin.calls()[0].outcome, Outcome::Running);
    drop(cancelled);
    waiting.abort();
    within(
        "the cancellation",
        standin.wait_until(|s| s.calls()[0].outcome == Outcome::Cancelled),
    )
    .await;
    let waiting = tokio::spawn(released.send_request(get("/hang?r")));
    within("the call", standin.wait_until(|s| s.calls().len() == 2)).await;
    standin.release();
    let answer = within("the answer", waiting).await.unwrap().unwrap();
    assert_eq!(text(answer).await, r#"{"released":true}"#);
    assert_eq!(standin.calls()[1].outcome, Outcome::Completed);
    assert_ne!(standin.calls()[0].connection, standin.calls()[1].connection);
}

#[tokio::test]
async fn connections_can_be_broken_off_in_two_ways() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(standin.http()).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let end = within(path, stream.read_to_end(&mut got)).await;
        (String::from_utf8(got).unwrap(), end)
    };
    let (got, end) = ask("/reset").await;
    assert!(got.contains("content-length: 2000\r\n"), "{got}");
    assert!(got.ends_with("xxx"), "no part of the body: {got}");
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let (got, end) = ask("/close").await;
    assert_eq!((got.as_str(), end.unwrap()), ("", 0));
    let outcomes: Vec<_> = standin.calls().iter().map(|c| c.outcome).collect();
    assert_eq!(outcomes, [Outcome::Cancelled; 2]);
}

#[tokio::test]
async fn large_answers_have_the_bytes_that_were_asked_for() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let mut http = http(standin.http()).await;
    let answer = http.send_request(get("/large?bytes=200001")).await.unwrap();
    assert_eq!(answer.headers()["content-length"], "200001");
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(bytes.len(), 200_001);
    assert!(bytes.iter().enumerate().all(|(n, b)| *b == (n % 251) as u8));
    assert_eq!(standin.calls()[0].outcome, Outcome::Completed);
}

#[tokio::test]
async fn the_other_test_routes_answer() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let mut http = http(standin.http()).await;
    let answer = http.send_request(get("/headers")).await.unwrap();
    assert_eq!(text(answer).await, r#"{"host":"standin"}"#);
    let answer = http.send_request(post("/sink", "12345")).await.unwrap();
    assert_eq!(text(answer).await, r#"{"bytes":5}"#);
    let mut asked = get("/trailers");
    asked
        .headers_mut()
        .insert("te", "trailers".parse().unwrap());
    let answer = http.send_request(asked).await.unwrap();
    let collected = answer.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-checksum"], "42");
}

#[tokio::test]
async fn a_connection_is_closed_when_idle_after_an_answer_and_not_with_half_a_request() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    standin.set_idle_close(Duration::from_millis(100));
    let mut idle = TcpStream::connect(standin.http()).await.unwrap();
    let mut half = TcpStream::connect(standin.http()).await.unwrap();
    let head = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n";
    idle.write_all(head).await.unwrap();
    half.write_all(&head[..9]).await.unwrap();
    let mut got = Vec::new();
    let end = within("the idle close", idle.read_to_end(&mut got)).await;
    assert!(end.is_ok() && got.starts_with(b"HTTP/1.1 200 OK"));
    // The other one is older than the limit by now and still answers.
    half.write_all(&head[9..]).await.unwrap();
    let mut got = vec![0; 15];
    within("the answer", half.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(got, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_stop_closes_everything_and_a_restart_comes_back_at_the_same_place() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let mut http1 = http(standin.http()).await;
    let mut http2 = grpc(standin.grpc()).await;
    http1.send_request(get("/v2")).await.unwrap();
    let hangs = call(standin.grpc(), "Hang", full(message(b"")));
    let hanging = tokio::spawn(http2.send_request(hangs));
    let path = "/inference.GRPCInferenceService/Hang";
    within("the call", standin.wait_for_call(path)).await;
    assert_eq!(standin.open_connections(Protocol::Http), 1);
    within("the stop", standin.stop()).await;
    assert_eq!(standin.open_connections(Protocol::Http), 0);
    assert_eq!(standin.open_connections(Protocol::Grpc), 0);
    let answer = within("the end", hanging).await.unwrap();
    if let Ok(answer) = answer {
        answer.into_body().collect().await.unwrap_err();
    }
    http1.send_request(get("/v2")).await.unwrap_err();
    for at in [standin.http(), standin.grpc()] {
        let error = TcpStream::connect(at).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    standin.restart().await.unwrap();
    let mut http1 = http(standin.http()).await;
    assert!(http1.send_request(get("/v2")).await.is_ok());
    standin.stop_grpc().await;
    assert!(http1.send_request(get("/v2")).await.is_ok());
    TcpStream::connect(standin.grpc()).await.unwrap_err();
    standin.restart_grpc().await.unwrap();
    grpc(standin.grpc()).await;
    assert_eq!(standin.accepted(Protocol::Http), 2);
}

#[tokio::test]
async fn dropping_the_last_handle_stops_it() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let (other, at) = (standin.clone(), standin.http());
    drop(standin);
    let mut open = TcpStream::connect(at).await.unwrap();
    within(
        "accepted",
        other.wait_until(|s| s.accepted(Protocol::Http) == 1),
    )
    .await;
    drop(other);
    // The connection's end shows that the listener is gone too: it is dropped first.
    assert_eq!(within("the end", open.read(&mut [0])).await.unwrap(), 0);
    TcpStream::connect(at).await.unwrap_err();
}

#[tokio::test]
async fn a_wedged_server_accepts_and_is_silent_and_answers_what_has_queued_up() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let mut old1 = http(standin.http()).await;
    let mut old2 = grpc(standin.grpc()).await;
    let mut live = client(standin.grpc()).await;
    live.server_live(ServerLiveRequest {}).await.unwrap();
    standin.wedge();
    let calls = standin.calls().len();
    let mut new = http(standin.http()).await;
    let mut waiting = vec![
        tokio::spawn(old1.send_request(get("/v2"))),
        tokio::spawn(new.send_request(get("/v2"))),
        tokio::spawn(old2.send_request(call(standin.grpc(), "ModelInfer", full(message(b"x"))))),
    ];
    // Silence can only be seen by waiting.
    for answer in &mut waiting {
        let silent = tokio::time::timeout(Duration::from_millis(50), answer).await;
        assert!(silent.is_err(), "answered while wedged");
    }
    assert_eq!(standin.calls().len(), calls);
    standin.unwedge();
    for answer in waiting {
        let answer = within("the queued answer", answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
    standin.wedge();
    within("the stop of a wedged server", standin.stop()).await;
    standin.restart().await.unwrap();
    let mut http = http(standin.http()).await;
    assert!(http.send_request(get("/v2")).await.is_ok());
}

#[tokio::test]
async fn grpc_has_the_shapes_of_mlserver() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let mut client = client(standin.grpc()).await;
    let ready = client.server_ready(ServerReadyRequest {}).await.unwrap();
    assert!(ready.into_inner().ready);
    let index = client
        .repository_index(RepositoryIndexRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(index.models[0].state, "State.READY");
    let mut http2 = grpc(standin.grpc()).await;
    for (path, request, status, said) in [
        ("ModelReady", "\n\x04iris", "0", Some("\x08\x01")),
        ("ModelReady", "\n\x04none", "2", None),
        ("RepositoryModelUnload", "\x12\x04iris", "0", Some("")),
        ("RepositoryModelUnload", "\x12\x04none", "5", None),
        ("RepositoryModelLoad", "\x12\x04iris", "0", Some("")),
        ("TraceSetting", "", "12", None),
    ] {
        let asked = call(standin.grpc(), path, full(message(request.as_bytes())));
        let answer = within(path, http2.send_request(asked)).await.unwrap();
        let alone = answer.headers().get("grpc-status").cloned();
        let got = answer.into_body().collect().await.unwrap();
        let trailers = got.trailers().cloned();
        let end = trailers.and_then(|t| t.get("grpc-status").cloned());
        assert_eq!(alone.or(end).unwrap(), status, "{path} {request:?}");
        let expected = said.map(|s| message(s.as_bytes())).unwrap_or_default();
        assert_eq!(got.to_bytes(), expected, "{path} {request:?}");
    }
}

#[tokio::test]
async fn inference_is_an_echo_whole_or_message_by_message() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let mut http2 = grpc(standin.grpc()).await;
    let large = message(&vec![7; 6_000_000]);
    let mut asked = call(standin.grpc(), "ModelInfer", full(large.clone()));
    asked
        .headers_mut()
        .insert("x-echo", "hello".parse().unwrap());
    let answer = within("the infer", http2.send_request(asked)).await;
    let answer = answer.unwrap();
    assert_eq!(answer.headers()["x-echo"], "hello");
    let got = within("the echo", answer.into_body().collect()).await;
    let got = got.unwrap();
    let trailers = got.trailers().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["ce-id"]),
        (&"0".parse().unwrap(), &"1".parse().unwrap())
    );
    assert!(got.to_bytes() == large);

    let (pieces, body) = body();
    let asked = call(standin.grpc(), "ModelStreamInfer", body);
    let answer = within("the head", http2.send_request(asked)).await;
    let mut echoed = answer.unwrap().into_body();
    for content in ["a", "bc"] {
        let whole = message(content.as_bytes());
        pieces
            .send(Ok(Frame::data(whole.slice(..3))))
            .await
            .unwrap();
        pieces
            .send(Ok(Frame::data(whole.slice(3..))))
            .await
            .unwrap();
        assert_eq!(piece(&mut echoed).await, whole);
    }
    drop(pieces);
    let rest = within("the end", echoed.collect()).await.unwrap();
    assert_eq!(rest.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(standin.calls()[1].body_bytes, 13);
}

#[tokio::test]
async fn grpc_calls_fail_are_reset_and_are_cancelled_as_asked() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let mut http2 = grpc(standin.grpc()).await;
    let mut ask = |method: &str| {
        let asked = call(standin.grpc(), method, full(message(b"")));
        http2.send_request(asked)
    };
    let failed = within("the failure", ask("Fail")).await.unwrap();
    let status = tonic::Status::from_header_map(failed.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert_eq!(status.message(), FAIL_MESSAGE);
    assert_eq!(failed.headers()["x-fail-detail"], "as asked");

    for _ in 0..20 {
        let reset = within("the head", ask("ResetMid")).await.unwrap();
        let mut body = reset.into_body();
        let mut got = 0;
        let error = loop {
            match within("the rest", body.frame()).await.unwrap() {
                Ok(frame) => got += frame.into_data().unwrap().len(),
                Err(error) => break error,
            }
        };
        assert_eq!(got, RESET_MESSAGE_BYTES + 5);
        let source = std::error::Error::source(&error).unwrap();
        let reason = source.downcast_ref::<h2::Error>().unwrap().reason();
        assert_eq!(reason, Some(h2::Reason::CANCEL));
    }

    let path = "/inference.GRPCInferenceService/Hang";
    let hanging = tokio::spawn(ask("Hang"));
    within("the call", standin.wait_for_call(path)).await;
    // The answer's head may have come; dropping either cancels.
    drop(within("the head", hanging).await.unwrap().unwrap());
    let cancelled = |s: &StandIn| s.calls_to(path)[0].outcome == Outcome::Cancelled;
    within("the cancellation", standin.wait_until(cancelled)).await;
    let hanging = within("the head", ask("Hang")).await.unwrap();
    standin.release();
    let got = within("the release", hanging.into_body().collect()).await;
    assert_eq!(got.unwrap().to_bytes(), message(b""));
}

#[tokio::test]
async fn pings_are_counted() {
    let standin = StandIn::start(LOOPBACK).await.unwrap();
    let stream = TcpStream::connect(standin.grpc()).await.unwrap();
    let (_calls, mut connection) = h2::client::handshake(stream).await.unwrap();
    let mut ping = connection.ping_pong().unwrap();
    tokio::spawn(connection);
    within("the pong", ping.ping(h2::Ping::opaque()))
        .await
        .unwrap();
    assert_eq!(standin.pings(), 1);
}
