//! The record of every call that arrived, and how it ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use http::{HeaderMap, Request};
use tokio::sync::watch;

use super::wire::Tap;
use crate::endpoint::Protocol;

/// How a call ended, as the stand-in saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has not ended.
    Running,
    /// The whole answer was handed to the connection.
    Completed,
    /// It ended before: the caller cancelled it or went away, or the stand-in was told to break
    /// it off or was stopped.
    Cancelled,
}

/// A call that arrived.
#[derive(Debug, Clone)]
pub struct Call {
    /// Over which protocol.
    pub protocol: Protocol,
    /// The HTTP method; `POST` for gRPC.
    pub method: String,
    /// The path with its query; for gRPC `/service/method`.
    pub path: String,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The request's trailers, once they have arrived.
    pub trailers: Option<HeaderMap>,
    /// Bytes of body received so far; for gRPC with the 5 bytes before each message.
    pub body_bytes: u64,
    /// The number of the connection, from 1, over both protocols.
    pub connection: u64,
    /// How it ended.
    pub outcome: Outcome,
}

impl Call {
    /// Whether it is a call to this path; the query is not compared.
    pub fn is_to(&self, path: &str) -> bool {
        self.path.split('?').next() == Some(path)
    }

    /// The first value of a request header, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A stand-in that is left alone with a prober for days must not grow.
const KEPT: usize = 10_000;

/// Told of every call as it arrives.
pub(super) type Listener = Box<dyn Fn(&Call) + Send + Sync>;

#[derive(Default)]
pub(super) struct Journal {
    log: Mutex<Log>,
    changed: watch::Sender<u64>,
    listener: OnceLock<Listener>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Log {
    /// The number of the first call that is kept.
    first: usize,
    calls: VecDeque<Call>,
}

impl Journal {
    pub(super) fn all(&self) -> Vec<Call> {
        self.log().calls.iter().cloned().collect()
    }

    pub(super) fn from(&self, number: usize) -> (Vec<Call>, usize) {
        let log = self.log();
        let skipped = number.saturating_sub(log.first);
        let calls = log.calls.iter().skip(skipped).cloned().collect();
        (calls, log.first + log.calls.len())
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The first listener stays.
    pub(super) fn listen(&self, listener: Listener) {
        let _ = self.listener.set(listener);
    }

    /// Wakes everybody who waits for a change.
    pub(super) fn changed(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Records a call that has just arrived.
    pub(super) fn begin<B>(
        self: &Arc<Self>,
        protocol: Protocol,
        tap: &Arc<Tap>,
        request: &Request<B>,
    ) -> Arc<Entry> {
        let target = request.uri().path_and_query();
        let call = Call {
            protocol,
            method: request.method().to_string(),
            path: target.map_or_else(String::new, ToString::to_string),
            headers: request.headers().clone(),
            trailers: None,
            body_bytes: 0,
            connection: tap.number,
            outcome: Outcome::Running,
        };
        tap.call_begins();
        if let Some(listener) = self.listener.get() {
            listener(&call);
        }
        let number = {
            let mut log = self.log();
            if log.calls.len() == KEPT {
                log.calls.pop_front();
                log.first += 1;
            }
            log.calls.push_back(call);
            log.first + log.calls.len() - 1
        };
        self.changed();
        Arc::new(Entry {
            journal: self.clone(),
            tap: tap.clone(),
            number,
            ended: AtomicBool::new(false),
        })
    }

    fn update(&self, number: usize, change: impl FnOnce(&mut Call)) {
        let mut log = self.log();
        let index = number.checked_sub(log.first);
        if let Some(call) = index.and_then(|i| log.calls.get_mut(i)) {
            change(call);
        }
        drop(log);
        self.changed();
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call while it runs. A call whose entry is dropped without an end was cancelled.
#[derive(Debug)]
pub(super) struct Entry {
    journal: Arc<Journal>,
    tap: Arc<Tap>,
    number: usize,
    ended: AtomicBool,
}

impl Entry {
    pub(super) fn received(&self, bytes: usize) {
        self.journal
            .update(self.number, |call| call.body_bytes += bytes as u64);
    }

    pub(super) fn trailers(&self, trailers: &HeaderMap) {
        self.journal
            .update(self.number, |call| call.trailers = Some(trailers.clone()));
    }

    /// The first end counts.
    pub(super) fn end(&self, outcome: Outcome) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.journal
                .update(self.number, |call| call.outcome = outcome);
            self.tap.call_ends();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}
