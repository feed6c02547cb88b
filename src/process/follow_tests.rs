use super::*;
use crate::process::{FoundBy, find};
use crate::procfs::tree::{Tree, reads};

const START: [&str; 4] = ["/venv/bin/python3", "/venv/bin/mlserver", "start", "/mnt"];
const WORKER: [&str; 3] = ["python3", "-c", "from multiprocessing.spawn import x"];
const PORT: u16 = 9500;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The main process 10 with the worker 12, and the last process id that was given.
fn pod(last_pid: u32) -> Tree {
    let tree = Tree::new();
    tree.process(1, 0, "pause", &["/pause"])
        .process(10, 1, "mlserver", &START)
        .process(12, 10, "python3", &WORKER);
    given(&tree, last_pid);
    reader(&tree, "77");
    tree
}

/// The reader's own process ids, outermost namespace first, as `/proc/self/status` has them.
fn reader(tree: &Tree, ids: &str) {
    tree.file(
        "self/status",
        &format!("Name:\tagent-shim\nNSpid:\t{ids}\n"),
    );
}

fn given(tree: &Tree, last_pid: u32) {
    tree.file("loadavg", &format!("0.00 0.01 0.05 1/99 {last_pid}\n"));
}

fn gone(tree: &Tree, pid: u32) {
    std::fs::remove_dir_all(tree.path().join(pid.to_string())).unwrap();
}

fn listens(tree: &Tree, pid: u32) {
    tree.link(&format!("{pid}/fd/3"), "socket:[777]").file(
        "net/tcp6",
        "  sl  local_address\n   0: 00000000000000000000000000000000:251C 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 1000 0 777 1\n",
    );
}

/// A follower of `tree` that has seen it unchanged for long.
fn settled(tree: &Tree) -> (Follower, u64) {
    let mut follower = Follower::new(tree.path(), &[PORT]);
    for second in 0..=70 {
        follower.look(at(second)).unwrap();
    }
    (follower, 70)
}

fn workers(follower: &mut Follower, second: u64) -> Vec<u32> {
    let server = follower.look(at(second)).unwrap();
    server.children.iter().map(|p| p.pid).collect()
}

#[test]
fn a_quiet_second_costs_a_file_for_each_process_of_the_server_among_any_number_of_others() {
    let tree = pod(9999);
    let (mut follower, now) = settled(&tree);
    for pid in 1000..1500 {
        tree.process(pid, 1, "python3", &["python3", "other.py"]);
    }
    let mut costs = Vec::new();
    for second in now + 1..=now + 10 {
        reads();
        assert_eq!(workers(&mut follower, second), [12]);
        costs.push(reads());
    }
    // The last process id, the main process and the worker.
    let quiet = costs.iter().filter(|n| **n == 3).count();
    assert_eq!(quiet, 8, "{costs:?}");
    // All processes once in five seconds, and never the descriptors and sockets.
    assert!(costs.iter().all(|n| *n < 1100), "{costs:?}");
}

#[test]
fn a_worker_that_ends_or_is_replaced_is_noticed_at_the_next_look() {
    let tree = pod(20);
    let (mut follower, now) = settled(&tree);
    gone(&tree, 12);
    assert!(workers(&mut follower, now + 1).is_empty());
    tree.process(30, 10, "python3", &WORKER);
    given(&tree, 30);
    assert_eq!(workers(&mut follower, now + 2), [30]);

    // The process id is the old one, the process is not.
    let (mut follower, now) = settled(&tree);
    tree.file(
        "30/stat",
        "30 (python3) S 10 1 1 0 0 0 1 2 3 4 5 6 7 8 20 0 9 0 77 1 2\n",
    );
    let server = follower.look(at(now + 1)).unwrap();
    assert_eq!(server.children[0].start, 77);
}

#[test]
fn a_worker_that_comes_is_noticed_at_the_next_look_or_where_the_kernels_word_is_stale_within_five_seconds()
 {
    let tree = pod(20);
    let (mut follower, now) = settled(&tree);
    tree.process(30, 10, "python3", &WORKER);
    given(&tree, 30);
    assert_eq!(workers(&mut follower, now + 1), [12, 30]);

    let (mut follower, now) = settled(&tree);
    tree.process(31, 10, "python3", &WORKER);
    assert_eq!(workers(&mut follower, now + 5), [12, 30, 31]);
    // And then each second: workers that die at their start come and go quickly.
    gone(&tree, 31);
    assert_eq!(workers(&mut follower, now + 6), [12, 30]);
    tree.process(32, 10, "python3", &WORKER);
    assert_eq!(workers(&mut follower, now + 7), [12, 30, 32]);

    for says in ["0.00 0.00 0.00 0/0 0\n", "nonsense"] {
        tree.file("loadavg", says);
        let (mut follower, now) = settled(&tree);
        tree.process(40, 10, "python3", &WORKER);
        assert!(
            workers(&mut follower, now + 1).contains(&40),
            "{says:?} proves nothing"
        );
        gone(&tree, 40);
    }
}

