//! The admin port under abuse: kubelet's probes get through, and nobody is led to begin a drain.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::frames::*;
use super::process::{get as ask, pair, say};
use crate::support::pages::{Page, Pages};
use crate::support::{eventually, within};

/// More than there are places, each holding one in another way; probes are answered all the time.
#[tokio::test]
async fn nobody_can_keep_kubelet_out() {
    let (_server, process) = pair(&[]).await;
    let no_window = [PREFACE, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    let deaf_calls: Vec<u8> = (0..2)
        .flat_map(|i| frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, &get("/livez")))
        .collect();
    let watch = [
        opening(),
        frame(
            HEADERS,
            END_HEADERS,
            1,
            &call("/grpc.health.v1.Health/Watch"),
        ),
        frame(DATA, END_STREAM, 1, &[0; 5]),
    ];
    for (name, bytes) in [
        ("silent", Vec::new()),
        ("idle HTTP/2", opening()),
        ("half a preface", PREFACE[..10].to_vec()),
        ("the preface alone", PREFACE.to_vec()),
        ("half a head", b"GET /livez HTTP/1.1\r\nhost:".to_vec()),
        (
            "idle HTTP/1.1",
            b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        ),
        (
            "a body to come",
            b"GET /livez HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n".to_vec(),
        ),
        ("deaf HTTP/2", [no_window, deaf_calls].concat()),
        ("watching", watch.concat()),
        (
            "waiting for a merge",
            b"GET /metrics?merge HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        ),
    ] {
        let what = format!("400 {name} callers of the admin port");
        process
            .withstands(&what, async {
                let mut held = Vec::new();
                for i in 0..400 {
                    let mut stream = TcpStream::connect(process.admin).await.unwrap();
                    let _ = stream.write_all(&bytes).await;
                    held.push(stream);
                    if i % 100 == 99 {
                        let answer = ask(process.admin, "/livez").await.unwrap();
                        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
                    }
                }
                assert!(
                    process.descriptors() < 200,
                    "{name}: {}",
                    process.descriptors()
                );
                // They hold on, and ask again.
                for stream in &mut held {
                    let _ = stream.write_all(b"\r\n").await;
                }
            })
            .await;
    }
}

/// Callers of a drain are never made to give way, whoever else comes.
#[tokio::test]
async fn a_hook_that_waits_for_a_drain_keeps_its_place() {
    let (server, process) = pair(&[("SHIM_DRAIN_TIME", "20s")]).await;
    let mut running = TcpStream::connect(process.http).await.unwrap();
    running
        .write_all(b"GET /hang HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    within("the call", server.wait_for_call("/hang")).await;
    let admin = process.admin;
    let hook = tokio::spawn(async move { ask(admin, "/drain").await });
    eventually("the drain to begin", async || {
        let answer = ask(admin, "/readyz").await.unwrap();
        answer.starts_with("HTTP/1.1 503").then_some(())
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(admin).await.unwrap();
        let _ = stream.write_all(&opening()).await;
        held.push(stream);
    }
    assert!(
        ask(admin, "/livez")
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
    assert!(!hook.is_finished(), "the hook was cut");
    server.release();
    let answer = within("the hook's answer", hook).await.unwrap().unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("drained"),
        "{answer}"
    );
}

/// A page that the browser of whoever port-forwards shows; also one whose own name points here.
#[tokio::test]
async fn no_page_begins_a_drain_whatever_name_it_gives_this_port() {
    let (_server, process) = pair(&[("SHIM_DRAIN_ENDPOINT", "true")]).await;
    let port = process.admin.port();
    let chrome = "user-agent: Mozilla/5.0 (X11) Chrome/140.0";
    for (name, headers) in [
        (
            "rebinding",
            format!("host: evil.example:{port}\r\n{chrome}"),
        ),
        (
            "rebinding, no browser",
            format!("host: evil.example:{port}"),
        ),
        (
            "rebinding to a name like an address",
            format!("host: 127.0.0.1.evil.example:{port}"),
        ),
        (
            "a user's part",
            format!("host: 127.0.0.1@evil.example:{port}"),
        ),
        (
            "an image",
            format!("host: 127.0.0.1:{port}\r\n{chrome}\r\nsec-fetch-site: cross-site"),
        ),
        (
            "an image over plain HTTP",
            format!("host: 10.0.0.1:{port}\r\n{chrome}"),
        ),
        (
            "a form",
            format!("host: 127.0.0.1:{port}\r\norigin: http://evil.example"),
        ),
        (
            "a link",
            format!("host: 127.0.0.1:{port}\r\nreferer: http://evil.example/"),
        ),
        (
            "two hosts",
            format!("host: 127.0.0.1:{port}\r\nhost: evil.example"),
        ),
    ] {
        for method in ["GET", "POST"] {
            let bytes =
                format!("{method} /drain HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n");
            let said = say(process.admin, bytes.as_bytes()).await.unwrap();
            assert!(said.starts_with("HTTP/1.1 403"), "{name}, {method}: {said}");
        }
    }
    // By the target of a request as well, which HTTP/1.1 puts before the Host.
    let absolute =
        "GET http://evil.example/drain HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
    let said = say(process.admin, absolute.as_bytes()).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 403"), "{said}");
    assert!(
        ask(process.admin, "/readyz")
            .await
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
    // Kubelet's own hook, by the pod's address, and a hook within the pod.
    for host in ["10.1.2.3:9680", "127.0.0.1:9680", "localhost:9680"] {
        let hook = format!(
            "GET /drain?timeout=1s HTTP/1.1\r\nhost: {host}\r\nuser-agent: kube-lifecycle/1.33\r\nconnection: close\r\n\r\n"
        );
        let said = say(process.admin, hook.as_bytes()).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 200"), "{host}: {said}");
    }
}

#[tokio::test]
async fn a_deaf_caller_is_let_go_and_gives_a_merge_back() {
    // The answer has to be larger than what the sockets take.
    let page: String = (0..390)
        .map(|i| format!("metric_{i}{{label=\"{}\"}} {i}\n", "x".repeat(10_000)))
        .collect();
    let pages = Pages::start().await;
    pages.set("/metrics", Page::new(200, page));
    let port = pages.port();
    let (_server, process) = pair(&[
        ("SHIM_MERGE_METRICS", "true"),
        ("SHIM_INFERENCE_METRICS_PORT", &port),
        ("SHIM_AGENT_METRICS_PORT", "0"),
    ])
    .await;
    let deaf = b"GET /metrics?merge HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(process.admin).await.unwrap();
        stream.write_all(deaf).await.unwrap();
        held.push(stream);
    }
    eventually("both turns to be taken", async || {
        let merged = ask(process.admin, "/metrics?merge").await.unwrap();
        merged
            .contains("# not merged: other merged scrapes")
            .then_some(())
    })
    .await;
    // Meanwhile everybody gets the shim's own.
    assert!(
        ask(process.admin, "/metrics")
            .await
            .unwrap()
            .contains("agent_shim_build_info")
    );
    eventually("a turn to be given back", async || {
        let merged = ask(process.admin, "/metrics?merge").await.unwrap();
        merged.contains("metric_389").then_some(())
    })
    .await;
    drop(held);
    process.recovers("deaf scrapers").await;
}

#[tokio::test]
async fn hammering_costs_little_memory() {
    let (_server, process) = pair(&[]).await;
    for path in [
        "/status",
        "/metrics",
        "/metrics?merge",
        "/?fragment",
        "/nothing",
    ] {
        let what = format!("hammering {path}");
        process
            .withstands(&what, async {
                let mut callers = JoinSet::new();
                for _ in 0..40 {
                    let admin = process.admin;
                    callers.spawn(async move {
                        for _ in 0..5 {
                            // One of many may have to give way.
                            let _ = ask(admin, path).await;
                        }
                    });
                }
                callers.join_all().await;
            })
            .await;
    }
}

/// Callers who do wrong things over and over do not fill the log, and put nothing of their own
/// into it.
#[tokio::test]
async fn the_log_is_bounded_and_says_nothing_in_a_callers_words() {
    let (_server, process) = pair(&[("SHIM_LOG_FORMAT", "json")]).await;
    let before = process.log().len();
    let forged = "\x1b[31m{\"level\":\"ERROR\"}";
    for to in [process.http, process.grpc, process.admin] {
        let mut callers = JoinSet::new();
        for i in 0..500 {
            let bytes = match i % 3 {
                0 => b"\x16\x03\x01".to_vec(),
                1 => format!("FORGED {forged}\r\n\r\n").into_bytes(),
                _ => [PREFACE, forged.as_bytes()].concat(),
            };
            callers.spawn(async move {
                let _ = say(to, &bytes).await;
            });
            if callers.len() >= 50 {
                callers.join_next().await;
            }
        }
        callers.join_all().await;
    }
    for i in 0..200 {
        let path = format!("/v2/repository/models/a%0aFORGED%1b[31m{i}/load");
        let bytes = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\nx-forged: {forged}\r\n\r\n"
        );
        let _ = say(process.http, bytes.as_bytes()).await;
    }
    let _ = tokio::time::timeout(Duration::from_millis(200), std::future::pending::<()>()).await;
    let log = process.log();
    let new = &log[before..];
    let mut kinds = std::collections::HashMap::new();
    for line in new {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("a broken line: {line}"));
        let message = value["fields"]["message"]
            .as_str()
            .unwrap_or_default()
            .to_string();
        *kinds.entry(message).or_insert(0) += 1;
        assert!(!line.contains('\x1b'), "{line}");
        assert!(!value["fields"].to_string().contains("x-forged"), "{line}");
    }
    assert!(
        kinds.contains_key("connection refused by the relay"),
        "{kinds:?}"
    );
    for (message, lines) in kinds {
        assert!(lines <= 60, "{lines} lines of {message:?}");
    }
}

#[tokio::test]
async fn a_line_in_words_is_one_line_whatever_a_caller_says() {
    let (_server, process) = pair(&[("SHIM_LOG", "debug")]).await;
    let mut stream = TcpStream::connect(process.http).await.unwrap();
    stream
        .write_all(b"POST /v2/repository/models/a%0aFORGED%1b[31m/load HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    for line in process.log() {
        assert!(
            !line.starts_with("FORGED") && !line.contains('\x1b'),
            "{line}"
        );
    }
}
