//! A stand-in for the inference server: the Open Inference Protocol over real sockets, with
//! MLServer's shapes and quirks, and with faults that can be switched on and off.
//!
//! Owns the listeners and the switches; what is answered is in the modules below. The demo and
//! the integration tests use it; it must not know the shim. Every call is recorded, so that a
//! test can tell what really arrived. Not for production: it trusts its callers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::endpoint::Protocol;

mod body;
mod calls;
mod gate;
mod grpc;
mod http;
mod serve;
mod wire;
mod world;

pub use calls::{Call, Outcome};
pub use grpc::{FAIL_MESSAGE, RESET_MESSAGE_BYTES};
pub use world::Model;

use world::World;

/// The version of MLServer whose ways are copied.
const VERSION: &str = "1.7.1";

/// A running stand-in. Clones are handles to the same one; dropping the last handle stops it.
#[derive(Debug, Clone)]
pub struct StandIn(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    addresses: [SocketAddr; 2],
    world: Arc<World>,
    doors: [Mutex<Option<Door>>; 2],
}

/// A listener at work with all of its connections. Dropping it ends them, a moment later.
#[derive(Debug)]
struct Door {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl StandIn {
    /// Starts on free ports of `ip`.
    ///
    /// The ports are below the range from which the system gives out ports by itself: so nobody
    /// gets them by chance while the stand-in is stopped, and no caller can connect to itself.
    pub async fn start(ip: IpAddr) -> io::Result<StandIn> {
        Self::start_at(SocketAddr::new(ip, 0), SocketAddr::new(ip, 0)).await
    }

    /// Starts at two addresses; port 0 takes a free one, as [`StandIn::start`] does.
    pub async fn start_at(http: SocketAddr, grpc: SocketAddr) -> io::Result<StandIn> {
        let listeners = [listen(http)?, listen(grpc)?];
        let addresses = [listeners[0].local_addr()?, listeners[1].local_addr()?];
        let world = Arc::new(World::default());
        let mut doors = Protocol::ALL
            .into_iter()
            .zip(listeners)
            .map(|(protocol, listener)| Mutex::new(Some(Door::open(listener, protocol, &world))));
        let doors = [
            doors.next().unwrap_or_default(),
            doors.next().unwrap_or_default(),
        ];
        Ok(StandIn(Arc::new(Handle {
            addresses,
            world,
            doors,
        })))
    }

    /// The HTTP address; it stays the same over a restart.
    pub fn http(&self) -> SocketAddr {
        self.address(Protocol::Http)
    }

    /// The gRPC address; it stays the same over a restart.
    pub fn grpc(&self) -> SocketAddr {
        self.address(Protocol::Grpc)
    }

    /// The address of a protocol.
    pub fn address(&self, protocol: Protocol) -> SocketAddr {
        self.0.addresses[protocol.index()]
    }

    /// Whether it calls itself live; at first it does.
    pub fn set_live(&self, live: bool) {
        self.0.world.set(|s| s.live = live);
    }

    /// Whether it calls itself ready; at first it does. It is not ready either while a model is
    /// in state `UNKNOWN`, which is MLServer's word for loading.
    pub fn set_ready(&self, ready: bool) {
        self.0.world.set(|s| s.ready = ready);
    }

    /// The repository: name, version (may be empty) and state (`READY`, `UNAVAILABLE` or
    /// `UNKNOWN`) of each model. At first one model, `iris`, is ready.
    pub fn set_models<N, V, S>(&self, models: impl IntoIterator<Item = (N, V, S)>)
    where
        N: Into<String>,
        V: Into<String>,
        S: Into<String>,
    {
        let models = models.into_iter().map(|(name, version, state)| Model {
            name: name.into(),
            version: version.into(),
            state: state.into(),
        });
        let models = models.collect();
        self.0.world.set(|s| s.models = models);
    }

    /// The repository now.
    pub fn models(&self) -> Vec<Model> {
        self.0.world.settings().models.clone()
    }

