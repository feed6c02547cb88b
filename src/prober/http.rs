//! One HTTP probe: `/v2/health/live`, then `/v2/health/ready` on the same connection.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Client, StatusCode};

use crate::config::ProbeConfig;
use crate::health::{Outcome, Reason};

/// Why a client could not be built; only a broken build of the program gets there.
pub type BuildError = reqwest::Error;

/// An HTTP client that talks to the inference server itself: no proxy from the environment, no
/// redirects, no connection kept from one probe to the next (a new one takes the callers' path).
pub fn client(probe: &ProbeConfig) -> Result<Client, BuildError> {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(probe.connect_timeout)
        .pool_idle_timeout(probe.interval / 2)
        .pool_max_idle_per_host(1)
        .tcp_nodelay(true)
        .user_agent(concat!("agent-shim/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Asks one address.
pub async fn probe(client: &Client, address: SocketAddr, limit: Duration) -> Outcome {
    let started = tokio::time::Instant::now();
    let answer = client
        .get(format!("http://{address}/v2/health/live"))
        .timeout(limit)
        .send()
        .await;
    let latency = started.elapsed();
    match answer {
        Err(error) => {
            let (reason, detail) = classify(&error);
            return Outcome::Unhealthy { reason, detail };
        }
        Ok(answer) if answer.status() != StatusCode::OK => {
            return Outcome::Unhealthy {
                reason: Reason::Status,
                detail: format!("/v2/health/live answered {}", answer.status()),
            };
        }
        Ok(_) => {}
    }
    // Not ready is 400 in MLServer and 503 elsewhere; an answer that does not come says nothing.
    let ready = client
        .get(format!("http://{address}/v2/health/ready"))
        .timeout(limit)
        .send()
        .await
        .ok()
        .map(|answer| answer.status() == StatusCode::OK);
    Outcome::Healthy { ready, latency }
}

fn classify(error: &reqwest::Error) -> (Reason, String) {
    let detail = innermost(error);
    if error.is_timeout() {
        let reason = if error.is_connect() {
            Reason::ConnectTimeout
        } else {
            Reason::ResponseTimeout
        };
        return (reason, detail);
    }
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return (io_reason(io), detail);
        }
        if let Some(http) = inner.downcast_ref::<hyper::Error>() {
            if http.is_parse() {
                return (Reason::Protocol, detail);
            }
            if http.is_incomplete_message() || http.is_closed() || http.is_canceled() {
                return (Reason::Reset, detail);
            }
        }
        source = inner.source();
    }
    (Reason::Protocol, detail)
}

/// The reason of a socket error.
pub fn io_reason(error: &io::Error) -> Reason {
    use io::ErrorKind::*;
    match error.kind() {
        ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof | NotConnected => {
            Reason::Reset
        }
        TimedOut => Reason::ConnectTimeout,
        // Refused, and every way in which the network says that the address cannot be reached.
        _ => Reason::Refused,
    }
}

/// The text of the last error of a chain: the one that says what happened.
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