#[test]
fn a_server_that_starts_anew_is_found_at_the_next_look() {
    let tree = pod(20);
    let (mut follower, now) = settled(&tree);
    gone(&tree, 10);
    gone(&tree, 12);
    assert_eq!(follower.look(at(now + 1)), Err(NotFound::NoServer));
    tree.process(50, 1, "mlserver", &START);
    assert_eq!(follower.look(at(now + 2)).unwrap().main.pid, 50);

    // Without a moment between: the pid is used again.
    let (mut follower, now) = settled(&tree);
    tree.file(
        "50/stat",
        "50 (mlserver) S 1 1 1 0 0 0 1 2 3 4 5 6 7 8 20 0 9 0 99 1 2\n",
    );
    assert_eq!(follower.look(at(now + 1)).unwrap().main.start, 99);
}

#[test]
fn a_second_server_is_taken_within_five_seconds_of_having_the_port() {
    let tree = pod(20);
    let (mut follower, now) = settled(&tree);
    tree.process(50, 1, "mlserver", &START);
    assert_eq!(
        follower.look(at(now + 5)).unwrap().main.pid,
        50,
        "the newest, as by a search"
    );
    listens(&tree, 10);
    assert_eq!(follower.look(at(now + 10)).unwrap().main.pid, 10);
    assert_eq!(
        find(tree.path(), &[PORT]).unwrap(),
        follower.look(at(now + 11)).unwrap()
    );
}

#[test]
fn a_server_by_another_name_that_comes_late_is_found_within_five_seconds() {
    let tree = Tree::new();
    tree.process(5, 0, "triton", &["triton"]);
    reader(&tree, "77");
    let mut follower = Follower::new(tree.path(), &[PORT]);
    let mut costs = Vec::new();
    for second in 0..100 {
        reads();
        assert_eq!(follower.look(at(second)), Err(NotFound::NoServer));
        costs.push(reads());
    }
    // The last process id, the process, and the two tables: those ever more rarely.
    assert_eq!(costs[..4], [4, 4, 4, 2]);
    let tables = costs.iter().filter(|n| **n > 2).count();
    assert!((20..=23).contains(&tables), "{costs:?}");
    listens(&tree, 5);
    let late = (100..105).find_map(|s| follower.look(at(s)).ok());
    let late = late.expect("it is found in time");
    assert_eq!((late.main.pid, late.found_by), (5, FoundBy::Listener));
    for second in 105..160 {
        reads();
        follower.look(at(second)).unwrap();
        assert!(reads() < 8, "no tables and descriptors for a known one");
    }
    gone(&tree, 5);
    assert_eq!(follower.look(at(161)), Err(NotFound::NoServer));
    tree.process(6, 0, "triton", &["triton"]);
    listens(&tree, 6);
    assert_eq!(follower.look(at(162)).unwrap().main.pid, 6);
}

#[test]
fn without_a_shared_namespace_the_tables_of_sockets_are_never_read() {
    let tree = Tree::new();
    let own = std::process::id();
    tree.process(own, 0, "agent-shim", &["/usr/local/bin/agent-shim"]);
    listens(&tree, own);
    reader(&tree, &own.to_string());
    let mut follower = Follower::new(tree.path(), &[PORT]);
    for second in 0..20 {
        reads();
        assert_eq!(follower.look(at(second)), Err(NotFound::NoServer));
        assert_eq!(reads(), 2, "the last process id and our own process");
    }
}

/// The kernel gives the count of the reader's own namespace, whichever `/proc` it is read from.
#[test]
fn the_count_of_another_namespace_is_not_trusted() {
    for (ids, trusted) in [("77", true), ("4077\t77", false), ("", false)] {
        let tree = pod(20);
        reader(&tree, ids);
        let (mut follower, now) = settled(&tree);
        assert_eq!(workers(&mut follower, now + 1), [12]);
        // Nothing was started in the reader's namespace.
        tree.process(30, 10, "python3", &WORKER);
        let seen = workers(&mut follower, now + 2).contains(&30);
        assert_eq!(seen, !trusted, "{ids:?}");
    }
}
