//! The inference server's processes, found through `/proc`.
//!
//! Needs the pod's process namespace to be shared; where it is not, the server is simply not
//! there, which is a reason and no error. Any process may end between two reads.

use std::fmt;
use std::path::Path;

use crate::procfs::{self, Unreadable};

pub mod follow;
pub mod listener;

/// What a process is to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Speaks HTTP and gRPC, owns the table of models.
    Main,
    /// Runs models.
    Worker,
    /// Python's resource tracker.
    Tracker,
    /// Another child.
    Other,
}

impl Role {
    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Main => "main",
            Role::Worker => "worker",
            Role::Tracker => "tracker",
            Role::Other => "other",
        }
    }
}

/// One process. Pid and start time together name it: a pid alone is used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The process id.
    pub pid: u32,
    /// The parent's.
    pub ppid: u32,
    /// Start time in clock ticks since boot.
    pub start: u64,
    /// The effective user id, where it could be read.
    pub uid: Option<u32>,
    /// What it is to the server.
    pub role: Role,
}

/// How the server was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// The command line says `mlserver start`.
    Cmdline,
    /// The process is called `mlserver`.
    Comm,
    /// It listens on the server's port.
    Listener,
}

impl FoundBy {
    /// The name used in logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            FoundBy::Cmdline => "cmdline",
            FoundBy::Comm => "comm",
            FoundBy::Listener => "listener",
        }
    }
}

/// The server's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The main process.
    pub main: Process,
    /// Everything below it.
    pub children: Vec<Process>,
    /// How the main process was recognised.
    pub found_by: FoundBy,
}

impl Server {
    /// Every process id of the tree, main first.
    pub fn pids(&self) -> Vec<u32> {
        let children = self.children.iter().map(|p| p.pid);
        std::iter::once(self.main.pid).chain(children).collect()
    }

    /// How many processes run models.
    pub fn workers(&self) -> usize {
        let workers = self.children.iter().filter(|p| p.role == Role::Worker);
        workers.count()
    }
}

/// Why the server was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFound {
    /// There is no proc file system to look at.
    NoProc(Unreadable),
    /// No process looks like the server: it does not run, or the pod does not share its process
    /// namespace.
    NoServer,
}

impl NotFound {
    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            NotFound::NoProc(_) => "no-proc",
            NotFound::NoServer => "no-server-process",
        }
    }
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotFound::NoProc(why) => write!(f, "/proc cannot be read: {why}"),
            NotFound::NoServer => f.write_str(
                "no process of the inference server is visible: it is not running, or the pod does not set shareProcessNamespace",
            ),
        }
    }
}

const MAX_STAT: usize = 4096;
const MAX_STATUS: usize = 64 * 1024;
/// Command lines of other programs may be megabytes; the server's says who it is at its start.
const MAX_CMDLINE: usize = 16 * 1024;
/// More processes than a pod has; a bound for a proc root that lies.
const MAX_PROCESSES: usize = 50_000;

/// What `/proc/PID/stat` says.
struct Stat {
    pid: u32,
    ppid: u32,
    comm: String,
    start: u64,
    zombie: bool,
}

/// A process that may be the main one, and how it was recognised.
type Candidate<'a> = (FoundBy, &'a Stat);

/// Looks through all processes. `ports` are the server's; with them a server that is called
/// something else is found by what listens there, and the right one of several is taken.
/// Whoever looks again and again does so through [`follow::Follower`].
pub fn find(proc: &Path, ports: &[u16]) -> Result<Server, NotFound> {
    let all = processes(proc).map_err(NotFound::NoProc)?;
    let named = named(proc, &all);
    let chosen = match named[..] {
        [one] => Some(one),
        _ => by_listener(proc, ports, &all, named),
    };
    let (found_by, main) = chosen.ok_or(NotFound::NoServer)?;
    Ok(tree(proc, &all, found_by, main))
}

/// The processes that call themselves the server.
fn named<'a>(proc: &Path, all: &'a [Stat]) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for stat in all {
        // Reading every command line of a busy host would cost more than all the rest.
        let python = stat.comm.starts_with("python");
        let named = stat.comm == "mlserver";
        if named || python {
            if is_start(&cmdline(proc, stat.pid)) {
                candidates.push((FoundBy::Cmdline, stat));
            } else if named {
                candidates.push((FoundBy::Comm, stat));
            }
        }
    }
    topmost(&mut candidates);
    candidates
}

