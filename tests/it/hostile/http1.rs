//! HTTP/1.1 attacks on the relay and the admin port: slowness and size.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::frames::deaf;
use super::process::{get, pair, say};
use crate::support::within;

/// The first line of an answer; a reset is none.
async fn first_line(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = within("an answer", stream.read_to_end(&mut answer)).await;
    let text = String::from_utf8_lossy(&answer);
    text.lines().next().unwrap_or_default().to_string()
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused_in_words() {
    let (_server, process) = pair(&[]).await;
    let line = |n: usize| {
        format!(
            "GET /livez HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
            "y".repeat(n)
        )
    };
    let lines = |n: usize| {
        format!(
            "GET /livez HTTP/1.1\r\nhost: a\r\n{}\r\n",
            "x: y\r\n".repeat(n)
        )
    };
    let target = |n: usize| format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "y".repeat(n));
    for (to, bytes, code) in [
        (process.http, line(60_000), "404"),
        (process.http, line(200_000), "431"),
        (process.http, line(8 << 20), "431"),
        (process.http, lines(98), "404"),
        (process.http, lines(101), "431"),
        (process.http, lines(200_000), "431"),
        (process.http, target(20_000), "404"),
        (process.http, target(66_000), "414"),
        (process.http, target(8 << 20), "431"),
        (process.admin, line(10_000), "200"),
        (process.admin, line(50_000), "431"),
        (process.admin, line(8 << 20), "431"),
        (process.admin, lines(101), "431"),
        (process.admin, target(10_000), "404"),
        (process.admin, target(50_000), "431"),
    ] {
        // The end of a head is what makes the last one end.
        let bytes = bytes.replace("host: a", "host: a\r\nconnection: close");
        let said = first_line(to, bytes.as_bytes()).await;
        let is = said.split(' ').nth(1).unwrap_or("none");
        // A caller that goes on sending may be reset before it reads why.
        let reset = is == "none" && bytes.len() > 1 << 20;
        assert!(
            is == code || reset,
            "{} bytes at {to}: {said:?}",
            bytes.len()
        );
    }
    process.recovers("large heads").await;
}

/// Many callers, each of whom has begun a head or a body and sends a byte now and then.
#[tokio::test]
async fn slow_callers_hold_their_own_connection_only() {
    let (server, process) = pair(&[("SHIM_HEADER_TIMEOUT", "2s")]).await;
    let large = "y".repeat(60_000);
    for (to, start) in [
        (process.http, "G".to_string()),
        (process.http, "GET / HTTP/1.1\r\nhost: a\r\nx: y".into()),
        (
            process.http,
            "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n".into(),
        ),
        (
            process.http,
            "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffff\r\n".into(),
        ),
        (
            process.http,
            format!("GET / HTTP/1.1\r\nhost: a\r\nx: {large}"),
        ),
        (
            process.admin,
            "GET /livez HTTP/1.1\r\nhost: a\r\nx: y".into(),
        ),
        (
            process.admin,
            "POST /livez HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n".into(),
        ),
        (process.grpc, "PRI * HT".into()),
    ] {
        let what = format!("slow {:?} at {to}", &start[..start.len().min(30)]);
        process
            .withstands(&what, async {
                let mut slow = JoinSet::new();
                for _ in 0..200 {
                    let start = start.clone();
                    slow.spawn(async move {
                        let mut stream = TcpStream::connect(to).await.unwrap();
                        let _ = stream.write_all(start.as_bytes()).await;
                        for _ in 0..10 {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            let _ = stream.write_all(b"1").await;
                        }
                    });
                }
                slow.join_all().await;
            })
            .await;
    }
    drop(server);
}

