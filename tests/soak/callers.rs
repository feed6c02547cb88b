//! The load: small and big calls of both protocols, streams, control calls, connections that come
//! and go, and everybody who asks the admin port. Each caller opens a new connection when its old
//! one is no good, as real ones do, and never sends a call again.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::ledger::{End, Ledger};

/// Longer than any fault lasts: who has no end by then hangs.
const BOUND: Duration = Duration::from_secs(30);
const BIG: usize = 16 << 20;

type Body = BoxBody<Bytes, std::convert::Infallible>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where the shim's ports are.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
}

/// Starts all of them; they end when the set is dropped.
pub fn start(tasks: &mut JoinSet<()>, ports: Ports, ledger: &Ledger) {
    let ms = Duration::from_millis;
    let every = |kind, pause, call| Caller {
        kind,
        pause,
        call,
        ports,
        ledger: ledger.clone(),
    };
    for _ in 0..4 {
        tasks.spawn(every("http small", ms(40), Call::Echo(200)).run());
        tasks.spawn(every("grpc small", ms(40), Call::Infer(200)).run());
    }
    tasks.spawn(every("http infer", ms(50), Call::InferHttp).run());
    tasks.spawn(every("http 1 MiB", ms(500), Call::Echo(1 << 20)).run());
    tasks.spawn(every("http 16 MiB up", ms(4000), Call::Sink).run());
    tasks.spawn(every("http 16 MiB down", ms(4000), Call::Large).run());
    tasks.spawn(every("grpc 4 MiB", ms(2000), Call::Infer(4 << 20)).run());
    for _ in 0..2 {
        tasks.spawn(every("grpc stream", ms(200), Call::Stream).run());
    }
    tasks.spawn(every("grpc live", ms(1000), Call::Live).run());
    tasks.spawn(come_and_go(ports, ledger.clone()));
    tasks.spawn(crowds(ports));
    for (path, pause) in [
        ("/metrics", 1000),
        ("/status", 1000),
        ("/readyz", 500),
        ("/livez", 500),
    ] {
        tasks.spawn(asking(ports.admin, path, ms(pause), ledger.clone()));
    }
}

#[derive(Debug, Clone, Copy)]
enum Call {
    Echo(usize),
    InferHttp,
    Sink,
    Large,
    Infer(usize),
    Stream,
    Live,
}

struct Caller {
    kind: &'static str,
    pause: Duration,
    call: Call,
    ports: Ports,
    ledger: Ledger,
}

enum Line {
    Http(http1::SendRequest<Body>),
    Grpc(http2::SendRequest<Body>),
}