/// A forked child looks like its parent.
fn topmost(candidates: &mut Vec<Candidate<'_>>) {
    let pids: Vec<u32> = candidates.iter().map(|(_, s)| s.pid).collect();
    candidates.retain(|(_, stat)| !pids.contains(&stat.ppid));
}

/// Of none or several that call themselves the server, the one that listens. Looking through the
/// table of sockets and the descriptors of every process is the last resort.
fn by_listener<'a>(
    proc: &Path,
    ports: &[u16],
    all: &'a [Stat],
    mut candidates: Vec<Candidate<'a>>,
) -> Option<Candidate<'a>> {
    let own = std::process::id();
    let among: Vec<u32> = match &candidates[..] {
        [] => all
            .iter()
            .map(|s| s.pid)
            .filter(|pid| *pid != own)
            .collect(),
        several => several.iter().map(|(_, s)| s.pid).collect(),
    };
    let listening = listener::pids(proc, ports, &among);
    let holds = |stat: &Stat| listening.contains(&stat.pid);
    if candidates.iter().any(|(_, stat)| holds(stat)) {
        candidates.retain(|(_, stat)| holds(stat));
    } else if candidates.is_empty() {
        let found = all.iter().filter(|stat| holds(stat));
        candidates.extend(found.map(|stat| (FoundBy::Listener, stat)));
        topmost(&mut candidates);
    }
    // The newest of several: an older one is on its way out, or was orphaned.
    candidates
        .into_iter()
        .max_by_key(|(_, stat)| (stat.start, stat.pid))
}

fn tree(proc: &Path, all: &[Stat], found_by: FoundBy, main: &Stat) -> Server {
    Server {
        main: process(proc, main, Role::Main),
        children: below(proc, all, main.pid),
        found_by,
    }
}

/// Workers of an earlier main process that was killed: of the same user, and with init for a
/// parent. None where the server itself is init, which takes in whatever is orphaned.
pub fn orphans(proc: &Path, server: &Server) -> Vec<Process> {
    let all = processes(proc).unwrap_or_default();
    let inside = server.pids();
    let left = all.iter().filter(|s| {
        let python = s.comm.starts_with("python") || s.comm == "mlserver";
        python && s.ppid == 1 && server.main.pid != 1 && !inside.contains(&s.pid)
    });
    left.filter(|s| {
        // One that was forked looks like a main process, which it may be.
        let arguments = cmdline(proc, s.pid);
        role(&arguments) == Role::Worker && !is_start(&arguments)
    })
    .map(|s| process(proc, s, Role::Worker))
    .filter(|p| p.uid == server.main.uid)
    .collect()
}

/// Whether a process is still the one that was found.
pub fn is_running(proc: &Path, process: &Process) -> bool {
    stat(proc, process.pid).is_ok_and(|s| s.start == process.start && !s.zombie)
}

/// The whole tree below `root`, in the order of process ids.
fn below(proc: &Path, all: &[Stat], root: u32) -> Vec<Process> {
    let mut inside = vec![root];
    let mut found = Vec::new();
    // Each round adds a generation; a tree that lies about parents ends with the processes.
    loop {
        let next: Vec<&Stat> = all
            .iter()
            .filter(|s| inside.contains(&s.ppid) && !inside.contains(&s.pid))
            .collect();
        if next.is_empty() {
            break;
        }
        for stat in next {
            inside.push(stat.pid);
            found.push(process(proc, stat, role(&cmdline(proc, stat.pid))));
        }
    }
    found.sort_by_key(|p: &Process| p.pid);
    found
}

fn process(proc: &Path, stat: &Stat, role: Role) -> Process {
    Process {
        pid: stat.pid,
        ppid: stat.ppid,
        start: stat.start,
        uid: uid(proc, stat.pid),
        role,
    }
}

fn processes(proc: &Path) -> Result<Vec<Stat>, Unreadable> {
    let entries = std::fs::read_dir(proc).map_err(|e| Unreadable::from(&e))?;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut all: Vec<Stat> = pids
        .take(MAX_PROCESSES)
        .filter_map(|pid| stat(proc, pid).ok())
        .filter(|stat| !stat.zombie)
        .collect();
    all.sort_by_key(|stat| stat.pid);
    Ok(all)
}

