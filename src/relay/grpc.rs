//! The gRPC relay: a connection is judged by its first call.
//!
//! The agent keeps its control calls (health, repository) and its data calls on separate
//! connections to one port. A data connection is carried to the server as bytes. A control
//! connection is ended here, in the shim's own HTTP/2 service, which can answer health itself.
//! A data connection that comes while the server is down goes there too, is answered honestly,
//! and is told to come again (GOAWAY) as soon as the server is up.

use std::pin::Pin;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::connect::connect;
use super::greeting::greet;
use super::http::observe;
use super::opening::{NotOpened, Opening, open};
use super::splice::{Ended, Far, Http2, Splice};
use super::{Context, End, local};
use crate::config::Mode;
use crate::drain::in_flight::InFlight;
use crate::endpoint::Protocol;
use crate::health::State;
use crate::places::{Call, Marker, Place};
use crate::view::Usable;

/// How long a caller that has to give way may take to go, or to begin a call that is then served.
const FAREWELL: Duration = Duration::from_millis(500);

/// Completes when the caller is to take a new connection. Boxed: it is handed down several futures,
/// each of which would be larger by its size for as long as the connection is open.
type Moved<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A connection from its first call on.
type Onward<'a> = Pin<Box<dyn Future<Output = End> + Send + 'a>>;

/// Whether a connection with this first call is a control connection.
pub fn is_control(path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.rsplit_once('/')) else {
        return false;
    };
    match service {
        "inference.GRPCInferenceService" => matches!(
            method,
            "ServerLive"
                | "ServerReady"
                | "ServerMetadata"
                | "RepositoryIndex"
                | "RepositoryModelLoad"
                | "RepositoryModelUnload"
        ),
        "inference.model_repository.ModelRepositoryService" => true,
        _ => false,
    }
}

/// Serves one caller's connection until it ends.
pub async fn serve(stream: TcpStream, context: &Context, place: &Place) -> End {
    if context.mode == Mode::Observe {
        return Box::pin(observe(stream, context, place)).await;
    }
    // Each phase is boxed by itself: an open connection keeps only what its own needs.
    let (opening, call) = match Box::pin(opened(stream, context, place)).await {
        Ok(both) => both,
        Err(end) => return end,
    };
    let told = Notify::new();
    let marker = place.marker();
    let on = Box::pin(onward(opening, context, marker, &told)).await;
    // From here on its frames tell which calls run.
    drop(call);
    tokio::select! {
        end = on => end,
        () = gives_way(place, &told) => End::Closed,
    }
}

/// Completes when the connection has given way to another: nothing ran on it, its caller was told
/// to take a new one, and has begun nothing more.
async fn gives_way(place: &Place, told: &Notify) {
    place.wanted().await;
    told.notify_one();
    // Of which its caller learns first: it may have been idle for long.
    sleep(FAREWELL).await;
    place.idle(FAREWELL).await;
}

/// The caller's connection up to its first call.
async fn opened(
    stream: TcpStream,
    context: &Context,
    place: &Place,
) -> Result<(Box<Opening>, Call), End> {
    let (stream, before) = Box::pin(greet(stream, context, place)).await?;
    let opened = tokio::select! {
        opened = open(stream, before, context.header_timeout) => opened,
        () = place.wanted() => Err(NotOpened::Closed),
    };
    let call = place.marker().call();
    match opened {
        Ok(opening) => Ok((Box::new(opening), call)),
        Err(NotOpened::Closed) => Err(End::Closed),
        Err(NotOpened::Malformed) => Err(End::Malformed),
        Err(NotOpened::Timeout) => Err(End::Timeout),
    }
}

