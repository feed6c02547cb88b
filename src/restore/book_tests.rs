use super::*;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn loaded(at: u64) -> Loaded {
    Loaded {
        at: s(at),
        took: s(1),
        files: None,
    }
}

fn with(names: &[&str]) -> Book {
    let mut book = Book::default();
    book.index(names.iter().map(|n| (*n, "READY")), s(1));
    book
}

#[test]
fn after_a_restart_everything_that_was_ready_is_due_most_recently_used_first() {
    let mut book = with(&["a", "b", "c"]);
    book.index([("d", "UNAVAILABLE"), ("e", "UNKNOWN")].into_iter(), s(2));
    book.used("b", s(3));
    book.used("c", s(4));
    book.used("stranger", s(5));
    assert_eq!(book.next(s(5)), None, "nothing was lost");
    book.restarted(s(5), s(6));
    let order: Vec<String> = std::iter::from_fn(|| {
        let next = book.next(s(6))?;
        book.load_done(&next, Ok(loaded(6)), s(6));
        Some(next)
    })
    .collect();
    assert_eq!(order, ["c", "b", "a"]);
    assert!(book.restoring().is_empty());
}

#[test]
fn no_more_than_two_run_at_once() {
    let mut book = with(&["a", "b", "c"]);
    book.restarted(s(1), s(2));
    assert!(book.next(s(2)).is_some() && book.next(s(2)).is_some());
    assert_eq!(book.next(s(2)), None);
}

#[test]
fn a_model_whose_load_kills_the_server_costs_no_other_its_tries() {
    let names = ["a", "b", "killer", "z"];
    let mut book = with(&names);
    book.used("killer", s(2));
    let mut now = s(3);
    book.restarted(now, now);
    let (mut deaths, mut crowd) = (0, 0);
    loop {
        let mut running = Vec::new();
        while let Some(name) = book.next(now) {
            running.push(name);
        }
        crowd = crowd.max(running.len());
        if running.iter().any(|name| name == "killer") {
            deaths += 1;
            assert!(running.len() == 1 || deaths == 1, "{running:?}");
            for name in &running {
                book.load_done(name, Err("connection reset".into()), now);
            }
            book.restarted(now, now);
        } else {
            for name in &running {
                assert_eq!(book.load_done(name, Ok(loaded(1)), now), Then::Restored);
            }
        }
        match book.due() {
            Some(at) => now = now.max(at),
            None => break,
        }
    }
    assert_eq!((deaths, crowd), (TRIES, AT_ONCE));
    let left: Vec<_> = book.restoring().into_iter().map(|r| r.model).collect();
    assert_eq!(left, ["killer"], "all others are back");
}

#[test]
fn one_that_has_failed_runs_alone_and_last_but_not_for_ever() {
    let mut book = with(&["a", "b", "c", "d"]);
    book.restarted(s(1), s(2));
    let first = book.next(s(2)).unwrap();
    book.load_done(&first, Err("no".into()), s(2));
    let now = s(60);
    let others = [book.next(now).unwrap(), book.next(now).unwrap()];
    assert!(!others.contains(&first), "the others come before it");
    assert_eq!(book.due(), None, "two run");
    book.load_done(&others[0], Ok(loaded(60)), now);
    let third = book.next(now).unwrap();
    assert_ne!(third, first);
    book.load_done(&third, Ok(loaded(60)), now);
    // One hangs: the second place is free, and for a while not for one that has failed.
    let later = now + APART;
    assert_eq!((book.next(now), book.due()), (None, Some(later)));
    assert_eq!(book.next(later), Some(first.clone()));
    // Another that is lost meanwhile waits for less long, where there is place.
    book.load_done(&others[1], Ok(loaded(120)), later);
    book.restarted(later, later);
    assert_eq!(book.next(later), None);
    assert_eq!(book.due(), Some(later + ALONE));
    assert!(book.next(later + ALONE).is_some_and(|next| next != first));
}

