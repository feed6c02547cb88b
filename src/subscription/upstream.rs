//! The connection to the scheduler: one HTTP/2 connection for all calls of the agent, to the first
//! configured scheduler that takes it, opened again when it has gone.
//!
//! Half-open connections are noticed: HTTP/2 pings, never more often than the scheduler allows, and
//! a limit for bytes that nobody acknowledges.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;

use super::body::Outgoing;
use super::hello::{Heard, Listening};
use super::metrics::{Dial, SubscriptionMetrics};
use crate::config::scheduler::Target;
use crate::endpoint::Host;
use crate::prober::connect::innermost;
use crate::relay::prepare;
use crate::tls;

/// Limit for looking up a name, and for opening a connection to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Limit for agreeing on TLS and HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The scheduler closes a connection that pings more often than every 60 s; the rest is room for
/// pings that a busy network delivers closer together than they were sent.
const PING_INTERVAL: Duration = Duration::from_secs(75);
/// How long an answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long bytes may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Longest list of headers that is taken; Go's own limit is higher, its habit far lower.
pub const MAX_HEADERS: u32 = 1 << 20;
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// No scheduler could be connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Unreachable(Vec<String>);

/// An open connection, ready for one more call.
#[derive(Debug)]
pub struct Line {
    /// Sends the call.
    pub sender: SendRequest<Outgoing>,
    /// Which scheduler.
    pub target: Target,
    scheme: Scheme,
    authority: Authority,
}

impl Line {
    /// The address of a call on this connection: a proxy on the way routes by it.
    pub fn uri(&self, path: &PathAndQuery) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path.clone());
        Uri::from_parts(parts).expect("scheme, authority and path are all there")
    }
}

/// The way to the scheduler. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Upstream {
    targets: Arc<[Target]>,
    tls: Option<tls::Client>,
    open: Arc<Mutex<Open>>,
    metrics: SubscriptionMetrics,
}

#[derive(Debug, Default)]
struct Open {
    line: Option<Line>,
    /// Connections, also those that only finish what was begun on them.
    connections: JoinSet<()>,
}

impl Upstream {
    /// A way to these schedulers, in this order.
    pub fn new(
        targets: Vec<Target>,
        tls: Option<tls::Client>,
        metrics: SubscriptionMetrics,
    ) -> Self {
        Upstream {
            targets: targets.into(),
            tls,
            open: Arc::default(),
            metrics,
        }
    }

    /// The TLS client, where there is one.
    pub fn tls(&self) -> Option<&tls::Client> {
        self.tls.as_ref()
    }

    /// The open connection, or a new one.
    pub async fn line(&self) -> Result<Line, Unreachable> {
        let mut open = self.open.lock().await;
        while open.connections.try_join_next().is_some() {}
        if let Some(line) = &mut open.line
            && line.sender.ready().await.is_ok()
        {
            return Ok(copy(line));
        }
        // Calls that still run on the old connection are left to finish there.
        open.line = None;
        let mut failures = Vec::new();
        for target in self.targets.iter() {
            match self.dial(target, &mut open.connections).await {
                Ok(line) => {
                    self.metrics.dial(Dial::Connected);
                    tracing::info!(scheduler = %target, tls = self.tls.is_some(), "connected to the scheduler");
                    let copied = copy(&line);
                    open.line = Some(line);
                    return Ok(copied);
                }
                Err((dial, why)) => {
                    self.metrics.dial(dial);
                    failures.push(why);
                }
            }
        }
        Err(Unreachable(failures))
    }

    async fn dial(
        &self,
        target: &Target,
        connections: &mut JoinSet<()>,
    ) -> Result<Line, (Dial, String)> {
        let stream = open(target, self.tls.as_ref()).await?;
        let sender = handshake(target, stream, connections).await?;
        let scheme = match self.tls {
            None => Scheme::HTTP,
            Some(_) => Scheme::HTTPS,
        };
        let authority = target
            .to_string()
            .parse()
            .expect("a host and a port are an authority");
        Ok(Line {
            sender,
            target: target.clone(),
            scheme,
            authority,
        })
    }
}

fn copy(line: &Line) -> Line {
    Line {
        sender: line.sender.clone(),
        target: line.target.clone(),
        scheme: line.scheme.clone(),
        authority: line.authority.clone(),
    }
}

