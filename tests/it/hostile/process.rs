//! The shim under attack, and the innocent who use it meanwhile.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_shim::demo::standin::StandIn;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::support::{eventually, grpc, within};

/// Anonymous memory beyond what the shim has at rest, in KiB: with it, it stays well below the
/// 64 MiB that the chart gives it. The program here is not optimised, the allocator keeps some.
pub const CEILING: u64 = 48 * 1024;
/// What may stay when an attack is over: the allocator keeps most of what a crowd took, for the next.
pub const REMAINS: u64 = 44 * 1024;

/// The bound of one attack.
const LONG: Duration = Duration::from_secs(60);

/// A real shim.
pub struct Process {
    child: Child,
    pub admin: SocketAddr,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub agent: Option<SocketAddr>,
    log: Arc<Mutex<Vec<String>>>,
    at_rest: (u64, usize),
}

impl Process {
    /// On free ports, with these settings on top.
    pub async fn start(settings: &[(&str, &str)]) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_agent-shim"))
            .env_clear()
            .envs([
                ("SHIM_RELAY_HTTP_PORT", "0"),
                ("SHIM_RELAY_GRPC_PORT", "0"),
                ("SHIM_AGENT_PORT", "0"),
                ("SHIM_ADMIN_PORT", "0"),
                ("SHIM_ADMIN_LISTEN", "127.0.0.1"),
                ("SHIM_LOG_FORMAT", "json"),
                ("SHIM_AGENT_READY_PORT", "0"),
                ("SHIM_AGENT_DRAIN_PORT", "0"),
            ])
            .envs(settings.iter().copied())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().push(line);
            }
        });
        let listening = eventually("the shim to listen", async || {
            let log = log.lock().unwrap();
            let lines = log
                .iter()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            lines
                .map(|line| line["fields"].clone())
                .find(|fields| fields["message"] == "listening")
        })
        .await;
        let address = |name: &str| listening[name].as_str().unwrap().parse().ok();
        let mut process = Process {
            child,
            admin: address("admin").unwrap(),
            http: address("relay_http").unwrap(),
            grpc: address("relay_grpc").unwrap(),
            agent: address("agent"),
            log,
            at_rest: (0, 0),
        };
        process.at_rest = (process.rss(), process.descriptors());
        process
    }

    /// In front of a server, and ready.
    pub async fn before(http: SocketAddr, grpc: SocketAddr, settings: &[(&str, &str)]) -> Process {
        let (http, grpc) = (http.port().to_string(), grpc.port().to_string());
        let mut all = vec![
            ("SHIM_INFERENCE_HOSTS", "127.0.0.1"),
            ("SHIM_INFERENCE_HTTP_PORT", http.as_str()),
            ("SHIM_INFERENCE_GRPC_PORT", grpc.as_str()),
        ];
        all.extend(settings);
        let mut process = Process::start(&all).await;
        let admin = process.admin;
        eventually("the shim to be ready", async || {
            let answer = get(admin, "/readyz").await.unwrap_or_default();
            answer.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
        // Once each, so that what is made at the first use is counted as at rest.
        get(process.http, "/v2/models/m").await.unwrap();
        get(process.admin, "/status").await.unwrap();
        get(process.admin, "/metrics").await.unwrap();
        let mut caller = grpc::Client::connect(process.grpc).await;
        let _ = caller.call("ModelInfer", b"").await;
        drop(caller);
        process.at_rest = (process.rss(), process.descriptors());
        process
    }

    /// Anonymous memory in KiB.
    pub fn rss(&self) -> u64 {
        let pid = self.child.id().expect("the shim has ended");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        let pid = self.child.id().expect("the shim has ended");
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    }

    /// Everything it has logged.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Fails where it has grown by more than [`CEILING`].
    pub fn is_bounded(&self, what: &str) {
        let grown = self.rss().saturating_sub(self.at_rest.0);
        assert!(grown < CEILING, "{what}: {grown} KiB more than at rest");
    }

    /// Waits until it is back where it began, and is well.
    pub async fn recovers(&self, what: &str) {
        let (rss, descriptors) = self.at_rest;
        eventually(&format!("descriptors to return after {what}"), async || {
            (self.descriptors() <= descriptors + 4).then_some(())
        })
        .await;
        let grown = self.rss().saturating_sub(rss);
        assert!(grown < REMAINS, "{what}: {grown} KiB stay");
        let answer = get(self.admin, "/livez").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{what}: {answer}");
        // An assertion that only debug builds have, and that ends one connection: `h2` asks a
        // connection that is dropped whether it has counted out every stream.
        let is_known = |line: &str| line.contains("/src/proto/streams/counts.rs:");
        let panicked = self
            .log()
            .iter()
            .any(|line| line.contains("panicked at") && !is_known(line));
        assert!(!panicked, "{what}: {:#?}", self.log());
    }

    /// Runs an attack beside innocent callers of every port, and looks at what it cost.
    pub async fn withstands(&self, what: &str, attack: impl Future<Output = ()>) {
        let innocents = Innocents::start(self);
        let peak = async {
            loop {
                self.is_bounded(what);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            done = tokio::time::timeout(LONG, attack) => done.unwrap_or_else(|_| panic!("{what} takes too long")),
            () = peak => {}
        }
        innocents.were_served(what).await;
        self.is_bounded(what);
        self.recovers(what).await;
    }
}

/// One GET on a connection of its own; the whole answer as text.
pub async fn get(to: SocketAddr, path: &str) -> std::io::Result<String> {
    let head = format!("GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n");
    say(to, head.as_bytes()).await
}

/// Sends bytes and returns what comes until the other side closes.
pub async fn say(to: SocketAddr, bytes: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(crate::support::PATIENCE, stream.read_to_end(&mut answer));
    read.await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A caller: its port, how many answers it has had, what went wrong.
type Innocent = (&'static str, Arc<AtomicU64>, JoinHandle<Option<String>>);

/// Callers who behave, one after another on each port, until they are told to stop.
pub struct Innocents {
    tasks: Vec<Innocent>,
    stop: Arc<tokio::sync::Notify>,
}

impl Innocents {
    pub fn start(process: &Process) -> Innocents {
        let stop = Arc::new(tokio::sync::Notify::new());
        let mut tasks = Vec::new();
        let (http, grpc_port, admin) = (process.http, process.grpc, process.admin);
        let mut add = |name, port: SocketAddr| {
            let (count, stop) = (Arc::new(AtomicU64::new(0)), stop.clone());
            let counted = count.clone();
            let task = tokio::spawn(async move {
                let calls = async {
                    loop {
                        // Kubelet takes three failures in a row for one.
                        let attempts = if name == "admin" { 3 } else { 1 };
                        let mut said = Ok(());
                        for _ in 0..attempts {
                            said = innocent(name, port).await;
                            if said.is_ok() {
                                break;
                            }
                        }
                        if let Err(why) = said {
                            return why;
                        }
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                };
                tokio::select! {
                    why = calls => Some(why),
                    () = stop.notified() => None,
                }
            });
            tasks.push((name, count, task));
        };
        add("http", http);
        add("grpc", grpc_port);
        add("admin", admin);
        Innocents { tasks, stop }
    }

    /// Ends them: all were served to the last, and each at least once more from now on.
    pub async fn were_served(self, what: &str) {
        for (name, count, task) in &self.tasks {
            let before = count.load(Ordering::Relaxed);
            eventually(&format!("an answer to {name} during {what}"), async || {
                (task.is_finished() || count.load(Ordering::Relaxed) > before).then_some(())
            })
            .await;
        }
        self.stop.notify_waiters();
        for (name, _, task) in self.tasks {
            if let Some(why) = within("an innocent caller", task).await.unwrap() {
                panic!("{what}: the innocent caller of {name} was harmed: {why}");
            }
        }
    }
}

async fn innocent(name: &str, port: SocketAddr) -> Result<(), String> {
    let limit = crate::support::PATIENCE;
    let answer = tokio::time::timeout(limit, async {
        match name {
            "grpc" => {
                let mut client = grpc::Client::connect(port).await;
                let answer = client.call("ModelInfer", b"hello").await;
                let answer = answer.map_err(|error| error.to_string())?;
                match answer.status().0 {
                    0 => Ok(()),
                    _ => Err(format!("{answer:?}")),
                }
            }
            _ => {
                let path = if name == "admin" {
                    "/livez"
                } else {
                    "/headers"
                };
                let answer = get(port, path).await.map_err(|e| e.to_string())?;
                match answer.starts_with("HTTP/1.1 200") {
                    true => Ok(()),
                    false => Err(answer),
                }
            }
        }
    });
    answer.await.unwrap_or_else(|_| Err("no answer".into()))
}

/// A stand-in server and a ready shim before it.
pub async fn pair(settings: &[(&str, &str)]) -> (StandIn, Process) {
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let process = Process::before(server.http(), server.grpc(), settings).await;
    (server, process)
}
