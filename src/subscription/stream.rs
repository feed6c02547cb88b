//! The stream of operations on its way to the agent: cut into messages, each judged, the rest passed
//! on as it comes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::sync::mpsc::UnboundedSender;

use super::body::{UNAVAILABLE, lost, status};
use super::editor::{Editor, Verdict};
use super::frames::{self, Deframer, Piece, Why};
use super::live::{Ending, Live};
use super::metrics::{Fate, Kind, Turn};

/// The body of an answered subscription. Dropping it ends the stream to the scheduler.
pub struct Operations {
    scheduler: Option<Incoming>,
    /// Trailers that wait for what came before them.
    trailers: Option<Frame<Bytes>>,
    deframer: Deframer,
    editor: Editor,
    /// Events that the shim itself owes the scheduler.
    events: UnboundedSender<Bytes>,
    ended: Pin<Box<dyn Future<Output = Ending> + Send>>,
    live: Live,
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations").finish_non_exhaustive()
    }
}

impl Operations {
    /// Carries what `scheduler` sends until it ends, or `live` is told to.
    pub fn new(
        scheduler: Incoming,
        editor: Editor,
        events: UnboundedSender<Bytes>,
        live: Live,
    ) -> Self {
        Operations {
            scheduler: Some(scheduler),
            trailers: None,
            deframer: Deframer::default(),
            editor,
            events,
            ended: Box::pin(live.ended()),
            live,
        }
    }

    /// The scheduler has said all: what is left of a message, then the trailers.
    fn finished(&mut self, turn: Turn) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.live.over(turn);
        self.scheduler = None;
        let rest = self.deframer.rest().map(Frame::data);
        Poll::Ready(rest.or_else(|| self.trailers.take()).map(Ok))
    }

    /// Everything that is complete, judged.
    fn judged(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        while let Some(piece) = self.deframer.piece() {
            match piece {
                Piece::Plain(frame) => match self.editor.operation(&frames::message(&frame)) {
                    Verdict::Forward => out.put(frame),
                    Verdict::Replace(message) => out.put(frames::framed(&message)),
                    Verdict::Refuse(event) => {
                        // Its reader lives as long as the interposer.
                        let _ = self.events.send(frames::framed(&event));
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
            let Some(scheduler) = &mut this.scheduler else {
                return Poll::Ready(this.trailers.take().map(Ok));
            };
            if let Poll::Ready(ending) = this.ended.as_mut().poll(cx) {
                this.scheduler = None;
                let trailers = status(UNAVAILABLE, &format!("agent-shim: {ending}"));
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            let frame = match Pin::new(scheduler).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(frame) => frame,
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.deframer.push(data);
                        let out = this.judged();
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
