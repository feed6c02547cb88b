//! Hooks, calls, SIGTERM and the taking back of a drain, in every order in which they can meet at
//! one moment. The clock is paused: it moves when nobody is awake.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::endpoint::Candidate;
use crate::health::{Health, Outcome, Thresholds};
use crate::interleave::{Stage, in_every_order_of_time};
use crate::view::{Endpoint, View};
use crate::{endpoint::Protocol, history, prober::Hints};

const UNDO_AFTER: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(100);
const BOUND: Duration = Duration::from_secs(20);

/// What became of one hook.
#[derive(Debug, Clone)]
struct Answer {
    /// Drains that had ended when it called.
    before: u64,
    progress: Progress,
    /// Whether the pod was still drained when it was answered.
    drained: bool,
}

#[derive(Clone)]
struct World {
    clock: Clock,
    drain: Drain,
    handle: Handle,
    answers: Rc<RefCell<Vec<Answer>>>,
    /// When each call ran.
    calls: Rc<RefCell<Vec<(Duration, Duration)>>>,
}

fn server_up() -> View {
    let thresholds = Thresholds {
        rise: 1,
        fall: 1,
        grace: Duration::ZERO,
    };
    let mut view = View::default();
    for protocol in Protocol::ALL {
        let mut health = Health::new(thresholds);
        let outcome = Outcome::Healthy {
            ready: None,
            latency: Duration::ZERO,
        };
        health.observe(&outcome, Duration::ZERO);
        let candidate = Candidate {
            host: "127.0.0.1".parse().unwrap(),
            port: 9000,
            protocol,
        };
        view.endpoints[protocol.index()] = vec![Endpoint::new(candidate, health)];
        view.selection[protocol.index()] = Some(0);
    }
    view
}

impl World {
    fn new(stage: &Stage) -> Self {
        let (clock, drain) = (Clock::start(), Drain::default());
        let agent = watch::Sender::new(Seen {
            state: State::Unknown,
            since: Duration::ZERO,
            reason: String::new(),
            looked: Duration::ZERO,
            absent: None,
            starts: 0,
        });
        let (view, changes) = (
            watch::Sender::new(Arc::new(server_up())),
            watch::Sender::new(0),
        );
        let parts = Parts {
            drain: drain.clone(),
            watching: Watching {
                view: view.subscribe(),
                changes: changes.subscribe(),
                hints: Hints::default(),
                history: history::History::default(),
            },
            agent: agent.subscribe(),
            status: None,
            clock,
        };
        let config = DrainConfig {
            agent_port: 0,
            hooks: 1,
            undo_after: UNDO_AFTER,
            open: false,
        };
        let (coordinator, handle) = Coordinator::new(config, BOUND, parts, &Metrics::new());
        stage.background("coordinator", async move {
            let _held = (view, changes, agent);
            coordinator.run().await;
        });
        World {
            clock,
            drain,
            handle,
            answers: Rc::default(),
            calls: Rc::default(),
        }
    }

    async fn hook(self, after: Duration) {
        sleep(after).await;
        let before = self.handle.progress.borrow().ended;
        let progress = self.handle.call(BOUND + BOUND).await.unwrap();
        let drained = self.drain.is_called();
        self.answers.borrow_mut().push(Answer {
            before,
            progress,
            drained,
        });
    }

    async fn call(self, after: Duration, takes: Duration) {
        sleep(after).await;
        let one = self.drain.in_flight().one();
        let began = self.clock.now();
        sleep(takes).await;
        drop(one);
        self.calls.borrow_mut().push((began, self.clock.now()));
    }

    /// What has to be so at the end of every order.
    fn check(&self, hooks: usize) {
        let answers = self.answers.borrow();
        assert_eq!(answers.len(), hooks);
        for answer in answers.iter() {
            // By a drain that ended after the hook had called.
            let progress = &answer.progress;
            assert!(progress.ended > answer.before, "{answer:?}");
            assert!(answer.drained || progress.undone > 0, "{answer:?}");
            if progress.phase == Phase::Drained {
                let quiet = progress.since - QUIET..progress.since;
                for (began, ended) in self.calls.borrow().iter() {
                    let inside = *began < quiet.end && *ended > quiet.start;
                    assert!(!inside, "a call ran: {began:?} to {ended:?}, {answer:?}");
                }
            }
        }
        assert_eq!(self.drain.running(), 0);
        assert_eq!(self.handle.waiting(), 0);
        if self.drain.has_begun() {
            assert!(self.drain.is_called(), "a termination is never taken back");
        }
    }
}

fn tried(what: &str, hooks: usize, scenario: impl Fn(&Stage, &World)) {
    let orders = in_every_order_of_time(TICK, |stage| {
        let world = World::new(stage);
        scenario(stage, &world);
        move || world.check(hooks)
    });
    assert!(orders > 0, "{what}");
}

const NOW: Duration = Duration::ZERO;
/// When a drain with no call is over, and when it is taken back.
const OVER: Duration = QUIET;

#[test]
fn a_call_that_begins_as_a_drain_begins_or_ends_is_waited_for() {
    for after in [NOW, OVER - TICK, OVER] {
        tried("a call begins", 1, |stage, world| {
            stage.task("hook", world.clone().hook(NOW));
            let takes = Duration::from_millis(1500);
            stage.task("call", world.clone().call(after, takes));
        });
    }
}

#[test]
fn hooks_that_come_together_are_answered_by_one_drain_and_late_ones_by_the_next() {
    for after in [NOW, OVER, OVER + TICK] {
        tried("two hooks", 2, |stage, world| {
            stage.task("first", world.clone().hook(NOW));
            stage.task("second", world.clone().hook(after));
            stage.task("call", world.clone().call(after, TICK));
        });
    }
}

#[test]
fn a_hook_at_the_moment_of_the_undoing_gets_a_drain_of_its_own() {
    for late in 0..8 {
        let after = OVER + UNDO_AFTER + TICK * late;
        tried("undo and hook", 2, |stage, world| {
            stage.task("first", world.clone().hook(NOW));
            stage.task("second", world.clone().hook(after));
        });
    }
}

#[test]
fn a_sigterm_at_the_moment_of_the_undoing_leaves_one_of_the_two() {
    for late in 0..8 {
        let after = OVER + UNDO_AFTER - TICK + TICK * late;
        tried("undo and SIGTERM", 1, |stage, world| {
            stage.task("hook", world.clone().hook(NOW));
            let drain = world.drain.clone();
            stage.task("SIGTERM", async move {
                sleep(after).await;
                if drain.is_called() {
                    drain.begin();
                }
            });
        });
    }
}
