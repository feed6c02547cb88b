//! What has to get through whatever others hold: health, and the agent's way to the scheduler.

use agent_shim::demo::scheduler::FakeScheduler;
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::callers::{connection, request};
use super::frames::*;
use super::process::pair;
use crate::support::{grpc, within};

/// The agent asks on one connection for a load for each call that has met a lost model, and for health.
#[tokio::test]
async fn health_is_answered_on_a_connection_on_which_hundreds_of_loads_wait() {
    let (_server, process) = pair(&[]).await;
    let mut open = JoinSet::new();
    let mut sender = connection(process.grpc, &mut open).await;
    // Without a part of their messages: the library ends a connection for many small pieces that
    // nobody has taken, which an agent, whose messages are one piece each, never sends.
    let begun = tokio_stream::pending::<Bytes>;
    let mut loads = JoinSet::new();
    for _ in 0..1_000 {
        let load = request(
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            begun(),
        );
        loads.spawn(sender.send_request(load));
    }
    let live = sender.send_request(request(LIVE, begun()));
    let answer = within("an answer to ServerLive", live).await.unwrap();
    assert!(!answer.headers().contains_key("grpc-status"), "{answer:?}");
    let ended = loads.try_join_next();
    assert!(ended.is_none(), "a load was answered: {ended:?}");
}

/// Connections that say much and never call: what they hold is not for all to take.
#[tokio::test]
async fn callers_who_never_call_leave_room_for_health_loads_and_the_scheduler() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let address = scheduler.agent.to_string();
    let (_server, process) = pair(&[("SHIM_SCHEDULER", &address)]).await;
    process
        .withstands("a crowd that says much and never calls", async {
            let mut crowd = Vec::new();
            let much = [opening(), frame(0xfe, 0, 0, &[0; 16_000]).repeat(11)].concat();
            // What is just counted, to fill what is left between the large ones.
            let little = [opening(), frame(0xfe, 0, 0, &[0; 500]).repeat(34)].concat();
            for n in 0..320 {
                let said = if n < 120 { &much } else { &little };
                let mut stream = TcpStream::connect(process.grpc).await.unwrap();
                // Some are ended, which is theirs to bear.
                let _ = stream.write_all(said).await;
                crowd.push(stream);
            }
            for (to, method) in [
                (process.grpc, "ServerLive"),
                (process.grpc, "RepositoryModelLoad"),
                (process.agent.unwrap(), "Other"),
            ] {
                let mut client = grpc::Client::connect(to).await;
                let answer = within(method, client.call(method, b"")).await.unwrap();
                assert_ne!(answer.status().0, 8, "{method}: {answer:?}");
            }
        })
        .await;
}
