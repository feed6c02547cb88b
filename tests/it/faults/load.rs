//! Callers: HTTP and gRPC, unary, streaming and large, each call with an id of its own. They keep
//! their connections as the agent's do, and never send a call twice.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::ledger::{Fate, Kind, Ledger};
use super::server::ID;
use crate::support::grpc::{SERVICE, framed};

type Body = BoxBody<Bytes, Infallible>;

/// The long limit of a caller: one that reaches it has hung, whatever the fault.
const CALLER: Duration = Duration::from_secs(60);
/// The size of what a large call carries, in both directions.
const LARGE: usize = 600 << 10;
/// Between two calls of a caller.
const PACE: Duration = Duration::from_millis(60);
const LARGE_PACE: Duration = Duration::from_millis(400);

/// Where callers go.
#[derive(Debug, Clone, Copy)]
pub struct Targets {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
}

/// Callers at work until they are stopped.
pub struct Load {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Load {
    pub fn start(targets: Targets, ledger: &Arc<Ledger>) -> Load {
        let stop = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        for kind in [
            Kind::HttpUnary,
            Kind::HttpUnary,
            Kind::GrpcUnary,
            Kind::GrpcUnary,
            Kind::GrpcStream,
            Kind::HttpLarge,
            Kind::GrpcLarge,
        ] {
            let caller = Caller {
                kind,
                ledger: ledger.clone(),
                stop: stop.subscribe(),
            };
            match kind {
                Kind::HttpUnary | Kind::HttpLarge => tasks.spawn(caller.web(targets.http)),
                Kind::GrpcStream => tasks.spawn(caller.stream(targets.grpc)),
                Kind::GrpcUnary | Kind::GrpcLarge => tasks.spawn(caller.unary(targets.grpc)),
            };
        }
        Load { stop, tasks }
    }

    /// Lets every call that runs end, within a limit; those that do not are left without an end.
    pub async fn stop(mut self, limit: Duration) {
        self.stop.send_replace(true);
        let _ = timeout(limit, async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.unwrap();
            }
        })
        .await;
    }
}

struct Caller {
    kind: Kind,
    ledger: Arc<Ledger>,
    stop: watch::Receiver<bool>,
}

fn full(bytes: impl Into<Bytes>) -> Body {
    BoxBody::new(Full::new(bytes.into()))
}

async fn connect(to: SocketAddr) -> Result<TcpStream, Fate> {
    match timeout(CALLER, TcpStream::connect(to)).await {
        Err(_) => Err(Fate::Hung),
        Ok(Err(error)) => Err(Fate::NotConnected(error.to_string())),
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
    }
}

/// Whose fault a transport error is, in a word; a call that was not sent is no loss.
fn broken(error: &hyper::Error) -> Fate {
    if error.is_canceled() {
        return Fate::NotSent;
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(deeper) = source {
        // A server that ends a connection in order has not taken up what it does not name.
        let refused = deeper.downcast_ref::<h2::Error>().is_some_and(|h2| {
            let orderly = h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR);
            h2.is_remote() && (orderly || h2.reason() == Some(h2::Reason::REFUSED_STREAM))
        });
        if refused {
            return Fate::NotSent;
        }
        text = format!("{text}: {deeper}");
        source = deeper.source();
    }
    Fate::Broken(text)
}

impl Caller {
    fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// The pause between two calls; false when it is over.
    async fn pause(&mut self) -> bool {
        let pace = match self.kind {
            Kind::HttpLarge | Kind::GrpcLarge => LARGE_PACE,
            _ => PACE,
        };
        let _ = timeout(pace, self.stop.wait_for(|stop| *stop)).await;
        !self.stopped()
    }

    async fn bounded(&self, call: impl Future<Output = Fate>) -> Fate {
        timeout(CALLER, call).await.unwrap_or(Fate::Hung)
    }

