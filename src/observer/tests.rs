use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::gather::Gatherer;
use super::*;
use crate::capability::Source;
use crate::config::load_from;
use crate::models::{Inventory, Model};
use crate::procfs::tree::Tree;

const GI: u64 = 1 << 30;
const SITE: &str = "/venv/lib/python3.11/site-packages";

fn settings(tree: &Tree, variables: &[(&str, &str)]) -> Settings {
    let config = load_from(variables.iter().copied()).unwrap().config;
    Settings {
        proc: tree.path().to_path_buf(),
        ..Settings::of(&config)
    }
}

fn server(tree: &Tree, pid: u32) {
    let main = ["/venv/bin/python3", "/venv/bin/mlserver", "start", "/mnt"];
    let worker = [
        "/venv/bin/python3",
        "-c",
        "from multiprocessing.spawn import x",
    ];
    tree.process(pid, 1, "mlserver", &main)
        .process(pid + 1, pid, "python3", &worker)
        .file(&format!("{pid}/cgroup"), "0::/\n")
        .file(
            &format!("{pid}/maps"),
            &format!("0-1 r 0 0 0 {SITE}/x.so\n"),
        )
        .file(
            &format!("{pid}/root/sys/fs/cgroup/memory.max"),
            "4294967296\n",
        )
        .file(&format!("{pid}/root/sys/fs/cgroup/memory.current"), "99\n");
    for dist in ["mlserver-1.7.1", "mlserver_sklearn-1.7.1"] {
        tree.file(&format!("{pid}/root{SITE}/{dist}.dist-info/METADATA"), "");
    }
}

fn pod() -> Tree {
    let tree = Tree::new();
    tree.file("meminfo", "MemTotal: 16777216 kB\n");
    server(&tree, 100);
    tree
}

fn gone(tree: &Tree, pid: u32) {
    for pid in [pid, pid + 1] {
        std::fs::remove_dir_all(tree.path().join(pid.to_string())).unwrap();
    }
}

