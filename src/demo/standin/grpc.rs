//! The gRPC calls: MLServer's, and some that only tests make.
//!
//! `ModelInfer` and `ModelStreamInfer` send back the messages they get, as they are. `Hang` sends
//! nothing until released, `Fail` a status with a message and a trailer, `ResetMid` one message
//! and then RST_STREAM, `Sink` how many bytes of body there were, as text. Messages are framed by hand: an echo must not know what it carries.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use prost::Message;

use super::body::{Asked, BoxError, Reply};
use super::calls::Entry;
use super::wire::Tap;
use super::world::{READY, UNAVAILABLE, UNKNOWN, World};
use crate::endpoint::Protocol;
use crate::proto::{
    RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveResponse, ServerMetadataResponse,
    ServerReadyResponse, repository_index_response::ModelIndex,
};

/// The status message of `Fail`, with what the wire form must escape.
pub const FAIL_MESSAGE: &str = "failed as asked: 100 % wrong, sch\u{f6}n";
/// The length of the message that `ResetMid` sends before it resets.
pub const RESET_MESSAGE_BYTES: usize = 2000;

const OK: u16 = 0;
const INVALID_ARGUMENT: u16 = 3;
const NOT_FOUND: u16 = 5;
const FAILED_PRECONDITION: u16 = 9;
const UNIMPLEMENTED: u16 = 12;
const UNKNOWN_STATUS: u16 = 2;

/// Bytes before each message: a flag, and the length.
const PREFIX: usize = 5;

/// Requests that name a model: its name is the first field in `ModelReady`, and the second in
/// loads and unloads, after the repository's.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    first: String,
    #[prost(string, tag = "2")]
    second: String,
}

