//! A stand-in for Seldon's scheduler: the agent service and the part of its own API that is read back,
//! on real sockets, with the traps of the real one. A second Subscribe of a replica waits until the
//! first has ended, no header is sent before the first operation, a disconnect removes the replica
//! and moves its models, and an event in an unexpected state is a "State mismatch".

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use super::store::{Replica, Store};
use crate::proto::agent::agent_service_server::{AgentService, AgentServiceServer};
use crate::proto::agent::{
    AgentDrainRequest, AgentDrainResponse, AgentSubscribeRequest, ModelEventMessage,
    ModelEventResponse, ModelOperationMessage, ModelScalingTriggerMessage,
    ModelScalingTriggerResponse,
};
use crate::proto::scheduler::scheduler_server::{Scheduler, SchedulerServer};
use crate::proto::scheduler::{
    Model, ModelStatusRequest, ModelStatusResponse, ServerStatusRequest, ServerStatusResponse,
};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Everything the fake can be asked to do wrong.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// How long a drain takes.
    pub drain: Duration,
    /// How long a subscription waits before it is looked at.
    pub slow: Duration,
    /// Ends every subscription with this message at once.
    pub refuse: Option<String>,
}

/// A running stand-in. Dropping it breaks every connection.
#[derive(Debug)]
pub struct FakeScheduler {
    /// Its agent service.
    pub agent: SocketAddr,
    /// Its own API.
    pub status: SocketAddr,
    shared: Shared,
    _tasks: JoinSet<()>,
}

/// Who may hold the stream of a replica: one at a time.
type Turns = BTreeMap<(String, u32), Arc<AsyncMutex<()>>>;

#[derive(Debug, Clone)]
struct Shared {
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
    turns: Arc<Mutex<Turns>>,
    manners: Manners,
}

impl FakeScheduler {
    /// Starts on two free ports.
    pub async fn start() -> io::Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_at(any, any, Manners::default()).await
    }

    /// Starts on these addresses, with an empty store: as after a restart.
    pub async fn start_at(
        agent: SocketAddr,
        status: SocketAddr,
        manners: Manners,
    ) -> io::Result<Self> {
        let shared = Shared {
            store: Arc::default(),
            changed: watch::Sender::new(0),
            turns: Arc::default(),
            manners,
        };
        let (agent, status) = (bind(agent)?, bind(status)?);
        let addresses = (agent.local_addr()?, status.local_addr()?);
        let mut tasks = JoinSet::new();
        let service = AgentServiceServer::new(shared.clone()).max_decoding_message_size(usize::MAX);
        tasks.spawn(serve(agent, service));
        tasks.spawn(serve(status, SchedulerServer::new(shared.clone())));
        Ok(FakeScheduler {
            agent: addresses.0,
            status: addresses.1,
            shared,
            _tasks: tasks,
        })
    }

    /// Asks for a model, as the operator does; a known name becomes a new version.
    pub fn load(&self, model: Model) {
        self.shared.with(|store| store.load(model));
    }

    /// Asks for a model to go.
    pub fn unload(&self, name: &str) {
        self.shared.with(|store| store.unload(name));
    }

    /// Tells it how many replicas a server should have, as the operator does: until they are there
    /// nothing is placed, as after a restart.
    pub fn expect(&self, server: &str, replicas: i32) {
        self.shared
            .with(|store| store.expected.insert(server.into(), replicas));
    }

    /// Reads the store.
    pub fn read<T>(&self, read: impl FnOnce(&Store) -> T) -> T {
        read(&self.shared.store())
    }

    /// Waits until the store satisfies a condition; false when it did not within the limit.
    pub async fn until(&self, limit: Duration, holds: impl Fn(&Store) -> bool) -> bool {
        let mut changed = self.shared.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if holds(&self.shared.store()) {
                    return;
                }
                // The sender lives in `self`.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    /// Ends every subscription, as a scheduler that stops does.
    pub fn end_subscriptions(&self) {
        self.shared.with(Store::disconnect_all);
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

/// Connections are owned here, so that a stop is as sudden as that of a process.
async fn serve<S>(listener: TcpListener, service: S)
where
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let service = TowerToHyperService::new(service.clone());
                connections.spawn(async move {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Store) -> T) -> T {
        let out = act(&mut self.store());
        self.changed.send_modify(|n| *n += 1);
        out
    }

    fn turn(&self, key: (String, u32)) -> Arc<AsyncMutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(key).or_default().clone()
    }
}

