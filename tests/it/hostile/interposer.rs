//! What only the agent's way to the scheduler can be made to hold: whole messages, held calls.

use agent_shim::demo::scheduler::FakeScheduler;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::frames::*;
use super::process::pair;
use crate::support::{eventually, within};

const SERVICE: &str = "/seldon.mlops.agent.AgentService";

/// Messages that are read whole, without an end, of many callers: all together are bounded.
#[tokio::test]
async fn endless_messages_are_refused_before_they_fill_the_memory() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let address = scheduler.agent.to_string();
    let (_server, process) = pair(&[("SHIM_SCHEDULER", &address)]).await;
    let agent = process.agent.unwrap();
    for method in ["AgentEvent", "Subscribe"] {
        let what = format!("endless {method}");
        process
            .withstands(&what, async {
                let mut callers = JoinSet::new();
                for _ in 0..8 {
                    let head = frame(
                        HEADERS,
                        END_HEADERS,
                        1,
                        &call(&format!("{SERVICE}/{method}")),
                    );
                    // A message that says it has a gigabyte, in frames, each of which is let in.
                    let window = frame(DATA, 0, 1, &[b'x'; 16_000]);
                    callers.spawn(async move {
                        let start =
                            [opening(), head, frame(DATA, 0, 1, &[0, 0x40, 0, 0, 0])].concat();
                        send_within_the_window(agent, start, window, 16 << 20).await
                    });
                }
                let refused = callers.join_all().await;
                assert!(refused.iter().all(|refused| *refused), "{refused:?}");
            })
            .await;
    }
    let sent = process.log();
    assert!(sent.iter().all(|line| !line.contains("panicked")));
}

/// Sends as a client that keeps to flow control, until so much is sent or the call is ended. True
/// where it was.
async fn send_within_the_window(
    to: std::net::SocketAddr,
    start: Vec<u8>,
    piece: Vec<u8>,
    most: usize,
) -> bool {
    use tokio::io::AsyncReadExt;
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    write.write_all(&start).await.unwrap();
    let (mut heard, mut at) = (Vec::new(), 0);
    // Of the connection and of the stream.
    let (mut windows, mut sent, mut initial) = ([65_535i64, 65_535], 0, 65_535i64);
    loop {
        while sent < most && windows.iter().all(|w| *w >= piece.len() as i64) {
            if write.write_all(&piece).await.is_err() {
                return true;
            }
            sent += piece.len();
            windows.iter_mut().for_each(|w| *w -= piece.len() as i64);
        }
        if sent >= most {
            return false;
        }
        let mut buffer = [0; 16 * 1024];
        match within("a window", read.read(&mut buffer)).await {
            Ok(n @ 1..) => heard.extend_from_slice(&buffer[..n]),
            _ => return true,
        }
        while heard.len() >= at + 9 {
            let head = &heard[at..at + 9];
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if heard.len() < at + 9 + length {
                break;
            }
            let payload = &heard[at + 9..at + 9 + length];
            let stream = usize::from(head[8] != 0);
            match head[3] {
                WINDOW_UPDATE => {
                    windows[stream] += i64::from(u32::from_be_bytes(payload.try_into().unwrap()));
                }
                SETTINGS if head[4] & ACK == 0 => {
                    for setting in payload.chunks(6).filter(|s| s[1] == 4) {
                        let value = i64::from(u32::from_be_bytes(setting[2..].try_into().unwrap()));
                        windows[1] += value - initial;
                        initial = value;
                    }
                }
                HEADERS | RST_STREAM | GOAWAY if stream == 1 || head[3] == GOAWAY => return true,
                _ => {}
            }
            at += 9 + length;
        }
    }
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
