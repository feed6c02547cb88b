//! One call of the lane from its first byte to its answer's last: bytes of the body on the way to
//! the server, bytes of the answer on the way to the caller, both at once.
//!
//! Acts on what [`super::request`], [`super::response`] and [`super::chunks`] say; must not know
//! where connections come from or what becomes of them. Holds bytes only while their reader is
//! slow. A failure is said, and decided on by the loop.

use std::borrow::Cow;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::request::{Plain, may_have_ended};
use super::response::{self, Answer, Framing, Judged};
use super::wire::{Caller, IN_A_ROW, poll_read};
use crate::before_answer;
use crate::relay::http::MAX_BUFFER;
use crate::relay::leftover::Leftover;

/// What is on its way on one connection.
#[derive(Debug)]
pub(super) struct Call {
    /// The answer is to a HEAD.
    pub(super) to_head: bool,
    /// Of the request's body, still to be read.
    pub(super) unread: u64,
    up: Leftover,
    /// The server takes no more of the request; its answer may be there all the same.
    pub(super) deaf: bool,
    down: Leftover,
    phase: Phase,
    /// Bytes of the server before its answer.
    said: usize,
    /// The server's connection takes no further request.
    pub(super) last: bool,
}

#[derive(Debug)]
enum Phase {
    /// The bytes are the beginning of the head.
    Head(Vec<u8>),
    Body(Framing),
    Done,
}

/// How a call goes on.
#[derive(Debug)]
pub(super) enum Step {
    /// The head of the answer is there; once.
    Answered(Answer),
    /// The last byte of the answer has been taken.
    Done,
}

/// Why a call cannot go on.
#[derive(Debug)]
pub(super) enum Failed {
    /// There is no answer, for this reason: the caller can be told.
    NoAnswer(String),
    /// The answer has begun and cannot be ended, or there is nobody to take it.
    Broken,
}

impl Call {
    pub(super) fn new(plain: &Plain) -> Self {
        Call {
            to_head: plain.method == http::Method::HEAD,
            unread: plain.body,
            up: Leftover::default(),
            deaf: false,
            down: Leftover::default(),
            phase: Phase::Head(Vec::new()),
            said: 0,
            last: false,
        }
    }

    /// Whether the whole request has gone to the server.
    pub(super) fn is_sent(&self) -> bool {
        self.unread == 0 && self.up.is_empty() && !self.deaf
    }

    /// Sends the head and what has come of the body, in one write, and gives how many of `bytes`
    /// that is. An error means that not one byte was sent.
    pub(super) fn begin(
        &mut self,
        cx: &mut Context<'_>,
        server: &mut TcpStream,
        plain: &Plain,
        bytes: &[u8],
    ) -> io::Result<usize> {
        let used = self.skip(plain, bytes);
        let pieces = [&bytes[..plain.cut.start], &bytes[plain.cut.end..used]];
        let slices = pieces.map(IoSlice::new);
        let written = match Pin::new(server).poll_write_vectored(cx, &slices) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.up.put_after(written, &pieces);
        Ok(used)
    }

    /// How many of `bytes` are the request's.
    pub(super) fn skip(&mut self, plain: &Plain, bytes: &[u8]) -> usize {
        let here = bytes.len() - plain.head;
        let body = usize::try_from(plain.body).map_or(here, |body| body.min(here));
        self.unread = plain.body - body as u64;
        plain.head + body
    }

