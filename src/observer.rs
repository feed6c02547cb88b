//! The loop that looks at the server's processes: memory, cgroup, installed distributions.
//!
//! Thin: [`crate::process`], [`crate::capacity`] and [`crate::capability`] read and decide. A
//! look every few seconds costs a handful of small reads; the distributions are read again only
//! when the main process is another one, or hourly. Nothing here fails: what cannot be read is a
//! reason in what is published.
//!
//! Wiring: `Observer::new(...)` beside the prober, `run` in the task set, and the receiver to the
//! interposer and to status. The interposer waits for `looks > 0` and `capabilities.settled`; it
//! asks [`Observed::may_differ_for_the_scheduler`] before it thinks of subscribing again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::capability;
use crate::capacity;
use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::models::Inventory;
use crate::process::Server;
use crate::procfs;

mod gather;
mod series;
mod sources;
#[cfg(test)]
mod tests;

use gather::Gatherer;
use series::Series;

/// Time between two looks once the server is there.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time between two looks while it is expected to appear.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);
/// How long it is expected: most pods do not share their process namespace, and a look for
/// nothing every second would be all that an idle shim does.
const SEARCH_TIME: Duration = Duration::from_secs(120);

/// What is to be looked at.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `/proc`, or a test's own.
    pub proc: PathBuf,
    /// The server's ports, by which it is found when its name does not tell.
    pub ports: Vec<u16>,
    /// Capacity.
    pub memory: crate::config::MemoryConfig,
    /// Capabilities.
    pub capabilities: crate::config::CapabilitiesConfig,
}

impl Settings {
    /// The settings of a configuration.
    pub fn of(config: &Config) -> Self {
        Settings {
            proc: PathBuf::from(procfs::PROC),
            ports: vec![config.http_port, config.grpc_port],
            memory: config.memory,
            capabilities: config.capabilities.clone(),
        }
    }
}

/// What the server uses at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Live {
    /// Resident memory of the process tree; shared pages count once for each process.
    pub rss: Option<u64>,
    /// Proportional memory of the process tree, where permitted; read once a minute.
    pub pss: Option<u64>,
    /// Why there is no proportional memory.
    pub pss_reason: Option<&'static str>,
    /// The cgroup's use, page cache included.
    pub cgroup_current: Option<u64>,
    /// The most that the cgroup ever used.
    pub cgroup_peak: Option<u64>,
    /// Which cgroup interface answered.
    pub cgroup_version: Option<&'static str>,
}

/// Everything that one look found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The memory for models.
    pub capacity: capacity::Observation,
    /// What the server can run.
    pub capabilities: capability::Observation,
    /// What it uses.
    pub live: Live,
    /// The server's processes.
    pub server: Option<Server>,
    /// Why they were not found, in words.
    pub no_server: Option<String>,
    /// How many looks there have been; 0 before the first.
    pub looks: u64,
    /// When, since the start of the process.
    pub at: Duration,
}

impl Observed {
    /// Whether the scheduler might have to be told something else. A quick test: whether it
    /// must is for [`capacity::report`] and [`capability::reconcile`] to say.
    pub fn may_differ_for_the_scheduler(&self, other: &Observed) -> bool {
        self.capacity.bytes != other.capacity.bytes
            || self.capacity.ceiling != other.capacity.ceiling
            || self.capacity.baseline != other.capacity.baseline
            || !self.capabilities.says_the_same_as(&other.capabilities)
    }
}

/// What a probe model found out, or why it could not.
pub type ProbeAnswer = Result<Probing, String>;

/// An answer of a probe model and when it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probing {
    /// The answer.
    pub answer: capability::probe_model::Answer,
    /// When, since the start of the process.
    pub at: Duration,
}

/// The answer, handed in by whoever ran a probe model; `None` before that.
pub type Probed = watch::Receiver<Option<Arc<ProbeAnswer>>>;

/// The observer, ready to run.
#[derive(Debug)]
pub struct Observer {
    gatherer: Gatherer,
    inventory: watch::Receiver<Arc<Inventory>>,
    probed: Probed,
    clock: Clock,
    out: watch::Sender<Arc<Observed>>,
    series: Series,
}

impl Observer {
    /// An observer of the configured server. `inventory` tells when no model is loaded; `probed`
    /// is for the answer of a probe model, `None` for ever where there is none.
    pub fn new(
        settings: Settings,
        inventory: watch::Receiver<Arc<Inventory>>,
        probed: Probed,
        clock: Clock,
        metrics: &Metrics,
    ) -> (Self, watch::Receiver<Arc<Observed>>) {
        let (out, observed) = watch::channel(Arc::default());
        let observer = Observer {
            gatherer: Gatherer::new(settings),
            inventory,
            probed,
            clock,
            out,
            series: Series::new(metrics),
        };
        (observer, observed)
    }

    /// Looks for ever. Returns only when reading has panicked, which is a fault of the process.
    pub async fn run(mut self) {
        loop {
            // Files of /proc can block: the kernel holds a process's lock while it maps memory.
            let inventory = self.inventory.borrow().clone();
            let probed = self.probed.borrow().clone();
            let now = self.clock.now();
            let mut gatherer = self.gatherer;
            let look = tokio::task::spawn_blocking(move || {
                let observed = gatherer.look(&inventory, probed.as_deref(), now);
                (gatherer, observed)
            });
            let Ok((gatherer, observed)) = look.await else {
                return;
            };
            self.gatherer = gatherer;
            self.publish(observed);
            let wait = match self.out.borrow().server {
                None if now < SEARCH_TIME => SEARCH_INTERVAL,
                _ => INTERVAL,
            };
            tokio::select! {
                () = sleep(wait) => {}
                // A closed channel never wakes again; the other arm remains.
                Ok(()) = self.probed.changed() => {}
            }
        }
    }

    fn publish(&self, observed: Observed) {
        let before = self.out.borrow().clone();
        let first = before.looks == 0;
        if first || before.no_server != observed.no_server {
            match (&observed.server, &observed.no_server) {
                (Some(server), _) => tracing::info!(
                    pid = server.main.pid,
                    uid = server.main.uid,
                    found_by = server.found_by.as_str(),
                    "the inference server's processes are visible"
                ),
                (None, Some(reason)) => tracing::info!(reason, "no look at the inference server"),
                (None, None) => {}
            }
        }
        if first || before.may_differ_for_the_scheduler(&observed) {
            tracing::info!(
                capacity = observed.capacity.bytes,
                source = observed.capacity.source.map(capacity::Source::as_str),
                limit = observed.capacity.ceiling,
                capabilities_source = observed.capabilities.source.as_str(),
                distributions = observed.capabilities.distributions.len(),
                "observed"
            );
        }
        self.series.show(&observed);
        self.out.send_replace(Arc::new(observed));
    }
}
