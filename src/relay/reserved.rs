//! Keeps the probe model out of the callers' sight, and callers' hands off it.
//!
//! Used only where the probe model is. Everything else in an answer stays byte for byte, and an
//! answer that cannot be read, or is too large to be held, passes as it is.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use http::Method;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::budget::{Charge, Exhausted};
use crate::capability::probe_model::NAME;
use crate::subscription::wire;

/// What a caller that names the model is told.
pub const REFUSED: &str = "that name is reserved for the model that asks the server what it has installed (SHIM_CAPABILITIES_PROBE)";

/// Largest message or body that is held: an index of forty thousand models.
pub const MAX_HELD: usize = 4 * 1024 * 1024;
/// Largest load or unload that is read: a name, and parameters that MLServer does not look at.
pub const MAX_CHANGE: usize = 64 * 1024;

/// Bytes before a gRPC message: a flag, and the length.
const PREFIX: usize = 5;
/// `RepositoryIndexResponse.models`, and `ModelIndex.name`.
const MODELS: u32 = 1;
const INDEX_NAME: u32 = 1;
/// `model_name` of loads and unloads.
const MODEL_NAME: u32 = 2;

/// A gRPC message of the repository index without the model; `None` where it is not in it.
pub fn without_grpc(message: &[u8]) -> Option<Vec<u8>> {
    let is_ours = |model: &[u8]| Ok(wire::text(model, &[INDEX_NAME])? == NAME);
    let shorter = wire::leave_out(message, MODELS, is_ours).ok()?;
    (shorter.len() < message.len()).then_some(shorter)
}

/// Whether a load or unload over gRPC is of the model.
pub fn names_grpc(message: &[u8]) -> bool {
    wire::text(message, &[MODEL_NAME]).is_ok_and(|name| name == NAME)
}

#[derive(Deserialize)]
struct Named {
    name: Option<String>,
}

/// The JSON list of the repository index without the model; `None` where it is not in it.
pub fn without_json(body: &[u8]) -> Option<Vec<u8>> {
    // The common case costs one search.
    body.windows(NAME.len()).find(|w| *w == NAME.as_bytes())?;
    // What is ignored is not looked at, so a text that is no UTF-8 would pass for one.
    std::str::from_utf8(body).ok()?;
    serde_json::from_slice::<Vec<IgnoredAny>>(body).ok()?;
    let start = body.iter().position(|b| *b == b'[')? + 1;
    let mut out = body[..start].to_vec();
    let (mut at, mut kept, mut dropped) = (start, false, false);
    loop {
        // Each element with what stands before it, so that the rest stays as it was written.
        let gap = body[at..]
            .iter()
            .position(|b| !b.is_ascii_whitespace() && *b != b',')?;
        if body[at + gap] == b']' {
            out.extend_from_slice(&body[at..]);
            return dropped.then_some(out);
        }
        let rest = &body[at + gap..];
        let mut one = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
        one.next()?.ok()?;
        let element = &rest[..one.byte_offset()];
        let name = serde_json::from_slice::<Named>(element).ok();
        if name.is_some_and(|n| n.name.as_deref() == Some(NAME)) {
            dropped = true;
        } else {
            let before = &body[at..at + gap];
            // The first that stays has no comma before it.
            out.extend(before.iter().filter(|b| kept || **b != b','));
            out.extend_from_slice(element);
            kept = true;
        }
        at += gap + element.len();
    }
}

/// Whether a request over HTTP loads or unloads the model, however its name is escaped.
pub fn names_http(method: &Method, path: &str) -> bool {
    let name = path
        .strip_prefix("/v2/repository/models/")
        .and_then(|rest| rest.strip_suffix("/load").or(rest.strip_suffix("/unload")));
    method == Method::POST && name.is_some_and(|name| unescaped(name) == NAME.as_bytes())
}

/// A path's segment without its escapes.
pub(super) fn unescaped(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match tail {
            [high, low, ..] if *first == b'%' => digit(*high)
                .zip(digit(*low))
                .map(|(high, low)| high << 4 | low),
            _ => None,
        };
        out.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    out
}

/// Not by the library's parser of numbers, which takes a sign.
fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// A body of which the beginning has been read.
#[derive(Debug)]
pub struct Held {
    /// What was read, or how reading ended.
    pub frames: VecDeque<Result<Frame<Bytes>, hyper::Error>>,
    /// What is still to come.
    pub rest: Option<Incoming>,
    /// What is held counts among what is held for all callers.
    charge: Charge,
}

/// What the first message of a body is.
#[derive(Debug)]
pub enum First {
    /// Whole.
    Message(Bytes),
    /// There is none, or it is compressed, or larger than the limit.
    Unread,
    /// Too much is held for other callers already.
    Exhausted(Exhausted),
}

