//! The account of a run: every call, who answered it, and what was against the rules.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::time::Instant;

/// Violations that are kept in words.
const KEPT: usize = 40;

/// Shared by all that takes part. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    begun: Instant,
    next: AtomicU64,
    /// Odd while it is calm: no fault, and the shim had time to see that.
    weather: AtomicU64,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    kinds: BTreeMap<&'static str, Counts>,
    faults: BTreeMap<&'static str, u64>,
    seen: HashSet<u64>,
    violations: Vec<String>,
    more: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    ok: u64,
    by_shim: u64,
    failed: u64,
}

/// How a call ended for its caller.
#[derive(Debug)]
pub enum End {
    /// Answered by the server, and rightly.
    Ok,
    /// Answered by the shim: unavailable, with a reason.
    ByShim(String),
    /// Broken off, or failed by the server.
    Failed(String),
    /// An answer that belongs to no such call.
    Wrong(String),
    /// No end within its bound.
    Hung,
}

impl End {
    fn words(&self) -> String {
        match self {
            End::Ok => "answered".into(),
            End::ByShim(said) => format!("answered by the shim: {said}"),
            End::Failed(why) => format!("failed: {why}"),
            End::Wrong(what) => format!("a wrong answer: {what}"),
            End::Hung => "no end within its bound".into(),
        }
    }
}

impl Ledger {
    pub fn new() -> Self {
        Ledger(Arc::new(Inner {
            begun: Instant::now(),
            next: AtomicU64::new(1),
            weather: AtomicU64::new(0),
            book: Mutex::default(),
        }))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Minutes since the beginning.
    pub fn minutes(&self) -> f64 {
        self.0.begun.elapsed().as_secs_f64() / 60.0
    }

    /// A number for a call.
    pub fn number(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A mark of the weather; it is another one after each change.
    pub fn weather(&self) -> u64 {
        self.0.weather.load(Ordering::SeqCst)
    }

    pub fn is_calm(&self) -> bool {
        self.weather() % 2 == 1
    }

    /// Says whether it is calm from now on.
    pub fn calm(&self, calm: bool) {
        if self.is_calm() != calm {
            self.0.weather.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub fn fault(&self, name: &'static str) {
        *self.book().faults.entry(name).or_default() += 1;
    }

    /// A call over a connection that was opened in this weather has ended. In a calm that held
    /// since, only a right answer is right.
    pub fn ended(&self, kind: &'static str, number: u64, opened: u64, end: &End) {
        let calm = opened % 2 == 1 && opened == self.weather();
        {
            let mut book = self.book();
            let counts = book.kinds.entry(kind).or_default();
            match end {
                End::Ok => counts.ok += 1,
                End::ByShim(_) => counts.by_shim += 1,
                End::Failed(_) | End::Wrong(_) | End::Hung => counts.failed += 1,
            }
        }
        match end {
            End::Ok => {}
            End::Hung | End::Wrong(_) => {
                self.violation(format!("{kind} call {number}: {}", end.words()))
            }
            _ if calm => self.violation(format!("{kind} call {number} in a calm: {}", end.words())),
            _ => {}
        }
    }

    /// The server has seen this call.
    pub fn arrived(&self, number: u64) {
        if !self.book().seen.insert(number) {
            self.violation(format!("call {number} arrived twice"));
        }
    }

    /// Something is against the rules.
    pub fn violation(&self, what: String) {
        let line = format!("at {:.2} min: {what}", self.minutes());
        eprintln!("soak: VIOLATION {line}");
        let mut book = self.book();
        if book.violations.len() < KEPT {
            book.violations.push(line);
        } else {
            book.more += 1;
        }
    }

    /// Everything, for the report.
    pub fn report(&self) -> Value {
        let book = self.book();
        let calls: BTreeMap<_, _> = book
            .kinds
            .iter()
            .map(|(kind, c)| {
                let counts = json!({"ok": c.ok, "answered_by_shim": c.by_shim, "failed": c.failed});
                (*kind, counts)
            })
            .collect();
        json!({
            "calls": calls,
            "seen_by_server": book.seen.len(),
            "faults": book.faults,
            "violations": book.violations,
            "further_violations": book.more,
        })
    }
}
