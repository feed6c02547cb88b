//! The HTTP/1.1 relay: health is answered here, everything else goes to the server.
//!
//! Each caller's connection has a connection to the server of its own, so no caller waits behind
//! another. It is opened at the first request and replaced when the server has closed it or
//! could be about to: MLServer closes a connection that was idle for 5 s, and a request that
//! meets that close would be lost. Bodies stream through both ways and are never looked at.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName,
    TE, TRANSFER_ENCODING,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::answer::{self, Answered, Question, http_error};
use super::caller::{Caller, Gone};
use super::connect::connect;
use super::greeting::greet;
use super::guarded::Guarded;
use super::heed::{self, Heed};
use super::reserved;
use super::splice::{Ended, Far, Splice};
use super::{Context, End};
use crate::before_answer::{BeforeAnswer, Left};
use crate::capability::gate::Gate;
use crate::config::Mode;
use crate::places::Place;
use lane::Outcome;
use paced::{Flow, Paced, Telling};

mod host;
pub(crate) mod lane;
mod paced;

/// A kept connection that has been idle for longer is not used again; MLServer closes at 5 s.
const IDLE: Duration = Duration::from_secs(4);

/// How long an answer of the shim's own waits for the body that nobody will read.
const READ_ON: Duration = Duration::from_secs(1);

/// Largest head of a request or an answer, and what of a body may wait in one direction: above
/// the 64 KiB that MLServer takes of a head, and small enough for a thousand callers at once.
const MAX_BUFFER: usize = 72 * 1024;

type Body = Either<Incoming, answer::Body>;

/// Serves one caller's connection until it ends.
pub async fn serve(stream: TcpStream, context: &Context, place: &Place) -> End {
    if context.mode == Mode::Observe {
        return observe(stream, context, place).await;
    }
    let (mut stream, before) = match greet(stream, context, place).await {
        Ok(both) => both,
        Err(end) => return end,
    };
    match lane::carry(&mut stream, before, context, place).await {
        Outcome::Ended(end) => end,
        // Boxed: most connections never get there, and would carry its room with them.
        Outcome::Unusual(before) => Box::pin(full(stream, before, context, place)).await,
    }
}

/// The full path, for good: `before` was read and is still to be taken.
async fn full(stream: TcpStream, before: Bytes, context: &Context, place: &Place) -> End {
    let metrics = &context.metrics;
    let (received, sent) = (metrics.received.clone(), metrics.sent.clone());
    let (caller, watch) = Caller::new(before, stream, received, sent);
    let server = Arc::new(Server::new(context.clone()));
    let calls = watch.clone();
    let marker = place.marker();
    let service = service_fn(move |request: Request<Incoming>| {
        let (server, under_way) = (server.clone(), (calls.under_way(), marker.call()));
        let counted = is_inference(request.uri().path()).then(|| server.context.in_flight.one());
        async move {
            let response = server.handle(request).await;
            // Under way until the last byte of the answer has been taken.
            let guard = (under_way, counted);
            Ok::<_, Infallible>(response.map(|body| Guarded::new(body, guard)))
        }
    });
    // The library's own limit for heads makes a timer for each; `watch` keeps one.
    let served = hyper::server::conn::http1::Builder::new()
        .max_buf_size(MAX_BUFFER)
        .half_close(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(caller), service);
    let ended = tokio::select! {
        ended = served => ended,
        gone = watch.gone(context.header_timeout) => return match gone {
            Gone::Closed => End::Closed,
            Gone::Silent => End::Timeout,
        },
        () = place.wanted() => return End::Closed,
    };
    match ended {
        Ok(()) => End::Closed,
        Err(error) if error.is_parse() || error.is_parse_status() => End::Malformed,
        Err(_) => End::Reset,
    }
}

/// Carries the bytes as they are.
pub(super) async fn observe(caller: TcpStream, context: &Context, place: &Place) -> End {
    // What runs on it is not known: it never gives way.
    let _call = place.marker().call();
    let Ok(connected) = connect(context).await else {
        return End::Unavailable;
    };
    let splice = Splice {
        caller,
        far: Far::Server(connected.stream),
        to_server: Vec::new(),
        to_caller: Vec::new(),
        http2: None,
        received: context.metrics.received.clone(),
        sent: context.metrics.sent.clone(),
    };
    match splice.run(std::future::pending()).await {
        Ended::Reset => End::Reset,
        Ended::Caller | Ended::Far => End::Closed,
    }
}

/// The server's side of one caller's connection.
struct Server {
    context: Context,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    sender: SendRequest<Paced>,
    flow: Flow,
    left: Left,
    used: Instant,
    /// Takes no further request.
    last: bool,
    task: JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Closes the connection, so that a caller's going away reaches the server.
        self.task.abort();
    }
}