    /// How long a load takes; at first no time.
    pub fn set_load_delay(&self, delay: Duration) {
        self.0.world.set(|s| s.load_delay = delay);
    }

    /// As a restart does: no model is in memory, all are still on disk.
    pub fn lose_models(&self) {
        self.0.world.set(|s| {
            for model in &mut s.models {
                model.state = world::UNAVAILABLE.into();
            }
        });
    }

    /// Models that cannot be loaded, as where their files have gone.
    pub fn set_broken<N: Into<String>>(&self, models: impl IntoIterator<Item = N>) {
        let models = models.into_iter().map(Into::into).collect();
        self.0.world.set(|s| s.broken = models);
    }

    /// READY models that the worker does not have; a load of one gives it back.
    pub fn set_lost<N: Into<String>>(&self, models: impl IntoIterator<Item = N>) {
        let models = models.into_iter().map(Into::into).collect();
        self.0.world.set(|s| s.lost = models);
    }

    /// Whether every inference over HTTP fails as with a dead worker: 500 in plain text.
    pub fn set_worker_dead(&self, dead: bool) {
        self.0.world.set(|s| s.worker_dead = dead);
    }

    /// Whether inferences over HTTP hang until [`StandIn::release`], as with a hung worker.
    pub fn set_worker_hangs(&self, hangs: bool) {
        self.0.world.set(|s| s.worker_hangs = hangs);
    }

    /// What every load over gRPC fails with; at first none does.
    pub fn set_load_error(&self, why: Option<&str>) {
        self.0.world.set(|s| s.load_error = why.map(Into::into));
    }

    /// What every inference over HTTP answers as its only element, instead of the number 1.
    pub fn set_said(&self, text: &str) {
        self.0.world.set(|s| s.said = Some(text.into()));
    }

    /// How long an HTTP connection may be idle after an answer; 5 s, as in MLServer. Connections
    /// that are idle already keep the old limit until their next answer.
    pub fn set_idle_close(&self, limit: Duration) {
        self.0.world.set(|s| s.idle_close = limit);
    }

    /// Closes both listeners and every connection, as SIGKILL would, and returns when that is
    /// done; later connections are refused. A wedged server can be stopped too, and starts anew
    /// unwedged.
    pub async fn stop(&self) {
        tokio::join!(self.stop_http(), self.stop_grpc());
        self.unwedge();
    }

    /// Listens again on the same addresses; what is listening already goes on.
    pub async fn restart(&self) -> io::Result<()> {
        self.restart_http().await?;
        self.restart_grpc().await
    }

    /// As [`StandIn::stop`], HTTP alone.
    pub async fn stop_http(&self) {
        self.close(Protocol::Http).await;
    }

    /// As [`StandIn::stop`], gRPC alone.
    pub async fn stop_grpc(&self) {
        self.close(Protocol::Grpc).await;
    }

    /// As [`StandIn::restart`], HTTP alone.
    pub async fn restart_http(&self) -> io::Result<()> {
        self.open(Protocol::Http)
    }

    /// As [`StandIn::restart`], gRPC alone.
    pub async fn restart_grpc(&self) -> io::Result<()> {
        self.open(Protocol::Grpc)
    }

    /// From now on it is as after SIGSTOP: the kernel accepts connections, nothing is read and
    /// nothing answered, on old connections as on new ones.
    pub fn wedge(&self) {
        self.0.world.gate.shut();
    }

    /// As SIGCONT: what has queued up is answered.
    pub fn unwedge(&self) {
        self.0.world.gate.open();
    }

    /// Lets every `/hang` and `Hang` answer that has arrived before.
    pub fn release(&self) {
        self.0.world.released.send_modify(|n| *n += 1);
    }

    /// Gives an event to every `/sse` stream. A stream that begins later gets it too, until
    /// [`StandIn::end_events`]: the first event after that begins a new script.
    pub fn push_event(&self, data: &str) {
        self.0.world.push_event(data);
    }