#[test]
fn nothing_runs_beside_its_owners_load_of_one_that_has_failed() {
    let mut book = with(&["a", "killer"]);
    book.used("killer", s(1));
    book.restarted(s(1), s(2));
    assert_eq!(book.next(s(2)).as_deref(), Some("killer"));
    book.load_done("killer", Err("no".into()), s(2));
    book.load_begins("killer", s(3));
    assert_eq!((book.next(s(3)), book.due()), (None, Some(s(3) + ALONE)));
    // Nor when its caller has gone, and the server goes on with it.
    book.load_left("killer", s(4));
    assert_eq!((book.next(s(4)), book.due()), (None, Some(s(4) + ALONE)));
    book.unload_begins("killer", s(5));
    book.unload_ended("killer", s(5));
    assert_eq!(book.next(s(5)).as_deref(), Some("a"));
}

#[test]
fn what_is_found_ready_has_not_failed() {
    let mut book = with(&["a"]);
    book.restarted(s(1), s(2));
    let a = book.next(s(2)).unwrap();
    book.load_done(&a, Err("broken off".into()), s(2));
    book.next(s(60)).unwrap();
    book.found(&a, s(60));
    book.restarted(s(61), s(61));
    assert_eq!(book.restoring()[0].failures, 0);
}

#[test]
fn what_was_unloaded_is_not_restored_whether_before_or_meanwhile() {
    let mut book = with(&["before", "due", "running"]);
    book.unload_begins("before", s(2));
    book.unload_ended("before", s(3));
    book.used("running", s(3));
    book.restarted(s(3), s(4));
    assert_eq!(book.next(s(4)).as_deref(), Some("running"));
    book.unload_begins("due", s(5));
    book.unload_ended("due", s(5));
    book.unload_begins("running", s(5));
    assert!(!book.may_load("running"));
    // The unload came to the server before the load did.
    book.unload_ended("running", s(6));
    assert_eq!(book.load_done("running", Ok(loaded(7)), s(7)), Then::Undo);
    assert!(book.is_running("running"), "until it is unloaded again");
    book.ended("running", s(8));
    assert_eq!(book.next(s(100)), None);
    assert_eq!(book.wanted(), 0);
}

#[test]
fn what_its_owner_unloads_just_now_is_undone_only_when_he_has_ended() {
    let mut book = with(&["a"]);
    book.restarted(s(1), s(2));
    assert_eq!(book.next(s(2)).as_deref(), Some("a"));
    book.unload_begins("a", s(3));
    assert_eq!(book.load_done("a", Ok(loaded(4)), s(4)), Then::Wait);
    assert_eq!(book.settled("a"), None, "he is still at it");
    book.unload_ended("a", s(5));
    assert_eq!(book.settled("a"), Some(Then::Undo));
}

#[test]
fn names_that_no_model_can_have_are_not_kept() {
    let mut book = Book::default();
    for n in 0..1000 {
        let name = format!("{n}-{}", "x".repeat(60 * 1024));
        book.unload_begins(&name, s(1));
        book.unload_ended(&name, s(2));
        book.load_begins(&name, s(3));
        book.load_ended(&name, Some(loaded(4)), s(4));
    }
    assert!(book.entries.is_empty() && book.unloaded.is_empty());
    let longest = "x".repeat(LONGEST_NAME);
    book.load_begins(&longest, s(5));
    book.load_ended(&longest, Some(loaded(6)), s(6));
    assert_eq!(book.wanted(), 1);
}

#[test]
fn an_unload_without_the_shim_is_told_from_a_restart_by_when_it_showed() {
    let mut book = with(&["a", "b"]);
    book.index([("a", "UNAVAILABLE"), ("b", "READY")].into_iter(), s(5));
    // The server was alive long after a had gone.
    book.restarted(s(60), s(61));
    assert_eq!(book.next(s(61)).as_deref(), Some("b"));
    assert_eq!(book.next(s(61)), None);

    // An index of the new process, read before the restart was noticed.
    let mut book = with(&["a"]);
    book.index([("a", "UNAVAILABLE")].into_iter(), s(10));
    book.restarted(s(9), s(11));
    assert_eq!(book.next(s(11)).as_deref(), Some("a"));
}

#[test]
fn an_old_index_does_not_bring_back_what_was_unloaded_since() {
    let mut book = with(&["a"]);
    book.unload_begins("a", s(5));
    book.unload_ended("a", s(6));
    book.index([("a", "READY")].into_iter(), s(4));
    assert_eq!(book.wanted(), 0);
    book.index([("a", "READY")].into_iter(), s(7));
    assert_eq!(book.wanted(), 1, "it is there after all");
}

