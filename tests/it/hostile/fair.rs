//! One connection that is never at rest, and the others who share the one thread with it. What is
//! counted is how much of the busy one passes while a call of somebody else is answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agent_shim::demo::standin::StandIn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::frames::*;
use super::process::{Process, get, say};
use crate::support::within;

/// What a server says to who asks for something else than its health.
#[derive(Clone)]
struct Says {
    first: Vec<u8>,
    then: Vec<u8>,
}

const SMALL: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

/// A server that is well, and goes on for ever where it is asked for `/endless` or, over HTTP/2, at
/// all; it hears `/swallow` out. `index_too`: also where it is asked what models it has.
async fn server(says: Says, index_too: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(answer(stream, says.clone(), index_too));
        }
    });
    address
}

async fn answer(stream: TcpStream, says: Says, index_too: bool) {
    let (mut read, mut write) = stream.into_split();
    let mut asked = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = read.read(&mut asked).await {
        let text = String::from_utf8_lossy(&asked[..n]);
        if text.contains(" /swallow") {
            while let Ok(1..) = read.read(&mut asked).await {}
            return;
        }
        let endless = text.starts_with("PRI ")
            || text.contains(" /endless")
            || (index_too && text.contains("/v2/repository/index"));
        if !endless {
            if write.write_all(SMALL).await.is_err() {
                return;
            }
            continue;
        }
        let speak = async {
            let _ = write.write_all(&says.first).await;
            let many = says.then.repeat(64 * 1024 / says.then.len());
            while write.write_all(&many).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let listen = async { while let Ok(1..) = read.read(&mut asked).await {} };
        tokio::select! { () = speak => {}, () = listen => {} }
        return;
    }
}

/// Reads all that comes, and counts it.
fn greedy(mut stream: TcpStream, taken: Arc<AtomicU64>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            taken.fetch_add(n as u64, Ordering::Relaxed);
            // Else some hundred pieces may pass before the callers of this very process have a turn.
            tokio::task::yield_now().await;
        }
    })
}

const CALLS: u64 = 30;
/// What may pass of the busy connection for each call of another: a call is a few turns of the
/// thread, and the sockets on the way hold some megabytes that had passed before.
const A_CALL: u64 = 32 * 1024 * 1024;

/// Calls on a port of the shim's own and through it, while `taken` grows.
async fn others_are_served(process: &Process, what: &str, taken: &AtomicU64) {
    let before = taken.load(Ordering::Relaxed);
    let both = async || {
        for (to, path) in [(process.admin, "/livez"), (process.http, "/headers")] {
            let said = get(to, path).await;
            let well = said.as_ref().is_ok_and(|s| s.starts_with("HTTP/1.1 200"));
            assert!(well, "{what}: {path}: {said:?}");
        }
        taken.load(Ordering::Relaxed) - before
    };
    for _ in 1..CALLS {
        both().await;
    }
    let passed = crate::support::eventually("the busy connection to go on", async || {
        Some(both().await).filter(|passed| *passed > 0)
    });
    let each = passed.await / (2 * CALLS);
    assert!(each < A_CALL, "{what}: {each} bytes for each call");
}

