//! Hostile the other way: a server, or a scheduler, that has been taken over, and what it can do
//! to the shim.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent_shim::demo::standin::StandIn;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_stream::Stream;

use super::frames::*;
use super::process::{Process, get as ask, say};
use crate::support::{eventually, grpc};

/// A server that says the same to everybody, over and over, whatever it is asked.
struct Evil {
    address: SocketAddr,
    taken: Arc<AtomicUsize>,
    _accepting: JoinSet<()>,
}

impl Evil {
    /// After the caller's first bytes: `first` once, then `then` so many times, then silence.
    async fn start(first: Vec<u8>, then: Vec<u8>, times: usize) -> Evil {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::new(AtomicUsize::new(0));
        let (mut accepting, count) = (JoinSet::new(), taken.clone());
        let (first, then) = (Arc::new(first), Arc::new(then));
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(talk(stream, first.clone(), then.clone(), times));
            }
        });
        Evil {
            address,
            taken,
            _accepting: accepting,
        }
    }
}

async fn talk(stream: TcpStream, first: Arc<Vec<u8>>, then: Arc<Vec<u8>>, times: usize) {
    let (mut read, mut write) = stream.into_split();
    let listen = async {
        let mut buffer = [0; 4096];
        while let Ok(1..) = read.read(&mut buffer).await {}
    };
    let speak = async {
        // A moment for the caller to ask: what is said before is not taken for an answer.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let _ = write.write_all(&first).await;
        for _ in 0..times {
            if write.write_all(&then).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    tokio::select! { () = listen => {}, () = speak => {} }
}

/// What a hostile HTTP/2 server says: its name, what comes first, and what comes over and over.
fn http2() -> Vec<(&'static str, Vec<u8>, Vec<u8>, usize)> {
    let hello = frame(SETTINGS, 0, 0, &[]);
    let answer = [vec![0x88], literal("content-type", "application/grpc")].concat();
    let with = |f: Vec<u8>| [hello.clone(), f].concat();
    let bomb: Vec<u8> = [
        answer.clone(),
        indexed("x", &"v".repeat(4_000)),
        vec![0xbe; 12_000],
    ]
    .concat();
    vec![
        ("nothing", Vec::new(), Vec::new(), 0),
        (
            "garbage",
            Vec::new(),
            b"\xde\xad\xbe\xef".repeat(1000),
            1000,
        ),
        (
            "a header block of 1 GB",
            with(frame(HEADERS, 0, 1, &answer)),
            frame(CONTINUATION, 0, 1, &literal("x", &"y".repeat(16_000))),
            4_000,
        ),
        (
            "a header block without an end",
            with(frame(HEADERS, 0, 1, &answer)),
            frame(CONTINUATION, 0, 1, b"").repeat(100),
            300,
        ),
        (
            "an HPACK bomb",
            with(frame(HEADERS, END_HEADERS, 1, &bomb)),
            frame(HEADERS, END_HEADERS, 1, &vec![0xbe; 16_000]),
            1_000,
        ),
        (
            "resets",
            hello.clone(),
            frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]).repeat(100),
            300,
        ),
        (
            "resets of every stream",
            hello.clone(),
            (0..100u32)
                .flat_map(|i| frame(RST_STREAM, 0, 2 * i + 1, &[0, 0, 0, 7]))
                .collect(),
            300,
        ),
        (
            "GOAWAY over and over",
            hello.clone(),
            frame(GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]).repeat(100),
            300,
        ),
        (
            "GOAWAY at once",
            with(frame(GOAWAY, 0, 0, &[0; 8])),
            Vec::new(),
            0,
        ),
        (
            "GOAWAY with a megabyte of reasons",
            hello.clone(),
            frame(GOAWAY, 0, 0, &[b'x'; 16_000]),
            100,
        ),
        ("SETTINGS", hello.clone(), hello.repeat(100), 300),
        (
            "PING",
            hello.clone(),
            frame(PING, 0, 0, &[1; 8]).repeat(100),
            300,
        ),
        (
            "pushes",
            hello.clone(),
            frame(
                PUSH_PROMISE,
                END_HEADERS,
                1,
                &[0, 0, 0, 2, 0x82, 0x86, 0x84],
            )
            .repeat(10),
            100,
        ),
        (
            "empty DATA",
            with(frame(HEADERS, END_HEADERS, 1, &answer)),
            frame(DATA, 0, 1, b"").repeat(100),
            300,
        ),
        (
            "DATA beyond the window",
            with(frame(HEADERS, END_HEADERS, 1, &answer)),
            frame(DATA, 0, 1, &[b'x'; 16_000]),
            4_000,
        ),
        (
            "windows that overflow",
            hello.clone(),
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            100,
        ),
        (
            "no streams at all",
            frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]),
            Vec::new(),
            0,
        ),
        (
            "frames of another kind",
            hello.clone(),
            frame(0xbb, 0, 1, &[0; 1000]),
            10_000,
        ),
        (
            "HTTP/1.1",
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            Vec::new(),
            0,
        ),
    ]
}

