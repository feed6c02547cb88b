//! Loads and unloads over gRPC, and the index that the agent reads at its start.
//!
//! A gRPC load that is cancelled, or whose deadline passes in the server, leaves the model in a
//! state that never heals and makes the server not ready for good. So a load or unload that has
//! reached the shim is carried to its end whatever becomes of its caller, and the caller's
//! deadline stays with the caller. Needless loads are not carried at all: see [`Calls::load`].
//! What cannot be read passes as it came.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::time::timeout;

use super::answer::{self, Answered};
use super::local::{Calls, Relayed};
use super::reserved::{self, Held};
use crate::restore::files::Fingerprint;
use crate::restore::{Coalesced, Memory};
use crate::subscription::wire;

const MODEL_READY: &str = "/inference.GRPCInferenceService/ModelReady";
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Limit for asking the server whether it has a model.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// `model_name` of loads and unloads; `name` of `ModelReadyRequest`; its answer.
const MODEL_NAME: u32 = 2;
const NAME: u32 = 1;
const READY: u32 = 1;
/// `RepositoryIndexResponse.models`; name and state of one.
const MODELS: u32 = 1;
const INDEX_NAME: u32 = 1;
const INDEX_STATE: u32 = 3;

/// An answer that can be given to several callers.
#[derive(Debug, Clone)]
struct Whole {
    head: HeaderMap,
    message: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Whole {
    fn is_ok(&self) -> bool {
        let status = |headers: &HeaderMap| headers.get("grpc-status").map(|s| s == "0");
        self.trailers
            .as_ref()
            .and_then(status)
            .or_else(|| status(&self.head))
            .unwrap_or(false)
    }

    /// Success with an empty message, as MLServer answers a load.
    fn ok() -> Self {
        let mut head = HeaderMap::new();
        head.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        head.insert(answer::ANSWERED, HeaderValue::from_static("loaded"));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Whole {
            head,
            message: Some(framed(&[])),
            trailers: Some(trailers),
        }
    }

    fn response(self) -> Response<Relayed> {
        let mut response = Response::new(Relayed::Own(self.message, self.trailers));
        *response.headers_mut() = self.head;
        response
    }
}

/// A load or unload under way, for all who ask for the same.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    model: String,
    files: Option<Fingerprint>,
    answer: watch::Receiver<Option<Whole>>,
}

/// Loads under way through one relay. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Flights(Arc<std::sync::Mutex<Vec<Flight>>>);

impl Flights {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Flight>> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn of(&self, model: &str, files: Option<Fingerprint>) -> Option<Flight> {
        let flights = self.lock();
        let same = |f: &&Flight| f.model == model && f.files == files;
        flights.iter().find(same).cloned()
    }

    fn begin(
        &self,
        model: &str,
        files: Option<Fingerprint>,
    ) -> (watch::Sender<Option<Whole>>, Landing) {
        let (sender, answer) = watch::channel(None);
        self.lock().push(Flight {
            model: model.into(),
            files,
            answer: answer.clone(),
        });
        let landing = Landing {
            flights: self.clone(),
            answer,
        };
        (sender, landing)
    }
}

/// Takes a flight off the list when it is over, however it ends.
struct Landing {
    flights: Flights,
    answer: watch::Receiver<Option<Whole>>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let answer = &self.answer;
        let mut flights = self.flights.lock();
        flights.retain(|f| !f.answer.same_channel(answer));
    }
}

impl Calls {
    /// A load or unload.
    pub(super) async fn change(self: &Arc<Self>, request: Request<Incoming>) -> Response<Relayed> {
        let loads = request.uri().path().ends_with("Load");
        let (head, body) = request.into_parts();
        let (held, message) = Held::first_message(body).await;
        let model = message
            .as_ref()
            .and_then(|m| wire::text(m, &[MODEL_NAME]).ok())
            .filter(|name| !name.is_empty());
        let (Some(message), Some(model)) = (message, model) else {
            // Compressed, or no such message: what it is about is for the server to say.
            let response = self
                .forward(Request::from_parts(head, Relayed::Held(held)))
                .await;
            self.context.poke.now();
            return response;
        };
        if self.context.gate.is_some() && reserved::names_grpc(&message) {
            return self.status(
                answer::PERMISSION_DENIED,
                Answered::Reserved,
                reserved::REFUSED,
            );
        }
        // The caller's body is not tied to the call: its going away would end it.
        let own = |head| Request::from_parts(head, Relayed::Own(Some(framed(&message)), None));
        let mut request = own(head);
        request.headers_mut().remove(TIMEOUT);
        request.headers_mut().remove(CONTENT_LENGTH);
        if loads {
            self.load(model, request).await
        } else {
            let guard = self.context.memory.unloading(&model);
            self.carried(request, None, move |_| drop(guard)).await
        }
    }

