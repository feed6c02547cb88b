//! Memory of the process for what callers have begun to say and nobody has taken yet.
//!
//! One sum for all callers, because the limit of the container is one. A caller in excess is
//! refused, never served by halves; what is refused costs that caller its call and nobody else.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes for all callers together: far above what all agents and probes ever hold, and a quarter of
/// the memory that the sidecar is usually given.
const LIMIT: usize = 16 * 1024 * 1024;

/// Beyond it, for those without whom nothing goes on: the agent's question whether the server
/// lives, which ends the agent where it is refused, and its subscription.
const RESERVE: usize = 2 * 1024 * 1024;

/// The shim's own part of a call that is served here and not carried as bytes.
const CALL: usize = 8 * 1024;

static HELD: AtomicUsize = AtomicUsize::new(0);
/// The part of it that is of messages not yet whole.
static UNFINISHED: AtomicUsize = AtomicUsize::new(0);

/// Bytes that are held, while it lives.
#[derive(Debug, Default)]
pub struct Charge {
    held: usize,
    unfinished: usize,
}

/// The common budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much is held for other callers already")]
pub struct Exhausted;

impl Charge {
    /// Adds to what is held.
    pub fn add(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.within(bytes, LIMIT)
    }

    /// Adds to what is held for a call without which nothing goes on.
    pub fn add_vital(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.within(bytes, LIMIT + RESERVE)
    }

    /// Adds what has come of a message that is not whole yet. All of these together may take half:
    /// callers who begin and never end leave room for the calls of others.
    pub fn unfinished(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let before = UNFINISHED.fetch_add(bytes, Ordering::Relaxed);
        self.unfinished += bytes;
        self.within(bytes, LIMIT)?;
        if before.saturating_add(bytes) > LIMIT / 2 {
            return Err(Exhausted);
        }
        Ok(())
    }

    fn within(&mut self, bytes: usize, limit: usize) -> Result<(), Exhausted> {
        let before = HELD.fetch_add(bytes, Ordering::Relaxed);
        self.held += bytes;
        if before.saturating_add(bytes) > limit {
            return Err(Exhausted);
        }
        Ok(())
    }

    /// What a call holds while it runs: its headers, their table, and the shim's own part.
    pub fn call(headers: &http::HeaderMap) -> Result<Charge, Exhausted> {
        Charge::call_within(headers, LIMIT)
    }

    /// The same for one without which nothing goes on.
    pub fn vital_call(headers: &http::HeaderMap) -> Result<Charge, Exhausted> {
        Charge::call_within(headers, LIMIT + RESERVE)
    }

    fn call_within(headers: &http::HeaderMap, limit: usize) -> Result<Charge, Exhausted> {
        // What the map takes for one entry beside its text.
        const ENTRY: usize = 96;
        let bytes = headers
            .iter()
            .map(|(name, value)| ENTRY + name.as_str().len() + value.len());
        let mut charge = Charge::default();
        charge.within(CALL + bytes.sum::<usize>(), limit)?;
        Ok(charge)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        HELD.fetch_sub(self.held, Ordering::Relaxed);
        UNFINISHED.fetch_sub(self.unfinished, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// The sum is one for the whole program, these tests included.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    #[test]
    fn what_is_given_back_can_be_held_again() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..3 {
            let mut all = Charge::default();
            assert_eq!(all.add(LIMIT + 1), Err(Exhausted));
        }
        let mut headers = http::HeaderMap::new();
        headers.insert("x", http::HeaderValue::from_static("12345"));
        let mut charge = Charge::default();
        charge.add(1).unwrap();
        assert_eq!(Charge::call(&headers).unwrap().held, CALL + 96 + 6);
    }

    #[test]
    fn what_is_unfinished_leaves_half_to_calls() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unfinished = Charge::default();
        assert_eq!(unfinished.unfinished(LIMIT / 2 + 1), Err(Exhausted));
        drop(unfinished);
        let (mut first, mut second) = (Charge::default(), Charge::default());
        // Other tests of this program hold a little at the same time.
        first.unfinished(LIMIT / 2 - LIMIT / 8).unwrap();
        assert_eq!(second.unfinished(LIMIT / 4), Err(Exhausted));
        second.add(LIMIT / 8).unwrap();
    }

    #[test]
    fn what_calls_hold_does_not_refuse_their_messages_and_some_go_on_in_any_case() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut calls, mut message) = (Charge::default(), Charge::default());
        calls.add(LIMIT / 2 + 1).unwrap();
        message.unfinished(1024).unwrap();
        drop(message);
        // Up to the limit; tests elsewhere may have taken the last of it.
        let _ = calls.add(LIMIT / 2 - 1);
        let headers = http::HeaderMap::new();
        assert_eq!(Charge::call(&headers).err(), Some(Exhausted));
        let mut vital = Charge::vital_call(&headers).unwrap();
        vital.add_vital(RESERVE / 2).unwrap();
    }
}