type Cases = Vec<Pin<Box<dyn Future<Output = ()>>>>;

async fn five_at_a_time(cases: Cases) {
    let together = async {
        let mut running = JoinSet::new();
        for case in cases {
            if running.len() == 5 {
                running.join_next().await.unwrap().unwrap();
            }
            running.spawn_local(case);
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
    };
    tokio::task::LocalSet::new().run_until(together).await;
}

/// The shim is live and its own ports answer while it deals with it.
async fn is_well(process: &Process, what: &str) {
    for _ in 0..3 {
        let answer = ask(process.admin, "/livez").await;
        let well = answer.as_ref().is_ok_and(|a| a.starts_with("HTTP/1.1 200"));
        assert!(well, "{what}: {answer:?}");
        process.is_bounded(what);
    }
    let loud = process.log().len();
    assert!(loud < 300, "{what}: {loud} lines of log");
}

/// A server that is hostile on its gRPC port, towards the probes, a control and a data connection.
#[tokio::test]
async fn a_hostile_grpc_server_harms_only_the_calls_to_it() {
    let mut cases: Cases = Vec::new();
    for (name, first, then, times) in http2() {
        cases.push(Box::pin(async move {
            let what = format!("a server that sends {name}");
            let evil = Evil::start(first, then, times).await;
            let good = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
            let settings = [
                ("SHIM_INFERENCE_HOSTS", "127.0.0.1".to_string()),
                ("SHIM_INFERENCE_HTTP_PORT", good.http().port().to_string()),
                ("SHIM_INFERENCE_GRPC_PORT", evil.address.port().to_string()),
            ];
            let settings: Vec<_> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
            let process = Process::start(&settings).await;
            let calls = async {
                for path in ["RepositoryIndex", "RepositoryModelLoad", "ModelInfer"] {
                    let mut caller = grpc::Client::connect(process.grpc).await;
                    let limit = Duration::from_millis(700);
                    let _ = tokio::time::timeout(limit, caller.call(path, b"x")).await;
                }
            };
            calls.await;
            is_well(&process, &what).await;
            // HTTP is served all the while: the other protocol is another matter.
            eventually(&format!("HTTP to be served before {what}"), async || {
                let said = ask(process.http, "/headers").await.unwrap();
                said.starts_with("HTTP/1.1 200").then_some(())
            })
            .await;
            // Dialled by probes and callers, not in a tight loop.
            let dials = evil.taken.load(Ordering::Relaxed);
            assert!(dials < 60, "{what}: {dials} connections");
        }));
    }
    five_at_a_time(cases).await;
}

/// A scheduler that is hostile towards the agent's calls and the reader of its belief.
#[tokio::test]
async fn a_hostile_scheduler_harms_only_the_calls_to_it() {
    let good = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let mut cases: Cases = Vec::new();
    for (name, first, then, times) in http2() {
        let (http, grpc_port) = (good.http(), good.grpc());
        cases.push(Box::pin(async move {
            let what = format!("a scheduler that sends {name}");
            let evil = Evil::start(first, then, times).await;
            let address = evil.address.to_string();
            let settings = [
                ("SHIM_SCHEDULER", &*address),
                ("SHIM_SCHEDULER_STATUS", &address),
            ];
            let process = Process::before(http, grpc_port, &settings).await;
            let agent = process.agent.unwrap();
            let mut callers = Vec::new();
            for method in ["Subscribe", "AgentEvent", "Other"] {
                let block = call(&format!("/seldon.mlops.agent.AgentService/{method}"));
                let bytes = [
                    opening(),
                    frame(HEADERS, END_HEADERS, 1, &block),
                    frame(DATA, END_STREAM, 1, &[0; 5]),
                ];
                callers.push(deaf(agent, &bytes.concat()).await);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            is_well(&process, &what).await;
            drop(callers);
            let said = ask(process.http, "/headers").await.unwrap();
            assert!(said.starts_with("HTTP/1.1 200"), "{what}: {said}");
            let dials = evil.taken.load(Ordering::Relaxed);
            assert!(dials < 60, "{what}: {dials} connections");
        }));
    }
    five_at_a_time(cases).await;
}

/// A server that is hostile on its HTTP port.
#[tokio::test]
async fn a_hostile_http_server_harms_only_the_calls_to_it() {
    let head = b"HTTP/1.1 200 OK\r\n".to_vec();
    let mut cases: Cases = Vec::new();
    for (name, first, then, times) in [
        (
            "an endless head",
            head.clone(),
            b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(100),
            10_000,
        ),
        (
            "an endless header",
            [&head[..], b"x: "].concat(),
            vec![b'y'; 64 * 1024],
            1_000,
        ),
        (
            "an endless status line",
            b"HTTP/1.1 200 ".to_vec(),
            vec![b'y'; 64 * 1024],
            1_000,
        ),
        (
            "interim answers without an end",
            Vec::new(),
            b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100),
            usize::MAX,
        ),
        (
            "early hints without an end",
            Vec::new(),
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(100),
            usize::MAX,
        ),
        (
            "an endless chunk extension",
            [&head[..], b"transfer-encoding: chunked\r\n\r\n1;"].concat(),
            vec![b'y'; 64 * 1024],
            1_000,
        ),
        (
            "endless trailers",
            [&head[..], b"transfer-encoding: chunked\r\n\r\n0\r\n"].concat(),
            b"x: y\r\n".repeat(1_000),
            1_000,
        ),
        (
            "an endless body",
            [&head[..], b"content-length: 99999999999\r\n\r\n"].concat(),
            vec![b'y'; 64 * 1024],
            1_000,
        ),
        (
            "a chunk of 2^64",
            [
                &head[..],
                b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            ]
            .concat(),
            vec![b'y'; 64 * 1024],
            1_000,
        ),
        (
            "answers without a question",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".repeat(1000),
            Vec::new(),
            0,
        ),
        (
            "garbage",
            Vec::new(),
            b"\xde\xad\xbe\xef".repeat(1000),
            1_000,
        ),
    ] {
        cases.push(Box::pin(async move {
            let what = format!("an HTTP server that sends {name}");
            let evil = Evil::start(first, then, times).await;
            let good = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
            let settings = [
                ("SHIM_INFERENCE_HOSTS", "127.0.0.1".to_string()),
                ("SHIM_INFERENCE_HTTP_PORT", evil.address.port().to_string()),
                ("SHIM_INFERENCE_GRPC_PORT", good.grpc().port().to_string()),
            ];
            let settings: Vec<_> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
            let process = Process::start(&settings).await;
            for path in ["/v2/models/m/infer", "/v2/repository/index", "/v2/repository/models/m/load"] {
                let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let limit = Duration::from_millis(700);
                let _ = tokio::time::timeout(limit, say(process.http, head.as_bytes())).await;
                process.is_bounded(&what);
            }
            is_well(&process, &what).await;
            let mut caller = grpc::Client::connect(process.grpc).await;
            eventually(&format!("gRPC to be served before {what}"), async || {
                let answer = caller.call("ModelInfer", b"x").await.ok()?;
                (answer.status().0 == 0).then_some(())
            })
            .await;
            let dials = evil.taken.load(Ordering::Relaxed);
            assert!(dials < 60, "{what}: {dials} connections");
        }));
    }
    five_at_a_time(cases).await;
}

/// What an HTTP/2 server says that keeps to the protocol and never ends an answer.
type Endless = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>>;

/// Healthy; a load and an event get bytes for as long as they are taken.
async fn endless() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut accepting = JoinSet::new();
    accepting.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let path = request.uri().path();
                let endless = path.ends_with("Load") || path.ends_with("AgentEvent");
                let body: Endless = StreamBody::new(if !endless {
                    let yes = Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]);
                    let mut ok = http::HeaderMap::new();
                    ok.insert("grpc-status", http::HeaderValue::from_static("0"));
                    Box::pin(tokio_stream::iter([
                        Ok(Frame::data(yes)),
                        Ok(Frame::trailers(ok)),
                    ]))
                } else {
                    let piece = Bytes::from(vec![0x7f; 16 * 1024]);
                    Box::pin(tokio_stream::iter(std::iter::repeat_with(move || {
                        Ok(Frame::data(piece.clone()))
                    })))
                });
                let answer = Response::builder().header("content-type", "application/grpc");
                Ok::<_, Infallible>(answer.body(body).unwrap())
            });
            let io = TokioIo::new(stream);
            connections.spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service),
            );
        }
    });
    (address, accepting)
}

