//! Reading and writing for a call, without a buffer of its own: bytes rest in the thread's only
//! between a read and the write that follows, and elsewhere only while their reader is slow.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use prometheus::IntCounter;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::relay::splice::{BUFFER, with_buffer};

/// Rounds of reading and writing in one turn of the thread: others are served in between.
pub(super) const IN_A_ROW: u8 = 16;

/// Reads once, at most `most` bytes, and gives what was read to `take`.
pub(super) fn poll_read<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    most: u64,
    take: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<T>> {
    with_buffer(|buffer| {
        let most = usize::try_from(most).map_or(BUFFER, |most| most.min(BUFFER));
        let mut into = ReadBuf::new(&mut buffer[..most]);
        ready!(Pin::new(stream).poll_read(cx, &mut into))?;
        Poll::Ready(Ok(take(into.filled(), cx)))
    })
}

/// The caller's side of a connection.
#[derive(Debug)]
pub(super) struct Caller<'a> {
    pub(super) reads: ReadHalf<'a>,
    pub(super) writes: &'a WriteHalf<'a>,
    pub(super) received: &'a IntCounter,
    pub(super) sent: &'a IntCounter,
}

impl Caller<'_> {
    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream: &TcpStream = self.writes.as_ref();
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_write_vectored(pieces) {
                Ok(n) => {
                    self.sent.inc_by(n as u64);
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// Bytes whose reader is slow.
#[derive(Debug, Default)]
pub(super) struct Rest {
    bytes: Vec<u8>,
    at: usize,
}

impl Rest {
    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What is left of `pieces` after `n` bytes.
    pub(super) fn put_after(&mut self, mut n: usize, pieces: &[&[u8]]) {
        for piece in pieces {
            let gone = n.min(piece.len());
            n -= gone;
            self.put(&piece[gone..]);
        }
    }

    /// Writes once; whether anything was there.
    pub(super) fn poll_flush(
        &mut self,
        write: impl FnOnce(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        let n = ready!(write(&self.bytes[self.at..]))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.at += n;
        if self.is_empty() {
            *self = Rest::default();
        }
        Poll::Ready(Ok(()))
    }
}
