//! What the shim stands between: the stand-ins for server, scheduler and agent, and the shim itself
//! as a process of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::{FakeScheduler, Manners};
use agent_shim::demo::standin::StandIn;
use agent_shim::proto::scheduler::{MetaData, Model, ModelSpec};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::callers::{Ports, ask};
use crate::ledger::Ledger;

/// What the replica has, in bytes, by the shim's word.
const MEMORY: u64 = 4 << 30;
/// How long the shim may take to see that the server is up once a fault is over, on a machine that is
/// busy with both of them.
const UP_WITHIN: Duration = Duration::from_secs(10);
/// How long the scheduler's belief may be wrong.
const BELIEF_WITHIN: Duration = Duration::from_secs(30);

pub struct Stage {
    pub ports: Ports,
    pub server: StandIn,
    pub scheduler: Mutex<Option<FakeScheduler>>,
    pub scheduler_ports: [SocketAddr; 2],
    pub agent: Mutex<Option<FakeAgent>>,
    agent_port: SocketAddr,
    pub pid: u32,
    pub child: Mutex<Child>,
    /// False while nobody reads the log.
    pub reading: watch::Sender<bool>,
    /// The limit on descriptors at the start.
    pub descriptors: u64,
    pub ledger: Ledger,
}

/// A port below those that the system gives out.
fn free() -> SocketAddr {
    loop {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(10_240..32_768)));
        if TcpListener::bind(at).is_ok() {
            return at;
        }
    }
}

