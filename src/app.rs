//! The only place that knows every part: binds, wires, supervises, and stops.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::{self, Admin};
use crate::agent;
use crate::capability::gate::Gate;
use crate::capability::runner::{self, Runner};
use crate::clock::Clock;
use crate::config::models::Mend;
use crate::config::{Config, Mode};
use crate::correction::Correction;
use crate::descriptors;
use crate::doctor::watch::Watch;
use crate::drain::Drain;
use crate::endpoint::Protocol;
use crate::metrics::Metrics;
use crate::models::{self, Inspector};
use crate::observer::{self, Observer, Probed};
use crate::prestop::{self, Coordinator};
use crate::prober::Prober;
use crate::prober::resolve::Resolver;
use crate::prober::server::ServerProbe;
use crate::procfs;
use crate::relay::flights::Flights;
use crate::relay::{self, Context, RelayMetrics};
use crate::restore::{self, Memory};
use crate::scrape::Scrape;
use crate::state::{Parts, Shared};
use crate::telemetry;
use crate::worker::{self, Worker};

mod bind;
mod interpose;

use bind::Listeners;
use interpose::{hook_limit, interpose};

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
        let drain = Drain::exported(&metrics);
        let places = Protocol::ALL.map(|_| relay::places(descriptors::limit()));
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
        let scrape = Scrape::new(config.merge, watching.clone(), client.clone(), &metrics);
        let (runner, probed) = match asking(config, &metrics) {
            Asking::Never(probed) => (None, probed),
            Asking::Through(series) => {
                let parts = runner::Parts {
                    watching: watching.clone(),
                    clock,
                    client: client.clone(),
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
        let (memory, jobs) = Memory::new(
            restore::Settings {
                restore: config.models.restore && config.mode == Mode::Correct,
                coalesce: config.models.coalesce,
                models_dir: config.capabilities.models_dir.clone(),
            },
            clock,
            drain.clone(),
            &metrics,
        );
        let restorer = restore::runner::Parts {
            watching: watching.clone(),
            inventory: inventory.clone(),
            observed: observed.clone(),
            client: client.clone(),
            poke: poke.clone(),
        };
        let restorer = restore::runner::Runner::new(memory.clone(), jobs, restorer);
        let worker = Worker::new(clock);
        let watcher = worker::runner::Parts {
            worker: worker.clone(),
            proc: proc.into(),
            ports: vec![config.http_port, config.grpc_port],
            watching: watching.clone(),
            inventory: inventory.clone(),
            observed: observed.clone(),
            memory: memory.clone(),
            client,
            poke: poke.clone(),
            in_flight: drain.in_flight().clone(),
            // Nothing is sent of the shim's own where it only observes.
            canary: config
                .models
                .canary
                .clone()
                .filter(|_| config.mode == Mode::Correct),
            mend: match config.mode {
                Mode::Correct => config.models.mend,
                Mode::Observe => Mend::default(),
            },
        };
        let watcher = worker::runner::Runner::new(watcher, &metrics);
        let interposed = interpose(config, correction, clock, &metrics);
        if let Some(interposed) = &interposed {
            memory.heed_agent(interposed.seen.status.clone());
        }
        let (agent_watcher, agent) = agent::Watcher::new(
            agent::Settings {
                port: config.agent.ready_port,
                stuck_after: config.agent.stuck_after,
                targets: config.scheduler.targets.clone(),
                tls: interposed.as_ref().and_then(|i| i.tls.clone()),
            },
            agent::Parts {
                watching: watching.clone(),
                drain: drain.clone(),
                status: interposed.as_ref().map(|i| i.seen.status.clone()),
                clock,
            },
            &metrics,
        );
        let (coordinator, drains) = Coordinator::new(
            config.drain,
            hook_limit(config.drain_time),
            prestop::Parts {
                drain: drain.clone(),
                watching: watching.clone(),
                agent: agent.clone(),
                status: interposed.as_ref().map(|i| i.seen.status.clone()),
                clock,
            },
            &metrics,
        );
        let parts = Parts {
            mode: config.mode,
            clock,
            watching: watching.clone(),
            inventory,
            drain: drain.clone(),
            heartbeat,
            observed,
            capabilities: config.capabilities.policy.clone(),
            memory: memory.clone(),
            worker: worker.clone(),
            scheduler: interposed.as_ref().map(|i| i.seen.clone()),
            agent,
            drains,
            places: places.clone(),
        };
        let shared = Shared::new(parts, &metrics);
        let (admin, reporter) = Admin::new(shared.clone(), metrics.clone(), scrape);
        let [http_metrics, grpc_metrics] = RelayMetrics::new(&metrics);
        let flights = Flights::default();
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
            memory: memory.clone(),
            worker: worker.clone(),
            flights: flights.clone(),
            gate: gate.clone(),
            places: places[protocol.index()].clone(),
            in_flight: drain.in_flight().clone(),
            metrics,
        };
        let http = context(Protocol::Http, http_metrics);
        let grpc = context(Protocol::Grpc, grpc_metrics);

        let mut tasks = JoinSet::new();
        tasks.spawn(named("prober", prober.run()));
        tasks.spawn(named("inspector", inspector.run()));
        tasks.spawn(named("doctor", Watch::new(shared.clone(), &metrics).run()));
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
        tasks.spawn(named("log limit", telemetry::tell_what_was_left_out()));
        tasks.spawn(named("observer", observer.run()));
        tasks.spawn(named("agent watcher", agent_watcher.run()));
        tasks.spawn(named("drain", coordinator.run()));
        tasks.spawn(named("model restorer", restorer.run()));
        tasks.spawn(named("worker watch", watcher.run()));
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
