//! A caller's connection with its first bytes put back and its traffic counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection with bytes put back before it, and its traffic counted.
#[derive(Debug)]
pub struct Caller<S> {
    before: Bytes,
    stream: S,
    received: IntCounter,
    sent: IntCounter,
}

impl<S> Caller<S> {
    /// Puts `before` in front of `stream`.
    pub fn new(before: Bytes, stream: S, received: IntCounter, sent: IntCounter) -> Self {
        received.inc_by(before.len() as u64);
        Caller {
            before,
            stream,
            received,
            sent,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Caller<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.before.has_remaining() {
            let n = self.before.len().min(out.remaining());
            out.put_slice(&self.before.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let had = out.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, out);
        self.received.inc_by((out.filled().len() - had) as u64);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Caller<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = &polled {
            self.sent.inc_by(*n as u64);
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        if let Poll::Ready(Ok(n)) = &polled {
            self.sent.inc_by(*n as u64);
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
