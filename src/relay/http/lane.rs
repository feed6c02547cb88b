//! The lane: calls that every reader would understand in the same way go to the server as bytes.
//!
//! Runs first on each caller's connection, and moves it to the full path, for good and with all
//! bytes that it has not used, at the first request that is not plain. So it never answers
//! anything difficult: what it does not like it does not interpret. Keeps the full path's rules: a
//! connection to the server of its own, never one that was idle for too long or has said anything
//! unasked; nothing is sent twice; both ways at once; an answer that breaks off breaks off.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use socket2::SockRef;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use self::call::{Call, Failed, Step};
use self::request::Plain;
use self::requests::{Counted, Kept, Next, Requests};
use self::wire::{Caller, IN_A_ROW, poll_read};
use super::{READ_ON, unanswered};
use crate::places::Place;
use crate::relay::answer::{self, Answered, http_error};
use crate::relay::caller::{Calls, Gone};
use crate::relay::connect::connect;
use crate::relay::{Context, End};

mod call;
pub(crate) mod chunks;
pub(crate) mod request;
mod requests;
pub(crate) mod response;
mod wire;

/// How a connection leaves the lane.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It has ended.
    Ended(End),
    /// It goes on in the full path, with these bytes first.
    Unusual(Bytes),
}

/// Carries plain calls until there is none.
pub(super) async fn carry(
    stream: &mut TcpStream,
    before: Bytes,
    context: &Context,
    place: &Place,
) -> Outcome {
    let (reads, writes) = stream.split();
    let calls = Arc::new(Calls::default());
    let metrics = &context.metrics;
    let mut lane = Lane {
        caller: Caller {
            reads,
            writes: &writes,
            received: &metrics.received,
            sent: &metrics.sent,
        },
        requests: Requests {
            context,
            held: before.into(),
            room: Default::default(),
            looked: 0,
            kept: None,
            calls: calls.clone(),
            marker: place.marker(),
        },
    };
    let outcome = tokio::select! {
        biased;
        outcome = lane.run() => outcome,
        gone = calls.gone(context.header_timeout, writes.as_ref()) => match gone {
            Gone::Closed => Outcome::Ended(End::Closed),
            Gone::Silent => Outcome::Ended(End::Timeout),
        },
        () = place.wanted() => Outcome::Ended(End::Closed),
    };
    if matches!(outcome, Outcome::Ended(_)) {
        // Of a head that was never ended, or of requests that nobody will read.
        metrics.received.inc_by(lane.requests.held.len() as u64);
    }
    outcome
}

struct Lane<'a> {
    caller: Caller<'a>,
    requests: Requests<'a>,
}

impl<'a> Lane<'a> {
    async fn run(&mut self) -> Outcome {
        loop {
            let (mut call, mut counted) = match poll_fn(|cx| self.poll_next(cx)).await {
                Next::Begun(call, counted) => (call, counted),
                Next::Waits(plain, counted) => match self.begin_anew(&plain).await {
                    Ok(Some(call)) => (call, counted),
                    Ok(None) => {
                        // Others have their turn, however many wait behind this one.
                        tokio::task::yield_now().await;
                        continue;
                    }
                    Err(end) => return Outcome::Ended(end),
                },
                Next::Unusual => {
                    let held = std::mem::take(&mut self.requests.held);
                    // Without the room that it had for more.
                    return Outcome::Unusual(Bytes::copy_from_slice(&held));
                }
                Next::Ended(end) => return Outcome::Ended(end),
            };
            if let Err(end) = self.finish(&mut call, &mut counted).await {
                return Outcome::Ended(end);
            }
            drop(counted);
            if let Err(end) = self.take_rest(&mut call).await {
                return Outcome::Ended(end);
            }
        }
    }

