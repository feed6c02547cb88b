//! The server refuses, is silent, comes back: what callers get meanwhile.

use std::net::{IpAddr, Ipv4Addr};

use agent_shim::demo::standin::StandIn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::http::{self, request};
use crate::support::{Shim, eventually, grpc, pair, within};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn live(client: &mut grpc::Client) -> bool {
    let answer = client.call("ServerLive", b"").await.unwrap();
    assert_eq!(answer.status().0, 0);
    answer.messages[0] == [8, 1][..]
}

#[tokio::test]
async fn callers_of_a_stopped_server_get_an_immediate_honest_answer() {
    let (server, shim) = pair(&[]).await;
    server.stop().await;
    let (status, headers, body) = http::Client::connect(shim.http())
        .await
        .call(request("POST", "/v2/models/m/infer", "{}"))
        .await;
    assert_eq!(status, 503);
    assert_eq!(headers["retry-after"], "1");
    assert_eq!(headers["content-type"], "application/json");
    let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let text = error["error"].as_str().unwrap();
    assert!(
        text.starts_with("agent-shim: the inference server does not answer HTTP"),
        "{text}"
    );
    let mut client = grpc::Client::connect(shim.grpc()).await;
    let (code, message) = client.call("ModelInfer", b"").await.unwrap().status();
    assert_eq!(code, 14);
    assert!(
        message.starts_with("agent-shim: the inference server does not answer gRPC"),
        "{message}"
    );
    let answers = r#"agent_shim_answers_total{answer="unavailable",protocol="grpc"}"#;
    assert_eq!(shim.metric(answers).await, 1.0);
}

#[tokio::test]
async fn live_outlasts_a_short_outage_and_then_says_false() {
    let (server, shim) = pair(&[("SHIM_OUTAGE_GRACE", "2s")]).await;
    let mut client = grpc::Client::connect(shim.grpc()).await;
    let mut http = http::Client::connect(shim.http()).await;
    assert!(live(&mut client).await);
    server.stop().await;
    shim.state("127.0.0.1", "grpc", "down").await;
    assert!(live(&mut client).await, "within the grace");
    assert_eq!(http.get("/v2/health/live").await.0, 200);
    eventually("live=false", async || {
        (!live(&mut client).await).then_some(())
    })
    .await;
    let reason = client.call("ServerLive", b"").await.unwrap().trailers;
    let reason = reason["x-agent-shim-reason"].to_str().unwrap();
    assert!(
        reason.contains("nothing listens there any more"),
        "{reason}"
    );
    let (status, _, body) = eventually("HTTP live 503", async || {
        let answer = http.get("/v2/health/live").await;
        (answer.0 == 503).then_some(answer)
    })
    .await;
    assert!(
        String::from_utf8_lossy(&body).contains("does not answer HTTP"),
        "{status}"
    );
}

/// The agent gives each of these calls a minute, and gives up after half a minute of no.
#[tokio::test]
async fn a_caller_with_time_is_held_until_the_server_is_up() {
    let (server, shim) = pair(&[("SHIM_OUTAGE_GRACE", "0s")]).await;
    server.stop().await;
    shim.state("127.0.0.1", "grpc", "down").await;
    let to = shim.grpc();
    let ask = async |timeout: &'static str| {
        let mut client = grpc::Client::connect(to).await;
        let headers = [("grpc-timeout", timeout)];
        let answer = client.call_with("ServerLive", b"", &headers).await.unwrap();
        answer.messages[0] == [8, 1][..]
    };
    // One without the time is answered at once, and so is one that says nothing of it.
    assert!(!ask("9S").await);
    let mut plain = grpc::Client::connect(to).await;
    assert!(!live(&mut plain).await);
    let held = ask("60S");
    tokio::pin!(held);
    let waited = tokio::time::timeout(std::time::Duration::from_millis(500), &mut held).await;
    assert!(waited.is_err(), "answered while the server is down");
    server.restart().await.unwrap();
    assert!(within("the held answer", held).await);
}

#[tokio::test]
async fn a_hold_is_bounded() {
    let settings = [("SHIM_OUTAGE_GRACE", "0s"), ("SHIM_LIVE_HOLD", "200ms")];
    let (server, shim) = pair(&settings).await;
    server.stop().await;
    shim.state("127.0.0.1", "grpc", "down").await;
    let mut client = grpc::Client::connect(shim.grpc()).await;
    let headers = [("grpc-timeout", "60S")];
    let answer = client.call_with("ServerLive", b"", &headers).await.unwrap();
    assert!(
        answer.messages[0].is_empty(),
        "live=false is an empty message"
    );
}

