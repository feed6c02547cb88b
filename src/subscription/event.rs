//! `AgentEvent`: corrected, and delivered with a deadline. A repeat is safe: the scheduler takes an
//! event only in the state that it expects, and says "State mismatch" otherwise; but not once the
//! model has moved on, since it may come back into that state (see [`super::order`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::body::{DEADLINE_EXCEEDED, Outgoing, UNAVAILABLE, refusal, status_of};
use super::frames::{self, Single};
use super::held_back::{Answer as Said, mismatch};
use super::message;
use super::metrics::{Delivery, Fate, Kind};
use super::order::OnItsWay;
use super::pace::Backoff;
use super::{EVENT, Failed, Interposer, own_headers, send, whole, without_length};
use crate::budget::Charge;
use crate::relay::local::deadline;

/// How long an event is tried to be delivered. The agent waits for ever, and would lose it.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long one attempt may take. The scheduler answers from memory, but behind a lock.
const ATTEMPT: Duration = Duration::from_secs(15);
/// Largest answer to an event. It is an empty message; a later scheduler may say something.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

impl Interposer {
    pub(super) async fn event(self, request: Request<Incoming>) -> Response<Outgoing> {
        let (mut head, body) = request.into_parts();
        let read = match whole(body, Charge::add).await {
            Ok(read) => read,
            Err(refused) => return refused,
        };
        let body = read.bytes.clone();
        without_length(&mut head);
        let _running = Running::new(self.events_running.clone());
        self.events_seen.fetch_add(1, Ordering::Relaxed);
        let limit = deadline(&head.headers).map_or(DEADLINE, |t| t.min(DEADLINE));
        let message = match frames::single(&body) {
            Single::Plain(message) => Some((self.editor.account(&message), message)),
            Single::Compressed => {
                self.editor.opaque(Kind::Event, Fate::Compressed);
                None
            }
            Single::Broken => {
                self.editor.opaque(Kind::Event, Fate::Unreadable);
                None
            }
        };
        let current = || {
            let (accounted, message) = message.as_ref()?;
            self.editor.event(message, accounted)
        };
        let event = message.as_ref().and_then(|(accounted, _)| accounted.read());
        self.deliver(&head, &body, event, current, limit).await
    }

    /// Delivers an event of the shim's own.
    pub(super) async fn deliver_own(&self, body: Bytes) {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static(EVENT);
        *request.headers_mut() = own_headers();
        let (head, ()) = request.into_parts();
        let _running = Running::new(self.events_running.clone());
        let event = match frames::single(&body) {
            Single::Plain(message) => message::event(&message).ok(),
            Single::Compressed | Single::Broken => None,
        };
        let response = self
            .deliver(&head, &body, event.as_ref(), || None, DEADLINE)
            .await;
        let _ = response.into_body().collect().await;
    }

    async fn deliver(
        &self,
        head: &http::request::Parts,
        body: &Bytes,
        event: Option<&message::Event>,
        current: impl Fn() -> Option<Vec<u8>>,
        limit: Duration,
    ) -> Response<Outgoing> {
        let deadline = Instant::now() + limit;
        let on_its_way = event.map(|event| self.editor.sets_out(event));
        let mut backoff = Backoff::new();
        let mut why = String::new();
        loop {
            let attempt = async {
                let line = self
                    .upstream
                    .line()
                    .await
                    .map_err(|e| Failed(e.to_string()))?;
                let bytes = current().map_or_else(|| body.clone(), |m| frames::framed(&m));
                let turn = self.editor.turn();
                let response = send(line, head, Outgoing::Whole(Some(bytes))).await?;
                Ok((Answer::read(response).await?, turn))
            };
            let attempt = timeout_at(deadline, timeout(ATTEMPT, attempt)).await;
            match attempt {
                Ok(Ok(Ok((answer, turn)))) => {
                    if let (Some(event), Some(said)) = (event, answer.said()) {
                        self.editor.answered(event, turn, said);
                    }
                    return self.delivered(answer);
                }
                Ok(Ok(Err(Failed(error)))) => why = error,
                Ok(Err(_)) => why = format!("no answer within {ATTEMPT:?}"),
                Err(_) => {}
            }
            let wait = backoff.next(fastrand::f64());
            if Instant::now() + wait >= deadline {
                self.metrics.delivery(Delivery::Lost);
                let code = if why.is_empty() {
                    DEADLINE_EXCEEDED
                } else {
                    UNAVAILABLE
                };
                tracing::error!(
                    why,
                    ?limit,
                    "an event could not be delivered to the scheduler"
                );
                return refusal(code, &format!("not delivered within {limit:?}: {why}"));
            }
            tracing::warn!(why, ?wait, "an event could not be delivered: once more");
            sleep(wait).await;
            if on_its_way.as_ref().is_some_and(OnItsWay::is_overtaken) {
                self.metrics.delivery(Delivery::Overtaken);
                tracing::warn!(why, "an event is not sent again: its model has moved on");
                return refusal(
                    UNAVAILABLE,
                    &format!("not sent again, since the model has moved on: {why}"),
                );
            }
            self.metrics.delivery(Delivery::Again);
        }
    }

    /// Counts the scheduler's answer.
    fn delivered(&self, answer: Answer) -> Response<Outgoing> {
        let delivery = match answer.said() {
            Some(Said::Taken) => Delivery::Taken,
            Some(Said::Mismatch { .. }) => Delivery::Mismatch,
            None => Delivery::Refused,
        };
        let Answer {
            head,
            message,
            trailers,
        } = answer;
        let deciding = trailers.as_ref().unwrap_or(&head.headers);
        self.metrics.delivery(delivery);
        if delivery != Delivery::Taken {
            let said = deciding.get("grpc-message").and_then(|m| m.to_str().ok());
            tracing::warn!(
                status = status_of(deciding),
                said,
                "the scheduler does not take an event"
            );
        }
        self.status.send_modify(|status| {
            status.events += 1;
            status.mismatches += u64::from(delivery == Delivery::Mismatch);
        });
        let body = match (message.is_empty(), trailers) {
            (true, None) => Outgoing::Whole(None),
            (_, trailers) => Outgoing::Collected(Some(message).filter(|b| !b.is_empty()), trailers),
        };
        Response::from_parts(head, body)
    }
}

/// The scheduler's answer, read whole: a small message and the trailers.
struct Answer {
    head: http::response::Parts,
    message: Bytes,
    trailers: Option<HeaderMap>,
}

impl Answer {
    /// What it comes to; `None` where it is a refusal for another reason than the model's state.
    fn said(&self) -> Option<Said> {
        let deciding = self.trailers.as_ref().unwrap_or(&self.head.headers);
        if status_of(deciding) == Some(0) {
            return Some(Said::Taken);
        }
        mismatch(deciding.get("grpc-message")?.to_str().ok()?)
    }

    /// Reads it, within the caller's time and [`MAX_ANSWER`].
    async fn read(response: Response<Outgoing>) -> Result<Self, Failed> {
        let (head, body) = response.into_parts();
        let collected = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| {
                Failed(if error.is::<LengthLimitError>() {
                    format!("the answer to an event, which should be empty, is larger than {MAX_ANSWER} bytes")
                } else {
                    format!("the answer broke off: {error}")
                })
            })?;
        Ok(Answer {
            head,
            trailers: collected.trailers().cloned(),
            message: collected.to_bytes(),
        })
    }
}

/// Counts an event while it is under way.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Running(count)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
