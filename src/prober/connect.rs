//! What both probes share: connecting with a limit of its own, and the names of failures.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::descriptors;
use crate::health::{Outcome, Reason};

/// Opens a connection, or says why there is none.
pub async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, Outcome> {
    let unhealthy = |reason, detail| Outcome::Unhealthy { reason, detail };
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            // Fails only on a connection that is gone, which the next read says better.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(unhealthy(io_reason(&error), error.to_string())),
        Err(_) => Err(unhealthy(
            Reason::ConnectTimeout,
            format!("no connection within {limit:?}"),
        )),
    }
}

/// Connected, and no answer came.
pub fn silent(limit: Duration) -> Outcome {
    Outcome::Unhealthy {
        reason: Reason::ResponseTimeout,
        detail: format!("no answer within {limit:?}"),
    }
}

/// The reason of a socket error.
pub fn io_reason(error: &io::Error) -> Reason {
    use io::ErrorKind::*;
    match error.kind() {
        ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof | NotConnected => {
            Reason::Reset
        }
        TimedOut => Reason::ConnectTimeout,
        // The shim's own want says nothing of the server: silence, which has a grace.
        _ if descriptors::is_short(error) => Reason::ConnectTimeout,
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
