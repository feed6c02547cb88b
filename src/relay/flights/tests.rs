//! Loads, unloads, restarts and the shim's own restoring of one model, in every order in which
//! they can meet. The server is a simulation of a few lines: it does what reaches it one after
//! the other, and its answers may overtake each other.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::clock::Clock;
use crate::drain::Drain;
use crate::interleave::{Stage, in_every_order, yields};
use crate::metrics::Metrics;
use crate::restore::Settings;
use crate::restore::back::{Serves, put_anew, put_back, put_out};
use crate::restore::server::Has;

const M: &str = "m";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Did {
    /// From these files.
    Load(u64),
    Unload,
    Restart,
}

/// A call of a caller's: from which step to which, and whether it was answered well.
#[derive(Debug, Clone, Copy)]
struct Asked {
    unload: bool,
    /// The files of a load, and whether the shim can see them.
    files: u64,
    known: bool,
    from: usize,
    to: usize,
    ok: bool,
}

#[derive(Debug, Default)]
struct Truth {
    /// The files from which the server has the model, and had it at the beginning.
    has: Option<u64>,
    had: Option<u64>,
    /// A load of it was cut off: UNKNOWN until the next load or unload.
    cut: bool,
    /// The files as they are.
    disk: u64,
    starts: usize,
    /// Unloads that have reached the server and are not done: it lists the model until they are.
    unloading: usize,
    /// What the server did, in order, with the step.
    did: Vec<(usize, Did)>,
    /// The files of loads that are on their way to the server or back, where they are known.
    loads: Vec<Option<u64>>,
    unloads_begun: Vec<usize>,
    /// Whether a caller has asked for a load.
    wanted: bool,
    /// The server answers every load with an error.
    refuses: bool,
    /// Nothing is waited for before a call is begun: all are begun in the order of asking, however
    /// long each takes to the server.
    in_order: bool,
    asked: Vec<Asked>,
}

#[derive(Clone)]
struct World {
    steps: Arc<AtomicUsize>,
    truth: Arc<Mutex<Truth>>,
    memory: Memory,
    flights: Flights,
    drain: Drain,
}

impl World {
    /// A world whose carrier of jobs is on the stage.
    fn new(stage: &Stage, seed: &Memory) -> Self {
        let drain = Drain::default();
        let (memory, mut jobs) = seed.anew(drain.clone());
        let spawner = stage.clone();
        stage.background("carrier", async move {
            while let Some(job) = jobs.next().await {
                spawner.spawned("job", job);
            }
        });
        World {
            steps: stage.steps(),
            truth: Arc::new(Mutex::new(Truth {
                disk: 1,
                ..Truth::default()
            })),
            memory,
            flights: Flights::default(),
            drain,
        }
    }

    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    fn now(&self) -> usize {
        self.steps.load(Ordering::Relaxed)
    }

    /// The model was loaded before the scenario begins, from these files.
    fn loaded_before(self, files: u64) -> Self {
        self.memory
            .loading(M, Some(Fingerprint::number(files)))
            .succeeded();
        self.truth().has = Some(files);
        self.truth().had = Some(files);
        self
    }

    /// The server was restarted, and the shim has noticed: the model is to be put back.
    fn lost_before(self) -> Self {
        let world = self.loaded_before(1);
        world.restart();
        world.truth().did.clear();
        world.truth().had = None;
        world
    }

    fn restart(&self) {
        let now = self.now();
        let mut truth = self.truth();
        truth.has = None;
        truth.starts += 1;
        truth.unloading = 0;
        truth.did.push((now, Did::Restart));
        drop(truth);
        self.memory.server_restarted();
    }

