//! gRPC through the relay, on data connections (carried as bytes) and on control connections
//! (ended in the shim): calls, streams, trailers, deadlines and cancellation.

use std::time::Duration;

use agent_shim::demo::standin::StandIn;
use agent_shim::proto::grpc_inference_service_client::GrpcInferenceServiceClient;
use agent_shim::proto::{ServerLiveRequest, ServerReadyRequest};

use crate::support::grpc::{Client, SERVICE};
use crate::support::{Shim, eventually, pair, within};

/// A connection that is carried as bytes, and one that is ended in the shim: every behaviour of
/// the relay must be the same on both.
async fn both(shim: &Shim) -> [(&'static str, Client); 2] {
    let data = Client::connect(shim.grpc()).await;
    let mut control = Client::connect(shim.grpc()).await;
    assert_eq!(control.call("ServerLive", b"").await.unwrap().status().0, 0);
    [("data", data), ("control", control)]
}

#[tokio::test]
async fn a_call_comes_back_with_its_message_headers_and_trailers() {
    let (server, shim) = pair(&[]).await;
    let mut direct = Client::connect(server.grpc()).await;
    let headers = [("x-echo", "abc"), ("seldon-internal-model", "iris_1")];
    let expected = direct
        .call_with("ModelInfer", b"tensor", &headers)
        .await
        .unwrap();
    for (kind, mut client) in both(&shim).await {
        for _ in 0..3 {
            let answer = client
                .call_with("ModelInfer", b"tensor", &headers)
                .await
                .unwrap();
            assert_eq!(answer.messages, ["tensor"], "{kind}");
            let without_date = |mut h: http::HeaderMap| {
                h.remove("date");
                h
            };
            assert_eq!(
                without_date(answer.headers),
                without_date(expected.headers.clone()),
                "{kind}"
            );
            assert_eq!(answer.trailers, expected.trailers, "{kind}");
            assert_eq!(answer.trailers["ce-id"], "1", "{kind}");
        }
    }
    let seen = server.calls();
    let infer = seen
        .iter()
        .rfind(|c| c.path == format!("{SERVICE}/ModelInfer"))
        .unwrap();
    assert_eq!(infer.headers["seldon-internal-model"], "iris_1");
    assert_eq!(infer.headers["te"], "trailers");
}

#[tokio::test]
async fn statuses_and_their_trailers_pass_unchanged() {
    let (server, shim) = pair(&[]).await;
    let mut direct = Client::connect(server.grpc()).await;
    for path in ["Fail", "NoSuchMethod"] {
        let expected = direct.call(path, b"").await.unwrap();
        for (kind, mut client) in both(&shim).await {
            let answer = client.call(path, b"").await.unwrap();
            assert_eq!(answer.status(), expected.status(), "{kind} {path}");
            assert_ne!(answer.status().0, 0);
            let mut trailers = answer.trailers;
            trailers.remove("date");
            assert_eq!(trailers, expected.trailers, "{kind} {path}");
        }
    }
}

#[tokio::test]
async fn both_sides_of_a_stream_flow_message_by_message() {
    let (_server, shim) = pair(&[]).await;
    for (kind, mut client) in both(&shim).await {
        let first: &[u8] = b"first";
        let mut stream = client
            .open_with("ModelStreamInfer", &[], &[first])
            .await
            .unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), first, "{kind}");
        for text in ["second", "third"] {
            stream.say(text.as_bytes()).await;
            assert_eq!(stream.next().await.unwrap().unwrap(), text, "{kind}");
        }
        // The caller's half closes; the server's goes on to its trailers.
        stream.finish();
        assert_eq!(stream.next().await.unwrap(), None, "{kind}");
        assert_eq!(stream.trailers.unwrap()["grpc-status"], "0", "{kind}");
    }
}

