//! The few questions that are put to the server about one model, over HTTP.
//!
//! HTTP because MLServer finishes a load whose HTTP caller has gone, while a gRPC load that is
//! cut off leaves the model UNKNOWN, and the server not ready, for good. Questions have a limit;
//! loads and unloads have none.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode, Url};

use crate::endpoint::Protocol;
use crate::health::State;
use crate::prober::connect::innermost;
use crate::view::View;

/// Limit of a question: the server freezes for seconds in normal work.
const LIMIT: Duration = Duration::from_secs(15);
/// What is kept of the server's reason.
const MAX_REASON: usize = 300;

/// What the server says of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Has {
    /// It is loaded.
    Ready,
    /// It is being loaded, or a load of it was cut off.
    Loading,
    /// It is not there.
    Not,
    /// No answer that says so.
    Unclear,
}

/// Where the server answers HTTP.
pub fn address(view: &View) -> Option<SocketAddr> {
    let endpoint = view.selected(Protocol::Http)?;
    (endpoint.health.state == State::Up).then_some(endpoint.address?)
}

/// The server at an address.
#[derive(Debug, Clone)]
pub struct Asking {
    client: Client,
    address: SocketAddr,
}

impl Asking {
    /// Asks there.
    pub fn new(client: Client, address: SocketAddr) -> Self {
        Asking { client, address }
    }

    /// The address of something below `/v2`; names may hold anything.
    pub fn url(&self, path: &[&str]) -> Option<Url> {
        let mut url = Url::parse(&format!("http://{}/v2", self.address)).ok()?;
        url.path_segments_mut().ok()?.extend(path);
        Some(url)
    }

    /// Whether the server has a model.
    pub async fn has(&self, model: &str) -> Has {
        let Some(url) = self.url(&["models", model, "ready"]) else {
            return Has::Unclear;
        };
        let answer = self.client.get(url).timeout(LIMIT).send().await;
        match answer.map(|a| a.status()) {
            Ok(StatusCode::OK) => Has::Ready,
            Ok(StatusCode::BAD_REQUEST) => Has::Loading,
            Ok(StatusCode::NOT_FOUND) => Has::Not,
            _ => Has::Unclear,
        }
    }

    /// Loads a model, however long it takes. The error is the server's own, or that of the
    /// connection.
    pub async fn load(&self, model: &str) -> Result<(), String> {
        self.change(model, "load").await
    }

    /// Unloads a model; one that is not loaded is no error.
    pub async fn unload(&self, model: &str) -> Result<(), String> {
        self.change(model, "unload").await
    }

    async fn change(&self, model: &str, what: &str) -> Result<(), String> {
        let url = self.url(&["repository", "models", model, what]);
        let url = url.ok_or("the model's name does not make an address")?;
        let answer = self.client.post(url).send().await;
        let answer = answer.map_err(|e| innermost(&e))?;
        let status = answer.status();
        match status {
            StatusCode::NOT_FOUND if what == "unload" => Ok(()),
            status if status.is_success() => Ok(()),
            status => Err(match reason(answer).await {
                Some(reason) => format!("{}: {reason}", status.as_u16()),
                None => format!("{}", status.as_u16()),
            }),
        }
    }
}

/// MLServer's own reason, shortened, on one line.
pub async fn reason(answer: Response) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Told {
        error: String,
    }
    let small = answer.content_length().is_some_and(|n| n <= 64 * 1024);
    let body = small.then(|| answer.bytes());
    let told: Told = serde_json::from_slice(&body?.await.ok()?).ok()?;
    let line = told.error.replace(|c: char| c.is_control(), " ");
    Some(line.chars().take(MAX_REASON).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_to_another_place() {
        let asking = Asking::new(crate::models::client().unwrap(), ([127, 0, 0, 1], 9).into());
        for (name, path) in [
            ("iris_1", "/v2/models/iris_1/ready"),
            ("a/b", "/v2/models/a%2Fb/ready"),
            ("a?b#c%", "/v2/models/a%3Fb%23c%25/ready"),
        ] {
            let url = asking.url(&["models", name, "ready"]).unwrap();
            assert_eq!(url.path(), path);
            assert_eq!((url.query(), url.fragment()), (None, None));
        }
    }
}
