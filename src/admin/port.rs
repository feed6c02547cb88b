//! The listening side of the admin port: who is served, how long, and who gives way.
//!
//! Kubelet's probes come through here, and so does whoever else reaches the pod. Nobody can keep
//! them out: a new caller is always served, at the cost of the connection that has been idle, or
//! silent, for longest; only callers that wait for a drain are never cut.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::{Admin, Body};
use crate::places::{Cuts, Marker, Place, Places};
use crate::relay::greeting::begun;
use crate::relay::guarded::Guarded;
use crate::relay::{accept_failed, prepare};

/// Connections that are served at once: kubelet's, Prometheus's, a few people's, and every caller
/// that may wait for a drain.
const MAX_CONNECTIONS: usize = 128;
/// Limit for a request's headers, and so for an idle connection.
const HEADER_LIMIT: Duration = Duration::from_secs(30);
/// Calls at once on one HTTP/2 connection. Each holds its answer until it has been read.
const STREAMS: u32 = 4;
/// Largest head of a request.
const MAX_HEAD: usize = 16 * 1024;
/// What of a body may be on its way; no request has one that is read.
const WINDOW: u32 = 65_535;
/// How long an answer may wait to be read, that of a watch excepted: it may be large.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Accepts on one listener for ever.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let admin = Arc::new(admin);
    serve_with(listener, move |request, peer| {
        let admin = admin.clone();
        async move { admin.answer(request, peer).await }
    })
    .await;
}

/// As [`serve`], with answers from elsewhere.
pub(crate) async fn serve_with<A, F>(listener: TcpListener, answer: A)
where
    A: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let places = Places::new(MAX_CONNECTIONS, Cuts::OldestCall);
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    accept_failed(&error, "admin").await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        // After the accept: nobody gives way before somebody has come.
        places.room().await;
        prepare(&stream);
        connections.spawn(connection(stream, peer.ip(), places.take(), answer.clone()));
    }
}

async fn connection<A, F>(stream: TcpStream, peer: IpAddr, place: Place, answer: A)
where
    A: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    tokio::select! {
        begun = begun(&stream, HEADER_LIMIT) => if !begun {
            return;
        },
        () = place.wanted() => return,
    }
    let marker = place.marker();
    let service = service_fn(move |request: Request<Incoming>| {
        // Counts until the answer has been taken; a drain's caller is kept until it is answered.
        let call = marker.call();
        let mut waits = marker.call();
        if request.uri().path() == "/drain" {
            waits.keep();
        }
        let watches = request.uri().path() == WATCH;
        let marker = marker.clone();
        let answering = answer(request, peer);
        async move {
            let response = answering.await;
            drop(waits);
            let overdue = (!watches).then(|| Overdue::new(marker));
            Ok::<_, Infallible>(response.map(|body| Guarded::new(body, (call, overdue))))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    // A caller's broken connection is the caller's concern.
    tokio::select! {
        _ = served.as_mut() => return,
        () = place.wanted() => {}
        // HTTP/2 has no such limit of its own.
        () = place.idle(HEADER_LIMIT) => {}
    }
    served.as_mut().graceful_shutdown();
    // Polled once, so that the caller is told; whoever needs the place is not kept waiting.
    std::future::poll_fn(|cx| {
        let _ = served.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}

/// Ends the connection of a caller that does not read its answer.
struct Overdue(AbortHandle);

impl Overdue {
    fn new(marker: Marker) -> Self {
        let waiting = tokio::spawn(async move {
            sleep(ANSWER_LIMIT).await;
            marker.end();
        });
        Overdue(waiting.abort_handle())
    }
}

impl Drop for Overdue {
    fn drop(&mut self) {
        self.0.abort();
    }
}
