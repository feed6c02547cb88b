//! Loads and unloads over gRPC, and the index that the agent reads at its start.
//!
//! A gRPC load that is cancelled, or whose deadline passes in the server, leaves the model in a
//! state that never heals and makes the server not ready for good. So a load or unload that has
//! reached the shim is carried to its end whatever becomes of its caller, and the caller's
//! deadline stays with the caller. Needless loads are not carried at all: see [`super::flights`].
//! What cannot be read passes as it came.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::answer::{self, Answered};
use super::flights::{Lost, Unsent, Whole};
use super::local::{Calls, Relayed};
use super::reserved::{self, First, Held, MAX_CHANGE, MAX_HELD};
use crate::budget::Charge;
use crate::subscription::wire;

const MODEL_READY: &str = "/inference.GRPCInferenceService/ModelReady";
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Largest answer to a load or unload, which has none but its status.
const MAX_ANSWER: usize = 64 * 1024;
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

/// Success with an empty message, as MLServer answers a load.
fn already_loaded() -> Response<Relayed> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let mut response = Response::new(Relayed::Own(Some(framed(&[])), Some(trailers)));
    let head = response.headers_mut();
    head.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.insert(answer::ANSWERED, HeaderValue::from_static("loaded"));
    response
}

fn response(whole: Whole) -> Response<Relayed> {
    let mut response = Response::new(Relayed::Own(whole.message, whole.trailers));
    *response.headers_mut() = whole.head;
    response
}

impl Calls {
    /// A load or unload.
    pub(super) async fn change(self: &Arc<Self>, request: Request<Incoming>) -> Response<Relayed> {
        let loads = request.uri().path().ends_with("Load");
        let (head, body) = request.into_parts();
        let limit = self.context.header_timeout;
        let Ok(read) = timeout(limit, Held::first_message(body, MAX_CHANGE)).await else {
            return self.unavailable(&format!("the request was not whole within {limit:?}"));
        };
        let (held, first) = read;
        let message = match first {
            First::Message(message) => Some(message),
            First::Unread => None,
            First::Exhausted(why) => return self.exhausted(&why.to_string()),
        };
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
        // What the call keeps when its caller has gone: its headers, its message, and the name
        // that stands in it.
        let mut charge = match Charge::call(&head.headers) {
            Ok(charge) => charge,
            Err(error) => return self.exhausted(&error.to_string()),
        };
        if let Err(error) = charge.add(2 * message.len()) {
            return self.exhausted(&error.to_string());
        }
        // The caller's body is not tied to the call: its going away would end it.
        let call = |unsent| {
            let message = Bytes::from_owner(Message {
                framed: framed(&message),
                _unsent: unsent,
            });
            let mut request = Request::from_parts(head, Relayed::Own(Some(message), None));
            request.headers_mut().remove(TIMEOUT);
            request.headers_mut().remove(CONTENT_LENGTH);
            self.clone().call(request, charge)
        };
        let (memory, flights) = (&self.context.memory, &self.context.flights);
        let answer = if loads {
            let files = memory.files(&model).await;
            let has = || self.has(&model);
            flights.load(memory, &model, files, has, call).await
        } else {
            let answer = flights.unload(memory, &model, call).await;
            answer.map(Some)
        };
        match answer {
            Ok(Some(whole)) => response(whole),
            Ok(None) => {
                tracing::debug!(
                    model,
                    "a load of a model that the server has was answered without loading"
                );
                already_loaded()
            }
            Err(Lost(why)) => self.unavailable(why),
        }
    }

    /// A call that nobody waits for any more is still made.
    async fn call(self: Arc<Self>, request: Request<Relayed>, _charge: Charge) -> Whole {
        let loading = self.context.gate.as_ref().map(|gate| gate.loading());
        let whole = self.whole(request).await;
        drop(loading);
        self.context.poke.now();
        whole
    }

    /// One call with its whole answer.
    async fn whole(&self, request: Request<Relayed>) -> Whole {
        let (head, body) = self.forward(request).await.into_parts();
        match Limited::new(body, MAX_ANSWER).collect().await {
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
                let why = if error.is::<LengthLimitError>() {
                    format!(
                        "the inference server answered with more than {MAX_ANSWER} bytes, where an empty message was expected"
                    )
                } else {
                    format!(
                        "the inference server broke off its answer ({})",
                        crate::prober::connect::innermost(&*error)
                    )
                };
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
        // The agent asks once, at its start, before it subscribes.
        self.context.memory.agent_starts();
        // What is compressed cannot be read.
        request.headers_mut().remove("grpc-accept-encoding");
        let response = self.forward(request.map(Relayed::Passed)).await;
        let (mut head, body) = response.into_parts();
        let Relayed::Passed(body) = body else {
            return Response::from_parts(head, body);
        };
        // An index that is not read goes on as it is.
        let (mut held, first) = Held::first_message(body, MAX_HELD).await;
        if let First::Message(message) = first {
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

/// A message that says when it has been written, or never will be: the library lets go of it then.
struct Message {
    framed: Bytes,
    _unsent: Unsent,
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.framed
    }
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
    use prost::Message as _;

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
