//! The stream of operations on its way to the agent: cut into messages, each judged, the rest passed
//! on as it comes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Task, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::body::{UNAVAILABLE, lost, status};
use super::editor::{Editor, Verdict};
use super::frames::{self, Deframer, Piece, Why};
use super::live::{Ending, Live};
use super::metrics::{Fate, Kind, Turn};

/// Events that the shim owes the scheduler at one time. A scheduler that asks for more of what cannot
/// fit while it takes no event is not read from until it does: what waits is its own.
const MOST_OWED: usize = 100;

/// An event of the shim's own, until it is delivered or lost.
#[derive(Debug)]
pub struct Owed {
    /// The framed message.
    pub event: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Where events of the shim's own go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Debts {
    room: Arc<Semaphore>,
    events: UnboundedSender<Owed>,
}

impl Debts {
    /// Through this channel, which never holds more than there is room for.
    pub fn new(events: UnboundedSender<Owed>) -> Self {
        let room = Arc::new(Semaphore::new(MOST_OWED));
        Debts { room, events }
    }

    /// Completes when the event is on its way.
    fn owe(&self, event: Bytes) -> impl Future<Output = ()> + Send + 'static {
        let Debts { room, events } = self.clone();
        async move {
            let room = room.acquire_owned().await;
            let _room = room.expect("nobody closes it");
            // Its reader lives as long as the interposer.
            let _ = events.send(Owed { event, _room });
        }
    }
}

/// The stream from the scheduler and the subscription it is of: gone when that has ended.
type Open = Arc<Mutex<Option<(Incoming, Live)>>>;

fn lock(open: &Open) -> MutexGuard<'_, Option<(Incoming, Live)>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the stream to the scheduler when that is wanted, though nobody reads here: the library does
/// not ask a body for more while its reader takes none, and the scheduler keeps an agent that
/// subscribes again waiting until the older stream has ended.
#[derive(Debug)]
struct Ender(JoinHandle<()>);

impl Ender {
    fn start(open: &Open, ended: impl Future<Output = Ending> + Send + 'static) -> Self {
        let open = Arc::downgrade(open);
        Ender(tokio::spawn(async move {
            ended.await;
            if let Some(open) = open.upgrade() {
                lock(&open).take();
            }
        }))
    }
}

impl Drop for Ender {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of an answered subscription. Dropping it ends the stream to the scheduler.
pub struct Operations {
    open: Open,
    /// Nothing more is to come but the trailers.
    finished: bool,
    /// Trailers that wait for what came before them.
    trailers: Option<Frame<Bytes>>,
    deframer: Deframer,
    editor: Editor,
    /// Events that the shim itself owes the scheduler.
    debts: Debts,
    /// One that has no room yet; nothing is judged meanwhile.
    waits: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    ended: Pin<Box<dyn Future<Output = Ending> + Send>>,
    _ender: Ender,
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations").finish_non_exhaustive()
    }
}

impl Operations {
    /// Carries what `scheduler` sends until it ends, or `live` is told to.
    pub fn new(scheduler: Incoming, editor: Editor, debts: Debts, live: Live) -> Self {
        let ended = Box::pin(live.ended());
        let wanted = live.ended();
        let open: Open = Arc::new(Mutex::new(Some((scheduler, live))));
        Operations {
            _ender: Ender::start(&open, wanted),
            open,
            finished: false,
            trailers: None,
            deframer: Deframer::default(),
            editor,
            debts,
            waits: None,
            ended,
        }
    }

    /// The scheduler has said all: what is left of a message, then the trailers.
    fn finished(&mut self, turn: Turn) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some((_, live)) = lock(&self.open).as_mut() {
            live.over(turn);
        }
        self.finished = true;
        let rest = self.deframer.rest().map(Frame::data);
        Poll::Ready(rest.or_else(|| self.trailers.take()).map(Ok))
    }

    /// Everything that is complete, judged, for as long as there is room for what is owed for it.
    fn judged(&mut self, cx: &mut Task<'_>) -> Bytes {
        let mut out = BytesMut::new();
        while self.is_free(cx) {
            let Some(piece) = self.deframer.piece() else {
                break;
            };
            match piece {
                Piece::Plain(frame) => match self.editor.operation(&frames::message(&frame)) {
                    Verdict::Forward => out.put(frame),
                    Verdict::Replace(message) => out.put(frames::framed(&message)),
                    Verdict::Refuse(event) => {
                        let owed = self.debts.owe(frames::framed(&event));
                        self.waits = Some(Box::pin(owed));
                    }
                },
                Piece::Opaque(bytes, why) => {
                    let fate = match why {
                        Why::Compressed => Fate::Compressed,
                        Why::Large => Fate::Large,
                    };
                    self.editor.opaque(Kind::Operation, fate);
                    out.put(bytes);
                }
                Piece::More(bytes) => out.put(bytes),
            }
        }
        out.freeze()
    }

    /// Whether nothing waits for room.
    fn is_free(&mut self, cx: &mut Task<'_>) -> bool {
        let waits = self.waits.as_mut();
        if waits.is_none_or(|waits| waits.as_mut().poll(cx).is_ready()) {
            self.waits = None;
        }
        self.waits.is_none()
    }
}

impl Body for Operations {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        loop {
            if this.finished {
                return Poll::Ready(this.trailers.take().map(Ok));
            }
            if let Poll::Ready(ending) = this.ended.as_mut().poll(cx) {
                this.finished = true;
                lock(&this.open).take();
                let trailers = status(UNAVAILABLE, &format!("agent-shim: {ending}"));
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if this.waits.is_some() {
                let out = this.judged(cx);
                if !out.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(out))));
                }
                if this.waits.is_some() {
                    return Poll::Pending;
                }
                continue;
            }
            // Where the stream has been taken away, `ended` is about to say why, and wakes.
            let frame = match lock(&this.open).as_mut() {
                Some((scheduler, _)) => ready!(Pin::new(scheduler).poll_frame(cx)),
                None => return Poll::Pending,
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.deframer.push(data);
                        let out = this.judged(cx);
                        if !out.is_empty() {
                            return Poll::Ready(Some(Ok(Frame::data(out))));
                        }
                    }
                    Err(trailers) => {
                        this.trailers = Some(trailers);
                        return this.finished(Turn::EndedByScheduler);
                    }
                },
                Some(Err(error)) => {
                    this.trailers = Some(Frame::trailers(lost(&error)));
                    return this.finished(Turn::Lost);
                }
                None => return this.finished(Turn::EndedByScheduler),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn no_more_is_owed_at_one_time_than_there_is_room_for() {
        let (events, mut owed) = mpsc::unbounded_channel();
        let debts = Debts::new(events);
        for n in 0..MOST_OWED {
            debts.owe(Bytes::from(n.to_string())).await;
        }
        let mut late = Box::pin(debts.owe(Bytes::from_static(b"late")));
        let mut cx = Task::from_waker(std::task::Waker::noop());
        assert!(late.as_mut().poll(&mut cx).is_pending());
        let first = owed.recv().await.unwrap();
        let waits = late.as_mut().poll(&mut cx).is_pending();
        assert!(waits, "it is not delivered yet");
        drop(first);
        late.await;
        let mut last = Bytes::new();
        while let Ok(owed) = owed.try_recv() {
            last = owed.event;
        }
        assert_eq!(last, &b"late"[..]);
    }
}
