//! The only place that knows every part: binds, wires, supervises, and stops.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol as Transport, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::{self, Admin};
use crate::capability::gate::Gate;
use crate::capability::runner::{self, Runner};
use crate::clock::Clock;
use crate::config::{Config, Mode, ProbeConfig};
use crate::correction::Correction;
use crate::drain::Drain;
use crate::endpoint::{Candidate, Protocol};
use crate::health::{Outcome, Reason};
use crate::metrics::Metrics;
use crate::models::{self, Inspector};
use crate::observer::{self, Observer, Probed};
use crate::prober::resolve::Resolver;
use crate::prober::{self, Probe, ProbeFuture, Prober, Report};
use crate::relay::{self, Context, RelayMetrics};
use crate::state::{Parts, Scheduler, Shared};
use crate::subscription::{self, Interposer};
use crate::{procfs, registration, tls};

/// Why the shim did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port could not be taken.
    #[error(
        "cannot listen on {address} for {purpose} ({variable}): {source}; another process of this pod has that port, or the address is not this pod's"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What it is for.
        purpose: &'static str,
        /// The variable that sets it.
        variable: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The HTTP client of the inspector could not be made.
    #[error("cannot make the HTTP client that reads the server's inventory: {0}")]
    Client(#[from] reqwest::Error),
    /// A task that must run for ever has ended.
    #[error("the task {task} has ended: {why}")]
    Task {
        /// Which.
        task: &'static str,
        /// Why.
        why: String,
    },
}

/// The addresses that are really bound.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    /// Admin.
    pub admin: Vec<SocketAddr>,
    /// HTTP relay.
    pub relay_http: Vec<SocketAddr>,
    /// gRPC relay.
    pub relay_grpc: Vec<SocketAddr>,
    /// The agent's way to the scheduler; empty where none is configured.
    pub agent: Vec<SocketAddr>,
}

/// A shim that has its ports and is ready to run.
#[derive(Debug)]
pub struct App {
    bound: Bound,
    drain: Drain,
    drain_time: Duration,
    tasks: JoinSet<&'static str>,
    metrics: Metrics,
}

impl App {
    /// Binds every port and starts every task. Nothing is called started before all ports are
    /// bound; a taken port is an error that names it. Must be called inside a tokio runtime.
    pub fn start(config: &Config) -> Result<App, Error> {
        Self::start_seeing(config, Path::new(procfs::PROC))
    }

