//! Doors for the fuzz targets to parsers that are nobody else's business, and to no others: what
//! is public anyway is called where it is. Not part of the image, nor of the documented interface.

use std::ops::Range;
use std::time::Duration;

use http::{HeaderMap, Method};
use serde_json::Value;

use crate::doctor::evidence::KubeFacts;
use crate::relay::heed::{self, About};
use crate::relay::http::lane::{chunks, request, response};
use crate::{admin, capability, doctor, relay};

/// What a request over HTTP is about, and the model's name without its escapes.
pub fn about(method: &Method, path: &str) -> Option<(&'static str, String)> {
    match heed::about(method, path) {
        About::Inference(model) => Some(("inference", heed::plain(model))),
        About::Stream(model) => Some(("stream", heed::plain(model))),
        About::Load(model) => Some(("load", heed::plain(model))),
        About::Unload(model) => Some(("unload", heed::plain(model))),
        About::Nothing => None,
    }
}

/// Takes off what belongs to one connection.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    relay::http::strip_hop_by_hop(headers);
}

/// A caller's deadline.
pub fn deadline(headers: &HeaderMap) -> Option<Duration> {
    relay::local::deadline(headers)
}

/// The repository index over gRPC in the agent's words.
pub fn in_plain_words(message: &[u8], is_restoring: impl Fn(&str) -> bool) -> Option<Vec<u8>> {
    relay::repository::in_plain_words(message, is_restoring)
}

/// A kubeconfig as a value.
pub fn kubeconfig(text: &str) -> Result<Value, String> {
    doctor::gather::kube::yaml::parse(text)
}

/// What the doctor takes from answers of Kubernetes to all of its questions.
pub fn kubernetes(answers: &[Value]) -> KubeFacts {
    doctor::gather::kube::facts_of(answers)
}

/// How many distributions the probe model's answer names; `None` where it is not understood.
pub fn probe_model(text: &str) -> Option<usize> {
    capability::probe_model::parse(text).map(|answer| answer.distributions.len())
}

/// How long `/drain` with this query waits.
pub fn drain_limit(query: &str, bound: Duration) -> Option<Duration> {
    admin::drain::limit(query, bound)
}

/// Of a request that the HTTP relay carries as bytes: its head, what of that stays here, and the
/// length of its body; `None` for others, and for what is no whole head.
pub fn plain_request(bytes: &[u8]) -> Option<(usize, Range<usize>, u64)> {
    match request::judge(bytes) {
        request::Judged::Plain(plain) => Some((plain.head, plain.cut, plain.body)),
        request::Judged::Partial | request::Judged::Unusual => None,
    }
}

/// How an answer's body ends.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// After so many bytes.
    Length(u64),
    /// With the last chunk, as it was said.
    Chunks,
    /// With the connection, said to the caller in chunks.
    Close,
}

/// Of the head of an answer: its bytes, what goes on of it, how its body ends, and whether the
/// connection takes no further request.
pub fn answer(bytes: &[u8], to_head: bool) -> Option<(usize, Vec<u8>, BodyEnd, bool)> {
    let response::Judged::Final(answer) = response::judge(bytes, to_head) else {
        return None;
    };
    let end = match answer.framing {
        response::Framing::Length(n) => BodyEnd::Length(n),
        response::Framing::Chunks(_) => BodyEnd::Chunks,
        response::Framing::Close => BodyEnd::Close,
    };
    let goes_on = answer
        .rewritten
        .unwrap_or_else(|| bytes[..answer.head].to_vec());
    Some((answer.head, goes_on, end, answer.last))
}

/// Of a body in chunks, in pieces of `size` bytes: how many are the body's, what goes on, and
/// whether it is complete; `None` where it is none.
pub fn chunked(bytes: &[u8], size: usize) -> Option<(usize, Vec<u8>, bool)> {
    let (mut chunks, mut used, mut out) = (chunks::Chunks::default(), 0, Vec::new());
    for piece in bytes.chunks(size) {
        let (n, goes_on) = chunks.pass(piece).ok()?;
        used += n;
        out.extend_from_slice(&goes_on);
    }
    Some((used, out, chunks.is_done()))
}
