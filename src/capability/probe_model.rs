//! The server itself, asked: a tiny model is put into the models folder, loaded, asked once for
//! what its interpreter can see, unloaded and removed. For pods that do not share their process
//! namespace, and only where the operator has allowed it.
//!
//! The order protects the server. A model whose files are gone while it is loaded breaks every
//! model at the next death of a worker, so the files go last, and stay where the unload failed;
//! a caller that never comes back (a crash) leaves files and model to the next [`clean_up`],
//! which [`probe`] begins with.
//!
//! For whoever calls: once, when the server is up and idle, before the agent subscribes or long
//! after; never while the agent starts or loads. The server is not ready while any model loads
//! (some 50 ms here, seconds right after its start), and the index is read for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::capability::table::normalise;
use crate::capability::{Distribution, Observation, Source};
use crate::capacity::cgroup::{Cgroup, Version, parse_limit};
use crate::prober::connect::innermost;

mod files;

/// The model's name, and its folder's. Reserved: an answer to the agent's look at the index must
/// not hold it (the index shows it as `UNAVAILABLE` while the folder is there).
pub const NAME: &str = "agent-shim-probe";

/// What the server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The distributions that the worker can import, sorted by name.
    pub distributions: Vec<Distribution>,
    /// The memory cgroup as the worker sees it.
    pub cgroup: Option<Cgroup>,
    /// Why the model or its files are still there, if they are.
    pub left_behind: Option<String>,
}

impl Answer {
    /// The capabilities in it.
    pub fn observation(&self, at: Duration) -> Observation {
        Observation {
            source: Source::ProbeModel,
            distributions: self.distributions.clone(),
            at,
            ..Observation::default()
        }
    }
}

/// Why there is no answer. Nothing is left behind unless it says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The server is not ready: it may be loading.
    #[error("the server is not ready: it is loading, or not up")]
    Busy,
    /// The models folder cannot be written.
    #[error("the probe model cannot be placed in {0}")]
    Place(String),
    /// A model of that name is there, and it is not the shim's.
    #[error("{} holds files that are not the shim's", .0.display())]
    Foreign(PathBuf),
    /// The server did not load it.
    #[error("the server did not load the probe model: {0}")]
    Load(String),
    /// It was loaded and did not answer.
    #[error("the probe model did not answer: {0}")]
    Ask(String),
    /// What is there could not be removed; [`clean_up`] may later.
    #[error("the probe model is still there: {0}")]
    LeftBehind(String),
}

/// Tries to unload: a busy worker answers late.
const UNLOADS: u32 = 3;
const UNLOAD_PAUSE: Duration = Duration::from_secs(1);
/// Five thousand packages are a tenth of it.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
const MAX_DETAIL: usize = 300;

/// Asks the server at `base` (`http://127.0.0.1:9000`) through a model in `models_dir`. Each call
/// has `limit`; with all failures together it takes at most about seven times that. It must run
/// to its end: dropping it half way leaves the model for the next [`clean_up`].
pub async fn probe(
    client: &Client,
    base: &str,
    models_dir: &Path,
    limit: Duration,
) -> Result<Answer, Failed> {
    let server = Server {
        client,
        base: base.trim_end_matches('/'),
        limit,
    };
    clean_up(client, base, models_dir, limit).await?;
    if server.get("/v2/health/ready").await != Ok(StatusCode::OK) {
        return Err(Failed::Busy);
    }
    files::place(models_dir).await?;
    let asked = match server.post(&repository("load"), None).await {
        Ok(_) => server.ask().await,
        Err(why) => Err(Failed::Load(why)),
    };
    // A load that was given up may still end well, so it is unloaded in every case.
    let removed = server.remove(models_dir).await;
    match (asked, removed) {
        (Ok(mut answer), removed) => {
            answer.left_behind = removed.err().map(|why| why.to_string());
            Ok(answer)
        }
        (Err(_), Err(left)) => Err(left),
        (Err(why), Ok(())) => Err(why),
    }
}