    /// As [`App::start`], with another folder than `/proc` to look for the server's processes in.
    pub fn start_seeing(config: &Config, proc: &Path) -> Result<App, Error> {
        let listeners = Listeners::bind(config)?;
        let bound = listeners.bound.clone();
        let clock = Clock::start();
        let metrics = Metrics::new();
        let drain = Drain::default();
        let client = models::client()?;
        let probe = ServerProbe {
            limits: config.probe,
            resolver: Resolver::new(config.probe.interval),
        };
        let (prober, watching) = Prober::new(config, probe, clock, &metrics);
        let (inspector, poke, inventory) = Inspector::new(
            watching.clone(),
            clock,
            config.index_interval,
            client.clone(),
            config.probe.connect_timeout,
            &metrics,
        );
        let (runner, probed) = match asking(config, &metrics) {
            Asking::Never(probed) => (None, probed),
            Asking::Through(series) => {
                let parts = runner::Parts {
                    watching: watching.clone(),
                    clock,
                    client,
                    models_dir: config.capabilities.models_dir.clone(),
                    gate: Gate::default(),
                    drain: drain.clone(),
                    poke: poke.clone(),
                };
                let gate = parts.gate.clone();
                let (runner, probed) = Runner::new(parts, series);
                (Some((runner, gate)), probed)
            }
        };
        let gate = runner.as_ref().map(|(_, gate)| gate.clone());
        // The slowest probe round of a working process: a look-up, a connection, two answers.
        let heartbeat = 10 * config.probe.interval + Duration::from_secs(10);
        let (observer, observed) = Observer::new(
            observer::Settings {
                proc: proc.into(),
                ..observer::Settings::of(config)
            },
            inventory.clone(),
            probed,
            clock,
            &metrics,
        );
        let (correction, keeper) = Correction::new(
            config.memory.policy,
            config.capabilities.policy.clone(),
            watching.clone(),
            observed.clone(),
        );
        let interposed = interpose(config, correction, clock, &metrics);
        let parts = Parts {
            mode: config.mode,
            clock,
            watching: watching.clone(),
            inventory,
            drain: drain.clone(),
            heartbeat,
            observed,
            capabilities: config.capabilities.policy.clone(),
            scheduler: interposed.as_ref().map(|i| i.seen.clone()),
        };
        let shared = Shared::new(parts, &metrics);
        let (admin, reporter) = Admin::new(shared.clone(), metrics.clone());
        let [http_metrics, grpc_metrics] = RelayMetrics::new(&metrics);
        let context = |protocol: Protocol, metrics: RelayMetrics| Context {
            protocol,
            mode: config.mode,
            watching: watching.clone(),
            clock,
            grace: config.outage_grace,
            live_hold: config.live_hold,
            connect_timeout: config.probe.connect_timeout,
            header_timeout: config.header_timeout,
            poke: poke.clone(),
            gate: gate.clone(),
            metrics,
        };
        let http = context(Protocol::Http, http_metrics);
        let grpc = context(Protocol::Grpc, grpc_metrics);

        let mut tasks = JoinSet::new();
        tasks.spawn(named("prober", prober.run()));
        tasks.spawn(named("inspector", inspector.run()));
        tasks.spawn(named("health reporter", admin::report(shared, reporter)));
        for listener in listeners.admin {
            tasks.spawn(named("admin", admin::serve(listener, admin.clone())));
        }
        for listener in listeners.relay_http {
            let relay = relay::serve(listener, http.clone(), drain.clone());
            tasks.spawn(named("HTTP relay", relay));
        }
        for listener in listeners.relay_grpc {
            let relay = relay::serve(listener, grpc.clone(), drain.clone());
            tasks.spawn(named("gRPC relay", relay));
        }
        tasks.spawn(named("observer", observer.run()));
        if let Some((runner, _)) = runner {
            tasks.spawn(named("probe model", runner.run()));
        }
        let figures = interposed.as_ref().map(|i| i.reader.metrics());
        tasks.spawn(named("correction", keeper.showing(figures).run()));
        match interposed {
            None => tracing::warn!(
                "SHIM_SCHEDULER is not set: the interposer is off, what the agent reports is not corrected"
            ),
            Some(interposed) => {
                let interposer = interposed.interposer;
                tasks.spawn(named("registration", interposed.reader.run()));
                tasks.spawn(named("subscription keeper", interposer.clone().tend()));
                for listener in listeners.agent {
                    let serving = interposer.clone().serve(listener, drain.clone());
                    tasks.spawn(named("interposer", serving));
                }
            }
        }
        tracing::info!(
            admin = joined(&bound.admin),
            relay_http = joined(&bound.relay_http),
            relay_grpc = joined(&bound.relay_grpc),
            agent = joined(&bound.agent),
            "listening"
        );
        Ok(App {
            bound,
            drain,
            drain_time: config.drain_time,
            tasks,
            metrics,
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

    /// Runs until `stop` completes and everything that was under way has ended, or the drain
    /// time is over. A task that ends or panics before is an error. The caller may drop this
    /// future to stop at once.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        tokio::select! {
            () = stop => {}
            ended = self.tasks.join_next() => return Err(task_ended(ended)),
        }
        self.drain.begin();
        let running = self.drain.running();
        tracing::info!(running, limit = ?self.drain_time, "stopping: not ready; connections are carried on");
        tokio::select! {
            all = self.drain.wait(self.drain_time) => if all {
                tracing::info!("stopped: every connection has ended");
            } else {
                let running = self.drain.running();
                tracing::warn!(running, "stopped: the drain time is over, connections are cut");
            },
            ended = self.tasks.join_next() => return Err(task_ended(ended)),
        }
        Ok(())
    }
}

/// Whether the server is asked through the probe model.
enum Asking {
    Never(Probed),
    Through(runner::Series),
}

fn asking(config: &Config, metrics: &Metrics) -> Asking {
    let series = runner::Series::new(metrics);
    match (config.capabilities.probe, config.mode) {
        (true, Mode::Correct) => Asking::Through(series),
        // Nobody need wait for an answer that does not come.
        (true, mode) => {
            let why = format!("SHIM_MODE is {}", mode.as_str());
            Asking::Never(watch::channel(Some(Arc::new(Err(why)))).1)
        }
        (false, _) => Asking::Never(watch::channel(None).1),
    }
}

/// The agent's way to the scheduler, and the reader of what the scheduler believes.
struct Interposed {
    interposer: Interposer,
    reader: registration::Reader,
    seen: Scheduler,
}

fn interpose(
    config: &Config,
    correction: Correction,
    clock: Clock,
    metrics: &Metrics,
) -> Option<Interposed> {
    let scheduler = &config.scheduler;
    if scheduler.targets.is_empty() {
        return None;
    }
    let tls = scheduler
        .tls
        .clone()
        .map(|files| tls::Client::new(files, metrics));
    let settings = subscription::Settings {
        mode: config.mode,
        targets: scheduler.targets.clone(),
        tls: tls.clone(),
        hold: scheduler.subscribe_hold,
        resubscribe_min_interval: scheduler.resubscribe_min_interval,
        settle: subscription::pace::SETTLE,
        drain_limit: drain_limit(config.drain_time),
    };
    let (interposer, status) = Interposer::new(settings, Arc::new(correction), clock, metrics);
    let target = scheduler.status.clone();
    let (reader, registration) =
        registration::Reader::new(target, tls, status.clone(), clock, metrics);
    Some(Interposed {
        interposer,
        reader,
        seen: Scheduler {
            status,
            registration,
        },
    })
}

/// The scheduler's time for a drain: so much less than the shim's own that the answer still arrives.
fn drain_limit(drain_time: Duration) -> Duration {
    let limit = drain_time - (drain_time / 10).min(Duration::from_secs(10));
    // The agent may drain although the shim itself stops at once.
    limit.max(Duration::from_secs(5))
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

fn task_ended(ended: Option<Result<&'static str, tokio::task::JoinError>>) -> Error {
    match ended {
        Some(Ok(task)) => Error::Task {
            task,
            why: "it returned although it should run for ever".into(),
        },
        Some(Err(error)) => Error::Task {
            task: "unknown",
            why: error.to_string(),
        },
        None => Error::Task {
            task: "any",
            why: "none was started".into(),
        },
    }
}

fn joined(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    texts.join(",")
}

#[derive(Debug, Default)]
struct Listeners {
    bound: Bound,
    admin: Vec<TcpListener>,
    relay_http: Vec<TcpListener>,
    relay_grpc: Vec<TcpListener>,
    agent: Vec<TcpListener>,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, Error> {
        let mut all = Listeners::default();
        all.relay_http = bind_all(
            &config.relay_listen,
            config.relay_http_port,
            "the HTTP relay",
            "SHIM_RELAY_HTTP_PORT",
            &mut all.bound.relay_http,
        )?;
        all.relay_grpc = bind_all(
            &config.relay_listen,
            config.relay_grpc_port,
            "the gRPC relay",
            "SHIM_RELAY_GRPC_PORT",
            &mut all.bound.relay_grpc,
        )?;
        if !config.scheduler.targets.is_empty() {
            all.agent = bind_all(
                &config.relay_listen,
                config.scheduler.agent_port,
                "the agent's way to the scheduler",
                "SHIM_AGENT_PORT",
                &mut all.bound.agent,
            )?;
        }
        all.admin = bind_all(
            &config.admin_listen,
            config.admin_port,
            "admin",
            "SHIM_ADMIN_PORT",
            &mut all.bound.admin,
        )?;
        Ok(all)
    }
}

fn bind_all(
    addresses: &[IpAddr],
    port: u16,
    purpose: &'static str,
    variable: &'static str,
    bound: &mut Vec<SocketAddr>,
) -> Result<Vec<TcpListener>, Error> {
    let mut listeners = Vec::new();
    for ip in addresses {
        let mut address = SocketAddr::new(*ip, port);
        let mut result = listen(address);
        // `::` stands for "every address"; without IPv6 that is 0.0.0.0.
        let no_ipv6 = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
            ) || error.raw_os_error() == Some(EAFNOSUPPORT)
        };
        if *ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && result.as_ref().is_err_and(no_ipv6) {
            tracing::info!(purpose, "no IPv6 here: listening on 0.0.0.0");
            address.set_ip(Ipv4Addr::UNSPECIFIED.into());
            result = listen(address);
        }
        let bind_error = |source| Error::Bind {
            address,
            purpose,
            variable,
            source,
        };
        let listener = result.map_err(bind_error)?;
        bound.push(listener.local_addr().map_err(bind_error)?);
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Linux's "address family not supported".
const EAFNOSUPPORT: i32 = 97;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Transport::TCP),
    )?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // Both families on one socket, whatever the system's default is.
        socket.set_only_v6(false)?;
    }
    // Only skips TIME_WAIT; two live listeners on one port still conflict, and must.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Whether the outcome of one address of a name stands for the name rather than that of an earlier