/// A subscribed replica; dropping it is the disconnect.
struct Connected {
    shared: Shared,
    key: (String, u32),
    _turn: OwnedMutexGuard<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.shared.with(|store| store.disconnect(&self.key));
    }
}

#[tonic::async_trait]
impl AgentService for Shared {
    type SubscribeStream = Answers<ModelOperationMessage>;

    async fn subscribe(
        &self,
        request: Request<AgentSubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let request = request.into_inner();
        self.with(|store| store.requests.push(request.clone()));
        if let Some(why) = &self.manners.refuse {
            return Err(Status::internal(why.clone()));
        }
        let key = (request.server_name.clone(), request.replica_idx);
        let turn = self.turn(key.clone()).lock_owned().await;
        tokio::time::sleep(self.manners.slow).await;
        let (sender, mut operations) = mpsc::unbounded_channel();
        let connected = Connected {
            shared: self.clone(),
            key: key.clone(),
            _turn: turn,
        };
        self.with(|store| {
            store.connect(key, Replica::new(&request, sender), &request.loaded_models)
        });
        // As the Go server: no header before the first message.
        let Some(first) = operations.recv().await else {
            return Err(Status::unavailable("the scheduler is stopping"));
        };
        let rest = async_stream(operations, connected);
        Ok(Response::new(Box::pin(
            tokio_stream::once(Ok(first)).chain(rest),
        )))
    }

    async fn agent_event(
        &self,
        request: Request<ModelEventMessage>,
    ) -> Result<Response<ModelEventResponse>, Status> {
        let event = request.into_inner();
        self.with(|store| store.event(event))
            .map_err(Status::internal)?;
        Ok(Response::new(ModelEventResponse {}))
    }

    async fn model_scaling_trigger(
        &self,
        request: Request<Streaming<ModelScalingTriggerMessage>>,
    ) -> Result<Response<ModelScalingTriggerResponse>, Status> {
        let mut triggers = request.into_inner();
        while let Some(trigger) = triggers.message().await? {
            self.with(|store| store.triggers.push(trigger));
        }
        Ok(Response::new(ModelScalingTriggerResponse {}))
    }

    async fn agent_drain(
        &self,
        request: Request<AgentDrainRequest>,
    ) -> Result<Response<AgentDrainResponse>, Status> {
        let request = request.into_inner();
        self.with(|store| store.drain(&(request.server_name, request.replica_idx)));
        tokio::time::sleep(self.manners.drain).await;
        Ok(Response::new(AgentDrainResponse { success: true }))
    }
}

fn async_stream(
    operations: mpsc::UnboundedReceiver<ModelOperationMessage>,
    connected: Connected,
) -> impl Stream<Item = Result<ModelOperationMessage, Status>> + Send {
    struct Operations(
        mpsc::UnboundedReceiver<ModelOperationMessage>,
        #[allow(dead_code)] Connected,
    );
    impl Stream for Operations {
        type Item = Result<ModelOperationMessage, Status>;

        fn poll_next(
            self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Self::Item>> {
            self.get_mut().0.poll_recv(cx).map(|o| o.map(Ok))
        }
    }
    Operations(operations, connected)
}

#[tonic::async_trait]
impl Scheduler for Shared {
    type ServerStatusStream = Answers<ServerStatusResponse>;
    type ModelStatusStream = Answers<ModelStatusResponse>;

    async fn server_status(
        &self,
        request: Request<ServerStatusRequest>,
    ) -> Result<Response<Self::ServerStatusStream>, Status> {
        let name = request.into_inner().name;
        let answers = self.store().servers(name.as_deref());
        if let (true, Some(name)) = (answers.is_empty(), name) {
            return Err(Status::failed_precondition(format!(
                "Server [{name}] not found"
            )));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(
            answers.into_iter().map(Ok),
        ))))
    }

    async fn model_status(
        &self,
        request: Request<ModelStatusRequest>,
    ) -> Result<Response<Self::ModelStatusStream>, Status> {
        let name = request.into_inner().model.map(|m| m.name);
        let answers = self.store().models(name.as_deref());
        Ok(Response::new(Box::pin(tokio_stream::iter(
            answers.into_iter().map(Ok),
        ))))
    }
}