/// A head that is never ended is cut at the limit although bytes keep coming.
#[tokio::test]
async fn a_byte_now_and_then_does_not_prolong_a_head() {
    let (_server, process) = pair(&[("SHIM_HEADER_TIMEOUT", "1s")]).await;
    for (to, bytes) in [
        (process.http, &b"GET / HTTP/1.1\r\nhost: a\r\nx: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"[..]),
        (process.grpc, b"PRI * HTTP/2.0\r\n\r\nSM\r\n"),
    ] {
        let stream = TcpStream::connect(to).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let drip = async {
            for byte in bytes.iter().cycle() {
                if write.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        };
        let closed = async {
            let mut answer = Vec::new();
            let _ = read.read_to_end(&mut answer).await;
        };
        within("the slow caller to be closed", async {
            tokio::select! { () = drip => {}, () = closed => {} }
        })
        .await;
    }
}

#[tokio::test]
async fn callers_who_never_read_an_answer_hold_little() {
    let (_server, process) = pair(&[]).await;
    for (to, path, n) in [
        (process.http, "/large?bytes=100000000", 20),
        (process.admin, "/status", 60),
    ] {
        let one = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        let pipelined = one.repeat(1000);
        let what = format!("deaf callers of {path}");
        process
            .withstands(&what, async {
                let mut held = JoinSet::new();
                for _ in 0..n {
                    let bytes = pipelined.clone();
                    held.spawn(async move { deaf(to, bytes.as_bytes()).await });
                }
                let held = held.join_all().await;
                process.is_bounded(&what);
                drop(held);
            })
            .await;
    }
}

#[tokio::test]
async fn bodies_that_the_admin_port_does_not_want_are_not_taken() {
    let (_server, process) = pair(&[]).await;
    process
        .withstands("large bodies at the admin port", async {
            for method in ["GET", "POST", "BREW"] {
                let head = format!(
                    "{method} /status HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n"
                );
                let mut stream = TcpStream::connect(process.admin).await.unwrap();
                stream.write_all(head.as_bytes()).await.unwrap();
                let mut answer = [0; 12];
                within("an answer", stream.read_exact(&mut answer))
                    .await
                    .unwrap();
                let expected: &[u8] = if method == "GET" {
                    b"HTTP/1.1 200"
                } else {
                    b"HTTP/1.1 405"
                };
                assert_eq!(answer, expected, "{method}");
                let chunk = [0; 65_536];
                let mut sent = 0;
                let refused = within("the connection to be closed", async {
                    while sent < 100_000_000 {
                        match stream.write(&chunk).await {
                            Ok(n) => sent += n,
                            Err(_) => return true,
                        }
                    }
                    false
                })
                .await;
                assert!(refused, "{method}: a body was taken whole");
            }
        })
        .await;
}

#[tokio::test]
async fn odd_paths_and_methods_are_answered_and_harm_nothing() {
    let (_server, process) = pair(&[]).await;
    for (request, code) in [
        ("GET /../../etc/passwd HTTP/1.1", "404"),
        ("GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1", "404"),
        ("GET /status/../drain HTTP/1.1", "404"),
        ("GET //drain HTTP/1.1", "404"),
        ("GET /drain/ HTTP/1.1", "404"),
        ("GET /DRAIN HTTP/1.1", "404"),
        ("GET /status%00 HTTP/1.1", "404"),
        ("GET * HTTP/1.1", "404"),
        ("OPTIONS * HTTP/1.1", "405"),
        ("TRACE /status HTTP/1.1", "405"),
        ("CONNECT a:1 HTTP/1.1", "405"),
        ("DELETE /drain HTTP/1.1", "405"),
        ("PUT /drain HTTP/1.1", "405"),
        ("OPTIONS /drain HTTP/1.1", "405"),
        ("BREW /status HTTP/1.1", "405"),
        ("GET /status HTTP/1.0", "200"),
        ("GET /status HTTP/3.0", "400"),
        ("GET  /status HTTP/1.1", "400"),
    ] {
        let bytes = format!("{request}\r\nhost: a\r\nconnection: close\r\n\r\n");
        let said = say(process.admin, bytes.as_bytes())
            .await
            .unwrap_or_default();
        assert_eq!(said.split(' ').nth(1), Some(code), "{request}: {said}");
        // Nothing of a request comes back, so that no page of ours carries a page of theirs.
        assert!(!said.contains("passwd"), "{said}");
    }
    let ready = get(process.admin, "/readyz").await.unwrap();
    assert!(
        ready.starts_with("HTTP/1.1 200"),
        "a drain was begun: {ready}"
    );
}