fn stat(proc: &Path, pid: u32) -> Result<Stat, Unreadable> {
    let text = procfs::read(&procfs::of(proc, pid).join("stat"), MAX_STAT)?;
    parse_stat(pid, &text).ok_or(Unreadable::Malformed)
}

/// The name stands in brackets and may itself hold brackets and spaces.
fn parse_stat(pid: u32, text: &str) -> Option<Stat> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let comm = text.get(open + 1..close)?.to_string();
    let mut rest = text.get(close + 1..)?.split_ascii_whitespace();
    let state = rest.next()?;
    let ppid = rest.next()?.parse().ok()?;
    // State is field 3 of the man page, the parent 4, the start time 22.
    let start = rest.nth(17)?.parse().ok()?;
    Some(Stat {
        pid,
        ppid,
        comm,
        start,
        zombie: matches!(state, "Z" | "X"),
    })
}

/// The arguments; empty where they cannot be read.
pub(crate) fn cmdline(proc: &Path, pid: u32) -> Vec<String> {
    let path = procfs::of(proc, pid).join("cmdline");
    let text = procfs::read_start(&path, MAX_CMDLINE).unwrap_or_default();
    let text = text.strip_suffix('\0').unwrap_or(&text);
    text.split('\0').map(str::to_string).collect()
}

/// `mlserver start ...`, `python .../bin/mlserver start ...`, `python -m mlserver start ...`.
fn is_start(arguments: &[String]) -> bool {
    let name = |text: &String| {
        let file = text.rsplit('/').next().unwrap_or_default();
        matches!(file, "mlserver" | "mlserver.cli")
    };
    arguments
        .windows(2)
        .take(8)
        .any(|pair| name(&pair[0]) && pair[1] == "start")
}

fn role(arguments: &[String]) -> Role {
    let says = |text: &str| arguments.iter().any(|a| a.contains(text));
    if says("multiprocessing.resource_tracker") {
        Role::Tracker
    } else if says("multiprocessing.spawn")
        || says("--multiprocessing-fork")
        || says("multiprocessing.forkserver")
        || is_start(arguments)
    {
        Role::Worker
    } else {
        Role::Other
    }
}

