//! Connections as the relay handles them: sniffed first bytes put back, bytes counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::frames::PREFACE;

/// What a caller speaks, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// Something that may be HTTP/1.
    Http1,
    /// The HTTP/2 preface (complete).
    Http2,
    /// A TLS ClientHello.
    Tls,
}

/// Why nothing could be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silent {
    /// The caller left before it had said anything, as a TCP health check does.
    Closed,
    /// The caller said nothing, or too little, within the limit.
    Timeout,
}

/// Reads as much as is needed to tell what the caller speaks. The bytes are returned.
pub async fn sniff(stream: &mut TcpStream, limit: Duration) -> Result<(Spoken, Bytes), Silent> {
    let mut seen = BytesMut::with_capacity(1024);
    let told = async {
        loop {
            match stream.read_buf(&mut seen).await {
                Ok(0) | Err(_) => return Err(Silent::Closed),
                Ok(_) => {}
            }
            if seen.starts_with(&[0x16, 0x03]) {
                return Ok(Spoken::Tls);
            }
            if seen.starts_with(PREFACE) {
                return Ok(Spoken::Http2);
            }
            // "PRI" could still become the preface, or a request with an odd method.
            if !PREFACE.starts_with(&seen) && seen.len() > 1 {
                return Ok(Spoken::Http1);
            }
        }
    };
    let spoken = timeout(limit, told).await.unwrap_or(Err(Silent::Timeout))?;
    Ok((spoken, seen.freeze()))
}

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