    /// A load or unload, as the server takes it: it reaches it, is done there, is answered. The
    /// answer gets lost where the server is restarted meanwhile. Calls through the relay reach it in
    /// the order in which they were made, those of the shim's own at any time. An unload takes its
    /// time, and a load that reaches the server meanwhile fails.
    async fn done(self, load: bool, unsent: Option<Unsent>, files: Option<u64>) -> bool {
        let start = {
            let mut truth = self.truth();
            if load {
                // Behind an unload a second one is no waste.
                let unjoined = !self.memory.settings().coalesce || !truth.unloads_begun.is_empty();
                let alone = truth.loads.is_empty() || unjoined;
                assert!(alone, "two loads of one model are made at once");
                truth.loads.push(files);
            }
            truth.starts
        };
        // A connection may have to be opened first.
        let opens = self.truth().in_order;
        if unsent.is_none() || opens {
            yields().await;
        }
        let (here, later) = {
            let now = self.now();
            let mut truth = self.truth();
            let fails = load && (truth.refuses || truth.unloading > 0);
            let here = truth.starts == start && !fails;
            let later = here && !load && truth.has.is_some();
            if later {
                truth.unloading += 1;
            } else if here {
                let disk = truth.disk;
                truth.has = load.then_some(disk);
                truth.cut = false;
                let did = if load { Did::Load(disk) } else { Did::Unload };
                truth.did.push((now, did));
            }
            (here, later)
        };
        drop(unsent);
        if later {
            yields().await;
            let now = self.now();
            let mut truth = self.truth();
            if truth.starts == start {
                truth.unloading -= 1;
                truth.has = None;
                truth.did.push((now, Did::Unload));
            }
        }
        yields().await;
        let mut truth = self.truth();
        if load {
            let at = truth.loads.iter().position(|f| *f == files).unwrap();
            truth.loads.swap_remove(at);
        }
        here && truth.starts == start
    }

    async fn call(self, load: bool, unsent: Unsent, files: Option<u64>) -> Whole {
        let ok = self.done(load, Some(unsent), files).await;
        let mut head = HeaderMap::new();
        let status = if ok { "0" } else { "14" };
        head.insert("grpc-status", status.parse().unwrap());
        Whole {
            head,
            message: None,
            trailers: None,
        }
    }

    async fn has(&self) -> bool {
        yields().await;
        let has = self.truth().has.is_some();
        yields().await;
        has
    }

    /// A caller's load, as the relay makes it, of these files.
    async fn load(self, files: u64) {
        self.load_of(files, true).await;
    }

    /// As [`World::load`]; the shim need not know the files.
    async fn load_of(self, files: u64, known: bool) {
        let from = self.now();
        // Who begins later finds what has come meanwhile.
        let files = {
            let mut truth = self.truth();
            truth.wanted = true;
            truth.disk = truth.disk.max(files);
            truth.disk
        };
        let seen = known.then_some(files);
        let has = || self.has();
        let call = |unsent| self.clone().call(true, unsent, seen);
        let print = seen.map(Fingerprint::number);
        let answer = self.flights.load(&self.memory, M, print, has, call).await;
        let ok = match answer {
            Ok(Some(whole)) => whole.is_ok(),
            Ok(None) => true,
            Err(lost) => panic!("{lost:?}"),
        };
        let to = self.now();
        self.truth().asked.push(Asked {
            unload: false,
            files,
            known,
            from,
            to,
            ok,
        });
    }

    async fn unload(self) {
        let from = self.now();
        self.truth().unloads_begun.push(from);
        let call = |unsent| self.clone().call(false, unsent, None);
        let answer = self.flights.unload(&self.memory, M, call).await;
        let (to, ok) = (self.now(), answer.unwrap().is_ok());
        self.truth().asked.push(Asked {
            unload: true,
            files: 0,
            known: false,
            from,
            to,
            ok,
        });
    }

    /// The shim's own restoring, as its loop does it, until nothing is due.
    async fn restores(self) {
        while let Some(model) = self.memory.next_to_restore() {
            put_back(self.memory.clone(), model, self.clone()).await;
        }
    }