    /// A load. It is answered without the server loading twice where the same load is under way,
    /// or the model is READY, was loaded from the files as they are now, and was seen to work not
    /// long ago. READY is what the server says at this moment, never what was known before.
    async fn load(self: &Arc<Self>, model: String, request: Request<Relayed>) -> Response<Relayed> {
        let memory = &self.context.memory;
        let files = memory.files(&model).await;
        if memory.settings().coalesce {
            if let Some(whole) = self.shared(&model, files).await {
                memory.coalesced(Coalesced::Shared);
                return whole.response();
            }
            let fresh = files.is_some_and(|files| memory.is_fresh(&model, &files));
            if fresh && self.has(&model).await {
                tracing::debug!(
                    model,
                    "a load of a model that is ready from unchanged files was answered without loading"
                );
                memory.coalesced(Coalesced::Ready);
                return Whole::ok().response();
            }
        }
        let guard = memory.loading(&model, files);
        let landing = self.context.flights.begin(&model, files);
        self.carried(request, Some(landing), move |whole| {
            if whole.is_ok() {
                guard.succeeded();
            }
        })
        .await
    }

    /// The answer of a load of the same model that is under way, a caller's or the shim's own.
    async fn shared(&self, model: &str, files: Option<Fingerprint>) -> Option<Whole> {
        let memory: &Memory = &self.context.memory;
        if memory.is_restoring(model) {
            memory.until_not_restoring(model).await;
            if self.has(model).await {
                return Some(Whole::ok());
            }
        }
        let mut flight = self.context.flights.of(model, files)?;
        // The flight may break off without an answer; then this caller makes its own.
        let answer = flight.answer.wait_for(Option::is_some).await.ok()?;
        answer.clone()
    }

    /// Carries a call to its end, also when the caller has gone.
    async fn carried(
        self: &Arc<Self>,
        request: Request<Relayed>,
        landing: Option<(watch::Sender<Option<Whole>>, Landing)>,
        done: impl FnOnce(&Whole) + Send + 'static,
    ) -> Response<Relayed> {
        let (sender, landing) = match landing {
            Some((sender, landing)) => (sender, Some(landing)),
            None => (watch::Sender::new(None), None),
        };
        let mut answer = sender.subscribe();
        let calls = self.clone();
        let busy = self.context.memory.busy();
        let loading = self.context.gate.as_ref().map(|gate| gate.loading());
        let job = async move {
            let whole = calls.whole(request).await;
            done(&whole);
            // Before the answer: whoever asks next begins anew.
            drop((landing, loading));
            calls.context.poke.now();
            sender.send_replace(Some(whole));
            drop(busy);
        };
        if !self.context.memory.carry(Box::pin(job)) {
            return self.unavailable("the shim is at its end");
        }
        match answer.wait_for(Option::is_some).await {
            Ok(whole) => whole.clone().map_or_else(
                || self.unavailable("the call was lost inside the shim"),
                Whole::response,
            ),
            Err(_) => self.unavailable("the call was lost inside the shim"),
        }
    }

    /// One call with its whole answer.
    async fn whole(&self, request: Request<Relayed>) -> Whole {
        let (head, body) = self.forward(request).await.into_parts();
        match body.collect().await {
            Ok(collected) => {
                let trailers = collected.trailers().cloned();
                let message = Some(collected.to_bytes()).filter(|m| !m.is_empty());
                Whole {
                    head: head.headers,
                    message,
                    trailers,
                }
            }
            Err(error) => {
                self.context.watching.hints.probe_now(self.context.protocol);
                let why = format!(
                    "the inference server broke off its answer ({})",
                    crate::prober::connect::innermost(&error)
                );
                let (head, _) = self.unavailable(&why).into_parts();
                Whole {
                    head: head.headers,
                    message: None,
                    trailers: None,
                }
            }
        }
    }

    /// Whether the server says now that a model is READY. No answer is no.
    async fn has(&self, model: &str) -> bool {
        let Ok(asked) = wire::append(&[], &[NAME], model.as_bytes()) else {
            return false;
        };
        let mut request = Request::new(Relayed::Own(Some(framed(&asked)), None));
        *request.method_mut() = Method::POST;
        // The library makes the request's target of the whole address.
        let Ok(uri) = format!("http://inference-server{MODEL_READY}").parse() else {
            return false;
        };
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        let Ok(whole) = timeout(ASK_LIMIT, self.whole(request)).await else {
            return false;
        };
        let message = whole.message.as_ref().and_then(|m| m.get(5..));
        whole.is_ok() && message.is_some_and(|m| matches!(wire::number(m, &[READY]), Ok(Some(1))))
    }

