//! No more descriptors: what is open goes on, the server is not blamed, and it passes by itself.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use agent_shim::demo::standin::StandIn;
use tokio::net::TcpStream;

use super::means::{Means, has};
use super::process::Start;
use crate::support::http::{Client, request};
use crate::support::{eventually, grpc};

const FINDING: &str = "descriptors-short";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[tokio::test]
async fn out_of_descriptors_the_calls_go_on_and_the_server_is_not_blamed() {
    if !has("descriptors exhausted", &[Means::Limits]) {
        return;
    }
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let start = Start::before(&server).under(&["prlimit", "--nofile=96:96"]);
    let process = start.ready().await;
    let idle = process.descriptors();
    let mut web = Client::connect(process.http).await;
    assert_eq!(web.get("/headers").await.0, 200);
    let mut data = grpc::Client::connect(process.grpc).await;
    assert_eq!(data.call("ModelInfer", b"a").await.unwrap().status().0, 0);
    let _runs = data
        .open_with("ModelStreamInfer", &[], &[b"x"])
        .await
        .unwrap();
    // Callers who say nothing and stay give way, one to the other, and so to whoever calls.
    let mut hoard = Vec::new();
    for _ in 0..120 {
        for to in [process.http, process.grpc] {
            hoard.push(TcpStream::connect(to).await.unwrap());
        }
    }
    let mut new = Client::connect(process.http).await;
    assert_eq!(new.get("/headers").await.0, 200);
    // On these a call runs, so they do not give way: as many as the limit has places for on this port.
    let _runs = data
        .open_with("ModelStreamInfer", &[], &[b"x"])
        .await
        .unwrap();
    let mut callers = Vec::new();
    let places = process.status().await["around"]["places"].as_u64().unwrap();
    assert_eq!(places, 16);
    for _ in 1..places {
        let mut client = grpc::Client::connect(process.grpc).await;
        let runs = client.open_with("ModelStreamInfer", &[], &[b"x"]).await;
        callers.push((runs.unwrap(), client));
    }
    assert!(!process.ask("/status").await.unwrap().1.contains(FINDING));
    let waiting = tokio::spawn({
        let to = process.grpc;
        async move {
            let mut client = grpc::Client::connect(to).await;
            client.call("ModelInfer", b"a").await.unwrap().status().0
        }
    });
    let found = eventually("the finding", async || {
        let found = process.ask("/status").await?.1;
        found.contains(FINDING).then_some(found)
    });
    found.await;
    let before = process.ticks();
    for _ in 0..20 {
        // The other port is not concerned.
        let mut web = Client::connect(process.http).await;
        let asked = request("POST", "/v2/models/iris/infer", "{}");
        assert_eq!(web.call(asked).await.0, 200);
        let answer = data.call("ModelInfer", b"a").await.unwrap();
        assert_eq!(answer.status().0, 0);
        // Probes still have descriptors, and kubelet's question is answered.
        assert_eq!(process.ask("/readyz").await.unwrap().0, 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let spent = process.ticks() - before;
    assert!(spent < 60, "{spent} ticks of 10 ms: the accept loop spins");
    assert!(!waiting.is_finished());
    drop(callers.pop());
    assert_eq!(waiting.await.unwrap(), 0);
    eventually("the finding to go", async || {
        let found = process.ask("/status").await?.1;
        (!found.contains(FINDING)).then_some(())
    })
    .await;
    drop((hoard, callers, web, new));
    eventually("descriptors to be given back", async || {
        (process.descriptors() <= idle + 8).then_some(())
    })
    .await;
    let mut new = grpc::Client::connect(process.grpc).await;
    assert_eq!(new.call("ModelInfer", b"a").await.unwrap().status().0, 0);
    let status = process.status().await;
    let changes = status["transitions"].as_array().unwrap();
    let fell = changes
        .iter()
        .any(|t| t["kind"] == "endpoint" && t["to"] != "up");
    assert!(!fell, "the server was blamed: {changes:?}");
}