#[test]
fn it_is_given_up_after_the_last_try_and_comes_back_with_a_callers_load() {
    let mut book = with(&["a"]);
    book.restarted(s(1), s(2));
    let (mut now, mut waits) = (s(2), Vec::new());
    loop {
        let name = book.next(now).unwrap();
        match book.load_done(&name, Err("no".into()), now) {
            Then::Later => {
                let at = book.due().unwrap();
                assert_eq!(book.next(at - Duration::from_millis(1)), None);
                waits.push((at - now).as_secs());
                now = at;
            }
            then => {
                assert_eq!(then, Then::GivenUp);
                break;
            }
        }
    }
    assert_eq!(waits, [2, 8, 32]);
    // Not even after another restart: it may be what brings the server down.
    book.restarted(now, now);
    assert_eq!(book.next(s(10_000)), None);
    let given_up = book.restoring();
    assert_eq!(
        (given_up[0].failures, given_up[0].error.as_deref()),
        (TRIES, Some("no"))
    );
    book.load_begins("a", s(10_001));
    book.load_ended("a", Some(loaded(10_002)), s(10_002));
    assert!(book.restoring().is_empty());
}

#[test]
fn a_callers_load_under_way_is_not_doubled() {
    let mut book = with(&["a"]);
    book.restarted(s(1), s(2));
    book.load_begins("a", s(2));
    assert_eq!((book.next(s(3)), book.due()), (None, None));
    book.load_ended("a", None, s(4));
    assert_eq!(
        book.next(s(4)).as_deref(),
        Some("a"),
        "it failed: the shim's turn"
    );
}

#[test]
fn an_agent_that_starts_wants_nothing_that_is_not_there_yet() {
    let mut book = with(&["a", "b", "c"]);
    book.used("a", s(1));
    book.restarted(s(1), s(2));
    let running = [book.next(s(2)).unwrap(), book.next(s(2)).unwrap()];
    assert!(!running.contains(&"c".to_string()));
    book.agent_starts();
    assert_eq!(book.due(), None);
    // What runs is listed as loading, and the agent unloads it by itself.
    assert_eq!(book.load_done("a", Ok(loaded(3)), s(3)), Then::Restored);
}

#[test]
fn a_load_is_needless_only_from_the_same_files_and_while_the_model_is_trusted() {
    let folder = std::env::temp_dir().join(format!("agent-shim-book-{}", std::process::id()));
    let make = |name: &str| {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        std::fs::write(folder.join(name).join("model-settings.json"), "{}").unwrap();
        super::super::files::fingerprint(&folder, name).unwrap()
    };
    let (old, new) = (make("old"), make("new"));
    std::fs::remove_dir_all(&folder).unwrap();
    let mut book = Book::default();
    let load = |book: &mut Book, at: u64, took: u64, files| {
        book.load_begins("a", s(at));
        let done = Loaded {
            at: s(at),
            took: s(took),
            files,
        };
        book.load_ended("a", Some(done), s(at));
    };
    load(&mut book, 10, 1, Some(old));
    assert!(book.is_fresh("a", &old, s(70)) && !book.is_fresh("a", &new, s(70)));
    assert!(
        !book.is_fresh("a", &old, s(71)),
        "a worker may have lost it since"
    );
    book.worked("a", s(100));
    assert!(book.is_fresh("a", &old, s(160)));
    load(&mut book, 200, 60, Some(old));
    assert!(
        book.is_fresh("a", &old, s(800)),
        "a long load is trusted for longer"
    );
    book.restarted(s(800), s(801));
    assert!(
        !book.is_fresh("a", &old, s(801)),
        "the new process has nothing"
    );
    load(&mut book, 900, 1, None);
    assert!(!book.is_fresh("a", &old, s(901)));
    load(&mut book, 910, 1, Some(old));
    book.unload_begins("a", s(911));
    assert!(!book.is_fresh("a", &old, s(911)));
}

