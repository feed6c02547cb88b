//! An interposer on free ports, with a double for what is observed.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_shim::clock::Clock;
use agent_shim::config::Mode;
use agent_shim::config::scheduler::Target;
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::drain::Drain;
use agent_shim::endpoint::Host;
use agent_shim::metrics::Metrics;
use agent_shim::proto::scheduler::{MetaData, Model, ModelSpec};
use agent_shim::subscription::correct::{CapabilityReport, CapacityReport, Correct, Known};
use agent_shim::subscription::status::Status;
use agent_shim::subscription::{Interposer, Settings};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Long enough for a busy machine; nothing waits for it unless something is wrong.
pub const LIMIT: Duration = Duration::from_secs(20);
pub const GI: u64 = 1 << 30;

/// What is observed, set by the test.
#[derive(Debug)]
pub struct Double {
    known: watch::Sender<Known>,
    capacity: Mutex<Option<u64>>,
    capabilities: Mutex<Option<Vec<String>>>,
    workers: Mutex<Option<u32>>,
}

impl Double {
    pub fn new(capacity: Option<u64>) -> Arc<Self> {
        let known = Known {
            ready: true,
            ..Default::default()
        };
        Arc::new(Double {
            known: watch::Sender::new(known),
            capacity: Mutex::new(capacity),
            capabilities: Mutex::default(),
            workers: Mutex::default(),
        })
    }

    pub fn ready(&self, ready: bool) {
        self.known.send_modify(|known| {
            known.ready = ready;
            known.missing = if ready { "" } else { "the server's memory" }.into();
            known.revision += 1;
        });
    }

    pub fn set(&self, capacity: Option<u64>, capabilities: Option<&[&str]>) {
        *self.capacity.lock().unwrap() = capacity;
        *self.capabilities.lock().unwrap() =
            capabilities.map(|list| list.iter().map(ToString::to_string).collect());
        self.known.send_modify(|known| known.revision += 1);
    }

    pub fn set_workers(&self, workers: u32) {
        *self.workers.lock().unwrap() = Some(workers);
    }
}

impl Correct for Double {
    fn capacity(&self, requested: u64) -> CapacityReport {
        CapacityReport {
            bytes: self.capacity.lock().unwrap().unwrap_or(requested),
            why: "the test says so".into(),
        }
    }

    fn capabilities(&self, requested: &[String]) -> CapabilityReport {
        let set = self.capabilities.lock().unwrap().clone();
        CapabilityReport {
            reported: set.unwrap_or_else(|| requested.to_vec()),
            ..Default::default()
        }
    }

    fn workers(&self) -> Option<u32> {
        *self.workers.lock().unwrap()
    }

    fn known(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }
}

/// A running interposer. Dropping it is a crash.
pub struct Shim {
    pub address: SocketAddr,
    pub status: watch::Receiver<Status>,
    pub metrics: Metrics,
    pub drain: Drain,
    _tasks: JoinSet<()>,
}

pub fn target(address: SocketAddr) -> Target {
    Target {
        host: Host::Ip(address.ip()),
        port: address.port(),
    }
}

pub fn settings(schedulers: &[SocketAddr]) -> Settings {
    Settings {
        mode: Mode::Correct,
        targets: schedulers.iter().copied().map(target).collect(),
        tls: None,
        hold: Duration::from_secs(60),
        resubscribe_min_interval: Duration::from_secs(300),
        settle: Duration::from_secs(30),
        drain_limit: Duration::from_secs(90),
    }
}

impl Shim {
    pub async fn start(settings: Settings, correct: Arc<Double>) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), settings, correct).await
    }

    pub async fn start_at(at: SocketAddr, settings: Settings, correct: Arc<Double>) -> Self {
        Self::with_metrics(at, settings, correct, Metrics::new()).await
    }

    pub async fn with_metrics(
        at: SocketAddr,
        settings: Settings,
        correct: Arc<Double>,
        metrics: Metrics,
    ) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(at).unwrap();
        let listener: TcpListener = socket.listen(128).unwrap();
        let address = listener.local_addr().unwrap();
        let (interposer, status) = Interposer::new(settings, correct, Clock::start(), &metrics);
        let drain = Drain::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(interposer.clone().tend());
        tasks.spawn(interposer.serve(listener, drain.clone()));
        Shim {
            address,
            status,
            metrics,
            drain,
            _tasks: tasks,
        }
    }

    /// The value of one series.
    pub fn series(&self, series: &str) -> f64 {
        let text = String::from_utf8(self.metrics.render()).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_else(|| panic!("{series} is not in\n{text}"))
    }

    pub fn messages(&self, message: &str, fate: &str) -> f64 {
        self.series(&format!(
            "agent_shim_scheduler_messages_total{{fate=\"{fate}\",message=\"{message}\"}}"
        ))
    }

    /// Waits until what is published satisfies a condition.
    pub async fn until(&self, holds: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.status.clone();
        let waited = tokio::time::timeout(LIMIT, status.wait_for(holds)).await;
        match waited {
            Ok(status) => status.unwrap().clone(),
            Err(_) => panic!("not in time: {:?}", self.status.borrow()),
        }
    }
}

pub fn model(name: &str, requirements: &[&str], memory: Option<u64>) -> Model {
    Model {
        meta: Some(MetaData { name: name.into() }),
        model_spec: Some(ModelSpec {
            uri: "gs://models/iris".into(),
            requirements: requirements.iter().map(ToString::to_string).collect(),
            memory_bytes: memory,
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub async fn available(scheduler: &FakeScheduler, name: &str) {
    let there = scheduler
        .until(LIMIT, |store| store.is_available(name))
        .await;
    let state = scheduler.read(|store| format!("{:?}", store.model(name)));
    assert!(there, "{name} is not available: {state}");
}
