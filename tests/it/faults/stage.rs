//! What a cell plays on: a server, a scheduler, an agent, and the shim between them or none.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::Manners;
use tokio_rustls::rustls::ServerConfig;

use super::ledger::Ledger;
use super::load::Targets;
use super::place::*;
use super::process::{self, Shim};
use super::scheduler::{GI, Scheduler};
use super::server::Server;
use crate::os::means::Cgroup;
use crate::support::http;

/// The model that every cell has loaded, and as the agent names it at the server.
pub const MODEL: &str = "iris";
pub const LOADED: &str = "iris_1";
/// The model that is loaded in [`Phase::Loading`](super::row::Phase::Loading), named likewise.
pub const SECOND: &str = "second_1";

/// What a row wants of its stage besides the usual.
#[derive(Debug, Clone, Default)]
pub struct Wants {
    /// Variables of the shim, on top of the usual ones.
    pub env: Vec<(&'static str, String)>,
    /// Words before the shim's program, such as `unshare`.
    pub before: Vec<String>,
    /// The scheduler speaks mTLS.
    pub tls: bool,
    /// The server's address, and the one by which everybody else reaches it.
    pub far: Option<(IpAddr, IpAddr)>,
    /// The shim's control group.
    pub group: Option<Arc<Cgroup>>,
}

/// The parts of a cell. Acts of a row get it and break or mend what they like.
pub struct Stage {
    pub place: Place,
    pub server: Server,
    pub scheduler: Scheduler,
    pub ledger: Arc<Ledger>,
    /// Whether the shim stands between; where not, callers and agent go straight.
    pub with_shim: bool,
    pub shim: tokio::sync::Mutex<Option<Shim>>,
    pub agent: Mutex<Option<FakeAgent>>,
    /// Tasks of a fault: they end with it.
    pub tasks: tokio::sync::Mutex<tokio::task::JoinSet<()>>,
    /// Whether the shim was told to end by the fault.
    pub terminated: AtomicBool,
    /// How often an agent in a loop has asked.
    pub turns: Arc<AtomicUsize>,
    /// What an act has to say about an invariant of its own.
    pub complaints: Mutex<Vec<String>>,
    pub wants: Wants,
    pub tls: Option<super::tls::Authority>,
}

impl Stage {
    /// Server and scheduler run; shim and agent do not yet.
    pub async fn new(with_shim: bool, wants: fn(&Place) -> Wants) -> Stage {
        let place = Place::new();
        let wants = wants(&place);
        let tls = wants
            .tls
            .then(|| super::tls::Authority::new(&place.folder, place.ip()));
        let server = Server::new(place.ip(), place.ports(), &place.folder);
        let ip = wants.far.map_or(place.ip(), |(ip, _)| ip);
        server.start(ip, &[]).await;
        let identity: Option<Arc<ServerConfig>> = match (&tls, with_shim) {
            (Some(authority), true) => Some(authority.identity()),
            // The stand-in of the agent speaks no TLS: without the shim nothing does.
            _ => None,
        };
        let (agent, status) = (place.at(SCHEDULER), place.at(STATUS));
        let scheduler = Scheduler::new(agent, status, identity);
        scheduler.start(Manners::default()).await;
        scheduler.want(MODEL);
        Stage {
            server,
            scheduler,
            ledger: Arc::default(),
            with_shim,
            shim: tokio::sync::Mutex::new(None),
            agent: Mutex::new(None),
            tasks: tokio::sync::Mutex::default(),
            terminated: AtomicBool::new(false),
            turns: Arc::default(),
            complaints: Mutex::default(),
            wants,
            tls,
            place,
        }
    }

    pub async fn start_shim(&self) {
        if !self.with_shim {
            return;
        }
        let mut env = self.wants.env.clone();
        if let Some(tls) = &self.tls {
            env.extend(tls.variables());
        }
        let env = process::variables(&self.place, &env);
        let shim = Shim::start(&self.wants.before, &env, &self.log());
        *self.shim.lock().await = Some(shim);
    }

    /// The agent, with the figures of a chart that says nothing of memory.
    pub fn start_agent(&self) {
        let (scheduler, inference) = match self.with_shim {
            true => (AGENT, self.place.at(RELAY_GRPC)),
            false => (SCHEDULER, self.reached(self.server.grpc())),
        };
        let mut config = AgentConfig::new(self.place.at(scheduler), self.requested());
        config.inference = Some(inference);
        *self.agent.lock().unwrap() = Some(FakeAgent::start(config));
    }

    /// Where its agent thinks the scheduler is.
    pub fn scheduler_of_agent(&self) -> SocketAddr {
        self.place
            .at(if self.with_shim { AGENT } else { SCHEDULER })
    }

    pub fn kill_agent(&self) {
        self.agent.lock().unwrap().take();
    }