#[test]
fn trust_ends_with_a_miss_and_with_a_worker() {
    let files = Fingerprint::number(1);
    let mut book = Book::default();
    let load = |book: &mut Book, name: &str| {
        book.load_begins(name, s(1));
        let done = Loaded {
            at: s(300),
            took: s(300),
            files: Some(files),
        };
        book.load_ended(name, Some(done), s(300));
        book.worked(name, s(301));
    };
    load(&mut book, "a");
    load(&mut book, "b");
    assert!(book.is_fresh("a", &files, s(3000)), "for 50 minutes");
    book.missed("a");
    assert!(!book.is_fresh("a", &files, s(302)) && book.is_fresh("b", &files, s(302)));
    load(&mut book, "a");
    book.worker_ended();
    assert!(!book.is_fresh("a", &files, s(302)) && !book.is_fresh("b", &files, s(302)));
    assert_eq!(book.wanted(), 2, "they belong in memory all the same");
}

#[test]
fn what_is_due_wakes_nobody_while_there_is_no_place() {
    let mut book = with(&["a", "b", "c"]);
    book.restarted(s(1), s(2));
    assert_eq!(book.due(), Some(s(2)));
    let first = book.next(s(2)).unwrap();
    assert_eq!(book.due(), Some(s(2)));
    book.next(s(2)).unwrap();
    assert_eq!(book.due(), None, "the end of one wakes");
    book.load_done(&first, Ok(loaded(9)), s(9));
    assert_eq!(book.due(), Some(s(2)));
}

#[test]
fn a_model_is_taken_anew_only_where_nobody_else_is_at_it() {
    let mut book = with(&["a", "b"]);
    assert!(!book.takes("stranger", s(2)));
    book.load_begins("b", s(2));
    assert!(!book.takes("b", s(2)), "its owner loads it");
    assert!(book.takes("a", s(2)) && !book.takes("a", s(2)));
    assert!(book.is_running("a") && book.may_load("a"));
    book.unload_begins("a", s(3));
    assert!(!book.may_load("a"));
    book.unload_ended("a", s(4));
    book.ended("a", s(4));
    assert_eq!((book.next(s(9)), book.wanted()), (None, 1));
    assert!(!book.takes("a", s(2)), "nobody wants it");
}

#[test]
fn a_model_is_taken_anew_by_the_same_bounds_as_one_is_restored() {
    let mut book = with(&["a", "b", "c"]);
    book.restarted(s(1), s(2));
    let (first, second) = (book.next(s(2)).unwrap(), book.next(s(2)).unwrap());
    let third = book.restoring().into_iter().map(|r| r.model);
    let third = third.collect::<Vec<_>>();
    let third = third
        .iter()
        .find(|m| **m != first && **m != second)
        .unwrap();
    book.found(&first, s(3));
    book.next(s(3)).unwrap();
    book.found(third, s(4));
    // Two of three are back, and one runs.
    assert!(book.takes(third, s(4)));
    assert!(!book.takes(&first, s(4)), "two run");
    book.ended(third, s(5));
    // The last one fails, and runs alone then.
    book.load_done(&second, Err("no".into()), s(5));
    let again = s(60);
    assert_eq!(book.next(again).as_ref(), Some(&second));
    assert!(!book.takes(&first, again), "beside one that has failed");
    assert!(book.takes(&first, again + ALONE));
}

#[test]
fn an_index_says_nothing_of_a_model_that_is_being_unloaded() {
    let mut book = with(&["a"]);
    book.unload_begins("a", s(2));
    // The server calls it READY until its worker has answered.
    book.index([("a", "READY")].into_iter(), s(3));
    assert_eq!(book.wanted(), 0);
    book.unload_ended("a", s(10));
    // Its owner has removed the folder, so no index lists it from now on.
    book.index([].into_iter(), s(11));
    book.restarted(s(12), s(12));
    assert_eq!((book.wanted(), book.next(s(12))), (0, None));
}

#[test]
fn a_load_that_its_caller_left_is_under_way_until_an_index_tells() {
    let mut book = Book::default();
    book.load_begins("a", s(2));
    assert!(book.is_changing(s(2)));
    book.load_left("a", s(3));
    assert_eq!(book.calls("a"), 0);
    let states = |state| [("a", state)].into_iter();
    book.index(states("UNAVAILABLE"), s(3));
    assert!(book.is_left("a", s(4)), "that index may be older");
    book.index(states("UNKNOWN"), s(60));
    assert!(book.is_left("a", s(60)) && book.any_left(s(60)) && book.is_changing(s(60)));
    assert!(!book.is_left("a", s(4) + LONGEST), "not for ever");
    book.index(states("READY"), s(90));
    assert!(!book.any_left(s(90)) && !book.is_changing(s(90)));
    assert_eq!(book.wanted(), 1, "it is restored after a restart");
}

