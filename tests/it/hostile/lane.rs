//! The HTTP relay's lane: plain calls go as bytes, both ways at once, and a connection leaves it at
//! the first request that is not plain.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_shim::demo::standin::StandIn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::desync::FINE;
use super::process::Process;
use crate::support::within;

/// A server whose connections the test speaks on by itself; probes are answered.
struct Manual {
    address: SocketAddr,
    connections: mpsc::UnboundedReceiver<(String, TcpStream)>,
    _accepting: tokio::task::JoinSet<()>,
}

impl Manual {
    async fn start() -> Manual {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (send, connections) = mpsc::unbounded_channel();
        let mut accepting = tokio::task::JoinSet::new();
        accepting.spawn(async move {
            let mut probes = tokio::task::JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let send = send.clone();
                probes.spawn(async move {
                    while let Some(head) = head(&mut stream).await {
                        if head.contains(" /mine") {
                            let _ = send.send((head, stream));
                            return;
                        }
                        if stream.write_all(FINE).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Manual {
            address,
            connections,
            _accepting: accepting,
        }
    }

    /// The next connection on which the test's own call has come, and its head.
    async fn called(&mut self) -> (String, TcpStream) {
        within("a call", self.connections.recv()).await.unwrap()
    }
}

/// The next head, byte by byte, so that nothing after it is taken.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\n") {
        all.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(all).unwrap())
}

async fn exactly(stream: &mut TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    let read = within("bytes", stream.read_exact(&mut got)).await;
    assert!(
        read.is_ok() && got == expected,
        "{:?}",
        String::from_utf8_lossy(&got)
    );
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = within("the end", stream.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}

async fn setting() -> (Manual, StandIn, Process, TcpStream) {
    let manual = Manual::start().await;
    let standin = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let process = Process::before(manual.address, standin.grpc(), &[]).await;
    let caller = TcpStream::connect(process.http).await.unwrap();
    caller.set_nodelay(true).unwrap();
    (manual, standin, process, caller)
}

/// The setting when a caller has sent this, and its call has come to the server.
async fn under_way(sent: &[u8]) -> (Manual, (StandIn, Process), TcpStream, TcpStream) {
    let (mut manual, standin, process, mut caller) = setting().await;
    caller.write_all(sent).await.unwrap();
    let (_, server) = manual.called().await;
    (manual, (standin, process), caller, server)
}

#[tokio::test]
async fn plain_calls_go_on_byte_for_byte_until_one_that_is_not() {
    let (mut manual, _standin, _process, mut caller) = setting().await;
    let plain =
        "POST /mine?a=b HTTP/1.1\r\nHOST: a\r\nX-Odd-Case:  v  w\r\nContent-Length: 3\r\n\r\n";
    caller
        .write_all(format!("{plain}123").as_bytes())
        .await
        .unwrap();
    let (seen, mut server) = manual.called().await;
    assert_eq!(seen, plain);
    exactly(&mut server, b"123").await;
    let answer = b"HTTP/1.1 299 My Own\r\nX-Odd-Case:\tv  w\r\nContent-Length: 2\r\n\r\nok";
    server.write_all(answer).await.unwrap();
    exactly(&mut caller, answer).await;
    // What is said to the shim alone stays with it; the next request waits for its turn.
    let kept = "GET /mine HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nX: y\r\n\r\n";
    let odd = "GET /mine HTTP/1.1\r\nHost: a\r\nX-Case: 1\r\nTE: trailers\r\n\r\n";
    caller
        .write_all(format!("{kept}{odd}").as_bytes())
        .await
        .unwrap();
    let seen = within("a head", head(&mut server)).await.unwrap();
    assert_eq!(seen, kept.replace("Connection: keep-alive\r\n", ""));
    server.write_all(FINE).await.unwrap();
    exactly(&mut caller, FINE).await;
    // The full path writes heads in its own way, and opens a connection of its own.
    let (seen, mut server) = manual.called().await;
    assert!(seen.contains("\r\nx-case: 1\r\n"), "{seen}");
    server.write_all(FINE).await.unwrap();
    exactly(&mut caller, FINE).await;
    caller.write_all(plain.as_bytes()).await.unwrap();
    caller.write_all(b"123").await.unwrap();
    let seen = within("a head", head(&mut server)).await.unwrap();
    assert!(
        seen.contains("\r\nx-odd-case: v  w\r\n"),
        "for good: {seen}"
    );
}

#[tokio::test]
async fn a_head_may_come_byte_by_byte_and_a_body_with_it() {
    let (mut manual, _standin, _process, mut caller) = setting().await;
    let text = "POST /mine HTTP/1.1\r\nhost: a\r\nx: 1\r\ncontent-length: 9\r\n\r\n123456789";
    for byte in text.bytes() {
        caller.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let (seen, mut server) = manual.called().await;
    assert!(text.starts_with(&seen) && seen.contains("x: 1"));
    exactly(&mut server, b"123456789").await;
    let answer =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n4\r\n6789\r\n0\r\n\r\n";
    for byte in answer.bytes() {
        server.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    exactly(&mut caller, answer.as_bytes()).await;
}

#[tokio::test]
async fn a_body_of_known_length_streams_both_ways_while_it_is_sent() {
    let (_manual, _others, mut caller, mut server) =
        under_way(b"POST /mine HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nfirst").await;
    exactly(&mut server, b"first").await;
    let begin = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf";
    server.write_all(begin).await.unwrap();
    exactly(&mut caller, begin).await;
    caller.write_all(b"again").await.unwrap();
    exactly(&mut server, b"again").await;
    server.write_all(b"half").await.unwrap();
    exactly(&mut caller, b"half").await;
    // Both connections are in step.
    caller
        .write_all(b"GET /mine HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert!(within("the next head", head(&mut server)).await.is_some());
}

#[tokio::test]
async fn an_answer_before_the_requests_end_is_heard_though_the_server_takes_no_more() {
    let (mut manual, _others, mut caller, mut server) =
        under_way(b"POST /mine HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\n123").await;
    let early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig";
    server.write_all(early).await.unwrap();
    drop(server);
    exactly(&mut caller, early).await;
    // What follows on the connection would be body: it ends, and nobody else gets it.
    let _ = caller
        .write_all(b"GET /mine HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    assert_eq!(rest(&mut caller).await, "");
    assert!(manual.connections.try_recv().is_err());
}

/// Nobody waits for a server that has closed: the caller learns at once that this is the end.
#[tokio::test]
async fn an_early_answer_of_a_server_that_closes_is_the_end_at_once() {
    let (mut manual, _standin, _process, mut caller) = setting().await;
    caller
        .write_all(b"POST /mine HTTP/1.1\r\nhost: a\r\ncontent-length: 8000000\r\n\r\n")
        .await
        .unwrap();
    let (_, mut server) = manual.called().await;
    let early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig";
    server.write_all(early).await.unwrap();
    exactly(&mut caller, early).await;
    drop(server);
    let (mut reads, mut writes) = caller.into_split();
    let since = tokio::time::Instant::now();
    let upload = async {
        let _ = writes.write_all(&vec![b'x'; 7_000_000]).await;
        // Half sent: what decides is when it is told.
        std::future::pending::<()>().await;
    };
    let mut more = Vec::new();
    let ended = within("the end", async {
        tokio::select! {
            ended = reads.read_to_end(&mut more) => ended,
            () = upload => unreachable!(),
        }
    });
    assert_eq!(ended.await.unwrap(), 0, "{more:?}");
    let took = since.elapsed();
    assert!(took < Duration::from_millis(800), "{took:?}");
}

#[tokio::test]
async fn what_a_server_says_unasked_is_nobodys_answer() {
    let (mut manual, _standin, process, mut caller) = setting().await;
    let ask = b"GET /mine HTTP/1.1\r\nhost: a\r\n\r\n";
    caller.write_all(ask).await.unwrap();
    let (_, mut server) = manual.called().await;
    server.write_all(FINE).await.unwrap();
    exactly(&mut caller, FINE).await;
    // In a segment of its own, after the answer has been passed on.
    server
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        .await
        .unwrap();
    caller.write_all(ask).await.unwrap();
    let (_, mut second) = manual.called().await;
    second.write_all(FINE).await.unwrap();
    exactly(&mut caller, FINE).await;
    assert_eq!(
        head(&mut server).await,
        None,
        "the first connection is given up"
    );
    // In the same breath as an answer, with the next request waiting already.
    caller.write_all(&ask.repeat(2)).await.unwrap();
    assert!(within("a head", head(&mut second)).await.is_some());
    second
        .write_all(&[FINE, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"].concat())
        .await
        .unwrap();
    exactly(&mut caller, FINE).await;
    let (_, mut third) = manual.called().await;
    third.write_all(FINE).await.unwrap();
    exactly(&mut caller, FINE).await;
    process.recovers("unasked answers").await;
}

#[tokio::test]
async fn a_request_that_was_sent_is_never_sent_again_by_the_lane() {
    let (mut manual, _standin, _process, mut caller) = setting().await;
    let ask = b"POST /mine HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx";
    let mut server = None;
    // On a new connection, and on a kept one.
    for kept in [false, true] {
        if kept {
            caller.write_all(ask).await.unwrap();
            let (_, mut stream) = manual.called().await;
            exactly(&mut stream, b"x").await;
            stream.write_all(FINE).await.unwrap();
            exactly(&mut caller, FINE).await;
            server = Some(stream);
        }
        caller.write_all(ask).await.unwrap();
        let mut stream = match server.take() {
            Some(mut stream) => {
                assert!(within("a head", head(&mut stream)).await.is_some());
                stream
            }
            None => manual.called().await.1,
        };
        exactly(&mut stream, b"x").await;
        drop(stream);
        let told = within("an answer", head(&mut caller)).await.unwrap();
        assert!(
            told.starts_with("HTTP/1.1 502 ") && told.contains("x-agent-shim: bad-gateway"),
            "{told}"
        );
        let length = told
            .split("content-length: ")
            .nth(1)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let mut body = vec![0; length];
        caller.read_exact(&mut body).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("it was not sent again"));
        assert!(manual.connections.try_recv().is_err(), "sent again");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_ended_cleanly() {
    let (mut manual, _standin, process, _) = setting().await;
    for (begin, resets) in [
        (
            &b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"[..],
            false,
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            false,
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
            false,
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nevil\r\n0\r\n\r\n",
            false,
        ),
        // Its end is the connection's, but this is none.
        (b"HTTP/1.1 200 OK\r\n\r\nhalf", true),
    ] {
        let mut caller = TcpStream::connect(process.http).await.unwrap();
        caller
            .write_all(b"GET /mine HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let (_, mut server) = manual.called().await;
        server.write_all(begin).await.unwrap();
        let told = within("a head", head(&mut caller)).await.unwrap();
        if resets {
            exactly(&mut caller, b"4\r\nhalf\r\n").await;
            server.set_zero_linger().unwrap();
        }
        drop(server);
        let body = rest(&mut caller).await;
        let is_whole = match told.contains("chunked") {
            true => body.ends_with("0\r\n\r\n"),
            false => body.len() == 9,
        };
        assert!(!is_whole, "{told}{body}");
    }
    // One that ends with its connection is whole, and is told so.
    let mut caller = TcpStream::connect(process.http).await.unwrap();
    caller
        .write_all(b"GET /mine HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let (_, mut server) = manual.called().await;
    server
        .write_all(b"HTTP/1.1 200 OK\r\n\r\nwhole")
        .await
        .unwrap();
    drop(server);
    let told = within("a head", head(&mut caller)).await.unwrap();
    assert!(told.contains("transfer-encoding: chunked"), "{told}");
    exactly(&mut caller, b"5\r\nwhole\r\n0\r\n\r\n").await;
}

/// Neither way is read faster than the other side takes it.
#[tokio::test]
async fn a_slow_reader_on_either_side_makes_the_other_wait() {
    const SIZE: usize = 64 << 20;
    let (mut manual, _standin, process, caller) = setting().await;
    let (mut caller_reads, mut caller_writes) = caller.into_split();
    let sent = Arc::new(Mutex::new(0));
    let count = sent.clone();
    let piece = vec![b'x'; 1 << 16];
    let body = piece.clone();
    let sending = tokio::spawn(async move {
        let head = format!("POST /mine HTTP/1.1\r\nhost: a\r\ncontent-length: {SIZE}\r\n\r\n");
        caller_writes.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..SIZE / body.len() {
            caller_writes.write_all(&body).await.unwrap();
            *count.lock().unwrap() += body.len();
        }
        caller_writes
    });
    let (_, mut server) = manual.called().await;
    // Until nothing has moved for a while.
    let mut before = usize::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = *sent.lock().unwrap();
        if now == before {
            break;
        }
        before = now;
    }
    assert!(
        before < SIZE,
        "a server that does not read was sent everything"
    );
    process.is_bounded("a server that does not read");
    // It answers all the same, at length, to a caller that does not read.
    let (mut reads, mut writes) = server.split();
    let answer = async {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
        writes.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..SIZE / piece.len() {
            writes.write_all(&piece).await.unwrap();
        }
    };
    let take = async {
        let (mut buffer, mut taken) = (vec![0; 1 << 16], 0);
        while taken < SIZE {
            taken += reads.read(&mut buffer).await.unwrap();
        }
    };
    let hear = async {
        let (mut buffer, mut heard) = (vec![0; 1 << 16], 0);
        while heard < SIZE {
            heard += caller_reads.read(&mut buffer).await.unwrap();
            process.is_bounded("both ways at once");
        }
    };
    within("both ways", async { tokio::join!(answer, take, hear) }).await;
    sending.await.unwrap();
}