    /// What has to be so at the end of every order.
    fn check(&self) {
        let truth = self.truth();
        let said = format!("{truth:?}");
        assert!(truth.loads.is_empty(), "{said}");
        assert!(
            self.flights.lock().flights.is_empty(),
            "a flight is left: {said}"
        );
        assert!(self.flights.lock().unloads.is_empty(), "{said}");
        assert_eq!(self.memory.calls(M), 0, "a call is left: {said}");
        assert_eq!(self.drain.running(), 0, "work is left: {said}");
        let restarted = truth.did.iter().any(|(_, d)| *d == Did::Restart);
        for load in truth.asked.iter().filter(|a| !a.unload && a.ok) {
            // The server had the model at some moment of the call, from its files or those that
            // came after them, and no unload that was asked for before the call was still to come.
            let held = (load.from..=load.to).any(|t| {
                let until = truth.did.iter().filter(|(at, _)| *at <= t);
                let has = match until.map(|(_, did)| did).next_back() {
                    Some(did) => matches!(did, Did::Load(files) if *files >= load.files),
                    None => truth.had >= Some(load.files),
                };
                let behind = truth
                    .asked
                    .iter()
                    .filter(|a| a.unload && a.from < load.from);
                let done = truth
                    .did
                    .iter()
                    .filter(|(at, d)| *at <= t && *d == Did::Unload);
                has && (restarted || done.count() >= behind.count())
            });
            assert!(held, "a load is answered that did not happen: {said}");
        }
        // Nothing but what comes meanwhile makes a load fail.
        for load in truth.asked.iter().filter(|a| !a.unload && !a.ok) {
            let meanwhile = |a: &&Asked| a.unload && a.from >= load.from;
            assert!(
                restarted || truth.refuses || truth.asked.iter().any(|a| meanwhile(&a)),
                "a load has failed: {said}"
            );
        }
        // Of files that nobody can compare each is answered by a load that began after he asked.
        for load in truth.asked.iter().filter(|a| !a.unload && !a.known && a.ok) {
            let made = |(at, did): &(usize, Did)| {
                matches!(did, Did::Load(_)) && (load.from..=load.to).contains(at)
            };
            assert!(truth.did.iter().any(made), "{said}");
        }
        let unloads = truth.asked.iter().filter(|a| a.unload && a.ok);
        if let Some(last) = unloads.max_by_key(|a| a.to) {
            let later = |a: &Asked| match truth.in_order {
                true => a.from >= last.from,
                false => a.to > last.from,
            };
            let after = truth.asked.iter().any(|a| !a.unload && later(a));
            assert!(
                after || truth.has.is_none(),
                "the model is loaded although its owner unloaded it: {said}"
            );
        }
        if !restarted {
            let wanted = self.memory.wanted() == 1;
            assert_eq!(wanted, truth.has.is_some(), "the account is wrong: {said}");
        }
    }
}

impl Serves for World {
    async fn has(&self, _: &str) -> Has {
        let cut = self.truth().cut;
        match World::has(self).await {
            true => Has::Ready,
            false if cut => Has::Loading,
            false => Has::Not,
        }
    }

    async fn load(&self, _: &str) -> Result<(), String> {
        let unloaded = !self.truth().unloads_begun.is_empty();
        assert!(
            !unloaded || self.truth().wanted,
            "a model is put back that its owner has unloaded"
        );
        let disk = self.truth().disk;
        match self.clone().done(true, None, Some(disk)).await {
            true => Ok(()),
            false => Err("the server was restarted".into()),
        }
    }

    async fn unload(&self, _: &str) -> Result<(), String> {
        let calls = self.memory.calls(M);
        assert_eq!(calls, 1, "the shim unloads while an owner is at it");
        self.clone().done(false, None, None).await;
        Ok(())
    }

    async fn files(&self, _: &Memory, _: &str) -> Option<Fingerprint> {
        yields().await;
        Some(Fingerprint::number(self.truth().disk))
    }
}

/// Tries a scenario, which has more than one order.
fn tried(what: &str, scenario: impl Fn(&Stage, &Memory) -> World) {
    tried_with(true, what, scenario);
}

/// The same, and whether needless loads are saved.
fn tried_with(coalesce: bool, what: &str, scenario: impl Fn(&Stage, &Memory) -> World) {
    let settings = Settings {
        restore: true,
        coalesce,
        models_dir: "/nonexistent".into(),
    };
    let clock = Clock::start();
    let (seed, _) = Memory::new(settings, clock, Drain::default(), &Metrics::new());
    let orders = in_every_order(|stage| {
        let world = scenario(stage, &seed);
        move || world.check()
    });
    assert!(orders > 1, "{what}: nobody meets anybody");
}

