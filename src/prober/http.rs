//! One HTTP probe: `/v2/health/live`, then `/v2/health/ready` on the same fresh connection.
//!
//! Written on hyper itself: the time limit of an answer has to begin when the connection is
//! there, or a dropped packet and a silent server could not be told apart.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header::HOST, header::USER_AGENT};
use http_body_util::Empty;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::connect::{self, innermost, io_reason};
use crate::before_answer::BeforeAnswer;
use crate::config::ProbeConfig;
use crate::health::{Outcome, Reason};

/// How the shim names itself to the server.
pub const AGENT: &str = concat!("agent-shim/", env!("CARGO_PKG_VERSION"));

/// Asks one address.
pub async fn probe(address: SocketAddr, limits: &ProbeConfig) -> Outcome {
    let started = tokio::time::Instant::now();
    let stream = match connect::connect(address, limits.connect_timeout).await {
        Ok(stream) => stream,
        Err(outcome) => return outcome,
    };
    let (mut sender, connection) = match handshake(TokioIo::new(BeforeAnswer::new(stream))).await {
        Ok(both) => both,
        Err(error) => return unhealthy(&error),
    };
    // Driven beside the questions and dropped with them.
    tokio::select! {
        outcome = ask(&mut sender, address, limits.timeout, started) => outcome,
        never = async { let _ = connection.await; std::future::pending().await } => never,
    }
}

/// The status of the answer to one GET on a connection of its own.
pub async fn status_of(
    address: SocketAddr,
    path: &str,
    connect_timeout: Duration,
    limit: Duration,
) -> Result<StatusCode, Outcome> {
    let stream = connect::connect(address, connect_timeout).await?;
    let both = handshake(TokioIo::new(BeforeAnswer::new(stream))).await;
    let (mut sender, connection) = both.map_err(|error| unhealthy(&error))?;
    let answer = tokio::select! {
        answer = get(&mut sender, address, path, limit) => answer,
        never = async { let _ = connection.await; std::future::pending().await } => never,
    };
    match answer {
        None => Err(connect::silent(limit)),
        Some(answer) => answer.map_err(|error| unhealthy(&error)),
    }
}

type Sender = SendRequest<Empty<Bytes>>;

async fn ask(
    sender: &mut Sender,
    address: SocketAddr,
    limit: Duration,
    started: tokio::time::Instant,
) -> Outcome {
    let live = get(sender, address, "/v2/health/live", limit).await;
    let latency = started.elapsed();
    match live {
        None => return connect::silent(limit),
        Some(Err(error)) => return unhealthy(&error),
        Some(Ok(StatusCode::OK)) => {}
        Some(Ok(status)) => {
            return Outcome::Unhealthy {
                reason: Reason::Status,
                detail: format!("/v2/health/live answered {status}"),
            };
        }
    }
    // Not ready is 400 in MLServer and 503 elsewhere; an answer that does not come says nothing.
    let ready = match get(sender, address, "/v2/health/ready", limit).await {
        Some(Ok(status)) => Some(status == StatusCode::OK),
        _ => None,
    };
    Outcome::Healthy { ready, latency }
}

/// The status of one answer; `None` where none came in time.
async fn get(
    sender: &mut Sender,
    address: SocketAddr,
    path: &str,
    limit: Duration,
) -> Option<hyper::Result<StatusCode>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = path.parse().ok()?;
    let headers = request.headers_mut();
    headers.insert(HOST, address.to_string().parse().ok()?);
    headers.insert(USER_AGENT, http::HeaderValue::from_static(AGENT));
    let answer = timeout(limit, async {
        sender.ready().await?;
        sender.send_request(request).await
    });
    Some(answer.await.ok()?.map(|response| response.status()))
}

fn unhealthy(error: &hyper::Error) -> Outcome {
    let source = std::error::Error::source(error).and_then(|s| s.downcast_ref::<std::io::Error>());
    let reason = match source {
        Some(io) => io_reason(io),
        None if error.is_parse() || error.is_parse_too_large() => Reason::Protocol,
        None => Reason::Reset,
    };
    Outcome::Unhealthy {
        reason,
        detail: innermost(error),
    }
}