    async fn web(mut self, to: SocketAddr) {
        let mut connection: Option<(http1::SendRequest<Body>, JoinSet<()>)> = None;
        loop {
            let id = self.ledger.begin(self.kind);
            let fate = self
                .bounded(async {
                    if connection
                        .as_ref()
                        .is_none_or(|(sender, _)| sender.is_closed())
                    {
                        connection = match http(to).await {
                            Ok(new) => Some(new),
                            Err(fate) => return fate,
                        };
                    }
                    let sender = &mut connection.as_mut().expect("made above").0;
                    web_call(sender, self.kind, id).await
                })
                .await;
            if fate != Fate::Served {
                connection = None;
            }
            self.ledger.end(id, fate);
            if !self.pause().await {
                return;
            }
        }
    }

    async fn unary(mut self, to: SocketAddr) {
        let mut connection: Option<(http2::SendRequest<Body>, JoinSet<()>)> = None;
        loop {
            let id = self.ledger.begin(self.kind);
            let fate = self
                .bounded(async {
                    if connection
                        .as_ref()
                        .is_none_or(|(sender, _)| sender.is_closed())
                    {
                        connection = match grpc(to).await {
                            Ok(new) => Some(new),
                            Err(fate) => return fate,
                        };
                    }
                    let sender = &mut connection.as_mut().expect("made above").0;
                    unary_call(sender, self.kind, id).await
                })
                .await;
            if matches!(fate, Fate::Broken(_) | Fate::Hung | Fate::NotSent) {
                connection = None;
            }
            self.ledger.end(id, fate);
            if !self.pause().await {
                return;
            }
        }
    }

    /// A stream on a connection of its own, with a message each way again and again.
    async fn stream(mut self, to: SocketAddr) {
        loop {
            let id = self.ledger.begin(self.kind);
            let mut stop = self.stop.clone();
            let fate = async {
                let (mut sender, _task) = match grpc(to).await {
                    Ok(new) => new,
                    Err(fate) => return fate,
                };
                self.bounded(stream_call(&mut sender, id, &mut stop)).await
            }
            .await;
            self.ledger.end(id, fate);
            if !self.pause().await {
                return;
            }
        }
    }
}

async fn http(to: SocketAddr) -> Result<(http1::SendRequest<Body>, JoinSet<()>), Fate> {
    let stream = connect(to).await?;
    let made = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = made.map_err(|e| broken(&e))?;
    let mut task = JoinSet::new();
    task.spawn(async move {
        let _ = connection.await;
    });
    Ok((sender, task))
}

async fn grpc(to: SocketAddr) -> Result<(http2::SendRequest<Body>, JoinSet<()>), Fate> {
    let stream = connect(to).await?;
    let made = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = made.map_err(|e| broken(&e))?;
    let mut task = JoinSet::new();
    task.spawn(async move {
        let _ = connection.await;
    });
    Ok((sender, task))
}

async fn web_call(sender: &mut http1::SendRequest<Body>, kind: Kind, id: u64) -> Fate {
    let large = kind == Kind::HttpLarge;
    let (path, body) = match large {
        true => ("/echo", Bytes::from(vec![id as u8; LARGE])),
        false => (
            "/v2/models/iris/infer",
            Bytes::from(format!("{{\"id\": \"{id}\"}}")),
        ),
    };
    let request = Request::post(path)
        .header("host", "test")
        .header(
            "content-type",
            if large {
                "application/octet-stream"
            } else {
                "application/json"
            },
        )
        .header(ID, id.to_string())
        .body(full(body.clone()))
        .unwrap();
    if let Err(error) = sender.ready().await {
        return broken(&error);
    }
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(error) => return broken(&error),
    };
    let (head, answer) = response.into_parts();
    let answer = match answer.collect().await {
        Ok(answer) => answer.to_bytes(),
        Err(error) => return broken(&error),
    };
    if head.status == 200 {
        let wanted = format!("\"id\":\"{id}\"");
        let right = match large {
            true => answer == body,
            false => answer.windows(wanted.len()).any(|w| w == wanted.as_bytes()),
        };
        return match right {
            true => Fate::Served,
            false => Fate::Broken("another answer than was asked for".into()),
        };
    }
    let text = format!("{}: {}", head.status, String::from_utf8_lossy(&answer));
    match text.contains("agent-shim") {
        true => Fate::ByShim(text),
        false => Fate::ByServer(text),
    }
}

