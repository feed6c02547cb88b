//! The inference server of a cell: the stand-in as a process of its own, so that SIGSTOP and SIGKILL
//! are what they are. It writes the id of every call to a file as the call arrives, and which loads go
//! on (`loads`): that record outlives it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_shim::demo::standin::StandIn;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::loads::{self, Loads};
use super::process::{signal, variable};
use super::stage::{LOADED, SECOND};

/// The header that carries a call's id.
pub const ID: &str = "x-call-id";
const HOST: &str = "AGENT_SHIM_TEST_STANDIN";
const PORTS: &str = "AGENT_SHIM_TEST_PORTS";
const RECORD: &str = "AGENT_SHIM_TEST_RECORD";
const MODELS: &str = "AGENT_SHIM_TEST_MODELS";

/// The process, or the lack of it.
pub struct Server {
    record: PathBuf,
    state: tokio::sync::Mutex<Option<Running>>,
    ip: Mutex<IpAddr>,
    ports: [u16; 2],
}

struct Running {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Server {
    pub fn new(ip: IpAddr, ports: [u16; 2], folder: &std::path::Path) -> Server {
        Server {
            record: folder.join("calls"),
            state: tokio::sync::Mutex::new(None),
            ip: Mutex::new(ip),
            ports,
        }
    }

    /// Starts the process on an address, with these models on disk and not in memory, and waits
    /// until it listens.
    pub async fn start(&self, ip: IpAddr, models: &[&str]) {
        *self.ip.lock().unwrap() = ip;
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command
            .args(["faults::server::a_stand_in_as_a_process", "--exact"])
            .args(["--nocapture", "--test-threads=1"])
            .env(HOST, ip.to_string())
            .env(PORTS, format!("{} {}", self.ports[0], self.ports[1]))
            .env(RECORD, &self.record)
            .env(MODELS, models.join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let say = child.stdin.take().unwrap();
        let hear = BufReader::new(child.stdout.take().unwrap());
        let mut running = Running { child, say, hear };
        running.heard().await;
        *self.state.lock().await = Some(running);
    }

    /// One order to the process; see [`obey`]. Answered when it is carried out.
    pub async fn order(&self, order: &str) {
        let mut state = self.state.lock().await;
        // One that was killed by another fault obeys nobody.
        let Some(running) = state.as_mut() else {
            return;
        };
        running.say.write_all(order.as_bytes()).await.unwrap();
        running.say.write_all(b"\n").await.unwrap();
        running.heard().await;
    }

    /// Sends a signal by name, such as `STOP`.
    pub async fn signal(&self, name: &str) {
        if let Some(running) = self.state.lock().await.as_ref() {
            signal(running.child.id().unwrap(), name);
        }
    }

    pub async fn kill(&self) {
        if let Some(mut running) = self.state.lock().await.take() {
            running.child.kill().await.unwrap();
        }
    }

    pub fn http(&self) -> SocketAddr {
        SocketAddr::new(*self.ip.lock().unwrap(), self.ports[0])
    }

    pub fn grpc(&self) -> SocketAddr {
        SocketAddr::new(*self.ip.lock().unwrap(), self.ports[1])
    }

    /// What its loads came to.
    pub fn loads(&self) -> Loads {
        loads::read(&std::fs::read_to_string(&self.record).unwrap_or_default())
    }

    /// How often each id has arrived.
    pub fn received(&self) -> HashMap<u64, usize> {
        let text = std::fs::read_to_string(&self.record).unwrap_or_default();
        let mut all = HashMap::new();
        for id in text.lines().filter_map(|line| line.parse().ok()) {
            *all.entry(id).or_default() += 1;
        }
        all
    }
}

impl Running {
    /// Waits for the word that an order was carried out.
    async fn heard(&mut self) {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.hear.read_line(&mut line).await.unwrap();
            assert!(read > 0, "the stand-in's process has ended");
            if line.trim_end().ends_with("done.") {
                return;
            }
        }
    }
}

/// The process itself: this test binary, run again with the address in its environment. Without
/// one it is a test that has nothing to do.
#[test]
fn a_stand_in_as_a_process() {
    let Some(host) = variable(HOST) else {
        return;
    };
    super::process::runtime().block_on(serve(host.parse().unwrap()));
}

async fn serve(ip: IpAddr) {
    let record = variable(RECORD).unwrap();
    let record = OpenOptions::new().create(true).append(true).open(record);
    let record: File = record.unwrap();
    let ports = variable(PORTS).unwrap();
    let (http, grpc) = ports.split_once(' ').unwrap();
    let http = SocketAddr::new(ip, http.parse().unwrap());
    let grpc = SocketAddr::new(ip, grpc.parse().unwrap());
    let server = StandIn::start_at(http, grpc).await.unwrap();
    let models = variable(MODELS).unwrap();
    let models = models.split(',').filter(|m| !m.is_empty());
    server.set_models(models.map(|m| (m, "", "UNAVAILABLE")));
    // A machine that is busy for seconds does not make a connection old.
    server.set_idle_close(Duration::from_secs(60));
    let record = Arc::new(record);
    tokio::spawn(loads::note(
        server.clone(),
        record.clone(),
        &[LOADED, SECOND],
    ));
    server.on_call(move |call| {
        if let Some(id) = call.header(ID) {
            (&*record).write_all(format!("{id}\n").as_bytes()).unwrap();
        }
    });
    let mut other = None;
    let (orders, mut heard) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for order in std::io::stdin().lines().map_while(Result::ok) {
            let _ = orders.send(order);
        }
    });
    done();
    while let Some(order) = heard.recv().await {
        obey(&server, &order, &mut other).await;
        done();
    }
}

fn done() {
    // Not `println!`: the harness catches that.
    let mut out = std::io::stdout();
    out.write_all(b"done.\n").unwrap();
    out.flush().unwrap();
}

/// What the process can be told.
async fn obey(server: &StandIn, order: &str, other: &mut Option<tokio::task::JoinSet<()>>) {
    match order.split_once(' ').unwrap_or((order, "")) {
        ("idle-close", ms) => server.set_idle_close(Duration::from_millis(ms.parse().unwrap())),
        ("load-delay", ms) => server.set_load_delay(Duration::from_millis(ms.parse().unwrap())),
        ("breaks-off", on) => server.set_breaks_off(on == "on"),
        ("not-live", on) => server.set_live(on != "on"),
        ("close", "grpc") => server.stop_grpc().await,
        ("close", "http") => server.stop_http().await,
        ("garbage", "on") => {
            server.stop().await;
            let mut tasks = tokio::task::JoinSet::new();
            for address in [server.http(), server.grpc()] {
                let listener = super::process::listen(address).await;
                tasks.spawn(babble(listener));
            }
            *other = Some(tasks);
        }
        ("open", _) => {
            if let Some(mut tasks) = other.take() {
                tasks.shutdown().await;
            }
            server.restart().await.unwrap();
        }
        _ => panic!("no such order: {order}"),
    }
}

/// Answers everything with bytes of no protocol.
async fn babble(listener: TcpListener) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.spawn(async move {
            let mut some = [0; 4096];
            while stream.read(&mut some).await.is_ok_and(|n| n > 0) {
                let noise: Vec<u8> = (0..600).map(|_| fastrand::u8(..)).collect();
                if stream.write_all(&noise).await.is_err() {
                    return;
                }
            }
        });
    }
}