async fn shim(http: SocketAddr, grpc: SocketAddr) -> Process {
    let (http, grpc) = (http.port().to_string(), grpc.port().to_string());
    let settings = [
        ("SHIM_INFERENCE_HOSTS", "127.0.0.1"),
        ("SHIM_INFERENCE_HTTP_PORT", &http),
        ("SHIM_INFERENCE_GRPC_PORT", &grpc),
    ];
    let process = Process::start(&settings).await;
    crate::support::eventually("HTTP to be served", async || {
        let said = get(process.http, "/headers").await.unwrap();
        said.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_without_a_rest_leaves_their_turns_to_others() {
    let head = b"HTTP/1.1 200 OK\r\n".to_vec();
    for (name, first, then) in [
        (
            "an endless body",
            [&head[..], b"content-length: 99999999999\r\n\r\n"].concat(),
            vec![b'x'; 64 * 1024],
        ),
        (
            "endless small chunks",
            [&head[..], b"transfer-encoding: chunked\r\n\r\n"].concat(),
            b"1\r\nx\r\n".to_vec(),
        ),
    ] {
        let good = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
        let process = shim(server(Says { first, then }, false).await, good.grpc()).await;
        let taken = Arc::new(AtomicU64::new(0));
        let mut stream = TcpStream::connect(process.http).await.unwrap();
        let ask = b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(ask).await.unwrap();
        let reading = greedy(stream, taken.clone());
        others_are_served(&process, name, &taken).await;
        assert!(!reading.is_finished(), "{name}: the download has ended");
        reading.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_connection_without_a_rest_leaves_their_turns_to_others() {
    let hello = frame(SETTINGS, 0, 0, &[]);
    for (name, then) in [
        ("large frames", frame(DATA, 0, 1, &[b'x'; 16_000])),
        ("empty frames", frame(DATA, 0, 1, b"")),
    ] {
        let first = hello.clone();
        let http = server(
            Says {
                first: Vec::new(),
                then: vec![b' '],
            },
            false,
        );
        let process = shim(http.await, server(Says { first, then }, false).await).await;
        let taken = Arc::new(AtomicU64::new(0));
        let mut stream = TcpStream::connect(process.grpc).await.unwrap();
        let infer = frame(HEADERS, END_HEADERS, 1, &call(INFER));
        stream
            .write_all(&[opening(), infer].concat())
            .await
            .unwrap();
        let reading = greedy(stream, taken.clone());
        others_are_served(&process, name, &taken).await;
        assert!(!reading.is_finished(), "{name}: the download has ended");
        reading.abort();
    }
}

/// Interim answers are bounded for each call, whoever makes it: the shim asks for the index itself.
#[tokio::test]
async fn interim_answers_without_an_end_cost_that_call_alone() {
    for (name, hint) in [
        ("100", &b"HTTP/1.1 100 Continue\r\n\r\n"[..]),
        ("103", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"),
    ] {
        let good = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
        let says = Says {
            first: Vec::new(),
            then: hint.to_vec(),
        };
        let process = shim(server(says, true).await, good.grpc()).await;
        let ask = b"GET /endless HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        for _ in 0..3 {
            let said = within("the answer", say(process.http, ask)).await.unwrap();
            assert!(said.starts_with("HTTP/1.1 502"), "{name}: {said}");
            assert!(said.contains("said too much"), "{name}: {said}");
            let said = get(process.admin, "/livez").await.unwrap();
            assert!(said.starts_with("HTTP/1.1 200"), "{name}: {said}");
        }
        process.is_bounded(name);
    }
}

/// As many as a server may well send are dropped, and the answer behind them is given.
#[tokio::test]
async fn some_interim_answers_are_read_over() {
    let good = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let hints = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(1_000);
    let body = [b'x'; 64 * 1024];
    let says = Says {
        first: [
            &hints[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 6553600\r\n\r\n",
        ]
        .concat(),
        then: body.to_vec(),
    };
    let process = shim(server(says, false).await, good.grpc()).await;
    let ask = b"GET /endless HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let said = within("the answer", say(process.http, ask)).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 200"));
    assert_eq!(said.split_once("\r\n\r\n").unwrap().1.len(), 6_553_600);
}

/// Says the same for ever, and takes whatever is answered; counts both, since what is said goes on in
/// large steps only: the kernel wakes who waits for room when there is much of it.
fn tireless(
    stream: TcpStream,
    first: &'static [u8],
    then: &'static [u8],
    said: Arc<AtomicU64>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let (mut read, mut write) = stream.into_split();
        let speak = async {
            write.write_all(first).await.unwrap();
            let many = then.repeat(64 * 1024 / then.len());
            while let Ok(n @ 1..) = write.write(&many).await {
                // What was cut off in the middle is finished first.
                let rest = (then.len() - n % then.len()) % then.len();
                if write.write_all(&then[then.len() - rest..]).await.is_err() {
                    return;
                }
                said.fetch_add((n + rest) as u64, Ordering::Relaxed);
            }
        };
        let mut buffer = vec![0; 256 * 1024];
        let listen = async {
            while let Ok(n @ 1..) = read.read(&mut buffer).await {
                said.fetch_add(n as u64, Ordering::Relaxed);
            }
        };
        tokio::select! { () = speak => {}, () = listen => {} }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_without_a_rest_leaves_their_turns_to_others() {
    for (name, first, then) in [
        (
            "calls one upon the other that the shim answers",
            &b""[..],
            &b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        ),
        (
            "calls one upon the other for the server",
            b"",
            b"GET /small HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "an endless body in small chunks",
            b"POST /swallow HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
            b"1\r\nx\r\n",
        ),
        (
            "an endless body in small chunks for nobody",
            b"POST /v2/health/live HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
            b"1\r\nx\r\n",
        ),
    ] {
        let good = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
        let says = Says {
            first: Vec::new(),
            then: b" ".to_vec(),
        };
        let process = shim(server(says, false).await, good.grpc()).await;
        let said = Arc::new(AtomicU64::new(0));
        let stream = TcpStream::connect(process.http).await.unwrap();
        let speaking = tireless(stream, first, then, said.clone());
        if name.ends_with("for nobody") {
            // It is refused and its connection ended, sooner or later; others notice nothing.
            let calls = async {
                for _ in 0..CALLS {
                    let said = get(process.admin, "/livez").await.unwrap();
                    assert!(said.starts_with("HTTP/1.1 200"), "{name}: {said}");
                }
            };
            calls.await;
        } else {
            others_are_served(&process, name, &said).await;
        }
        speaking.abort();
    }
}
