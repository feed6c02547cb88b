//! Reading and writing for a call, without a buffer of its own: bytes rest in the thread's only
//! between a read and the write that follows, and elsewhere only while their reader is slow.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use prometheus::IntCounter;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::relay::leftover;
use crate::relay::splice::with_buffer;

/// Rounds of reading and writing in one turn of the thread: others are served in between.
pub(super) const IN_A_ROW: u8 = 16;

/// Reads once, at most `most` bytes and no more than may be left over, and gives what was read to
/// `take`.
pub(super) fn poll_read<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    most: u64,
    take: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<T>> {
    with_buffer(|buffer| {
        let at_once = leftover::at_once();
        let most = usize::try_from(most).map_or(at_once, |most| most.min(at_once));
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