#[tokio::test]
async fn a_message_of_64_mb_passes_in_little_memory() {
    let (_server, shim) = pair(&[]).await;
    let message = vec![7; 64 * 1024 * 1024];
    for (kind, mut client) in both(&shim).await {
        let answer = client.call("ModelInfer", &message).await.unwrap();
        assert_eq!(answer.messages.len(), 1, "{kind}");
        assert!(
            answer.messages[0] == message,
            "{kind}: the message has changed"
        );
    }
}

#[tokio::test]
async fn many_calls_share_a_connection_and_none_waits_for_another() {
    let (server, shim) = pair(&[]).await;
    for (kind, mut client) in both(&shim).await {
        let mut hanging = Vec::new();
        for _ in 0..8 {
            let stream = client
                .open_with("ModelStreamInfer", &[], &[b"x"])
                .await
                .unwrap();
            hanging.push(stream);
        }
        for n in 0..50 {
            let text = format!("call {n}");
            let answer = client.call("ModelInfer", text.as_bytes()).await.unwrap();
            assert_eq!(answer.messages, [text], "{kind}");
        }
        for mut stream in hanging {
            assert_eq!(stream.next().await.unwrap().unwrap(), "x", "{kind}");
        }
    }
    let calls = r#"agent_shim_relay_calls_total{protocol="grpc"}"#;
    assert_eq!(shim.metric(calls).await, 116.0, "58 on each connection");
    drop(server);
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_server_and_the_others_go_on() {
    let (server, shim) = pair(&[]).await;
    for (kind, mut client) in both(&shim).await {
        let path = format!("{SERVICE}/Hang");
        let before = server.calls().iter().filter(|c| c.path == path).count();
        let mut other = client
            .open_with("ModelStreamInfer", &[], &[b"on"])
            .await
            .unwrap();
        {
            // The answer's headers may come or not; the call stays open either way.
            let hang = async {
                let _stream = client.open("Hang", &[]).await;
                std::future::pending::<()>().await;
            };
            let arrived = eventually("the call to arrive", async || {
                let calls = server.calls();
                (calls.iter().filter(|c| c.path == path).count() > before).then_some(())
            });
            tokio::select! {
                () = hang => {}
                () = arrived => {}
            }
            // Dropped here: the caller resets the stream.
        }
        eventually("the server to see the cancellation", async || {
            let calls = server.calls();
            let hang = calls.iter().rfind(|c| c.path == path)?;
            (hang.outcome == agent_shim::demo::standin::Outcome::Cancelled).then_some(())
        })
        .await;
        assert_eq!(other.next().await.unwrap().unwrap(), "on", "{kind}");
    }
}

#[tokio::test]
async fn a_deadline_reaches_the_server_as_the_caller_set_it() {
    let (server, shim) = pair(&[]).await;
    for (kind, mut client) in both(&shim).await {
        client
            .call_with("ModelInfer", b"", &[("grpc-timeout", "3600S")])
            .await
            .unwrap();
        let calls = server.calls();
        let infer = calls
            .iter()
            .rfind(|c| c.path.ends_with("/ModelInfer"))
            .unwrap();
        assert_eq!(infer.headers["grpc-timeout"], "3600S", "{kind}");
    }
}

#[tokio::test]
async fn a_stream_that_the_server_resets_is_reset_for_the_caller_alone() {
    let (_server, shim) = pair(&[]).await;
    for (kind, mut client) in both(&shim).await {
        let outcome = async {
            let mut stream = client.open("ResetMid", &[]).await?;
            while stream.next().await?.is_some() {}
            Ok::<_, hyper::Error>(stream.trailers)
        };
        let outcome = within("the reset", outcome).await;
        assert!(
            outcome
                .as_ref()
                .map_or(true, |t| t.as_ref().is_none_or(|t| t["grpc-status"] != "0")),
            "{kind}: {outcome:?}"
        );
        assert_eq!(
            client.call("ModelInfer", b"on").await.unwrap().messages,
            ["on"],
            "{kind}"
        );
    }
}

#[tokio::test]
async fn health_is_answered_here_and_the_server_is_not_asked() {
    let (server, shim) = pair(&[]).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", shim.grpc()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = GrpcInferenceServiceClient::new(channel);
    let marked = |server: &StandIn| {
        server
            .calls()
            .iter()
            .filter(|c| c.headers.contains_key("x-me"))
            .count()
    };
    let mut live = tonic::Request::new(ServerLiveRequest {});
    live.metadata_mut().insert("x-me", "1".parse().unwrap());
    assert!(client.server_live(live).await.unwrap().into_inner().live);
    let mut ready = async || {
        client
            .server_ready(ServerReadyRequest {})
            .await
            .unwrap()
            .into_inner()
            .ready
    };
    assert!(ready().await);
    server.set_ready(false);
    eventually("the server's own not-ready", async || {
        (!ready().await).then_some(())
    })
    .await;
    assert_eq!(marked(&server), 0);
}

#[tokio::test]
async fn a_first_call_of_health_does_not_keep_a_connection_from_inference() {
    let (server, shim) = pair(&[]).await;
    let [_, (_, mut control)] = both(&shim).await;
    assert_eq!(
        control.call("ModelInfer", b"x").await.unwrap().messages,
        ["x"]
    );
    assert_eq!(
        control.call("ServerReady", b"").await.unwrap().status().0,
        0
    );
    assert_eq!(
        control
            .call("RepositoryModelLoad", b"")
            .await
            .unwrap()
            .status()
            .0,
        0
    );
    let seen = server.calls();
    assert!(
        seen.iter()
            .any(|c| c.path.ends_with("/RepositoryModelLoad"))
    );
}

#[tokio::test]
async fn a_load_makes_the_model_list_fresh() {
    let (server, shim) = pair(&[]).await;
    eventually("the first look", async || {
        (!shim.status().await["server"].is_null()).then_some(())
    })
    .await;
    server.set_models([("new", "", "READY")]);
    let mut client = Client::connect(shim.grpc()).await;
    client.call("RepositoryModelLoad", b"").await.unwrap();
    eventually("the new model", async || {
        (shim.status().await["models"][0]["name"] == "new").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_only_opens_and_closes_costs_the_server_nothing() {
    let (server, shim) = pair(&[]).await;
    let before = server.accepted(agent_shim::endpoint::Protocol::Grpc);
    for _ in 0..20 {
        drop(tokio::net::TcpStream::connect(shim.grpc()).await.unwrap());
    }
    let closed = r#"agent_shim_relay_connections_total{end="closed",protocol="grpc"}"#;
    shim.metric_reaches(closed, 20.0).await;
    let calls: Vec<String> = server.calls().iter().map(|c| c.path.clone()).collect();
    let after = server.accepted(agent_shim::endpoint::Protocol::Grpc);
    // Probes go on meanwhile, one connection each.
    let probes = calls.iter().filter(|p| p.ends_with("/ServerLive")).count();
    assert!(
        after - before <= probes,
        "{} more connections",
        after - before
    );
}

#[tokio::test]
async fn the_handshake_tolerates_every_order_that_http2_allows() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (_server, shim) = pair(&[]).await;
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings: &[u8] = &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0];
    let ack: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], b"pingping"].concat();
    let window: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    // :method POST, :scheme http, :path and :authority as literals, te and content-type.
    let path = format!("{SERVICE}/ModelInfer");
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend([0x01, 4]);
    block.extend(b"test");
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.extend([0x00, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    let headers = [&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, 1][..], &block].concat();
    // The same block cut into HEADERS and CONTINUATION.
    let (a, b) = block.split_at(10);
    let cut = [
        &[0, 0, a.len() as u8, 1, 0, 0, 0, 0, 1][..],
        a,
        &[0, 0, b.len() as u8, 9, 4, 0, 0, 0, 1],
        b,
    ]
    .concat();
    let data: &[u8] = &[0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 2, b'h', b'i'];
    for (name, pieces) in [
        (
            "all at once",
            vec![[preface, settings, window, &headers, data].concat()],
        ),
        (
            "acknowledged after the call",
            vec![[preface, settings, &headers, data].concat(), ack.to_vec()],
        ),
        (
            "two settings and a ping",
            vec![[preface, settings, settings, &ping, &headers, data].concat()],
        ),
        (
            "cut header block",
            vec![[preface, settings, &cut].concat(), data.to_vec()],
        ),
        (
            "byte by byte",
            [preface, settings, &headers, data]
                .concat()
                .iter()
                .map(|b| vec![*b])
                .collect(),
        ),
    ] {
        let mut stream = tokio::net::TcpStream::connect(shim.grpc()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in pieces {
            stream.write_all(&piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut heard = Vec::new();
        within(name, async {
            let mut buffer = [0; 4096];
            // The echoed message, in its DATA frame on stream 1.
            while !heard.windows(7).any(|w| w == [0, 0, 0, 0, 2, b'h', b'i']) {
                let n = stream.read(&mut buffer).await.unwrap();
                assert!(n > 0, "{name}: closed; heard {heard:?}");
                heard.extend_from_slice(&buffer[..n]);
            }
        })
        .await;
        let mut kinds = Vec::new();
        let mut rest = heard.as_slice();
        while rest.len() >= 9 {
            kinds.push((rest[3], rest[4]));
            let length = usize::from(rest[1]) * 256 + usize::from(rest[2]);
            rest = &rest[(9 + length).min(rest.len())..];
        }
        let acks = kinds.iter().filter(|k| **k == (4, 1)).count();
        let sent = if name.starts_with("two") { 2 } else { 1 };
        assert_eq!(
            acks, sent,
            "{name}: each SETTINGS is acknowledged once: {kinds:?}"
        );
        let pongs = kinds.iter().filter(|k| **k == (6, 1)).count();
        assert_eq!(
            pongs,
            sent - 1,
            "{name}: each ping is answered once: {kinds:?}"
        );
        assert!(
            kinds.iter().all(|k| k.0 != 7),
            "{name}: GOAWAY in {kinds:?}"
        );
    }
}

/// MLServer ends a connection at the fourth ping of one long call; the agent pings once a minute.
#[tokio::test]
async fn a_callers_pings_are_answered_and_never_reach_the_server() {
    let (server, shim) = pair(&[]).await;
    for control in [false, true] {
        let stream = tokio::net::TcpStream::connect(shim.grpc()).await.unwrap();
        let (mut sender, mut connection) = h2::client::handshake(stream).await.unwrap();
        let mut pings = connection.ping_pong().unwrap();
        let driven = tokio::spawn(connection);
        let mut call = async |method: &str| {
            let request = http::Request::post(format!("http://test{SERVICE}/{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .unwrap();
            let (answer, mut body) = sender.send_request(request, false).unwrap();
            body.send_data(crate::support::grpc::framed(b""), true)
                .unwrap();
            within("the answer", answer).await.unwrap().status()
        };
        assert_eq!(
            call(if control { "ServerLive" } else { "ModelInfer" }).await,
            200
        );
        for _ in 0..20 {
            within("a pong", pings.ping(h2::Ping::opaque()))
                .await
                .unwrap();
        }
        assert_eq!(call("ModelInfer").await, 200);
        driven.abort();
    }
    assert_eq!(server.pings(), 0);
}

#[tokio::test]
async fn a_long_quiet_call_is_not_disturbed_by_pings() {
    let (server, shim) = pair(&[]).await;
    let mut client = Client::connect(shim.grpc()).await;
    let mut quiet = client
        .open_with("ModelStreamInfer", &[], &[b"a"])
        .await
        .unwrap();
    assert_eq!(quiet.next().await.unwrap().unwrap(), "a");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    quiet.say(b"b").await;
    assert_eq!(quiet.next().await.unwrap().unwrap(), "b");
    assert_eq!(server.pings(), 0, "MLServer punishes keep-alive pings");
}
