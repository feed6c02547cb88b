//! What can be learnt of models from HTTP requests that pass: their names stand in the path.
//!
//! Looks at paths and statuses, never at a body; keeps nothing of a model that is not known.

use http::{Method, StatusCode};

use super::Context;
use super::reserved::unescaped;
use crate::drain::in_flight::InFlight;
use crate::models::Poke;
use crate::restore::{Loading, Memory, Unloading};
use crate::worker::Worker;

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About<'a> {
    /// An inference, whose status tells how it went.
    Inference(&'a str),
    /// One whose results come as a stream: the server says 200 before its worker has begun.
    Stream(&'a str),
    Load(&'a str),
    Unload(&'a str),
    Nothing,
}

pub(crate) fn about<'a>(method: &Method, path: &'a str) -> About<'a> {
    if method != Method::POST {
        return About::Nothing;
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return About::Nothing;
    };
    let mut parts = rest.split('/');
    let parts: [Option<&str>; 6] = std::array::from_fn(|_| parts.next());
    match parts {
        [
            Some("repository"),
            Some("models"),
            Some(name),
            Some("load"),
            None,
            None,
        ] => About::Load(name),
        [
            Some("repository"),
            Some("models"),
            Some(name),
            Some("unload"),
            None,
            None,
        ] => About::Unload(name),
        [Some("models"), Some(name), Some(verb), None, None, None]
        | [
            Some("models"),
            Some(name),
            Some("versions"),
            Some(_),
            Some(verb),
            None,
        ] => match verb {
            "infer" | "generate" => About::Inference(name),
            "infer_stream" | "generate_stream" => About::Stream(name),
            _ => About::Nothing,
        },
        _ => About::Nothing,
    }
}

/// A name without its escapes. What is no text is no model's name.
pub(crate) fn plain(name: &str) -> String {
    if !name.contains('%') {
        return name.into();
    }
    String::from_utf8_lossy(&unescaped(name)).into_owned()
}

/// A request under way, for the account of what is in memory.
#[derive(Debug)]
pub struct Heed<'a> {
    memory: &'a Memory,
    worker: &'a Worker,
    in_flight: &'a InFlight,
    poke: &'a Poke,
    inference: Option<String>,
    load: Option<Loading>,
    /// Ends with this.
    _unload: Option<Unloading>,
}

/// An unload waits until the loads that were asked for before it have been sent.
pub async fn in_turn(context: &Context, method: &Method, path: &str) {
    if let About::Unload(model) = about(method, path)
        && let Some(sent) = context.flights.unloading(&plain(model))
    {
        sent.wait().await;
    }
}

impl<'a> Heed<'a> {
    /// Before it is sent on.
    pub fn before(context: &'a Context, method: &Method, path: &str) -> Self {
        let memory = &context.memory;
        let mut heed = Heed {
            memory,
            worker: &context.worker,
            in_flight: &context.in_flight,
            poke: &context.poke,
            inference: None,
            load: None,
            _unload: None,
        };
        match about(method, path) {
            About::Inference(model) => {
                let model = plain(model);
                memory.used(&model);
                heed.inference = Some(model);
            }
            About::Stream(model) => memory.used(&plain(model)),
            // No fingerprint: a load over HTTP is a person's, and never answered without loading.
            About::Load(model) => heed.load = Some(memory.loading(&plain(model), None)),
            About::Unload(model) => {
                let model = plain(model);
                context.flights.unloading(&model);
                heed._unload = Some(memory.unloading(&model));
            }
            About::Nothing => {}
        }
        heed
    }

    /// With what the head of the answer says, and whether its body calls itself plain text.
    /// Without it, as when the caller has gone, nothing is known.
    pub fn after(mut self, status: StatusCode, is_text: bool) {
        let ok = status == StatusCode::OK;
        if let (Some(load), true) = (self.load.take(), ok) {
            load.succeeded();
        }
        if let Some(model) = self.inference.take() {
            if ok {
                self.in_flight.answered();
                self.memory.worked(&model);
                self.worker.worked();
            } else if status == StatusCode::INTERNAL_SERVER_ERROR && is_text {
                // A server whose worker cannot work: MLServer's own errors are JSON.
                self.worker.failed();
            } else if status == StatusCode::NOT_FOUND {
                self.memory.missed(&model);
            }
        }
    }
}

impl Drop for Heed<'_> {
    fn drop(&mut self) {
        // No answer was seen: the caller has gone, and the server finishes the load all the same.
        if let Some(load) = self.load.take() {
            load.left();
            self.poke.now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_stands_in_the_path() {
        for (path, expected) in [
            ("/v2/models/iris_1/infer", About::Inference("iris_1")),
            (
                "/v2/models/iris_1/versions/1/infer",
                About::Inference("iris_1"),
            ),
            ("/v2/models/iris_1/generate", About::Inference("iris_1")),
            (
                "/v2/models/iris_1/versions/1/generate",
                About::Inference("iris_1"),
            ),
            ("/v2/models/iris_1/generate_stream", About::Stream("iris_1")),
            (
                "/v2/models/iris_1/versions/1/infer_stream",
                About::Stream("iris_1"),
            ),
            ("/v2/models/iris_1/versions/infer", About::Nothing),
            ("/v2/models/iris_1/ready", About::Nothing),
            ("/v2/repository/models/iris_1/load", About::Load("iris_1")),
            (
                "/v2/repository/models/iris_1/unload",
                About::Unload("iris_1"),
            ),
            ("/v2/repository/index", About::Nothing),
            ("/v2/models/iris_1/infer/", About::Nothing),
            ("/v2/models/iris_1/infer/a/b/c/d", About::Nothing),
            ("/", About::Nothing),
        ] {
            assert_eq!(about(&Method::POST, path), expected, "{path}");
        }
        assert_eq!(plain("iris%5f1%"), "iris_1%");
        assert_eq!(about(&Method::GET, "/v2/models/a/infer"), About::Nothing);
    }
}
