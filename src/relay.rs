//! The two relays: HTTP/1.1 on one port, gRPC on the other, to whichever candidate is in use.
//!
//! Owns the listeners and the accounting of connections; what happens on a connection is in the
//! modules below. Must not know how health is found out: it reads the [`View`]. A relay never
//! cuts a running call on suspicion and never sends a request twice.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::capability::gate::Gate;
use crate::clock::Clock;
use crate::config::Mode;
use crate::descriptors;
use crate::drain::in_flight::InFlight;
use crate::drain::{Busy, Drain};
use crate::endpoint::Protocol;
use crate::metrics::Metrics;
use crate::models::Poke;
use crate::places::{Cuts, Place, Places};
use crate::prober::Watching;
use crate::restore::Memory;
use crate::view::View;
use crate::worker::Worker;

pub mod answer;
pub mod caller;
pub mod connect;
pub mod flights;
pub mod frames;
pub mod greeting;
pub mod grpc;
pub mod guarded;
pub mod heed;
pub mod http;
mod leftover;
pub mod local;
pub mod opening;
pub mod repository;
pub mod reserved;
pub mod splice;

/// Connections of one relay that are served at once, where descriptors allow it: many more than the
/// calls that one server can work on.
const MAX_CONNECTIONS: usize = 1_024;

/// The places of one relay by a limit on descriptors, of which the other relay has as many. Each
/// has its own, so that callers of one protocol cannot keep out those of the other.
pub fn places(limit: u64) -> Places {
    let each = (descriptors::places(limit) / Protocol::ALL.len()).max(1);
    Places::new(each.min(MAX_CONNECTIONS), Cuts::Idle)
}

/// Whether a relay has fewer places than it would use, for the sake of descriptors.
pub fn is_limited(places: &Places) -> bool {
    places.limit() < MAX_CONNECTIONS
}

/// Everything a connection needs. Cloned for each relay.
#[derive(Debug, Clone)]
pub struct Context {
    /// Which protocol this relay carries.
    pub protocol: Protocol,
    /// Whether anything may be answered here.
    pub mode: Mode,
    /// What the prober knows.
    pub watching: Watching,
    /// The process clock.
    pub clock: Clock,
    /// How long after its last answer the server is still called live.
    pub grace: Duration,
    /// How long a `ServerLive` is held instead of answered with no; see [`local`].
    pub live_hold: Duration,
    /// Limit for connecting to a candidate.
    pub connect_timeout: Duration,
    /// Limit for a caller's first bytes and for every header it has begun.
    pub header_timeout: Duration,
    /// Told when a call has changed what is loaded.
    pub poke: Poke,
    /// What belongs in the server's memory.
    pub memory: Memory,
    /// What is known of the server's worker.
    pub worker: Worker,
    /// Loads under way over gRPC; one list for both relays, since unloads come over both.
    pub flights: flights::Flights,
    /// Set where the server is asked through the probe model.
    pub gate: Option<Gate>,
    /// The places of this relay's callers, on all of its listeners.
    pub places: Places,
    /// Counts inference calls, so that a drain can wait for them.
    pub in_flight: InFlight,
    /// The relay's series.
    pub metrics: RelayMetrics,
}

impl Context {
    /// The latest snapshot.
    pub fn view(&self) -> Arc<View> {
        self.watching.view.borrow().clone()
    }

    /// Completes when `holds` is true of the view; checked whenever a state changes.
    pub async fn until(&self, holds: impl Fn(&View) -> bool) {
        let mut changes: watch::Receiver<u64> = self.watching.changes.clone();
        loop {
            changes.mark_unchanged();
            if holds(&self.view()) {
                return;
            }
            if changes.changed().await.is_err() {
                // The prober is gone, and with it this process, at any moment.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// How a relayed connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order, by the caller or by the server.
    Closed,
    /// Reset by either side.
    Reset,
    /// The caller broke the protocol.
    Malformed,
    /// The caller did not finish what it had begun to send.
    Timeout,
    /// The caller speaks another protocol than this port.
    WrongProtocol,
    /// No candidate could be connected to, and the caller could not be answered.
    Unavailable,
}

impl End {
    /// All ends, in the order in which they are exported.
    pub const ALL: [End; 6] = [
        End::Closed,
        End::Reset,
        End::Malformed,
        End::Timeout,
        End::WrongProtocol,
        End::Unavailable,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            End::Closed => "closed",
            End::Reset => "reset",
            End::Malformed => "malformed",
            End::Timeout => "timeout",
            End::WrongProtocol => "wrong-protocol",
            End::Unavailable => "unavailable",
        }
    }
}

/// Prepares a connection: no delay, and keep-alive so that a peer that vanished is noticed. No
/// user time-out: a server that is frozen for a while with a full window must not be cut off.
pub fn prepare(stream: &TcpStream) {
    // Each fails only on a connection that is gone, which the next read says better.
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// Accepts on one listener for ever. Connections are owned here, so they end with the relay.
pub async fn serve(listener: TcpListener, context: Context, drain: Drain) {
    let context = Arc::new(context);
    let places = context.places.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    // After the accept, since nobody gives way before somebody has come; the queue of
                    // the listener is the place to wait for those behind him.
                    places.room().await;
                    prepare(&stream);
                    let held = (places.take(), drain.busy());
                    connections.spawn(connection(stream, peer, context.clone(), held));
                }
                Err(error) => {
                    accept_failed(&error, context.protocol.as_str()).await;
                    context.metrics.accept_errors.inc();
                }
            },
            Some(ended) = connections.join_next() => if let Err(error) = ended {
                // Costs this caller its connection and nobody else anything.
                tracing::error!(%error, "a connection task failed");
            },
        }
    }
}

