//! Faults that were found once: each began as a failing case here.

use std::time::Duration;

use agent_shim::drain::in_flight::InFlight;
use agent_shim::relay::frames::{Calls, Filter, GOAWAY, LeaveOut};
use agent_shim::relay::splice::{Far, Http2, Splice};
use prometheus::IntCounter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::support::http::raw;
use crate::support::{Shim, grpc, pair, refused, within};

/// Two ends of a TCP connection.
async fn ends() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (a.unwrap(), b.unwrap().0)
}

/// A splice between two ends that the test holds: the caller's and the server's.
async fn splice() -> (Splice, TcpStream, TcpStream) {
    let ((caller, near), (far, server)) = (ends().await, ends().await);
    let filter = |pings| Filter::new(LeaveOut { acks: 0, pings });
    let counter = || IntCounter::new("c", "c").unwrap();
    let splice = Splice {
        caller: near,
        far: Far::Server(far),
        to_server: Vec::new(),
        to_caller: Vec::new(),
        http2: Some(Http2 {
            infers: false,
            marker: None,
            from_caller: filter(true),
            from_server: filter(false),
            pings: Vec::new(),
            calls: Calls::default(),
            opened: counter(),
            in_flight: InFlight::default(),
        }),
        received: counter(),
        sent: counter(),
    };
    (splice, caller, server)
}

/// RFC 9113, 6.8: the last stream of a GOAWAY must not rise. grpc-go ends the whole connection,
/// and with it every running call, when it does.
#[tokio::test]
async fn after_a_goaway_of_the_server_the_shim_says_none_of_its_own() {
    let (splice, mut caller, mut server) = splice().await;
    let (move_on, moved) = oneshot::channel::<()>();
    let carried = tokio::spawn(splice.run(async {
        if moved.await.is_err() {
            std::future::pending::<()>().await;
        }
    }));
    let mut last = GOAWAY;
    last[9..13].copy_from_slice(&[0, 0, 0, 1]);
    server.write_all(&last).await.unwrap();
    let mut heard = [0; 17];
    within("the server's GOAWAY", caller.read_exact(&mut heard))
        .await
        .unwrap();
    assert_eq!(heard, last);
    move_on.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let data = [0, 0, 1, 0, 1, 0, 0, 0, 1, b'x'];
    server.write_all(&data).await.unwrap();
    drop(server);
    let mut rest = Vec::new();
    within("the end", caller.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest, data, "a second GOAWAY with a higher last stream");
    drop(caller);
    within("the splice to end", carried).await.unwrap();
}

#[tokio::test]
async fn a_control_connection_does_not_send_new_calls_to_a_server_that_is_wedged() {
    let (server, shim) = pair(&[("SHIM_OUTAGE_GRACE", "700ms")]).await;
    let mut control = grpc::Client::connect(shim.grpc()).await;
    control.call("ServerLive", b"").await.unwrap();
    // From here on it has a connection to the server.
    let mut stream = control
        .open_with("ModelStreamInfer", &[], &[b"a"])
        .await
        .unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    server.wedge();
    shim.state("127.0.0.1", "grpc", "down").await;
    let answer = control.call("ModelInfer", b"x").await.unwrap();
    assert_eq!(answer.status().0, 14);
    server.unwedge();
    stream.say(b"b").await;
    assert_eq!(
        stream.next().await.unwrap().unwrap(),
        "b",
        "a running call was cut"
    );
    shim.ready().await;
    assert_eq!(
        control.call("ModelInfer", b"x").await.unwrap().messages,
        ["x"]
    );
}

#[tokio::test]
async fn the_body_of_a_get_in_chunks_reaches_the_server() {
    let (server, shim) = pair(&[]).await;
    let get = b"GET /v2 HTTP/1.1\r\nhost: a\r\nx-me: 1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let answer = raw(shim.http(), get).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let calls = server.calls();
    let call = calls.iter().find(|c| c.headers.contains_key("x-me"));
    assert_eq!(call.unwrap().body_bytes, 5);
}

/// HTTP/1.0 needs no Host, HTTP/1.1 does: MLServer's own server refuses a request without.
#[tokio::test]
async fn a_caller_of_http_1_0_without_a_host_gets_through() {
    let (_server, shim) = pair(&[]).await;
    let answer = raw(shim.http(), b"GET /headers HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert!(answer.contains("\"host\":"), "{answer}");
}

