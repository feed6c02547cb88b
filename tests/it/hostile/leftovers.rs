//! What the shim has read and nobody takes: many callers at once, each before a reader who has
//! stopped. Their sum is bounded, and nobody's call is refused for it.

use std::net::SocketAddr;
use std::time::Duration;

use agent_shim::demo::standin::StandIn;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::desync::FINE;
use super::process::Process;
use crate::support::within;

/// Callers of one attack: as many as there are places, but for those who behave.
const CALLERS: usize = 1_000;
const BODY: usize = 200_000;

/// A server that stops reading at the head of a call to `/mine`, until it is told to go on: then it
/// takes the body and answers. It answers everything else. Its sockets have little room, so that
/// what it does not take is the shim's and not the kernel's.
struct Stopping {
    address: SocketAddr,
    goes_on: watch::Sender<bool>,
    _serving: JoinSet<()>,
}

impl Stopping {
    fn start() -> Stopping {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.set_tcp_mss(1200).unwrap();
        socket
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        socket.listen(1024).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let address = listener.local_addr().unwrap();
        let goes_on = watch::Sender::new(false);
        let told = goes_on.clone();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, told.subscribe()));
            }
        });
        Stopping {
            address,
            goes_on,
            _serving: serving,
        }
    }
}

async fn serve(mut stream: TcpStream, mut goes_on: watch::Receiver<bool>) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?.to_ascii_lowercase();
        if head.contains(" /mine") {
            goes_on.wait_for(|goes_on| *goes_on).await.ok()?;
        }
        if head.contains("\r\ntransfer-encoding: chunked\r\n") {
            let mut last = Vec::new();
            while !last.ends_with(b"\r\n0\r\n\r\n") {
                last.drain(..last.len().saturating_sub(8));
                stream.read_buf(&mut last).await.ok().filter(|n| *n > 0)?;
            }
        }
        let length = head.split("content-length: ").nth(1);
        let mut left: usize = length.map_or(Some(0), |l| l.lines().next()?.parse().ok())?;
        let mut piece = vec![0; 64 * 1024];
        while left > 0 {
            let most = left.min(piece.len());
            left -= match stream.read(&mut piece[..most]).await.ok()? {
                0 => return None,
                n => n,
            };
        }
        stream.write_all(FINE).await.ok()?;
        if head.contains("connection: close") {
            return None;
        }
    }
}

/// The shim before such a server for HTTP and a stand-in for gRPC.
async fn before_a_stopping_server(settings: &[(&str, &str)]) -> (Stopping, StandIn, Process) {
    let server = Stopping::start();
    let standin = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let process = Process::before(server.address, standin.grpc(), settings).await;
    (server, standin, process)
}

fn upload() -> Vec<u8> {
    let head = format!("POST /mine HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY}\r\n\r\n");
    [head.as_bytes(), &vec![b'x'; BODY]].concat()
}

/// The same in chunks, of which the last is the whole rest.
fn chunked() -> Vec<u8> {
    let mut bytes =
        b"POST /mine HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for piece in [1, 999, BODY - 1000] {
        bytes.extend(format!("{piece:x}\r\n").bytes());
        bytes.extend(std::iter::repeat_n(b'x', piece));
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

/// Sends all of it, or as much as is taken within a second, after a call that was answered.
async fn after_a_call(to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let ask = b"GET /other HTTP/1.1\r\nhost: a\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut answer = vec![0; FINE.len()];
    within("an answer", stream.read_exact(&mut answer))
        .await
        .unwrap();
    let limit = Duration::from_secs(1);
    let _ = tokio::time::timeout(limit, stream.write_all(bytes)).await;
    stream
}

/// So many callers say `bytes` at once, each after a call that was answered: what comes with the first
/// bytes of a connection is read in smaller pieces.
async fn crowd(callers: usize, server: &Stopping, process: &Process, what: &str, bytes: &[u8]) {
    server.goes_on.send_replace(false);
    process
        .withstands(what, async {
            let mut held = JoinSet::new();
            for _ in 0..callers {
                let (to, bytes) = (process.http, bytes.to_vec());
                held.spawn(async move { after_a_call(to, &bytes).await });
            }
            let held = held.join_all().await;
            process.is_bounded(what);
            // Nobody learns that a caller has gone behind bytes that are not taken.
            server.goes_on.send_replace(true);
            drop(held);
        })
        .await;
}

#[tokio::test]
async fn requests_that_wait_behind_a_call_hold_little() {
    let (server, _standin, process) = before_a_stopping_server(&[]).await;
    let one = "GET /mine HTTP/1.1\r\nhost: a\r\n\r\n";
    crowd(
        CALLERS,
        &server,
        &process,
        "pipelined requests",
        one.repeat(60 * 1024 / one.len()).as_bytes(),
    )
    .await;
}

#[tokio::test]
async fn bodies_that_a_server_does_not_take_hold_little() {
    // By the lane, and by the carrying of bytes that gRPC has, too.
    for mode in ["correct", "observe"] {
        let (server, _standin, process) = before_a_stopping_server(&[("SHIM_MODE", mode)]).await;
        crowd(
            CALLERS,
            &server,
            &process,
            &format!("untaken bodies, mode {mode}"),
            &upload(),
        )
        .await;
    }
}

#[tokio::test]
async fn bodies_in_chunks_that_a_server_does_not_take_hold_little() {
    let (server, _standin, process) = before_a_stopping_server(&[]).await;
    // The full path has some 60 KiB for each, whatever it does: buffers of the library on both sides, and
    // one piece of the body in each and between them.
    crowd(600, &server, &process, "untaken chunks", &chunked()).await;
}

/// What waits long is not refused: all get their answers when the server goes on.
#[tokio::test]
async fn honest_callers_of_a_server_that_stops_are_all_served_when_it_goes_on() {
    let (server, _standin, process) = before_a_stopping_server(&[]).await;
    let mut callers = JoinSet::new();
    for n in 0..CALLERS {
        let to = process.http;
        callers.spawn(async move {
            let mut stream = TcpStream::connect(to).await.unwrap();
            let (mut reads, mut writes) = stream.split();
            // Some have another request behind it already.
            let mut bytes = if n % 3 == 0 { chunked() } else { upload() };
            let mut expected = FINE.to_vec();
            if n % 4 == 0 {
                bytes.extend(b"GET /other HTTP/1.1\r\nhost: a\r\n\r\n");
                expected.extend(FINE);
            }
            let mut answer = vec![0; expected.len()];
            let (sent, read) =
                tokio::join!(writes.write_all(&bytes), reads.read_exact(&mut answer));
            sent.unwrap();
            read.unwrap();
            assert!(answer == expected, "{}", String::from_utf8_lossy(&answer));
        });
    }
    crate::support::eventually("much to wait", async || {
        (process.rss() > 12 * 1024).then_some(())
    })
    .await;
    process.is_bounded("honest callers");
    server.goes_on.send_replace(true);
    within("all answers", callers.join_all()).await;
    process.is_bounded("honest callers, served");
}
