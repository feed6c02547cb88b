//! The admission webhook: puts the shim into pods that ask for it, at the moment they are made.
//!
//! The composition root of `agent-shim webhook`, a process of its own beside the sidecar. The
//! API server's questions come over HTTPS to [`serve`], through [`answer`] to [`decide`], which
//! is pure; health and metrics are on a plain port. It changes nothing but its answer, reads
//! nothing from the cluster, and never blocks a pod because of its own fault.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::admin::{self, Body, text};
use crate::dual_stack;
use crate::metrics::Metrics;
use crate::readiness::{self, Condition};

pub mod answer;
pub mod certificate;
pub mod decide;
pub mod limits;
pub mod metrics;
pub mod overrides;
pub mod review;
pub mod serve;

use answer::Service;
use certificate::{Certificate, Files};
use decide::{Injector, Policy};
use limits::Limits;
use metrics::Series;
use serve::Port;

/// Everything that the webhook is told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses of both ports; `::` means every address of either family.
    pub listen: Vec<IpAddr>,
    /// The HTTPS port; 0 takes a free one.
    pub port: u16,
    /// The port of health and metrics; 0 takes a free one.
    pub ops_port: u16,
    /// Certificate and key.
    pub files: Files,
    /// What is injected into which pods.
    pub policy: Policy,
    /// What one caller may take.
    pub limits: Limits,
    /// How long it goes on after it was told to stop, not ready, until no caller is sent here.
    pub stop_delay: Duration,
    /// How long requests may take after that.
    pub stop_limit: Duration,
}

/// Why the webhook did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port could not be taken.
    #[error(
        "cannot listen on {address} for {purpose} ({flag}): {source}; another process has that port, or the address is not this pod's"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What it is for.
        purpose: &'static str,
        /// The flag that sets it.
        flag: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A task that must run for ever has ended.
    #[error("a task of the webhook has ended: {0}")]
    Task(String),
}

/// The addresses that are really bound.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    /// HTTPS.
    pub review: Vec<SocketAddr>,
    /// Health and metrics.
    pub ops: Vec<SocketAddr>,
}

/// A webhook that has its ports and is ready to run.
#[derive(Debug)]
pub struct Webhook {
    bound: Bound,
    metrics: Metrics,
    stop_delay: Duration,
    stop_limit: Duration,
    draining: watch::Sender<bool>,
    stopping: watch::Sender<bool>,
    ports: JoinSet<()>,
    helpers: JoinSet<()>,
}

impl Webhook {
    /// Binds both ports and starts every task. Must be called inside a tokio runtime.
    pub fn start(settings: Settings, injector: Injector) -> Result<Webhook, Error> {
        let mut bound = Bound::default();
        let listen = &settings.listen;
        let review = bind(listen, settings.port, REVIEW, &mut bound.review)?;
        let ops = bind(listen, settings.ops_port, OPS, &mut bound.ops)?;
        let metrics = Metrics::new();
        let series = Series::new(&metrics);
        let certificate = Certificate::new(settings.files, series.clone());
        let (draining, drained) = watch::channel(false);
        let (stopping, stopped) = watch::channel(false);
        let health = Health {
            certificate: certificate.clone(),
            draining: drained,
            series: series.clone(),
            metrics: metrics.clone(),
        };
        // Before the first caller, so that a broken pair shows in the log at once.
        health.conditions();
        let service = Service::new(
            settings.policy,
            injector,
            settings.limits.body,
            series.clone(),
        );
        let port = Port::new(service, certificate, settings.limits, series);
        let (mut ports, mut helpers) = (JoinSet::new(), JoinSet::new());
        for listener in review {
            ports.spawn(port.clone().serve(listener, stopped.clone()));
        }
        for listener in ops {
            let health = health.clone();
            helpers.spawn(admin::serve_with(listener, move |request, _| {
                std::future::ready(health.answer(&request))
            }));
        }
        helpers.spawn(async move {
            loop {
                sleep(certificate::INTERVAL).await;
                health.conditions();
            }
        });
        tracing::info!(
            review = joined(&bound.review),
            ops = joined(&bound.ops),
            "listening"
        );
        Ok(Webhook {
            bound,
            metrics,
            stop_delay: settings.stop_delay,
            stop_limit: settings.stop_limit,
            draining,
            stopping,
            ports,
            helpers,
        })
    }