#[test]
fn two_loads_of_one_model_are_one_and_both_are_answered() {
    tried("two loads", |stage, seed| {
        let world = World::new(stage, seed);
        stage.task("first", world.clone().load(1));
        stage.task("second", world.clone().load(1));
        world
    });
    tried("a caller that goes away", |stage, seed| {
        let world = World::new(stage, seed);
        stage.task("first", world.clone().load(1));
        stage.task("second", world.clone().load(1));
        let killer = stage.clone();
        stage.task("gone", async move { killer.kill("first") });
        world
    });
}

#[test]
fn a_load_that_breaks_off_is_made_once_more_for_all_who_waited_for_it() {
    tried("broken off", |stage, seed| {
        let world = World::new(stage, seed);
        let broken = world
            .flights
            .begin(M, Some(Fingerprint::number(1)), Ahead::default());
        stage.task("broken", async move { drop(broken) });
        stage.task("first", world.clone().load(1));
        stage.task("second", world.clone().load(1));
        world
    });
}

#[test]
fn two_loads_of_a_model_that_the_server_has_lost_unnoticed_are_one() {
    tried("lost unnoticed", |stage, seed| {
        let world = World::new(stage, seed).loaded_before(1);
        world.truth().has = None;
        world.truth().had = None;
        stage.task("first", world.clone().load(1));
        stage.task("second", world.clone().load(1));
        world
    });
}

#[test]
fn a_load_behind_an_unload_is_a_call_of_its_own() {
    tried("load, unload, load", |stage, seed| {
        let world = World::new(stage, seed);
        let then = world.clone();
        stage.task("first", world.clone().load(1));
        stage.task("others", async move {
            // One caller who does not wait for the answer of its unload.
            let (unload, load) = (then.clone().unload(), then.clone().load(1));
            tokio::pin!(unload, load);
            let mut both = (false, false);
            std::future::poll_fn(|cx| {
                both.0 = both.0 || unload.as_mut().poll(cx).is_ready();
                both.1 = both.1 || load.as_mut().poll(cx).is_ready();
                match both {
                    (true, true) => std::task::Poll::Ready(()),
                    _ => std::task::Poll::Pending,
                }
            })
            .await;
        });
        world
    });
}

#[test]
fn a_load_does_not_reach_a_server_that_still_unloads_the_model() {
    for coalesce in [true, false] {
        tried_with(coalesce, "unload and load", |stage, seed| {
            let world = World::new(stage, seed).loaded_before(1);
            stage.task("unload", world.clone().unload());
            stage.task("load", world.clone().load(1));
            world
        });
    }
    tried("a caller of an unload that goes away", |stage, seed| {
        let world = World::new(stage, seed).loaded_before(1);
        stage.task("unload", world.clone().unload());
        let killer = stage.clone();
        stage.task("gone", async move { killer.kill("unload") });
        stage.task("load", world.clone().load(1));
        world
    });
    tried("unload, load, unload in one breath", |stage, seed| {
        let world = World::new(stage, seed).loaded_before(1);
        world.truth().in_order = true;
        let owner = world.clone();
        stage.task("owner", async move {
            let unload = || owner.clone().unload();
            tokio::join!(biased; unload(), owner.clone().load(1), unload());
        });
        world
    });
}

#[test]
fn a_restart_of_the_server_between_is_no_lie_to_anybody() {
    tried("load and restart", |stage, seed| {
        let world = World::new(stage, seed).loaded_before(1);
        stage.task("first", world.clone().load(1));
        let server = world.clone();
        stage.task("restart", async move { server.restart() });
        stage.background("restorer", world.clone().restores());
        world
    });
}

#[test]
fn what_is_restored_and_unloaded_meanwhile_is_not_left_in_memory() {
    tried("restore and unload", |stage, seed| {
        let world = World::new(stage, seed).lost_before();
        stage.task("restorer", world.clone().restores());
        stage.task("unload", world.clone().unload());
        world
    });
}

