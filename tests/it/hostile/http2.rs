//! HTTP/2 attacks by a caller, on each port that speaks it.

use std::net::SocketAddr;
use std::time::Duration;

use agent_shim::demo::scheduler::FakeScheduler;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::callers::{connection, request};
use super::frames::*;
use super::process::{Process, pair};
use crate::support::PATIENCE;

const KIB: usize = 1024;

/// One attack: its name, and what is sent after the opening.
type Attack = (&'static str, Box<dyn Iterator<Item = Vec<u8>> + Send>);

fn streams(n: u32) -> impl Iterator<Item = u32> + Send {
    (0..n).map(|i| 2 * i + 1)
}

fn attacks(block: &[u8]) -> Vec<Attack> {
    let own = block.to_vec();
    let open = move |stream: u32| frame(HEADERS, END_HEADERS, stream, &own);
    let one = open.clone()(1);
    let unended = frame(HEADERS, 0, 1, block);
    let first = |head: Vec<u8>, then: Vec<u8>, n: usize| {
        std::iter::once(head).chain(std::iter::repeat_n(then, n))
    };
    let many = |frame: Vec<u8>, n: usize| {
        // In bunches, as fast as a caller can.
        std::iter::repeat_n(frame.repeat(100), n / 100)
    };
    let reset = {
        let open = open.clone();
        streams(10_000).map(move |s| [open(s), frame(RST_STREAM, 0, s, &[0, 0, 0, 8])].concat())
    };
    // What makes the other side reset the stream itself.
    let made = |offence: fn(u32) -> Vec<u8>| {
        let open = open.clone();
        streams(2_000).map(move |s| [open(s), offence(s)].concat())
    };
    let bomb = |value: String, references: usize, n: u32| {
        let block = block.to_vec();
        streams(n).map(move |s| {
            let mut fields = block.clone();
            if s == 1 {
                fields.extend(indexed("x", &value));
            }
            // Each byte is the newest entry of the dynamic table, again.
            fields.extend(vec![0xbe; references]);
            let mut out = Vec::new();
            let mut parts = fields.chunks(16_000).peekable();
            let mut kind = HEADERS;
            while let Some(part) = parts.next() {
                let flags = if parts.peek().is_none() {
                    END_HEADERS
                } else {
                    0
                };
                out.extend(frame(kind, flags, s, part));
                kind = CONTINUATION;
            }
            out
        })
    };
    let setting = |id: u8, value: u32| {
        let payload = [&[0, id][..], &value.to_be_bytes()].concat();
        frame(SETTINGS, 0, 0, &payload)
    };
    vec![
        ("rapid reset", Box::new(reset)),
        (
            "CONTINUATION flood, small",
            Box::new(first(
                unended.clone(),
                frame(CONTINUATION, 0, 1, b"").repeat(100),
                300,
            )),
        ),
        (
            "CONTINUATION flood, large",
            Box::new(first(
                unended.clone(),
                frame(CONTINUATION, 0, 1, &literal("x", &"y".repeat(16_000))),
                4_000,
            )),
        ),
        (
            "SETTINGS flood",
            Box::new(many(frame(SETTINGS, 0, 0, &[]), 10_000)),
        ),
        (
            "SETTINGS flood of one value",
            Box::new(many(setting(1, 0), 10_000)),
        ),
        (
            "SETTINGS acknowledgements",
            Box::new(many(frame(SETTINGS, ACK, 0, &[]), 10_000)),
        ),
        (
            "PING flood",
            Box::new(many(frame(PING, 0, 0, &[7; 8]), 10_000)),
        ),
        (
            "empty DATA flood",
            Box::new(first(one.clone(), frame(DATA, 0, 1, b"").repeat(100), 300)),
        ),
        (
            "empty HEADERS flood",
            Box::new(first(
                one.clone(),
                frame(HEADERS, END_HEADERS, 1, b"").repeat(100),
                300,
            )),
        ),
        (
            "HPACK bomb of large entries",
            Box::new(bomb("v".repeat(4_000), 16_000, 100)),
        ),
        (
            "HPACK bomb of small entries",
            Box::new(bomb(String::new(), 10_000, 200)),
        ),
        (
            "HPACK bomb below the limit",
            Box::new(bomb(String::new(), 350, 300)),
        ),
        (
            "huge header",
            Box::new(first(
                frame(
                    HEADERS,
                    0,
                    1,
                    &[block, &[0x00, 1, b'x', 0x7f, 0x81, 0xff, 0xff, 0x07]].concat(),
                ),
                frame(CONTINUATION, 0, 1, &[b'y'; 16_000]),
                1_000,
            )),
        ),
        (
            "window overflow",
            Box::new(many(
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
                1_000,
            )),
        ),
        (
            "window overflow by settings",
            Box::new(first(
                [one.clone(), frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0, 0, 0])].concat(),
                setting(4, 0x7fff_ffff),
                100,
            )),
        ),
        (
            "WINDOW_UPDATE flood",
            Box::new(many(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 10_000)),
        ),
        (
            "PRIORITY flood",
            Box::new(many(frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 9]), 10_000)),
        ),
        (
            "PUSH_PROMISE of a client",
            Box::new(many(frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2, 0x82]), 100)),
        ),
        (
            "unknown frames",
            Box::new(many(frame(0xfe, 0xff, 0, &[0; 64]), 10_000)),
        ),
        (
            "GOAWAY flood",
            Box::new(many(frame(GOAWAY, 0, 0, &[0; 8]), 10_000)),
        ),
        (
            "a frame of 16 MiB",
            Box::new(
                std::iter::once(vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1])
                    .chain(many(vec![0; 160], 30_000)),
            ),
        ),
        (
            "too many streams",
            Box::new(streams(2_000).map(open.clone())),
        ),
        (
            "made resets by an update of nothing",
            Box::new(made(|s| frame(WINDOW_UPDATE, 0, s, &[0; 4]))),
        ),
        (
            "made resets by a dependency on itself",
            Box::new(made(|s| {
                frame(PRIORITY, 0, s, &[&s.to_be_bytes()[..], &[1]].concat())
            })),
        ),
        (
            "made resets by DATA after the end",
            Box::new(made(|s| {
                [frame(DATA, END_STREAM, s, b""), frame(DATA, 0, s, b"x")].concat()
            })),
        ),
        (
            "made resets by a window that overflows",
            Box::new(made(|s| {
                frame(WINDOW_UPDATE, 0, s, &[0x7f, 0xff, 0xff, 0xff]).repeat(2)
            })),
        ),
    ]
}