    /// The addresses that are really bound.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// The registry behind `/metrics`.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Runs until `stop` completes; then it is not ready, serves on for the delay, and ends when
    /// every request has been answered or the limit is over. The caller may drop this future to
    /// stop at once.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        tokio::select! {
            () = stop => {}
            ended = self.ports.join_next() => return Err(task_ended(ended)),
            ended = self.helpers.join_next() => return Err(task_ended(ended)),
        }
        // Receivers live in the tasks; without them there is nobody to tell.
        let _ = self.draining.send(true);
        tracing::info!(delay = ?self.stop_delay, "stopping: not ready; requests are still answered");
        tokio::select! {
            () = sleep(self.stop_delay) => {}
            ended = self.ports.join_next() => return Err(task_ended(ended)),
            ended = self.helpers.join_next() => return Err(task_ended(ended)),
        }
        let _ = self.stopping.send(true);
        let all = timeout(self.stop_limit, async {
            while self.ports.join_next().await.is_some() {}
        });
        match all.await {
            Ok(()) => tracing::info!("stopped: every connection has ended"),
            Err(_) => tracing::warn!("stopped: the limit is over, connections are cut"),
        }
        Ok(())
    }
}

/// What the plain port shows. Cheap to clone.
#[derive(Debug, Clone)]
struct Health {
    certificate: Certificate,
    draining: watch::Receiver<bool>,
    series: Series,
    metrics: Metrics,
}

impl Health {
    /// What readiness rests on, each in words; the gauges are brought up to date.
    fn conditions(&self) -> [Condition; 2] {
        let condition = |name, (holds, reason)| Condition {
            name,
            holds,
            reason,
            since: Duration::ZERO,
        };
        let stopping = match *self.draining.borrow() {
            true => (false, "the webhook was told to stop".into()),
            false => (true, "the webhook has not been told to stop".into()),
        };
        let all = [
            condition("certificate", self.certificate.usable()),
            condition("not-draining", stopping),
        ];
        for c in &all {
            let gauge = self.series.conditions.with_label_values(&[c.name]);
            gauge.set(i64::from(c.holds));
        }
        all
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let query = request.uri().query().unwrap_or_default();
                let verbose = query.split('&').any(|q| q == "verbose");
                let conditions = self.conditions();
                let (status, ok) = match readiness::ready(&conditions) {
                    true => (StatusCode::OK, true),
                    false => (StatusCode::SERVICE_UNAVAILABLE, false),
                };
                text(status, readiness::body("readyz", &conditions, ok, verbose))
            }
            "/metrics" => {
                self.conditions();
                admin::exposition(self.metrics.render())
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "no such path; there are /livez /readyz (with ?verbose) /metrics\n",
            ),
        }
    }
}

const REVIEW: (&str, &str) = ("admission reviews", "--port");
const OPS: (&str, &str) = ("health and metrics", "--ops-port");

fn bind(
    addresses: &[IpAddr],
    port: u16,
    (purpose, flag): (&'static str, &'static str),
    bound: &mut Vec<SocketAddr>,
) -> Result<Vec<TcpListener>, Error> {
    let mut listeners = Vec::new();
    for ip in addresses {
        let (address, result) = dual_stack::listen(SocketAddr::new(*ip, port), purpose);
        let failed = |source| Error::Bind {
            address,
            purpose,
            flag,
            source,
        };
        let listener = result.map_err(failed)?;
        bound.push(listener.local_addr().map_err(failed)?);
        listeners.push(listener);
    }
    Ok(listeners)
}

fn joined(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    texts.join(",")
}

fn task_ended(ended: Option<Result<(), tokio::task::JoinError>>) -> Error {
    Error::Task(match ended {
        Some(Ok(())) => "it returned although it should run for ever".into(),
        Some(Err(error)) => error.to_string(),
        None => "none was started".into(),
    })
}
