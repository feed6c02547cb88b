//! One scrape for the pod: `/metrics?merge` adds the agent's and the server's own metrics.
//!
//! Owns the fetching; what becomes of the documents is in [`exposition`]. Both sources are asked at
//! once, each within a limit below the usual time-out of a scrape, and neither is trusted: a
//! source that is silent, huge, garbled, or a shim again costs only itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE};
use prometheus::{GaugeVec, IntCounterVec};
use reqwest::Client;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::config::agent::MergeConfig;
use crate::endpoint::Protocol;
use crate::metrics::Metrics;
use crate::prober::Watching;
use crate::prober::connect::innermost;

pub mod exposition;

use exposition::{Document, merge};

/// Says that the caller is a merging shim, which gets only the shim's own.
pub const GUARD: &str = "x-agent-shim-merge";
/// Limit for one source; Prometheus gives up after 10 s by default.
const LIMIT: Duration = Duration::from_secs(2);
/// Largest answer of a source that is taken.
pub const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// Merges at a time: each may hold two answers in memory.
const MAX_AT_ONCE: usize = 2;
/// How long a scrape waits for its turn; with [`LIMIT`] it stays below the usual time-out.
const WAIT: Duration = Duration::from_secs(3);
const ACCEPTED: &str = "text/plain;version=0.0.4;q=1,text/plain;q=0.5";
const OPENMETRICS: &str = "application/openmetrics-text";

/// Asks, merges and remembers what failed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Scrape {
    config: MergeConfig,
    watching: Watching,
    client: Client,
    turns: Arc<Semaphore>,
    metrics: Metrics,
    up: GaugeVec,
    failures: IntCounterVec,
    /// The last reason of each source, so that each is logged once.
    known: Arc<Mutex<[Option<Failure>; 2]>>,
}

/// Why a source could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Unreachable,
    Timeout,
    Status,
    TooLarge,
    Malformed,
    Loop,
}

impl Failure {
    const ALL: [Failure; 6] = [
        Failure::Unreachable,
        Failure::Timeout,
        Failure::Status,
        Failure::TooLarge,
        Failure::Malformed,
        Failure::Loop,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Failure::Unreachable => "unreachable",
            Failure::Timeout => "timeout",
            Failure::Status => "status",
            Failure::TooLarge => "too-large",
            Failure::Malformed => "malformed",
            Failure::Loop => "loop",
        }
    }
}

/// The two other sources, by the name in labels.
const SOURCES: [&str; 2] = ["agent", "mlserver"];

impl Scrape {
    /// Asks with `client`, which must follow no redirects and use no proxy.
    pub fn new(config: MergeConfig, watching: Watching, client: Client, metrics: &Metrics) -> Self {
        let up = metrics.gauge_vec(
            "agent_shim_merge_up",
            "1 where the last merged scrape has the source's metrics, 0 where it has not; NaN before the first.",
            &["source"],
        );
        let failures = metrics.counter_vec(
            "agent_shim_merge_failures_total",
            "Merged scrapes that went without a source, by reason.",
            &["source", "reason"],
        );
        for source in SOURCES {
            up.with_label_values(&[source]).set(f64::NAN);
            for failure in Failure::ALL {
                failures.with_label_values(&[source, failure.as_str()]);
            }
        }
        Scrape {
            config,
            watching,
            client,
            turns: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            metrics: metrics.clone(),
            up,
            failures,
            known: Arc::default(),
        }
    }

    /// The merged document, or the shim's own where it is not switched on. `guarded` where a
    /// merging shim asks. The turn is held until the document has been sent: each may be large.
    pub async fn document(&self, guarded: bool) -> (Vec<u8>, Option<OwnedSemaphorePermit>) {
        let only = |why: &str| {
            let mut text = format!("# {why}\n").into_bytes();
            text.extend(self.metrics.render());
            (text, None)
        };
        if !self.config.on {
            return only("not merged: SHIM_MERGE_METRICS is false");
        }
        if guarded {
            return only("not merged: the caller is a merging agent-shim");
        }
        // Whoever waits holds a connection of the admin port, which kubelet's probes need too.
        let turn = timeout(WAIT, self.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return only("not merged: other merged scrapes are under way");
        };
        let server = self
            .watching
            .view
            .borrow()
            .selected(Protocol::Http)
            .and_then(|e| e.address);
        let server = server.map(|mut address| {
            address.set_port(self.config.server_port);
            address
        });
        let agent = Some(crate::agent::ask::at(self.config.agent_port));
        let (agent, server) = tokio::join!(
            self.source(0, self.config.agent_port, agent),
            self.source(1, self.config.server_port, server),
        );
        let others: Vec<_> = SOURCES
            .into_iter()
            .zip([agent, server])
            .filter_map(|(name, document)| Some((name, document?)))
            .collect();
        let own = self.metrics.render();
        match Document::read(&String::from_utf8_lossy(&own), false) {
            Ok(own) => (merge(own, others).into_bytes(), Some(turn)),
            // Cannot be, and must not cost the scrape if it is.
            Err(error) => {
                tracing::error!(%error, "the shim's own metrics cannot be merged");
                (own, None)
            }
        }
    }

    async fn source(
        &self,
        index: usize,
        port: u16,
        at: Option<std::net::SocketAddr>,
    ) -> Option<Document> {
        if port == 0 {
            return None;
        }
        let name = SOURCES[index];
        let fetched = match at {
            None => Err((
                Failure::Unreachable,
                "no address of the server answers".to_string(),
            )),
            Some(at) => timeout(LIMIT, self.fetch(&format!("http://{at}/metrics")))
                .await
                .unwrap_or_else(|_| Err((Failure::Timeout, format!("no answer within {LIMIT:?}")))),
        };
        let failure = fetched.as_ref().err().map(|(failure, _)| *failure);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut known[index], failure);
        drop(known);
        self.up
            .with_label_values(&[name])
            .set(f64::from(u8::from(failure.is_none())));
        match fetched {
            Ok(document) => {
                if before.is_some() {
                    tracing::info!(source = name, "merged scrapes have this source again");
                }
                Some(document)
            }
            Err((failure, why)) => {
                self.failures
                    .with_label_values(&[name, failure.as_str()])
                    .inc();
                if before != Some(failure) {
                    let reason = failure.as_str();
                    tracing::warn!(
                        source = name,
                        reason,
                        why,
                        "merged scrapes go without this source"
                    );
                }
                None
            }
        }
    }

    async fn fetch(&self, url: &str) -> Result<Document, (Failure, String)> {
        let says = |error: reqwest::Error| (Failure::Unreachable, innermost(&error));
        let request = self.client.get(url).header(ACCEPT, ACCEPTED);
        let mut answer = request.header(GUARD, "1").send().await.map_err(says)?;
        if answer.status() != http::StatusCode::OK {
            return Err((
                Failure::Status,
                format!("{url} answered {}", answer.status()),
            ));
        }
        let kind = answer.headers().get(CONTENT_TYPE);
        let openmetrics = kind
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.starts_with(OPENMETRICS));
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(says)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err((
                    Failure::TooLarge,
                    format!("{url} answers more than {MAX_ANSWER} bytes"),
                ));
            }
            body.extend_from_slice(&chunk);
        }
        let text = String::from_utf8(body)
            .map_err(|_| (Failure::Malformed, format!("{url} is not UTF-8 text")))?;
        let document = Document::read(&text, openmetrics)
            .map_err(|error| (Failure::Malformed, format!("{url}: {error}")))?;
        if document.has("agent_shim_build_info") {
            return Err((Failure::Loop, format!("{url} is an agent-shim's")));
        }
        Ok(document)
    }
}
