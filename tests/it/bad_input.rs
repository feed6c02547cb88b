//! Callers who break the rules get a clear error or a bounded time-out, are counted, and cost
//! nobody else anything.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::http::{Client, raw, until_closed};
use crate::support::{Shim, grpc, refused, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// The first bytes of a TLS 1.2 or 1.3 handshake.
const CLIENT_HELLO: &[u8] = &[
    0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
];

/// A shim without a server, and what keeps the server's port free. Callers who behave have as long
/// as the tests have patience, however slow the machine is.
async fn shim() -> (Shim, tokio::net::TcpListener) {
    shim_with("20s").await
}

/// The same with a limit for headers that the test is about.
async fn shim_with(limit: &str) -> (Shim, tokio::net::TcpListener) {
    let (nowhere, port) = refused().await;
    let settings = [("SHIM_HEADER_TIMEOUT", limit)];
    (Shim::before("127.0.0.1", nowhere, nowhere, &settings), port)
}

fn ended(protocol: &str, end: &str) -> String {
    format!("agent_shim_relay_connections_total{{end=\"{end}\",protocol=\"{protocol}\"}}")
}

/// Another caller is answered as if nothing were.
async fn others_are_served(shim: &Shim) {
    let (status, _, _) = Client::connect(shim.http())
        .await
        .get("/v2/models/m/infer")
        .await;
    assert_eq!(status, 503);
    let answer = grpc::Client::connect(shim.grpc())
        .await
        .call("ModelInfer", b"")
        .await;
    assert_eq!(answer.unwrap().status().0, 14);
}

#[tokio::test]
async fn malformed_http_is_answered_with_400_and_counted() {
    let (shim, _port) = shim().await;
    for bytes in [
        &b"GARBAGE\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
    ] {
        let answer = raw(shim.http(), bytes).await;
        let shown = String::from_utf8_lossy(bytes);
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request"),
            "{shown}: {answer}"
        );
    }
    shim.metric_reaches(&ended("http", "malformed"), 5.0).await;
    others_are_served(&shim).await;
}

#[tokio::test]
async fn headers_that_are_too_large_are_refused() {
    let (shim, _port) = shim().await;
    let huge = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let answer = raw(shim.http(), huge.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let mut client = grpc::Client::connect(shim.grpc()).await;
    let value = "y".repeat(2 << 20);
    let refused = client.call_with("ModelInfer", b"", &[("x", &value)]).await;
    assert!(
        refused
            .as_ref()
            .map_or(true, |answer| answer.status().0 != 0),
        "{refused:?}"
    );
    others_are_served(&shim).await;
}

#[tokio::test]
async fn a_caller_on_the_wrong_port_is_told_which_protocol_is_spoken_there() {
    let (shim, _port) = shim().await;
    for (to, bytes, told) in [
        (
            shim.http(),
            PREFACE,
            "gRPC goes to the gRPC relay (SHIM_RELAY_GRPC_PORT)",
        ),
        (
            shim.grpc(),
            &b"GET /v2 HTTP/1.1\r\nhost: a\r\n\r\n"[..],
            "HTTP/1.1 goes to the HTTP relay",
        ),
        (shim.http(), CLIENT_HELLO, "does not speak TLS"),
        (shim.grpc(), CLIENT_HELLO, "does not speak TLS"),
    ] {
        let answer = raw(to, bytes).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains(told),
            "{answer}"
        );
    }
    shim.metric_reaches(&ended("http", "wrong-protocol"), 2.0)
        .await;
    shim.metric_reaches(&ended("grpc", "wrong-protocol"), 2.0)
        .await;
    others_are_served(&shim).await;
}

/// A caller that sends the start of something and then nothing: closed by the shim.
async fn loris(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    until_closed(&mut stream).await
}