impl Stage {
    pub async fn set(
        shim: &Path,
        ledger: Ledger,
        tasks: &mut JoinSet<()>,
    ) -> std::io::Result<Stage> {
        let server = StandIn::start(Ipv4Addr::LOCALHOST.into()).await?;
        let scheduler = FakeScheduler::start_at(free(), free(), Manners::default()).await?;
        let scheduler_ports = [scheduler.agent, scheduler.status];
        let [http, grpc, admin, agent_port] = [(); 4].map(|()| free());
        let port = |at: SocketAddr| at.port().to_string();
        let mut child = Command::new(shim)
            .env_clear()
            .envs([
                ("SHIM_INFERENCE_HOSTS", "127.0.0.1"),
                ("SHIM_ADMIN_LISTEN", "127.0.0.1"),
                // Probes and their limits are as by default.
                ("SHIM_OUTAGE_GRACE", "10s"),
                ("SHIM_AGENT_READY_PORT", "0"),
                ("SHIM_AGENT_DRAIN_PORT", "0"),
                ("SHIM_RESUBSCRIBE_MIN_INTERVAL", "10s"),
                ("SHIM_MEMORY_LIMIT", "4294967296"),
                ("SHIM_CAPABILITIES_LIST", "mlserver,sklearn,xgboost"),
                ("SHIM_DRAIN_TIME", "10s"),
                ("SHIM_LOG", "info,agent_shim=debug"),
            ])
            .env("SHIM_INFERENCE_HTTP_PORT", port(server.http()))
            .env("SHIM_INFERENCE_GRPC_PORT", port(server.grpc()))
            .env("SHIM_RELAY_HTTP_PORT", port(http))
            .env("SHIM_RELAY_GRPC_PORT", port(grpc))
            .env("SHIM_ADMIN_PORT", port(admin))
            .env("SHIM_AGENT_PORT", port(agent_port))
            .env("SHIM_SCHEDULER", scheduler.agent.to_string())
            .env("SHIM_SCHEDULER_STATUS", scheduler.status.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let reading = watch::Sender::new(true);
        if let Some(log) = child.stderr.take() {
            tasks.spawn(read(log, reading.subscribe(), ledger.clone()));
        }
        let pid = child.id().unwrap_or_default();
        // The shim raises its soft limit to this one.
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        let hard = limits.lines().find(|l| l.starts_with("Max open files"));
        let hard = hard.and_then(|l| l.split_whitespace().nth(4)?.parse().ok());
        let stage = Stage {
            ports: Ports { http, grpc, admin },
            server,
            scheduler: Mutex::new(Some(scheduler)),
            scheduler_ports,
            agent: Mutex::new(None),
            agent_port,
            pid,
            child: Mutex::new(child),
            reading,
            descriptors: hard.unwrap_or(1 << 20),
            ledger,
        };
        stage.start_agent().await;
        Ok(stage)
    }

    pub async fn start_agent(&self) {
        let mut config = AgentConfig::new(self.agent_port, 1_000_000);
        config.inference = Some(self.ports.grpc);
        *self.agent.lock().await = Some(FakeAgent::start(config));
    }

    pub async fn start_scheduler(&self) {
        let [agent, status] = self.scheduler_ports;
        let mut scheduler = self.scheduler.lock().await;
        while scheduler.is_none() {
            match FakeScheduler::start_at(agent, status, Manners::default()).await {
                Ok(started) => *scheduler = Some(started),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Waits until the shim has seen that all is well; what takes too long is against the rules.
    pub async fn recovered(&self, after: &str) {
        // Ready may be said of a server that is only stalled: it has to answer.
        let up = async || match ask(self.ports.admin, "/status").await {
            Some((200, body)) => {
                let status: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                let all = status["endpoints"].as_array().cloned().unwrap_or_default();
                !all.is_empty() && all.iter().all(|e| e["state"] == "up")
            }
            _ => false,
        };
        self.in_time(&format!("the server to be up after {after}"), UP_WITHIN, up)
            .await;
        let believed = async || {
            let scheduler = self.scheduler.lock().await;
            scheduler
                .as_ref()
                .is_some_and(|s| s.read(|s| s.replicas.values().any(|r| r.total == MEMORY)))
        };
        self.in_time(
            &format!("the scheduler's belief to be right after {after}"),
            BELIEF_WITHIN,
            believed,
        )
        .await;
        // Probes of the other protocol, and callers' waits for a free port.
        sleep(Duration::from_secs(2)).await;
    }

    async fn in_time(&self, what: &str, limit: Duration, holds: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        let mut told = false;
        while !holds().await {
            if begun.elapsed() > limit && !told {
                told = true;
                self.ledger
                    .violation(format!("not within {limit:?}: {what}"));
            }
            if begun.elapsed() > 4 * limit {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Models come and go through scheduler, agent and shim, for ever.
    pub async fn models(&self) {
        for n in 0_u64.. {
            sleep(Duration::from_secs(2)).await;
            self.tidy().await;
            let scheduler = self.scheduler.lock().await;
            let Some(scheduler) = scheduler.as_ref() else {
                continue;
            };
            scheduler.load(model(&format!("model{}", n % 12)));
            if n > 6 {
                scheduler.unload(&format!("model{}", (n - 6) % 12));
            }
        }
    }

    /// The files of models that the agent does not have are gone, as its own clean-up leaves them: or
    /// the server's list would grow, and all who keep it.
    async fn tidy(&self) {
        let agent = self.agent.lock().await;
        let Some(agent) = agent.as_ref().filter(|_| self.ledger.is_calm()) else {
            return;
        };
        let kept: Vec<String> = agent.read(|seen| {
            let all = seen.loaded.keys();
            all.map(|(name, version)| format!("{name}_{version}"))
                .collect()
        });
        let mut models = self.server.models();
        models.retain(|m| m.name == "iris" || kept.contains(&m.name));
        let models = models.into_iter().map(|m| (m.name, m.version, m.state));
        self.server.set_models(models);
    }

    /// Whether every call has arrived at most once, for ever.
    pub async fn account(&self) {
        let mut next = 0;
        loop {
            let (calls, after) = self.server.calls_from(next);
            next = after;
            for call in calls {
                if let Some(number) = call.header("x-soak-id").and_then(|id| id.parse().ok()) {
                    self.ledger.arrived(number);
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

fn model(name: &str) -> Model {
    Model {
        meta: Some(MetaData { name: name.into() }),
        model_spec: Some(ModelSpec {
            uri: "gs://models/iris".into(),
            memory_bytes: Some(1000),
            ..ModelSpec::default()
        }),
        ..Model::default()
    }
}

/// Reads the log while it may, and looks for panics.
async fn read(
    log: tokio::process::ChildStderr,
    mut reading: watch::Receiver<bool>,
    ledger: Ledger,
) {
    let mut lines = BufReader::new(log).lines();
    loop {
        if reading.wait_for(|r| *r).await.is_err() {
            return;
        }
        tokio::select! {
            biased;
            _ = reading.changed() => {}
            line = lines.next_line() => match line {
                Ok(Some(line)) if line.contains("panicked") => ledger.violation(format!("a panic: {line}")),
                Ok(Some(_)) => {}
                _ => return,
            },
        }
    }
}
