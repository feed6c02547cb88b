//! Doors for the fuzz targets to parsers that are nobody else's business, and to no others: what
//! is public anyway is called where it is. Not part of the image, nor of the documented interface.

use std::time::Duration;

use http::{HeaderMap, Method};
use serde_json::Value;

use crate::doctor::evidence::KubeFacts;
use crate::relay::heed::{self, About};
use crate::{admin, capability, doctor, relay};

/// What a request over HTTP is about, and the model's name without its escapes.
pub fn about(method: &Method, path: &str) -> Option<(&'static str, String)> {
    match heed::about(method, path) {
        About::Inference(model) => Some(("inference", heed::plain(model))),
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
