//! Packets that are dropped, late or lost, on sockets that know nothing of it; and a name server
//! that goes and comes back. Each test in a network namespace of its own, all of it in there.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::demo::standin::StandIn;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep};

use super::means::{Dropped, FAR, Link, Means, NEAR, alone, run};
use crate::support::http::{Client, request};
use crate::support::{Shim, eventually, grpc, pair, within};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn names(shim: &Shim) -> Vec<String> {
    let status = shim.status().await;
    let all = status["findings"].as_array().unwrap().iter();
    all.map(|f| f["name"].as_str().unwrap_or_default().to_string())
        .collect()
}

async fn infer(shim: &Shim) -> u16 {
    let asked = request("POST", "/v2/models/iris/infer", "{}");
    Client::connect(shim.http()).await.call(asked).await.0
}

#[test]
fn a_half_open_server_is_named_cuts_nobody_and_is_back_at_once() {
    let name = "os::network::a_half_open_server_is_named_cuts_nobody_and_is_back_at_once";
    alone(name, &[Means::Filter], async {
        let (server, shim) = pair(&[]).await;
        let mut data = grpc::Client::connect(shim.grpc()).await;
        let mut stream = data
            .open_with("ModelStreamInfer", &[], &[b"a"])
            .await
            .unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "a");
        let dropped = [server.http(), server.grpc()].map(Dropped::all);
        let begun = Instant::now();
        eventually("not ready", async || {
            (shim.get("/readyz").await.0 == 503).then_some(())
        })
        .await;
        // The grace of 1 s, three seconds, and what a busy machine adds.
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{:?}",
            begun.elapsed()
        );
        eventually("the finding", async || {
            let found = names(&shim).await;
            found
                .iter()
                .any(|f| f == "server-unreachable" || f == "server-wedged")
                .then_some(())
        })
        .await;
        // Who calls now is told at once, and does not hang on dropped packets.
        let asked = Instant::now();
        assert_eq!(infer(&shim).await, 503);
        assert!(asked.elapsed() < Duration::from_secs(2));
        stream.say(b"b").await;
        drop(dropped);
        shim.ready().await;
        assert_eq!(infer(&shim).await, 200);
        assert_eq!(
            stream.next().await.unwrap().unwrap(),
            "b",
            "a running call was cut"
        );
    });
}

#[test]
fn a_half_open_scheduler_is_named_and_what_it_believes_is_right_again() {
    let name = "os::network::a_half_open_scheduler_is_named_and_what_it_believes_is_right_again";
    alone(name, &[Means::Filter], async {
        let server = StandIn::start(LOOPBACK).await.unwrap();
        let scheduler = FakeScheduler::start().await.unwrap();
        let (at, status) = (scheduler.agent.to_string(), scheduler.status.to_string());
        let settings = [
            ("SHIM_SCHEDULER", at.as_str()),
            ("SHIM_SCHEDULER_STATUS", status.as_str()),
            ("SHIM_AGENT_PORT", "0"),
            ("SHIM_MEMORY_LIMIT", "4294967296"),
            ("SHIM_CAPABILITIES_LIST", "mlserver,sklearn"),
        ];
        let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &settings);
        shim.ready().await;
        let agent = FakeAgent::start(AgentConfig::new(shim.bound.agent[0], 1_000_000));
        let right =
            |s: &agent_shim::demo::store::Store| s.replicas.values().any(|r| r.total == 4 << 30);
        assert!(scheduler.until(Duration::from_secs(20), right).await);
        let belief = async || shim.status().await["subscription"]["belief"].clone();
        eventually("the belief to be read", async || {
            (belief().await == "read").then_some(())
        })
        .await;
        let dropped = [scheduler.agent, scheduler.status].map(Dropped::all);
        // It is asked about this replica every 10 s, with a limit of 10 s: 20 s, and what a busy
        // machine adds.
        let named = async {
            while !names(&shim).await.iter().any(|f| f == "scheduler-silent") {
                sleep(Duration::from_millis(100)).await;
            }
        };
        let named = tokio::time::timeout(Duration::from_secs(25), named).await;
        let status = shim.status().await;
        assert!(
            named.is_ok(),
            "{} {}",
            status["findings"],
            status["subscription"]
        );
        assert_eq!(status["subscription"]["belief"], "failed");
        // The pod's readiness is its own affair.
        assert_eq!(shim.get("/readyz").await.0, 200);
        assert_eq!(infer(&shim).await, 200);
        scheduler.load(crate::subscription::support::model(
            "iris",
            &["sklearn"],
            Some(1000),
        ));
        drop(dropped);
        let within_30 = Duration::from_secs(30);
        let loaded = scheduler
            .until(within_30, |s| s.is_available("iris") && right(s))
            .await;
        assert!(loaded, "{}", shim.status().await);
        eventually("the finding to end", async || {
            (!names(&shim).await.iter().any(|f| f == "scheduler-silent")).then_some(())
        })
        .await;
        assert_eq!(agent.read(|seen| seen.loaded.len()), 1);
    });
}

