//! The admin port: health for kubelet, metrics for Prometheus, status for people and scripts.
//! HTTP/1.1, HTTP/2 and gRPC (`grpc.health.v1`) on one port. Read-only but for [`drain`].

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::ServiceExt;

use crate::metrics::Metrics;
use crate::relay::guarded::Guarded;
use crate::scrape::{self, Scrape};
use crate::state::Shared;

pub mod drain;
mod page;
mod pieces;
mod port;
pub mod status;

use pieces::Pieces;
pub use port::serve;
pub(crate) use port::serve_with;

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
                let (page, turn) = self.scrape.document(guarded).await;
                // A merged page is large: it counts as under way until it has been read.
                exposition(page).map(|body| Body::new(Guarded::new(body, turn)))
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
    Body::new(Pieces(bytes.into()).map_err(|never| match never {}))
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
