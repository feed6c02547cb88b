//! Callers: HTTP and gRPC, unary, streaming and large, each call with an id of its own. They keep
//! their connections as the agent's do, and never send a call twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::ledger::{Fate, Kind, Ledger};

mod call;
#[cfg(test)]
mod tests;

use call::Connection;

/// The long limit of a caller: one that reaches it has hung, whatever the fault.
const CALLER: Duration = Duration::from_secs(60);
/// Between two calls of a caller.
const PACE: Duration = Duration::from_millis(60);
const LARGE_PACE: Duration = Duration::from_millis(400);

/// Where callers go.
#[derive(Debug, Clone, Copy)]
pub struct Targets {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
}

/// Callers at work until they are stopped.
pub struct Load {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Load {
    pub fn start(targets: Targets, ledger: &Arc<Ledger>) -> Load {
        let stop = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        for kind in [
            Kind::HttpUnary,
            Kind::HttpUnary,
            Kind::GrpcUnary,
            Kind::GrpcUnary,
            Kind::GrpcStream,
            Kind::HttpLarge,
            Kind::GrpcLarge,
        ] {
            let to = match kind {
                Kind::HttpUnary | Kind::HttpLarge => targets.http,
                Kind::GrpcUnary | Kind::GrpcLarge | Kind::GrpcStream => targets.grpc,
            };
            let caller = Caller {
                kind,
                ledger: ledger.clone(),
                stop: stop.subscribe(),
            };
            tasks.spawn(caller.work(to));
        }
        Load { stop, tasks }
    }

    /// Lets every call that runs end, within a limit; those that do not are left without an end.
    pub async fn stop(mut self, limit: Duration) {
        self.stop.send_replace(true);
        let _ = timeout(limit, async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.unwrap();
            }
        })
        .await;
    }
}

struct Caller {
    kind: Kind,
    ledger: Arc<Ledger>,
    stop: watch::Receiver<bool>,
}

impl Caller {
    /// One call after another until it is told to stop.
    async fn work(mut self, to: SocketAddr) {
        let mut kept = None;
        loop {
            let id = self.ledger.begin(self.kind);
            let fate = call(&self.ledger, self.kind, to, id, &mut kept, &mut self.stop).await;
            // A stream has a connection of its own.
            let again = |c: &Connection| self.kind != Kind::GrpcStream && c.serves_after(&fate);
            if !kept.as_ref().is_some_and(again) {
                kept = None;
            }
            self.ledger.end(id, fate);
            if !self.pause().await {
                return;
            }
        }
    }

    /// The pause between two calls; false when it is over.
    async fn pause(&mut self) -> bool {
        let pace = match self.kind {
            Kind::HttpLarge | Kind::GrpcLarge => LARGE_PACE,
            _ => PACE,
        };
        let _ = timeout(pace, self.stop.wait_for(|stop| *stop)).await;
        !*self.stop.borrow()
    }
}

/// A call over the connection that is kept, or over a new one where it has ended meanwhile.
async fn call(
    ledger: &Arc<Ledger>,
    kind: Kind,
    to: SocketAddr,
    id: u64,
    kept: &mut Option<Connection>,
    stop: &mut watch::Receiver<bool>,
) -> Fate {
    if kept.as_ref().is_none_or(|c| !c.serves_after(&Fate::Served)) {
        *kept = match timeout(CALLER, Connection::open(kind, to, ledger)).await {
            Ok(Ok(new)) => Some(new),
            Ok(Err(fate)) => return fate,
            Err(_) => return Fate::Hung,
        };
    }
    let connection = kept.as_mut().expect("made above");
    connection.call(kind, id, stop).await
}