impl Server {
    fn new(context: Context) -> Self {
        Server {
            context,
            kept: Mutex::new(None),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let question = match request.uri().path() {
            "/v2/health/live" => Some(Question::Live),
            "/v2/health/ready" => Some(Question::Ready),
            _ => None,
        };
        if let Some(question) = question {
            return if request.method() == Method::GET {
                answer::http_health(&self.context, question).map(Either::Right)
            } else {
                self.error(
                    StatusCode::METHOD_NOT_ALLOWED,
                    Answered::MethodNotAllowed,
                    "health is asked with GET",
                )
            };
        }
        let changes_models = changes_models(request.method(), request.uri().path());
        let gate = self.context.gate.as_ref();
        if gate.is_some() && reserved::names_http(request.method(), request.uri().path()) {
            return self.error(StatusCode::FORBIDDEN, Answered::Reserved, reserved::REFUSED);
        }
        let _loading = gate.filter(|_| changes_models).map(Gate::loading);
        heed::in_turn(&self.context, request.method(), request.uri().path()).await;
        let heed = Heed::before(&self.context, request.method(), request.uri().path());
        let response = if gate.is_some() && request.uri().path() == INDEX {
            self.index(request).await
        } else {
            self.forward(request).await
        };
        let kind = response.headers().get(CONTENT_TYPE);
        let is_text = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
        heed.after(response.status(), is_text);
        if changes_models {
            self.context.poke.now();
        }
        response
    }

    /// The repository index without the probe model.
    async fn index(&self, mut request: Request<Incoming>) -> Response<Body> {
        // What is compressed cannot be read.
        request.headers_mut().remove(ACCEPT_ENCODING);
        let (mut head, body) = self.forward(request).await.into_parts();
        let body = match body {
            Either::Left(body) if is_small(&body) => body,
            other => return Response::from_parts(head, other),
        };
        let bytes = match body.collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(error) => {
                let why =
                    format!("the inference server broke off its answer with the index ({error})");
                return self.error(StatusCode::BAD_GATEWAY, Answered::BadGateway, &why);
            }
        };
        let bytes = match reserved::without_json(&bytes) {
            Some(shorter) => {
                head.headers
                    .insert(CONTENT_LENGTH, HeaderValue::from(shorter.len()));
                Bytes::from(shorter)
            }
            None => bytes,
        };
        Response::from_parts(head, Either::Right(Full::new(bytes)))
    }

    fn error(&self, status: StatusCode, answered: Answered, why: &str) -> Response<Body> {
        self.context.metrics.answered(answered);
        http_error(status, answered, why).map(Either::Right)
    }

    async fn forward(&self, request: Request<Incoming>) -> Response<Body> {
        let waits = request.headers().contains_key(EXPECT);
        let mut request = match for_server(request) {
            Ok(request) => request.map(Paced::new),
            Err(why) => {
                let mut refused =
                    self.error(StatusCode::BAD_REQUEST, Answered::MethodNotAllowed, why);
                // Nothing that follows on such a connection is believed.
                let close = HeaderValue::from_static("close");
                refused.headers_mut().insert(CONNECTION, close);
                return refused;
            }
        };
        // Twice at most: a kept connection may turn out to be closed before anything was written
        // to it. What has been written is never sent again.
        for fresh in [false, true] {
            let mut server = match self.take(fresh).await {
                Ok(server) => server,
                Err(why) => {
                    if !waits {
                        read_on(request.into_body().into_inner()).await;
                    }
                    return self.error(
                        StatusCode::SERVICE_UNAVAILABLE,
                        Answered::Unavailable,
                        &why,
                    );
                }
            };
            server.left.asked();
            request.body_mut().through(&server.flow);
            match server.sender.try_send_request(request).await {
                Ok(response) => {
                    server.left.answered();
                    self.context.metrics.calls.inc();
                    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                        return self.error(
                            StatusCode::BAD_GATEWAY,
                            Answered::BadGateway,
                            "the inference server switched to another protocol, which nobody asked for",
                        );
                    }
                    server.used = Instant::now();
                    // The connection is used up where two could disagree on an answer's end.
                    server.last = !has_one_end(response.headers());
                    *self.kept() = Some(server);
                    return for_caller(response).map(Either::Left);
                }
                Err(mut unsent) => match unsent.take_message() {
                    Some(back) if !fresh => request = back,
                    _ => {
                        self.context.watching.hints.probe_now(self.context.protocol);
                        let how = if server.left.is_used_up() {
                            "said too much".into()
                        } else {
                            format!("closed the connection ({})", unsent.error())
                        };
                        let why = unanswered(&how);
                        return self.error(StatusCode::BAD_GATEWAY, Answered::BadGateway, &why);
                    }
                },
            }
        }
        self.error(
            StatusCode::BAD_GATEWAY,
            Answered::BadGateway,
            "the inference server closes new connections at once",
        )
    }

    /// The kept connection if it can be trusted, else a new one.
    async fn take(&self, fresh: bool) -> Result<Kept, String> {
        let kept = self.kept().take().filter(|_| !fresh);
        if let Some(mut kept) = kept
            && !kept.last
            && kept.used.elapsed() < IDLE
            && kept.sender.ready().await.is_ok()
        {
            return Ok(kept);
        }
        let connected = connect(&self.context).await.map_err(|e| e.why)?;
        let stream = BeforeAnswer::new(connected.stream);
        let left = stream.left();
        let flow = Flow::default();
        let stream = Telling::new(stream, flow.clone());
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let task = tokio::spawn(async move {
            // Its errors are the errors of the calls on it.
            let _ = connection.await;
        });
        Ok(Kept {
            sender,
            flow,
            left,
            used: Instant::now(),
            last: false,
            task,
        })
    }
}