    /// The repository index as the agent understands it, and without the probe model.
    pub(super) async fn index(&self, mut request: Request<Incoming>) -> Response<Relayed> {
        // The agent asks once, at its start.
        self.context.memory.agent_starts();
        // What is compressed cannot be read.
        request.headers_mut().remove("grpc-accept-encoding");
        let response = self.forward(request.map(Relayed::Passed)).await;
        let (mut head, body) = response.into_parts();
        let Relayed::Passed(body) = body else {
            return Response::from_parts(head, body);
        };
        let (mut held, message) = Held::first_message(body).await;
        if let Some(message) = message {
            let mut edited = None;
            if self.context.gate.is_some() {
                edited = reserved::without_grpc(&message);
            }
            let memory = &self.context.memory;
            let current = edited.as_deref().unwrap_or(&message);
            let plain = in_plain_words(current, |model| memory.is_restoring(model));
            if let Some(edited) = plain.or(edited) {
                held.replace(&edited);
                head.headers.remove(CONTENT_LENGTH);
            }
        }
        self.context.poke.now();
        Response::from_parts(head, Relayed::Held(held))
    }
}

/// An index in the words of the protocol, which are the only ones that the agent compares with:
/// MLServer writes its enumeration's own form (`State.READY`), and `UNKNOWN` for a model that it
/// loads. So a starting agent neither unloaded what was there nor what was being loaded. A model
/// that the shim is about to load is loading too. `None` where nothing changes.
pub(crate) fn in_plain_words(
    message: &[u8],
    is_restoring: impl Fn(&str) -> bool,
) -> Option<Vec<u8>> {
    let edit = |model: &[u8]| -> Result<Option<Vec<u8>>, wire::Malformed> {
        let state = wire::text(model, &[INDEX_STATE])?;
        let bare = state.strip_prefix("State.").unwrap_or(&state);
        let plain = match bare {
            "UNKNOWN" => "LOADING",
            "UNAVAILABLE" if is_restoring(&wire::text(model, &[INDEX_NAME])?) => "LOADING",
            other => other,
        };
        if plain == state {
            return Ok(None);
        }
        wire::set_texts(model, &[INDEX_STATE], &[plain.to_string()]).map(Some)
    };
    let edited = wire::edit_each(message, MODELS, edit).ok()?;
    (edited != message).then_some(edited)
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::RepositoryIndexResponse;
    use crate::proto::repository_index_response::ModelIndex;
    use prost::Message;

    fn index(models: &[(&str, &str)]) -> Vec<u8> {
        let models = models.iter().map(|(name, state)| ModelIndex {
            name: name.to_string(),
            version: "v1".into(),
            state: state.to_string(),
            reason: String::new(),
        });
        let models = models.collect();
        RepositoryIndexResponse { models }.encode_to_vec()
    }

    #[test]
    fn states_become_the_words_that_the_agent_knows_and_all_else_stays() {
        let unknown = [0x98, 0x06, 0x85, 0x00];
        let mut before = index(&[("a", "State.UNKNOWN"), ("b", "State.READY")]);
        before.extend(unknown);
        before.extend(index(&[
            ("c", "State.UNAVAILABLE"),
            ("d", "UNKNOWN"),
            ("e", "LATER"),
        ]));
        let mut after = index(&[("a", "LOADING"), ("b", "READY")]);
        after.extend(unknown);
        after.extend(index(&[
            ("c", "UNAVAILABLE"),
            ("d", "LOADING"),
            ("e", "LATER"),
        ]));
        assert_eq!(in_plain_words(&before, |_| false), Some(after.clone()));
        assert_eq!(in_plain_words(&after, |_| false), None);
        assert_eq!(in_plain_words(&[0x0a, 0xff], |_| false), None);
    }

    #[test]
    fn a_model_that_is_about_to_be_restored_is_loading() {
        let before = index(&[("a", "State.UNAVAILABLE"), ("b", "State.UNAVAILABLE")]);
        let after = index(&[("a", "LOADING"), ("b", "UNAVAILABLE")]);
        assert_eq!(in_plain_words(&before, |m| m == "a"), Some(after));
    }
}