#[derive(Debug, Clone)]
enum Step {
    Load(u8, bool),
    UnloadBegins(u8),
    UnloadEnds(u8),
    Restart,
    /// The server says what it has; the shim hears it.
    Asks,
    Index,
    AgentStarts,
    Next,
    Done(bool),
    Undone,
    Pass(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u8..4, any::<bool>()).prop_map(|(m, ok)| Step::Load(m, ok)),
        1 => (0u8..4).prop_map(Step::UnloadBegins),
        1 => (0u8..4).prop_map(Step::UnloadEnds),
        1 => Just(Step::Restart),
        1 => Just(Step::Asks),
        1 => Just(Step::Index),
        1 => Just(Step::AgentStarts),
        2 => Just(Step::Next),
        1 => any::<bool>().prop_map(Step::Done),
        1 => Just(Step::Undone),
        1 => (1u8..60).prop_map(Step::Pass),
    ]
}

/// What a load of the shim's own is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Loads,
    /// It is loaded, and its owner's unload is under way.
    Waits,
    /// It is being unloaded again.
    Undone,
}

/// The account, a server, and an oracle that knows only what callers have asked for.
struct History {
    book: Book,
    now: Duration,
    /// What the server has.
    memory: [bool; 4],
    /// What callers want in it: an index tells nothing that is not known here.
    wanted: [bool; 4],
    unloading: [bool; 4],
    running: Vec<(usize, At)>,
    failed: [u32; 4],
    alone: [bool; 4],
    started: [Duration; 4],
    /// An index on its way to the shim.
    said: Option<(Duration, [bool; 4])>,
}

fn named(m: usize) -> String {
    format!("m{m}")
}

impl History {
    fn new() -> Self {
        History {
            book: Book::default(),
            now: s(1),
            memory: [false; 4],
            wanted: [false; 4],
            unloading: [false; 4],
            running: Vec::new(),
            failed: [0; 4],
            alone: [false; 4],
            started: [s(0); 4],
            said: None,
        }
    }

    fn loaded(&self) -> Loaded {
        Loaded {
            at: self.now,
            took: s(0),
            files: None,
        }
    }

    fn does(&mut self, step: Step) -> Result<(), TestCaseError> {
        self.now += Duration::from_millis(10);
        match step {
            Step::Load(m, ok) => {
                let m = usize::from(m);
                // The server does one after the other.
                self.unload_ends(m)?;
                self.book.load_begins(&named(m), self.now);
                self.now += Duration::from_millis(10);
                let done = ok.then(|| self.loaded());
                self.book.load_ended(&named(m), done, self.now);
                // One that is being taken back is loaded by its owner when that is over.
                if ok && !self.running.contains(&(m, At::Undone)) {
                    self.memory[m] = true;
                }
                if ok {
                    self.wanted[m] = true;
                    self.failed[m] = 0;
                }
            }
            Step::UnloadBegins(m) => {
                let m = usize::from(m);
                if !self.unloading[m] {
                    self.book.unload_begins(&named(m), self.now);
                    self.unloading[m] = true;
                    self.wanted[m] = false;
                    self.failed[m] = 0;
                }
            }
            Step::UnloadEnds(m) => self.unload_ends(usize::from(m))?,
            Step::Restart => {
                self.memory = [false; 4];
                self.said = None;
                self.book.restarted(self.now, self.now);
            }
            Step::Asks => self.said = Some((self.now, self.memory)),
            Step::Index => {
                let (asked, memory) = self.said.take().unwrap_or((self.now, self.memory));
                let state = |m: usize| if memory[m] { "READY" } else { "UNAVAILABLE" };
                let names: Vec<String> = (0..4).map(named).collect();
                let all = names.iter().enumerate();
                self.book
                    .index(all.map(|(m, n)| (n.as_str(), state(m))), asked);
            }
            Step::AgentStarts => {
                let all = self.book.restoring();
                self.book.agent_starts();
                for r in all.iter().filter(|r| r.stage != Stage::Running) {
                    let m = number(&r.model);
                    self.wanted[m] = false;
                    // It has been loaded after all: the agent finds it listed, and unloads it.
                    if self.memory[m] {
                        self.book.unload_begins(&r.model, self.now);
                        self.book.unload_ended(&r.model, self.now);
                        self.memory[m] = false;
                    }
                }
            }
            Step::Next => {
                self.next()?;
            }
            Step::Done(ok) => {
                let loads = self.running.iter().rposition(|(_, at)| *at == At::Loads);
                if let Some(which) = loads {
                    self.done(which, ok)?;
                }
            }
            Step::Undone => self.undone(),
            Step::Pass(n) => self.now += s(u64::from(n)),
        }
        Ok(())
    }

