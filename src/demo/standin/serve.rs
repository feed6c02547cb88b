//! The accept loop of one protocol, and its connections.

use std::net::Shutdown;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::gate::Gate;
use super::wire::{Tap, Wire};
use super::world::World;
use super::{grpc, http};
use crate::endpoint::Protocol;

/// Accepts until told to stop, or until the teller is gone; then closes everything.
pub(super) async fn accept(
    listener: TcpListener,
    protocol: Protocol,
    world: Arc<World>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Not behind the gate: SIGKILL ends a stopped process too.
            _ = &mut stop => break,
            // A failed accept is the caller's fault; a stand-in does not run out of descriptors.
            accepted = world.gate.pass(listener.accept()) => if let Ok((stream, _)) = accepted {
                let connection = connection(stream, protocol, world.clone());
                connections.spawn(world.gate.pass(connection));
            },
            Some(_) = connections.join_next() => {}
        }
    }
    // Not only closed: a process that is just being started by this one holds a copy of every
    // descriptor until it is another program, and the kernel would go on accepting for it.
    let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
    drop(listener);
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, protocol: Protocol, world: Arc<World>) {
    let _counted = Counted::new(protocol, &world);
    let _ = stream.set_nodelay(true);
    let tap = Arc::new(Tap::new(world.number()));
    let wire = TokioIo::new(Wire::new(stream, protocol, tap.clone(), &world));
    // An error is the caller's going away, or the end that a route was made for.
    match protocol {
        Protocol::Http => {
            let limit = || world.settings().idle_close;
            let idle = tap.idle(limit);
            let service = service_fn(|request| http::answer(request, tap.clone(), world.clone()));
            let mut served = pin!(
                hyper::server::conn::http1::Builder::new()
                    .keep_alive(true)
                    .serve_connection(wire, service)
            );
            tokio::select! {
                // What has arrived is seen before the time is: a request that came in time, while
                // this process was stopped, is answered.
                biased;
                _ = served.as_mut() => return,
                () = idle => {}
            }
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
        Protocol::Grpc => {
            let streams = Arc::default();
            let executor = Streams {
                gate: world.gate.clone(),
                tasks: Arc::downgrade(&streams),
            };
            let service =
                service_fn(move |request| grpc::answer(request, tap.clone(), world.clone()));
            // The settings that MLServer announces.
            let _ = hyper::server::conn::http2::Builder::new(executor)
                .initial_stream_window_size(4 << 20)
                .max_frame_size(4 << 20)
                .max_header_list_size(16 << 10)
                .max_concurrent_streams(None)
                .serve_connection(wire, service)
                .await;
            drop(streams);
        }
    }
}

/// Runs the calls of one HTTP/2 connection: behind the gate, and no longer than the connection.
#[derive(Clone)]
struct Streams {
    gate: Gate,
    tasks: Weak<Mutex<JoinSet<()>>>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, call: F) {
        if let Some(tasks) = self.tasks.upgrade() {
            let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(self.gate.pass(async move {
                call.await;
            }));
        }
    }
}

/// Counts a connection while it is open.
struct Counted {
    protocol: Protocol,
    world: Arc<World>,
}

impl Counted {
    fn new(protocol: Protocol, world: &Arc<World>) -> Self {
        world.counted(protocol, |n| {
            n.open += 1;
            n.accepted += 1;
        });
        Counted {
            protocol,
            world: world.clone(),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.world.counted(self.protocol, |n| n.open -= 1);
    }
}