/// Answers one call.
pub(super) async fn answer(
    request: Request<Incoming>,
    tap: Arc<Tap>,
    world: Arc<World>,
) -> Result<Response<Reply>, BoxError> {
    let entry = world.journal.begin(Protocol::Grpc, &tap, &request);
    let (head, body) = request.into_parts();
    let method = match head.uri.path().trim_start_matches('/').split_once('/') {
        Some(("inference.GRPCInferenceService", method)) => method,
        Some(("inference.model_repository.ModelRepositoryService", method))
            if method.starts_with("Repository") =>
        {
            method
        }
        _ => "",
    };
    let to = To { entry, world, tap };
    let mut asked = Messages {
        asked: Asked::new(body, to.entry.clone()),
        buffer: BytesMut::new(),
    };
    let mut response = match method {
        "ModelInfer" if to.world.settings().breaks_off => to.reset(),
        "ModelInfer" => to.infer(asked).await?,
        "Sink" => to.sink(asked).await?,
        "ModelStreamInfer" => to.stream(asked),
        "Hang" => to.hang(asked),
        "ResetMid" => to.reset(),
        "Fail" => {
            asked.next().await?;
            to.fail()
        }
        _ => to.mlserver(method, asked).await?,
    };
    for name in ["x-echo", "grpc-encoding"] {
        if let Some(value) = head.headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

/// One call to answer.
struct To {
    entry: Arc<Entry>,
    world: Arc<World>,
    tap: Arc<Tap>,
}

impl To {
    async fn mlserver(
        &self,
        method: &str,
        mut asked: Messages,
    ) -> Result<Response<Reply>, BoxError> {
        let request = match asked.next().await? {
            Some(framed) => framed.slice(PREFIX..),
            None => Bytes::new(),
        };
        let named = match method {
            "ModelReady" | "RepositoryModelLoad" | "RepositoryModelUnload" => {
                Named::decode(request.clone())
            }
            _ => Ok(Named::default()),
        };
        let only_ready = match method {
            "RepositoryIndex" => RepositoryIndexRequest::decode(request).map(|asked| asked.ready),
            _ => Ok(false),
        };
        let (Ok(named), Ok(only_ready)) = (named, only_ready) else {
            let why = "Unexpected <class 'google.protobuf.message.DecodeError'>";
            return Ok(self.status(UNKNOWN_STATUS, why));
        };
        Ok(match method {
            "ServerLive" => {
                let live = self.world.settings().live;
                self.message(&ServerLiveResponse { live })
            }
            "ServerReady" => {
                let ready = self.world.is_ready();
                self.message(&ServerReadyResponse { ready })
            }
            "ServerMetadata" => self.message(&ServerMetadataResponse {
                name: "mlserver".into(),
                version: super::VERSION.into(),
                extensions: Vec::new(),
            }),
            "RepositoryIndex" => self.index(only_ready),
            "RepositoryModelLoad" => {
                // A cancelled load leaves the model UNKNOWN for good, as in MLServer.
                let delay = self.world.load_begins(&named.second);
                tokio::time::sleep(delay).await;
                let ended = self.world.load_ends(&named.second);
                // Taken first: what is locked for a condition stays so for its block.
                let refusal = self.world.settings().load_error.clone();
                if let Some(why) = refusal {
                    self.world.put(&named.second, UNAVAILABLE);
                    return Ok(self.status(INVALID_ARGUMENT, &why));
                }
                match ended {
                    Ok(()) => self.message(&()),
                    Err(error) => self.status(FAILED_PRECONDITION, &error),
                }
            }
            "RepositoryModelUnload" if self.world.put(&named.second, UNAVAILABLE) => {
                self.message(&())
            }
            "RepositoryModelUnload" => {
                self.status(NOT_FOUND, &format!("Model {} not found", named.second))
            }
            "ModelReady" => match self.world.model_state(&named.first).as_deref() {
                // The answer has the fields of a ServerReadyResponse.
                Some(READY) => self.message(&ServerReadyResponse { ready: true }),
                Some(UNKNOWN) => self.message(&ServerReadyResponse { ready: false }),
                _ => self.status(
                    UNKNOWN_STATUS,
                    &format!(
                        "Unexpected <class 'mlserver.errors.ModelNotFound'>: Model {} with version {} not found",
                        named.first, named.second
                    ),
                ),
            },
            _ => self.status(UNIMPLEMENTED, "Method not found!"),
        })
    }

    fn index(&self, only_ready: bool) -> Response<Reply> {
        let settings = self.world.settings();
        let models = settings.models.iter();
        let models = models
            .filter(|m| !only_ready || m.state == READY)
            .map(|m| ModelIndex {
                name: m.name.clone(),
                version: m.version.clone(),
                // The form of a Python enumeration.
                state: format!("State.{}", m.state),
                reason: String::new(),
            })
            .collect();
        drop(settings);
        self.message(&RepositoryIndexResponse { models })
    }

    async fn infer(&self, mut asked: Messages) -> Result<Response<Reply>, BoxError> {
        let message = asked.next().await?.unwrap_or_default();
        let reply = Reply::script(&self.entry, |out| async move {
            out.data(message).await?;
            out.trailers(ended_well()).await
        });
        Ok(response(reply))
    }

    /// Holds nothing of what it reads.
    async fn sink(&self, mut asked: Messages) -> Result<Response<Reply>, BoxError> {
        let mut bytes = 0;
        while let Some(frame) = asked.asked.next().await? {
            bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        let message = framed(bytes.to_string().as_bytes());
        let reply = Reply::script(&self.entry, |out| async move {
            out.data(message).await?;
            out.trailers(ended_well()).await
        });
        Ok(response(reply))
    }

    fn stream(&self, mut asked: Messages) -> Response<Reply> {
        response(Reply::script(&self.entry, |out| async move {
            while let Some(message) = asked.next().await? {
                out.data(message).await?;
            }
            out.trailers(ended_well()).await
        }))
    }

    fn hang(&self, mut asked: Messages) -> Response<Reply> {
        let released = self.world.release();
        response(Reply::script(&self.entry, |out| async move {
            let message = asked.next().await?.unwrap_or_default();
            released.await;
            out.data(message).await?;
            out.trailers(ended_well()).await
        }))
    }

    fn reset(&self) -> Response<Reply> {
        let tap = self.tap.clone();
        // The head is shorter than the message, so when this much is written the message is
        // under way; RST_STREAM would otherwise throw away what waits before it.
        let enough = tap.written() + RESET_MESSAGE_BYTES as u64;
        response(Reply::script(&self.entry, move |out| async move {
            out.data(framed(&[b'x'; RESET_MESSAGE_BYTES])).await?;
            tap.until_written(enough).await;
            Err(h2::Error::from(h2::Reason::CANCEL).into())
        }))
    }

    fn fail(&self) -> Response<Reply> {
        let mut response = self.status(INVALID_ARGUMENT, FAIL_MESSAGE);
        let detail = HeaderValue::from_static("as asked");
        response.headers_mut().insert("x-fail-detail", detail);
        response
    }

    fn message(&self, message: &impl Message) -> Response<Reply> {
        let message = framed(&message.encode_to_vec());
        response(Reply::script(&self.entry, |out| async move {
            out.data(message).await?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from(OK));
            out.trailers(trailers).await
        }))
    }

    /// A status alone: the trailers are the headers.
    fn status(&self, code: u16, message: &str) -> Response<Reply> {
        let mut response = response(Reply::whole(&self.entry, Bytes::new()));
        let headers = response.headers_mut();
        headers.insert("grpc-status", HeaderValue::from(code));
        let mut escaped = String::new();
        for byte in message.bytes() {
            match byte {
                b'%' => escaped.push_str("%25"),
                0x20..0x7f => escaped.push(char::from(byte)),
                _ => escaped.push_str(&format!("%{byte:02X}")),
            }
        }
        if let Ok(message) = HeaderValue::from_str(&escaped) {
            headers.insert("grpc-message", message);
        }
        response
    }
}

fn response(reply: Reply) -> Response<Reply> {
    let mut response = Response::new(reply);
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// The trailers of an inference; MLServer's metadata is all in the trailers.
fn ended_well() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(OK));
    trailers.insert("ce-id", HeaderValue::from_static("1"));
    trailers
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

/// A request's messages, each with the bytes before it.
struct Messages {
    asked: Asked,
    buffer: BytesMut,
}

impl Messages {
    /// The next whole message; half a message at the end is an error, as in gRPC.
    async fn next(&mut self) -> Result<Option<Bytes>, BoxError> {
        loop {
            if let Some(length) = self.buffer.get(1..PREFIX) {
                let whole = PREFIX + (&length[..]).get_u32() as usize;
                if self.buffer.len() >= whole {
                    return Ok(Some(self.buffer.split_to(whole).freeze()));
                }
            }
            match self.asked.next().await? {
                Some(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err("the request ends inside a message".into()),
            }
        }
    }
}
