//! What the worker processes did, from looks at the server's process tree. Pure.
//!
//! MLServer's health calls come from its main process and never see a worker that is dead or dies
//! again and again. Pid and start time name a process; a worker that was there at one look and
//! is not at the next has ended, whatever happened in between.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::process::{Process, Role, Server};

/// A worker that has lived so long has not died at its start.
const SETTLED: Duration = Duration::from_secs(10);
/// Exits within this time are held against the workers.
const WINDOW: Duration = Duration::from_secs(60);
/// So many of them, with no worker that has settled, are a loop.
const LOOP: usize = 5;

/// What one process is called for good.
type Name = (u32, u64);

/// How the workers stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Workers {
    /// The processes cannot be seen, so nothing is held against them.
    #[default]
    Unseen,
    /// The main process has never had one: it runs the models itself, or is only starting.
    NoneYet,
    /// At least one is there.
    There {
        /// How many.
        count: usize,
        /// When one last ended, within the last minute.
        ended: Option<Duration>,
    },
    /// There were some, and now there is none.
    Missing {
        /// Since when.
        since: Duration,
    },
    /// They end as soon as they are started.
    Looping {
        /// Since when.
        since: Duration,
    },
}

impl Workers {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Workers::Unseen => "unseen",
            Workers::NoneYet => "none-yet",
            Workers::There { .. } => "there",
            Workers::Missing { .. } => "missing",
            Workers::Looping { .. } => "looping",
        }
    }
}

/// The record of one server.
#[derive(Debug, Clone, Default)]
pub struct Record {
    main: Option<Process>,
    /// The last look has not found it, although it lives.
    unseen: bool,
    /// Main processes so far.
    starts: u64,
    /// The workers of the last look, and when each was first seen.
    workers: BTreeMap<Name, (Process, Duration)>,
    expected: bool,
    exits: u64,
    /// When a worker of this main process was last seen to have ended.
    exited: Option<Duration>,
    recent: VecDeque<Duration>,
    missing: Option<Duration>,
    looping: Option<Duration>,
    orphans: Vec<Process>,
}

fn name(process: &Process) -> Name {
    (process.pid, process.start)
}

impl Record {
    /// Takes a look. `lives` tells whether a process that is in no tree any more still runs.
    pub fn look(
        &mut self,
        at: Duration,
        server: Option<&Server>,
        lives: impl Fn(&Process) -> bool,
    ) {
        self.orphans.retain(|orphan| lives(orphan));
        self.unseen = server.is_none();
        let Some(server) = server else {
            match &self.main {
                // It could only not be told from others: what it has is there at the next look.
                Some(main) if lives(main) => {
                    self.missing = None;
                    self.looping = None;
                }
                // Without a main process there is nothing whose workers they could be.
                Some(_) => self.leave(&lives, None),
                None => {}
            }
            return;
        };
        if self.is_new(server) {
            self.leave(&lives, Some(server));
            self.main = Some(server.main.clone());
            self.starts += 1;
            self.exited = None;
        }
        let owned = |p: &Process| server.children.iter().any(|c| name(c) == name(p));
        self.orphans.retain(|orphan| !owned(orphan));
        let now = server.children.iter().filter(|p| p.role == Role::Worker);
        let now: BTreeMap<Name, &Process> = now.map(|p| (name(p), p)).collect();
        let before = self.workers.len();
        self.workers.retain(|name, _| now.contains_key(name));
        for _ in self.workers.len()..before {
            self.exits += 1;
            self.exited = Some(at);
            self.recent.push_back(at);
        }
        for (name, process) in now {
            let seen = (process.clone(), at);
            self.workers.entry(name).or_insert(seen);
        }
        self.expected |= !self.workers.is_empty();
        let old = |t: &Duration| at.saturating_sub(*t) > WINDOW;
        while self.recent.front().is_some_and(old) {
            self.recent.pop_front();
        }
        self.missing = match self.expected && self.workers.is_empty() {
            true => self.missing.or(Some(at)),
            false => None,
        };
        let settled = |(_, seen): &(Process, Duration)| at.saturating_sub(*seen) >= SETTLED;
        let any_settled = self.workers.values().any(settled);
        self.looping = match !any_settled && self.recent.len() >= LOOP {
            true => self.looping.or(self.recent.front().copied()),
            false => None,
        };
    }

