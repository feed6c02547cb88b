//! The requests of one connection, between two calls: what has come of the next one, and the
//! connection to the server that it may go on.
//!
//! Decides whether that connection can be trusted, and sends a head and what has come of its body
//! in one write. Must not know what becomes of a request once it is sent.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::task::Context as Task;

use bytes::{Buf, BytesMut};
use prometheus::IntCounter;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::call::Call;
use super::request::{self, Judged, Plain};
use crate::drain::in_flight;
use crate::places::{self, Marker};
use crate::relay::caller::{Calls, UnderWay};
use crate::relay::heed::Heed;
use crate::relay::http::IDLE;
use crate::relay::leftover::Held;
use crate::relay::{Context, End};

/// What is known between two calls.
pub(super) struct Requests<'a> {
    pub(super) context: &'a Context,
    /// Read from the caller and not used: what has come of a head, or of requests after this one.
    pub(super) held: BytesMut,
    /// What of their memory is empty again already, and all of it, as far as it is counted.
    pub(super) room: (usize, Held),
    /// How many of those bytes are known to be no whole head.
    pub(super) looked: usize,
    pub(super) kept: Option<Kept>,
    pub(super) calls: Arc<Calls>,
    pub(super) marker: Marker,
}

/// The connection to the server. One that is used up is none.
pub(super) struct Kept {
    pub(super) stream: TcpStream,
    pub(super) used: Instant,
}

/// A call under way, for those who count.
pub(super) struct Counted<'a> {
    pub(super) heed: Option<Heed<'a>>,
    _guards: (UnderWay, places::Call, in_flight::One),
}

/// What comes next from the caller.
pub(super) enum Next<'a> {
    /// A request, on its way to the server.
    Begun(Call, Counted<'a>),
    /// A request that is held, for want of a connection to send it on.
    Waits(Plain, Counted<'a>),
    Unusual,
    Ended(End),
}

impl<'a> Requests<'a> {
    /// What `bytes`, all that is not used yet, are, and how many of them are used now; `None` where
    /// more has to come.
    pub(super) fn judged(
        &mut self,
        bytes: &[u8],
        received: &IntCounter,
        cx: &mut Task<'_>,
    ) -> (usize, Option<Next<'a>>) {
        // Not read again from its beginning for every byte of it.
        let is_partial = self.looked > 0
            && bytes.len() < request::MAX_HEAD
            && !request::may_have_ended(bytes, self.looked);
        let judged = if is_partial {
            Judged::Partial
        } else {
            request::judge(bytes)
        };
        let plain = match judged {
            Judged::Partial => {
                self.looked = bytes.len();
                return (0, None);
            }
            Judged::Unusual => return (0, Some(Next::Unusual)),
            Judged::Plain(plain) => plain,
        };
        let counted = self.counted(&plain, bytes);
        if let Some(kept) = self.usable() {
            let mut call = Call::new(&plain);
            if let Ok(used) = call.begin(cx, &mut kept.stream, &plain, bytes) {
                received.inc_by(used as u64);
                return (used, Some(Next::Begun(call, counted)));
            }
            // Not a byte of it was sent.
            self.kept = None;
        }
        (0, Some(Next::Waits(plain, counted)))
    }

    fn counted(&self, plain: &Plain, bytes: &[u8]) -> Counted<'a> {
        // Plain targets are ASCII.
        let path = std::str::from_utf8(&bytes[plain.path.clone()]).unwrap_or_default();
        Counted {
            heed: Some(Heed::before(self.context, &plain.method, path)),
            _guards: (
                self.calls.under_way(),
                self.marker.call(),
                self.context.in_flight.one(),
            ),
        }
    }

    /// Keeps of `bytes` what comes after the first `used`, and little room for what is gone.
    pub(super) fn hold(&mut self, mut bytes: BytesMut, used: usize) {
        if used > 0 {
            self.looked = 0;
            bytes.advance(used);
        }
        let (gone, counted) = &mut self.room;
        *gone += used;
        if bytes.is_empty() {
            bytes = BytesMut::new();
            *gone = 0;
        } else if *gone >= bytes.len() {
            // Cheaper than what was read to get there.
            bytes = BytesMut::from(&bytes[..]);
            *gone = 0;
        }
        counted.set(bytes.capacity() + *gone);
        self.held = bytes;
    }

    /// The kept connection if it can be trusted: used a moment ago, and silent since.
    fn usable(&mut self) -> Option<&mut Kept> {
        let is_usable = |kept: &Kept| kept.used.elapsed() < IDLE && is_silent(&kept.stream);
        if !self.kept.as_ref().is_some_and(is_usable) {
            self.kept = None;
        }
        self.kept.as_mut()
    }
}

/// Whether there is nothing to read: no byte, no end, no error. Asks the system itself, since what
/// came a moment ago has not been told yet.
fn is_silent(stream: &TcpStream) -> bool {
    let mut one = [MaybeUninit::uninit()];
    let seen = SockRef::from(stream).peek(&mut one);
    matches!(seen, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
