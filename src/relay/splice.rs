//! Carries one connection as bytes, both ways, until an end closes it.
//!
//! The lowest layer that does the job: no payload is parsed or copied twice, an idle connection
//! holds no buffer, and a slow reader stops the other side's sending. On HTTP/2 connections frame
//! heads are followed, so that GOAWAY can be put between two frames and calls can be counted.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus::IntCounter;
use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio::time::timeout;

use super::frames::{Calls, Filter, FrameHead, GOAWAY, pong};
use super::leftover::{self, Leftover};
use crate::drain::in_flight::InFlight;
use crate::places::Marker;

/// How long one half may outlive the other: time to take what is still on the way.
const LINGER: Duration = Duration::from_secs(5);
/// What is read and dropped meanwhile of a caller whose far end takes no more.
const DROPPED: u64 = 1 << 20;
/// What is read at once.
pub(super) const BUFFER: usize = 64 * 1024;
/// Full buffers that are carried in one turn of the thread: others are served in between.
const IN_A_ROW: u8 = 16;

thread_local! {
    // One buffer a thread: bytes rest in it only between a read and the write that follows.
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Lends the thread's buffer, for a read and the write that follows.
pub(super) fn with_buffer<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SHARED.with_borrow_mut(|buffer| work(buffer))
}

/// The far end of a spliced connection.
#[derive(Debug)]
pub enum Far {
    /// The inference server.
    Server(TcpStream),
    /// The shim's own HTTP/2 service, in this process.
    Local(UnixStream),
}

impl Far {
    fn split(&mut self) -> (FarReads<'_>, FarWrites<'_>) {
        match self {
            Far::Server(s) => {
                let (reads, writes) = s.split();
                (FarReads::Server(reads), FarWrites::Server(writes))
            }
            Far::Local(s) => {
                let (reads, writes) = s.split();
                (FarReads::Local(reads), FarWrites::Local(writes))
            }
        }
    }
}

enum FarReads<'a> {
    Server(tcp::ReadHalf<'a>),
    Local(unix::ReadHalf<'a>),
}

impl AsyncRead for FarReads<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            FarReads::Server(s) => Pin::new(s).poll_read(cx, into),
            FarReads::Local(s) => Pin::new(s).poll_read(cx, into),
        }
    }
}

enum FarWrites<'a> {
    Server(tcp::WriteHalf<'a>),
    Local(unix::WriteHalf<'a>),
}

/// Where one direction ends.
trait Sink {
    async fn writable(&self) -> io::Result<()>;
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn end(&self);
}

impl Sink for tcp::WriteHalf<'_> {
    async fn writable(&self) -> io::Result<()> {
        tcp::WriteHalf::writable(self).await
    }
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        tcp::WriteHalf::try_write(self, bytes)
    }
    fn end(&self) {
        let stream: &TcpStream = self.as_ref();
        // Fails only where the connection is gone already.
        let _ = SockRef::from(stream).shutdown(Shutdown::Write);
    }
}

impl Sink for FarWrites<'_> {
    async fn writable(&self) -> io::Result<()> {
        match self {
            FarWrites::Server(s) => s.writable().await,
            FarWrites::Local(s) => s.writable().await,
        }
    }
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            FarWrites::Server(s) => s.try_write(bytes),
            FarWrites::Local(s) => s.try_write(bytes),
        }
    }
    fn end(&self) {
        match self {
            FarWrites::Server(s) => s.end(),
            FarWrites::Local(s) => {
                let stream: &UnixStream = s.as_ref();
                let _ = SockRef::from(stream).shutdown(Shutdown::Write);
            }
        }
    }
}

