//! The account of every call: when it was sent, what came of it and from whom. What the server
//! received is in the server's own record.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::Instant;

/// What kind of caller makes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    HttpUnary,
    GrpcUnary,
    GrpcStream,
    HttpLarge,
    GrpcLarge,
}

impl Kind {
    pub const ALL: [Kind; 5] = [
        Kind::HttpUnary,
        Kind::GrpcUnary,
        Kind::GrpcStream,
        Kind::HttpLarge,
        Kind::GrpcLarge,
    ];
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The server's whole, right answer.
    Served,
    /// The shim's own answer.
    ByShim(String),
    /// The server's answer, and not the one that was asked for.
    ByServer(String),
    /// No whole answer.
    Broken(String),
    /// Nobody listened.
    NotConnected(String),
    /// The connection ended before it was sent: every caller asks again by itself.
    NotSent,
    /// No end within the caller's own, long limit.
    Hung,
}

impl Fate {
    /// Whether a caller has to be told of a failure.
    pub fn is_loss(&self) -> bool {
        !matches!(self, Fate::Served | Fate::NotSent)
    }
}

#[derive(Debug, Clone)]
pub struct Call {
    pub id: u64,
    pub kind: Kind,
    pub begun: Instant,
    /// `None` while it runs.
    pub end: Option<(Instant, Fate)>,
}

/// How many calls ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub begun: usize,
    pub served: usize,
    pub by_shim: usize,
    pub by_server: usize,
    pub broken: usize,
    pub not_connected: usize,
    pub not_sent: usize,
    pub hung: usize,
}

impl Tally {
    pub fn of(calls: &[Call]) -> Tally {
        let mut tally = Tally::default();
        for call in calls {
            tally.begun += 1;
            *match call.end.as_ref().map(|(_, fate)| fate) {
                Some(Fate::Served) => &mut tally.served,
                Some(Fate::ByShim(_)) => &mut tally.by_shim,
                Some(Fate::ByServer(_)) => &mut tally.by_server,
                Some(Fate::Broken(_)) => &mut tally.broken,
                Some(Fate::NotConnected(_)) => &mut tally.not_connected,
                Some(Fate::NotSent) => &mut tally.not_sent,
                Some(Fate::Hung) | None => &mut tally.hung,
            } += 1;
        }
        tally
    }

    /// Those of which a caller has to be told that they failed.
    pub fn lost(self) -> usize {
        self.begun - self.served - self.not_sent
    }
}

/// Every call of a cell.
#[derive(Debug, Default)]
pub struct Ledger {
    next: AtomicU64,
    calls: Mutex<HashMap<u64, Call>>,
    unasked: Mutex<Vec<String>>,
}

impl Ledger {
    pub fn begin(&self, kind: Kind) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let call = Call {
            id,
            kind,
            begun: Instant::now(),
            end: None,
        };
        self.calls.lock().unwrap().insert(id, call);
        id
    }

    /// The end of a call. A second end is an answer too many, and never happens unnoticed.
    pub fn end(&self, id: u64, fate: Fate) {
        let mut calls = self.calls.lock().unwrap();
        let call = calls.get_mut(&id).expect("it has begun");
        assert!(call.end.is_none(), "call {id} was answered twice");
        call.end = Some((Instant::now(), fate));
    }

    /// Whether nobody waits any more with a call from before then, and of every kind a call was served
    /// that began later. A stream only ends with its caller.
    pub fn is_over(&self, then: Instant) -> bool {
        let calls = self.calls.lock().unwrap();
        let of = |kind| calls.values().filter(move |call| call.kind == kind);
        let over = |kind| {
            let waits = of(kind).any(|call| call.begun < then && call.end.is_none());
            let mut later = of(kind).filter(|call| call.begun >= then);
            let served = later.any(|c| c.end.as_ref().is_some_and(|(_, f)| *f == Fate::Served));
            served && !waits
        };
        let mut kinds = Kind::ALL.into_iter();
        kinds.all(|kind| kind == Kind::GrpcStream || over(kind))
    }

    /// A caller got what is no answer to a call of its own: one too many, or bytes of no protocol.
    pub fn unasked(&self, what: String) {
        self.unasked.lock().unwrap().push(what);
    }

    /// Everything of that kind.
    pub fn all_unasked(&self) -> Vec<String> {
        self.unasked.lock().unwrap().clone()
    }

    /// All calls in the order of their beginning.
    pub fn calls(&self) -> Vec<Call> {
        let mut all: Vec<Call> = self.calls.lock().unwrap().values().cloned().collect();
        all.sort_by_key(|c| c.id);
        all
    }
}
