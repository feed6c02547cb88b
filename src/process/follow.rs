//! Follows the server from look to look, so that a look each second costs a few small files.
//!
//! A search reads every process and, where the names do not tell, the kernel's table of sockets and
//! the descriptors of every process. Pid and start time name a process for good: what was found is
//! looked at by name, and a search is made again only when it may have another result. Whatever
//! cannot be read makes the follower search, never trust: so does the `/proc` of another namespace, in
//! which nobody says whether a process has started.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Candidate, NotFound, Process, Server, Stat};
use super::{by_listener, is_running, named, processes, tree};
use crate::procfs;

/// Longest time between two looks at every process: some runtimes show an old `/proc/loadavg`.
const SCAN: Duration = Duration::from_secs(5);
/// A tree in which a process came or went is looked at as a whole each time for so long: workers
/// that die at their start live for 1.3 s to 2.5 s.
const UNREST: Duration = Duration::from_secs(60);
/// Longest time between two looks for who listens while no process has the server's name.
const LISTENERS: Duration = Duration::from_secs(5);
/// The first such time; it doubles.
const LISTENERS_FIRST: Duration = Duration::from_millis(500);
/// Time after which a server that was found only by its listener is looked for anew.
const CHOICE: Duration = Duration::from_secs(60);
/// `/proc/self/status` has about 1.5 KiB.
const MAX_STATUS: usize = 16 * 1024;
/// `/proc/loadavg` is one short line.
const MAX_LOADAVG: usize = 256;

/// Follows one server.
#[derive(Debug)]
pub struct Follower {
    proc: PathBuf,
    ports: Vec<u16>,
    server: Option<Server>,
    /// Whether the kernel's count of process ids is that of the processes in this `/proc`.
    counted: bool,
    /// The last process id that the kernel had given when all processes were last read.
    last_pid: Option<u64>,
    scanned: Duration,
    /// When the tree last changed.
    changed: Duration,
    choice: Option<Choice>,
}

/// The last look for who listens.
#[derive(Debug)]
struct Choice {
    /// Which processes called themselves the server.
    among: Vec<u32>,
    at: Duration,
    /// How long it stands.
    holds: Duration,
}

impl Follower {
    /// A follower that knows nothing yet. `ports` are the server's.
    pub fn new(proc: &Path, ports: &[u16]) -> Self {
        Follower {
            proc: proc.into(),
            ports: ports.into(),
            counted: is_own(proc),
            server: None,
            last_pid: None,
            scanned: Duration::ZERO,
            changed: Duration::ZERO,
            choice: None,
        }
    }

    /// The server as it is now. `now` must not go back from call to call.
    pub fn look(&mut self, now: Duration) -> Result<Server, NotFound> {
        if let Some(server) = self.undisturbed(now) {
            return Ok(server.clone());
        }
        // Read before the processes: one that starts in between is found at the next look.
        self.last_pid = self.counted.then(|| last_pid(&self.proc)).flatten();
        self.scanned = now;
        let found = self.scan(now);
        let server = found.as_ref().ok();
        if server.map(names) != self.server.as_ref().map(names) {
            self.changed = now;
        }
        self.server = server.cloned();
        found
    }

    /// The server of the last look, where nothing can have come to it and nothing has gone.
    fn undisturbed(&self, now: Duration) -> Option<&Server> {
        let server = self.server.as_ref()?;
        let recent = |at: Duration, span: Duration| now.saturating_sub(at) < span;
        let quiet = recent(self.scanned, SCAN) && !recent(self.changed, UNREST);
        let none_came = || self.last_pid.is_some() && self.last_pid == last_pid(&self.proc);
        let none_went = || {
            let mut all = std::iter::once(&server.main).chain(&server.children);
            all.all(|p| is_running(&self.proc, p))
        };
        (quiet && none_came() && none_went()).then_some(server)
    }

    fn scan(&mut self, now: Duration) -> Result<Server, NotFound> {
        let all = processes(&self.proc).map_err(NotFound::NoProc)?;
        let named = named(&self.proc, &all);
        let chosen = match named[..] {
            [one] => Some(one),
            _ => {
                let among: Vec<u32> = named.iter().map(|(_, s)| s.pid).collect();
                let known = self.known(&all);
                match self.choice.as_ref().filter(|c| c.stands(&among, now)) {
                    Some(_) if known.is_some() => known,
                    // Its end is no reason to wait: whoever comes next may be there.
                    Some(_) if self.server.is_none() => None,
                    _ => {
                        let chosen = by_listener(&self.proc, &self.ports, &all, named);
                        let holds = match (&chosen, &self.choice) {
                            // The one with the ports may not have bound them yet.
                            _ if !among.is_empty() => SCAN,
                            (Some(_), _) => CHOICE,
                            (None, Some(last)) if last.among == among && self.server.is_none() => {
                                (2 * last.holds).min(LISTENERS)
                            }
                            (None, _) => LISTENERS_FIRST,
                        };
                        let at = now;
                        self.choice = Some(Choice { among, at, holds });
                        chosen
                    }
                }
            }
        };
        let (found_by, main) = chosen.ok_or(NotFound::NoServer)?;
        Ok(tree(&self.proc, &all, found_by, main))
    }

    /// The main process of the last look, where it is still the one that it was.
    fn known<'a>(&self, all: &'a [Stat]) -> Option<Candidate<'a>> {
        let server = self.server.as_ref()?;
        let same = |s: &&Stat| (s.pid, s.start) == name(&server.main);
        all.iter().find(same).map(|stat| (server.found_by, stat))
    }
}

impl Choice {
    fn stands(&self, among: &[u32], now: Duration) -> bool {
        self.among == among && now.saturating_sub(self.at) < self.holds
    }
}

fn name(process: &Process) -> (u32, u64) {
    (process.pid, process.start)
}

fn names(server: &Server) -> Vec<(u32, u64)> {
    let all = std::iter::once(&server.main).chain(&server.children);
    all.map(name).collect()
}

/// Whether this `/proc` is that of the reader's own namespace. The kernel gives the count of the
/// reader's, whichever `/proc` it is read from; `NSpid` has one process id for each namespace from that
/// of this `/proc` down to the reader's, and a reader from elsewhere has no `self` there at all.
fn is_own(proc: &Path) -> bool {
    let Ok(text) = procfs::read_start(&proc.join("self/status"), MAX_STATUS) else {
        return false;
    };
    let mut lines = text.lines();
    let ids = lines.find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| ids.split_ascii_whitespace().count() == 1)
}

/// The process id that the kernel gave last in the reader's namespace: while it stays the same no
/// process and no thread has started there. Not 0, which is what a runtime says that has none.
fn last_pid(proc: &Path) -> Option<u64> {
    let text = procfs::read_start(&proc.join("loadavg"), MAX_LOADAVG).ok()?;
    let last = text.split_ascii_whitespace().nth(4)?.parse().ok()?;
    (last != 0).then_some(last)
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