fn call(path: &str, id: u64, body: Body) -> Request<Body> {
    Request::post(format!("http://test{SERVICE}/{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(ID, id.to_string())
        .body(body)
        .unwrap()
}

async fn unary_call(sender: &mut http2::SendRequest<Body>, kind: Kind, id: u64) -> Fate {
    let message = match kind {
        Kind::GrpcLarge => Bytes::from(vec![id as u8; LARGE]),
        _ => Bytes::from(id.to_string()),
    };
    if let Err(error) = sender.ready().await {
        return broken(&error);
    }
    let request = call("ModelInfer", id, full(framed(&message)));
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(error) => return broken(&error),
    };
    let mut answer = Answer::of(response);
    match answer.next().await {
        Ok(Some(got)) if got == message => {}
        Ok(Some(_)) => return Fate::Broken("another message than was sent".into()),
        Ok(None) => {}
        Err(fate) => return fate,
    }
    match answer.end().await {
        Fate::Served if answer.messages != 1 => Fate::Broken("no message and no error".into()),
        fate => fate,
    }
}

async fn stream_call(
    sender: &mut http2::SendRequest<Body>,
    id: u64,
    stop: &mut watch::Receiver<bool>,
) -> Fate {
    let (say, said) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(4);
    let body = BoxBody::new(StreamBody::new(ReceiverStream::new(said)));
    if let Err(error) = sender.ready().await {
        return broken(&error);
    }
    let response = match sender
        .send_request(call("ModelStreamInfer", id, body))
        .await
    {
        Ok(response) => response,
        Err(error) => return broken(&error),
    };
    let mut answer = Answer::of(response);
    let mut turn = 0u32;
    while !*stop.borrow() {
        turn += 1;
        let message = Bytes::from(format!("{id} {turn}"));
        if say.send(Ok(Frame::data(framed(&message)))).await.is_err() {
            return answer.end().await;
        }
        match answer.next().await {
            Ok(Some(got)) if got == message => {}
            Ok(Some(_)) => return Fate::Broken("another message than was sent".into()),
            Ok(None) => return answer.end().await,
            Err(fate) => return fate,
        }
        let _ = timeout(2 * PACE, stop.wait_for(|stop| *stop)).await;
    }
    drop(say);
    match answer.next().await {
        Ok(None) => answer.end().await,
        Ok(Some(_)) => Fate::Broken("a message too many".into()),
        Err(fate) => fate,
    }
}

/// The answer to a gRPC call as it comes.
struct Answer {
    response: Response<Incoming>,
    buffer: BytesMut,
    messages: usize,
    trailers: Option<http::HeaderMap>,
}

impl Answer {
    fn of(response: Response<Incoming>) -> Answer {
        Answer {
            response,
            buffer: BytesMut::new(),
            messages: 0,
            trailers: None,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Fate> {
        loop {
            if self.buffer.len() >= 5 {
                let length = (&self.buffer[1..5]).get_u32() as usize;
                if self.buffer.len() >= 5 + length {
                    self.messages += 1;
                    let mut whole = self.buffer.split_to(5 + length);
                    return Ok(Some(whole.split_off(5).freeze()));
                }
            }
            match self.response.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(&error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(other) => self.trailers = other.into_trailers().ok(),
                },
            }
        }
    }

    /// The status, after the last message.
    async fn end(&mut self) -> Fate {
        while self.trailers.is_none() {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(fate) => return fate,
            }
        }
        let of = |name| {
            let trailer = self.trailers.as_ref().and_then(|t| t.get(name));
            let value = trailer.or_else(|| self.response.headers().get(name))?;
            value.to_str().ok().map(ToString::to_string)
        };
        let message = of("grpc-message").unwrap_or_default();
        match of("grpc-status").as_deref() {
            Some("0") => Fate::Served,
            None => Fate::Broken("an answer without a status".into()),
            Some(_) if message.contains("agent-shim") => Fate::ByShim(message),
            Some(code) => Fate::ByServer(format!("{code}: {message}")),
        }
    }
}