    /// What the agent says of its memory.
    fn requested(&self) -> u64 {
        match self.with_shim {
            true => 1_000_000,
            // Without the shim nobody corrects it, and no model would fit.
            false => 8 * GI,
        }
    }

    /// What the scheduler is to believe.
    pub fn total(&self) -> u64 {
        8 * GI
    }

    pub fn log(&self) -> std::path::PathBuf {
        self.place.folder.join("log")
    }

    pub fn targets(&self) -> Targets {
        match self.with_shim {
            true => Targets {
                http: self.place.at(RELAY_HTTP),
                grpc: self.place.at(RELAY_GRPC),
            },
            false => Targets {
                http: self.reached(self.server.http()),
                grpc: self.reached(self.server.grpc()),
            },
        }
    }

    /// Where an address of the server is for everybody else.
    fn reached(&self, at: SocketAddr) -> SocketAddr {
        let far = self.wants.far.map(|(_, far)| far);
        SocketAddr::new(far.unwrap_or(at.ip()), at.port())
    }

    pub fn admin(&self) -> SocketAddr {
        self.place.at(ADMIN)
    }

    pub fn complain(&self, text: String) {
        self.complaints.lock().unwrap().push(text);
    }

    /// GET on the admin port, without patience; `None` where nobody answers in time.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        ask(self.admin(), "GET", path, "").await
    }

    /// Whether there is a shim that can be asked.
    pub async fn shim_runs(&self) -> bool {
        let mut shim = self.shim.lock().await;
        shim.as_mut().is_some_and(|shim| shim.ended().is_none())
    }

    /// The ids of the findings now; `None` where nobody says them in time.
    pub async fn findings(&self) -> Option<Vec<String>> {
        let (200, body) = self.get("/status").await? else {
            return None;
        };
        Some(ids(&body))
    }

    /// Whether the last probe of a candidate of either protocol was answered.
    pub async fn answers(&self) -> bool {
        let Some((200, body)) = self.get("/status").await else {
            return false;
        };
        let status: serde_json::Value = serde_json::from_str(&body).unwrap();
        let endpoints = status["endpoints"].as_array().cloned().unwrap_or_default();
        ["http", "grpc"].iter().all(|protocol| {
            let of = |e: &&serde_json::Value| e["protocol"] == *protocol;
            let mut of = endpoints.iter().filter(of);
            of.any(|e| e["state"] == "up" && e["reason"].is_null())
        })
    }

    /// The models that the server has not in memory and should have: the usual one, and what the
    /// scheduler has callers sent here for.
    pub async fn lost_models(&self) -> Vec<String> {
        let mut wanted = self.scheduler.available();
        if !wanted.iter().any(|name| name == MODEL) {
            wanted.push(MODEL.into());
        }
        let index = ask(self.server.http(), "POST", "/v2/repository/index", "{}").await;
        let Some((200, body)) = index else {
            return wanted;
        };
        let index: serde_json::Value = serde_json::from_str(&body).unwrap();
        let all = index.as_array().cloned().unwrap_or_default();
        let ready = |name: &String| {
            // The version does not matter: a scheduler that was restarted counts anew.
            let begins = format!("{name}_");
            all.iter().any(|m| {
                m["state"] == "READY" && m["name"].as_str().unwrap_or("").starts_with(&begins)
            })
        };
        wanted.into_iter().filter(|name| !ready(name)).collect()
    }
}

/// The ids of the findings in a body of /status.
pub fn ids(body: &str) -> Vec<String> {
    let status: serde_json::Value = serde_json::from_str(body).unwrap();
    let findings = status["findings"].as_array().cloned().unwrap_or_default();
    let ids = findings.iter().filter_map(|f| f["rule"].as_str());
    ids.map(ToString::to_string).collect()
}

/// One call on a connection of its own, within 2 s.
pub async fn ask(to: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    ask_within(Duration::from_secs(2), to, method, path, body).await
}

/// The same within a limit.
pub async fn ask_within(
    limit: Duration,
    to: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Option<(u16, String)> {
    use http_body_util::BodyExt;
    let call = async {
        let stream = tokio::net::TcpStream::connect(to).await.ok()?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            let _ = connection.await;
        });
        let mut request = http::request(method, path, body.to_string());
        let json = ::http::HeaderValue::from_static("application/json");
        request.headers_mut().insert("content-type", json);
        let response = sender.send_request(request).await.ok()?;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((code, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(limit, call).await.ok()?
}

/// Asks until something is so, and says how long it took; `None` where it was not within the limit.
pub async fn until(limit: Duration, mut holds: impl AsyncFnMut() -> bool) -> Option<Duration> {
    let since = Instant::now();
    loop {
        if holds().await {
            return Some(since.elapsed());
        }
        if since.elapsed() > limit {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