fn index(states: &[&str]) -> Inventory {
    Inventory {
        models: states
            .iter()
            .map(|state| Model {
                name: "m".into(),
                version: String::new(),
                state: (*state).into(),
                reason: String::new(),
            })
            .collect(),
        read_at: Some(Duration::ZERO),
        ..Inventory::default()
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_shared_namespace_tells_everything_at_the_first_look() {
    let tree = pod();
    let mut gatherer = Gatherer::new(settings(&tree, &[]));
    let seen = gatherer.look(&Inventory::default(), None, at(1));
    assert_eq!(seen.capacity.bytes, Some(4 * GI));
    assert_eq!(seen.capacity.source, Some(capacity::Source::Cgroup));
    assert_eq!(seen.capabilities.source, Source::Distributions);
    assert_eq!(seen.capabilities.distributions.len(), 2);
    assert!(seen.capabilities.settled);
    assert_eq!(seen.live.rss, Some(201 * 1024));
    assert_eq!(seen.live.cgroup_current, Some(99));
    assert_eq!(
        (seen.live.pss, seen.live.pss_reason),
        (None, Some("not-found"))
    );
    assert_eq!(seen.server.unwrap().main.pid, 100);
}

#[test]
fn a_restart_of_the_server_is_no_change() {
    let tree = pod();
    let mut gatherer = Gatherer::new(settings(&tree, &[]));
    let before = gatherer.look(&Inventory::default(), None, at(1));
    gone(&tree, 100);
    let away = gatherer.look(&Inventory::default(), None, at(6));
    assert!(away.server.is_none() && away.no_server.is_some());
    assert!(!away.may_differ_for_the_scheduler(&before));
    assert_eq!(
        away.capacity.considered[3].age,
        at(5),
        "the reading has an age"
    );
    assert_eq!(away.live, Live::default());
    // It comes back and has not mapped anything yet.
    server(&tree, 300);
    tree.file("300/maps", "")
        .file("300/cmdline", "mlserver\0start\0/mnt\0");
    let young = gatherer.look(&Inventory::default(), None, at(8));
    assert!(!young.may_differ_for_the_scheduler(&before));
    // It came back from another environment, or never shows what it has: that is a change.
    let much_later = gatherer.look(&Inventory::default(), None, at(69));
    assert!(much_later.may_differ_for_the_scheduler(&before));
    assert_eq!(much_later.capabilities.source, Source::Declared);
}

#[test]
fn another_environment_is_seen_with_the_new_process() {
    let tree = pod();
    let mut gatherer = Gatherer::new(settings(&tree, &[]));
    let before = gatherer.look(&Inventory::default(), None, at(1));
    gone(&tree, 100);
    server(&tree, 300);
    tree.file(&format!("300/root{SITE}/torch-2.1.dist-info/METADATA"), "");
    let after = gatherer.look(&Inventory::default(), None, at(6));
    assert!(after.may_differ_for_the_scheduler(&before));
    assert_eq!(after.capabilities.version("torch"), Some("2.1"));
}

#[test]
fn packages_are_read_again_soon_after_the_start_and_then_hourly() {
    let tree = pod();
    let mut gatherer = Gatherer::new(settings(&tree, &[]));
    let mut count = |seconds| {
        let seen = gatherer.look(&Inventory::default(), None, at(seconds));
        seen.capabilities.distributions.len()
    };
    assert_eq!(count(1), 2);
    let add = |name: &str| {
        tree.file(&format!("100/root{SITE}/{name}-1.dist-info/METADATA"), "");
    };
    add("a");
    assert_eq!((count(10), count(21)), (2, 3));
    add("b");
    assert_eq!((count(3000), count(3622)), (3, 4));
}

#[test]
fn without_a_shared_namespace_the_wait_ends_when_the_server_answers() {
    let tree = Tree::new();
    tree.file("meminfo", "MemTotal: 16777216 kB\n");
    let mut gatherer = Gatherer::new(settings(&tree, &[("SHIM_MEMORY_LIMIT", "2Gi")]));
    let before = gatherer.look(&Inventory::default(), None, at(1));
    assert!(!before.capabilities.settled);
    let after = gatherer.look(&index(&[]), None, at(2));
    assert!(after.capabilities.settled);
    assert_eq!(after.capabilities.source, Source::Declared);
    let reasons: Vec<&str> = after
        .capabilities
        .unanswered
        .iter()
        .map(|u| u.source.as_str())
        .collect();
    assert_eq!(
        reasons,
        ["explicit", "distributions", "probe-model", "file"]
    );
    assert_eq!(after.capacity.bytes, Some(2 * GI));
    assert_eq!(after.capacity.considered[3].reason, "no-server-process");
    let late = Gatherer::new(settings(&tree, &[])).look(&Inventory::default(), None, at(31));
    assert!(late.capabilities.settled, "the wait has a bound");
}

#[test]
fn sources_are_asked_in_their_order() {
    let tree = pod();
    let path = tree.path().join("list");
    let file = [("SHIM_CAPABILITIES_FILE", path.to_str().unwrap())];
    let probed: ProbeAnswer = Ok(Probing {
        answer: capability::probe_model::Answer {
            distributions: Vec::new(),
            cgroup: None,
            left_behind: None,
        },
        at: at(1),
    });
    let source = |variables: &[(&str, &str)], probed: Option<&ProbeAnswer>| {
        let mut gatherer = Gatherer::new(settings(&tree, variables));
        let seen = gatherer.look(&index(&[]), probed, at(1)).capabilities;
        (seen.source, seen.settled)
    };
    let list = [("SHIM_CAPABILITIES_LIST", "a,b")];
    assert_eq!(source(&list, Some(&probed)), (Source::Explicit, true));
    assert_eq!(source(&file, Some(&probed)), (Source::Distributions, true));
    gone(&tree, 100);
    assert_eq!(source(&file, Some(&probed)), (Source::ProbeModel, true));
    let failed = Err("no".to_string());
    assert_eq!(source(&file, Some(&failed)), (Source::Declared, false));
    tree.file("list", "sklearn\n");
    assert_eq!(source(&file, Some(&failed)), (Source::File, true));
    let both = [file[0], ("SHIM_CAPABILITIES_PROBE", "true")];
    assert_eq!(
        source(&both, None),
        (Source::File, false),
        "the probe may still answer"
    );
}

#[test]
fn a_probe_models_cgroup_stands_in_for_one_that_cannot_be_read() {
    let tree = Tree::new();
    let mut gatherer = Gatherer::new(settings(&tree, &[]));
    let probed = Ok(Probing {
        answer: capability::probe_model::Answer {
            distributions: Vec::new(),
            cgroup: Some(capacity::cgroup::Cgroup {
                version: capacity::cgroup::Version::V2,
                limit: Some(3 * GI),
                current: None,
                peak: None,
            }),
            left_behind: None,
        },
        at: at(4),
    });
    let seen = gatherer.look(&index(&[]), Some(&probed), at(9)).capacity;
    assert_eq!((seen.bytes, seen.considered[3].age), (Some(3 * GI), at(5)));
}

#[test]
fn the_baseline_is_taken_once_while_no_model_is_there() {
    let tree = pod();
    let reserve = [("SHIM_MEMORY_RESERVED", "measured")];
    let mut gatherer = Gatherer::new(settings(&tree, &reserve));
    let mut baseline = |inventory: &Inventory, seconds| {
        let seen = gatherer.look(inventory, None, at(seconds)).capacity;
        (seen.baseline, seen.reserved.bytes())
    };
    assert_eq!(
        baseline(&Inventory::default(), 1).0,
        None,
        "nothing is known of models"
    );
    assert_eq!(baseline(&index(&["READY"]), 2).0, None);
    assert_eq!(
        baseline(&index(&["UNAVAILABLE"]), 3).0,
        None,
        "one sample is none"
    );
    assert_eq!(
        baseline(&index(&["UNKNOWN"]), 4).0,
        None,
        "a load was under way"
    );
    assert_eq!(baseline(&index(&[]), 5).0, None);
    let rss = 201 * 1024;
    assert_eq!(baseline(&index(&[]), 6), (Some(rss), rss));
    tree.file("100/status", "VmRSS: 900 kB\n");
    assert_eq!(
        baseline(&index(&[]), 7),
        (Some(rss), rss),
        "it does not wander"
    );
}

#[tokio::test(start_paused = true)]
async fn the_loop_publishes_looks_and_metrics() {
    let tree = pod();
    let metrics = Metrics::new();
    let (_inventory, inventory) = watch::channel(Arc::new(Inventory::default()));
    let (_probed, probed) = watch::channel(None);
    let (observer, mut observed) = Observer::new(
        settings(&tree, &[]),
        inventory,
        probed,
        Clock::start(),
        &metrics,
    );
    assert_eq!(observed.borrow().looks, 0);
    let running = tokio::spawn(observer.run());
    for looks in 1..=3 {
        observed.changed().await.unwrap();
        let seen = observed.borrow_and_update().clone();
        assert_eq!(seen.looks, looks);
    }
    running.abort();
    let text = String::from_utf8(metrics.render()).unwrap();
    for line in [
        "agent_shim_memory_observed_bytes 4294967296",
        "agent_shim_memory_limit_bytes 4294967296",
        "agent_shim_memory_reserved_bytes 0",
        "agent_shim_memory_source{source=\"cgroup\"} 1",
        "agent_shim_memory_source{source=\"node\"} 0",
        "agent_shim_memory_source_bytes{source=\"request\"} NaN",
        "agent_shim_memory_used_bytes{measure=\"rss\"} 205824",
        "agent_shim_memory_used_bytes{measure=\"pss\"} NaN",
        "agent_shim_server_processes{role=\"worker\"} 1",
        "agent_shim_capabilities_source{source=\"distributions\"} 1",
        "agent_shim_capabilities_distributions 2",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
}
