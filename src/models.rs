//! What the inference server says of itself and of its models.
//!
//! Asked rarely: a look at the repository index freezes the real server for about 2 ms a model.
//! So: once when the server comes up, shortly after a call that loads or unloads, and every few
//! minutes. A server that is stalled or down is not asked.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::endpoint::Protocol;
use crate::health::State;
use crate::metrics::Metrics;
use crate::prober::Watching;
use crate::proto::grpc_inference_service_client::GrpcInferenceServiceClient;
use crate::proto::{RepositoryIndexRequest, ServerMetadataRequest};
use crate::view::View;

/// Limit for one question; the server freezes for seconds in normal work.
const LIMIT: Duration = Duration::from_secs(15);
/// Pause after a hint or a failure, so that a burst of loads costs one look.
const PAUSE: Duration = Duration::from_millis(250);
const RETRY: Duration = Duration::from_secs(5);
/// Largest answer that is read: 100,000 models are far below it.
const MAX_ANSWER: usize = 32 * 1024 * 1024;

/// The server's metadata, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetadata {
    /// `mlserver`, or as configured there.
    pub name: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Its extensions, which an operator may set to anything.
    #[serde(default)]
    pub extensions: Vec<String>,
}

/// One entry of the repository index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The model's name.
    pub name: String,
    /// Its version; empty where it has none.
    #[serde(default)]
    pub version: String,
    /// `READY`, `UNAVAILABLE` (on disk and not loaded), `UNKNOWN` (MLServer's word for loading).
    pub state: String,
    /// The server's reason; MLServer always leaves it empty.
    #[serde(default)]
    pub reason: String,
}

/// What was learnt, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The server's metadata, once it has answered.
    pub server: Option<ServerMetadata>,
    /// The repository index.
    pub models: Vec<Model>,
    /// When the index was read last.
    pub read_at: Option<Duration>,
    /// When it was asked for.
    pub asked_at: Option<Duration>,
    /// Why the last look failed, if it did.
    pub error: Option<String>,
}

/// The client that asks: no proxy from the environment, no redirects, no connection kept for
/// longer than the server keeps it.
pub fn client() -> reqwest::Result<Client> {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_idle_timeout(Duration::from_secs(1))
        .user_agent(crate::prober::http::AGENT)
        .build()
}

/// A hint that the index has changed.
#[derive(Debug, Clone, Default)]
pub struct Poke(Arc<Notify>);

impl Poke {
    /// Asks for a look soon.
    pub fn now(&self) {
        self.0.notify_one();
    }
}

/// Keeps the inventory up to date.
#[derive(Debug)]
pub struct Inspector {
    watching: Watching,
    clock: Clock,
    interval: Duration,
    client: Client,
    connect_timeout: Duration,
    poke: Poke,
    out: watch::Sender<Arc<Inventory>>,
    known: prometheus::IntGaugeVec,
    looks: prometheus::IntCounterVec,
}

/// The states that are exported; everything else counts as `other`.
const STATES: [&str; 5] = ["READY", "UNAVAILABLE", "UNKNOWN", "LOADING", "other"];

impl Inspector {
    /// An inspector that looks every `interval` and whenever it is poked.
    pub fn new(
        watching: Watching,
        clock: Clock,
        interval: Duration,
        client: Client,
        connect_timeout: Duration,
        metrics: &Metrics,
    ) -> (Self, Poke, watch::Receiver<Arc<Inventory>>) {
        let known = metrics.int_gauge_vec(
            "agent_shim_server_models",
            "Models in the server's repository index, by state as last read.",
            &["state"],
        );
        let looks = metrics.counter_vec(
            "agent_shim_index_reads_total",
            "Looks at the server's repository index, by outcome.",
            &["outcome"],
        );
        for state in STATES {
            known.with_label_values(&[state]);
        }
        for outcome in ["ok", "failed"] {
            looks.with_label_values(&[outcome]);
        }
        let (out, inventory) = watch::channel(Arc::default());
        let poke = Poke::default();
        let inspector = Inspector {
            watching,
            clock,
            interval,
            client,
            connect_timeout,
            poke: poke.clone(),
            out,
            known,
            looks,
        };
        (inspector, poke, inventory)
    }

