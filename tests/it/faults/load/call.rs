//! One call of each kind over a connection, and what came of it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

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

use super::super::ledger::{Fate, Kind, Ledger};
use super::super::server::ID;
use super::{CALLER, PACE};
use crate::support::grpc::{SERVICE, framed};

type Body = BoxBody<Bytes, Infallible>;

/// The size of what a large call carries, in both directions.
const LARGE: usize = 600 << 10;

/// A caller's connection.
pub struct Connection {
    sender: Sender,
    _task: JoinSet<()>,
}

enum Sender {
    Http(http1::SendRequest<Body>),
    Grpc(http2::SendRequest<Body>),
}

impl Connection {
    /// Opens one as this kind of call wants it.
    pub async fn open(
        kind: Kind,
        to: SocketAddr,
        ledger: &Arc<Ledger>,
    ) -> Result<Connection, Fate> {
        match kind {
            Kind::HttpUnary | Kind::HttpLarge => http(to, ledger).await,
            Kind::GrpcUnary | Kind::GrpcLarge | Kind::GrpcStream => grpc(to, ledger).await,
        }
    }

    /// Whether another call can be made over it, after one that came to this.
    pub fn serves_after(&self, fate: &Fate) -> bool {
        match &self.sender {
            Sender::Http(sender) => *fate == Fate::Served && !sender.is_closed(),
            Sender::Grpc(sender) => {
                !matches!(fate, Fate::Broken(_) | Fate::Hung | Fate::NotSent) && !sender.is_closed()
            }
        }
    }

    pub async fn call(&mut self, kind: Kind, id: u64, stop: &mut watch::Receiver<bool>) -> Fate {
        match &mut self.sender {
            Sender::Http(sender) => bounded(web_call(sender, kind, id)).await,
            Sender::Grpc(sender) if kind == Kind::GrpcStream => stream_call(sender, id, stop).await,
            Sender::Grpc(sender) => bounded(unary_call(sender, kind, id)).await,
        }
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    BoxBody::new(Full::new(bytes.into()))
}

async fn connect(to: SocketAddr) -> Result<TcpStream, Fate> {
    let stream = TcpStream::connect(to).await;
    let stream = stream.map_err(|error| Fate::NotConnected(error.to_string()))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
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

async fn http(to: SocketAddr, ledger: &Arc<Ledger>) -> Result<Connection, Fate> {
    let stream = connect(to).await?;
    let made = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = made.map_err(|e| broken(&e))?;
    let sender = Sender::Http(sender);
    Ok(driven(sender, connection, ledger.clone()))
}

async fn grpc(to: SocketAddr, ledger: &Arc<Ledger>) -> Result<Connection, Fate> {
    let stream = connect(to).await?;
    let made = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = made.map_err(|e| broken(&e))?;
    let sender = Sender::Grpc(sender);
    Ok(driven(sender, connection, ledger.clone()))
}

/// What the end of a connection says of the far side: that it has sent what nobody asked for, or what
/// is no answer. That it has gone is no news here: the call that was met says so.
fn unasked(error: &hyper::Error) -> bool {
    // There is no other way to tell it from the rest.
    let answers_too_many = error.to_string().contains("unexpected message");
    let h2 = std::error::Error::source(error).and_then(|e| e.downcast_ref::<h2::Error>());
    let not_in_order = h2.is_some_and(|h2| {
        let reason = h2.reason().filter(|r| *r != h2::Reason::NO_ERROR);
        h2.is_library() && reason.is_some()
    });
    answers_too_many || error.is_parse() || not_in_order
}

fn driven(
    sender: Sender,
    connection: impl Future<Output = hyper::Result<()>> + Send + 'static,
    ledger: Arc<Ledger>,
) -> Connection {
    let mut task = JoinSet::new();
    task.spawn(async move {
        if let Err(error) = connection.await
            && unasked(&error)
        {
            ledger.unasked(format!("{error}: {error:?}"));
        }
    });
    Connection {
        sender,
        _task: task,
    }
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

/// A call that ends by itself.
async fn bounded(call: impl Future<Output = Fate>) -> Fate {
    timeout(CALLER, call).await.unwrap_or(Fate::Hung)
}

/// The next message of a stream, which may go on for as long as it likes.
async fn soon(answer: &mut Answer) -> Result<Option<Bytes>, Fate> {
    let next = timeout(CALLER, answer.next());
    next.await.unwrap_or(Err(Fate::Hung))
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
        match soon(&mut answer).await {
            Ok(Some(got)) if got == message => {}
            Ok(Some(_)) => return Fate::Broken("another message than was sent".into()),
            Ok(None) => return answer.end().await,
            Err(fate) => return fate,
        }
        let _ = timeout(2 * PACE, stop.wait_for(|stop| *stop)).await;
    }
    drop(say);
    match soon(&mut answer).await {
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