/// What is known of an HTTP/2 connection that is carried on; see [`super::opening::Opening`].
#[derive(Debug)]
pub struct Http2 {
    /// On the way to the server.
    pub from_caller: Filter,
    /// On the way to the caller.
    pub from_server: Filter,
    /// Pings of the caller that are still to be answered.
    pub pings: Vec<[u8; 8]>,
    /// Calls that are open already.
    pub calls: Calls,
    /// Counts calls that the caller opens, those included.
    pub opened: IntCounter,
    /// Counts calls while they are open.
    pub in_flight: InFlight,
    /// Told whether any call is open: only an idle connection gives way to another.
    pub marker: Option<Marker>,
    /// Whether what comes back are results of the server's worker.
    pub infers: bool,
}

/// The calls of one connection, which count as running until they or the connection end.
struct Running {
    infers: bool,
    calls: Calls,
    in_flight: InFlight,
    marker: Option<Marker>,
}

impl Running {
    fn new(infers: bool, calls: Calls, in_flight: InFlight, marker: Option<Marker>) -> Self {
        let running = Running {
            infers,
            calls,
            in_flight,
            marker,
        };
        running.moved(0, running.calls.open());
        running
    }

    fn see<T>(&mut self, look: impl FnOnce(&mut Calls) -> T) -> T {
        let before = self.calls.open();
        let seen = look(&mut self.calls);
        self.moved(before, self.calls.open());
        seen
    }

    /// One mark stands for all of them.
    fn moved(&self, before: usize, after: usize) {
        self.in_flight.moved(before, after);
        match (&self.marker, before > 0, after > 0) {
            (Some(marker), false, true) => marker.begins(),
            (Some(marker), true, false) => marker.ends(),
            _ => {}
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.moved(self.calls.open(), 0);
    }
}

/// One connection to carry.
#[derive(Debug)]
pub struct Splice {
    /// The caller.
    pub caller: TcpStream,
    /// The other end.
    pub far: Far,
    /// Bytes that were read from the caller before.
    pub to_server: Vec<u8>,
    /// Bytes that the caller is still to get first.
    pub to_caller: Vec<u8>,
    /// Set for HTTP/2; other bytes are not looked at.
    pub http2: Option<Http2>,
    /// Counts bytes from the caller.
    pub received: IntCounter,
    /// Counts bytes to the caller.
    pub sent: IntCounter,
}

/// How a spliced connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The caller closed, or both did.
    Caller,
    /// The far end closed.
    Far,
    /// Either end reset it.
    Reset,
}