impl Held {
    /// Reads until the first gRPC message is whole, of at most so many bytes.
    pub async fn first_message(mut body: Incoming, limit: usize) -> (Self, First) {
        let mut charge = Charge::default();
        // Kept once: as what goes on, of which the message is a part.
        let mut data = BytesMut::new();
        let mut last = None;
        let mut ended = false;
        let first = loop {
            if let Some([flag, length @ ..]) = data.first_chunk::<PREFIX>() {
                let whole = PREFIX + u32::from_be_bytes(*length) as usize;
                if *flag != 0 || whole > limit {
                    break Ok(None);
                }
                if data.len() >= whole {
                    break Ok(Some(whole));
                }
            }
            match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => {
                        data.extend_from_slice(&piece);
                        if let Err(exhausted) = charge.unfinished(piece.len()) {
                            break Err(exhausted);
                        }
                    }
                    Err(other) => last = Some(Ok(other)),
                },
                Some(Err(error)) => {
                    (last, ended) = (Some(Err(error)), true);
                    break Ok(None);
                }
                None => {
                    ended = true;
                    break Ok(None);
                }
            }
        };
        let data = data.freeze();
        let first = match first {
            Ok(Some(whole)) => First::Message(data.slice(PREFIX..whole)),
            Ok(None) => First::Unread,
            Err(exhausted) => First::Exhausted(exhausted),
        };
        let data = Some(data).filter(|d| !d.is_empty());
        let held = Held {
            frames: data
                .map(|d| Ok(Frame::data(d)))
                .into_iter()
                .chain(last)
                .collect(),
            rest: (!ended).then_some(body),
            charge,
        };
        (held, first)
    }

    /// Puts another message in the place of the only one that was read.
    pub fn replace(&mut self, message: &[u8]) {
        let mut framed = BytesMut::with_capacity(PREFIX + message.len());
        framed.put_u8(0);
        framed.put_u32(message.len() as u32);
        framed.put_slice(message);
        self.frames
            .retain(|frame| !frame.as_ref().is_ok_and(Frame::is_data));
        self.frames.push_front(Ok(Frame::data(framed.freeze())));
    }

    /// The next piece of what was read. What has gone on is held no more.
    pub fn take(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        let next = self.frames.pop_front();
        if self.frames.is_empty() {
            self.charge = Charge::default();
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::RepositoryIndexResponse;
    use crate::proto::repository_index_response::ModelIndex;
    use prost::Message;

    fn index(names: &[&str]) -> Vec<u8> {
        let models = names.iter().map(|name| ModelIndex {
            name: name.to_string(),
            state: "State.READY".into(),
            ..ModelIndex::default()
        });
        let models = models.collect();
        RepositoryIndexResponse { models }.encode_to_vec()
    }

    #[test]
    fn the_model_goes_from_a_grpc_index_and_unknown_fields_stay() {
        let unknown = [0x98, 0x06, 0x85, 0x00];
        let mut message = index(&["a"]);
        message.extend(unknown);
        message.extend(index(&[NAME, "b"]));
        let mut expected = index(&["a"]);
        expected.extend(unknown);
        expected.extend(index(&["b"]));
        assert_eq!(without_grpc(&message), Some(expected));
        assert_eq!(without_grpc(&index(&["a", "agent-shim-probe2"])), None);
        assert_eq!(without_grpc(&[0x0a, 0xff]), None);
    }

    #[test]
    fn the_model_goes_from_a_json_index_and_the_rest_stays_as_written() {
        let ours = r#"{"state":"READY","name":"agent-shim-probe"}"#;
        let (a, b) = (
            r#"{"name":"a", "z":1.50,"reason":"agent-shim-probe"}"#,
            r#"{ "name":"]," }"#,
        );
        for (before, after) in [
            (format!("[{ours}]"), Some("[]".to_string())),
            (format!("[{ours},{a}]"), Some(format!("[{a}]"))),
            (format!("[{a},{ours}]"), Some(format!("[{a}]"))),
            (
                format!(" [ {a} , {ours} , {b} ]\n"),
                Some(format!(" [ {a} , {b} ]\n")),
            ),
            (format!("[{a},{b}]"), None),
            (format!("[{a},{ours}"), None),
            (format!("{{\"models\":[{ours}]}}"), None),
            (String::new(), None),
        ] {
            let got = without_json(before.as_bytes()).map(|b| String::from_utf8(b).unwrap());
            assert_eq!(got, after, "{before}");
        }
    }

    #[test]
    fn a_name_is_seen_through_its_escapes() {
        let post = |path: &str| names_http(&Method::POST, path);
        assert!(post("/v2/repository/models/agent-shim-probe/load"));
        assert!(post("/v2/repository/models/agent%2dshim%2Dprobe/unload"));
        assert!(!post("/v2/repository/models/agent-shim-probe2/load"));
        assert!(!post("/v2/repository/models/%/load"));
        assert!(!post("/v2/models/agent-shim-probe/infer"));
        assert!(names_grpc(b"\x12\x10agent-shim-probe"));
        assert!(!names_grpc(b"\x0a\x10agent-shim-probe"));
    }
}
