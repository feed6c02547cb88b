//! A connection as bytes: what the answers above it have to know of the socket below.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::world::World;
use crate::endpoint::Protocol;
use crate::relay::frames::{PREFACE, Walker};

/// What is known of one connection, shared with its calls.
#[derive(Debug)]
pub(super) struct Tap {
    pub(super) number: u64,
    /// Set where the connection is to end with a reset instead of an orderly close.
    pub(super) reset: AtomicBool,
    written: watch::Sender<u64>,
    running: AtomicUsize,
    idle_since: watch::Sender<Option<Instant>>,
}

impl Tap {
    pub(super) fn new(number: u64) -> Self {
        Tap {
            number,
            reset: AtomicBool::new(false),
            written: watch::Sender::new(0),
            running: AtomicUsize::new(0),
            idle_since: watch::Sender::new(None),
        }
    }

    /// Bytes handed to the kernel so far.
    pub(super) fn written(&self) -> u64 {
        *self.written.borrow()
    }

    /// Waits until at least so many bytes have been handed to the kernel.
    pub(super) async fn until_written(&self, total: u64) {
        // The sender is in `self`, so waiting cannot fail.
        let _ = self.written.subscribe().wait_for(|n| *n >= total).await;
    }

    pub(super) fn call_begins(&self) {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.idle_since.send_replace(None);
    }

    pub(super) fn call_ends(&self) {
        if self.running.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.idle_since.send_replace(Some(Instant::now()));
        }
    }

    /// Completes when the connection has been idle after an answer for as long as `limit` says.
    /// One that has never had a request, or has half a request, is not idle: as in MLServer.
    pub(super) async fn idle(&self, limit: impl Fn() -> Duration) {
        let mut idle = self.idle_since.subscribe();
        loop {
            let since = *idle.borrow_and_update();
            let over = async {
                match since {
                    Some(at) => sleep_until(at + limit()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                _ = idle.changed() => {}
            }
        }
    }
}

/// The socket of a connection.
pub(super) struct Wire {
    stream: TcpStream,
    tap: Arc<Tap>,
    pings: Option<Pings>,
}

struct Pings {
    world: Arc<World>,
    /// The preface has no frame head.
    preface_left: usize,
    walker: Walker,
}

impl Wire {
    pub(super) fn new(
        stream: TcpStream,
        protocol: Protocol,
        tap: Arc<Tap>,
        world: &Arc<World>,
    ) -> Self {
        let pings = (protocol == Protocol::Grpc).then(|| Pings {
            world: world.clone(),
            preface_left: PREFACE.len(),
            walker: Walker::default(),
        });
        Wire { stream, tap, pings }
    }
}

impl Pings {
    fn heard(&mut self, bytes: &[u8]) {
        let skipped = self.preface_left.min(bytes.len());
        self.preface_left -= skipped;
        let mut pings = 0;
        self.walker.feed(&bytes[skipped..], |head| {
            pings += usize::from(head.is_ping());
        });
        if pings > 0 {
            self.world.counted(Protocol::Grpc, |n| n.pings += pings);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.tap.reset.load(Ordering::Relaxed) {
            // Closing a socket that does not linger sends RST instead of FIN.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        } else {
            // The end is seen at once, also where another process holds a copy for a moment.
            let _ = SockRef::from(&self.stream).shutdown(Shutdown::Both);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let had = out.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
        let heard = &out.filled()[had..];
        if !heard.is_empty() {
            self.tap
                .idle_since
                .send_if_modified(|since| since.take().is_some());
        }
        if let Some(pings) = &mut self.pings {
            pings.heard(heard);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.tap.written.send_modify(|total| *total += n as u64);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