/// Unloads and removes what an earlier run has left. Costs nothing where nothing is there.
pub async fn clean_up(
    client: &Client,
    base: &str,
    models_dir: &Path,
    limit: Duration,
) -> Result<(), Failed> {
    if !files::left(models_dir).await? {
        return Ok(());
    }
    tracing::info!(folder = %models_dir.join(NAME).display(), "removing what an earlier probe has left");
    let server = Server {
        client,
        base: base.trim_end_matches('/'),
        limit,
    };
    server.remove(models_dir).await
}

struct Server<'a> {
    client: &'a Client,
    base: &'a str,
    limit: Duration,
}

fn repository(action: &str) -> String {
    format!("/v2/repository/models/{NAME}/{action}")
}

impl Server<'_> {
    async fn remove(&self, models_dir: &Path) -> Result<(), Failed> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.post(&repository("unload"), None).await {
                Ok(_) => break,
                Err(why) if tries >= UNLOADS => return Err(Failed::LeftBehind(why)),
                Err(_) => sleep(UNLOAD_PAUSE).await,
            }
        }
        files::remove(models_dir).await
    }

    async fn ask(&self) -> Result<Answer, Failed> {
        let question = serde_json::json!({
            "inputs": [{"name": "probe", "shape": [1], "datatype": "BYTES", "data": ["?"]}]
        });
        let path = format!("/v2/models/{NAME}/infer");
        let text = self
            .post(&path, Some(&question))
            .await
            .map_err(Failed::Ask)?;
        parse(&text).ok_or_else(|| Failed::Ask(format!("it is no answer: {}", short(&text))))
    }

    async fn get(&self, path: &str) -> Result<StatusCode, String> {
        let request = self.client.get(format!("{}{path}", self.base));
        self.send(request).await.map(|(status, _)| status)
    }

    /// The body of a good answer. What is not there was unloaded before.
    async fn post(&self, path: &str, body: Option<&serde_json::Value>) -> Result<String, String> {
        let mut request = self.client.post(format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(body);
        }
        let (status, text) = self.send(request).await?;
        let gone = path.ends_with("/unload") && status == StatusCode::NOT_FOUND;
        if status.is_success() || gone {
            return Ok(text);
        }
        Err(format!("{status}: {}", short(&text)))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<(StatusCode, String), String> {
        let exchange = async {
            let mut answer = request.send().await.map_err(|e| innermost(&e))?;
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(|e| innermost(&e))? {
                if body.len() + chunk.len() > MAX_ANSWER {
                    return Err("the answer is too long".to_string());
                }
                body.extend_from_slice(&chunk);
            }
            Ok((answer.status(), String::from_utf8_lossy(&body).into_owned()))
        };
        timeout(self.limit, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {:?}", self.limit)))
    }
}

fn short(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MAX_DETAIL).collect()
}

/// What the model says inside the answer of an inference.
#[derive(Deserialize)]
struct Said {
    distributions: Vec<(String, String)>,
    /// Texts of the files of the memory cgroup.
    cgroup: Files,
}

#[derive(Deserialize)]
struct Files {
    version: u8,
    limit: String,
    current: String,
    peak: String,
}

pub(crate) fn parse(text: &str) -> Option<Answer> {
    let answer: serde_json::Value = serde_json::from_str(text).ok()?;
    let said = answer.pointer("/outputs/0/data/0")?.as_str()?;
    let said: Said = serde_json::from_str(said).ok()?;
    let version = match said.cgroup.version {
        2 => Some(Version::V2),
        1 => Some(Version::V1),
        _ => None,
    };
    let number = |text: &str| text.trim().parse().ok();
    let cgroup = version.and_then(|version| {
        Some(Cgroup {
            version,
            limit: parse_limit(version, &said.cgroup.limit)?,
            current: number(&said.cgroup.current),
            peak: number(&said.cgroup.peak),
        })
    });
    let named = said
        .distributions
        .into_iter()
        .filter(|(name, _)| !name.is_empty());
    let mut distributions: Vec<Distribution> = named
        .map(|(name, version)| Distribution {
            name: normalise(&name),
            version,
        })
        .collect();
    // The first on the interpreter's path is the one that is imported.
    distributions.sort_by(|a, b| a.name.cmp(&b.name));
    distributions.dedup_by(|later, first| later.name == first.name);
    Some(Answer {
        distributions,
        cgroup,
        left_behind: None,
    })
}

#[cfg(test)]
mod tests;
