//! Both ends of a call with nothing in between that interprets it: bytes, headers, trailers, resets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::support::LIMIT;

pub const SUBSCRIBE: &str = "/seldon.mlops.agent.AgentService/Subscribe";
pub const EVENT: &str = "/seldon.mlops.agent.AgentService/AgentEvent";
pub const DRAIN: &str = "/seldon.mlops.agent.AgentService/AgentDrain";

/// A body that the test feeds; dropping the sender without trailers ends it.
pub struct Fed(mpsc::UnboundedReceiver<Frame<Bytes>>);
pub type Feeder = mpsc::UnboundedSender<Frame<Bytes>>;

pub fn fed() -> (Feeder, Fed) {
    let (feeder, frames) = mpsc::unbounded_channel();
    (feeder, Fed(frames))
}

impl Body for Fed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.get_mut().0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// One call as it reached the scheduler.
pub struct Call {
    pub head: request::Parts,
    pub body: Incoming,
    answer: oneshot::Sender<Response<Fed>>,
}

impl Call {
    pub async fn whole(&mut self) -> Bytes {
        within((&mut self.body).collect()).await.unwrap().to_bytes()
    }

    /// Answers with these headers; the body is fed by the test.
    pub fn answer(self, headers: HeaderMap) -> (Feeder, Incoming) {
        let (feeder, fed) = fed();
        let mut response = Response::new(fed);
        *response.headers_mut() = headers;
        assert!(self.answer.send(response).is_ok(), "the caller has gone");
        (feeder, self.body)
    }

    pub fn status(self, code: &str) {
        let (feeder, _) = self.answer(grpc_headers());
        feeder
            .send(Frame::trailers(headers(&[("grpc-status", code)])))
            .unwrap();
    }

    /// Completes when the caller cancels before it was answered.
    pub async fn cancelled(mut self) {
        within(self.answer.closed()).await;
    }
}

/// A scheduler that hands each call to the test.
pub struct RawScheduler {
    pub address: SocketAddr,
    pub calls: mpsc::UnboundedReceiver<Call>,
    _tasks: JoinSet<()>,
}

impl RawScheduler {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, calls) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let sender = sender.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let (answer, answered) = oneshot::channel();
                        sender.send(Call { head, body, answer }).unwrap();
                        answered.await
                    }
                });
                connections.spawn(async move {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        RawScheduler {
            address,
            calls,
            _tasks: tasks,
        }
    }

    pub async fn call(&mut self) -> Call {
        within(self.calls.recv()).await.unwrap()
    }
}

/// An agent that sends whatever the test says.
pub struct RawAgent {
    sender: SendRequest<Fed>,
    _task: JoinSet<()>,
}

impl RawAgent {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::with_window(address, None).await
    }

    /// One that takes no more of an answer than this until it reads.
    pub async fn with_window(address: SocketAddr, window: Option<u32>) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let _ = connection.await;
        });
        RawAgent {
            sender,
            _task: task,
        }
    }

    /// Begins a call; the answer comes when the far side gives it.
    pub fn call(
        &self,
        path: &str,
        more: &[(&str, &str)],
    ) -> (
        Feeder,
        impl Future<Output = hyper::Result<Response<Incoming>>> + Send + 'static,
    ) {
        let (feeder, fed) = fed();
        let mut request = Request::post(format!("http://agent{path}"))
            .body(fed)
            .unwrap();
        *request.headers_mut() = grpc_headers();
        request.headers_mut().extend(headers(more));
        let mut sender = self.sender.clone();
        (feeder, async move { sender.send_request(request).await })
    }

    /// A call with one message.
    pub fn unary(
        &self,
        path: &str,
        body: Bytes,
        more: &[(&str, &str)],
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + Send + 'static {
        let (feeder, answer) = self.call(path, more);
        feeder.send(Frame::data(body)).unwrap();
        answer
    }
}

/// An agent whose subscription stands: the scheduler's end of it, which sends operations and hears
/// of the agent's end, and the agent's.
pub async fn standing(
    agent: &RawAgent,
    scheduler: &mut RawScheduler,
    request: Bytes,
) -> (Feeder, Incoming, Incoming) {
    let subscribing = tokio::spawn(agent.unary(SUBSCRIBE, request, &[]));
    let (operations, body) = scheduler.call().await.answer(grpc_headers());
    let stream = within(subscribing).await.unwrap().unwrap().into_body();
    (operations, body, stream)
}

pub fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pairs = pairs.iter().map(|(name, value)| {
        let name: http::HeaderName = name.parse().unwrap();
        (name, value.parse().unwrap())
    });
    pairs.collect()
}

pub fn grpc_headers() -> HeaderMap {
    headers(&[("content-type", "application/grpc"), ("te", "trailers")])
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .expect("not within the limit")
}

/// The whole body and the trailers of an answer.
pub async fn read(response: Response<Incoming>) -> (Bytes, HeaderMap) {
    let collected = within(response.into_body().collect()).await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    (collected.to_bytes(), trailers)
}

/// The next bytes of a stream.
pub async fn next(body: &mut Incoming) -> Bytes {
    let frame = within(body.frame()).await.unwrap().unwrap();
    frame.into_data().expect("data, not trailers")
}