impl Splice {
    /// Carries until an end closes. When `move_on` completes the caller is told by GOAWAY to take
    /// a new connection for its next call; running calls stay.
    pub async fn run(mut self, move_on: impl Future<Output = ()>) -> Ended {
        let pongs = Pongs::default();
        let (from_caller, from_server, running, opened) = match self.http2 {
            Some(h) => {
                pongs.push(&h.pings);
                (
                    Some(h.from_caller),
                    Some(h.from_server),
                    Running::new(h.infers, h.calls, h.in_flight, h.marker),
                    Some(h.opened),
                )
            }
            None => {
                let none = Running::new(false, Calls::default(), InFlight::default(), None);
                (None, None, none, None)
            }
        };
        if let Some(opened) = &opened {
            opened.inc_by(running.calls.open() as u64);
        }
        let calls = Mutex::new(running);
        let lock = || calls.lock().unwrap_or_else(PoisonError::into_inner);
        let (caller_reads, caller_writes) = self.caller.split();
        let (far_reads, far_writes) = self.far.split();
        let mut upward = Half {
            from: caller_reads,
            to: far_writes,
            filter: from_caller,
            pongs: &pongs,
            bytes: &self.received,
        };
        let mut downward = Half {
            from: far_reads,
            to: caller_writes,
            filter: from_server,
            pongs: &pongs,
            bytes: &self.sent,
        };
        let mut up = pin!(async {
            let count = |head: &FrameHead| {
                if lock().see(|calls| calls.from_caller(head))
                    && let Some(opened) = &opened
                {
                    opened.inc();
                }
            };
            // Not kept for as long as the connection is open, which may be days.
            let first = self.to_server;
            let mut done = upward.send(&first).await;
            drop(first);
            if done.is_ok() {
                let never = std::future::pending();
                done = upward.carry(never, Direction::Up, count).await;
            }
            if done == Err(Broken::Sink) {
                // What the far end said before it closed is still to be carried, and would be
                // destroyed by the reset that bytes bring which nobody has read.
                // Boxed: most connections never get there, and would carry its room with them.
                let _ = Box::pin(timeout(LINGER, upward.drop_rest())).await;
            }
            done
        });
        let mut down = pin!(async {
            let count = |head: &FrameHead| {
                let mut running = lock();
                // A call that fails ends without a piece of a message.
                if running.infers && head.is_data() {
                    running.in_flight.answered();
                }
                running.see(|calls| calls.from_server(head));
            };
            let first = self.to_caller;
            downward.send(&first).await?;
            drop(first);
            downward.carry(move_on, Direction::Down, count).await
        });
        tokio::select! {
            done = &mut up => match done {
                Err(Broken::Source) => Ended::Reset,
                Err(Broken::Sink) => {
                    let _ = timeout(LINGER, down).await;
                    Ended::Reset
                }
                // The caller has said all: the server may still answer, for a while.
                Ok(()) => match timeout(LINGER, down).await {
                    Ok(Err(_)) => Ended::Reset,
                    Ok(Ok(())) | Err(_) => Ended::Caller,
                },
            },
            done = &mut down => match done {
                Err(_) => Ended::Reset,
                // What the caller still sends is read and dropped by a closed server's socket, so
                // that its last answer is not destroyed by a reset.
                Ok(()) => match timeout(LINGER, up).await {
                    Ok(Err(Broken::Sink)) => Ended::Reset,
                    _ => Ended::Far,
                },
            },
        }
    }
}

/// Answers to the caller's pings, on their way from one half to the other.
#[derive(Debug, Default)]
struct Pongs {
    due: Mutex<Vec<[u8; 8]>>,
    any: AtomicBool,
}

/// Pings that may wait for their answer. A caller gets there only by asking faster than it reads.
const MAX_PONGS: usize = 1024;

impl Pongs {
    fn lock(&self) -> MutexGuard<'_, Vec<[u8; 8]>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait now.
    fn push(&self, pings: &[[u8; 8]]) -> usize {
        let mut due = self.lock();
        due.extend_from_slice(pings);
        self.any.store(!due.is_empty(), Ordering::Relaxed);
        due.len()
    }

    fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    fn take(&self) -> Vec<u8> {
        self.any.store(false, Ordering::Relaxed);
        self.lock().drain(..).flat_map(pong).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

struct Half<'a, F, T> {
    from: F,
    to: T,
    filter: Option<Filter>,
    pongs: &'a Pongs,
    bytes: &'a IntCounter,
}

/// Which end of a direction has broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// Nothing more is to be had from there.
    Source,
    /// It takes no more.
    Sink,
}

