//! The real binary in a process of its own, on ports that are chosen before, since its log may be
//! what nobody reads.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Stdio;

use agent_shim::demo::standin::StandIn;
use tokio::process::{Child, Command};

use crate::support::{eventually, http};

/// A sidecar that runs. Dropped, it is killed.
pub struct Process {
    pub child: Child,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
}

/// How to start one.
pub struct Start {
    /// The program and arguments that come before the binary's path, as `prlimit`; may be empty.
    pub before: Vec<String>,
    /// Its environment, beyond ports and quick settings.
    pub environment: Vec<(String, String)>,
    /// Its standard error.
    pub log: Stdio,
}

impl Start {
    /// In front of this server.
    pub fn before(server: &StandIn) -> Start {
        let mut start = Start {
            before: Vec::new(),
            environment: Vec::new(),
            log: Stdio::null(),
        };
        let (http, grpc) = (server.http(), server.grpc());
        start.set("SHIM_INFERENCE_HOSTS", http.ip());
        start.set("SHIM_INFERENCE_HTTP_PORT", http.port());
        start.set("SHIM_INFERENCE_GRPC_PORT", grpc.port());
        start
    }

    /// A variable of its environment; the last word counts.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.environment.push((name.into(), value.to_string()));
    }

    /// As [`Start::set`], to be chained.
    pub fn with(mut self, name: &str, value: impl ToString) -> Start {
        self.set(name, value);
        self
    }

    /// Under this command, which must become the program.
    pub fn under(mut self, before: &[&str]) -> Start {
        self.before = before.iter().map(ToString::to_string).collect();
        self
    }

    /// Where its log goes.
    pub fn log(mut self, log: Stdio) -> Start {
        self.log = log;
        self
    }

    /// Starts it; it need not be up yet.
    pub fn spawn(self) -> Process {
        let ports = free_ports();
        let mut words = self.before;
        words.push(env!("CARGO_BIN_EXE_agent-shim").into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs([
                ("SHIM_ADMIN_LISTEN", "127.0.0.1"),
                ("SHIM_PROBE_INTERVAL", "100ms"),
                ("SHIM_PROBE_CONNECT_TIMEOUT", "100ms"),
                ("SHIM_PROBE_TIMEOUT", "100ms"),
                ("SHIM_OUTAGE_GRACE", "1s"),
                ("SHIM_FAILBACK_HOLD", "300ms"),
                ("SHIM_AGENT_READY_PORT", "0"),
                ("SHIM_AGENT_DRAIN_PORT", "0"),
            ])
            .env("SHIM_RELAY_HTTP_PORT", ports[0].to_string())
            .env("SHIM_RELAY_GRPC_PORT", ports[1].to_string())
            .env("SHIM_AGENT_PORT", ports[2].to_string())
            .env("SHIM_ADMIN_PORT", ports[3].to_string())
            .envs(self.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log)
            .kill_on_drop(true);
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Process {
            child: command.spawn().unwrap(),
            http: at(ports[0]),
            grpc: at(ports[1]),
            admin: at(ports[3]),
        }
    }

    /// Starts it and waits until it is ready.
    pub async fn ready(self) -> Process {
        let process = self.spawn();
        process.is_ready(true).await;
        process
    }
}

/// Below the range from which the system gives out ports, so that they stay free.
fn free_ports() -> [u16; 4] {
    let held = [(); 4].map(|()| {
        loop {
            let port = fastrand::u16(10_240..32_768);
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                return listener;
            }
        }
    });
    held.map(|listener| listener.local_addr().unwrap().port())
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// One question to the admin port; `None` where it cannot be asked now.
    pub async fn ask(&self, path: &str) -> Option<(u16, String)> {
        let stream = tokio::net::TcpStream::connect(self.admin).await.ok()?;
        http::get_over(stream, path).await
    }

    /// Waits until the readiness probe says this.
    pub async fn is_ready(&self, ready: bool) {
        eventually(&format!("ready = {ready}"), async || {
            let (code, _) = self.ask("/readyz").await?;
            ((code == 200) == ready).then_some(())
        })
        .await;
    }

    pub async fn status(&self) -> serde_json::Value {
        let (code, body) = self.ask("/status").await.unwrap();
        assert_eq!(code, 200);
        serde_json::from_str(&body).unwrap()
    }

    /// The value of a series by its name and labels as printed.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = self.ask("/metrics").await?;
        let line = text
            .lines()
            .find(|l| l.starts_with(series) && l[series.len()..].starts_with(' '))?;
        line[series.len() + 1..].parse().ok()
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid())).unwrap_or_default()
    }

    /// Descriptors open now.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Processor time used so far, in ticks of 10 ms.
    pub fn ticks(&self) -> u64 {
        let stat = self.proc("stat");
        // Behind the name, which may hold anything, in parentheses.
        let after = stat.rsplit(')').next().unwrap_or_default();
        let fields = after.split_whitespace().skip(11).take(2);
        fields.filter_map(|f| f.parse::<u64>().ok()).sum()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}
