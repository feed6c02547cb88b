//! The shim's own HTTP/2 service for connections that are not carried as bytes: answers health,
//! says honestly that the server is down, and passes every other call on, streaming both ways.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

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
use tokio::time::timeout;

use super::Context;
use super::answer::{self, Answered, Question};
use super::connect::connect;
use super::grpc::is_control;
use super::guarded::Guarded;
use super::reserved::Held;
use crate::budget::Charge;
use crate::health::State;
use crate::view::View;

const LIVE: &str = "/inference.GRPCInferenceService/ServerLive";
const READY: &str = "/inference.GRPCInferenceService/ServerReady";

/// Why the server reset one stream; `None` where the whole connection went.
fn reset_reason(error: &hyper::Error) -> Option<h2::Reason> {
    let h2: &h2::Error = std::error::Error::source(error)?.downcast_ref()?;
    if h2.is_reset() { h2.reason() } else { None }
}

/// The gRPC status that a client makes of a reset (gRPC over HTTP/2, "Errors").
fn status_of(reason: h2::Reason) -> u16 {
    match reason {
        h2::Reason::REFUSED_STREAM => 14,
        h2::Reason::CANCEL => 1,
        h2::Reason::ENHANCE_YOUR_CALM => 8,
        h2::Reason::INADEQUATE_SECURITY => 7,
        _ => 13,
    }
}

/// What may be on its way and not yet taken, for each connection: most of what comes here is small,
/// and each of many callers could leave so much untaken.
const WINDOW: u32 = 256 * 1024;
/// Calls of one connection at a time. The agent asks for health on the connection on which its loads
/// wait, one for each call that has met a lost model, and gives up where that question has to wait
/// for them; the library's own limit is 200. What they hold is bounded by [`Charge`].
const MAX_CALLS: u32 = 4_096;

/// What a held call keeps of its caller's deadline, so that the answer still arrives.
const HOLD_MARGIN: Duration = Duration::from_secs(5);

/// The caller's deadline, as gRPC sends it: a number of at most eight digits and a unit.
pub(crate) fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // A parser of numbers would take a sign as well, and more digits than can be multiplied.
    let digits = (1..=8).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = digits.then(|| number.parse().ok()).flatten()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Serves one connection until it ends.