    /// Looks for ever.
    pub async fn run(self) {
        let mut changes = self.watching.changes.clone();
        let mut was_up = false;
        let mut failed = false;
        loop {
            changes.mark_unchanged();
            let up = source(&self.watching.view.borrow()).is_some();
            let fresh = up && !was_up;
            was_up = up;
            if !fresh {
                let wait = match (up, failed) {
                    (true, true) => RETRY,
                    _ => self.interval,
                };
                tokio::select! {
                    () = self.poke.0.notified() => sleep(PAUSE).await,
                    () = sleep(wait) => {}
                    changed = changes.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        continue;
                    }
                }
            }
            failed = !self.look().await;
        }
    }

    async fn look(&self) -> bool {
        let Some((protocol, address)) = source(&self.watching.view.borrow()) else {
            return true;
        };
        let asked_at = self.clock.now();
        let asked = async {
            match protocol {
                Protocol::Http => self.ask_http(address).await,
                Protocol::Grpc => self.ask_grpc(address).await,
            }
        };
        let answer = timeout(LIMIT, asked)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
        let mut inventory = Inventory::clone(&self.out.borrow());
        let ok = answer.is_ok();
        match answer {
            Ok((server, models)) => {
                inventory = Inventory {
                    server: Some(server),
                    models,
                    read_at: Some(self.clock.now()),
                    asked_at: Some(asked_at),
                    error: None,
                };
            }
            Err(error) => {
                tracing::debug!(error, "cannot read the repository index");
                inventory.error = Some(error);
            }
        }
        self.looks
            .with_label_values(&[if ok { "ok" } else { "failed" }])
            .inc();
        for state in STATES {
            let n = inventory
                .models
                .iter()
                .filter(|m| {
                    m.state == state || (state == "other" && !STATES.contains(&m.state.as_str()))
                })
                .count();
            self.known.with_label_values(&[state]).set(n as i64);
        }
        self.out.send_replace(Arc::new(inventory));
        ok
    }

    async fn ask_http(
        &self,
        address: std::net::SocketAddr,
    ) -> Result<(ServerMetadata, Vec<Model>), String> {
        let server = self
            .read_json(self.client.get(format!("http://{address}/v2")))
            .await?;
        let index = self
            .client
            .post(format!("http://{address}/v2/repository/index"))
            .json(&serde_json::json!({}));
        let models: Vec<Model> = self.read_json(index).await?;
        Ok((server, models.into_iter().map(normalised).collect()))
    }

    async fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, String> {
        let says = |error: reqwest::Error| crate::prober::connect::innermost(&error);
        let mut answer = request.send().await.map_err(says)?;
        if !answer.status().is_success() {
            return Err(format!(
                "{} answered {}",
                answer.url().path(),
                answer.status()
            ));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(says)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(format!("the answer is larger than {MAX_ANSWER} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|error| format!("{}: {error}", answer.url().path()))
    }

    async fn ask_grpc(
        &self,
        address: std::net::SocketAddr,
    ) -> Result<(ServerMetadata, Vec<Model>), String> {
        let stream = timeout(
            self.connect_timeout,
            tokio::net::TcpStream::connect(address),
        )
        .await
        .map_err(|_| "no connection in time".to_string())?
        .map_err(|error| error.to_string())?;
        let channel = crate::prober::grpc::channel(stream)
            .await
            .map_err(|error| error.to_string())?;
        let mut client =
            GrpcInferenceServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let says = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
        let server = client
            .server_metadata(ServerMetadataRequest {})
            .await
            .map_err(says)?
            .into_inner();
        let index = client
            .repository_index(RepositoryIndexRequest::default())
            .await
            .map_err(says)?
            .into_inner();
        let server = ServerMetadata {
            name: server.name,
            version: server.version,
            extensions: server.extensions,
        };
        let models = index.models.into_iter().map(|m| {
            normalised(Model {
                name: m.name,
                version: m.version,
                state: m.state,
                reason: m.reason,
            })
        });
        Ok((server, models.collect()))
    }
}

/// Where to ask: a candidate that answers, HTTP first because it is the cheaper one.
fn source(view: &View) -> Option<(Protocol, std::net::SocketAddr)> {
    Protocol::ALL.into_iter().find_map(|protocol| {
        let endpoint = view.selected(protocol)?;
        (endpoint.health.state == State::Up).then_some((protocol, endpoint.address?))
    })
}

/// MLServer's gRPC index prints its enumeration's own form, such as `State.READY`.
fn normalised(mut model: Model) -> Model {
    if let Some(bare) = model.state.strip_prefix("State.") {
        model.state = bare.to_string();
    }
    model
}