    fn unload_ends(&mut self, m: usize) -> Result<(), TestCaseError> {
        if !std::mem::take(&mut self.unloading[m]) {
            return Ok(());
        }
        self.memory[m] = false;
        self.book.unload_ended(&named(m), self.now);
        if let Some(waits) = self.running.iter_mut().find(|r| **r == (m, At::Waits)) {
            prop_assert_eq!(self.book.settled(&named(m)), Some(Then::Undo));
            // It may have come to the server before the load.
            self.memory[m] = true;
            waits.1 = At::Undone;
        }
        Ok(())
    }

    /// Whether there was one.
    fn next(&mut self) -> Result<bool, TestCaseError> {
        let Some(next) = self.book.next(self.now) else {
            return Ok(false);
        };
        let m = number(&next);
        prop_assert!(self.wanted[m], "{next} was unloaded");
        prop_assert!(!self.running.iter().any(|(r, _)| *r == m));
        self.alone[m] = self.failed[m] > 0;
        self.started[m] = self.now;
        for (r, _) in &self.running {
            let apart = if self.alone[m] { APART } else { ALONE };
            let long = self.now >= self.started[*r] + apart;
            prop_assert!(long || !self.alone[m] && !self.alone[*r], "{m} beside {r}");
        }
        prop_assert!(self.running.len() < AT_ONCE);
        // It is looked at first.
        if self.memory[m] {
            self.book.found(&next, self.now);
            self.failed[m] = 0;
        } else {
            self.running.push((m, At::Loads));
        }
        Ok(true)
    }

    fn done(&mut self, which: usize, ok: bool) -> Result<(), TestCaseError> {
        let m = self.running[which].0;
        // What its owner has loaded meanwhile is there.
        let ok = ok || self.memory[m];
        let outcome = match ok {
            true => Ok(self.loaded()),
            false => Err("no".to_string()),
        };
        match self.book.load_done(&named(m), outcome, self.now) {
            Then::Restored => {
                prop_assert!(ok && self.wanted[m]);
                self.memory[m] = true;
                self.failed[m] = 0;
            }
            then @ (Then::Undo | Then::Wait) => {
                prop_assert!(ok && !self.wanted[m]);
                prop_assert_eq!(then == Then::Wait, self.unloading[m]);
                self.memory[m] = true;
                self.running[which].1 = match then {
                    Then::Wait => At::Waits,
                    _ => At::Undone,
                };
                return Ok(());
            }
            Then::Later if ok => {}
            Then::Later => {
                self.failed[m] += 1;
                prop_assert!(self.failed[m] < TRIES);
            }
            Then::GivenUp => {
                self.failed[m] += 1;
                prop_assert_eq!(self.failed[m], TRIES);
            }
            Then::Dropped => prop_assert!(!self.wanted[m]),
        }
        self.running.remove(which);
        Ok(())
    }

    /// The shim's own unload of what its owner has unloaded has ended. His load waits for that.
    fn undone(&mut self) {
        let undone = self.running.iter().position(|(_, at)| *at == At::Undone);
        if let Some(which) = undone {
            let (m, _) = self.running.remove(which);
            self.memory[m] = self.wanted[m];
            self.book.ended(&named(m), self.now);
        }
    }