/// A connection's bytes, secured or not.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// Opens a connection, with TLS where it is configured. The reason says what an operator can do.
pub async fn open(
    target: &Target,
    tls: Option<&tls::Client>,
) -> Result<Box<dyn Bytes>, (Dial, String)> {
    let stream = connect(target).await?;
    let Some(client) = tls else {
        return Ok(Box::new(stream));
    };
    let failed = |why: String| (Dial::Tls, format!("TLS with {target}: {why}"));
    let connector = client.connector().map_err(|e| failed(e.to_string()))?;
    let name = match &target.host {
        Host::Ip(ip) => ServerName::from(*ip),
        Host::Name(name) => ServerName::try_from(name.clone())
            .map_err(|_| failed("the host is no DNS name".into()))?,
    };
    let agreed = timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream)).await;
    let agreed = agreed.map_err(|_| {
        failed(format!(
            "no answer within {HANDSHAKE_TIMEOUT:?}; is this a plain-text port?"
        ))
    })?;
    Ok(Box::new(agreed.map_err(|e| failed(explained(&e)))?))
}

async fn connect(target: &Target) -> Result<TcpStream, (Dial, String)> {
    let addresses: Vec<SocketAddr> = match &target.host {
        Host::Ip(ip) => vec![SocketAddr::new(*ip, target.port)],
        Host::Name(name) => {
            let dns = |why: String| (Dial::Dns, format!("cannot look up {name}: {why}"));
            timeout(CONNECT_TIMEOUT, lookup_host((name.as_str(), target.port)))
                .await
                .map_err(|_| dns(format!("no answer within {CONNECT_TIMEOUT:?}")))?
                .map_err(|e| dns(e.to_string()))?
                .take(MAX_ADDRESSES)
                .collect()
        }
    };
    let mut why = "the name has no address".to_string();
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                prepare(&stream);
                // Fails only on a connection that is gone, which the next write says better.
                let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED));
                return Ok(stream);
            }
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = format!("no connection within {CONNECT_TIMEOUT:?}"),
        }
    }
    Err((Dial::Refused, format!("cannot connect to {target}: {why}")))
}

async fn handshake(
    target: &Target,
    stream: Box<dyn Bytes>,
    connections: &mut JoinSet<()>,
) -> Result<SendRequest<Outgoing>, (Dial, String)> {
    let refused = |why: String| {
        (
            Dial::Refused,
            format!("cannot speak HTTP/2 to {target}: {why}"),
        )
    };
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_header_list_size(MAX_HEADERS);
    let (stream, mut heard) = Listening::new(stream);
    let (sender, connection) = timeout(HANDSHAKE_TIMEOUT, builder.handshake(TokioIo::new(stream)))
        .await
        .map_err(|_| refused(format!("no answer within {HANDSHAKE_TIMEOUT:?}")))?
        .map_err(|e| refused(innermost(&e)))?;
    let (end, ended) = oneshot::channel();
    let name = target.clone();
    connections.spawn(async move {
        let end_of_it = connection.await.map_err(|error| innermost(&error));
        // Whoever dials tells it; nobody listens any more once the connection has been of use.
        match end.send(end_of_it) {
            Ok(()) => {}
            Err(Ok(())) => {
                tracing::info!(scheduler = %name, "the connection to the scheduler has ended");
            }
            Err(Err(why)) => {
                tracing::warn!(scheduler = %name, why, "the connection to the scheduler broke");
            }
        }
    });
    let greeted = timeout(HANDSHAKE_TIMEOUT, async {
        tokio::select! {
            Ok(_) = heard.wait_for(|heard| *heard == Heard::Settings) => Ok(()),
            Ok(Err(why)) = ended => Err(why),
            else => Err("it was closed before an answer".to_string()),
        }
    });
    let greeted = greeted.await;
    match (greeted, *heard.borrow()) {
        (Ok(Ok(())), _) => Ok(sender),
        (_, Heard::Tls) => Err(refused("it answers with TLS: it expects TLS".into())),
        (Ok(Err(why)), _) => Err(refused(why)),
        (Err(_), _) => Err(refused(format!("no answer within {HANDSHAKE_TIMEOUT:?}"))),
    }
}

/// What an operator can do about the usual mistakes, beside the library's words.
fn explained(error: &std::io::Error) -> String {
    let text = error.to_string();
    let hint = if text.contains("Expired") || text.contains("expired") {
        "the scheduler's certificate has expired: renew it"
    } else if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        "the scheduler's certificate is not signed by the CA in the CA file"
    } else if text.contains("NotValidForName") || text.contains("not valid for name") {
        "the scheduler's certificate is for another name than the one in SHIM_SCHEDULER"
    } else if text.contains("InvalidContentType") || text.contains("corrupt message") {
        "the scheduler does not speak TLS on this port"
    } else {
        return text;
    };
    format!("{hint} ({text})")
}
