//! The bodies of calls on both sides.

use std::error::Error as _;
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::stream::Operations;
use crate::prober::connect::innermost;
use crate::relay::answer::percent_encoded;

/// gRPC's UNAVAILABLE.
pub const UNAVAILABLE: u16 = 14;
/// gRPC's RESOURCE_EXHAUSTED.
pub const RESOURCE_EXHAUSTED: u16 = 8;
/// gRPC's DEADLINE_EXCEEDED.
pub const DEADLINE_EXCEEDED: u16 = 4;

/// A body.
#[derive(Debug)]
pub enum Outgoing {
    /// None, or one that is known whole.
    Whole(Option<Bytes>),
    /// An answer that was read whole: its message, then its trailers.
    Collected(Option<Bytes>, Option<HeaderMap>),
    /// From the agent, as it comes.
    FromAgent(Incoming),
    /// From the scheduler, as it comes.
    FromScheduler(Option<Incoming>),
    /// The operations of a subscription.
    Operations(Box<Operations>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Outgoing::Whole(bytes) => Poll::Ready(bytes.take().map(Frame::data).map(Ok)),
            Outgoing::Collected(message, trailers) => {
                let message = message.take().map(Frame::data);
                let frame = message.or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Outgoing::FromAgent(body) => Pin::new(body).poll_frame(cx),
            Outgoing::FromScheduler(body) => {
                let Some(incoming) = body else {
                    return Poll::Ready(None);
                };
                match Pin::new(incoming).poll_frame(cx) {
                    Poll::Ready(Some(Err(error))) if !is_stream_reset(&error) => {
                        *body = None;
                        Poll::Ready(Some(Ok(Frame::trailers(lost(&error)))))
                    }
                    polled => polled,
                }
            }
            Outgoing::Operations(operations) => Pin::new(&mut **operations).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Whole(bytes) => bytes.is_none(),
            Outgoing::Collected(message, trailers) => message.is_none() && trailers.is_none(),
            Outgoing::FromAgent(body) => body.is_end_stream(),
            Outgoing::FromScheduler(body) => body.as_ref().is_none_or(Body::is_end_stream),
            Outgoing::Operations(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Outgoing::FromAgent(body) => body.size_hint(),
            Outgoing::FromScheduler(Some(body)) => body.size_hint(),
            Outgoing::Collected(..) | Outgoing::FromScheduler(None) | Outgoing::Operations(_) => {
                SizeHint::default()
            }
        }
    }
}

/// A single call was reset by the far side, which the near side is told in kind; anything else is a
/// connection that broke, which gRPC calls UNAVAILABLE.
pub fn is_stream_reset(error: &hyper::Error) -> bool {
    error
        .source()
        .and_then(|e| e.downcast_ref::<h2::Error>())
        .is_some_and(|e| e.is_reset() && e.is_remote())
}

/// Trailers for a call whose connection broke.
pub fn lost(error: &hyper::Error) -> HeaderMap {
    let why = format!(
        "agent-shim: the connection to the scheduler was lost ({})",
        innermost(error)
    );
    status(UNAVAILABLE, &why)
}

/// A status as trailers.
pub fn status(code: u16, why: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    trailers.insert("grpc-message", percent_encoded(why));
    trailers
}

/// An answer that is only a status.
pub fn refusal(code: u16, why: &str) -> Response<Outgoing> {
    let mut response = Response::new(Outgoing::Whole(None));
    *response.headers_mut() = status(code, &format!("agent-shim: {why}"));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The status of an answer that has no body.
pub fn status_of(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
