//! A limit on memory, by the kernel: what is relayed goes through, not in.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use agent_shim::demo::standin::StandIn;
use tokio::task::JoinSet;

use super::means::{Means, alone, cgroup, has};
use super::process::Start;
use crate::support::http::{Client, request};
use crate::support::{eventually, grpc};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What the chart gives it. The callers here take 31 MiB of it on a quiet machine, of which the
/// kernel has 6, and more than 32 where all of them call at the same moment.
const LIMIT: u64 = 64 << 20;
const BODY: usize = 16 << 20;

#[tokio::test]
async fn in_64_mib_bodies_of_16_mib_and_a_thousand_callers_are_carried() {
    if !has("a limit on memory", &[Means::Memory]) {
        return;
    }
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let group = cgroup("relay", LIMIT).unwrap();
    let script = format!("{} && exec \"$0\"", group.enter());
    let mut process = Start::before(&server)
        .under(&["sh", "-c", &script])
        // As by default: a thousand callers at once take a machine its time.
        .with("SHIM_PROBE_INTERVAL", "1s")
        .with("SHIM_PROBE_CONNECT_TIMEOUT", "1s")
        .with("SHIM_PROBE_TIMEOUT", "1s")
        .with("SHIM_OUTAGE_GRACE", "20s")
        .ready()
        .await;
    // Each has made a call and stays.
    let mut callers = JoinSet::new();
    for n in 0..1000 {
        let (http, grpc_at) = (process.http, process.grpc);
        callers.spawn(async move {
            if n % 2 == 0 {
                let mut client = Client::connect(http).await;
                assert_eq!(client.get("/headers").await.0, 200);
                (Some(client), None)
            } else {
                let mut client = grpc::Client::connect(grpc_at).await;
                assert_eq!(client.call("ModelInfer", b"a").await.unwrap().status().0, 0);
                (None, Some(client))
            }
        });
        if callers.len() % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let open = callers.join_all().await;
    assert_eq!(open.len(), 1000);
    let mut big = JoinSet::new();
    for _ in 0..2 {
        let http = process.http;
        big.spawn(async move {
            let mut client = Client::connect(http).await;
            let body = vec![b'x'; BODY];
            let (status, _, answer) = client.call(request("POST", "/sink", body)).await;
            assert_eq!(
                (status, answer),
                (200, format!(r#"{{"bytes":{BODY}}}"#).into())
            );
            let (status, _, answer) = client.get(&format!("/large?bytes={BODY}")).await;
            assert_eq!((status, answer.len()), (200, BODY));
        });
        let grpc_at = process.grpc;
        big.spawn(async move {
            let mut client = grpc::Client::connect(grpc_at).await;
            let message = vec![b'y'; BODY];
            let answer = client.call("ModelInfer", &message).await.unwrap();
            assert_eq!(answer.messages[0].len(), BODY);
        });
    }
    big.join_all().await;
    assert!(process.runs());
    assert_eq!(process.ask("/readyz").await.unwrap().0, 200);
    let (killed, _) = group.events();
    assert_eq!(killed, 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let peak = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    eprintln!(
        "peak of the group {:?}, of the process {peak}",
        group.peak()
    );
    drop(open);
    process.child.kill().await.unwrap();
}

/// Connections that have ended a moment ago, each of which is a line in the kernel's table.
const ENDED: usize = 15_000;

fn anonymous_kib(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|l| l.strip_prefix("Anonymous:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse().unwrap()
}

/// While the server refuses, the shim looks through the kernel's tables for who listens, on two
/// threads: what they hold of 2 MB must be next to nothing.
#[test]
fn a_long_table_of_sockets_is_looked_through_in_little_memory() {
    let name = "os::memory::a_long_table_of_sockets_is_looked_through_in_little_memory";
    alone(name, &[], async {
        let server = StandIn::start(LOOPBACK).await.unwrap();
        // Nobody listens there, and somebody elsewhere.
        let start = Start::before(&server).with("SHIM_INFERENCE_HOSTS", "127.0.0.2");
        let process = start.spawn();
        eventually("the listener elsewhere is named", async || {
            let (_, text) = process.ask("/status").await?;
            text.contains("\"AS010\"").then_some(())
        })
        .await;
        let before = anonymous_kib(process.pid());
        let listener = std::net::TcpListener::bind("127.0.0.3:0").unwrap();
        for _ in 0..ENDED {
            let caller = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            drop((caller, accepted));
        }
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        assert!(table.lines().count() > ENDED / 2, "the table is short");
        // Time for several looks of both kinds.
        let mut most = 0;
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            most = most.max(anonymous_kib(process.pid()));
        }
        assert!(most < before + 1024, "{before} KiB, then {most} KiB");
    });
}
