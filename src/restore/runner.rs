//! The loop that sees a restart of the server and loads what it has lost.
//!
//! What an agent lists when it subscribes is handed to the account, which knows whether it counts.
//! Two signs of a restart: another main process in `/proc`, and the HTTP side gone and back. Both
//! only mean that every model is to be looked at; whether it is lost the server itself says. Also
//! owns the calls that the relay carries on for callers that have gone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::back::put_back;
use super::server::{Asking, address};
use super::{Jobs, Memory};
use crate::endpoint::{Candidate, Protocol};
use crate::health::Reason;
use crate::models::{Inventory, Poke};
use crate::observer::Observed;
use crate::prober::Watching;
use crate::subscription::status::{Held, Status};
use crate::view::{Usable, View};

/// No load begins while the server's processes use more than this part of their limit, in
/// sixteenths.
const FULL: u64 = 15;

/// What the runner works with.
#[derive(Debug)]
pub struct Parts {
    /// What the prober knows.
    pub watching: Watching,
    /// The inventory.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// What is seen of the server's processes.
    pub observed: watch::Receiver<Arc<Observed>>,
    /// The client that asks.
    pub client: Client,
    /// Told after each load.
    pub poke: Poke,
}

/// Restores models.
#[derive(Debug)]
pub struct Runner {
    memory: Memory,
    jobs: Jobs,
    parts: Parts,
    signs: Signs,
    /// When a restart was last noticed.
    noticed: Option<Duration>,
    read: Option<Duration>,
}

/// What tells a restart. Pure.
#[derive(Debug, Default)]
struct Signs {
    /// The main process, and when it was last seen.
    main: Option<((u32, u64), Duration)>,
    /// When the server last answered, while it does not.
    gone: Option<Duration>,
    was_up: bool,
    /// Where it was last asked.
    at: Option<Candidate>,
}

impl Signs {
    /// When the old process was last known alive, where there may be a new one.
    fn view(&mut self, view: &View) -> Option<Duration> {
        match view.usable(Protocol::Http) {
            Usable::Up => {
                self.was_up = true;
                let moved = self.moved(view);
                self.gone.take().or(moved)
            }
            Usable::Stalled => None,
            Usable::Down | Usable::Unknown => {
                if self.was_up && self.gone.is_none() {
                    self.gone = view.last_success(Protocol::Http);
                }
                None
            }
        }
    }

    /// The same, where another address is asked because nobody listens at the last one any more: a
    /// server that comes back elsewhere may never have been away in sight of the probes.
    fn moved(&mut self, view: &View) -> Option<Duration> {
        let new = &view.selected(Protocol::Http)?.candidate;
        if self.at.as_ref() == Some(new) {
            return None;
        }
        let old = self.at.replace(new.clone())?;
        let mut known = view.of(Protocol::Http).iter();
        let old = known.find(|e| e.candidate == old)?;
        let refused = old.health.reason == Some(Reason::Refused);
        old.health.last_success.filter(|_| refused)
    }

    /// As [`Signs::view`], from a look at the processes.
    fn observed(&mut self, observed: &Observed) -> Option<Duration> {
        let server = observed.server.as_ref()?;
        let main = (server.main.pid, server.main.start);
        let before = self.main.replace((main, observed.at));
        before.filter(|(was, _)| *was != main).map(|(_, at)| at)
    }
}

impl Runner {
    /// A runner for an account.
    pub fn new(memory: Memory, jobs: Jobs, parts: Parts) -> Self {
        Runner {
            memory,
            jobs,
            parts,
            signs: Signs::default(),
            noticed: None,
            read: None,
        }
    }

