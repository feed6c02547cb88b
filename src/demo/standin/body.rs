//! Bodies: requests that are counted as they arrive, and answers that are written by a script.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::calls::{Entry, Outcome};

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// A request's body.
pub(super) struct Asked {
    body: Incoming,
    entry: Arc<Entry>,
}

impl Asked {
    pub(super) fn new(body: Incoming, entry: Arc<Entry>) -> Self {
        Asked { body, entry }
    }

    /// The next piece, or its trailers.
    pub(super) async fn next(&mut self) -> Result<Option<Frame<Bytes>>, BoxError> {
        let Some(frame) = self.body.frame().await.transpose()? else {
            return Ok(None);
        };
        if let Some(data) = frame.data_ref() {
            self.entry.received(data.len());
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.entry.trailers(trailers);
        }
        Ok(Some(frame))
    }

    /// All that is left of it.
    pub(super) async fn all(&mut self) -> Result<Bytes, BoxError> {
        let mut all = BytesMut::new();
        while let Some(frame) = self.next().await? {
            if let Ok(data) = frame.into_data() {
                all.extend_from_slice(&data);
            }
        }
        Ok(all.freeze())
    }

    /// Reads the rest of it and forgets it.
    pub(super) async fn drain(&mut self) -> Result<(), BoxError> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

/// Where a script puts what it says.
pub(super) struct Out(mpsc::Sender<Frame<Bytes>>);

impl Out {
    pub(super) async fn frame(&self, frame: Frame<Bytes>) -> Result<(), BoxError> {
        Ok(self.0.send(frame).await?)
    }

    pub(super) async fn data(&self, data: impl Into<Bytes>) -> Result<(), BoxError> {
        self.frame(Frame::data(data.into())).await
    }

    pub(super) async fn trailers(&self, trailers: HeaderMap) -> Result<(), BoxError> {
        self.frame(Frame::trailers(trailers)).await
    }
}

type Script = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// An answer's body. It records the end of its call: completed where all was handed over.
pub(super) struct Reply {
    said: Said,
    entry: Arc<Entry>,
}

enum Said {
    Whole(Full<Bytes>),
    /// A future that is driven by the body's reader, so it goes no faster than its reader and
    /// ends with it.
    Script {
        script: Option<Script>,
        frames: mpsc::Receiver<Frame<Bytes>>,
        failure: Option<BoxError>,
        /// Bytes of the declared length that are still to come.
        left: Option<u64>,
    },
}

impl Reply {
    pub(super) fn whole(entry: &Arc<Entry>, body: impl Into<Bytes>) -> Self {
        Reply {
            said: Said::Whole(Full::new(body.into())),
            entry: entry.clone(),
        }
    }

    /// A script that ends with an error breaks the answer off.
    pub(super) fn script<F>(entry: &Arc<Entry>, script: impl FnOnce(Out) -> F) -> Self
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let (out, frames) = mpsc::channel(1);
        Reply {
            said: Said::Script {
                script: Some(Box::pin(script(Out(out)))),
                frames,
                failure: None,
                left: None,
            },
            entry: entry.clone(),
        }
    }

    /// Declares the length of what a script is going to say.
    pub(super) fn with_length(mut self, length: u64) -> Self {
        if let Said::Script { left, .. } = &mut self.said {
            *left = Some(length);
        }
        self
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let next = match &mut self.said {
            Said::Whole(body) => ready!(Pin::new(body).poll_frame(cx))
                .map(|frame| frame.map_err(|never| match never {})),
            Said::Script {
                script,
                frames,
                failure,
                left,
            } => {
                let mut next = frames.poll_recv(cx);
                if let (Poll::Pending, Some(running)) = (&next, script.as_mut()) {
                    if let Poll::Ready(ended) = running.as_mut().poll(cx) {
                        *failure = ended.err();
                        // Its sender goes with it, so the frames end after what it has said.
                        *script = None;
                    }
                    next = frames.poll_recv(cx);
                }
                match ready!(next) {
                    Some(frame) => {
                        if let (Some(left), Some(data)) = (left, frame.data_ref()) {
                            *left = left.saturating_sub(data.len() as u64);
                        }
                        Some(Ok(frame))
                    }
                    None => failure.take().map(Err),
                }
            }
        };
        match next {
            Some(Err(_)) => self.entry.end(Outcome::Cancelled),
            Some(Ok(_)) if !self.is_end_stream() => {}
            // A body of known length may not be asked whether there is more.
            _ => self.entry.end(Outcome::Completed),
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        match &self.said {
            Said::Whole(body) => body.is_end_stream(),
            Said::Script { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.said {
            Said::Whole(body) => body.size_hint(),
            Said::Script { left, .. } => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // An empty body is never polled. Everything else that was not finished was cancelled,
        // which the entry says by itself.
        if self.is_end_stream() {
            self.entry.end(Outcome::Completed);
        }
    }
}
