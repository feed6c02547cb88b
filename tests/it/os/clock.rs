//! The system's clock jumps by an hour, forward and back: nothing waits an hour, or spins, and what
//! is shown keeps the right age.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use agent_shim::demo::standin::StandIn;

use super::means::{Means, faketime, has};
use super::process::{Process, Start};
use crate::support::http::{Client, request};
use crate::support::{eventually, grpc};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The time that the process gives for the beginning of a state, and what it is apart from now.
async fn since_apart(process: &Process, offset: i64) -> f64 {
    let status = process.status().await;
    let since = status["endpoints"][0]["since"]
        .as_str()
        .unwrap()
        .to_string();
    let since = humantime::parse_rfc3339(&since).unwrap();
    let since = since
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs_f64() + offset as f64 - since
}

#[tokio::test]
async fn a_clock_that_jumps_by_an_hour_sticks_no_timer_and_ages_stay_right() {
    if !has("a clock that jumps", &[Means::Clock]) {
        return;
    }
    let file = std::env::temp_dir().join(format!("agent-shim-clock-{}", std::process::id()));
    // As one step, so that the program never reads half a file.
    let set = |offset: &str| {
        let next = file.with_extension("next");
        std::fs::write(&next, format!("{offset}\n")).unwrap();
        std::fs::rename(&next, &file).unwrap();
    };
    set("+0");
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let process = Start::before(&server)
        .with("LD_PRELOAD", faketime().unwrap())
        .with("FAKETIME_TIMESTAMP_FILE", file.display())
        .with("FAKETIME_NO_CACHE", 1)
        .with("DONT_FAKE_MONOTONIC", 1)
        .with("FAKETIME_DONT_FAKE_MONOTONIC", 1)
        .ready()
        .await;
    let mut data = grpc::Client::connect(process.grpc).await;
    for (text, offset) in [("+3600", 3600), ("-3600", -3600), ("+0", 0)] {
        let before = process.ticks();
        set(text);
        for _ in 0..5 {
            let asked = request("POST", "/v2/models/iris/infer", "{}");
            assert_eq!(Client::connect(process.http).await.call(asked).await.0, 200);
            assert_eq!(data.call("ModelInfer", b"a").await.unwrap().status().0, 0);
            assert_eq!(process.ask("/readyz").await.unwrap().0, 200);
            assert_eq!(process.ask("/livez").await.unwrap().0, 200);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let apart = since_apart(&process, offset).await;
        assert!(
            (-2.0..60.0).contains(&apart),
            "{text}: the state is {apart} s old"
        );
        // The probes go on at their pace: a fault is seen, and its end.
        server.stop().await;
        process.is_ready(false).await;
        server.restart().await.unwrap();
        process.is_ready(true).await;
        let apart = since_apart(&process, offset).await;
        assert!(
            (-2.0..60.0).contains(&apart),
            "{text}: the new state is {apart} s old"
        );
        eventually("a call over the old connection's successor", async || {
            data = grpc::Client::connect(process.grpc).await;
            (data.call("ModelInfer", b"a").await.ok()?.status().0 == 0).then_some(())
        })
        .await;
        let spent = process.ticks() - before;
        assert!(spent < 500, "{text}: {spent} ticks of 10 ms");
    }
    let _ = std::fs::remove_file(&file);
}
