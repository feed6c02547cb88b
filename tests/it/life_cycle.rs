//! Start and stop.

use std::net::{IpAddr, Ipv4Addr};

use agent_shim::demo::standin::StandIn;

use crate::support::{Shim, eventually, grpc, http, within};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let error = Shim::try_start(&[("SHIM_ADMIN_PORT", &port)])
        .err()
        .unwrap()
        .to_string();
    for part in ["127.0.0.1", &port, "admin", "SHIM_ADMIN_PORT", "in use"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
}

#[tokio::test]
async fn told_to_stop_it_is_not_ready_at_once_and_carries_on_until_all_have_ended() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let mut shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[]);
    shim.ready().await;
    let mut running = grpc::Client::connect(shim.grpc()).await;
    let mut stream = running
        .open_with("ModelStreamInfer", &[], &[b"a"])
        .await
        .unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    shim.stop();
    eventually("readiness to go", async || {
        let (code, text) = shim.get("/readyz").await;
        (code == 503 && text.starts_with("not-draining: ")).then_some(())
    })
    .await;
    assert_eq!(
        shim.get("/livez").await.0,
        200,
        "a drain must not be killed"
    );
    // Old and new connections are carried on.
    stream.say(b"b").await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "b");
    assert_eq!(http::get(shim.http(), "/headers").await.0, 200);
    let mut new = grpc::Client::connect(shim.grpc()).await;
    assert_eq!(new.call("ModelInfer", b"x").await.unwrap().messages, ["x"]);
    stream.finish();
    assert_eq!(stream.next().await.unwrap(), None);
    drop((running, new, stream));
    shim.ended().await.unwrap();
}

#[tokio::test]
async fn a_drain_that_takes_too_long_is_ended() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let drain = [("SHIM_DRAIN_TIME", "300ms")];
    let mut shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &drain);
    shim.ready().await;
    let mut client = grpc::Client::connect(shim.grpc()).await;
    let mut stream = client
        .open_with("ModelStreamInfer", &[], &[b"a"])
        .await
        .unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    shim.stop();
    shim.ended().await.unwrap();
    let end = within("the cut", stream.next()).await;
    assert!(end.is_err() || end.unwrap().is_none());
}

#[tokio::test]
async fn started_before_the_server_it_is_ready_when_the_server_is() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    server.stop().await;
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[]);
    shim.state("127.0.0.1", "grpc", "down").await;
    assert_eq!(shim.get("/readyz").await.0, 503);
    // As the agent does while it waits.
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    let mut live = async || {
        let answer = agent.call("ServerLive", b"").await.unwrap();
        answer.messages[0] == [8, 1][..]
    };
    assert!(!live().await);
    server.restart().await.unwrap();
    eventually("live on the same connection", async || {
        live().await.then_some(())
    })
    .await;
    shim.ready().await;
}

#[tokio::test]
async fn nothing_is_left_open_when_callers_have_gone() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[]);
    shim.ready().await;
    let mut callers = Vec::new();
    for _ in 0..50 {
        let mut data = grpc::Client::connect(shim.grpc()).await;
        data.call("ModelInfer", b"x").await.unwrap();
        let mut control = grpc::Client::connect(shim.grpc()).await;
        control.call("ServerLive", b"").await.unwrap();
        let mut web = http::Client::connect(shim.http()).await;
        web.get("/headers").await;
        callers.push((data, control, web));
    }
    let open = |protocol| format!("agent_shim_relay_open_connections{{protocol=\"{protocol}\"}}");
    assert_eq!(shim.metric(&open("grpc")).await, 100.0);
    assert_eq!(shim.metric(&open("http")).await, 50.0);
    let fds = shim.metric("process_open_fds").await;
    drop(callers);
    for protocol in ["grpc", "http"] {
        eventually("every connection to end", async || {
            (shim.metric(&open(protocol)).await == 0.0).then_some(())
        })
        .await;
    }
    eventually("the descriptors to be given back", async || {
        (shim.metric("process_open_fds").await <= fds - 300.0).then_some(())
    })
    .await;
}