#[test]
fn a_load_is_not_undone_by_the_shims_own_unload() {
    for coalesce in [true, false] {
        tried_with(coalesce, "restore, unload, load", |stage, seed| {
            let world = World::new(stage, seed).lost_before();
            stage.task("restorer", world.clone().restores());
            let owner = world.clone();
            stage.task("owner", async move {
                owner.clone().unload().await;
                owner.load(1).await;
            });
            world
        });
    }
}

#[test]
fn files_that_come_while_old_ones_are_restored_are_loaded() {
    for known in [true, false] {
        tried("restore and load of other files", |stage, seed| {
            let world = World::new(stage, seed).lost_before();
            stage.task("restorer", world.clone().restores());
            stage.task("owner", world.clone().load_of(2, known));
            world
        });
    }
    tried("a load of other files under way", |stage, seed| {
        let world = World::new(stage, seed);
        stage.task("first", world.clone().load(1));
        let owner = world.clone();
        stage.task("second", async move {
            yields().await;
            owner.load(2).await;
        });
        world
    });
}

#[test]
fn a_load_that_the_server_refuses_is_not_remembered_as_one() {
    tried("a refusal", |stage, seed| {
        let world = World::new(stage, seed);
        world.truth().refuses = true;
        stage.task("first", world.clone().load(1));
        stage.task("second", world.clone().load(1));
        world
    });
}

#[test]
fn of_files_that_are_not_known_one_load_is_under_way_and_one_waits_for_all_others() {
    tried("three loads", |stage, seed| {
        let world = World::new(stage, seed);
        stage.task("first", world.clone().load_of(1, false));
        let others = world.clone();
        stage.task("others", async move {
            let load = || others.clone().load_of(1, false);
            tokio::join!(biased; load(), load());
        });
        world
    });
    tried("a caller that goes away", |stage, seed| {
        let world = World::new(stage, seed);
        stage.task("first", world.clone().load_of(1, false));
        stage.task("second", world.clone().load_of(1, false));
        let killer = stage.clone();
        stage.task("gone", async move {
            killer.kill("first");
            killer.kill("second");
        });
        world
    });
}

#[test]
fn an_unload_ends_a_loads_wait_and_comes_behind_it() {
    tried("load, load, unload in one breath", |stage, seed| {
        let world = World::new(stage, seed);
        world.truth().in_order = true;
        let owner = world.clone();
        stage.task("owner", async move {
            let load = || owner.clone().load_of(1, false);
            tokio::join!(biased; load(), load(), owner.clone().unload());
        });
        world
    });
    tried("load, unload, load in one breath", |stage, seed| {
        let world = World::new(stage, seed);
        world.truth().in_order = true;
        let owner = world.clone();
        stage.task("owner", async move {
            let load = || owner.clone().load_of(1, false);
            tokio::join!(biased; load(), owner.clone().unload(), load());
        });
        world
    });
}

#[test]
fn a_model_that_is_mended_and_unloaded_meanwhile_is_not_left_in_memory() {
    let mended = |world: &World| {
        let world = world.clone();
        async move {
            put_anew(&world.memory, M, &world).await;
        }
    };
    tried("mend and unload", |stage, seed| {
        let world = World::new(stage, seed).loaded_before(1);
        stage.task("mender", mended(&world));
        stage.task("owner", world.clone().unload());
        world
    });
    tried("mend and load", |stage, seed| {
        let world = World::new(stage, seed).loaded_before(1);
        stage.task("mender", mended(&world));
        stage.task("owner", world.clone().load(2));
        world
    });
}

#[test]
fn a_model_whose_load_was_cut_off_is_not_unloaded_behind_a_load_of_its_owners() {
    let mended = |world: &World| {
        world.truth().cut = true;
        let world = world.clone();
        async move {
            put_out(&world.memory, M, &world).await;
        }
    };
    for coalesce in [true, false] {
        tried_with(coalesce, "put out and load", |stage, seed| {
            let world = World::new(stage, seed);
            stage.task("mender", mended(&world));
            stage.task("owner", world.clone().load(1));
            world
        });
    }
    tried("put out and unload", |stage, seed| {
        let world = World::new(stage, seed);
        stage.task("mender", mended(&world));
        stage.task("owner", world.clone().unload());
        world
    });
}