fn uid(proc: &Path, pid: u32) -> Option<u32> {
    let text = procfs::read(&procfs::of(proc, pid).join("status"), MAX_STATUS).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::tree::Tree;

    const START: [&str; 4] = ["/venv/bin/python3", "/venv/bin/mlserver", "start", "/mnt"];
    const WORKER: [&str; 4] = [
        "/venv/bin/python3",
        "-c",
        "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5)",
        "--multiprocessing-fork",
    ];
    const TRACKER: [&str; 3] = [
        "/venv/bin/python3",
        "-c",
        "from multiprocessing.resource_tracker import main;main(4)",
    ];

    fn pod() -> Tree {
        let tree = Tree::new();
        tree.process(1, 0, "pause", &["/pause"])
            .process(7, 0, "tini", &["tini", "--", "mlserver", "start", "/mnt"])
            .process(10, 7, "mlserver", &START)
            .process(11, 10, "python3", &TRACKER)
            .process(12, 10, "python3", &WORKER)
            .process(13, 12, "sh", &["sh", "-c", "nvidia-smi"])
            .process(20, 0, "python3", &["python3", "other.py"])
            .file("self/stat", "no process")
            .file("net/tcp", "");
        tree
    }

    #[test]
    fn the_tree_is_found_with_its_roles() {
        let tree = pod();
        let server = find(tree.path(), &[9000, 9500]).unwrap();
        assert_eq!(server.found_by, FoundBy::Cmdline);
        assert_eq!(
            (server.main.pid, server.main.ppid, server.main.start),
            (10, 7, 1010)
        );
        assert_eq!(server.main.uid, Some(1000));
        let roles: Vec<(u32, Role)> = server.children.iter().map(|p| (p.pid, p.role)).collect();
        assert_eq!(
            roles,
            [(11, Role::Tracker), (12, Role::Worker), (13, Role::Other)]
        );
        assert_eq!(server.workers(), 1);
        assert_eq!(server.pids(), [10, 11, 12, 13]);
        assert!(is_running(tree.path(), &server.main));
        tree.process(10, 7, "mlserver", &START).file(
            "10/stat",
            "10 (mlserver) S 7 1 1 0 0 0 1 2 3 4 5 6 7 8 20 0 9 0 99 1 2\n",
        );
        assert!(
            !is_running(tree.path(), &server.main),
            "the pid is used again"
        );
    }

    #[test]
    fn workers_with_init_for_a_parent_are_left_from_before() {
        let tree = pod();
        tree.process(14, 1, "python3", &WORKER)
            .process(15, 1, "python3", &TRACKER)
            .process(16, 1, "mlserver", &START)
            .process(17, 20, "python3", &WORKER);
        let server = find(tree.path(), &[9000, 9500]).unwrap();
        let mut server = Server {
            main: process(tree.path(), &stat(tree.path(), 10).unwrap(), Role::Main),
            ..server
        };
        let left = |s: &Server| {
            orphans(tree.path(), s)
                .iter()
                .map(|p| p.pid)
                .collect::<Vec<_>>()
        };
        assert_eq!(left(&server), [14]);
        server.main.uid = Some(7);
        assert_eq!(left(&server), [0u32; 0], "of another user");
        server.main = Process {
            pid: 1,
            ..server.main
        };
        assert_eq!(left(&server), [0u32; 0], "init takes in everybody's");
    }

    #[test]
    fn command_lines_that_start_the_server() {
        for (arguments, expected) in [
            (&START[..], true),
            (&["mlserver", "start", "."], true),
            (
                &["/usr/bin/python3.10", "-m", "mlserver", "start", "."],
                true,
            ),
            (&["python", "-m", "mlserver.cli", "start", "."], true),
            (&["mlserver", "infer"], false),
            (&["bash", "-c", "mlserver start ."], false),
            (&["vi", "mlserver"], false),
            (&[], false),
        ] {
            let arguments: Vec<String> = arguments.iter().map(|a| a.to_string()).collect();
            assert_eq!(is_start(&arguments), expected, "{arguments:?}");
        }
    }

    #[test]
    fn a_server_by_another_name_is_found_by_its_listener() {
        let tree = Tree::new();
        tree.process(5, 0, "triton", &["triton"])
            .process(6, 0, "other", &["other"])
            .link("5/fd/3", "socket:[777]")
            .file(
                "net/tcp6",
                "  sl  local_address\n   0: 00000000000000000000000000000000:251C 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 1000 0 777 1\n",
            );
        let server = find(tree.path(), &[9500]).unwrap();
        assert_eq!((server.main.pid, server.found_by), (5, FoundBy::Listener));
        assert_eq!(find(tree.path(), &[9501]), Err(NotFound::NoServer));
    }

    #[test]
    fn of_two_servers_the_one_with_the_port_is_taken_and_else_the_newest() {
        let tree = Tree::new();
        tree.process(10, 1, "mlserver", &START)
            .process(50, 1, "mlserver", &START);
        assert_eq!(find(tree.path(), &[9000]).unwrap().main.pid, 50);
        tree.link("10/fd/9", "socket:[42]").file(
            "net/tcp",
            "h\n 0: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1000 0 42 1\n",
        );
        assert_eq!(find(tree.path(), &[9000]).unwrap().main.pid, 10);
    }

    #[test]
    fn odd_names_zombies_and_nonsense_do_no_harm() {
        let tree = Tree::new();
        tree.file(
            "8/stat",
            "8 (a) b) (c) R 3 1 1 0 0 0 1 2 3 4 5 6 7 8 20 0 9 0 77 1 2\n",
        )
        .file("9/stat", "9 (")
        .file("10/stat", "")
        .file(
            "11/stat",
            "11 (mlserver) Z 1 1 1 0 0 0 1 2 3 4 5 6 7 8 20 0 9 0 77 1 2\n",
        );
        let odd = stat(tree.path(), 8).unwrap();
        assert_eq!(
            (odd.comm.as_str(), odd.ppid, odd.start),
            ("a) b) (c", 3, 77)
        );
        assert_eq!(find(tree.path(), &[9000]), Err(NotFound::NoServer));
        let nowhere = find(&tree.path().join("none"), &[]);
        assert_eq!(nowhere, Err(NotFound::NoProc(Unreadable::NotFound)));
    }

    #[test]
    fn a_forked_worker_is_a_child_and_not_a_second_server() {
        let tree = Tree::new();
        tree.process(10, 1, "mlserver", &START)
            .process(60, 10, "mlserver", &START);
        let server = find(tree.path(), &[]).unwrap();
        assert_eq!((server.main.pid, server.workers()), (10, 1));
    }
}
