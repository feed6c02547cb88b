//! The shim as a process of its own, and what the system says of it.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::process::{Child, Command};

use super::pace::{self, GRACE};
use super::place::*;

/// A variable of the tests' own; the program's are read by `config` alone.
#[allow(clippy::disallowed_methods)]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Sends a signal by its name.
pub fn signal(pid: u32, name: &str) {
    let pid = pid.to_string();
    let sent = std::process::Command::new("kill")
        .args(["-s", name, &pid])
        .status();
    assert!(sent.unwrap().success(), "no SIG{name} to {pid}");
}

/// One thread's runtime.
pub fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Listens on an address that was in use a moment ago.
pub async fn listen(address: SocketAddr) -> TcpListener {
    for _ in 0..200 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        if socket.bind(address).is_ok()
            && let Ok(listener) = socket.listen(1024)
        {
            return listener;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{address} does not become free");
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub descriptors: usize,
    /// Memory that is its own, in KiB: files that it has mapped come and go with the machine.
    pub anonymous: u64,
}

/// A running shim.
pub struct Shim {
    child: Child,
}

impl Shim {
    /// Starts `program arguments... agent-shim` with exactly these variables; standard error goes
    /// to the end of `log`.
    pub fn start(before: &[String], env: &[(String, String)], log: &Path) -> Shim {
        let program = env!("CARGO_BIN_EXE_agent-shim").to_string();
        let mut line: Vec<String> = before.to_vec();
        line.push(program);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = Command::new(&line[0])
            .args(&line[1..])
            .env_clear()
            .envs(env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Shim { child }
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it is asked for while it runs")
    }

    /// Its exit code, where it has ended.
    pub fn ended(&mut self) -> Option<Option<i32>> {
        self.child.try_wait().unwrap().map(|status| status.code())
    }

    pub async fn wait(&mut self, limit: Duration) -> Option<Option<i32>> {
        let status = tokio::time::timeout(limit, self.child.wait()).await.ok()?;
        Some(status.unwrap().code())
    }

    pub fn held(&self) -> Held {
        held(self.pid())
    }
}

pub fn held(pid: u32) -> Held {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = std::fs::read_dir(proc.join("fd")).map_or(0, Iterator::count);
    let rollup = std::fs::read_to_string(proc.join("smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|l| l.strip_prefix("Anonymous:"));
    let anonymous = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok());
    Held {
        descriptors,
        anonymous: anonymous.unwrap_or(0),
    }
}

/// The variables of a cell's shim.
pub fn variables(place: &Place, more: &[(&str, String)]) -> Vec<(String, String)> {
    let ip = place.ip().to_string();
    let [http, grpc] = place.ports();
    let scaled = |millis| format!("{}ms", pace::scaled(millis).as_millis());
    let mut all: Vec<(String, String)> = [
        ("SHIM_INFERENCE_HOSTS", ip.clone()),
        ("SHIM_INFERENCE_HTTP_PORT", http.to_string()),
        ("SHIM_INFERENCE_GRPC_PORT", grpc.to_string()),
        ("SHIM_RELAY_LISTEN", ip.clone()),
        ("SHIM_RELAY_HTTP_PORT", RELAY_HTTP.to_string()),
        ("SHIM_RELAY_GRPC_PORT", RELAY_GRPC.to_string()),
        ("SHIM_AGENT_PORT", AGENT.to_string()),
        ("SHIM_ADMIN_LISTEN", ip.clone()),
        ("SHIM_ADMIN_PORT", ADMIN.to_string()),
        ("SHIM_SCHEDULER", place.at(SCHEDULER).to_string()),
        ("SHIM_SCHEDULER_STATUS", place.at(STATUS).to_string()),
        ("SHIM_MEMORY_BYTES", "8Gi".into()),
        // The stand-in has no Python that could be looked at.
        ("SHIM_CAPABILITIES_LIST", "mlserver,sklearn".into()),
        ("SHIM_PROBE_INTERVAL", scaled(500)),
        ("SHIM_PROBE_CONNECT_TIMEOUT", scaled(500)),
        ("SHIM_PROBE_TIMEOUT", scaled(500)),
        ("SHIM_OUTAGE_GRACE", scaled(GRACE)),
        ("SHIM_FAILBACK_HOLD", "1s".into()),
        ("SHIM_DRAIN_TIME", "4s".into()),
        ("SHIM_AGENT_READY_PORT", "0".into()),
        ("SHIM_AGENT_DRAIN_PORT", "0".into()),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into();
    for (name, value) in more {
        all.retain(|(n, _)| n != name);
        all.push((name.to_string(), value.clone()));
    }
    all
}