    /// The main process has gone: those of its workers that have not are orphans.
    fn leave(&mut self, lives: &impl Fn(&Process) -> bool, new: Option<&Server>) {
        let inside = |p: &Process| {
            new.is_some_and(|server| server.children.iter().any(|c| name(c) == name(p)))
        };
        let left = std::mem::take(&mut self.workers).into_values();
        let left = left.map(|(process, _)| process);
        self.orphans.extend(left.filter(|p| lives(p) && !inside(p)));
        self.main = None;
        self.expected = false;
        self.recent.clear();
        self.missing = None;
        self.looping = None;
    }

    /// Whether this main process is another one than at the last look.
    pub fn is_new(&self, server: &Server) -> bool {
        self.main.as_ref().map(name) != Some(name(&server.main))
    }

    /// Workers that a main process had left behind before the first look at the one of now.
    pub fn left_before(&mut self, orphans: Vec<Process>) {
        let known = |o: &Process, all: &[Process]| all.iter().any(|k| name(k) == name(o));
        for orphan in orphans {
            if !known(&orphan, &self.orphans) {
                self.orphans.push(orphan);
            }
        }
    }

    /// Main processes that were seen, one after the other.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// When a worker of the main process of now was last seen to have ended.
    pub fn exited(&self) -> Option<Duration> {
        self.exited
    }

    /// How the workers stand.
    pub fn workers(&self) -> Workers {
        if self.unseen {
            return Workers::Unseen;
        }
        if let Some(since) = self.looping {
            return Workers::Looping { since };
        }
        match (&self.main, self.missing, self.expected) {
            (None, ..) => Workers::Unseen,
            (_, Some(since), _) => Workers::Missing { since },
            (_, None, false) => Workers::NoneYet,
            (_, None, true) => Workers::There {
                count: self.workers.len(),
                ended: self.recent.back().copied(),
            },
        }
    }

    /// Workers that were seen to end while their main process lived.
    pub fn exits(&self) -> u64 {
        self.exits
    }

    /// Exits within the last minute.
    pub fn recent(&self) -> usize {
        self.recent.len()
    }

