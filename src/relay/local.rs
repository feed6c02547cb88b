//! The shim's own HTTP/2 service for connections that are not carried as bytes: answers health,
//! says honestly that the server is down, and passes every other call on, streaming both ways.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::Context;
use super::answer::{self, Answered, Question};
use super::connect::connect;

const LIVE: &str = "/inference.GRPCInferenceService/ServerLive";
const READY: &str = "/inference.GRPCInferenceService/ServerReady";

/// Serves one connection until it ends.
pub async fn serve(stream: UnixStream, context: Context) {
    let calls = Arc::new(Calls {
        context,
        server: Mutex::new(None),
    });
    let service = service_fn(move |request| {
        let calls = calls.clone();
        async move { Ok::<_, Infallible>(calls.handle(request).await) }
    });
    // An error here is the caller's connection going away; each call has had its own answer.
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

struct Calls {
    context: Context,
    server: Mutex<Option<Server>>,
}

struct Server {
    sender: SendRequest<Relayed>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Closes the connection, so that a caller's going away reaches the server.
        self.task.abort();
    }
}

impl Calls {
    async fn handle(&self, request: Request<Incoming>) -> Response<Relayed> {
        let question = match request.uri().path() {
            LIVE => Some(Question::Live),
            READY => Some(Question::Ready),
            _ => None,
        };
        if let Some(question) = question {
            let (message, trailers) = answer::grpc_health(&self.context, question);
            let mut response = Response::new(Relayed::Own(Some(message), Some(trailers)));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            return response;
        }
        let changes = ["/RepositoryModelLoad", "/RepositoryModelUnload"]
            .iter()
            .any(|method| request.uri().path().ends_with(method));
        let response = self.forward(request).await;
        if changes {
            self.context.poke.now();
        }
        response
    }

    async fn forward(&self, request: Request<Incoming>) -> Response<Relayed> {
        let mut sender = match self.sender().await {
            Ok(sender) => sender,
            Err(why) => return self.unavailable(&why),
        };
        let (mut head, body) = request.into_parts();
        head.version = Version::HTTP_2;
        self.context.metrics.calls.inc();
        match sender
            .send_request(Request::from_parts(head, Relayed::Passed(body)))
            .await
        {
            Ok(response) => response.map(Relayed::Passed),
            Err(error) => {
                self.context.watching.hints.probe_now(self.context.protocol);
                let why = format!(
                    "the inference server broke the connection before it answered ({})",
                    crate::prober::connect::innermost(&error)
                );
                self.unavailable(&why)
            }
        }
    }

    fn unavailable(&self, why: &str) -> Response<Relayed> {
        self.context.metrics.answered(Answered::Unavailable);
        let mut response = Response::new(Relayed::Own(None, None));
        *response.headers_mut() = answer::grpc_unavailable(why);
        response
            .headers_mut()
            .insert(answer::ANSWERED, HeaderValue::from_static("unavailable"));
        response
    }

    /// A sender on this caller's own connection to the server, opened again when it has gone.
    async fn sender(&self) -> Result<SendRequest<Relayed>, String> {
        let mut server = self.server.lock().await;
        if let Some(open) = server.as_mut()
            && open.sender.ready().await.is_ok()
        {
            return Ok(open.sender.clone());
        }
        *server = None;
        let connected = connect(&self.context).await.map_err(|e| e.why)?;
        // No keep-alive pings: MLServer answers them with GOAWAY.
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(connected.stream))
            .await
            .map_err(|error| error.to_string())?;
        let task = tokio::spawn(async move {
            // Its errors are the errors of the calls on it.
            let _ = connection.await;
        });
        *server = Some(Server {
            sender: sender.clone(),
            task,
        });
        Ok(sender)
    }
}

/// A body that passes through, or one of the shim's own: at most one message, then trailers.
enum Relayed {
    Passed(Incoming),
    Own(Option<Bytes>, Option<HeaderMap>),
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Relayed::Passed(body) => Pin::new(body).poll_frame(cx),
            Relayed::Own(message, trailers) => Poll::Ready(
                message
                    .take()
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(Frame::trailers))
                    .map(Ok),
            ),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Relayed::Passed(body) => body.is_end_stream(),
            Relayed::Own(message, trailers) => message.is_none() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Relayed::Passed(body) => body.size_hint(),
            Relayed::Own(..) => SizeHint::default(),
        }
    }
}