    /// Ends every `/sse` stream after the events it was given.
    pub fn end_events(&self) {
        self.0.world.end_events();
    }

    /// Tells of every call at the moment of its arrival, before anything is answered: a record
    /// that outlives a kill. Set once.
    pub fn on_call(&self, told: impl Fn(&Call) + Send + Sync + 'static) {
        self.0.world.journal.listen(Box::new(told));
    }

    /// Whether every inference's answer is broken off in its middle, over HTTP by a reset of the
    /// connection, over gRPC by one of the stream; health is answered as ever.
    pub fn set_breaks_off(&self, breaks: bool) {
        self.0.world.set(|s| s.breaks_off = breaks);
    }

    /// Every call received, in order of arrival (the last 10,000 of them).
    pub fn calls(&self) -> Vec<Call> {
        self.0.world.journal.all()
    }

    /// The calls from the `number`-th on, counted from 0 over all that ever arrived, and the number
    /// of the next. Those that are forgotten already are left out.
    pub fn calls_from(&self, number: usize) -> (Vec<Call>, usize) {
        self.0.world.journal.from(number)
    }

    /// The calls to one path, in order of arrival; a query is not compared.
    pub fn calls_to(&self, path: &str) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.is_to(path));
        calls
    }

    /// The first call to `path`, as soon as it has arrived. Waits for ever: bound it.
    pub async fn wait_for_call(&self, path: &str) -> Call {
        self.wait_until(|s| !s.calls_to(path).is_empty()).await;
        // Calls are forgotten only after thousands of others.
        self.calls_to(path).swap_remove(0)
    }

    /// Waits until something is true of it, checked whenever a call or a connection begins or
    /// ends. Waits for ever: bound it.
    pub async fn wait_until(&self, holds: impl Fn(&StandIn) -> bool) {
        let mut changes = self.0.world.journal.changes();
        loop {
            changes.mark_unchanged();
            if holds(self) {
                return;
            }
            // The sender lives in `self`, so waiting cannot fail.
            let _ = changes.changed().await;
        }
    }

    /// Connections open now.
    pub fn open_connections(&self, protocol: Protocol) -> usize {
        self.0.world.count(protocol).open
    }

    /// Connections accepted so far. While it is wedged the kernel accepts and this stands still.
    pub fn accepted(&self, protocol: Protocol) -> usize {
        self.0.world.count(protocol).accepted
    }

    /// HTTP/2 PING frames received so far, other than answers to its own.
    pub fn pings(&self) -> usize {
        self.0.world.count(Protocol::Grpc).pings
    }

    fn door(&self, protocol: Protocol) -> MutexGuard<'_, Option<Door>> {
        self.0.doors[protocol.index()]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn close(&self, protocol: Protocol) {
        let door = self.door(protocol).take();
        if let Some(door) = door {
            door.close().await;
        }
    }

    fn open(&self, protocol: Protocol) -> io::Result<()> {
        let mut door = self.door(protocol);
        if door.is_none() {
            let listener = listen(self.address(protocol))?;
            *door = Some(Door::open(listener, protocol, &self.0.world));
        }
        Ok(())
    }
}

impl Door {
    fn open(listener: TcpListener, protocol: Protocol, world: &Arc<World>) -> Door {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve::accept(listener, protocol, world.clone(), stopped));
        Door { stop, task }
    }

    async fn close(self) {
        // The task may have ended with its runtime; then there is nothing left to close.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// The ports that are taken for port 0: below 32768, where Linux begins to give out ports.
const FREE_PORTS: std::ops::Range<u16> = 10_240..32_768;

fn listen(mut address: SocketAddr) -> io::Result<TcpListener> {
    if address.port() != 0 {
        return listen_at(address);
    }
    loop {
        address.set_port(fastrand::u16(FREE_PORTS));
        match listen_at(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Closed connections of the server before must not keep it from coming back.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // A wedged server's callers queue here; MLServer's queues are longer still.
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}