/// What carries the connection from its first call on.
async fn onward<'a>(
    opening: Box<Opening>,
    context: &'a Context,
    marker: Marker,
    told: &'a Notify,
) -> Onward<'a> {
    if is_control(&opening.path) {
        return Box::pin(here(*opening, context, marker, Box::pin(told.notified())));
    }
    let Ok(connected) = connect(context).await else {
        let moved = Box::pin(async {
            tokio::select! {
                _ = context.until(|view| view.usable(Protocol::Grpc) == Usable::Up) => {}
                () = told.notified() => {}
            }
        });
        return Box::pin(here(*opening, context, marker, moved));
    };
    let index = connected.index;
    // A candidate that was down when the caller got through is given the chance to be
    // found up first: moving the caller at once would only bring it back here.
    let moved = Box::pin(async move {
        if context.view().of(Protocol::Grpc)[index].health.state == State::Down {
            let risen = context.until(move |view| {
                view.of(Protocol::Grpc)
                    .get(index)
                    .is_none_or(|e| e.health.state != State::Down)
            });
            risen.await;
        }
        let fallen = context.until(move |view| {
            view.of(Protocol::Grpc)
                .get(index)
                .is_some_and(|e| e.health.state == State::Down)
        });
        tokio::select! {
            _ = fallen => {}
            () = told.notified() => {}
        }
    });
    let far = Far::Server(connected.stream);
    let opened = context.metrics.calls.clone();
    let carried = carry(*opening, far, context, marker, moved, opened);
    Box::pin(async move { carried.await.into() })
}

/// Ends the connection in the shim's own service.
async fn here(opening: Opening, context: &Context, marker: Marker, moved: Moved<'_>) -> End {
    let (near, far) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => {
            tracing::warn!(%error, "cannot make a socket pair for a control connection");
            return End::Unavailable;
        }
    };
    let service = local::serve(far, context.clone());
    // Calls are counted by the service, which knows which of them go on to the server.
    let uncounted =
        prometheus::IntCounter::new("uncounted", "not exported").expect("the name is well formed");
    let carried = carry(opening, Far::Local(near), context, marker, moved, uncounted);
    tokio::pin!(service, carried);
    tokio::select! {
        end = &mut carried => end.into(),
        () = &mut service => carried.await.into(),
    }
}

/// Whether the server's worker answers this call: of the rest, and of health, its main process does.
fn is_inference(path: &str) -> bool {
    let method = path.strip_prefix("/inference.GRPCInferenceService/");
    matches!(method, Some("ModelInfer" | "ModelStreamInfer"))
}

/// Not an async function: that would keep its arguments for as long as the connection is open.
fn carry<'a>(
    opening: Opening,
    far: Far,
    context: &'a Context,
    marker: Marker,
    moved: Moved<'a>,
    opened: prometheus::IntCounter,
) -> impl Future<Output = Ended> + Send + use<'a> {
    let metrics = &context.metrics;
    // The shim's own service counts its calls itself, since it knows what they are.
    let in_flight = match far {
        Far::Server(_) => context.in_flight.clone(),
        Far::Local(_) => InFlight::default(),
    };
    let infers = is_inference(&opening.path);
    metrics.received.inc_by(opening.to_server.len() as u64);
    let splice = Splice {
        caller: opening.caller,
        far,
        to_server: opening.to_server,
        to_caller: opening.to_caller,
        http2: Some(Http2 {
            in_flight,
            marker: Some(marker),
            from_caller: opening.from_caller,
            from_server: opening.from_server,
            pings: opening.pings,
            calls: opening.calls,
            opened,
            infers,
        }),
        received: metrics.received.clone(),
        sent: metrics.sent.clone(),
    };
    splice.run(moved)
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Reset => End::Reset,
            Ended::Caller | Ended::Far => End::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{carry, is_control, is_inference, serve};

    /// The size of what a function's future keeps while it waits.
    fn of_one<A, F>(_: fn(A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_open_connection_keeps_little() {
        // What a thousand idle connections cost is these, two registrations and little else.
        let serving = of_one(|(stream, context, place)| serve(stream, context, place));
        let carrying = of_one(|(a, b, c, d, e, f)| carry(a, b, c, d, e, f));
        assert!(serving <= 640 && carrying <= 2560, "{serving} {carrying}");
    }

    #[test]
    fn health_and_repository_are_control_and_all_else_is_data() {
        for (path, control) in [
            ("/inference.GRPCInferenceService/ServerLive", true),
            ("/inference.GRPCInferenceService/RepositoryModelLoad", true),
            (
                "/inference.model_repository.ModelRepositoryService/RepositoryIndex",
                true,
            ),
            ("/inference.GRPCInferenceService/ModelInfer", false),
            ("/inference.GRPCInferenceService/ModelReady", false),
            ("/inference.GRPCInferenceService/Later", false),
            ("/grpc.health.v1.Health/Check", false),
            ("/", false),
            ("", false),
        ] {
            assert_eq!(is_control(path), control, "{path}");
            assert_eq!(is_inference(path), path.ends_with("ModelInfer"), "{path}");
        }
    }
}
