//! One `Subscribe` of the agent: held until it can be served, corrected, forwarded, and carried until
//! one side ends it.

use std::sync::atomic::Ordering;

use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};

use super::body::{Outgoing, UNAVAILABLE, refusal, status_of};
use super::frames::{self, Single};
use super::live::Live;
use super::metrics::{Fate, Kind, Turn};
use super::pace::Backoff;
use super::status::Phase;
use super::stream::Operations;
use super::{Failed, Interposer, is_only_a_status, send, unreachable_phase, whole, without_length};
use crate::budget::Charge;
use crate::config::Mode;

impl Interposer {
    pub(super) async fn subscribe(self, request: Request<Incoming>) -> Response<Outgoing> {
        let mut live = self.registry.enter();
        let ended = live.ended();
        tokio::select! {
            response = self.subscribed(request, &mut live) => match response {
                Opened::Stream(response) => {
                    let (head, body) = response.into_parts();
                    let operations =
                        Operations::new(body, self.editor.clone(), self.debts.clone(), live);
                    Response::from_parts(head, Outgoing::Operations(Box::new(operations)))
                }
                Opened::Answer(response) => response,
            },
            // Dropping the call above cancels it at the scheduler, whatever it waits for.
            ending = ended => refusal(UNAVAILABLE, &ending.to_string()),
        }
    }

    async fn subscribed(&self, request: Request<Incoming>, live: &mut Live) -> Opened {
        let (mut head, body) = request.into_parts();
        let seen = self.events_seen.load(Ordering::Relaxed);
        let read = match whole(body, Charge::add_vital).await {
            Ok(read) => read,
            Err(refused) => return Opened::Answer(refused),
        };
        let body = read.bytes.clone();
        without_length(&mut head);
        self.hold(live).await;
        let mut backoff = Backoff::new();
        loop {
            sleep(self.registry.wait()).await;
            let line = match self.upstream.line().await {
                Ok(line) => line,
                Err(error) => {
                    self.again(live, &mut backoff, &error.to_string()).await;
                    continue;
                }
            };
            if self.events_seen.load(Ordering::Relaxed) != seen {
                // What the agent listed is out of date, and the scheduler would believe it.
                return Opened::Answer(refusal(
                    UNAVAILABLE,
                    "models have changed while the subscription waited: subscribe again",
                ));
            }
            let target = line.target.to_string();
            let sent = self.corrected(&body);
            live.open(target, self.editor.wanted());
            match send(line, &head, sent).await {
                Ok(response) if is_nobody(&response) => {
                    live.not_open();
                    let why = format!("a proxy answered instead of it: {}", response.status());
                    self.again(live, &mut backoff, &why).await;
                }
                Ok(response) if is_only_a_status(&response) => {
                    tracing::warn!(
                        status = status_of(response.headers()),
                        "the scheduler refuses the subscription"
                    );
                    live.refused(Some(refused_with(response.headers())));
                    live.over(Turn::EndedByScheduler);
                    return Opened::Answer(response);
                }
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    return match body {
                        Outgoing::FromScheduler(Some(body)) if head.status == StatusCode::OK => {
                            live.refused(None);
                            Opened::Stream(Response::from_parts(head, body))
                        }
                        body => {
                            live.over(Turn::EndedByScheduler);
                            Opened::Answer(Response::from_parts(head, body))
                        }
                    };
                }
                Err(Failed(why)) => {
                    // The agent subscribes afresh, with the models it has by now.
                    live.over(Turn::Lost);
                    return Opened::Answer(refusal(UNAVAILABLE, &why));
                }
            }
        }
    }

    /// Waits until enough is known, for the configured time at most.
    pub(super) async fn hold(&self, live: &Live) {
        let mut known = self.correct.known();
        if self.settings.mode == Mode::Observe || known.borrow_and_update().ready {
            return;
        }
        let ready = async {
            loop {
                let now = known.borrow_and_update().clone();
                if now.ready {
                    return;
                }
                tracing::info!(missing = now.missing, "a subscription is held");
                live.phase(Phase::Held(now.missing));
                if known.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        if timeout(self.settings.hold, ready).await.is_err() {
            let missing = self.correct.known().borrow().missing.clone();
            self.metrics.turn(Turn::Unready);
            tracing::error!(hold = ?self.settings.hold, missing, "the subscription has waited long enough and goes on with what is known");
        }
    }

    async fn again(&self, live: &Live, backoff: &mut Backoff, why: &str) {
        let wait = backoff.next(fastrand::f64());
        if backoff.failures() == 1 {
            tracing::warn!(why, "the scheduler cannot be reached: the agent waits");
        } else {
            tracing::debug!(
                why,
                ?wait,
                failures = backoff.failures(),
                "the scheduler cannot be reached"
            );
        }
        live.phase(unreachable_phase(why, backoff.failures()));
        sleep(wait).await;
    }

    /// The body to send at this moment.
    fn corrected(&self, body: &bytes::Bytes) -> Outgoing {
        let changed = match frames::single(body) {
            Single::Plain(message) => self.editor.subscribe(&message),
            Single::Compressed => {
                self.editor.opaque(Kind::Subscribe, Fate::Compressed);
                None
            }
            Single::Broken => {
                self.editor.opaque(Kind::Subscribe, Fate::Unreadable);
                None
            }
        };
        let bytes = changed.map_or_else(|| body.clone(), |message| frames::framed(&message));
        Outgoing::Whole(Some(bytes))
    }
}

enum Opened {
    Stream(Response<Incoming>),
    Answer(Response<Outgoing>),
}

/// The code and the message of an answer that is only a status.
fn refused_with(headers: &HeaderMap) -> String {
    let code = status_of(headers).unwrap_or(2);
    let message = headers.get("grpc-message").and_then(|m| m.to_str().ok());
    let name = tonic::Code::from_i32(code.into());
    let message: String = message.unwrap_or_default().replace("%20", " ");
    format!(
        "{name:?}: {}",
        message.chars().take(300).collect::<String>()
    )
}

/// A proxy that has no scheduler behind it. The agent would ask again at once.
fn is_nobody(response: &Response<Outgoing>) -> bool {
    let status = response.status();
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    ) || (is_only_a_status(response) && status_of(response.headers()) == Some(UNAVAILABLE))
}
