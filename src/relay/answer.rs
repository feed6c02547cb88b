//! The answers that the shim gives itself: health from its own knowledge, and the honest word
//! that the server is down. Shapes are those of MLServer and of gRPC.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use prost::Message;

use super::Context;
use crate::capability::gate;
use crate::proto::{ServerLiveResponse, ServerReadyResponse};

/// Marks an answer that did not come from the inference server.
pub const ANSWERED: HeaderName = HeaderName::from_static("x-agent-shim");

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// Live.
    Live,
    /// Not live.
    NotLive,
    /// Ready.
    Ready,
    /// Not ready: the server said so, or it is not live.
    NotReady,
    /// The server is down.
    Unavailable,
    /// The server broke the connection before it answered.
    BadGateway,
    /// A method that this path does not take.
    MethodNotAllowed,
    /// A load or unload of the probe model by a caller.
    Reserved,
}

impl Answered {
    /// All answers, in the order in which they are exported.
    pub const ALL: [Answered; 8] = [
        Answered::Live,
        Answered::NotLive,
        Answered::Ready,
        Answered::NotReady,
        Answered::Unavailable,
        Answered::BadGateway,
        Answered::MethodNotAllowed,
        Answered::Reserved,
    ];

    /// The label, and the value of the header that marks the answer.
    pub fn as_str(self) -> &'static str {
        match self {
            Answered::Live => "live",
            Answered::NotLive => "not-live",
            Answered::Ready => "ready",
            Answered::NotReady => "not-ready",
            Answered::Unavailable => "unavailable",
            Answered::BadGateway => "bad-gateway",
            Answered::MethodNotAllowed => "method-not-allowed",
            Answered::Reserved => "reserved",
        }
    }
}

/// A health question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Is the server's process alive?
    Live,
    /// Does the server call itself ready?
    Ready,
}

/// The verdict on a health question, with the reason when it is no.
pub fn verdict(context: &Context, question: Question) -> (Answered, Option<String>) {
    let protocol = context.protocol;
    let view = context.view();
    let mut live = view.live(protocol, context.clock.now(), context.grace);
    if live.is_ok() && context.gate.as_ref().is_some_and(|gate| !gate.is_open()) {
        live = Err(gate::CLOSED.into());
    }
    let answer = match (question, live) {
        (Question::Live, Ok(())) => (Answered::Live, None),
        (Question::Live, Err(why)) => (Answered::NotLive, Some(why)),
        (Question::Ready, Ok(())) if view.server_ready(protocol) == Some(true) => {
            (Answered::Ready, None)
        }
        // The server's own word: it says so while any model loads.
        (Question::Ready, Ok(())) => (Answered::NotReady, None),
        (Question::Ready, Err(why)) => (Answered::NotReady, Some(why)),
    };
    context.metrics.answered(answer.0);
    answer
}

/// Body of an HTTP answer.
pub type Body = Full<Bytes>;

/// An HTTP error in MLServer's own shape.
pub fn http_error(status: StatusCode, answered: Answered, why: &str) -> Response<Body> {
    let body = serde_json::json!({ "error": format!("agent-shim: {why}") }).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ANSWERED, HeaderValue::from_static(answered.as_str()));
    match answered {
        Answered::Unavailable | Answered::NotLive | Answered::NotReady => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Answered::MethodNotAllowed => {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        _ => {}
    }
    response
}

/// `/v2/health/live` and `/v2/health/ready`, as MLServer answers them: an empty 200, an empty
/// 400 where the server itself is not ready; and 503 with the reason where it is not live.
pub fn http_health(context: &Context, question: Question) -> Response<Body> {
    let (answered, why) = verdict(context, question);
    if let Some(why) = why {
        return http_error(StatusCode::SERVICE_UNAVAILABLE, answered, &why);
    }
    let mut response = Response::new(Full::default());
    if answered == Answered::NotReady {
        *response.status_mut() = StatusCode::BAD_REQUEST;
    }
    response
        .headers_mut()
        .insert(ANSWERED, HeaderValue::from_static(answered.as_str()));
    response
}

/// gRPC `ServerLive` and `ServerReady`: a message and the trailers of success.
pub fn grpc_health(context: &Context, question: Question) -> (Bytes, HeaderMap) {
    let (answered, why) = verdict(context, question);
    let message = match question {
        Question::Live => ServerLiveResponse {
            live: answered == Answered::Live,
        }
        .encode_to_vec(),
        Question::Ready => ServerReadyResponse {
            ready: answered == Answered::Ready,
        }
        .encode_to_vec(),
    };
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    if let Some(why) = why {
        // The status is OK, as the agent expects; the reason is there for a person who looks.
        trailers.insert("x-agent-shim-reason", percent_encoded(&why));
    }
    (frame.freeze(), trailers)
}

/// The gRPC statuses that the shim gives.
pub const PERMISSION_DENIED: u16 = 7;
/// Callers hold too much memory of the shim already.
pub const RESOURCE_EXHAUSTED: u16 = 8;
/// The server is down.
pub const UNAVAILABLE: u16 = 14;

/// The headers of a gRPC answer that is only a status and the reason.
pub fn grpc_status(code: u16, why: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code));
    headers.insert(
        "grpc-message",
        percent_encoded(&format!("agent-shim: {why}")),
    );
    headers
}

/// The percent-encoding of `grpc-message`: printable ASCII except `%` stays.
pub fn percent_encoded(text: &str) -> HeaderValue {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    HeaderValue::from_str(&out).unwrap_or_else(|_| HeaderValue::from_static(""))
}
