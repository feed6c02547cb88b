//! The opening of a caller's HTTP/2 connection, up to its first call.
//!
//! A Go client sends its first call only after it has seen SETTINGS, so somebody has to answer
//! the handshake before it can be known what the connection is for. The `h2` library does that
//! here, with all of its protocol checks; what the caller sent is recorded, and what was said
//! to it is counted, so that the connection can then be handed on as bytes: the server's own
//! handshake follows later on the same connection, which HTTP/2 allows (SETTINGS may change),
//! and the acknowledgements that would now come twice are left out.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::frames::{Calls, Filter, LeaveOut, PREFACE, Walker};
use crate::budget::Charge;

/// Largest header list of an answer that the shim reads itself: a status may carry a traceback.
pub(super) const MAX_HEADER_LIST: u32 = 1024 * 1024;
/// Largest header list of a call that the shim reads itself. Above MLServer's own limit of
/// 16 KiB, so that it is the server that refuses, in its own words; not far above, since a list
/// may be said in few bytes, by reference, and is held whole.
pub(super) const MAX_CALL_HEADERS: u32 = 64 * 1024;
/// Bytes of a caller that are kept for the server. Above the largest first call and its part
/// of a body; only a caller that talks without ever calling gets there.
const MAX_HEARD: usize = 192 * 1024;
/// What of them is not counted against the memory for all callers: most openings are smaller.
const UNCOUNTED: usize = 16 * 1024;
/// Bytes for the caller that may wait unsent, before the handshake stops reading.
const MAX_UNSENT: usize = 64 * 1024;

/// A connection whose first call is known.
#[derive(Debug)]
pub struct Opening {
    /// The caller's connection.
    pub caller: TcpStream,
    /// The path of its first call.
    pub path: String,
    /// The preface and all frames read so far, without what was answered here.
    pub to_server: Vec<u8>,
    /// Bytes for the caller that its socket has not taken yet.
    pub to_caller: Vec<u8>,
    /// Leaves out the caller's pings, and its acknowledgement of the shim's SETTINGS; it has seen
    /// `to_server`.
    pub from_caller: Filter,
    /// Leaves out the server's acknowledgements that the caller has had already.
    pub from_server: Filter,
    /// Pings that were read and are not answered yet.
    pub pings: Vec<[u8; 8]>,
    /// The calls in `to_server`.
    pub calls: Calls,
}

/// Why there was no first call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotOpened {
    /// The caller left.
    Closed,
    /// The caller broke the protocol; it was told with GOAWAY.
    Malformed,
    /// The caller stopped in the middle of a frame, or before its SETTINGS.
    Timeout,
}

/// Serves the handshake until the first call. `limit` bounds the caller's SETTINGS and every
/// frame that has begun; an idle connection between frames may wait as long as it likes.
pub async fn open(caller: TcpStream, before: Bytes, limit: Duration) -> Result<Opening, NotOpened> {
    let shared = Arc::new(Mutex::new(Recording::new(caller, before)));
    let io = Recorder(shared.clone());
    let path = tokio::select! {
        path = first_path(io) => path?,
        () = stuck(&shared, limit) => return Err(NotOpened::Timeout),
    };
    let recording = Arc::into_inner(shared)
        .ok_or(NotOpened::Malformed)?
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if !recording.said.at_boundary() {
        // Half a frame is on its way to a caller that floods and does not read.
        return Err(NotOpened::Malformed);
    }
    let frames = &recording.heard[PREFACE.len().min(recording.heard.len())..];
    let mut from_caller = Filter::new(LeaveOut {
        acks: recording.settings_said,
        pings: true,
    });
    let mut calls = Calls::default();
    let mut to_server = PREFACE.to_vec();
    let mut pings = Vec::new();
    let passed = from_caller.pass(
        frames,
        |head| {
            calls.from_caller(head);
        },
        |ping| pings.push(ping),
    );
    to_server.extend_from_slice(&passed);
    pings.drain(..recording.pongs_said.min(pings.len()));
    Ok(Opening {
        path,
        to_server,
        to_caller: recording.unsent.to_vec(),
        from_caller,
        from_server: Filter::new(LeaveOut {
            acks: recording.acks_said,
            pings: false,
        }),
        pings,
        calls,
        caller: recording.stream,
    })
}

