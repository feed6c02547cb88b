//! Callers that send nonsense, too much, too slowly, or nothing.

use std::time::Duration;

use agent_shim::webhook::answer::MAX_BODY;
use agent_shim::webhook::decide::Injector;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::support::*;
use crate::support::within;

#[tokio::test]
async fn what_is_no_review_is_refused_in_words() {
    let hook = Hook::start();
    let review = review(&pod()).to_string();
    let mut caller = hook.caller().await;
    for (body, part) in [
        ("".to_string(), "no AdmissionReview: EOF"),
        ("{".into(), "no AdmissionReview: EOF"),
        ("[1]".into(), "no AdmissionReview"),
        (review.replace("\"uid\"", "\"uit\""), "missing field `uid`"),
        (
            review.replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1"),
            "\"admission.k8s.io/v1beta1\" is not spoken, only admission.k8s.io/v1",
        ),
        (pod().to_string(), "got kind \"Pod\" of \"v1\""),
        ("[".repeat(100_000), "recursion limit exceeded"),
    ] {
        let (status, said) = caller.post(body).await;
        assert_eq!(status, 400, "{said}");
        assert!(said.contains(part), "{said}");
    }
    let change = |method: &str, path: &str, kind: &str| {
        let body = Full::new(Bytes::from(review.clone()));
        Request::builder()
            .method(method)
            .uri(format!("https://{HOST}{path}"))
            .header("content-type", kind)
            .body(body)
            .unwrap()
    };
    let json = "application/json";
    for (request, expected, part) in [
        (change("POST", "/", json), 404, "POST /mutate"),
        (change("POST", "/mutate/x", json), 404, "POST /mutate"),
        (change("GET", "/mutate", json), 405, "POST only"),
        (change("PUT", "/mutate", json), 405, "POST only"),
        (change("POST", "/mutate", "text/plain"), 415, json),
    ] {
        let (status, said) = caller.send(request).await.unwrap();
        assert_eq!(status, expected, "{said}");
        assert!(said.contains(part), "{said}");
    }
    let kind = "Application/JSON; charset=utf-8";
    let accepted = caller.send(change("POST", "/mutate", kind)).await.unwrap();
    assert_eq!(accepted.0, 200);
    let series = r#"agent_shim_webhook_requests_total{outcome="bad-request"}"#;
    assert_eq!(hook.series(series).await, 12.0);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_and_a_large_one_is_not() {
    let hook = Hook::start();
    let mut large = pod();
    large["metadata"]["annotations"]["team"] = json!("x".repeat(3 << 20));
    let mut review = review(&large);
    review["request"]["oldObject"] = large.clone();
    let (status, answer) = hook.caller().await.post(review.to_string()).await;
    assert_eq!(status, 200);
    assert!(response(&review, &answer).get("patch").is_some());
    for alpn in ["h2", "http/1.1"] {
        let client = hook.authority.client(&[alpn]);
        // Stated, and refused before it is sent.
        let mut caller = Caller::connect(hook.review, client.clone()).await;
        let request = post("/mutate", vec![b' '; MAX_BODY + 1]);
        // The connection may be closed while the body is still being written.
        if let Ok((status, said)) = caller.send(request).await {
            assert_eq!(status, 413, "{said}");
        }
        let mut caller = Caller::connect(hook.review, client).await;
        assert_eq!(caller.post(vec![b' '; MAX_BODY]).await.0, 400);
    }
    // Not stated: in chunks, without an end.
    let client = hook.authority.client(&["http/1.1"]);
    let mut stream = secured(hook.review, client).await.unwrap();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let answer = within("an answer", async {
        for _ in 0..MAX_BODY / 0x10000 + 1 {
            if stream.write_all(chunk.as_bytes()).await.is_err() {
                break;
            }
        }
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    })
    .await;
    assert_eq!(&answer, b"HTTP/1.1 413");
}

/// A hook whose patience is short.
fn impatient(connections: usize) -> Hook {
    Hook::with(
        |s| {
            s.limits.connections = connections;
            s.limits.handshake = Duration::from_millis(100);
            s.limits.first_request = Duration::from_millis(200);
            s.limits.body = Duration::from_millis(200);
        },
        Injector::default(),
    )
}

#[tokio::test]
async fn who_is_silent_or_slow_gives_his_place_back() {
    // One place: each of these holds it until it is taken away.
    let hook = impatient(1);
    let mut silent = TcpStream::connect(hook.review).await.unwrap();
    let mut nothing = Vec::new();
    let _ = within("the end", silent.read_to_end(&mut nothing)).await;
    for alpn in ["h2", "http/1.1"] {
        let client = hook.authority.client(&[alpn]);
        let mut silent = secured(hook.review, client.clone()).await.unwrap();
        let _ = within("the end", silent.read_to_end(&mut nothing)).await;
        let mut unfinished = secured(hook.review, client).await.unwrap();
        unfinished.write_all(b"POST /mut").await.unwrap();
        let _ = within("the end", unfinished.read_to_end(&mut nothing)).await;
    }
    let client = hook.authority.client(&["http/1.1"]);
    let mut slow = secured(hook.review, client).await.unwrap();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: 9\r\nconnection: close\r\n\r\n{{"
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    within("an answer", slow.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    drop(slow);
    assert!(hook.review(&pod()).await.get("patch").is_some());
    let series = r#"agent_shim_webhook_handshake_failures_total{reason="timeout"}"#;
    assert_eq!(hook.series(series).await, 1.0);
}

#[tokio::test]
async fn callers_in_excess_wait_for_a_place() {
    let hook = impatient(2);
    let mut first = hook.caller().await;
    let mut second = hook.caller().await;
    for caller in [&mut first, &mut second] {
        assert_eq!(caller.post("{}").await.0, 400);
    }
    let client = hook.authority.client(&["h2"]);
    let waiting = tokio::spawn(Caller::connect(hook.review, client));
    let open = "agent_shim_webhook_open_connections";
    // They serve on while it waits.
    for _ in 0..20 {
        assert_eq!(first.post("{}").await.0, 400);
    }
    assert!(!waiting.is_finished());
    assert_eq!(hook.series(open).await, 2.0);
    drop(first);
    let mut third = within("a place", waiting).await.unwrap();
    assert_eq!(third.post("{}").await.0, 400);
}

#[tokio::test]
async fn plain_text_on_the_secured_port_harms_nobody() {
    let hook = Hook::start();
    let mut plain = TcpStream::connect(hook.review).await.unwrap();
    plain
        .write_all(b"POST /mutate HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = within("the end", plain.read_to_end(&mut answer)).await;
    let series = r#"agent_shim_webhook_handshake_failures_total{reason="other"}"#;
    assert_eq!(hook.series(series).await, 1.0);
    assert!(hook.review(&pod()).await.get("patch").is_some());
}

/// Runs cases against one webhook, and sees at the end that it never failed.
fn fuzz<S: Strategy>(cases: u32, strategy: S, body: impl Fn(S::Value) -> Vec<u8>) {
    let runtime = Runtime::new().unwrap();
    let hook = runtime.block_on(async { Hook::start() });
    let caller = runtime.block_on(hook.caller());
    let caller = std::cell::RefCell::new(caller);
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&strategy, |value| {
            let body = body(value);
            let (status, answer) = runtime.block_on(caller.borrow_mut().post(body.clone()));
            well_formed(&body, status, &answer)
        })
        .unwrap();
    runtime.block_on(async {
        assert_eq!(hook.series("agent_shim_webhook_panics_total").await, 0.0);
        assert!(hook.review(&pod()).await.get("patch").is_some());
    });
}

fn well_formed(body: &[u8], status: u16, answer: &str) -> Result<(), TestCaseError> {
    if status == 400 {
        prop_assert!(!answer.trim().is_empty());
        return Ok(());
    }
    prop_assert_eq!(status, 200);
    let review: Value = serde_json::from_slice(body).unwrap();
    let response = response(&review, answer);
    let object = &review["request"]["object"];
    match response["allowed"].as_bool() {
        // Panics where the patch does not apply.
        Some(true) => {
            prop_assert!(patched(object, &response).is_object() || response.get("patch").is_none())
        }
        _ => {
            let said = response["status"]["message"].as_str().unwrap_or_default();
            prop_assert!(said.starts_with("agent-shim: "), "{}", said);
            prop_assert_eq!(response.get("patch"), None);
        }
    }
    Ok(())
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!("enabled")),
        Just(json!("agent")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("[a-zA-Z./-]{0,12}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// Every place in a document, by pointer.
fn places(value: &Value, at: String, all: &mut Vec<String>) {
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                places(value, format!("{at}/{}", escape(key)), all);
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                places(value, format!("{at}/{i}"), all);
            }
        }
        _ => {}
    }
    all.push(at);
}

#[test]
fn a_review_with_anything_in_any_place_gets_a_well_formed_answer() {
    let strategy = proptest::collection::vec((any::<prop::sample::Index>(), any_json()), 1..5);
    fuzz(300, strategy, |changes| {
        let mut review = review(&pod());
        for (index, value) in changes {
            let mut all = Vec::new();
            places(&review, String::new(), &mut all);
            *review.pointer_mut(index.get::<String>(&all)).unwrap() = value;
        }
        review.to_string().into_bytes()
    });
}

#[test]
fn a_pod_with_anything_in_its_annotations_gets_a_well_formed_answer() {
    let name = prop_oneof![
        proptest::sample::select(
            agent_shim::webhook::overrides::OVERRIDES
                .iter()
                .map(|o| o.name.to_string())
                .chain(["inject", "status", "injected", "original"].map(String::from))
                .collect::<Vec<_>>()
        ),
        "[a-z-]{0,12}",
    ];
    let strategy = proptest::collection::vec((name, any_json()), 0..4);
    fuzz(200, strategy, |annotations| {
        let mut pod = pod();
        for (name, value) in annotations {
            pod["metadata"]["annotations"][format!("agent-shim.io/{name}")] = value;
        }
        review(&pod).to_string().into_bytes()
    });
}

#[test]
fn bytes_of_any_kind_get_a_well_formed_answer() {
    let strategy = (any::<prop::sample::Index>(), any::<Vec<u8>>(), 0..200usize);
    fuzz(200, strategy, |(at, bytes, cut)| {
        let mut body = review(&pod()).to_string().into_bytes();
        let at = at.index(body.len());
        let end = (at + cut).min(body.len());
        body.splice(at..end, bytes);
        body
    });
    fuzz(50, any::<Vec<u8>>(), |bytes| bytes);
}