/// A failed accept is the caller's fault or a lack of descriptors; wait a little for the latter.
pub async fn accept_failed(error: &io::Error, listener: &'static str) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionReset) {
        return;
    }
    tracing::warn!(%error, listener, "cannot accept a connection");
    sleep(Duration::from_millis(100)).await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    context: Arc<Context>,
    (place, _busy): (Place, Busy),
) {
    let open = context.metrics.open.clone();
    open.inc();
    let guard = Decrement(open);
    let end = match context.protocol {
        // Boxed: one protocol's connections are not as large as the other's.
        Protocol::Http => Box::pin(http::serve(stream, &context, &place)).await,
        Protocol::Grpc => Box::pin(grpc::serve(stream, &context, &place)).await,
    };
    drop(guard);
    context.metrics.ended(end);
    match end {
        End::Closed | End::Reset | End::Unavailable => {
            tracing::debug!(%peer, protocol = %context.protocol, end = end.as_str(), "connection ended");
        }
        _ => {
            tracing::info!(%peer, protocol = %context.protocol, end = end.as_str(), "connection refused by the relay");
        }
    }
}

struct Decrement(IntGauge);

impl Drop for Decrement {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Series of both relays; the handles of one protocol are resolved once.
#[derive(Debug, Clone)]
pub struct RelayMetrics {
    open: IntGauge,
    ended: Vec<IntCounter>,
    accept_errors: IntCounter,
    /// Bytes from callers.
    pub received: IntCounter,
    /// Bytes to callers.
    pub sent: IntCounter,
    /// Calls passed to the server.
    pub calls: IntCounter,
    connects: IntCounterVec,
    answers: IntCounterVec,
    protocol: Protocol,
}

impl RelayMetrics {
    /// Registers the series of both relays; `[http, grpc]`.
    pub fn new(metrics: &Metrics) -> [RelayMetrics; 2] {
        let open = metrics.int_gauge_vec(
            "agent_shim_relay_open_connections",
            "Relayed connections open now.",
            &["protocol"],
        );
        let ended = metrics.counter_vec(
            "agent_shim_relay_connections_total",
            "Relayed connections by how they ended.",
            &["protocol", "end"],
        );
        let accept_errors = metrics.counter_vec(
            "agent_shim_relay_accept_errors_total",
            "Connections that could not be accepted.",
            &["protocol"],
        );
        let bytes = metrics.counter_vec(
            "agent_shim_relay_bytes_total",
            "Bytes relayed: received from callers, sent to callers.",
            &["protocol", "direction"],
        );
        let calls = metrics.counter_vec(
            "agent_shim_relay_calls_total",
            "Calls passed to the inference server.",
            &["protocol"],
        );
        let connects = metrics.counter_vec(
            "agent_shim_relay_connect_attempts_total",
            "Attempts to connect a caller to a candidate, by outcome.",
            &["protocol", "outcome"],
        );
        let answers = metrics.counter_vec(
            "agent_shim_answers_total",
            "Answers given by the shim itself instead of the server.",
            &["protocol", "answer"],
        );
        Protocol::ALL.map(|protocol| {
            let p = protocol.as_str();
            for outcome in connect::Attempt::ALL {
                connects.with_label_values(&[p, outcome.as_str()]);
            }
            for answer in answer::Answered::ALL {
                answers.with_label_values(&[p, answer.as_str()]);
            }
            RelayMetrics {
                open: open.with_label_values(&[p]),
                ended: End::ALL
                    .iter()
                    .map(|end| ended.with_label_values(&[p, end.as_str()]))
                    .collect(),
                accept_errors: accept_errors.with_label_values(&[p]),
                received: bytes.with_label_values(&[p, "received"]),
                sent: bytes.with_label_values(&[p, "sent"]),
                calls: calls.with_label_values(&[p]),
                connects: connects.clone(),
                answers: answers.clone(),
                protocol,
            }
        })
    }

    fn ended(&self, end: End) {
        if let Some(i) = End::ALL.iter().position(|e| *e == end) {
            self.ended[i].inc();
        }
    }

    /// Counts an attempt to connect.
    pub fn connect(&self, outcome: connect::Attempt) {
        self.connects
            .with_label_values(&[self.protocol.as_str(), outcome.as_str()])
            .inc();
    }

    /// Counts an answer of the shim's own.
    pub fn answered(&self, answer: answer::Answered) {
        self.answers
            .with_label_values(&[self.protocol.as_str(), answer.as_str()])
            .inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_relays_have_the_same_places_and_never_more_than_descriptors() {
        for (limit, each, limited) in [
            (0, 1, true),
            (96, 16, true),
            (1024, 170, true),
            (4096, 928, true),
            (65_536, 1024, false),
            (u64::MAX, 1024, false),
        ] {
            let places = places(limit);
            assert_eq!((places.limit(), is_limited(&places)), (each, limited));
        }
    }

    #[tokio::test]
    async fn relayed_connections_notice_a_peer_that_vanished_and_bear_one_that_is_slow() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        prepare(&stream);
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(30)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(10)
        );
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }
}