#[tokio::test]
async fn the_same_clients_are_served_again_when_the_server_is_back() {
    let (server, shim) = pair(&[]).await;
    let mut web = http::Client::connect(shim.http()).await;
    let mut control = grpc::Client::connect(shim.grpc()).await;
    assert!(live(&mut control).await);
    server.stop().await;
    assert_eq!(web.get("/headers").await.0, 503);
    assert_eq!(
        control.call("ModelInfer", b"x").await.unwrap().status().0,
        14
    );
    server.restart().await.unwrap();
    // A server that is back is used at once: the shim need not have probed it yet.
    assert_eq!(web.get("/headers").await.0, 200);
    assert_eq!(
        control.call("ModelInfer", b"x").await.unwrap().messages,
        ["x"]
    );
}

#[tokio::test]
async fn a_data_connection_of_the_outage_is_told_to_come_again() {
    let (server, shim) = pair(&[]).await;
    server.stop().await;
    shim.state("127.0.0.1", "grpc", "down").await;
    let mut parked = grpc::Client::connect(shim.grpc()).await;
    assert_eq!(
        parked.call("ModelInfer", b"x").await.unwrap().status().0,
        14
    );
    server.restart().await.unwrap();
    eventually("the move", async || parked.is_closed().then_some(())).await;
    let mut next = grpc::Client::connect(shim.grpc()).await;
    assert_eq!(next.call("ModelInfer", b"x").await.unwrap().messages, ["x"]);
}

#[tokio::test]
async fn callers_of_a_stalled_server_wait_and_are_answered_when_it_goes_on() {
    let (server, shim) = pair(&[("SHIM_OUTAGE_GRACE", "60s")]).await;
    let mut running = grpc::Client::connect(shim.grpc()).await;
    let mut stream = running
        .open_with("ModelStreamInfer", &[], &[b"a"])
        .await
        .unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    server.wedge();
    let stalled = shim.state("127.0.0.1", "grpc", "stalled").await;
    assert_eq!(stalled["reason"], "response-timeout");
    shim.state("127.0.0.1", "http", "stalled").await;
    assert_eq!(shim.get("/readyz").await.0, 200, "slow is not dead");
    let (http, grpc) = (shim.http(), shim.grpc());
    let web =
        tokio::spawn(async move { http::Client::connect(http).await.get("/headers").await.0 });
    let call = tokio::spawn(async move {
        grpc::Client::connect(grpc)
            .await
            .call("ModelInfer", b"x")
            .await
            .unwrap()
            .messages
    });
    stream.say(b"b").await;
    let connected =
        r#"agent_shim_relay_connect_attempts_total{outcome="connected",protocol="grpc"}"#;
    shim.metric_reaches(connected, 2.0).await;
    assert!(!web.is_finished() && !call.is_finished());
    // Health is answered meanwhile.
    let mut control = grpc::Client::connect(shim.grpc()).await;
    assert!(live(&mut control).await);
    server.unwedge();
    assert_eq!(within("the HTTP caller", web).await.unwrap(), 200);
    assert_eq!(within("the gRPC caller", call).await.unwrap(), ["x"]);
    assert_eq!(
        stream.next().await.unwrap().unwrap(),
        "b",
        "a running call was cut"
    );
    shim.state("127.0.0.1", "grpc", "up").await;
}

#[tokio::test]
async fn silence_beyond_the_grace_is_down_and_new_callers_do_not_hang() {
    let (server, shim) = pair(&[("SHIM_OUTAGE_GRACE", "700ms")]).await;
    let mut data = grpc::Client::connect(shim.grpc()).await;
    let mut stream = data
        .open_with("ModelStreamInfer", &[], &[b"a"])
        .await
        .unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    server.wedge();
    shim.state("127.0.0.1", "grpc", "down").await;
    shim.state("127.0.0.1", "http", "down").await;
    let (status, _, body) = http::Client::connect(shim.http())
        .await
        .get("/headers")
        .await;
    assert_eq!(status, 503);
    let text = String::from_utf8_lossy(&body).into_owned();
    assert!(
        text.contains("accepts connections and does not answer"),
        "{text}"
    );
    let mut new = grpc::Client::connect(shim.grpc()).await;
    assert_eq!(new.call("ModelInfer", b"").await.unwrap().status().0, 14);
    // The connection from before is told to take no new calls, and its running call stays.
    eventually("GOAWAY", async || {
        let limit = std::time::Duration::from_millis(200);
        let call = tokio::time::timeout(limit, data.call("ModelInfer", b"")).await;
        matches!(call, Ok(Err(_))).then_some(())
    })
    .await;
    server.unwedge();
    stream.say(b"b").await;
    assert_eq!(
        stream.next().await.unwrap().unwrap(),
        "b",
        "a running call was cut"
    );
    shim.ready().await;
    assert_eq!(
        http::Client::connect(shim.http())
            .await
            .get("/headers")
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn a_zombie_that_accepts_and_never_answers_is_never_ready() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    server.wedge();
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[]);
    let down = shim.state("127.0.0.1", "grpc", "down").await;
    assert_eq!(down["reason"], "response-timeout");
    let (code, text) = shim.get("/readyz").await;
    assert_eq!(code, 503);
    assert!(text.contains("it has never answered"), "{text}");
    let mut control = grpc::Client::connect(shim.grpc()).await;
    assert!(!live(&mut control).await);
}

