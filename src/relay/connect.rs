//! Connecting a caller to the candidate in use, or to the next one that accepts.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Context, prepare};
use crate::descriptors;
use crate::endpoint::Protocol;
use crate::health::{Reason, State};
use crate::view::View;

/// How long an attempt is waited for in all, while the probes say that the candidate answers: the
/// system sends a lost SYN again after 1 s and after 3 s (tcp(7), RFC 6298).
const LATE: Duration = Duration::from_millis(3_500);

/// An attempt that is neither accepted nor refused yet.
type Pending = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

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
/// to be silent, or to speak something else, is not tried: its caller would only hang. One that is
/// known to answer is waited for where no other accepts: a lost packet is no dead server.
pub async fn connect(context: &Context) -> Result<Connected, Unavailable> {
    let protocol = context.protocol;
    let view = context.view();
    let (mut attempts, mut pending) = (Vec::new(), Vec::new());
    for (index, address) in order(&view, protocol) {
        let mut connecting: Pending = Box::pin(TcpStream::connect(address));
        let attempt = timeout(context.connect_timeout, &mut connecting).await;
        let outcome = judged(attempt.as_ref().ok());
        context.metrics.connect(outcome);
        let known = view.of(protocol)[index].health.state;
        if attempt.is_err() && known == State::Up {
            pending.push((index, connecting));
        }
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
    if let Some(connected) = late(context, pending).await {
        return Ok(connected);
    }
    Err(Unavailable {
        why: view.why_not_after(protocol, &attempts, context.clock.now()),
    })
}

fn judged(attempt: Option<&io::Result<TcpStream>>) -> Attempt {
    match attempt {
        Some(Ok(stream)) if is_self(stream) => Attempt::Refused,
        Some(Ok(_)) => Attempt::Connected,
        Some(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Attempt::Timeout,
        Some(Err(error)) if descriptors::is_short(error) => Attempt::Timeout,
        Some(Err(_)) => Attempt::Refused,
        None => Attempt::Timeout,
    }
}

/// The first of these to be accepted, while the probes say that any of them answers.
async fn late(context: &Context, mut pending: Vec<(usize, Pending)>) -> Option<Connected> {
    let protocol = context.protocol;
    let indices: Vec<usize> = pending.iter().map(|(index, _)| *index).collect();
    let answers = |view: &View, index: &usize| {
        let known = view.of(protocol).get(*index);
        known.is_some_and(|endpoint| endpoint.health.state == State::Up)
    };
    let given_up = context.until(|view| !indices.iter().any(|index| answers(view, index)));
    let first = poll_fn(|cx| {
        let mut accepted = None;
        pending.retain_mut(|(index, connecting)| match connecting.as_mut().poll(cx) {
            Poll::Pending => true,
            Poll::Ready(attempt) => {
                if judged(Some(&attempt)) == Attempt::Connected {
                    accepted = attempt.ok().map(|stream| (*index, stream));
                }
                false
            }
        });
        match accepted {
            None if !pending.is_empty() => Poll::Pending,
            ended => Poll::Ready(ended),
        }
    });
    let left = LATE.saturating_sub(context.connect_timeout);
    let (index, stream) = tokio::select! {
        () = given_up => None,
        ended = timeout(left, first) => ended.ok().flatten(),
    }?;
    context.metrics.connect(Attempt::Connected);
    prepare(&stream);
    Some(Connected { stream, index })
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
