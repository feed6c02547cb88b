//! Connecting a caller to the candidate in use, or to the next one that accepts.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Context, prepare};
use crate::descriptors;
use crate::endpoint::Protocol;
use crate::health::{Reason, State};
use crate::view::View;

/// How one attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Connected.
    Connected,
    /// Refused or unreachable.
    Refused,
    /// Neither accepted nor refused in time.
    Timeout,
}

impl Attempt {
    /// All outcomes, in the order in which they are exported.
    pub const ALL: [Attempt; 3] = [Attempt::Connected, Attempt::Refused, Attempt::Timeout];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Attempt::Connected => "connected",
            Attempt::Refused => "refused",
            Attempt::Timeout => "timeout",
        }
    }
}

/// A connection to the server.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub stream: TcpStream,
    /// The candidate's index.
    pub index: usize,
}

/// No candidate could be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// Why, in words.
    pub why: String,
}

/// Connects to the selection, else to the other candidates in order. A candidate that is known
/// to be silent, or to speak something else, is not tried: its caller would only hang.
pub async fn connect(context: &Context) -> Result<Connected, Unavailable> {
    let protocol = context.protocol;
    let view = context.view();
    let mut attempts = Vec::new();
    for (index, address) in order(&view, protocol) {
        let attempt = timeout(context.connect_timeout, TcpStream::connect(address)).await;
        let outcome = match &attempt {
            Ok(Ok(stream)) if is_self(stream) => Attempt::Refused,
            Ok(Ok(_)) => Attempt::Connected,
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Attempt::Timeout,
            Ok(Err(error)) if descriptors::is_short(error) => Attempt::Timeout,
            Ok(Err(_)) => Attempt::Refused,
            Err(_) => Attempt::Timeout,
        };
        context.metrics.connect(outcome);
        let known = view.of(protocol)[index].health.state;
        if (outcome == Attempt::Connected) != matches!(known, State::Up | State::Stalled) {
            context.watching.hints.probe_now(protocol);
        }
        if let (Attempt::Connected, Ok(Ok(stream))) = (outcome, attempt) {
            prepare(&stream);
            return Ok(Connected { stream, index });
        }
        attempts.push((
            index,
            match outcome {
                Attempt::Timeout => Reason::ConnectTimeout,
                _ => Reason::Refused,
            },
        ));
        tracing::debug!(%address, outcome = outcome.as_str(), "cannot connect a caller");
    }
    Err(Unavailable {
        why: view.why_not_after(protocol, &attempts, context.clock.now()),
    })
}

/// A connection to a free local port can, rarely, connect to itself: nobody listens there, and
/// the port it took for its own end was the one it dialled.
fn is_self(stream: &TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(local), Ok(peer)) => local == peer,
        _ => false,
    }
}

/// The candidates worth trying, the selection first.
fn order(view: &View, protocol: Protocol) -> Vec<(usize, SocketAddr)> {
    let selected = view.selection[protocol.index()];
    let endpoints = view.of(protocol);
    let others = (0..endpoints.len()).filter(|i| Some(*i) != selected);
    selected
        .into_iter()
        .chain(others)
        .filter(|&i| endpoints[i].health.worth_trying())
        .filter_map(|i| Some((i, endpoints[i].address?)))
        .collect()
}
