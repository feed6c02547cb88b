//! A caller's HTTP/1.1 connection: its first bytes put back, its traffic counted, and its going
//! away noticed while a call is under way.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::leftover::Held;

/// How long an answer may still come after the caller has closed its half. MLServer answers what
/// it can answer at once and drops the rest; nobody can tell a half-closed caller from one that
/// has gone, and an inference for nobody must not run on.
const HALF_CLOSE_GRACE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(250);

/// Bytes that are read at once. The library's buffer begins with 8 KiB and doubles each time that it
/// is filled; what is left of a body before a server that has stopped keeps each buffer alive of
/// which it is a part.
pub(super) const IN_ONE_READ: usize = 8 * 1024 - 1;

/// The reading and writing side, for hyper.
#[derive(Debug)]
pub struct Caller {
    before: Bytes,
    held: Held,
    reads: Take<OwnedReadHalf>,
    writes: Arc<OwnedWriteHalf>,
    received: IntCounter,
    sent: IntCounter,
}

/// The watching side.
#[derive(Debug, Clone)]
pub struct Watch {
    stream: Arc<OwnedWriteHalf>,
    calls: Arc<Calls>,
}

/// The calls of one connection.
#[derive(Debug, Default)]
pub struct Calls {
    under_way: AtomicUsize,
    began: Notify,
}

/// A call under way; counted while it lives.
#[derive(Debug)]
pub struct UnderWay(Arc<Calls>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a caller's connection is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It has closed its half.
    Closed,
    /// It has not finished the head of a request in time.
    Silent,
}

impl Caller {
    /// Puts `before` in front of `stream`.
    pub fn new(
        before: Bytes,
        stream: TcpStream,
        received: IntCounter,
        sent: IntCounter,
    ) -> (Self, Watch) {
        received.inc_by(before.len() as u64);
        let mut held = Held::default();
        held.set(before.len());
        let (reads, writes) = stream.into_split();
        let writes = Arc::new(writes);
        let watch = Watch {
            stream: writes.clone(),
            calls: Arc::default(),
        };
        let caller = Caller {
            before,
            held,
            reads: reads.take(u64::MAX),
            writes,
            received,
            sent,
        };
        (caller, watch)
    }
}

impl Watch {
    /// Counts a call until the guard is dropped.
    pub fn under_way(&self) -> UnderWay {
        self.calls.under_way()
    }

    /// See [`Calls::gone`].
    pub async fn gone(&self, limit: Duration) -> Gone {
        self.calls.gone(limit, (*self.stream).as_ref()).await
    }
}

impl Calls {
    /// Counts a call until the guard is dropped.
    pub fn under_way(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.began.notify_one();
        UnderWay(self.clone())
    }

    /// Completes when the caller has closed its half of `stream` for longer than the grace while a
    /// call was under way, or when no call was for longer than `limit`.
    ///
    /// A busy connection is looked at four times a second, however many calls it carries: a timer
    /// for each call would cost as much as the rest of the look.
    pub async fn gone(&self, limit: Duration, stream: &TcpStream) -> Gone {
        let mut closed = Duration::ZERO;
        loop {
            if self.under_way.load(Ordering::Relaxed) == 0 {
                closed = Duration::ZERO;
                // A call that began and ended since the last look has left its notice behind.
                if timeout(limit, self.began.notified()).await.is_err() {
                    return Gone::Silent;
                }
            }
            sleep(LOOK).await;
            closed = if is_closed(stream) {
                closed + LOOK
            } else {
                Duration::ZERO
            };
            if closed > HALF_CLOSE_GRACE {
                return Gone::Closed;
            }
        }
    }
}

/// Whether the other side has closed its half, as far as the system has told.
fn is_closed(stream: &TcpStream) -> bool {
    let ready = pin!(stream.ready(Interest::READABLE));
    let mut now = Context::from_waker(Waker::noop());
    matches!(ready.poll(&mut now), Poll::Ready(Ok(ready)) if ready.is_read_closed())
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.before.has_remaining() {
            let n = self.before.len().min(out.remaining()).min(IN_ONE_READ);
            out.put_slice(&self.before.split_to(n));
            if self.before.is_empty() {
                // What was split off had the same room.
                self.before = Bytes::new();
                self.held.set(0);
            }
            return Poll::Ready(Ok(()));
        }
        let had = out.filled().len();
        self.reads.set_limit(IN_ONE_READ as u64);
        ready!(Pin::new(&mut self.reads).poll_read(cx, out))?;
        self.received.inc_by((out.filled().len() - had) as u64);
        Poll::Ready(Ok(()))
    }
}

impl Caller {
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        send: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let stream: &TcpStream = (*self.writes).as_ref();
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match send(stream) {
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

impl AsyncWrite for Caller {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |stream| stream.try_write_vectored(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream: &TcpStream = (*self.writes).as_ref();
        let socket = socket2::SockRef::from(stream);
        Poll::Ready(socket.shutdown(std::net::Shutdown::Write))
    }
}