#[tokio::test]
async fn callers_who_never_finish_what_they_began_are_closed_in_bounded_time() {
    // Others are served meanwhile under the same limit, so it must not be too short for them.
    let (shim, _port) = shim_with("3s").await;
    let half_preface = &PREFACE[..10];
    let no_settings = PREFACE;
    let half_frame = [PREFACE, EMPTY_SETTINGS, &[0, 0, 100, 1, 4]].concat();
    // A header block that is never ended: HEADERS without END_HEADERS.
    let open_block = [PREFACE, EMPTY_SETTINGS, &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x83]].concat();
    let all = [
        (shim.http(), &b"G"[..]),
        (shim.http(), b""),
        (shim.http(), b"GET / HTTP/1.1\r\nhost: a\r\nx: "),
        (shim.grpc(), half_preface),
        (shim.grpc(), b""),
        (shim.grpc(), no_settings),
        (shim.grpc(), &half_frame),
        (shim.grpc(), &open_block),
    ];
    let mut waiting = tokio::task::JoinSet::new();
    for (to, bytes) in all {
        let bytes = bytes.to_vec();
        waiting.spawn(async move { loris(to, &bytes).await });
    }
    others_are_served(&shim).await;
    while let Some(closed) = within("every slow caller to be closed", waiting.join_next()).await {
        closed.unwrap();
    }
    shim.metric_reaches(&ended("http", "timeout"), 3.0).await;
    shim.metric_reaches(&ended("grpc", "timeout"), 5.0).await;
    others_are_served(&shim).await;
}

#[tokio::test]
async fn an_http2_connection_may_be_idle_between_frames_for_longer_than_the_limit() {
    let (shim, _port) = shim_with("1s").await;
    let mut stream = TcpStream::connect(shim.grpc()).await.unwrap();
    stream
        .write_all(&[PREFACE, EMPTY_SETTINGS].concat())
        .await
        .unwrap();
    let mut heard = Vec::new();
    // Idle for three limits; only a close would end the reading early.
    let idle = std::time::Duration::from_secs(3);
    let closed = tokio::time::timeout(idle, stream.read_to_end(&mut heard)).await;
    assert!(closed.is_err(), "an idle connection was closed");
    // It is answered still: a ping gets its pong.
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], b"still on"].concat();
    stream.write_all(&ping).await.unwrap();
    within("the pong", async {
        let mut buffer = [0; 256];
        while !heard.windows(8).any(|w| w == b"still on") {
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "closed before the pong");
            heard.extend_from_slice(&buffer[..n]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_breaks_http2_gets_goaway_and_is_counted() {
    let (shim, _port) = shim().await;
    // DATA on a stream that was never opened, and a HEADERS frame on stream 0.
    for frame in [
        &[0, 0, 1, 0, 0, 0, 0, 0, 5, 0xff][..],
        &[0, 0, 1, 1, 4, 0, 0, 0, 0, 0x83],
    ] {
        let mut stream = TcpStream::connect(shim.grpc()).await.unwrap();
        stream
            .write_all(&[PREFACE, EMPTY_SETTINGS, frame].concat())
            .await
            .unwrap();
        let mut all = Vec::new();
        let _ = within("the close", stream.read_to_end(&mut all)).await;
        let goaway = all.windows(9).any(|w| w[3] == 7 && w[5..9] == [0, 0, 0, 0]);
        assert!(goaway, "no GOAWAY in {all:?}");
    }
    shim.metric_reaches(&ended("grpc", "malformed"), 2.0).await;
    others_are_served(&shim).await;
}

#[tokio::test]
async fn random_bytes_on_every_port_harm_nobody() {
    let (shim, _port) = shim().await;
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..60 {
        let mut bytes: Vec<u8> = (0..random.usize(1..400)).map(|_| random.u8(..)).collect();
        if round % 2 == 0 {
            bytes = [PREFACE, EMPTY_SETTINGS, &bytes].concat();
        }
        for to in [shim.http(), shim.grpc(), shim.admin()] {
            let mut stream = TcpStream::connect(to).await.unwrap();
            let _ = stream.write_all(&bytes).await;
        }
    }
    others_are_served(&shim).await;
    assert_eq!(shim.get("/livez").await.0, 200);
}