#[tokio::test]
async fn one_protocol_of_two_dead_is_told_in_words() {
    let (server, shim) = pair(&[]).await;
    server.stop_grpc().await;
    shim.state("127.0.0.1", "grpc", "down").await;
    let (code, text) = shim.get("/readyz").await;
    assert_eq!(code, 503);
    assert!(text.starts_with("inference-grpc: "), "{text}");
    // Said only after a while: right after a fall the other protocol may fall as well.
    eventually("the words", async || {
        let (_, text) = shim.get("/readyz").await;
        text.contains("only HTTP answers").then_some(())
    })
    .await;
    assert_eq!(
        http::Client::connect(shim.http())
            .await
            .get("/headers")
            .await
            .0,
        200
    );
}

/// Answers the first bytes of every connection with these bytes, and closes.
async fn saying(answer: &'static [u8]) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut some = [0; 16];
                let _ = stream.read(&mut some).await;
                let _ = stream.write_all(answer).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_server_of_another_protocol_on_the_port_is_told_apart() {
    // As MLServer's HTTP port answers HTTP/2, its gRPC port HTTP/1.1, and a TLS port both.
    let http1 = saying(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
    let http2 = saying(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
    let tls = saying(&[0x15, 0x03, 0x03, 0, 2, 2, 70]).await;
    for (http, grpc, said) in [(http2, http1, "HTTP/1"), (tls, tls, "TLS")] {
        let shim = Shim::before("127.0.0.1", http, grpc, &[]);
        for protocol in ["http", "grpc"] {
            let down = shim.state("127.0.0.1", protocol, "down").await;
            assert_eq!(down["reason"], "protocol", "{protocol}: {down}");
            if protocol == "grpc" {
                assert!(down["detail"].as_str().unwrap().contains(said), "{down}");
            }
        }
        let (_, text) = shim.get("/readyz").await;
        let words = "does not speak gRPC; compare SHIM_INFERENCE_GRPC_PORT";
        assert!(text.contains(words), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_says_it_is_not_live_is_down_by_its_own_word() {
    let (server, shim) = pair(&[]).await;
    server.set_live(false);
    for protocol in ["http", "grpc"] {
        let down = shim.state("127.0.0.1", protocol, "down").await;
        assert_eq!(down["reason"], "status");
    }
    server.set_live(true);
    shim.ready().await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_a_named_reason() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let hosts = "no-such-host.invalid,127.0.0.1";
    let shim = Shim::before(hosts, server.http(), server.grpc(), &[]);
    let down = shim.state("no-such-host.invalid", "grpc", "down").await;
    assert_eq!(down["reason"], "dns");
    shim.ready().await;
    shim.selected("grpc", Some("127.0.0.1")).await;
}

#[tokio::test]
async fn a_server_that_resets_or_closes_without_an_answer_is_named_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _closing = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            drop(stream);
        }
    });
    let shim = Shim::before("127.0.0.1", address, address, &[]);
    for protocol in ["http", "grpc"] {
        let down = shim.state("127.0.0.1", protocol, "down").await;
        assert_eq!(down["reason"], "reset", "{protocol}: {down}");
    }
}

#[tokio::test]
async fn a_server_whose_queue_is_full_is_a_connect_timeout() {
    // A listener that never accepts, with its queue filled: the kernel drops further SYNs.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(
        std::time::Duration::from_millis(200),
        tokio::net::TcpStream::connect(address),
    )
    .await
    {
        queued.push(stream);
    }
    let shim = Shim::before(
        "127.0.0.1",
        address,
        address,
        &[("SHIM_OUTAGE_GRACE", "300ms")],
    );
    for protocol in ["http", "grpc"] {
        let down = shim.state("127.0.0.1", protocol, "down").await;
        assert_eq!(down["reason"], "connect-timeout", "{protocol}: {down}");
    }
}

/// A process that is just being started holds copies of every descriptor of its parent. For that
/// moment the kernel accepted callers of a server that had been stopped, and then reset them: the
/// shim said 502 where these tests expect the 503 of a server that refuses.
#[tokio::test]
async fn a_stand_in_that_was_stopped_refuses_while_processes_are_started() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let starting = std::thread::spawn(move || {
        while stopped.try_recv().is_err() {
            let _ = std::process::Command::new("true").status();
        }
    });
    for round in 0..100 {
        server.stop().await;
        let met = tokio::net::TcpStream::connect(server.http()).await;
        assert!(met.is_err(), "round {round}: a stopped server accepts");
        server.restart().await.unwrap();
    }
    stop.send(()).unwrap();
    starting.join().unwrap();
}