    /// Moves what can be moved, both ways.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        caller: &mut Caller<'_>,
        server: &mut TcpStream,
    ) -> Poll<Result<Step, Failed>> {
        for _ in 0..IN_A_ROW {
            let up = self.poll_up(cx, caller, server)?;
            let down = self.poll_down(cx, caller, server)?;
            if let Poll::Ready(Some(step)) = down {
                return Poll::Ready(Ok(step));
            }
            if up.is_pending() && down.is_pending() {
                return Poll::Pending;
            }
        }
        crate::turns::pass(cx)
    }

    /// Moves the request's body; pending also where there is none.
    pub(super) fn poll_up(
        &mut self,
        cx: &mut Context<'_>,
        caller: &mut Caller<'_>,
        server: &mut TcpStream,
    ) -> Poll<Result<(), Failed>> {
        if self.deaf {
            return Poll::Pending;
        }
        if !self.up.is_empty() {
            let flushed = ready!(self.up.poll_flush(|b| Pin::new(server).poll_write(cx, b)));
            self.deaf = flushed.is_err();
            return Poll::Ready(Ok(()));
        }
        if self.unread == 0 {
            return Poll::Pending;
        }
        let (up, deaf) = (&mut self.up, &mut self.deaf);
        let read = poll_read(&mut caller.reads, cx, self.unread, |bytes, cx| {
            if !bytes.is_empty() {
                match Pin::new(server).poll_write(cx, bytes) {
                    Poll::Ready(Ok(n)) => up.put(&bytes[n..]),
                    Poll::Pending => up.put(bytes),
                    Poll::Ready(Err(_)) => *deaf = true,
                }
            }
            bytes.len() as u64
        });
        match ready!(read) {
            // A request that ends before its end is none.
            Ok(0) | Err(_) => Poll::Ready(Err(Failed::Broken)),
            Ok(n) => {
                caller.received.inc_by(n);
                self.unread -= n;
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_down(
        &mut self,
        cx: &mut Context<'_>,
        caller: &Caller<'_>,
        server: &mut TcpStream,
    ) -> Poll<Result<Option<Step>, Failed>> {
        if !self.down.is_empty() {
            let write = |b: &[u8]| caller.poll_write(cx, &[IoSlice::new(b)]);
            return match ready!(self.down.poll_flush(write)) {
                Ok(()) => Poll::Ready(Ok(None)),
                Err(_) => Poll::Ready(Err(Failed::Broken)),
            };
        }
        if matches!(self.phase, Phase::Done) {
            return Poll::Ready(Ok(Some(Step::Done)));
        }
        let read = poll_read(server, cx, u64::MAX, |bytes, cx| {
            self.hear(bytes, caller, cx)
        });
        match (ready!(read), &self.phase) {
            (Ok(heard), _) => heard,
            (Err(error), Phase::Head(_)) => Poll::Ready(Err(Failed::NoAnswer(format!(
                "closed the connection ({error})"
            )))),
            (Err(_), _) => Poll::Ready(Err(Failed::Broken)),
        }
    }

    /// Takes what the server has said; nothing is its end.
    fn hear(
        &mut self,
        bytes: &[u8],
        caller: &Caller<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Step>, Failed>> {
        match &mut self.phase {
            Phase::Head(held) if held.is_empty() => {
                self.hear_head(bytes.into(), bytes.len(), caller, cx)
            }
            Phase::Head(held) => {
                let mut all = std::mem::take(held);
                all.extend_from_slice(bytes);
                self.hear_head(all.into(), bytes.len(), caller, cx)
            }
            Phase::Body(_) => {
                let moved = self.hear_body(None, bytes, caller, cx);
                Poll::Ready(moved.map(|()| None))
            }
            Phase::Done => Poll::Ready(Ok(Some(Step::Done))),
        }
    }

    /// `bytes` are all that was not yet understood, of which the last `new` have come now.
    fn hear_head(
        &mut self,
        bytes: Cow<'_, [u8]>,
        new: usize,
        caller: &Caller<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Step>, Failed>> {
        let none = |why: String| Poll::Ready(Err(Failed::NoAnswer(why)));
        if new == 0 {
            return none("closed the connection (in the middle of a call)".into());
        }
        self.said += new;
        let mut at = 0;
        let before = bytes.len() - new;
        // Not read again from its beginning for every byte of it.
        let may_have_ended = before == 0 || may_have_ended(&bytes, before);
        while may_have_ended && at < bytes.len() {
            match response::judge(&bytes[at..], self.to_head) {
                Judged::Interim(n) => at += n,
                Judged::Partial => break,
                Judged::Malformed(why) => return none(format!("closed the connection ({why})")),
                Judged::Final(answer) if answer.status == http::StatusCode::SWITCHING_PROTOCOLS => {
                    return Poll::Ready(Ok(Some(Step::Answered(answer))));
                }
                Judged::Final(mut answer) => {
                    let framing = std::mem::replace(&mut answer.framing, Framing::Length(0));
                    self.last = answer.last;
                    self.phase = Phase::Body(framing);
                    let (head, body) = bytes[at..].split_at(answer.head);
                    let head = answer.rewritten.as_deref().unwrap_or(head);
                    if self.hear_body(Some(head), body, caller, cx).is_err() {
                        return Poll::Ready(Err(Failed::Broken));
                    }
                    return Poll::Ready(Ok(Some(Step::Answered(answer))));
                }
            }
        }
        if self.said >= before_answer::LIMIT {
            return none("said too much".into());
        }
        if bytes.len() - at > MAX_BUFFER {
            return none("closed the connection (the head of its answer is too large)".into());
        }
        self.phase = Phase::Head(match bytes {
            Cow::Owned(bytes) if at == 0 => bytes,
            bytes => bytes[at..].to_vec(),
        });
        // A server that says nothing else must leave a turn to others.
        crate::turns::pass(cx)
    }

    /// Takes bytes of the body, with the head before them if that has come now.
    fn hear_body(
        &mut self,
        head: Option<&[u8]>,
        bytes: &[u8],
        caller: &Caller<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), Failed> {
        let Phase::Body(framing) = &mut self.phase else {
            return Ok(());
        };
        let is_end = head.is_none() && bytes.is_empty();
        let head = head.unwrap_or_default();
        let mut size = String::new();
        let (used, body, done): (usize, Cow<'_, [u8]>, bool) = match framing {
            Framing::Length(left) => {
                let used = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= used as u64;
                (used, bytes[..used].into(), *left == 0)
            }
            Framing::Chunks(chunks) => match chunks.pass(bytes) {
                Ok((used, body)) => (used, body, chunks.is_done()),
                Err(_) => return Err(self.broken(head, caller, cx)),
            },
            Framing::Close if is_end => (0, b"0\r\n\r\n"[..].into(), true),
            Framing::Close if bytes.is_empty() => (0, bytes.into(), false),
            Framing::Close => {
                size = format!("{:x}\r\n", bytes.len());
                (bytes.len(), bytes.into(), false)
            }
        };
        if is_end && !done {
            return Err(Failed::Broken);
        }
        if used < bytes.len() {
            // Said without being asked: it belongs to no answer.
            self.last = true;
        }
        if done {
            self.phase = Phase::Done;
        }
        let end: &[u8] = if size.is_empty() { b"" } else { b"\r\n" };
        self.send(&[head, size.as_bytes(), &body, end], caller, cx)
    }

    /// What was understood is not sent where something in the same breath was not.
    fn broken(&mut self, head: &[u8], caller: &Caller<'_>, cx: &mut Context<'_>) -> Failed {
        // The caller sees an answer that has begun and does not end.
        let _ = self.send(&[head], caller, cx);
        Failed::Broken
    }

    fn send(
        &mut self,
        pieces: &[&[u8]],
        caller: &Caller<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), Failed> {
        let mut slices = [IoSlice::new(&[]); 4];
        let mut count = 0;
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            slices[count] = IoSlice::new(piece);
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        let written = match caller.poll_write(cx, &slices[..count]) {
            Poll::Ready(Ok(written)) => written,
            Poll::Pending => 0,
            Poll::Ready(Err(_)) => return Err(Failed::Broken),
        };
        self.down.put_after(written, pieces);
        Ok(())
    }
}