async fn first_path(io: Recorder) -> Result<String, NotOpened> {
    let mut connection = h2::server::Builder::new()
        .max_header_list_size(MAX_CALL_HEADERS)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(ended)?;
    match connection.accept().await {
        Some(Ok((request, _))) => Ok(request.uri().path().to_string()),
        Some(Err(error)) => Err(ended(error)),
        None => Err(NotOpened::Closed),
    }
}

fn ended(error: h2::Error) -> NotOpened {
    let too_much = error
        .get_io()
        .is_some_and(|io| io.kind() == io::ErrorKind::QuotaExceeded);
    if error.is_io() && !too_much {
        NotOpened::Closed
    } else {
        NotOpened::Malformed
    }
}

/// Ends when the caller has made no progress for a whole `limit` where progress is due.
async fn stuck(shared: &Mutex<Recording>, limit: Duration) {
    let mut before = None;
    loop {
        tokio::time::sleep(limit).await;
        let recording = lock(shared);
        let due = !recording.walked.at_boundary() || recording.heard.len() <= PREFACE.len();
        let progress = recording.heard.len();
        if due && before == Some(progress) {
            return;
        }
        before = due.then_some(progress);
    }
}

struct Recording {
    stream: TcpStream,
    before: Bytes,
    /// Everything the caller sent, the preface included.
    heard: BytesMut,
    charge: Charge,
    walked: Walker,
    unsent: BytesMut,
    said: Walker,
    settings_said: usize,
    acks_said: usize,
    pongs_said: usize,
}

impl Recording {
    fn new(stream: TcpStream, before: Bytes) -> Self {
        Recording {
            stream,
            before,
            heard: BytesMut::new(),
            charge: Charge::default(),
            walked: Walker::default(),
            unsent: BytesMut::new(),
            said: Walker::default(),
            settings_said: 0,
            acks_said: 0,
            pongs_said: 0,
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let preface_left = PREFACE
            .len()
            .saturating_sub(self.heard.len())
            .min(bytes.len());
        self.walked.feed(&bytes[preface_left..], |_| {});
        self.heard.extend_from_slice(bytes);
    }

    fn say(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        let (mut settings, mut acks, mut pongs) = (0, 0, 0);
        self.said.feed(bytes, |head| {
            settings += usize::from(head.is_settings());
            acks += usize::from(head.is_settings_ack());
            pongs += usize::from(head.is_pong());
        });
        self.settings_said += settings;
        self.acks_said += acks;
        self.pongs_said += pongs;
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unsent.has_remaining() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unsent))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(n);
        }
        Poll::Ready(Ok(()))
    }
}

fn lock(shared: &Mutex<Recording>) -> MutexGuard<'_, Recording> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The `h2` library's end of the connection.
struct Recorder(Arc<Mutex<Recording>>);

impl AsyncRead for Recorder {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut this = lock(&self.0);
        if this.before.has_remaining() {
            let n = this.before.len().min(out.remaining());
            let bytes = this.before.split_to(n);
            this.hear(&bytes);
            out.put_slice(&bytes);
            return Poll::Ready(Ok(()));
        }
        if this.heard.len() > MAX_HEARD {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        let had = out.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, out))?;
        let bytes = out.filled()[had..].to_vec();
        this.hear(&bytes);
        if this.heard.len() > UNCOUNTED && this.charge.unfinished(bytes.len()).is_err() {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recorder {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut this = lock(&self.0);
        if this.unsent.len() >= MAX_UNSENT {
            ready!(this.poll_send(cx))?;
        }
        this.say(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = lock(&self.0);
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
