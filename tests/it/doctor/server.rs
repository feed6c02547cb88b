//! Faults of the inference server, and of the shim itself.

use agent_shim::demo::standin::StandIn;
use agent_shim::doctor::engine::Outcome;
use tokio::task::JoinSet;

use super::support::*;
use crate::gather::certificates::Authority;
use crate::support::{Shim, refused};

fn before(server: &StandIn, more: &[(&str, &str)]) -> (Shim, Visit) {
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), more);
    let visit = Visit::to(&shim).server("127.0.0.1", server.http(), server.grpc());
    (shim, visit)
}

#[tokio::test]
async fn a_server_that_has_not_started_is_told_from_one_that_has_stopped() {
    let server = server().await;
    server.stop().await;
    let (shim, visit) = before(&server, &[]);
    shim.state("127.0.0.1", "grpc", "down").await;
    let d = visit.only("AS001").await;
    assert!(d.first.unwrap().text.contains("has never answered"));
    server.restart().await.unwrap();
    shim.ready().await;
    server.stop().await;
    shim.state("127.0.0.1", "grpc", "down").await;
    visit.only("AS003").await;
}

#[tokio::test]
async fn a_server_that_comes_and_goes_is_crash_looping_and_a_warning_while_it_is_up() {
    let server = server().await;
    let (shim, visit) = before(&server, &[]);
    for _ in 0..3 {
        shim.ready().await;
        server.stop().await;
        for protocol in ["http", "grpc"] {
            shim.state("127.0.0.1", protocol, "down").await;
        }
        server.restart().await.unwrap();
    }
    shim.ready().await;
    let d = visit.diagnosis().await;
    warns(&d, "AS002");
    assert!(d.warnings[0].text.contains("3 times"));
    assert_eq!(d.warnings[0].evidence, [""; 0]);
    server.stop().await;
    shim.state("127.0.0.1", "grpc", "down").await;
    visit.only("AS002").await;
}

#[tokio::test]
async fn a_server_that_is_busy_for_a_moment_is_not_called_wedged() {
    let server = server().await;
    // The shim has not noticed yet: one slow answer is not enough for it.
    let (shim, visit) = before(&server, &[("SHIM_PROBE_FALL", "100")]);
    shim.ready().await;
    server.wedge();
    warns(&visit.diagnosis().await, "AS006");
}

#[tokio::test]
async fn a_wedged_server_is_stalled_at_first_and_then_wedged() {
    let server = server().await;
    let (shim, visit) = before(&server, &[("SHIM_OUTAGE_GRACE", "20s")]);
    shim.ready().await;
    server.wedge();
    for protocol in ["http", "grpc"] {
        shim.state("127.0.0.1", protocol, "stalled").await;
    }
    warns(&visit.diagnosis().await, "AS006");

    let (shim, visit) = before(&server, &[("SHIM_OUTAGE_GRACE", "300ms")]);
    shim.state("127.0.0.1", "grpc", "down").await;
    let d = visit.only("AS004").await;
    assert!(d.first.unwrap().text.contains("HTTP and gRPC"));
}

#[tokio::test]
async fn a_full_queue_is_neither_accepted_nor_refused() {
    let (address, _held) = dropping().await;
    let shim = Shim::before("127.0.0.1", address, address, &[]);
    let visit = Visit::to(&shim).server("127.0.0.1", address, address);
    visit.only("AS005").await;
}

#[tokio::test]
async fn a_server_on_another_address_is_named_with_it() {
    let server = StandIn::start([127, 0, 0, 2].into()).await.unwrap();
    let (shim, visit) = before(&server, &[]);
    shim.state("127.0.0.1", "http", "down").await;
    let d = visit.only("AS010").await;
    let first = d.first.unwrap();
    assert!(first.fix.contains("127.0.0.1,::1,127.0.0.2"), "{first:?}");
}

#[tokio::test]
async fn a_host_that_does_not_resolve_is_named() {
    let server = server().await;
    let settings = [("SHIM_PROBE_TIMEOUT", "1s"), ("SHIM_PROBE_INTERVAL", "1s")];
    let host = "no-such-host.invalid";
    let shim = Shim::before(host, server.http(), server.grpc(), &settings);
    let visit = Visit::to(&shim).server(host, server.http(), server.grpc());
    visit.only("AS011").await;
}

#[tokio::test]
async fn one_protocol_of_two_is_named() {
    let server = server().await;
    let (shim, visit) = before(&server, &[]);
    shim.ready().await;
    server.stop_grpc().await;
    shim.state("127.0.0.1", "grpc", "down").await;
    let d = visit.only("AS012").await;
    let first = d.first.unwrap();
    assert!(
        first.text.contains("gRPC") && first.fix.contains("MLSERVER_GRPC_PORT"),
        "{first:?}"
    );
}

#[tokio::test]
async fn a_server_with_tls_is_told_from_one_with_swapped_ports() {
    let authority = Authority::new("doctor-server");
    let server = server().await;
    let mut tasks = JoinSet::new();
    let pair = authority.server("127.0.0.1");
    let front = authority
        .front(server.grpc(), pair, false, &mut tasks)
        .await;
    let shim = Shim::before("127.0.0.1", front, front, &[]);
    let visit = Visit::to(&shim).server("127.0.0.1", front, front);
    visit.only("AS015").await;

    let shim = Shim::before("127.0.0.1", server.grpc(), server.http(), &[]);
    let visit = Visit::to(&shim).server("127.0.0.1", server.grpc(), server.http());
    visit.only("AS016").await;
}

#[tokio::test]
async fn a_server_that_resets_is_told_from_one_that_is_not_live() {
    let mut tasks = JoinSet::new();
    let address = resetting(&mut tasks).await;
    let shim = Shim::before("127.0.0.1", address, address, &[]);
    let visit = Visit::to(&shim).server("127.0.0.1", address, address);
    visit.only("AS017").await;

    let server = server().await;
    server.set_live(false);
    let (_shim, visit) = before(&server, &[]);
    visit.only("AS018").await;
}

#[tokio::test]
async fn a_shim_that_is_away_is_a_finding_in_its_pod_and_unknown_from_outside() {
    let server = server().await;
    let (nowhere, _port) = refused().await;
    let shim = Shim::start(&[]);
    let mut visit = Visit::to(&shim).server("127.0.0.1", server.http(), server.grpc());
    visit.admin.clear();
    visit = visit.with("SHIM_ADMIN_PORT", nowhere.port());
    let d = visit.only("AS020").await;
    assert!(d.first.unwrap().evidence[0].contains("no answer from"));

    visit.admin = vec![format!("http://{nowhere}")];
    let d = visit.diagnosis().await;
    assert_eq!((d.outcome, d.first), (Outcome::Unchecked, None));
}

#[tokio::test]
async fn a_shim_that_was_told_to_stop_says_so() {
    let mut pod = Pod::start(agent(GI), &[]).await;
    let visit = pod.visit();
    // The agent's connection keeps it from ending.
    pod.shim.stop();
    visit.only("AS021").await;
}
