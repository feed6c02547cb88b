//! For tests: runs tasks in every order in which one thread could poll them.
//!
//! The program has one thread, so its tasks can only meet at their awaits. A scenario is a few
//! futures with wakers of our own; whenever more than one of them is awake, each is tried as the
//! next, depth first, by running the scenario again from its beginning. No socket may be in it: what
//! that would bring about is a future of the scenario's own, which yields. Time is a paused clock,
//! which moves by one tick when nobody is awake: what falls due at one tick comes in any order.
//! A crate for this (`shuttle`) would bring 21 others and switch stacks; loom is for threads.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

type Boxed = Pin<Box<dyn Future<Output = ()>>>;

/// More steps than any scenario takes; one that takes more polls itself awake for ever.
const MOST_STEPS: usize = 1000;

struct Awake(AtomicBool);

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task {
    name: String,
    future: Option<Boxed>,
    awake: Arc<Awake>,
    /// Ends with the scenario, whatever it waits for.
    background: bool,
    /// Not polled before those of this kind that were spawned earlier have been.
    in_turn: bool,
}

#[derive(Default)]
struct Inner {
    new: RefCell<Vec<Task>>,
    killed: RefCell<Vec<String>>,
    steps: Arc<AtomicUsize>,
}

/// One run of a scenario. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Stage(Rc<Inner>);

impl Stage {
    fn add(&self, name: &str, future: impl Future<Output = ()> + 'static) -> &Self {
        self.0.new.borrow_mut().push(Task {
            name: name.into(),
            future: Some(Box::pin(future)),
            awake: Arc::new(Awake(AtomicBool::new(true))),
            background: false,
            in_turn: false,
        });
        self
    }

    /// A task that has to end.
    pub(crate) fn task(&self, name: &str, future: impl Future<Output = ()> + 'static) {
        self.add(name, future);
    }

    /// A task that may wait for ever.
    pub(crate) fn background(&self, name: &str, future: impl Future<Output = ()> + 'static) {
        self.add(name, future);
        self.0.new.borrow_mut().last_mut().unwrap().background = true;
    }

    /// A task that was spawned on the runtime: begun in the order of spawning, as the runtime does.
    pub(crate) fn spawned(&self, name: &str, future: impl Future<Output = ()> + 'static) {
        self.add(name, future);
        self.0.new.borrow_mut().last_mut().unwrap().in_turn = true;
    }

    /// A task is dropped, at whatever moment the scenario calls this.
    pub(crate) fn kill(&self, name: &str) {
        self.0.killed.borrow_mut().push(name.into());
    }

    /// The number of the step that is being made.
    pub(crate) fn steps(&self) -> Arc<AtomicUsize> {
        self.0.steps.clone()
    }
}

/// Lets everybody else go first, if the order wants it so.
pub(crate) async fn yields() {
    let mut done = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut done, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs a scenario in every order. The scenario puts its tasks on the stage and returns the check
/// at the end. Returns the number of orders.
pub(crate) fn in_every_order<C: FnOnce()>(scenario: impl Fn(&Stage) -> C) -> usize {
    every_order(None, scenario)
}

/// As [`in_every_order`], with timers: the clock is paused and moves by `tick`.
pub(crate) fn in_every_order_of_time<C: FnOnce()>(
    tick: Duration,
    scenario: impl Fn(&Stage) -> C,
) -> usize {
    every_order(Some(tick), scenario)
}

fn every_order<C: FnOnce()>(tick: Option<Duration>, scenario: impl Fn(&Stage) -> C) -> usize {
    let mut choices: Vec<(usize, usize)> = Vec::new();
    let mut orders = 0;
    loop {
        one_order(tick, &scenario, &mut choices);
        orders += 1;
        // The next order: the last choice that has another way left.
        while choices.last().is_some_and(|(taken, of)| taken + 1 == *of) {
            choices.pop();
        }
        match choices.last_mut() {
            Some((taken, _)) => *taken += 1,
            None => return orders,
        }
    }
}

fn one_order<C: FnOnce()>(
    tick: Option<Duration>,
    scenario: impl Fn(&Stage) -> C,
    choices: &mut Vec<(usize, usize)>,
) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = tick.map(|_| runtime.enable_time().start_paused(true).build().unwrap());
    let _inside = runtime.as_ref().map(tokio::runtime::Runtime::enter);
    let stage = Stage::default();
    let check = scenario(&stage);
    let mut tasks: Vec<Task> = Vec::new();
    let mut trace: Vec<String> = Vec::new();
    let (mut depth, mut ticks) = (0, 0);
    // Said where a check fails inside a poll: which order it was.
    struct Said<'a>(&'a RefCell<Vec<String>>);
    impl Drop for Said<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                #[allow(clippy::print_stderr)]
                // A test's own words.
                {
                    eprintln!("in this order: {}", self.0.borrow().join(" "));
                }
            }
        }
    }
    let said = RefCell::new(Vec::new());
    let _said = Said(&said);
    loop {
        tasks.append(&mut stage.0.new.borrow_mut());
        for name in stage.0.killed.borrow_mut().drain(..) {
            for task in tasks.iter_mut().filter(|t| t.name == name) {
                task.future = None;
            }
        }
        let first_in_turn = tasks.iter().position(|t| t.in_turn && t.future.is_some());
        let awake: Vec<usize> = (0..tasks.len())
            .filter(|&i| {
                let t = &tasks[i];
                let turn = !t.in_turn || Some(i) == first_in_turn;
                t.future.is_some() && t.awake.0.load(Ordering::Relaxed) && turn
            })
            .collect();
        let count = awake.len();
        if count == 0 {
            let waits = tasks.iter().any(|t| t.future.is_some() && !t.background);
            if let (Some(runtime), Some(tick), true) = (&runtime, tick, waits) {
                ticks += 1;
                assert!(ticks < MOST_STEPS, "no end: {}", trace.join(" "));
                runtime.block_on(tokio::time::advance(tick));
                continue;
            }
            break;
        }
        let pick = match choices.get(depth) {
            Some((taken, of)) => {
                assert_eq!(*of, count, "a scenario has to be the same each time");
                *taken
            }
            None => {
                choices.push((0, count));
                0
            }
        };
        depth += 1;
        assert!(depth < MOST_STEPS, "no end: {}", trace.join(" "));
        let task = &mut tasks[awake[pick]];
        trace.push(task.name.clone());
        said.borrow_mut().push(task.name.clone());
        stage.0.steps.store(depth, Ordering::Relaxed);
        task.in_turn = false;
        task.awake.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(task.awake.clone());
        let future = task.future.as_mut().unwrap();
        if future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
        {
            task.future = None;
        }
    }
    for task in tasks.iter().filter(|t| !t.background) {
        assert!(task.future.is_none(), "{} waits for ever", task.name);
    }
    tasks.clear();
    check();
}

#[test]
fn every_order_of_two_tasks_is_tried() {
    let seen: RefCell<std::collections::BTreeSet<String>> = RefCell::default();
    let orders = in_every_order(|stage| {
        let said: Rc<RefCell<String>> = Rc::default();
        for name in ["a", "b"] {
            let said = said.clone();
            stage.task(name, async move {
                said.borrow_mut().push_str(name);
                yields().await;
                said.borrow_mut().push_str(name);
            });
        }
        let seen = &seen;
        move || {
            seen.borrow_mut().insert(said.borrow().clone());
        }
    });
    let all = ["aabb", "abab", "abba", "baab", "baba", "bbaa"];
    assert!(seen.borrow().iter().map(String::as_str).eq(all));
    assert_eq!(orders, 6);
}