    /// Waits for the head of a request, and sends it if the kept connection takes it.
    fn poll_next(&mut self, cx: &mut Task<'_>) -> Poll<Next<'a>> {
        let requests = &mut self.requests;
        let received = self.caller.received;
        if requests.looked < requests.held.len() {
            let held = std::mem::take(&mut requests.held);
            let (used, next) = requests.judged(&held, received, cx);
            requests.hold(held, used);
            if let Some(next) = next {
                return Poll::Ready(next);
            }
        }
        loop {
            let read = poll_read(&mut self.caller.reads, cx, u64::MAX, |bytes, cx| {
                if bytes.is_empty() {
                    // Half a head is for the full path to judge.
                    return Some(match requests.held.is_empty() {
                        true => Next::Ended(End::Closed),
                        false => Next::Unusual,
                    });
                }
                if requests.held.is_empty() {
                    let (used, next) = requests.judged(bytes, received, cx);
                    requests.hold(bytes[used..].into(), 0);
                    if used > 0 {
                        requests.looked = 0;
                    }
                    return next;
                }
                let mut held = std::mem::take(&mut requests.held);
                held.extend_from_slice(bytes);
                let (used, next) = requests.judged(&held, received, cx);
                requests.hold(held, used);
                next
            });
            match read {
                Poll::Ready(Ok(Some(next))) => return Poll::Ready(next),
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Next::Ended(End::Reset)),
                Poll::Pending => break,
            }
        }
        // A server that ends an idle connection is not kept waiting for our end of it; one that
        // speaks unasked is not believed.
        if let Some(kept) = &self.requests.kept {
            let mut one = [0];
            if kept
                .stream
                .poll_peek(cx, &mut ReadBuf::new(&mut one))
                .is_ready()
            {
                self.requests.kept = None;
            }
        }
        Poll::Pending
    }

    /// Sends the request that is held on a new connection; `None` where its caller has been told
    /// that this cannot be.
    async fn begin_anew(&mut self, plain: &Plain) -> Result<Option<Call>, End> {
        let mut call = Call::new(plain);
        // Boxed: it is seldom there.
        let (status, answered, why) = match Box::pin(connect(self.requests.context)).await {
            Ok(connected) => {
                let mut stream = connected.stream;
                let held = std::mem::take(&mut self.requests.held);
                let begun = poll_fn(|cx| Poll::Ready(call.begin(cx, &mut stream, plain, &held)));
                match begun.await {
                    Ok(used) => {
                        self.caller.received.inc_by(used as u64);
                        self.requests.hold(held, used);
                        let used = Instant::now();
                        self.requests.kept = Some(Kept { stream, used });
                        return Ok(Some(call));
                    }
                    Err(error) => {
                        self.requests.held = held;
                        (
                            StatusCode::BAD_GATEWAY,
                            Answered::BadGateway,
                            self.no_answer(&format!("closed the connection ({error})")),
                        )
                    }
                }
            }
            Err(unavailable) => (
                StatusCode::SERVICE_UNAVAILABLE,
                Answered::Unavailable,
                unavailable.why,
            ),
        };
        let held = std::mem::take(&mut self.requests.held);
        let used = call.skip(plain, &held);
        self.caller.received.inc_by(used as u64);
        self.requests.hold(held, used);
        call.unread = self.read_on(call.unread).await;
        self.tell(status, answered, &why, &call).await?;
        Ok(None)
    }