impl Line {
    async fn open(to: SocketAddr, grpc: bool, tasks: &mut JoinSet<()>) -> Result<Line, Failure> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        while tasks.try_join_next().is_some() {}
        if grpc {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tasks.spawn(async move { drop(connection.await) });
            Ok(Line::Grpc(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            tasks.spawn(async move { drop(connection.await) });
            Ok(Line::Http(sender))
        }
    }

    async fn ready(&mut self) -> bool {
        match self {
            Line::Http(line) => line.ready().await.is_ok(),
            Line::Grpc(line) => line.ready().await.is_ok(),
        }
    }

    /// Status, body, and trailers where they are apart.
    async fn send(&mut self, request: Request<Body>) -> Result<(u16, Bytes, HeaderMap), Failure> {
        let response = match self {
            Line::Http(line) => line.send_request(request).await?,
            Line::Grpc(line) => line.send_request(request).await?,
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        let mut further = head.headers;
        further.extend(body.trailers().cloned().unwrap_or_default());
        Ok((head.status.as_u16(), body.to_bytes(), further))
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// A gRPC message with its head.
fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

/// Bytes that belong to this call and no other.
fn content(number: u64, len: usize) -> Vec<u8> {
    let mut all = format!("call {number} ").into_bytes();
    all.resize(len.max(all.len()), b'.');
    all
}

impl Caller {
    async fn run(self) {
        let grpc = matches!(self.call, Call::Infer(_) | Call::Stream | Call::Live);
        let to = if grpc {
            self.ports.grpc
        } else {
            self.ports.http
        };
        let mut tasks = JoinSet::new();
        let mut line: Option<(Line, u64)> = None;
        loop {
            sleep(self.pause).await;
            let number = self.ledger.number();
            // One whose server has ended it while it was idle is no good, and nothing is sent.
            if let Some((open, _)) = &mut line
                && !open.ready().await
            {
                line = None;
            }
            let (mut open, opened) = match line.take() {
                Some(open) => open,
                None => {
                    let weather = self.ledger.weather();
                    match timeout(BOUND, Line::open(to, grpc, &mut tasks)).await {
                        Ok(Ok(open)) => (open, weather),
                        Ok(Err(error)) => {
                            let end = End::Failed(format!("connect: {error}"));
                            self.ledger.ended(self.kind, number, weather, &end);
                            continue;
                        }
                        Err(_) => {
                            self.ledger.ended(self.kind, number, weather, &End::Hung);
                            continue;
                        }
                    }
                }
            };
            // Calls over a connection from before this weather are not judged by it.
            let now = self.ledger.weather();
            let end = match timeout(BOUND, open.send(self.request(number))).await {
                Err(_) => End::Hung,
                Ok(Err(error)) => End::Failed(chain(&*error)),
                Ok(Ok(answer)) => self.judge(number, answer),
            };
            self.ledger.ended(self.kind, number, opened, &end);
            if matches!(end, End::Ok) {
                line = Some((open, now));
            }
        }
    }

    fn request(&self, number: u64) -> Request<Body> {
        let request = Request::builder().header("x-soak-id", number);
        let http = |method: &str, path: &str, body: Body| {
            let request = request.header("host", "soak").method(method).uri(path);
            request.body(body)
        };
        let request = match self.call {
            Call::Echo(len) => http("POST", "/echo", full(content(number, len))),
            Call::InferHttp => http("POST", "/v2/models/iris/infer", full("{}")),
            Call::Sink => http("POST", "/sink", full(content(number, BIG))),
            Call::Large => http("GET", &format!("/large?bytes={BIG}"), full("")),
            Call::Infer(_) | Call::Stream | Call::Live => {
                let (method, body) = match self.call {
                    Call::Infer(len) => ("ModelInfer", full(framed(&content(number, len)))),
                    Call::Live => ("ServerLive", full(framed(b""))),
                    _ => ("ModelStreamInfer", slow_messages(number)),
                };
                Request::builder()
                    .method("POST")
                    .uri(format!(
                        "http://soak/inference.GRPCInferenceService/{method}"
                    ))
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .header("x-soak-id", number)
                    .body(body)
            }
        };
        request.expect("a request of fixed parts")
    }

    fn judge(&self, number: u64, (status, body, further): (u16, Bytes, HeaderMap)) -> End {
        let text = |name: &str| {
            further
                .get(name)
                .and_then(|v| v.to_str().ok())
                .unwrap_or("")
        };
        let start = || String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        if status != 200 {
            let said = start();
            return match said.contains("agent-shim: ") {
                true => End::ByShim(said),
                false => End::Failed(format!("{status}: {said}")),
            };
        }
        let expected: Option<Vec<u8>> = match self.call {
            Call::Echo(len) => Some(content(number, len)),
            Call::Sink => Some(format!(r#"{{"bytes":{BIG}}}"#).into_bytes()),
            Call::Infer(len) => Some(framed(&content(number, len)).to_vec()),
            Call::Stream => Some(messages(number).concat()),
            Call::Live => Some(framed(&[8, 1]).to_vec()),
            Call::InferHttp | Call::Large => None,
        };
        if matches!(self.call, Call::Infer(_) | Call::Stream | Call::Live)
            && text("grpc-status") != "0"
        {
            let said = text("grpc-message").to_string();
            return match said.starts_with("agent-shim") {
                true => End::ByShim(said),
                false => End::Failed(format!("status {}: {said}", text("grpc-status"))),
            };
        }
        match expected {
            // A server that is down is said not to be live.
            Some(_) if matches!(self.call, Call::Live) && body.len() == 5 => {
                End::ByShim("live=false".into())
            }
            Some(expected) if body != expected => End::Wrong(start()),
            None if matches!(self.call, Call::Large) && body.len() != BIG => {
                End::Wrong(format!("{} bytes", body.len()))
            }
            _ => End::Ok,
        }
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

fn messages(number: u64) -> Vec<Vec<u8>> {
    (0..20)
        .map(|n| framed(&content(number * 100 + n, 100)).to_vec())
        .collect()
}

fn slow_messages(number: u64) -> Body {
    let (send, receive) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for message in messages(number) {
            sleep(Duration::from_millis(50)).await;
            if send.send(Ok(Frame::data(message.into()))).await.is_err() {
                return;
            }
        }
    });
    BoxBody::new(StreamBody::new(
        tokio_stream::wrappers::ReceiverStream::new(receive),
    ))
}

/// Callers who connect, say a part of something, and are gone.
async fn come_and_go(ports: Ports, _ledger: Ledger) {
    use tokio::io::AsyncWriteExt;
    let parts: [&[u8]; 5] = [
        b"",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf",
        b"GET /large?bytes=100000 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01 nonsense",
    ];
    for n in 0_usize.. {
        for to in [ports.http, ports.grpc] {
            if let Ok(mut stream) = TcpStream::connect(to).await {
                // Who does not listen either is the point of it.
                let _ = stream.write_all(parts[n % parts.len()]).await;
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// From time to time many callers at once, who call once and stay a while.
async fn crowds(ports: Ports) {
    loop {
        let mut crowd = Vec::new();
        for _ in 0..200 {
            crowd.push(TcpStream::connect(ports.http).await);
            crowd.push(TcpStream::connect(ports.grpc).await);
        }
        sleep(Duration::from_secs(3)).await;
        drop(crowd);
        sleep(Duration::from_secs(17)).await;
    }
}

/// One who asks the admin port again and again: it always answers, within 5 s.
async fn asking(admin: SocketAddr, path: &'static str, pause: Duration, ledger: Ledger) {
    loop {
        sleep(pause).await;
        let opened = ledger.weather();
        let number = ledger.number();
        let end = match ask(admin, path).await.map(|(code, _)| code) {
            Some(200) => End::Ok,
            Some(503) if path == "/readyz" => End::ByShim("not ready".into()),
            Some(code) => End::Failed(format!("{path} answered {code}")),
            None => End::Failed(format!("{path} did not answer")),
        };
        ledger.ended("admin", number, opened, &end);
        if path == "/livez" && !matches!(end, End::Ok) {
            ledger.violation(format!(
                "kubelet would restart the shim: no good answer from {path}"
            ));
        }
    }
}

/// Status code and body of the answer to one question.
pub async fn ask(admin: SocketAddr, path: &str) -> Option<(u16, Bytes)> {
    let asked = async {
        let mut tasks = JoinSet::new();
        let mut line = Line::open(admin, false, &mut tasks).await.ok()?;
        let request = Request::get(path).header("host", "soak").body(full(""));
        let (code, body, _) = line.send(request.ok()?).await.ok()?;
        Some((code, body))
    };
    timeout(Duration::from_secs(5), asked).await.ok().flatten()
}
