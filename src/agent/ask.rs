//! The questions to the agent, and whether the scheduler's port is answered by a scheduler.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::watchdog::Look;
use crate::config::scheduler::Target;
use crate::health::{Outcome, Reason};
use crate::prober::http::status_of;
use crate::relay::frames::{HEAD, PREFACE};
use crate::subscription::upstream::open;
use crate::tls;

/// Limit for a connection to a port of the agent, which is on loopback.
pub const CONNECT: Duration = Duration::from_secs(1);
/// Limit for its answer: a Go process that is short of processor time is slow.
const ANSWER: Duration = Duration::from_secs(2);
/// Limit for everything that the scheduler has to say before it is asked anything.
const SETTINGS: Duration = Duration::from_secs(5);

/// A port of the agent.
pub fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Asks the agent whether it is ready.
pub async fn ready(port: u16) -> Look {
    match status_of(at(port), "/ready", CONNECT, ANSWER).await {
        Ok(StatusCode::OK) => Look::Ready,
        Ok(status) => Look::NotReady(status.as_u16()),
        Err(Outcome::Unhealthy { reason, detail }) => match reason {
            Reason::Refused => Look::Gone(detail),
            Reason::ResponseTimeout | Reason::ConnectTimeout => Look::Silent(detail),
            // An agent that ends while it is asked resets the connection.
            Reason::Reset => Look::Gone(detail),
            Reason::Protocol | Reason::Status | Reason::Dns => Look::Strange(detail),
        },
        Err(Outcome::Healthy { .. }) => Look::Ready,
    }
}

/// Whether one of the schedulers speaks: it accepts, agrees on TLS, and sends its SETTINGS, which
/// a process that hangs does not.
pub async fn scheduler_speaks(targets: &[Target], tls: Option<&tls::Client>) -> bool {
    for target in targets {
        if let Ok(Some(())) = timeout(SETTINGS, speaks(target, tls)).await {
            return true;
        }
    }
    false
}

async fn speaks(target: &Target, tls: Option<&tls::Client>) -> Option<()> {
    let mut stream = open(target, tls).await.ok()?;
    let hello = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    stream.write_all(&hello).await.ok()?;
    stream.flush().await.ok()?;
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).await.ok()?;
    // The first frame of every HTTP/2 server.
    (head[3] == 4).then_some(())
}
