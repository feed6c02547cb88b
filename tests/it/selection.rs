//! Several candidates: which one is used, and what a caller notices of a change.

use std::net::{IpAddr, SocketAddr};

use agent_shim::demo::standin::StandIn;

use crate::support::{Shim, grpc, http};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two servers with the same ports on two addresses of loopback.
async fn two() -> (StandIn, StandIn) {
    loop {
        let first = StandIn::start(ip("127.0.0.1")).await.unwrap();
        let at = |a: SocketAddr| SocketAddr::new(ip("127.0.0.2"), a.port());
        // The same port may, rarely, be taken on the other address.
        if let Ok(second) = StandIn::start_at(at(first.http()), at(first.grpc())).await {
            return (first, second);
        }
    }
}

#[tokio::test]
async fn a_server_on_the_pods_address_only_is_found_behind_a_loopback_that_refuses() {
    let server = StandIn::start(ip("127.0.0.2")).await.unwrap();
    let direct = SocketAddr::new(ip("127.0.0.1"), server.http().port());
    let refused = tokio::net::TcpStream::connect(direct).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    // As the downward API gives the pod's address.
    let (http, grpc) = (
        server.http().port().to_string(),
        server.grpc().port().to_string(),
    );
    let shim = Shim::start(&[
        ("POD_IP", "127.0.0.2"),
        ("SHIM_INFERENCE_HTTP_PORT", &http),
        ("SHIM_INFERENCE_GRPC_PORT", &grpc),
    ]);
    shim.ready().await;
    shim.selected("http", Some("127.0.0.2")).await;
    let (status, _) = http::get(shim.http(), "/headers").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_server_on_ipv6_is_found() {
    let server = StandIn::start(ip("::1")).await.unwrap();
    let shim = Shim::before("127.0.0.1,::1", server.http(), server.grpc(), &[]);
    shim.ready().await;
    shim.selected("grpc", Some("::1")).await;
    let mut client = grpc::Client::connect(shim.grpc()).await;
    assert_eq!(
        client.call("ModelInfer", b"x").await.unwrap().messages,
        ["x"]
    );
}

#[tokio::test]
async fn a_server_bound_to_an_address_nobody_named_is_named_by_the_shim() {
    let server = StandIn::start(ip("127.0.0.3")).await.unwrap();
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[]);
    shim.state("127.0.0.1", "grpc", "down").await;
    let (_, text) = shim.get("/readyz").await;
    assert!(
        text.contains("add 127.0.0.3 to SHIM_INFERENCE_HOSTS"),
        "{text}"
    );
}

#[tokio::test]
async fn when_the_selection_refuses_the_same_connection_gets_the_next_candidate() {
    let (first, second) = two().await;
    let hosts = "127.0.0.1,127.0.0.2";
    // Probes are rare: the caller comes before the shim has noticed anything.
    let rare = [("SHIM_PROBE_INTERVAL", "60s"), ("SHIM_PROBE_FALL", "100")];
    let shim = Shim::before(hosts, first.http(), first.grpc(), &rare);
    shim.ready().await;
    shim.selected("grpc", Some("127.0.0.1")).await;
    shim.selected("http", Some("127.0.0.1")).await;
    first.stop().await;
    assert_eq!(http::get(shim.http(), "/headers").await.0, 200);
    let mut client = grpc::Client::connect(shim.grpc()).await;
    assert_eq!(
        client.call("ModelInfer", b"x").await.unwrap().messages,
        ["x"]
    );
    assert!(second.calls().iter().any(|c| c.path == "/headers"));
    let refused = r#"agent_shim_relay_connect_attempts_total{outcome="refused",protocol="http"}"#;
    assert_eq!(shim.metric(refused).await, 1.0);
}

#[tokio::test]
async fn a_fall_moves_on_and_a_return_waits_for_the_hold() {
    let (first, second) = two().await;
    let shim = Shim::before("127.0.0.1,127.0.0.2", first.http(), first.grpc(), &[]);
    shim.ready().await;
    shim.selected("grpc", Some("127.0.0.1")).await;
    first.stop().await;
    shim.selected("grpc", Some("127.0.0.2")).await;
    shim.selected("http", Some("127.0.0.2")).await;
    first.restart().await.unwrap();
    let up = shim.state("127.0.0.1", "grpc", "up").await;
    assert_eq!(
        shim.status().await["selection"]["grpc"],
        "127.0.0.2",
        "{up}"
    );
    shim.selected("grpc", Some("127.0.0.1")).await;
    drop(second);
}

#[tokio::test]
async fn a_call_that_runs_on_the_second_choice_stays_there_when_the_first_returns() {
    let (first, second) = two().await;
    first.stop().await;
    let shim = Shim::before("127.0.0.1,127.0.0.2", second.http(), second.grpc(), &[]);
    shim.ready().await;
    let mut client = grpc::Client::connect(shim.grpc()).await;
    let mut stream = client
        .open_with("ModelStreamInfer", &[], &[b"a"])
        .await
        .unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    first.restart().await.unwrap();
    shim.selected("grpc", Some("127.0.0.1")).await;
    stream.say(b"b").await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "b");
    assert!(client.usable().await, "the second choice is still up");
}

#[tokio::test]
async fn each_protocol_is_selected_for_itself() {
    let (first, second) = two().await;
    let shim = Shim::before("127.0.0.1,127.0.0.2", first.http(), first.grpc(), &[]);
    shim.ready().await;
    shim.selected("http", Some("127.0.0.1")).await;
    first.stop_grpc().await;
    shim.selected("grpc", Some("127.0.0.2")).await;
    let selection = shim.status().await["selection"].clone();
    assert_eq!(
        selection,
        serde_json::json!({"http": "127.0.0.1", "grpc": "127.0.0.2"})
    );
    drop(second);
}

/// The kernel drops the first packet of a connection for which a full queue has no room, as a
/// network may; it comes again after a second.
#[tokio::test]
async fn a_caller_whose_first_packet_is_lost_is_served_by_the_next_one() {
    let server = StandIn::start(ip("127.0.0.1")).await.unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let (accepts, mut may) = tokio::sync::watch::channel(true);
    let (to, waits) = (server.http(), may.clone());
    let relay = tokio::spawn(async move {
        loop {
            may.wait_for(|may| *may).await.unwrap();
            let mut stopped = waits.clone();
            let (mut near, _) = tokio::select! {
                accepted = listener.accept() => accepted.unwrap(),
                _ = stopped.wait_for(|may| !may) => continue,
            };
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    // Silence alone is not to end the state in this test.
    let never = [("SHIM_PROBE_FALL", "100")];
    let shim = Shim::before("127.0.0.1", address, server.grpc(), &never);
    shim.ready().await;
    accepts.send_replace(false);
    let mut queued = Vec::new();
    let full = std::time::Duration::from_millis(200);
    let connect = || tokio::net::TcpStream::connect(address);
    while let Ok(Ok(stream)) = tokio::time::timeout(full, connect()).await {
        queued.push(stream);
    }
    let to = shim.http();
    let call = tokio::spawn(async move { http::get(to, "/headers").await });
    let lost = "agent_shim_relay_connect_attempts_total{outcome=\"timeout\",protocol=\"http\"}";
    shim.metric_reaches(lost, 1.0).await;
    drop(queued);
    accepts.send_replace(true);
    let (status, _) = crate::support::within("the answer", call).await.unwrap();
    assert_eq!(status, 200);
    relay.abort();
}