async fn all(process: &Process, to: SocketAddr, block: Vec<u8>, where_: &str) {
    for (name, pieces) in attacks(&block) {
        let what = format!("{name} on {where_}");
        process
            .withstands(&what, async {
                let moment = Duration::from_millis(100);
                flood(to, std::iter::once(opening()).chain(pieces), moment).await;
            })
            .await;
    }
}

#[tokio::test]
async fn a_data_connection_of_the_relay_withstands_every_flood() {
    let (_server, process) = pair(&[]).await;
    all(&process, process.grpc, call(INFER), "a data connection").await;
}

#[tokio::test]
async fn a_control_connection_of_the_relay_withstands_every_flood() {
    let (_server, process) = pair(&[]).await;
    // The first call decides what the connection is; what follows goes on to the server.
    for path in [LIVE, "/inference.GRPCInferenceService/RepositoryIndex"] {
        all(&process, process.grpc, call(path), path).await;
    }
}

#[tokio::test]
async fn the_admin_port_withstands_every_flood() {
    let (_server, process) = pair(&[]).await;
    all(&process, process.admin, get("/status"), "the admin port").await;
}

#[tokio::test]
async fn the_interposer_withstands_every_flood() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let address = scheduler.agent.to_string();
    let (_server, process) = pair(&[("SHIM_SCHEDULER", &address)]).await;
    let agent = process.agent.unwrap();
    for path in ["AgentEvent", "Subscribe"] {
        let path = format!("/seldon.mlops.agent.AgentService/{path}");
        all(&process, agent, call(&path), &path).await;
    }
}

/// What is refused, and in which words. Floods that cost next to nothing are let be.
#[tokio::test]
async fn floods_that_cost_are_ended_by_name() {
    let (_server, process) = pair(&[]).await;
    for (to, block) in [(process.grpc, call(LIVE)), (process.admin, get("/livez"))] {
        for (name, pieces) in attacks(&block) {
            let code = match name {
                "rapid reset" | "CONTINUATION flood, small" | "CONTINUATION flood, large" => 11,
                "window overflow" => 3,
                "PUSH_PROMISE of a client" => 1,
                "a frame of 16 MiB" => 6,
                _ => continue,
            };
            // Slowly enough for the caller to hear the answer before its own bytes reset it.
            let pieces = std::iter::once(opening()).chain(pieces.take(400));
            let heard = flood(to, pieces, PATIENCE).await;
            assert_eq!(
                goaway(&heard),
                Some(code),
                "{name} at {to}: {}",
                heard.len()
            );
        }
    }
}

/// Callers who never read: each holds what its window and the socket take, and no more.
#[tokio::test]
async fn callers_who_never_read_hold_little() {
    let (_server, process) = pair(&[]).await;
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    for (to, block, calls) in [
        (process.admin, get("/status"), 200),
        (process.admin, get("/metrics"), 200),
        (process.grpc, call(LIVE), 200),
        (process.grpc, call(INFER), 200),
    ] {
        for zero in [true, false] {
            let settings = if zero {
                no_window.clone()
            } else {
                frame(SETTINGS, 0, 0, &[])
            };
            let mut bytes = [PREFACE, &settings].concat();
            for stream in streams(calls) {
                bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
            }
            bytes.extend(frame(PING, 0, 0, &[1; 8]).repeat(10_000));
            let what = format!("callers of {to} who never read, window {}", !zero);
            process
                .withstands(&what, async {
                    let mut held = tokio::task::JoinSet::new();
                    for _ in 0..20 {
                        let bytes = bytes.clone();
                        held.spawn(async move { deaf(to, &bytes).await });
                    }
                    let held: Vec<_> = held.join_all().await;
                    process.is_bounded(&what);
                    drop(held);
                })
                .await;
        }
    }
}

/// Loads of which the beginning comes and the end never does: of a size that is read, and larger.
#[tokio::test]
async fn loads_that_never_end_hold_little_and_leave_room_for_others() {
    let (_server, process) = pair(&[]).await;
    let path = "/inference.GRPCInferenceService/RepositoryModelLoad";
    for (claimed, sent) in [(60 * KIB, 59 * KIB), (4096 * KIB - 5, 1024 * KIB)] {
        let what = format!("loads of {claimed} bytes of which {sent} come");
        process
            .withstands(&what, async {
                let (mut connections, mut calls) = (JoinSet::new(), JoinSet::new());
                for _ in 0..4 {
                    let sender = connection(process.grpc, &mut connections).await;
                    for _ in 0..100 {
                        let mut first = vec![0; sent];
                        first[1..5].copy_from_slice(&(claimed as u32).to_be_bytes());
                        let request = request(path, tokio_stream::once(Bytes::from(first)));
                        let mut sender = sender.clone();
                        calls.spawn(async move {
                            sender.send_request(request).await.map(|r| r.status())
                        });
                    }
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
                process.is_bounded(&what);
            })
            .await;
    }
}