    /// Workers whose main process has gone and that still hold their memory.
    pub fn orphans(&self) -> Vec<u32> {
        self.orphans.iter().map(|p| p.pid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::FoundBy;

    fn process(pid: u32, role: Role) -> Process {
        Process {
            pid,
            ppid: 1,
            start: u64::from(pid),
            uid: None,
            role,
        }
    }

    fn server(main: u32, workers: &[u32]) -> Server {
        Server {
            main: process(main, Role::Main),
            children: workers.iter().map(|w| process(*w, Role::Worker)).collect(),
            found_by: FoundBy::Cmdline,
        }
    }

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_worker_that_is_replaced_is_an_exit_and_no_loop() {
        let mut record = Record::default();
        let dead = |_: &Process| false;
        assert_eq!(record.workers(), Workers::Unseen);
        record.look(s(1), Some(&server(10, &[])), dead);
        assert_eq!(record.workers(), Workers::NoneYet);
        record.look(s(2), Some(&server(10, &[11])), dead);
        record.look(s(30), Some(&server(10, &[])), dead);
        assert_eq!(record.workers(), Workers::Missing { since: s(30) });
        record.look(s(32), Some(&server(10, &[12])), dead);
        assert_eq!(
            record.workers(),
            Workers::There {
                count: 1,
                ended: Some(s(30))
            }
        );
        assert_eq!((record.exits(), record.recent()), (1, 1));
        record.look(s(100), Some(&server(10, &[12])), dead);
        assert_eq!(
            record.workers(),
            Workers::There {
                count: 1,
                ended: None
            }
        );
        record.look(s(101), None, dead);
        assert_eq!(record.workers(), Workers::Unseen);
    }

    #[test]
    fn workers_that_die_at_their_start_are_a_loop_until_one_settles() {
        let mut record = Record::default();
        for n in 0..6u64 {
            let pid = 20 + n as u32;
            record.look(s(2 * n), Some(&server(10, &[pid])), |_| false);
        }
        assert_eq!(record.workers(), Workers::Looping { since: s(2) });
        record.look(s(19), Some(&server(10, &[25])), |_| false);
        assert!(matches!(record.workers(), Workers::Looping { .. }));
        record.look(s(20), Some(&server(10, &[25])), |_| false);
        assert!(matches!(record.workers(), Workers::There { count: 1, .. }));
    }

    #[test]
    fn one_worker_of_two_that_dies_again_and_again_does_not_condemn_the_other() {
        let mut record = Record::default();
        for n in 0..20u32 {
            let at = s(2 * u64::from(n));
            record.look(at, Some(&server(10, &[11, 20 + n])), |_| false);
        }
        assert!(matches!(record.workers(), Workers::There { count: 2, .. }));
        assert_eq!(record.exits(), 19);
    }

    #[test]
    fn workers_that_were_left_before_the_first_look_are_orphans_once() {
        let mut record = Record::default();
        let now = server(10, &[11]);
        assert!(record.is_new(&now));
        record.look(s(1), Some(&now), |_| true);
        record.left_before(vec![process(7, Role::Worker)]);
        record.left_before(vec![process(7, Role::Worker)]);
        assert!(!record.is_new(&now));
        assert_eq!((record.orphans(), record.starts()), (vec![7], 1));
        record.look(s(2), Some(&server(10, &[11])), |p| p.pid != 7);
        assert!(record.orphans().is_empty());
        record.look(s(3), None, |_| false);
        record.look(s(4), Some(&server(20, &[])), |_| false);
        assert_eq!(record.starts(), 2);
    }

    #[test]
    fn a_look_that_does_not_find_the_main_process_which_lives_makes_no_orphans_and_no_restart() {
        let mut record = Record::default();
        let all = |_: &Process| true;
        record.look(s(1), Some(&server(10, &[11])), all);
        record.look(s(2), None, all);
        assert_eq!(record.workers(), Workers::Unseen);
        assert!(record.orphans().is_empty());
        record.look(s(3), Some(&server(10, &[11])), all);
        assert_eq!((record.orphans(), record.starts()), (vec![], 1));
        // What ended unseen is an exit, and its lack counts from when it is seen.
        record.look(s(4), Some(&server(10, &[])), |p| p.pid == 10);
        record.look(s(90), None, |p| p.pid == 10);
        record.look(s(91), Some(&server(10, &[])), |p| p.pid == 10);
        assert_eq!(record.workers(), Workers::Missing { since: s(91) });
        assert_eq!((record.exits(), record.starts()), (1, 1));
    }

    #[test]
    fn a_worker_of_the_main_process_is_no_orphan_whatever_was_said_before() {
        let mut record = Record::default();
        record.look(s(1), Some(&server(10, &[11])), |_| true);
        // Not even the main process was seen to live.
        record.look(s(2), None, |p| p.pid == 11);
        assert_eq!(record.orphans(), [11]);
        record.look(s(3), Some(&server(10, &[11])), |_| true);
        assert!(record.orphans().is_empty());
    }

    #[test]
    fn workers_of_a_killed_main_process_are_orphans_until_they_end() {
        let mut record = Record::default();
        record.look(s(1), Some(&server(10, &[11, 12])), |_| true);
        record.look(s(2), Some(&server(30, &[31])), |p| p.pid == 11);
        assert_eq!((record.orphans(), record.exits()), (vec![11], 0));
        record.look(s(3), None, |p| p.pid == 31 || p.pid == 11);
        assert_eq!(record.orphans(), [11, 31]);
        record.look(s(4), Some(&server(40, &[])), |_| false);
        assert!(record.orphans().is_empty());
    }
}