    /// Moves both ways until the caller has the answer.
    async fn finish(&mut self, call: &mut Call, counted: &mut Counted<'_>) -> Result<(), End> {
        loop {
            let Some(kept) = &mut self.requests.kept else {
                return Ok(());
            };
            let caller = &mut self.caller;
            match poll_fn(|cx| call.poll(cx, caller, &mut kept.stream)).await {
                Ok(Step::Done) => return Ok(()),
                Ok(Step::Answered(answer)) => {
                    self.requests.context.metrics.calls.inc();
                    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
                        self.requests.kept = None;
                        let why = "the inference server switched to another protocol, which nobody asked for";
                        return self
                            .tell(StatusCode::BAD_GATEWAY, Answered::BadGateway, why, call)
                            .await;
                    }
                    if let Some(heed) = counted.heed.take() {
                        heed.after(answer.status, answer.is_text);
                    }
                }
                Err(Failed::NoAnswer(how)) => {
                    self.requests.kept = None;
                    let why = self.no_answer(&how);
                    return self
                        .tell(StatusCode::BAD_GATEWAY, Answered::BadGateway, &why, call)
                        .await;
                }
                Err(Failed::Broken) => return Err(End::Reset),
            }
        }
    }

    fn no_answer(&self, how: &str) -> String {
        let context = self.requests.context;
        context.watching.hints.probe_now(context.protocol);
        unanswered(how)
    }

    /// After an answer that came before its request had ended: the rest of it, for a while. Keeps
    /// the connection to the server if it is in step.
    async fn take_rest(&mut self, call: &mut Call) -> Result<(), End> {
        if let Some(kept) = &mut self.requests.kept {
            if !call.is_sent() && !call.deaf {
                let caller = &mut self.caller;
                let rest = poll_fn(|cx| {
                    while !call.is_sent() && !call.deaf {
                        if ready!(call.poll_up(cx, caller, &mut kept.stream)).is_err() {
                            break;
                        }
                    }
                    Poll::Ready(())
                });
                // Nobody can tell how long an answered request may take to end.
                let _ = timeout(READ_ON, rest).await;
            }
            kept.used = Instant::now();
            if call.last || !call.is_sent() {
                self.requests.kept = None;
            }
        }
        if call.unread > 0 {
            Err(self.close(call.unread).await)
        } else {
            Ok(())
        }
    }

    /// Gives the caller an answer of the shim's own. Where its request has not been read whole,
    /// that is the connection's last.
    async fn tell(
        &mut self,
        status: StatusCode,
        answered: Answered,
        why: &str,
        call: &Call,
    ) -> Result<(), End> {
        self.requests.context.metrics.answered(answered);
        let ends = call.unread > 0;
        let bytes = written(http_error(status, answered, why), ends, call.to_head).await;
        let caller = &self.caller;
        let mut left = &bytes[..];
        let all = poll_fn(|cx| {
            while !left.is_empty() {
                let n = ready!(caller.poll_write(cx, &[io::IoSlice::new(left)]))?;
                left = &left[n..];
            }
            Poll::Ready(Ok::<_, io::Error>(()))
        });
        all.await.map_err(|_| End::Reset)?;
        if ends {
            Err(self.close(call.unread).await)
        } else {
            Ok(())
        }
    }

    /// Ends the connection after an answer that its caller is to get.
    async fn close(&mut self, unread: u64) -> End {
        let stream: &TcpStream = self.caller.writes.as_ref();
        // Fails only where the connection is gone already.
        let _ = SockRef::from(stream).shutdown(Shutdown::Write);
        self.read_on(unread).await;
        End::Closed
    }

    /// Takes what the caller still sends of a body that nobody will read, for a while, since a
    /// connection that is closed with bytes unread is reset and the answer lost; how much is left.
    async fn read_on(&mut self, mut unread: u64) -> u64 {
        let (caller, left) = (&mut self.caller, &mut unread);
        let rest = poll_fn(|cx| {
            for _ in 0..IN_A_ROW {
                if *left == 0 {
                    return Poll::Ready(());
                }
                match ready!(poll_read(
                    &mut caller.reads,
                    cx,
                    *left,
                    |bytes, _| bytes.len() as u64
                )) {
                    Ok(0) | Err(_) => return Poll::Ready(()),
                    Ok(n) => {
                        caller.received.inc_by(n);
                        *left -= n;
                    }
                }
            }
            crate::turns::pass(cx)
        });
        // Without anything to read there is no timer.
        if timeout(READ_ON, rest).await.is_err() {
            tracing::debug!("a caller went on sending a body that nobody reads");
        }
        unread
    }
}

/// An answer of the shim's own, as bytes.
async fn written(response: Response<answer::Body>, ends: bool, to_head: bool) -> Vec<u8> {
    let (head, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(never) => match never {},
    };
    let mut out = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    for (name, value) in &head.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    if ends {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    if !to_head {
        out.extend_from_slice(&body);
    }
    out
}
