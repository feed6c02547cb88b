//! The admin port: health for kubelet, metrics for Prometheus, status for people and scripts.
//! HTTP/1.1, HTTP/2 and gRPC (`grpc.health.v1`) on one port. Read-only but for [`drain`].

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::ServiceExt;

use crate::metrics::Metrics;
use crate::relay::frames::PREFACE;
use crate::relay::{accept_failed, prepare};
use crate::scrape::{self, Scrape};
use crate::state::Shared;

pub mod drain;
mod page;
pub mod status;

/// Connections that are served at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 256;
/// Limit for a request's headers, and so for an idle connection.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

/// The body of every answer.
pub(crate) type Body = tonic::body::Body;

/// What the admin port shows.
#[derive(Debug, Clone)]
pub struct Admin {
    shared: Shared,
    metrics: Metrics,
    scrape: Scrape,
    health: HealthServer<HealthService>,
}

/// The `grpc.health.v1` services and the HTTP path that each agrees with; the empty name is
/// what a probe without a service name asks.
pub const GRPC_SERVICES: [(&str, Probe); 5] = [
    ("", Probe::Ready),
    ("livez", Probe::Live),
    ("readyz", Probe::Ready),
    ("startupz", Probe::Startup),
    ("livez/agent", Probe::Agent),
];

/// The questions of kubelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Does the process work?
    Live,
    /// Does the agent beside it? For its container's own probe.
    Agent,
    /// Should the pod get traffic?
    Ready,
    /// Has the shim started?
    Startup,
}

impl Admin {
    /// The service, and the reporter that [`report`] keeps up to date.
    pub fn new(shared: Shared, metrics: Metrics, scrape: Scrape) -> (Self, HealthReporter) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        drop(service);
        let admin = Admin {
            shared,
            metrics,
            scrape,
            health,
        };
        (admin, reporter)
    }

    async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if is_grpc {
            return match self.health.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
        }
        if request.uri().path() == "/drain" {
            return drain::answer(&self.shared, &request, peer).await;
        }
        let head = request.method() == Method::HEAD;
        if request.method() != Method::GET && !head {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
            refused
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        let query = request.uri().query().unwrap_or_default();
        let asks = |name: &str| query.split('&').any(|q| q.split('=').next() == Some(name));
        let verbose = asks("verbose");
        match request.uri().path() {
            "/livez" => self.probe(Probe::Live, verbose),
            "/livez/agent" => self.probe(Probe::Agent, verbose),
            "/readyz" => self.probe(Probe::Ready, verbose),
            "/startupz" => self.probe(Probe::Startup, verbose),
            "/metrics" if asks("merge") => {
                self.shared.remote_conditions();
                let guarded = request.headers().contains_key(scrape::GUARD);
                exposition(self.scrape.document(guarded).await)
            }
            "/metrics" => {
                // Nobody else asks for these between two scrapes.
                self.shared.remote_conditions();
                exposition(self.metrics.render())
            }
            "/status" => {
                let document = status::document(&self.shared);
                let mut response = Response::new(body(
                    serde_json::to_vec_pretty(&document).unwrap_or_default(),
                ));
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                response
            }
            "/" if page::wanted(request.headers()) || asks("fragment") => {
                let document = status::document(&self.shared);
                let clock = self.shared.clock;
                let now = clock.wall(clock.now());
                let said = match asks("fragment") {
                    true => page::fragment(&document, now),
                    false => page::whole(&document, now),
                };
                let mut response = Response::new(body(said));
                response.headers_mut().extend(page::headers());
                response
            }
            "/" => text(
                StatusCode::OK,
                "agent-shim: /livez /livez/agent /readyz /startupz (with ?verbose) /metrics (with ?merge) /status /drain\n",
            ),
            _ => text(
                StatusCode::NOT_FOUND,
                "no such path; there are /livez /livez/agent /readyz /startupz /metrics /status /drain\n",
            ),
        }
    }

    fn probe(&self, probe: Probe, verbose: bool) -> Response<Body> {
        let (ok, said) = self.shared.probe(probe, verbose);
        let status = if ok {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        text(status, said)
    }
}

/// A whole body.
pub(crate) fn body(bytes: impl Into<Bytes>) -> Body {
    Body::new(Full::new(bytes.into()).map_err(|never| match never {}))
}

/// The answer of `/metrics`.
pub(crate) fn exposition(page: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body(page));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

/// An answer in words.
pub(crate) fn text(status: StatusCode, said: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body(said));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Keeps `grpc.health.v1` in step with the HTTP probes.
pub async fn report(shared: Shared, reporter: HealthReporter) {
    loop {
        for (name, probe) in GRPC_SERVICES {
            let (ok, _) = shared.probe(probe, false);
            let status = if ok {
                tonic_health::ServingStatus::Serving
            } else {
                tonic_health::ServingStatus::NotServing
            };
            reporter.set_service_status(name, status).await;
        }
        // Changes beyond the pod are noticed and exported although nobody asks for them.
        shared.remote_conditions();
        shared.changed().await;
    }
}

/// Whether the caller shows in time what it speaks. The library waits for that without a bound,
/// and callers who say nothing would take every place, kubelet's too.
async fn begun(stream: &TcpStream, limit: Duration) -> bool {
    let shown = async {
        let mut first = [0; PREFACE.len()];
        loop {
            match stream.peek(&mut first).await {
                Ok(0) | Err(_) => return false,
                Ok(n) if n == first.len() || !PREFACE.starts_with(&first[..n]) => return true,
                // Bytes that are only peeked at wake again at once.
                Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(limit, shown).await.unwrap_or(false)
}

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
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await;
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
        prepare(&stream);
        let answer = answer.clone();
        connections.spawn(async move {
            let _place = place;
            if !begun(&stream, HEADER_LIMIT).await {
                return;
            }
            let service = service_fn(move |request| {
                let answering = answer(request, peer.ip());
                async move { Ok::<_, Infallible>(answering.await) }
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_LIMIT);
            builder.http2().max_header_list_size(16 * 1024);
            // A caller's broken connection is the caller's concern.
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_caller_that_does_not_show_what_it_speaks_gives_its_place_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (said, taken) in [
            (&b""[..], false),
            (&PREFACE[..5], false),
            (PREFACE, true),
            (b"GET", true),
        ] {
            let mut caller = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            caller.write_all(said).await.unwrap();
            let limit = Duration::from_millis(200);
            assert_eq!(begun(&stream, limit).await, taken, "{said:?}");
        }
    }
}
