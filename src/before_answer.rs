//! The connection to an HTTP server, for the library that speaks on it: what the server may say
//! before it answers is bounded, and is taken in portions.
//!
//! The library reads and drops interim answers (1xx) for as long as there are any, in one turn of
//! the one thread; a server that says nothing else would leave no turn to anybody. Knows no HTTP,
//! only bytes and whether an answer is due. A server that says too much loses the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes before the head of an answer has been taken. Above the largest head and what of the body
/// may come with it: the library reads up to three buffers of 72 KiB before the answer is seen.
pub(crate) const LIMIT: usize = 512 * 1024;

/// Bytes that are read in one turn while an answer is due.
const PORTION: usize = 16 * 1024;

const UNBOUNDED: usize = usize::MAX;

/// What is left of [`LIMIT`]. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Left(Arc<AtomicUsize>);

impl Left {
    /// A request is about to be sent.
    pub(crate) fn asked(&self) {
        self.0.store(LIMIT, Ordering::Relaxed);
    }

    /// The head of its answer is there; a body may be of any length.
    pub(crate) fn answered(&self) {
        self.0.store(UNBOUNDED, Ordering::Relaxed);
    }

    /// Whether the server has said too much.
    pub(crate) fn is_used_up(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// A connection on which an answer is due from the beginning.
#[derive(Debug)]
pub(crate) struct BeforeAnswer {
    stream: TcpStream,
    left: Left,
    /// Bytes read since the socket was last empty, or others last had their turn.
    in_a_row: usize,
}

impl BeforeAnswer {
    pub(crate) fn new(stream: TcpStream) -> Self {
        BeforeAnswer {
            stream,
            left: Left(Arc::new(AtomicUsize::new(LIMIT))),
            in_a_row: 0,
        }
    }

    /// For who asks more than once, or for more than a few bytes.
    pub(crate) fn left(&self) -> Left {
        self.left.clone()
    }
}

impl AsyncRead for BeforeAnswer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.left.0.load(Ordering::Relaxed);
        if left == UNBOUNDED {
            return Pin::new(&mut self.stream).poll_read(cx, out);
        }
        if left == 0 {
            let why = format!("the server said {LIMIT} bytes and more before it answered");
            return Poll::Ready(Err(io::Error::other(why)));
        }
        if self.in_a_row >= PORTION {
            self.in_a_row = 0;
            return crate::turns::pass(cx);
        }
        let had = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        if read.is_pending() {
            self.in_a_row = 0;
        }
        ready!(read)?;
        let n = out.filled().len() - had;
        self.in_a_row += n;
        self.left.0.store(left.saturating_sub(n), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BeforeAnswer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
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