    /// Runs for ever. Returns only when the prober is gone, which is a fault of the process.
    pub async fn run(mut self) {
        let mut tasks = JoinSet::new();
        let mut view = self.parts.watching.view.clone();
        let mut inventory = self.parts.inventory.clone();
        let mut observed = self.parts.observed.clone();
        let mut changes = self.memory.0.changes.subscribe();
        let mut agent = self.memory.0.agent.get().cloned();
        let mut listed = None;
        loop {
            changes.mark_unchanged();
            // The signs first: an index of the new process must not be taken for the old one's.
            let now = view.borrow_and_update().clone();
            let mut alive = self.signs.view(&now);
            let seen = observed.borrow_and_update().clone();
            if let Some(at) = self.signs.observed(&seen) {
                alive = Some(alive.map_or(at, |other: Duration| other.min(at)));
            }
            if let Some(alive) = alive {
                self.restarted(alive);
            }
            self.take_index(&inventory.borrow_and_update().clone());
            if let Some(agent) = &mut agent {
                let status = agent.borrow_and_update().clone();
                let new = status.loaded.filter(|l| listed.as_ref() != Some(l));
                if let Some(new) = new {
                    let total = status.reported.map_or(0, |r| r.memory);
                    self.memory.listed(&new, total);
                    listed = Some(new);
                }
            }
            let may = self.load(&now, &seen, &mut tasks);
            let all = self.memory.book().restoring();
            self.memory.0.series.show(&all);
            // Where nothing may be loaded, what changes that wakes this loop.
            let due = self.memory.book().due().filter(|_| may);
            let wait = due.map(|at| at.saturating_sub(self.memory.now()));
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = inventory.changed() => if changed.is_err() { return },
                changed = observed.changed() => if changed.is_err() { return },
                _ = changes.changed() => {}
                () = listed_anew(&mut agent, listed.as_ref()) => {}
                Some(job) = self.jobs.next() => {
                    tasks.spawn(job);
                }
                Some(ended) = tasks.join_next() => if let Err(error) = ended {
                    // Costs one call; its caller is told by the channel that closes.
                    tracing::error!(%error, "a call that was carried on has failed");
                },
                () = sleep(wait.unwrap_or_default().max(Duration::from_millis(50))), if wait.is_some() => {}
            }
        }
    }

    fn restarted(&mut self, alive: Duration) {
        let (wanted, due) = self.memory.change(|book, now| {
            book.restarted(alive, now);
            let wanted = book.wanted();
            if !self.memory.settings().restore {
                // What is lost is not known any more: the agent loads it when a request comes.
                *book = super::Book::default();
            }
            (wanted, book.due().is_some())
        });
        // The other sign of the same restart, as far as can be told: nothing is missed by looking
        // again, and it is not counted twice.
        let same = self.noticed.is_some_and(|noticed| alive < noticed);
        self.noticed = Some(self.memory.now());
        if same {
            return;
        }
        self.memory.0.series.restarted();
        match (self.memory.settings().restore, wanted) {
            (true, 0) => tracing::info!(
                "the server may have been restarted: no model was known to be in memory, so none is loaded again"
            ),
            (true, models) => tracing::info!(
                models,
                due,
                "the server may have been restarted: looking after the models that were in memory"
            ),
            (false, models) => tracing::info!(
                models,
                "the server may have been restarted: lost models are not restored"
            ),
        }
    }

    fn take_index(&mut self, inventory: &Inventory) {
        if inventory.asked_at == self.read {
            return;
        }
        let first = self.read.is_none();
        self.read = inventory.asked_at;
        let Some(asked) = inventory.asked_at else {
            return;
        };
        let models = inventory.models.iter();
        let models = models.map(|m| (m.name.as_str(), m.state.as_str()));
        let ours = crate::capability::probe_model::NAME;
        let models: Vec<_> = models.filter(|(name, _)| *name != ours).collect();
        let wanted = self.memory.change(|book, _| {
            book.index(models.into_iter(), asked);
            book.wanted()
        });
        if first {
            tracing::info!(
                models = wanted,
                "models in the server's memory are remembered from now on; what a restart before this took is not known"
            );
        }
    }

    /// Begins what is due. False where nothing may be loaded now.
    fn load(&self, view: &View, observed: &Observed, tasks: &mut JoinSet<()>) -> bool {
        let memory = &self.memory;
        if !memory.settings().restore || memory.0.drain.has_begun() {
            return false;
        }
        let Some(address) = address(view) else {
            return false;
        };
        let full = is_full(observed);
        memory.0.room.send_replace(full.clone());
        if full.is_some() {
            return false;
        }
        loop {
            let Some(model) = memory.book().next(memory.now()) else {
                return true;
            };
            tasks.spawn(self.restore(model, address));
        }
    }

    /// Looks at one model and loads it where it is not there.
    fn restore(&self, model: String, address: SocketAddr) -> impl Future<Output = ()> + use<> {
        let poke = self.parts.poke.clone();
        let server = Asking::new(self.parts.client.clone(), address);
        let put_back = put_back(self.memory.clone(), model, server);
        async move {
            if put_back.await {
                poke.now();
            }
        }
    }
}

/// Completes when the agent has subscribed with another list than this one.
async fn listed_anew(agent: &mut Option<watch::Receiver<Status>>, known: Option<&Arc<[Held]>>) {
    if let Some(agent) = agent {
        let other = |status: &Status| status.loaded.as_ref().is_some_and(|l| Some(l) != known);
        if agent.wait_for(other).await.is_ok() {
            return;
        }
    }
    // Nobody subscribes here, or the end has begun.
    std::future::pending().await
}

