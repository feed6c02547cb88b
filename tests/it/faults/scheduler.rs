//! The scheduler of a cell, behind a front that can be closed, stalled or made to babble, and that
//! speaks TLS where the cell wants it. Keeps the ledger of its messages over restarts.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use agent_shim::demo::scheduler::{FakeScheduler, Manners};
use agent_shim::demo::store::{OnReplica, Record, Store};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use agent_shim::proto::scheduler::model_status::ModelState;
use agent_shim::proto::scheduler::{MetaData, Model, ModelSpec};

use super::stage::MODEL;

/// Where models go that the tests ask for.
pub const SERVER: &str = "mlserver";
pub const GI: u64 = 1 << 30;

#[derive(Clone, Default)]
struct State {
    target: Option<SocketAddr>,
    open: bool,
    stalled: bool,
    babbles: bool,
    /// Connections of an older epoch are cut.
    epoch: u64,
    tls: Option<Arc<ServerConfig>>,
}

/// A port before another port.
pub struct Front {
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Front {
    pub fn start(address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Front {
        let state = watch::Sender::new(State {
            tls,
            ..State::default()
        });
        let task = tokio::spawn(accept(address, state.subscribe()));
        Front { state, task }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    pub fn open(&self, target: SocketAddr) {
        self.set(|s| {
            s.target = Some(target);
            s.open = true;
            s.epoch += 1;
        });
    }

    pub fn close(&self) {
        self.set(|s| {
            s.open = false;
            s.epoch += 1;
        });
    }

    /// It accepts, and moves nothing in either direction, on old connections as on new ones.
    pub fn stall(&self, stalled: bool) {
        self.set(|s| s.stalled = stalled);
    }

    pub fn babble(&self, babbles: bool) {
        self.set(|s| {
            s.babbles = babbles;
            s.epoch += 1;
        });
    }

    /// Another certificate from now on; what is connected is cut.
    pub fn certify(&self, tls: Arc<ServerConfig>) {
        self.set(|s| {
            s.tls = Some(tls);
            s.epoch += 1;
        });
    }
}

async fn accept(address: SocketAddr, mut state: watch::Receiver<State>) {
    loop {
        if state.wait_for(|s| s.open).await.is_err() {
            return;
        }
        let listener = super::process::listen(address).await;
        let mut connections = JoinSet::new();
        loop {
            let epoch = state.borrow_and_update().epoch;
            let open = state.borrow().open;
            if !open {
                break;
            }
            tokio::select! {
                Ok((stream, _)) = listener.accept() => {
                    connections.spawn(connection(stream, epoch, state.clone()));
                }
                changed = state.changed() => if changed.is_err() { return },
                Some(_) = connections.join_next() => {}
            }
        }
        connections.shutdown().await;
    }
}

async fn connection(stream: TcpStream, epoch: u64, mut state: watch::Receiver<State>) {
    let mut cut = state.clone();
    let carried = async {
        let now = state.borrow_and_update().clone();
        if state.wait_for(|s| !s.stalled).await.is_err() {
            return;
        }
        let _ = stream.set_nodelay(true);
        match (now.babbles, now.tls) {
            (true, _) => {
                let mut stream = stream;
                let _ = stream.write_all(&[0x7f; 900]).await;
            }
            (false, Some(tls)) => {
                if let Ok(secured) = TlsAcceptor::from(tls).accept(stream).await {
                    carry(secured, now.target, state).await;
                }
            }
            (false, None) => carry(stream, now.target, state).await,
        }
    };
    tokio::select! {
        () = carried => {}
        _ = cut.wait_for(|s| s.epoch != epoch) => {}
    }
}

async fn carry<S>(near: S, target: Option<SocketAddr>, state: watch::Receiver<State>)
where
    S: AsyncRead + AsyncWrite,
{
    let Some(target) = target else { return };
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    let _ = far.set_nodelay(true);
    let (near, far) = (tokio::io::split(near), far.into_split());
    tokio::select! {
        () = pump(near.0, far.1, state.clone()) => {}
        () = pump(far.0, near.1, state) => {}
    }
}

async fn pump<R, W>(from: R, to: W, mut state: watch::Receiver<State>)
where
    R: AsyncRead,
    W: AsyncWrite,
{
    let (mut from, mut to) = (std::pin::pin!(from), std::pin::pin!(to));
    let mut some = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut some).await {
        if state.wait_for(|s| !s.stalled).await.is_err() || to.write_all(&some[..n]).await.is_err()
        {
            return;
        }
    }
}

/// Something that the scheduler was told.
#[derive(Debug, Clone)]
pub enum Message {
    Subscribe { total: u64, loaded: Vec<String> },
    Event(String),
    Trigger(String),
}

impl Message {
    /// For the account.
    pub fn words(&self) -> String {
        match self {
            Message::Subscribe { total, loaded } => {
                format!("Subscribe, {total} bytes, loaded [{}]", loaded.join(", "))
            }
            Message::Event(text) => format!("event, {text}"),
            Message::Trigger(text) => format!("trigger, {text}"),
        }
    }
}

/// The scheduler with its two fronts.
pub struct Scheduler {
    pub agent: Front,
    pub status: Front,
    now: Mutex<Option<FakeScheduler>>,
    /// What the schedulers before this one were told.
    past: Mutex<Vec<Message>>,
    wanted: Mutex<Vec<String>>,
}

impl Scheduler {
    pub fn new(agent: SocketAddr, status: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Scheduler {
        Scheduler {
            agent: Front::start(agent, tls.clone()),
            status: Front::start(status, tls),
            now: Mutex::new(None),
            past: Mutex::default(),
            wanted: Mutex::default(),
        }
    }

    /// Starts a process with an empty store, which the operator tells of every model.
    pub async fn start(&self, manners: Manners) {
        self.kill();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let fake = FakeScheduler::start_at(any, any, manners).await.unwrap();
        for name in self.wanted.lock().unwrap().iter() {
            fake.load(model(name, &["sklearn"], Some(GI)));
        }
        self.agent.open(fake.agent);
        self.status.open(fake.status);
        *self.now.lock().unwrap() = Some(fake);
    }

    pub fn kill(&self) {
        self.agent.close();
        self.status.close();
        if let Some(fake) = self.now.lock().unwrap().take() {
            let mut past = self.past.lock().unwrap();
            past.extend(fake.read(told));
        }
    }

    /// As the operator asks for a model.
    pub fn want(&self, name: &str) {
        self.wanted.lock().unwrap().push(name.into());
        if let Some(fake) = self.now.lock().unwrap().as_ref() {
            fake.load(model(name, &["sklearn"], Some(GI)));
        }
    }

    /// Everything that has come: of each process its Subscribes, its events, its triggers, in order.
    pub fn messages(&self) -> Vec<Message> {
        let mut all = self.past.lock().unwrap().clone();
        all.extend(self.read(told).unwrap_or_default());
        all
    }

    /// The memory of every Subscribe that has come, in order.
    pub fn subscribes(&self) -> Vec<u64> {
        let all = self.messages().into_iter();
        all.filter_map(|message| match message {
            Message::Subscribe { total, .. } => Some(total),
            _ => None,
        })
        .collect()
    }

    pub fn read<T>(&self, read: impl FnOnce(&Store) -> T) -> Option<T> {
        Some(self.now.lock().unwrap().as_ref()?.read(read))
    }

    /// What is wrong with its belief; nothing where it is right.
    pub fn wrong(&self, total: u64) -> Option<String> {
        let wanted = self.wanted.lock().unwrap().clone();
        self.read(|store| belief(store, total, &wanted))
            .unwrap_or_else(|| Some("it does not run".into()))
    }

    /// The models that it believes to be loaded.
    pub fn available(&self) -> Vec<String> {
        let of = |store: &Store| {
            let names = store.models.keys().filter(|name| store.is_available(name));
            names.cloned().collect()
        };
        self.read(of).unwrap_or_default()
    }

    /// The models that it was told could not be loaded.
    pub fn failed(&self) -> Vec<String> {
        let of = |store: &Store| {
            let failed = store.models.iter();
            let failed = failed.filter(|(_, record)| record.state == OnReplica::LoadFailed);
            failed.map(|(name, _)| name.clone()).collect()
        };
        self.read(of).unwrap_or_default()
    }
}

/// What is wrong with what a scheduler believes that was asked for these models.
fn belief(store: &Store, total: u64, wanted: &[String]) -> Option<String> {
    let Some(replica) = store.replicas.get(&(SERVER.into(), 0)) else {
        return Some("it does not list the replica".to_string());
    };
    if replica.total != total {
        return Some(format!("it believes {} bytes, not {total}", replica.total));
    }
    for name in wanted {
        // A load that a fault broke off has failed, until somebody asks for the model again; the
        // usual model was there before, and is to be there again.
        let failed = store.model(name).map(|(state, _)| state) == Some(ModelState::ModelFailed);
        if !(store.is_available(name) || failed && name != MODEL) {
            return Some(format!("{name} is not available: {:?}", store.model(name)));
        }
    }
    // All has ended that was under way: what is free is what no model takes.
    let loaded = store.models.values();
    let loaded = loaded.filter(|record| record.state == OnReplica::Loaded);
    let taken: u64 = loaded.map(Record::needs).sum();
    let (free, reserved) = (replica.available, replica.reserved);
    (free != total - taken || reserved > 0).then(|| {
        format!(
            "it believes {free} bytes free and {reserved} held back, of {total} with {taken} in use"
        )
    })
}

fn told(store: &Store) -> Vec<Message> {
    let subscribes = store.requests.iter().map(|request| Message::Subscribe {
        total: request
            .replica_config
            .as_ref()
            .map_or(0, |c| c.memory_bytes),
        loaded: request
            .loaded_models
            .iter()
            .map(|m| format!("{m:?}"))
            .collect(),
    });
    let events = store
        .events
        .iter()
        .map(|e| Message::Event(format!("{e:?}")));
    let triggers = store
        .triggers
        .iter()
        .map(|t| Message::Trigger(format!("{t:?}")));
    subscribes.chain(events).chain(triggers).collect()
}

/// Bounded waiting for a belief.
pub async fn until_right(scheduler: &Scheduler, total: u64, limit: Duration) -> Option<String> {
    let since = Instant::now();
    loop {
        let wrong = scheduler.wrong(total)?;
        if since.elapsed() > limit {
            return Some(wrong);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn model(name: &str, requirements: &[&str], memory: Option<u64>) -> Model {
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