impl<F: AsyncRead + Unpin, T: Sink> Half<'_, F, T> {
    /// Reads on until the source ends, or enough was read, and drops it.
    async fn drop_rest(&mut self) {
        let mut left = DROPPED;
        while left > 0 {
            let read = poll_fn(|cx| {
                with_buffer(|buffer| {
                    let mut into = ReadBuf::new(buffer);
                    ready!(Pin::new(&mut self.from).poll_read(cx, &mut into))?;
                    Poll::Ready(io::Result::Ok(into.filled().len() as u64))
                })
            });
            match read.await {
                Ok(n @ 1..) => {
                    self.bytes.inc_by(n);
                    left = left.saturating_sub(n);
                    // Others have their turn, and with it the other half.
                    tokio::task::yield_now().await;
                }
                _ => return,
            }
        }
    }

    /// Carries this direction until its source ends, then ends its sink.
    async fn carry(
        &mut self,
        move_on: impl Future<Output = ()>,
        direction: Direction,
        mut on_head: impl FnMut(&FrameHead),
    ) -> Result<(), Broken> {
        let mut move_on = pin!(move_on);
        let (mut asked, mut told) = (false, false);
        let down = direction == Direction::Down && self.filter.is_some();
        let mut in_a_row = 0_u8;
        loop {
            if down && self.filter.as_ref().is_some_and(Filter::at_boundary) {
                if asked && !told {
                    told = true;
                    self.send(&GOAWAY).await?;
                }
                if self.pongs.any() {
                    let pongs = self.pongs.take();
                    self.send(&pongs).await?;
                }
            }
            let step = poll_fn(|cx| {
                if !asked && move_on.as_mut().poll(cx).is_ready() {
                    asked = true;
                    return Poll::Ready(Ok(Step::Passed));
                }
                in_a_row += 1;
                if in_a_row > IN_A_ROW {
                    in_a_row = 0;
                    return crate::turns::pass(cx);
                }
                let step = self.poll_step(cx, |head| {
                    // The last stream of a GOAWAY must not rise (RFC 9113, 6.8): where the server
                    // has said its own, ours would end the connection, and with it the calls that
                    // still run.
                    told |= head.is_goaway();
                    on_head(head);
                });
                if step.is_pending() {
                    in_a_row = 0;
                }
                let between = || self.filter.as_ref().is_some_and(Filter::at_boundary);
                if step.is_pending() && down && self.pongs.any() && between() {
                    return Poll::Ready(Ok(Step::Passed));
                }
                step
            });
            match step.await? {
                Step::Passed => {}
                Step::Left(rest) => self.send(rest.left()).await?,
                Step::End => {
                    if let Some(filter) = &mut self.filter {
                        let rest = filter.rest();
                        self.send(&rest).await?;
                    }
                    self.to.end();
                    return Ok(());
                }
            }
        }
    }

    /// Reads and writes until there is nothing to read. A read that does not fill the buffer has
    /// emptied the socket, so that no further one is tried before the system says so.
    fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        mut on_head: impl FnMut(&FrameHead),
    ) -> Poll<Result<Step, Broken>> {
        with_buffer(|buffer| {
            let mut into = ReadBuf::new(&mut buffer[..leftover::at_once()]);
            let read = ready!(Pin::new(&mut self.from).poll_read(cx, &mut into));
            read.map_err(|_| Broken::Source)?;
            let read = into.filled();
            if read.is_empty() {
                return Poll::Ready(Ok(Step::End));
            }
            self.bytes.inc_by(read.len() as u64);
            let mut pings = 0;
            let passed = match &mut self.filter {
                Some(filter) => filter.pass(read, &mut on_head, |ping| {
                    pings = self.pongs.push(&[ping]);
                    // Both halves are one task: the other one looks when it is polled again.
                    cx.waker().wake_by_ref();
                }),
                None => std::borrow::Cow::Borrowed(read),
            };
            if pings > MAX_PONGS {
                // The caller pings faster than it reads.
                return Poll::Ready(Err(Broken::Source));
            }
            if passed.is_empty() {
                return Poll::Ready(Ok(Step::Passed));
            }
            let written = match self.to.try_write(&passed) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => return Poll::Ready(Err(Broken::Sink)),
            };
            Poll::Ready(Ok(if written == passed.len() {
                Step::Passed
            } else {
                let mut rest = Leftover::default();
                rest.put(&passed[written..]);
                Step::Left(rest)
            }))
        })
    }

    /// Writes all of it, waiting for the sink; nothing is read meanwhile.
    async fn send(&self, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match self.to.try_write(bytes) {
                Ok(n @ 1..) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.to.writable().await.map_err(|_| Broken::Sink)?;
                }
                _ => return Err(Broken::Sink),
            }
        }
        Ok(())
    }
}

enum Step {
    Passed,
    Left(Leftover),
    End,
}

#[cfg(test)]
mod tests;
