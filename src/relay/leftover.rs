//! Bytes that were read and that their reader does not take yet, and how much may be read at once
//! in view of what all connections hold of such.
//!
//! Nobody can tell before a read how much of it will be taken, so each connection may come to hold
//! one read in each direction. That is cheap for a few slow readers and the whole memory for a
//! thousand: the more is held in sum, the less is read at once. Refuses nothing and nobody: a call
//! before a slow reader waits, as it would without.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};

use super::splice::BUFFER;

/// What is held in sum, and what is read at once from there on: with 1,024 places in each relay and
/// two directions 32 MiB at most, of the 64 that the sidecar is usually given. Heads that have not
/// ended come on top, for as long as one may take.
const STEPS: [(usize, usize); 2] = [(16 << 20, 4 << 10), (8 << 20, 16 << 10)];

static HELD: AtomicUsize = AtomicUsize::new(0);

/// Bytes to read at once.
pub(super) fn at_once() -> usize {
    piece(HELD.load(Ordering::Relaxed))
}

fn piece(held: usize) -> usize {
    let step = STEPS.iter().find(|(from, _)| held >= *from);
    step.map_or(BUFFER, |(_, piece)| *piece)
}

/// Memory that is counted as held, while it lives.
#[derive(Debug, Default)]
pub(super) struct Held(usize);

impl Held {
    /// So many bytes from now on.
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes > self.0 {
            HELD.fetch_add(bytes - self.0, Ordering::Relaxed);
        } else if bytes < self.0 {
            HELD.fetch_sub(self.0 - bytes, Ordering::Relaxed);
        }
        self.0 = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Bytes whose reader is slow.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    bytes: Vec<u8>,
    at: usize,
    held: Held,
}

impl Leftover {
    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// What is left.
    pub(super) fn left(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes.extend_from_slice(bytes);
            self.held.set(self.bytes.capacity());
        }
    }

    /// What is left of `pieces` after `n` bytes.
    pub(super) fn put_after(&mut self, mut n: usize, pieces: &[&[u8]]) {
        for piece in pieces {
            let gone = n.min(piece.len());
            n -= gone;
            self.put(&piece[gone..]);
        }
    }

    /// Writes once, of what is there.
    pub(super) fn poll_flush(
        &mut self,
        write: impl FnOnce(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        let n = ready!(write(self.left()))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.at += n;
        if self.is_empty() {
            *self = Leftover::default();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_is_held_the_less_is_read_at_once() {
        let mut last = usize::MAX;
        for held in (0..64).map(|mb| mb << 20) {
            let piece = piece(held);
            assert!(piece <= last && piece > 0, "{held}");
            last = piece;
        }
        assert_eq!(piece(0), BUFFER);
        assert_eq!(piece((8 << 20) - 1), BUFFER);
        // All places of both relays, both ways, beyond what is held when the pieces are smallest.
        let (most, smallest) = STEPS[0];
        assert!(most + BUFFER + 2 * 2 * 1024 * smallest <= (32 << 20) + BUFFER);
    }

    #[test]
    fn a_leftover_is_counted_until_it_is_taken_or_dropped() {
        // Other tests of this program hold little, and for a moment.
        const MUCH: usize = 512 << 20;
        let count = || HELD.load(Ordering::Relaxed);
        let mut held = Held::default();
        held.set(MUCH);
        assert!(count() >= MUCH && at_once() == STEPS[0].1);
        held.set(MUCH / 2);
        assert!(count() >= MUCH / 2 && count() < MUCH);
        drop(held);
        assert!(count() < MUCH / 2);

        let mut left = Leftover::default();
        left.put_after(3, &[b"12", b"345", b"6"]);
        assert_eq!(left.left(), b"456");
        assert_eq!(left.held.0, left.bytes.capacity());
        let took_two = left.poll_flush(|bytes| {
            assert_eq!(bytes, b"456");
            Poll::Ready(Ok(2))
        });
        assert!(matches!(took_two, Poll::Ready(Ok(()))) && left.left() == b"6");
        assert!(left.poll_flush(|_| Poll::Pending).is_pending());
        let took_none = left.poll_flush(|_| Poll::Ready(Ok(0)));
        assert!(matches!(took_none, Poll::Ready(Err(_))));
        let took_all = left.poll_flush(|bytes| Poll::Ready(Ok(bytes.len())));
        assert!(matches!(took_all, Poll::Ready(Ok(()))) && left.is_empty());
        assert_eq!((left.held.0, left.bytes.capacity()), (0, 0));
    }
}
