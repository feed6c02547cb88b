//! Crowds: more connections than there are places, on each port.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use agent_shim::demo::scheduler::FakeScheduler;

use super::frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, call, frame, opening};
use super::process::pair;
use crate::support::{eventually, within};

/// Whether the other side has closed a connection on which nothing is read.
fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = [0; 512];
    loop {
        match stream.try_read(&mut byte) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// What is idle gives way; who calls is served at once, and calls that run are left alone.
#[tokio::test]
async fn a_crowd_of_idle_callers_gives_way_and_running_calls_do_not() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let address = scheduler.agent.to_string();
    let (server, process) = pair(&[("SHIM_SCHEDULER", &address)]).await;
    let agent = process.agent.unwrap();
    // One call of each kind that runs all the time.
    let mut http = TcpStream::connect(process.http).await.unwrap();
    http.write_all(b"GET /hang HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut grpc = TcpStream::connect(process.grpc).await.unwrap();
    let infer = frame(HEADERS, END_HEADERS, 1, &call(super::frames::INFER));
    grpc.write_all(&[opening(), infer].concat()).await.unwrap();
    let mut subscribed = TcpStream::connect(agent).await.unwrap();
    let subscribe = frame(
        HEADERS,
        END_HEADERS,
        1,
        &call("/seldon.mlops.agent.AgentService/Subscribe"),
    );
    subscribed
        .write_all(&[opening(), subscribe].concat())
        .await
        .unwrap();
    within("the call", server.wait_for_call("/hang")).await;
    let once = frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &call("/inference.GRPCInferenceService/ModelReady"),
    );
    let once = [opening(), once].concat();
    let control = frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &call(super::frames::LIVE),
    );
    let control = [opening(), control].concat();
    for (to, said, places) in [
        (
            process.http,
            &b"GET /headers HTTP/1.1\r\nhost: a\r\n\r\n"[..],
            1_024,
        ),
        (process.grpc, &opening(), 1_024),
        // Those who have had their answer are idle as well.
        (process.grpc, &once, 1_024),
        (process.grpc, &control, 1_024),
        (agent, &opening(), 64),
    ] {
        let what = format!("a crowd of {} bytes each at {to}", said.len());
        process
            .withstands(&what, async {
                let mut crowd = Vec::new();
                for _ in 0..places + 100 {
                    let mut stream = TcpStream::connect(to).await.unwrap();
                    let _ = stream.write_all(said).await;
                    crowd.push(stream);
                }
                process.is_bounded(&what);
                eventually("the oldest to give way", async || {
                    let open = crowd.iter().filter(|s| !is_closed(s)).count();
                    (open <= places).then_some(())
                })
                .await;
                assert!(
                    is_closed(&crowd[0]) && !is_closed(&crowd[places + 99]),
                    "{what}"
                );
            })
            .await;
        for (name, stream) in [("HTTP", &http), ("gRPC", &grpc), ("agent", &subscribed)] {
            assert!(
                !is_closed(stream),
                "{what}: a running call of {name} was cut"
            );
        }
    }
    server.release();
    let mut answer = [0; 12];
    within("the answer", http.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

/// A carried gRPC connection is told to go before it is closed, and a call that comes meanwhile is
/// served: also where it has been idle for longer than the time it is given.
#[tokio::test]
async fn who_has_to_give_way_is_told_first_and_may_still_call() {
    let (_server, process) = pair(&[]).await;
    let infer = |stream| {
        let head = frame(HEADERS, END_HEADERS, stream, &call(super::frames::INFER));
        [head, frame(DATA, END_STREAM, stream, &[0; 5])].concat()
    };
    let mut oldest = TcpStream::connect(process.grpc).await.unwrap();
    oldest
        .write_all(&[opening(), infer(1)].concat())
        .await
        .unwrap();
    let mut heard = Vec::new();
    let ended = |stream| move |f: &Frame| f.ends(stream);
    within("the first answer", until(&mut oldest, &mut heard, ended(1))).await;
    // Idle for as long as it may take to go: that time must not count before it is told.
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    let mut crowd = Vec::new();
    for _ in 1..1_024 {
        let mut stream = TcpStream::connect(process.grpc).await.unwrap();
        let both = [opening(), infer(1)].concat();
        stream.write_all(&both).await.unwrap();
        // Who has never called would give way before.
        let mut heard = Vec::new();
        within("an answer", until(&mut stream, &mut heard, ended(1))).await;
        crowd.push(stream);
    }
    crowd.push(TcpStream::connect(process.grpc).await.unwrap());
    let going = |f: &Frame| f.kind == GOAWAY;
    within("GOAWAY", until(&mut oldest, &mut heard, going)).await;
    oldest.write_all(&infer(3)).await.unwrap();
    within("its answer", until(&mut oldest, &mut heard, ended(3))).await;
    drop(crowd);
}

/// A frame that was heard.
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    fn ends(&self, stream: u32) -> bool {
        self.kind == HEADERS && self.stream == stream && self.flags & END_STREAM != 0
    }
}

/// Reads until such a frame has come; what is left over stays in `heard`.
async fn until(from: &mut TcpStream, heard: &mut Vec<u8>, is_it: impl Fn(&Frame) -> bool) {
    loop {
        while heard.len() >= 9 {
            let length = u32::from_be_bytes([0, heard[0], heard[1], heard[2]]) as usize;
            if heard.len() < 9 + length {
                break;
            }
            let stream = u32::from_be_bytes([heard[5], heard[6], heard[7], heard[8]]);
            let frame = Frame {
                kind: heard[3],
                flags: heard[4],
                stream,
            };
            heard.drain(..9 + length);
            if is_it(&frame) {
                return;
            }
        }
        let read = from.read_buf(heard).await.unwrap();
        assert_ne!(read, 0, "closed without a word");
    }
}

/// A call on each place: who comes then waits, is named as a finding, and is served in the end.
#[tokio::test]
async fn a_relay_with_a_running_call_on_every_place_says_so() {
    let (server, process) = pair(&[]).await;
    let mut crowd = Vec::new();
    for _ in 0..1_024 {
        let mut stream = TcpStream::connect(process.http).await.unwrap();
        stream
            .write_all(b"GET /hang HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        crowd.push(stream);
    }
    let findings = async || {
        let (_, text) = crate::support::http::get(process.admin, "/status").await;
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        let all = status["findings"].as_array().unwrap().clone();
        all.iter().any(|f| f["rule"] == "AS023")
    };
    within("all calls at the server", async {
        while server.calls_to("/hang").len() < 1_024 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(!findings().await, "nobody waits");
    let mut late = TcpStream::connect(process.http).await.unwrap();
    late.write_all(b"GET /headers HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    eventually("the finding", async || findings().await.then_some(())).await;
    server.release();
    let mut answer = [0; 12];
    within("the answer", late.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(crowd);
    eventually("its end", async || (!findings().await).then_some(())).await;
}