pub async fn serve(stream: UnixStream, context: Context) {
    let calls = Arc::new(Calls {
        context,
        server: Mutex::new(None),
    });
    let service = service_fn(move |request: Request<Incoming>| {
        let calls = calls.clone();
        // Of a caller that mixes kinds on one connection.
        let counted = (!is_control(request.uri().path())).then(|| calls.context.in_flight.one());
        async move {
            let charged = match question(request.uri().path()) {
                Some(_) => Charge::vital_call(request.headers()),
                None => Charge::call(request.headers()),
            };
            let (response, held) = match charged {
                Ok(held) => (calls.handle(request).await, Some(held)),
                Err(error) => (calls.exhausted(&error.to_string()), None),
            };
            Ok::<_, Infallible>(response.map(|body| Guarded::new(body, (counted, held))))
        }
    });
    // An error here is the caller's connection going away; each call has had its own answer.
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .auto_date_header(false)
        .max_header_list_size(super::opening::MAX_CALL_HEADERS)
        .max_concurrent_streams(MAX_CALLS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// What a call asks of the server's health.
fn question(path: &str) -> Option<Question> {
    match path {
        LIVE => Some(Question::Live),
        READY => Some(Question::Ready),
        _ => None,
    }
}

pub(super) struct Calls {
    pub(super) context: Context,
    server: Mutex<Option<Server>>,
}

struct Server {
    /// The candidate's index.
    index: usize,
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
    async fn handle(self: &Arc<Self>, request: Request<Incoming>) -> Response<Relayed> {
        if let Some(question) = question(request.uri().path()) {
            if question == Question::Live {
                self.hold(request.headers()).await;
            }
            let (message, trailers) = answer::grpc_health(&self.context, question);
            let mut response = Response::new(Relayed::Own(Some(message), Some(trailers)));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            return response;
        }
        let path = request.uri().path();
        if path.ends_with("/RepositoryModelLoad") || path.ends_with("/RepositoryModelUnload") {
            return self.change(request).await;
        }
        if path.ends_with("/RepositoryIndex") {
            return self.index(request).await;
        }
        self.forward(request.map(Relayed::Passed)).await
    }

    /// Waits for the server on behalf of a caller that has the time.
    ///
    /// The agent gives each `ServerLive` 60 s, and gives the server up after half a minute of
    /// answers with no; without the shim it would wait for a frozen server until its deadline. A
    /// held call is not counted against the server, and is answered the moment the server is up.
    async fn hold(&self, headers: &HeaderMap) {
        let context = &self.context;
        let (protocol, grace) = (context.protocol, context.grace);
        let limit = deadline(headers)
            .filter(|deadline| *deadline > 2 * HOLD_MARGIN)
            .map(|deadline| (deadline - HOLD_MARGIN).min(context.live_hold));
        if let Some(limit) = limit {
            let live = async {
                if let Some(gate) = &context.gate {
                    gate.opened().await;
                }
                let is_live = |view: &View| view.live(protocol, context.clock.now(), grace).is_ok();
                context.until(is_live).await;
            };
            // At the limit the caller gets the honest answer.
            let _ = timeout(limit, live).await;
        }
    }

    pub(super) async fn forward(&self, request: Request<Relayed>) -> Response<Relayed> {
        let mut sender = match self.sender().await {
            Ok(sender) => sender,
            Err(why) => return self.unavailable(&why),
        };
        let (mut head, body) = request.into_parts();
        head.version = Version::HTTP_2;
        self.context.metrics.calls.inc();
        match sender.send_request(Request::from_parts(head, body)).await {
            Ok(response) => response.map(Relayed::Passed),
            Err(error) if reset_reason(&error).is_some() => {
                // The server ended this one call; a caller of its own would be told the same.
                let reason = reset_reason(&error).unwrap_or(h2::Reason::INTERNAL_ERROR);
                self.context.metrics.answered(Answered::BadGateway);
                let why = format!(
                    "the inference server reset the call ({})",
                    reason.description()
                );
                let mut response = Response::new(Relayed::Own(None, None));
                *response.headers_mut() = answer::grpc_status(status_of(reason), &why);
                response
            }
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

    pub(super) fn exhausted(&self, why: &str) -> Response<Relayed> {
        self.status(answer::RESOURCE_EXHAUSTED, Answered::Unavailable, why)
    }

    pub(super) fn unavailable(&self, why: &str) -> Response<Relayed> {
        self.status(answer::UNAVAILABLE, Answered::Unavailable, why)
    }

    pub(super) fn status(&self, code: u16, answered: Answered, why: &str) -> Response<Relayed> {
        self.context.metrics.answered(answered);
        let mut response = Response::new(Relayed::Own(None, None));
        *response.headers_mut() = answer::grpc_status(code, why);
        response.headers_mut().insert(
            answer::ANSWERED,
            HeaderValue::from_static(answered.as_str()),
        );
        response
    }

    /// A sender on this caller's own connection to the server, opened again when it has gone.
    /// One to a candidate that is down takes no new calls, which would only hang; those that run
    /// on it stay, since the library ends a connection only with its last call.
    async fn sender(&self) -> Result<SendRequest<Relayed>, String> {
        let mut server = self.server.lock().await;
        let view = self.context.view();
        let is_down = |index: usize| {
            let endpoint = view.of(self.context.protocol).get(index);
            endpoint.is_none_or(|e| e.health.state == State::Down)
        };
        if let Some(open) = server.as_mut()
            && !is_down(open.index)
            && open.sender.ready().await.is_ok()
        {
            return Ok(open.sender.clone());
        }
        *server = None;
        let connected = connect(&self.context).await.map_err(|e| e.why)?;
        // No keep-alive pings: MLServer answers them with GOAWAY.
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            // A status may carry a traceback; the library's own limit is 16 KiB.
            .max_header_list_size(super::opening::MAX_HEADER_LIST)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(connected.stream))
            .await
            .map_err(|error| error.to_string())?;
        let task = tokio::spawn(async move {
            // Its errors are the errors of the calls on it.
            let _ = connection.await;
        });
        *server = Some(Server {
            index: connected.index,
            sender: sender.clone(),
            task,
        });
        Ok(sender)
    }
}

/// A body that passes through, whole or after its beginning was read, or one of the shim's own: at
/// most one message, then trailers.
pub(super) enum Relayed {
    Passed(Incoming),
    Held(Held),
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
            Relayed::Held(held) => match (held.take(), &mut held.rest) {
                (Some(frame), _) => Poll::Ready(Some(frame)),
                (None, Some(rest)) => Pin::new(rest).poll_frame(cx),
                (None, None) => Poll::Ready(None),
            },
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
            Relayed::Held(held) => {
                held.frames.is_empty() && held.rest.as_ref().is_none_or(Body::is_end_stream)
            }
            Relayed::Own(message, trailers) => message.is_none() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Relayed::Passed(body) => body.size_hint(),
            Relayed::Held(_) | Relayed::Own(..) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_told_with_the_status_that_a_client_would_make_of_it() {
        for (reason, code) in [
            (h2::Reason::REFUSED_STREAM, 14),
            (h2::Reason::CANCEL, 1),
            (h2::Reason::ENHANCE_YOUR_CALM, 8),
            (h2::Reason::INTERNAL_ERROR, 13),
            (h2::Reason::NO_ERROR, 13),
        ] {
            assert_eq!(status_of(reason), code, "{reason:?}");
        }
    }

    #[test]
    fn deadlines_are_read_in_every_unit_and_nonsense_is_none() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            deadline(&headers)
        };
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("60S", Some(Duration::from_secs(60))),
            ("59999m", Some(Duration::from_millis(59999))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("100000000S", None),
            ("S", None),
            ("18446744073709551615H", None),
            ("000000001S", None),
            ("-1S", None),
            ("+1S", None),
            ("5", None),
            ("5x", None),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
        assert_eq!(deadline(&HeaderMap::new()), None);
    }
}