#[tokio::test]
async fn a_host_named_by_connection_is_not_lost() {
    let (_server, shim) = pair(&[]).await;
    let get = b"GET /headers HTTP/1.1\r\nhost: a\r\nconnection: close, host\r\n\r\n";
    let answer = raw(shim.http(), get).await;
    assert!(answer.contains("\"host\":"), "{answer}");
}

/// A caller that never makes a call and never stops talking.
#[tokio::test]
async fn what_is_remembered_of_a_caller_before_its_first_call_is_bounded() {
    let (nowhere, _port) = refused().await;
    let shim = Shim::before("127.0.0.1", nowhere, nowhere, &[]);
    let stream = TcpStream::connect(shim.grpc()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let reading = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
    });
    write
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let pings = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], b"pingping"]
        .concat()
        .repeat(1024);
    let flood = async {
        for _ in 0..1024 {
            if write.write_all(&pings).await.is_err() {
                return true;
            }
        }
        false
    };
    assert!(
        within("the flood", flood).await,
        "17 MiB of pings were taken in"
    );
    reading.abort();
}

/// As the trailers of a Python traceback are; the agent's own client takes 16 MiB.
#[tokio::test]
async fn a_status_of_many_words_passes_a_control_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let live = request.uri().path().ends_with("ServerLive");
                    let response = http::Response::builder()
                        .header("content-type", "application/grpc")
                        .body(())
                        .unwrap();
                    let mut body = respond.send_response(response, false).unwrap();
                    let mut trailers = http::HeaderMap::new();
                    if live {
                        body.send_data(grpc::framed(&[8, 1]), false).unwrap();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                    } else {
                        trailers.insert("grpc-status", "13".parse().unwrap());
                        trailers.insert("grpc-message", "x".repeat(40_000).parse().unwrap());
                    }
                    body.send_trailers(trailers).unwrap();
                }
            });
        }
    });
    let shim = Shim::before("127.0.0.1", address, address, &[]);
    shim.state("127.0.0.1", "grpc", "up").await;
    for kind in ["data", "control"] {
        let stream = TcpStream::connect(shim.grpc()).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        let driven = tokio::spawn(connection);
        let mut call = async |method: &str| {
            let request = http::Request::post(format!("http://test{}/{method}", grpc::SERVICE))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .unwrap();
            let (answer, mut body) = sender.send_request(request, false).unwrap();
            body.send_data(grpc::framed(b""), true).unwrap();
            let answer = within("the answer", answer).await.unwrap();
            let (head, mut body) = answer.into_parts();
            while body.data().await.is_some() {}
            body.trailers().await.unwrap().unwrap_or(head.headers)
        };
        if kind == "control" {
            assert_eq!(call("ServerLive").await["grpc-status"], "0");
        }
        let trailers = call("ModelInfer").await;
        assert_eq!(trailers["grpc-status"], "13", "{kind}: {trailers:?}");
        assert_eq!(trailers["grpc-message"].len(), 40_000, "{kind}");
        driven.abort();
    }
    serving.abort();
}

/// Answered before the body is read: the answer must not be lost to a reset.
#[tokio::test]
async fn a_caller_with_a_large_body_gets_the_honest_answer() {
    let (nowhere, _port) = refused().await;
    let shim = Shim::before("127.0.0.1", nowhere, nowhere, &[]);
    for round in 0..5 {
        let mut stream = TcpStream::connect(shim.http()).await.unwrap();
        let length = 8 << 20;
        let head = format!(
            "POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let sent = stream.write_all(&vec![b' '; length]).await;
        let mut heard = Vec::new();
        let read = within("the answer", stream.read_to_end(&mut heard)).await;
        let text = String::from_utf8_lossy(&heard).into_owned();
        assert!(
            sent.is_ok() && text.starts_with("HTTP/1.1 503"),
            "round {round}: {sent:?} {read:?} {text}"
        );
    }
}

/// With both, the length is not the body's; only one may reach the caller.
#[tokio::test]
async fn an_answer_with_two_lengths_reaches_the_caller_with_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut some = [0; 4096];
                while stream.read(&mut some).await.unwrap_or(0) > 0 {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    let shim = Shim::before("127.0.0.1", address, address, &[]);
    shim.state("127.0.0.1", "http", "up").await;
    let get = b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = raw(shim.http(), get).await;
    assert!(answer.contains("hello"), "{answer}");
    assert!(!answer.contains("content-length: 3"), "{answer}");
    serving.abort();
}
