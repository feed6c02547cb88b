//! Which gRPC service answers.
//!
//! Asked with a method that no service has: a server written in Go says whether it knows the
//! service, and nothing happens there. Never `Subscribe`, which would take a replica's place.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::speaks::shortened;
use crate::config::scheduler::Target;

/// Limit for all questions on one connection.
const LIMIT: Duration = Duration::from_millis(1000);
/// A method that nobody has.
const NO_METHOD: &str = "AgentShimDoctorAsksWhoYouAre";
const AGENT: &str = "seldon.mlops.agent.AgentService";
const API: &str = "seldon.mlops.scheduler.Scheduler";
const XDS: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
/// `UNIMPLEMENTED`.
const UNIMPLEMENTED: &str = "12";

/// What a port serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "detail", rename_all = "snake_case")]
pub enum Serves {
    /// The agents' service.
    Agent,
    /// The scheduler's own API.
    Api,
    /// Envoy's configuration.
    Xds,
    /// A gRPC server that has none of them, and says so.
    Neither,
    /// A gRPC server that does not say what it has.
    Untold,
    /// HTTP/2, and no gRPC: what it answered.
    NotGrpc(String),
}

impl Serves {
    /// As named in a sentence.
    pub fn title(&self) -> &'static str {
        match self {
            Serves::Agent => "the agents' service",
            Serves::Api => "the scheduler's API",
            Serves::Xds => "Envoy's configuration (xDS)",
            Serves::Neither => "none of the scheduler's services",
            Serves::Untold => "a gRPC server that does not say what it serves",
            Serves::NotGrpc(_) => "HTTP/2 without gRPC",
        }
    }

    /// Whether it is known to be something else.
    pub(super) fn differs_from(&self, expected: &Serves) -> bool {
        *self != Serves::Untold && self != expected
    }
}

/// Asks on a fresh connection.
pub(super) async fn ask<S>(stream: S, target: &Target, secured: bool) -> Serves
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let exchange = async {
        let (sender, connection) = h2::client::handshake(stream).await.map_err(into_io)?;
        let questions = questions(sender, target, secured);
        tokio::select! {
            answer = questions => answer,
            ended = connection => Err(ended.err().map_or_else(closed, into_io)),
        }
    };
    match timeout(LIMIT, exchange).await {
        Ok(Ok(serves)) => serves,
        Ok(Err(error)) => Serves::NotGrpc(shortened(&error.to_string())),
        Err(_) => Serves::Untold,
    }
}

async fn questions(
    sender: h2::client::SendRequest<Bytes>,
    target: &Target,
    secured: bool,
) -> io::Result<Serves> {
    let scheme = if secured { "https" } else { "http" };
    let call = |path: String, message: &'static [u8]| {
        let uri = format!("{scheme}://{target}/{path}");
        call(sender.clone(), uri, message)
    };
    let mut silent = 0;
    for (service, serves) in [
        (API, Serves::Api),
        (AGENT, Serves::Agent),
        (XDS, Serves::Xds),
    ] {
        let answer = call(format!("{service}/{NO_METHOD}"), &[]).await?;
        match answer.said(service) {
            Said::Known => return Ok(serves),
            Said::Unknown => {}
            Said::Nothing => silent += 1,
            Said::NoGrpc(why) => return Ok(Serves::NotGrpc(why)),
        }
    }
    if silent == 0 {
        return Ok(Serves::Neither);
    }
    // Not written in Go. The read-back's own question, about a server that does not exist: it
    // only reads.
    let status = call(format!("{API}/ServerStatus"), SERVER_STATUS).await?;
    match status.code.as_deref() {
        Some(UNIMPLEMENTED) | None => Ok(Serves::Untold),
        Some(_) => Ok(Serves::Api),
    }
}

/// `ServerStatusRequest { subscriber_name: "agent-shim", name: "agent-shim-doctor" }`.
const SERVER_STATUS: &[u8] = b"\x0a\x0aagent-shim\x12\x11agent-shim-doctor";

struct Answer {
    http: u16,
    code: Option<String>,
    message: String,
}

enum Said {
    /// It knows the service.
    Known,
    /// It does not know the service.
    Unknown,
    /// It is a gRPC server, and says neither.
    Nothing,
    /// No gRPC server.
    NoGrpc(String),
}

impl Answer {
    fn said(&self, service: &str) -> Said {
        match self.code.as_deref() {
            None => Said::NoGrpc(format!("HTTP status {} and no gRPC status", self.http)),
            Some(UNIMPLEMENTED) if self.message.contains("unknown service") => Said::Unknown,
            Some(UNIMPLEMENTED)
                if self.message.contains("unknown method") && self.message.contains(service) =>
            {
                Said::Known
            }
            Some(_) => Said::Nothing,
        }
    }
}

async fn call(
    sender: h2::client::SendRequest<Bytes>,
    uri: String,
    message: &'static [u8],
) -> io::Result<Answer> {
    let request = Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "1S")
        .body(())
        .map_err(io::Error::other)?;
    let mut sender = sender.ready().await.map_err(into_io)?;
    let (answer, mut body) = sender.send_request(request, false).map_err(into_io)?;
    let mut framed = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap_or(0)];
    framed.extend_from_slice(message);
    body.send_data(framed.into(), true).map_err(into_io)?;
    let answer = answer.await.map_err(into_io)?;
    let http = answer.status().as_u16();
    let (head, mut body) = answer.into_parts();
    let mut found = status(&head.headers);
    if found.is_none() {
        while let Some(data) = body.data().await {
            let data = data.map_err(into_io)?;
            // A status stream may go on; a first message is proof enough.
            if !data.is_empty() && head.headers.get("content-type").is_some_and(is_grpc) {
                found = Some(("0".into(), String::new()));
                break;
            }
        }
        if found.is_none() {
            let trailers = body.trailers().await.map_err(into_io)?;
            found = trailers.as_ref().and_then(status);
        }
    }
    let (code, message) = found.map_or((None, String::new()), |(c, m)| (Some(c), m));
    Ok(Answer {
        http,
        code,
        message,
    })
}

fn is_grpc(value: &http::HeaderValue) -> bool {
    value.as_bytes().starts_with(b"application/grpc")
}

fn status(headers: &HeaderMap) -> Option<(String, String)> {
    let text = |name| headers.get(name)?.to_str().ok();
    let message = text("grpc-message").unwrap_or_default();
    // Only spaces and slashes matter to what is looked for in it.
    let message = message.replace("%20", " ");
    Some((text("grpc-status")?.to_string(), message))
}

fn into_io(error: h2::Error) -> io::Error {
    let text = error.to_string();
    error.into_io().unwrap_or_else(|| io::Error::other(text))
}

fn closed() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}
