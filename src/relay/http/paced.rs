//! A request's body on its way to a server that takes it slowly, for the library that speaks to it.
//!
//! The library gathers up to 16 pieces before it has written one. Each keeps the buffer alive that it
//! was read into, so that a thousand callers before a server that has stopped would fill the memory.
//! Here a body gives its next piece when the last one has been written: the socket has a buffer, too.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http_body::{Body, Frame, SizeHint};
use hyper::body::{Bytes, Incoming};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::leftover::Held;

/// What the library has for each piece, however small that is.
const PIECE: usize = 8 * 1024;

/// What of a body is on its way through one connection to the server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Flow(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// A piece was given that has not been written yet.
    under_way: bool,
    held: Held,
    waiting: Option<Waker>,
}

impl Flow {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if !state.under_way {
            return Poll::Ready(());
        }
        state.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    fn gave(&self, bytes: usize) {
        let mut state = self.state();
        state.under_way = bytes > 0;
        // As much again waits on the caller's side: in the library's buffer, and between the two.
        let each = bytes.min(1) * bytes.max(PIECE);
        state.held.set(3 * each);
    }

    fn written(&self) {
        let mut state = self.state();
        state.under_way = false;
        state.held.set(0);
        if let Some(waiting) = state.waiting.take() {
            waiting.wake();
        }
    }
}

/// The body of a caller's request.
#[derive(Debug)]
pub(super) struct Paced {
    body: Incoming,
    flow: Flow,
}

impl Paced {
    pub(super) fn new(body: Incoming) -> Self {
        Paced {
            body,
            flow: Flow::default(),
        }
    }

    /// Goes through this connection from now on; nothing of it has gone through another.
    pub(super) fn through(&mut self, flow: &Flow) {
        self.flow = flow.clone();
    }

    /// The rest of it, for who reads it himself.
    pub(super) fn into_inner(self) -> Incoming {
        self.body
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        ready!(self.flow.poll_room(cx));
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.flow.gave(data.len());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that tells when all that was given to it has been written: the library flushes it
/// when its own buffer is empty, and not before.
#[derive(Debug)]
pub(super) struct Telling<S> {
    stream: S,
    flow: Flow,
}

impl<S> Telling<S> {
    pub(super) fn new(stream: S, flow: Flow) -> Self {
        Telling { stream, flow }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Telling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Telling<S> {
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
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.flow.written();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
