//! HTTP/1.1 through the relay: nothing is changed, nothing is buffered, nothing is sent twice.

use std::time::Duration;

use agent_shim::demo::standin::StandIn;
use agent_shim::endpoint::Protocol;
use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::http::{Client, request};
use crate::support::{eventually, pair, within};

#[tokio::test]
async fn an_inference_is_answered_as_the_server_answers_it() {
    let (server, shim) = pair(&[]).await;
    let body = r#"{"id":"7","inputs":[]}"#;
    let ask = || request("POST", "/v2/models/iris/infer?x=1", body);
    let direct = Client::connect(server.http()).await.call(ask()).await;
    let through = Client::connect(shim.http()).await.call(ask()).await;
    assert_eq!((direct.0, &direct.2), (through.0, &through.2));
    let ours = |headers: &http::HeaderMap| {
        let mut all: Vec<String> = headers.iter().map(|(n, v)| format!("{n}: {v:?}")).collect();
        all.sort();
        all.retain(|h| !h.starts_with("date:"));
        all
    };
    assert_eq!(ours(&direct.1), ours(&through.1));
}

#[tokio::test]
async fn request_headers_pass_except_those_of_one_connection() {
    let (_server, shim) = pair(&[]).await;
    let request = Request::get("/headers")
        .header("host", "model.example")
        .header("seldon-model", "iris")
        .header("x-twice", "1")
        .header("x-twice", "2")
        .header("connection", "keep-alive, x-private")
        .header("x-private", "for the relay only")
        .header("keep-alive", "timeout=5")
        .body(crate::support::http::full(""))
        .unwrap();
    let (status, _, body) = Client::connect(shim.http()).await.call(request).await;
    assert_eq!(status, 200);
    let text = String::from_utf8(body.to_vec()).unwrap();
    for part in ["model.example", "seldon-model", "iris", "x-twice"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    for part in ["x-private", "keep-alive"] {
        assert!(!text.contains(part), "{part} is in {text}");
    }
}

#[tokio::test]
async fn a_body_streams_both_ways_while_it_is_sent() {
    let (_server, shim) = pair(&[]).await;
    let (send, body) = mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
    let request = Request::post("/echo")
        .header("host", "test")
        .body(BoxBody::new(StreamBody::new(ReceiverStream::new(body))))
        .unwrap();
    let mut client = Client::connect(shim.http()).await;
    send.send(Ok(Frame::data(Bytes::from_static(b"first"))))
        .await
        .unwrap();
    let mut response = client.send(request).await.unwrap();
    let mut take = async || {
        let frame = within("an echoed piece", response.frame())
            .await
            .unwrap()
            .unwrap();
        frame.into_data().unwrap()
    };
    assert_eq!(take().await, "first");
    // The next piece is sent only after the first has come back.
    send.send(Ok(Frame::data(Bytes::from_static(b"second"))))
        .await
        .unwrap();
    assert_eq!(take().await, "second");
}

#[tokio::test]
async fn server_sent_events_come_when_they_are_sent() {
    let (server, shim) = pair(&[]).await;
    let mut client = Client::connect(shim.http()).await;
    server.push_event("one");
    let mut response = client.send(request("GET", "/sse", "")).await.unwrap();
    assert_eq!(
        response.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
    let mut heard = String::new();
    let mut hear = async |want: &str| {
        while !heard.contains(want) {
            let frame = within(want, response.frame()).await.unwrap().unwrap();
            heard.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
    };
    hear("one").await;
    server.push_event("two");
    hear("two").await;
    server.end_events();
    assert!(within("the end", response.frame()).await.is_none());
}

#[tokio::test]
async fn a_large_answer_and_a_slow_reader_take_little_memory() {
    let (_server, shim) = pair(&[]).await;
    let before = shim.metric("process_resident_memory_bytes").await;
    let mut client = Client::connect(shim.http()).await;
    let size = 256 * 1024 * 1024usize;
    let path = format!("/large?bytes={size}");
    let mut response = client.send(request("GET", &path, "")).await.unwrap();
    let mut got = 0;
    let mut most: f64 = 0.0;
    let mut next_look = size / 4;
    while let Some(frame) = within("more of the body", response.frame()).await {
        got += frame.unwrap().into_data().unwrap().len();
        if got >= next_look {
            next_look += size / 4;
            most = most.max(shim.metric("process_resident_memory_bytes").await);
        }
    }
    assert_eq!(got, size);
    let grown = (most - before) / 1e6;
    // Server, relay and client are all in this process.
    assert!(grown < 64.0, "{grown} MB more than before");
}

#[tokio::test]
async fn requests_on_one_connection_use_one_connection_to_the_server() {
    let (server, shim) = pair(&[]).await;
    let mut client = Client::connect(shim.http()).await;
    client.get("/headers").await;
    let accepted = server.accepted(Protocol::Http);
    let probes = || {
        server
            .calls()
            .iter()
            .filter(|c| c.path.contains("health/live"))
            .count()
    };
    let (before, probed) = (accepted, probes());
    for _ in 0..20 {
        assert_eq!(client.get("/headers").await.0, 200);
    }
    let own = server.calls().into_iter().filter(|c| c.path == "/headers");
    let mut connections: Vec<u64> = own.map(|c| c.connection).collect();
    connections.dedup();
    assert_eq!(
        connections.len(),
        1,
        "{connections:?}; {before} accepted, {probed} probes before"
    );
}

#[tokio::test]
async fn a_kept_connection_that_the_server_has_closed_is_replaced_unseen() {
    let (server, shim) = pair(&[]).await;
    server.set_idle_close(Duration::from_millis(50));
    let mut client = Client::connect(shim.http()).await;
    assert_eq!(client.get("/headers").await.0, 200);
    let connection = |server: &StandIn| {
        let own = server.calls().into_iter().filter(|c| c.path == "/headers");
        own.map(|c| c.connection).collect::<Vec<_>>()
    };
    for round in 2..6 {
        // Only the relay's connection and those of the probes could be open, and the server
        // closes each within 50 ms.
        eventually("the server to have closed what was idle", async || {
            (server.open_connections(Protocol::Http) == 0).then_some(())
        })
        .await;
        assert_eq!(client.get("/headers").await.0, 200);
        let mut used = connection(&server);
        used.dedup();
        assert_eq!(used.len(), round);
    }
}

#[tokio::test]
async fn a_request_that_was_sent_is_never_sent_again() {
    let (server, shim) = pair(&[]).await;
    let mut client = Client::connect(shim.http()).await;
    assert_eq!(client.get("/headers").await.0, 200);
    // On a kept connection and on a new one: the server takes the request and closes.
    for _ in 0..2 {
        let (status, headers, body) = client.get("/close").await;
        assert_eq!(status, 502);
        assert_eq!(headers["x-agent-shim"], "bad-gateway");
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!(text.contains("it was not sent again"), "{text}");
    }
    let sent = server.calls().iter().filter(|c| c.path == "/close").count();
    assert_eq!(sent, 2);
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_caller_too() {
    let (_server, shim) = pair(&[]).await;
    let mut client = Client::connect(shim.http()).await;
    let response = client.send(request("GET", "/reset", "")).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = within("the body to break", response.collect()).await;
    assert!(body.is_err(), "half a body must not look whole");
}

#[tokio::test]
async fn a_caller_that_goes_away_is_gone_for_the_server_as_well() {
    let (server, shim) = pair(&[]).await;
    let mut client = Client::connect(shim.http()).await;
    let waiting = tokio::spawn(async move {
        let _ = client.start(request("GET", "/hang", "")).await;
    });
    within("the call to arrive", server.wait_for_call("/hang")).await;
    waiting.abort();
    eventually("the server to notice", async || {
        let calls = server.calls();
        let hang = calls.iter().find(|c| c.path == "/hang")?;
        (hang.outcome == agent_shim::demo::standin::Outcome::Cancelled).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_closes_its_half_is_ended_and_nothing_is_left_behind() {
    let (server, shim) = pair(&[]).await;
    let mut stream = TcpStream::connect(shim.http()).await.unwrap();
    stream
        .write_all(b"GET /hang HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    within("the call to arrive", server.wait_for_call("/hang")).await;
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = within("the connection to end", stream.read_to_end(&mut rest)).await;
    let open = r#"agent_shim_relay_open_connections{protocol="http"}"#;
    eventually("nothing to be open", async || {
        (shim.metric(open).await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn one_slow_caller_holds_nobody_up() {
    let (server, shim) = pair(&[]).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(shim.http()).await;
        slow.push(tokio::spawn(async move {
            let response = client.start(request("GET", "/hang", "")).await;
            response.unwrap().status().as_u16()
        }));
    }
    within("the slow calls to arrive", server.wait_for_call("/hang")).await;
    let mut quick = Client::connect(shim.http()).await;
    for _ in 0..20 {
        assert_eq!(quick.get("/headers").await.0, 200);
    }
    server.release();
    for call in slow {
        assert_eq!(within("a slow call", call).await.unwrap(), 200);
    }
}

#[tokio::test]
async fn health_is_answered_from_the_shims_own_knowledge() {
    let (server, shim) = pair(&[]).await;
    let mut client = Client::connect(shim.http()).await;
    let asked = |server: &StandIn| {
        let calls = server.calls();
        calls
            .iter()
            .filter(|c| c.path == "/v2/health/live" && c.headers.contains_key("x-me"))
            .count()
    };
    let request = |path: &str| {
        Request::get(path)
            .header("host", "test")
            .header("x-me", "1")
            .body(crate::support::http::full(""))
            .unwrap()
    };
    let (status, headers, body) = client.call(request("/v2/health/live")).await;
    assert_eq!((status, body.len()), (200, 0));
    assert_eq!(headers["x-agent-shim"], "live");
    assert_eq!(asked(&server), 0);
    assert_eq!(client.call(request("/v2/health/ready")).await.0, 200);
    server.set_ready(false);
    eventually("the server's own not-ready", async || {
        let (status, _, body) = client.call(request("/v2/health/ready")).await;
        (status == 400 && body.is_empty()).then_some(())
    })
    .await;
    // Not ready is not dead: inference goes on.
    assert_eq!(client.call(request("/headers")).await.0, 200);
    let head = crate::support::http::request("HEAD", "/v2/health/live", "");
    let (status, headers, _) = client.call(head).await;
    assert_eq!((status, headers["allow"].to_str().unwrap()), (405, "GET"));
}

#[tokio::test]
async fn a_smuggled_second_request_never_reaches_the_server() {
    let (server, shim) = pair(&[]).await;
    // Both lengths: by Content-Length the second request is body, by chunks it is a request.
    let both = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 60\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = crate::support::http::raw(shim.http(), both).await;
    let calls = server.calls();
    let echo = calls.iter().find(|c| c.path == "/echo");
    if let Some(echo) = echo {
        assert!(
            !echo.headers.contains_key("content-length"),
            "two lengths reached the server"
        );
        assert_eq!(echo.body_bytes, 0);
    } else {
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
}