/// Takes what the caller still sends, for a while: a connection that is closed with bytes unread
/// is reset, and the answer is lost with it.
async fn read_on(mut body: Incoming) {
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    // A caller that is slower than this may miss the reason; it gets its answer now.
    let _ = timeout(READ_ON, rest).await;
}

/// Why there is no answer to a request that was sent.
fn unanswered(how: &str) -> String {
    format!(
        "the inference server {how} before it answered; whether it had begun to work on the request is not known, so it was not sent again"
    )
}

const INDEX: &str = "/v2/repository/index";

/// MLServer says the length of every answer that it does not stream.
fn is_small(body: &Incoming) -> bool {
    let length = http_body::Body::size_hint(body).exact();
    length.is_some_and(|length| length <= reserved::MAX_HELD as u64)
}

/// Whether a drain waits for a call: all but health and the repository.
pub fn is_inference(path: &str) -> bool {
    !path.starts_with("/v2/health/") && !path.starts_with("/v2/repository/")
}

/// Whether a call may have changed what is loaded.
pub fn changes_models(method: &Method, path: &str) -> bool {
    method == Method::POST
        && path.starts_with("/v2/repository/models/")
        && (path.ends_with("/load") || path.ends_with("/unload"))
}

/// Headers that belong to one connection only.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "expect",
];

/// A bit for each length among them: most names differ in it already.
const LENGTHS: u32 = {
    let (mut lengths, mut i) = (0, 0);
    while i < HOP_BY_HOP.len() {
        lengths |= 1 << HOP_BY_HOP[i].len();
        i += 1;
    }
    lengths
};

/// Whether a header belongs to one connection only, whatever its case.
pub(crate) fn is_hop_by_hop(name: &str) -> bool {
    name.len() < 32
        && LENGTHS & (1 << name.len()) != 0
        && HOP_BY_HOP.iter().any(|hop| name.eq_ignore_ascii_case(hop))
}

pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none: one walk over their few headers is cheaper than seven searches.
    if !headers.keys().any(|name| is_hop_by_hop(name.as_str())) {
        return;
    }
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Belongs to the request, whatever a caller says of it.
        .filter(|name| *name != HOST)
        .collect();
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    for name in listed {
        headers.remove(name);
    }
}

fn for_server(mut request: Request<Incoming>) -> Result<Request<Incoming>, &'static str> {
    if request.method() == Method::CONNECT {
        return Err("CONNECT is not relayed");
    }
    host::settle(&mut request)?;
    let wants_trailers = accepts_trailers(request.headers());
    // With both, the length is not the body's; only one may reach the server.
    let chunked = is_chunked(request.headers())?;
    if chunked {
        request.headers_mut().remove(CONTENT_LENGTH);
    }
    strip_hop_by_hop(request.headers_mut());
    if chunked {
        // Said again, for this connection: the library takes a GET without it for one without a
        // body.
        request
            .headers_mut()
            .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // HTTP/1.0 needs no host; the server, who is asked in HTTP/1.1, refuses a request without.
    if request.version() == Version::HTTP_10 && !request.headers().contains_key(HOST) {
        request
            .headers_mut()
            .insert(HOST, HeaderValue::from_static("localhost"));
    }
    if wants_trailers {
        request
            .headers_mut()
            .insert(TE, HeaderValue::from_static("trailers"));
    }
    if request.uri().scheme().is_some() || request.uri().authority().is_some() {
        let target = request.uri().path_and_query().map_or("/", |pq| pq.as_str());
        let origin: Uri = target
            .parse()
            .map_err(|_| "the request target cannot be relayed")?;
        *request.uri_mut() = origin;
    }
    *request.version_mut() = Version::HTTP_11;
    Ok(request)
}

/// Whether the body comes in chunks. Other codings would have to be taken off, or go on unsaid.
fn is_chunked(headers: &HeaderMap) -> Result<bool, &'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err("Transfer-Encoding can be chunked only, once"),
    }
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(TE).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',')
                .any(|t| t.trim().eq_ignore_ascii_case("trailers"))
        })
    })
}

/// Whether the headers of an answer say in one way only where its body ends.
fn has_one_end(headers: &HeaderMap) -> bool {
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    let codings = headers.get_all(TRANSFER_ENCODING).iter().count();
    lengths + codings <= 1
}

fn for_caller(mut response: Response<Incoming>) -> Response<Incoming> {
    if response.headers().contains_key(TRANSFER_ENCODING) {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    strip_hop_by_hop(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    response
}