/// Why no more model may be loaded, where the server's memory is known to be used up.
fn is_full(observed: &Observed) -> Option<String> {
    let (used, limit) = (observed.live.rss?, observed.capacity.ceiling?);
    (used / 16 >= limit / 16 * FULL / 16).then(|| {
        format!("waiting: the server's processes use {used} bytes of the {limit} that they may")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::drain::Drain;
    use crate::health::{Health, Outcome, Thresholds};
    use crate::history::History;
    use crate::metrics::Metrics;
    use crate::prober::Hints;
    use crate::process::{FoundBy, Process, Role, Server};
    use crate::restore::Settings;
    use crate::view::Endpoint;

    fn observed(pid: u32, at: u64) -> Observed {
        let main = Process {
            pid,
            ppid: 1,
            start: u64::from(pid),
            uid: None,
            role: Role::Main,
        };
        Observed {
            server: Some(Server {
                main,
                children: Vec::new(),
                found_by: FoundBy::Cmdline,
            }),
            at: Duration::from_secs(at),
            ..Observed::default()
        }
    }

    #[test]
    fn another_main_process_is_a_restart_and_a_look_that_finds_none_is_not() {
        let mut signs = Signs::default();
        assert_eq!(signs.observed(&observed(7, 1)), None);
        assert_eq!(signs.observed(&observed(7, 6)), None);
        assert_eq!(signs.observed(&Observed::default()), None);
        assert_eq!(signs.observed(&observed(7, 12)), None);
        let alive = signs.observed(&observed(8, 20));
        assert_eq!(alive, Some(Duration::from_secs(12)));
    }

    /// A server at two addresses, of which one is asked.
    fn at(selected: usize, outcomes: [Outcome; 2], now: u64) -> View {
        let mut view = server_up();
        let http = Protocol::Http.index();
        let mut other = view.endpoints[http][0].clone();
        other.candidate.host = "127.0.0.2".parse().unwrap();
        view.endpoints[http].push(other);
        for (endpoint, outcome) in view.endpoints[http].iter_mut().zip(outcomes) {
            endpoint.health.observe(&outcome, Duration::from_secs(now));
        }
        view.selection[http] = Some(selected);
        view
    }

    #[test]
    fn a_server_that_listens_elsewhere_all_at_once_has_been_restarted() {
        let up = Outcome::Healthy {
            ready: None,
            latency: Duration::ZERO,
        };
        let not = |reason| Outcome::Unhealthy {
            reason,
            detail: String::new(),
        };
        let mut signs = Signs::default();
        assert_eq!(signs.view(&at(0, [up.clone(), up.clone()], 1)), None);
        let silent = at(1, [not(Reason::ConnectTimeout), up.clone()], 5);
        assert_eq!(signs.view(&silent), None, "one process at two addresses");
        let back = at(0, [up.clone(), up.clone()], 6);
        assert_eq!(signs.view(&back), None, "the better address is there again");
        let moved = at(1, [not(Reason::Refused), up], 9);
        assert_eq!(signs.view(&moved), Some(Duration::ZERO), "when it answered");
        assert_eq!(signs.view(&moved), None, "once");
    }

    fn server_up() -> View {
        let thresholds = Thresholds {
            rise: 1,
            fall: 1,
            grace: Duration::ZERO,
        };
        let mut health = Health::new(thresholds);
        let outcome = Outcome::Healthy {
            ready: None,
            latency: Duration::ZERO,
        };
        health.observe(&outcome, Duration::ZERO);
        let candidate = Candidate {
            host: "127.0.0.1".parse().unwrap(),
            port: 9000,
            protocol: Protocol::Http,
        };
        let mut view = View::default();
        let http = Protocol::Http.index();
        view.endpoints[http] = vec![Endpoint::new(candidate, health)];
        view.selection[http] = Some(0);
        view
    }

    #[tokio::test]
    async fn nothing_is_loaded_while_the_server_is_full_and_the_condition_says_why() {
        let settings = Settings {
            restore: true,
            coalesce: true,
            models_dir: "/nonexistent".into(),
        };
        let (clock, drain) = (Clock::start(), Drain::default());
        let (memory, jobs) = Memory::new(settings, clock, drain, &Metrics::new());
        memory.loading("iris", None).succeeded();
        memory.server_restarted();
        let view = server_up();
        let parts = Parts {
            watching: Watching {
                view: watch::channel(Arc::new(view.clone())).1,
                changes: watch::channel(0).1,
                hints: Hints::default(),
                history: History::default(),
            },
            inventory: watch::channel(Arc::default()).1,
            observed: watch::channel(Arc::default()).1,
            client: crate::models::client().unwrap(),
            poke: Poke::default(),
        };
        let runner = Runner::new(memory.clone(), jobs, parts);
        let mut tasks = JoinSet::new();
        let mut seen = Observed::default();
        seen.capacity.ceiling = Some(16_000);
        seen.live.rss = Some(15_200);
        assert!(!runner.load(&view, &seen, &mut tasks));
        assert!(tasks.is_empty());
        let condition = memory.condition();
        let why = "being loaded again: iris; waiting: the server's processes use 15200 bytes of the 16000 that they may";
        assert!(
            !condition.holds && condition.reason.ends_with(why),
            "{condition:?}"
        );
        // There is room again.
        seen.live.rss = Some(14_000);
        assert!(runner.load(&view, &seen, &mut tasks));
        assert_eq!(tasks.len(), 1);
        let reason = memory.condition().reason;
        assert!(reason.ends_with("being loaded again: iris"), "{reason}");
    }

    #[test]
    fn a_full_server_is_given_nothing_more() {
        let mut seen = Observed::default();
        assert_eq!(is_full(&seen), None);
        seen.capacity.ceiling = Some(16_000);
        seen.live.rss = Some(14_000);
        assert_eq!(is_full(&seen), None);
        seen.live.rss = Some(15_200);
        assert!(is_full(&seen).is_some());
    }
}