    /// From here on everything succeeds, and nobody asks for anything.
    fn comes_to_rest(&mut self) -> Result<(), TestCaseError> {
        for m in 0..4 {
            self.unload_ends(m)?;
        }
        for _ in 0..100 {
            if self.next()? {
                continue;
            }
            self.undone();
            if let Some(which) = self.running.iter().position(|(_, at)| *at == At::Loads) {
                self.done(which, true)?;
            } else if let Some(at) = self.book.due() {
                self.now = self.now.max(at);
            } else if self.running.is_empty() {
                break;
            }
        }
        prop_assert!(self.running.is_empty() && self.book.due().is_none());
        for m in 0..4 {
            let expected = self.wanted[m] && self.failed[m] < TRIES;
            prop_assert_eq!(self.memory[m], expected, "{}", named(m));
        }
        let wanted = self.wanted.iter().filter(|wanted| **wanted).count();
        prop_assert_eq!(self.book.wanted(), wanted);
        Ok(())
    }
}

fn number(name: &str) -> usize {
    name[1..].parse().unwrap()
}

proptest! {
    // Against a server that is simulated beside it, and an oracle that knows only what callers
    // have asked for: never more than two at once, never what its owner unloaded, no end without
    // an end of the tries. And when all has ended, what is in memory is what somebody wants there.
    #[test]
    fn nothing_is_loaded_that_its_owner_unloaded_and_what_is_wanted_comes_back(
        steps in prop::collection::vec(step(), 1..200)
    ) {
        let mut history = History::new();
        for step in steps {
            history.does(step)?;
        }
        history.comes_to_rest()?;
    }
}

/// The server and the shim died together; the agent has lived on and subscribes again.
mod what_the_agent_lists {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const NONE: [(&str, &str); 2] = [("a_1", "UNAVAILABLE"), ("on-disk", "UNAVAILABLE")];

    fn names() -> Vec<String> {
        ["a_1", "b_2"].map(String::from).into()
    }

    fn due(book: &Book) -> Vec<String> {
        book.restoring().into_iter().map(|r| r.model).collect()
    }

    #[test]
    fn is_restored_where_nothing_else_is_known_and_the_server_has_none() {
        let mut after = Book::default();
        after.index(NONE.into_iter(), SECOND);
        assert_eq!(after.listed(names(), 2 * SECOND), 2);
        // The list may be there first.
        let mut before = Book::default();
        assert_eq!(before.listed(names(), SECOND), 0);
        assert!(due(&before).is_empty(), "the server has not been asked yet");
        before.index(NONE.into_iter(), 2 * SECOND);
        for mut book in [after, before] {
            assert_eq!(due(&book), names());
            assert_eq!(book.next(3 * SECOND).as_deref(), Some("a_1"));
        }
    }

    #[test]
    fn is_passed_over_where_the_server_has_a_model_or_loads_one() {
        for state in ["READY", "UNKNOWN", "LOADING"] {
            let mut book = Book::default();
            book.index([("b_2", state)].into_iter(), SECOND);
            assert_eq!(book.listed(names(), 2 * SECOND), 0, "{state}");
            assert!(due(&book).is_empty(), "{state}");
        }
    }

    #[test]
    fn is_passed_over_where_the_shim_has_seen_a_load_or_a_model_itself() {
        let mut loaded = Book::default();
        loaded.index(NONE.into_iter(), SECOND);
        loaded.load_begins("c", SECOND);
        loaded.load_ended("c", None, SECOND);
        let mut unloaded = Book::default();
        unloaded.index([("a_1", "READY")].into_iter(), SECOND);
        unloaded.unload_begins("a_1", 2 * SECOND);
        unloaded.unload_ended("a_1", 2 * SECOND);
        unloaded.index(NONE.into_iter(), 3 * SECOND);
        for mut book in [loaded, unloaded] {
            assert_eq!(book.listed(names(), 4 * SECOND), 0);
            assert!(due(&book).is_empty());
        }
    }

    #[test]
    fn is_given_up_with_what_its_owner_unloads_and_with_an_agent_that_starts() {
        let mut book = Book::default();
        book.listed(names(), SECOND);
        book.unload_begins("a_1", SECOND);
        book.unload_ended("a_1", SECOND);
        book.index(NONE.into_iter(), 2 * SECOND);
        assert_eq!(due(&book), ["b_2"]);
        book.agent_starts();
        assert!(due(&book).is_empty());
        let mut book = Book::default();
        book.listed(names(), SECOND);
        book.agent_starts();
        book.index(NONE.into_iter(), 2 * SECOND);
        assert!(due(&book).is_empty());
    }
}