/// An answer without an end is not read to its end, where it is read at all.
#[tokio::test]
async fn an_endless_answer_to_a_load_fails_that_load() {
    let good = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let (evil, _accepting) = endless().await;
    let process = Process::before(good.http(), evil, &[]).await;
    let mut caller = grpc::Client::connect(process.grpc).await;
    // `model_name` is field 2.
    let load = b"\x12\x04iris";
    let mut load = Box::pin(caller.call("RepositoryModelLoad", load));
    let said = tokio::select! {
        said = &mut load => said.unwrap(),
        () = async {
            loop {
                process.is_bounded("an endless answer to a load");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        } => unreachable!(),
    };
    assert!(said.status().1.contains("more than"), "{said:?}");
    process.is_bounded("an endless answer to a load");
}

/// The same of a scheduler: the event is sent again, within bounds, and the agent hears in the end.
#[tokio::test]
async fn an_endless_answer_to_an_event_is_no_answer() {
    let good = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let (evil, _accepting) = endless().await;
    let scheduler = evil.to_string();
    let process =
        Process::before(good.http(), good.grpc(), &[("SHIM_SCHEDULER", &scheduler)]).await;
    let block = [
        call("/seldon.mlops.agent.AgentService/AgentEvent"),
        literal("grpc-timeout", "3S"),
    ]
    .concat();
    let bytes = [
        opening(),
        frame(HEADERS, END_HEADERS, 1, &block),
        frame(DATA, END_STREAM, 1, &[0; 5]),
    ];
    let heard = async {
        let pieces = std::iter::once(bytes.concat());
        flood(process.agent.unwrap(), pieces, Duration::from_secs(30)).await
    };
    tokio::pin!(heard);
    eventually("the event to be given up", async || {
        process.is_bounded("an endless answer to an event");
        let lost = |line: &String| line.contains("could not be delivered to the scheduler");
        tokio::select! {
            _ = &mut heard => panic!("the connection was closed"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
        process.log().iter().any(lost).then_some(())
    })
    .await;
}
