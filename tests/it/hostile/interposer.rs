//! What only the agent's way to the scheduler can be made to hold: whole messages, held calls.

use agent_shim::demo::scheduler::FakeScheduler;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::callers::unended;
use super::frames::*;
use super::process::pair;
use crate::support::{eventually, within};

const SERVICE: &str = "/seldon.mlops.agent.AgentService";

/// Messages that are read whole, without an end, of many callers: all together are bounded.
#[tokio::test]
async fn endless_messages_are_refused_before_they_fill_the_memory() {
    const PIECE: usize = 16_000;
    let scheduler = FakeScheduler::start().await.unwrap();
    let address = scheduler.agent.to_string();
    let (_server, process) = pair(&[("SHIM_SCHEDULER", &address)]).await;
    let agent = process.agent.unwrap();
    for method in ["AgentEvent", "Subscribe"] {
        let what = format!("endless {method}");
        let path = format!("{SERVICE}/{method}");
        process
            .withstands(&what, async {
                let mut callers = JoinSet::new();
                for _ in 0..8 {
                    // A message that says it has a gigabyte, and of which 32 MiB come.
                    let first = Bytes::from_static(&[0, 0x40, 0, 0, 0]);
                    let piece = Bytes::from_static(&[b'x'; PIECE]);
                    let pieces = std::iter::repeat_n(piece, (32 << 20) / PIECE);
                    let sent = tokio_stream::iter(std::iter::once(first).chain(pieces));
                    let call = unended(agent, &path, sent).await;
                    callers.spawn(within("a refusal", call));
                }
                let mut exhausted = 0;
                while let Some(answer) = callers.join_next().await {
                    let answer = answer.unwrap().expect("an answer, not a broken connection");
                    match answer.headers()["grpc-status"].as_bytes() {
                        b"8" => exhausted += 1,
                        // A subscription gives way to the next one.
                        b"14" if method == "Subscribe" => {}
                        _ => panic!("{answer:?}"),
                    }
                }
                assert!(exhausted == 8 || method == "Subscribe" && exhausted > 0);
            })
            .await;
    }
    let sent = process.log();
    assert!(sent.iter().all(|line| !line.contains("panicked")));
}

/// Calls that are held while the scheduler is away: so many, and no more, whoever makes them.
#[tokio::test]
async fn held_calls_are_bounded_and_an_agent_gets_through_afterwards() {
    let (nowhere, _port) = crate::support::refused().await;
    let address = nowhere.to_string();
    let (_server, process) = pair(&[("SHIM_SCHEDULER", &address)]).await;
    let agent = process.agent.unwrap();
    process
        .withstands("held subscriptions", async {
            let mut callers = JoinSet::new();
            for _ in 0..4 {
                let block = call(&format!("{SERVICE}/Subscribe"));
                let mut bytes = opening();
                for i in 0..900u32 {
                    bytes.extend(frame(HEADERS, END_HEADERS, 2 * i + 1, &block));
                    bytes.extend(frame(DATA, END_STREAM, 2 * i + 1, &[0; 5]));
                }
                callers.spawn(async move { deaf(agent, &bytes).await });
            }
            let held = callers.join_all().await;
            process.is_bounded("held subscriptions");
            drop(held);
        })
        .await;
    eventually("the interposer to take calls again", async || {
        let mut client = crate::support::grpc::Client::connect(agent).await;
        let answer = client.call("Other", b"").await.ok()?;
        (answer.status().0 == 14).then_some(())
    })
    .await;
}
