//! Fresh probes of every candidate on both protocols, with the sidecar's own prober.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::config::{Config, ProbeConfig};
use crate::doctor::evidence::ProbeFact;
use crate::endpoint::{Candidate, Protocol};
use crate::health::Outcome;
use crate::prober::Probe;
use crate::prober::resolve::Resolver;
use crate::prober::server::ServerProbe;

/// Limit for connecting, for an answer, and for the question about TLS.
const STEP: Duration = Duration::from_millis(700);

/// Probes every candidate, all at once.
pub async fn all(config: &Config, limit: Duration) -> Vec<ProbeFact> {
    let step = STEP.min(limit / 3);
    let probe = Arc::new(ServerProbe {
        limits: ProbeConfig {
            interval: step,
            connect_timeout: step,
            timeout: step,
            ..config.probe
        },
        resolver: Resolver::new(step),
    });
    let mut tasks = JoinSet::new();
    let candidates = Protocol::ALL.into_iter().flat_map(|p| config.candidates(p));
    for (order, candidate) in candidates.enumerate() {
        let probe = probe.clone();
        tasks.spawn(async move { (order, one(&probe, candidate, step).await) });
    }
    let mut all = tasks.join_all().await;
    all.sort_by_key(|(order, _)| *order);
    all.into_iter().map(|(_, fact)| fact).collect()
}

async fn one(probe: &ServerProbe, candidate: Candidate, step: Duration) -> ProbeFact {
    let started = Instant::now();
    let report = probe.probe(&candidate).await;
    let ms = (started.elapsed().as_secs_f64() * 1e5).round() / 1e2;
    let (healthy, reason, detail) = match report.outcome {
        Outcome::Healthy { .. } => (true, None, String::new()),
        Outcome::Unhealthy { reason, detail } => (false, Some(reason), detail),
    };
    let connected =
        reason.is_some_and(|r| matches!(r.as_str(), "protocol" | "reset" | "response-timeout"));
    let tls = match report.address {
        Some(address) if connected => speaks_tls(address, step).await,
        _ => false,
    };
    ProbeFact {
        host: candidate.host.to_string(),
        port: candidate.port,
        protocol: candidate.protocol.as_str().into(),
        healthy,
        reason: reason.map(|r| r.as_str().into()),
        detail,
        tls,
        ms,
    }
}

/// Whether a port answers the beginning of a TLS handshake with TLS. Nothing is trusted and no
/// secret is sent: the connection ends after the first bytes of the answer.
pub async fn speaks_tls(address: SocketAddr, limit: Duration) -> bool {
    let Some(hello) = hello(address) else {
        return false;
    };
    let answer = timeout(limit, async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&hello).await?;
        let mut first = [0; 3];
        stream.read_exact(&mut first).await?;
        Ok::<_, std::io::Error>(first)
    });
    // A handshake or an alert, in any version of TLS.
    matches!(answer.await, Ok(Ok([0x15 | 0x16, 0x03, _])))
}

/// What a TLS client says first.
fn hello(address: SocketAddr) -> Option<Vec<u8>> {
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut client = ClientConnection::new(config.into(), address.ip().into()).ok()?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).ok()?;
    Some(bytes)
}