#[test]
fn a_link_of_300_ms_is_a_slow_one_and_no_fault() {
    let name = "os::network::a_link_of_300_ms_is_a_slow_one_and_no_fault";
    alone(name, &[Means::Link], async {
        let _link = Link::up(Duration::from_millis(150), 0.0);
        let server = StandIn::start(IpAddr::from(NEAR)).await.unwrap();
        let far = IpAddr::from(FAR).to_string();
        // The limits of a probe as they are by default.
        let settings = [
            ("SHIM_PROBE_INTERVAL", "1s"),
            ("SHIM_PROBE_CONNECT_TIMEOUT", "500ms"),
            ("SHIM_PROBE_TIMEOUT", "1s"),
        ];
        let shim = Shim::before(&far, server.http(), server.grpc(), &settings);
        shim.ready().await;
        let body = vec![b'x'; 1 << 20];
        for _ in 0..3 {
            let begun = Instant::now();
            assert_eq!(infer(&shim).await, 200);
            let took = begun.elapsed();
            assert!(
                took >= Duration::from_millis(300),
                "the link is too quick: {took:?}"
            );
            let mut client = grpc::Client::connect(shim.grpc()).await;
            let answer = client.call("ModelInfer", &body).await.unwrap();
            assert_eq!(answer.messages[0].len(), body.len());
        }
        never_down(&shim).await;
    });
}

#[test]
fn a_link_that_loses_every_tenth_packet_answers_every_call_once() {
    let name = "os::network::a_link_that_loses_every_tenth_packet_answers_every_call_once";
    alone(name, &[Means::Link], async {
        let _link = Link::up(Duration::from_millis(5), 0.1);
        let server = StandIn::start(IpAddr::from(NEAR)).await.unwrap();
        let far = IpAddr::from(FAR).to_string();
        let settings = [
            ("SHIM_PROBE_INTERVAL", "1s"),
            ("SHIM_PROBE_CONNECT_TIMEOUT", "500ms"),
            ("SHIM_PROBE_TIMEOUT", "1s"),
            ("SHIM_OUTAGE_GRACE", "20s"),
        ];
        let shim = Shim::before(&far, server.http(), server.grpc(), &settings);
        shim.ready().await;
        let mut sent = 0;
        let mut client = grpc::Client::connect(shim.grpc()).await;
        for n in 0..30_u32 {
            let message = vec![n as u8; 3000];
            // A new connection may be refused in words where its first packets are lost again
            // and again; over one that stands, the kernel repeats what is lost.
            if let Ok(answer) = client.call("ModelInfer", &message).await {
                sent += 1;
                let (code, said) = answer.status();
                assert!(
                    code == 0 || (code == 14 && said.starts_with("agent-shim")),
                    "{code} {said}"
                );
                if code == 0 {
                    assert_eq!(answer.messages, [message]);
                }
            } else {
                client = grpc::Client::connect(shim.grpc()).await;
            }
        }
        assert!(sent >= 25, "{sent}");
        let arrived = server
            .calls_to("/inference.GRPCInferenceService/ModelInfer")
            .len();
        assert!(
            arrived <= 30,
            "{arrived} calls arrived of 30: one was sent twice"
        );
        never_down(&shim).await;
    });
}

/// No endpoint has fallen since the start.
async fn never_down(shim: &Shim) {
    let status = shim.status().await;
    let all = status["transitions"].as_array().unwrap();
    let down = all
        .iter()
        .find(|t| t["kind"] == "endpoint" && t["to"] == "down");
    assert!(down.is_none(), "{down:?}");
}

/// Answers every question for an address of IPv4 with 127.0.0.1 while it is there.
async fn name_server(there: Arc<AtomicBool>) {
    let socket = UdpSocket::bind("127.0.0.1:53").await.unwrap();
    let mut packet = [0; 512];
    loop {
        let (n, from) = socket.recv_from(&mut packet).await.unwrap();
        if !there.load(Ordering::SeqCst) {
            continue;
        }
        // The question ends behind its name, with two bytes of type and two of class.
        let name_end = 12 + packet[12..n].iter().position(|b| *b == 0).unwrap() + 1;
        let of_ipv4 = packet[name_end..name_end + 2] == [0, 1];
        let mut answer = packet[..name_end + 4].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(of_ipv4), 0, 0, 0, 0]);
        if of_ipv4 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
        }
        socket.send_to(&answer, from).await.unwrap();
    }
}

#[test]
fn a_name_server_that_goes_takes_nothing_with_it() {
    let name = "os::network::a_name_server_that_goes_takes_nothing_with_it";
    alone(name, &[], async {
        let folder = std::env::temp_dir().join(format!("agent-shim-dns-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let write = |file: &str, text: &str| {
            let path = folder.join(file);
            std::fs::write(&path, text).unwrap();
            run(
                "mount",
                &["--bind", path.to_str().unwrap(), &format!("/etc/{file}")],
            );
        };
        write(
            "resolv.conf",
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        );
        write("nsswitch.conf", "hosts: files dns\n");
        let there = Arc::new(AtomicBool::new(true));
        let _serving = tokio::spawn(name_server(there.clone()));
        let server = StandIn::start(LOOPBACK).await.unwrap();
        let host = "mlserver.test";
        let settings = [("SHIM_PROBE_INTERVAL", "200ms")];
        let shim = Shim::before(host, server.http(), server.grpc(), &settings);
        shim.ready().await;
        assert_eq!(infer(&shim).await, 200);
        there.store(false, Ordering::SeqCst);
        // Longer than the grace and three probes that find no name.
        for _ in 0..30 {
            sleep(Duration::from_millis(100)).await;
            assert_eq!(infer(&shim).await, 200);
            assert_eq!(shim.get("/readyz").await.0, 200);
        }
        never_down(&shim).await;
        // The name is what is missed only where the server is not where it was.
        server.stop().await;
        let down = shim.state(host, "http", "down").await;
        assert_eq!(down["reason"], "dns", "{down}");
        server.restart().await.unwrap();
        there.store(true, Ordering::SeqCst);
        shim.ready().await;
        let _: SocketAddr = within("a call", async { shim.http() }).await;
        assert_eq!(infer(&shim).await, 200);
        let _ = std::fs::remove_dir_all(&folder);
    });
}