/// one: a server that is silent is there, whatever is refused beside it, and slow is not dead.
fn says_more(new: &Outcome, old: &Outcome) -> bool {
    let rank = |outcome: &Outcome| match outcome {
        Outcome::Healthy { .. } => 2,
        Outcome::Unhealthy { reason, .. } if reason.is_silence() => 1,
        Outcome::Unhealthy { .. } => 0,
    };
    rank(new) >= rank(old)
}

/// The real probes: resolve, then ask each address until one is healthy.
struct ServerProbe {
    limits: ProbeConfig,
    resolver: Resolver,
}

/// Addresses of one name that are asked in one probe.
const MAX_ADDRESSES: usize = 4;

impl Probe for ServerProbe {
    fn probe(&self, candidate: &Candidate) -> ProbeFuture {
        let (limits, resolver) = (self.limits, self.resolver.clone());
        let candidate = candidate.clone();
        Box::pin(async move {
            let addresses = match resolver.resolve(&candidate).await {
                Ok(addresses) => addresses,
                Err(detail) => {
                    return Report {
                        outcome: Outcome::Unhealthy {
                            reason: Reason::Dns,
                            detail,
                        },
                        address: None,
                    };
                }
            };
            let mut last: Option<Report> = None;
            for address in addresses.into_iter().take(MAX_ADDRESSES) {
                let outcome = match candidate.protocol {
                    Protocol::Http => prober::http::probe(address, &limits).await,
                    Protocol::Grpc => prober::grpc::probe(address, &limits).await,
                };
                let healthy = matches!(outcome, Outcome::Healthy { .. });
                if last
                    .as_ref()
                    .is_none_or(|l| says_more(&outcome, &l.outcome))
                {
                    last = Some(Report {
                        outcome,
                        address: Some(address),
                    });
                }
                if healthy {
                    break;
                }
            }
            last.unwrap_or_else(|| Report {
                outcome: Outcome::Unhealthy {
                    reason: Reason::Dns,
                    detail: "the name has no address".into(),
                },
                address: None,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_task(task: impl Future<Output = ()> + Send + 'static) -> App {
        let mut tasks = JoinSet::new();
        tasks.spawn(named("frail", task));
        App {
            bound: Bound::default(),
            drain: Drain::default(),
            drain_time: Duration::from_secs(1),
            tasks,
            metrics: Metrics::new(),
        }
    }

    #[test]
    fn a_silent_address_of_a_name_stands_before_one_that_refuses() {
        let of = |reason| Outcome::Unhealthy {
            reason,
            detail: String::new(),
        };
        let (silent, refused) = (of(Reason::ResponseTimeout), of(Reason::Refused));
        assert!(says_more(&silent, &refused) && !says_more(&refused, &silent));
        let healthy = Outcome::Healthy {
            ready: None,
            latency: Duration::ZERO,
        };
        assert!(says_more(&healthy, &silent) && !says_more(&silent, &healthy));
    }

    #[tokio::test(start_paused = true)]
    async fn an_essential_task_that_ends_or_panics_ends_the_process() {
        let ended = with_task(async {}).run(std::future::pending()).await;
        let text = ended.unwrap_err().to_string();
        assert!(
            text.contains("frail") && text.contains("should run for ever"),
            "{text}"
        );
        let panicked = with_task(async { panic!("on purpose") });
        let text = panicked
            .run(std::future::pending())
            .await
            .unwrap_err()
            .to_string();
        assert!(text.contains("on purpose"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_essential_task_that_ends_during_a_drain_is_an_error_too() {
        let drain_time = Duration::from_secs(60);
        let mut app = with_task(tokio::time::sleep(Duration::from_millis(1500)));
        app.drain_time = drain_time;
        let _busy = app.drain.busy();
        assert!(app.run(async {}).await.is_err());
    }
}
