use super::*;
use crate::clock::Clock;
use crate::drain::Drain;
use crate::procfs::tree::Tree;
use crate::restore;
use crate::worker::record::Workers;

const MAIN: [&str; 3] = ["python3", "/venv/bin/mlserver", "start"];
const WORKER: [&str; 3] = ["python3", "-c", "from multiprocessing.spawn import x"];

fn gone(tree: &Tree, pid: u32) {
    std::fs::remove_dir_all(tree.path().join(pid.to_string())).unwrap();
}

/// Watches the processes in `tree`, as where the observer sees them.
fn watch_processes(tree: &Tree) -> watch::Receiver<crate::worker::WorkerSeen> {
    let (clock, metrics) = (Clock::start(), Metrics::new());
    let worker = Worker::new(clock);
    let seen = worker.seen();
    let settings = restore::Settings {
        restore: false,
        coalesce: false,
        models_dir: PathBuf::new(),
    };
    let (memory, _jobs) = Memory::new(settings, clock, Drain::default(), &metrics);
    let server = process::find(tree.path(), &[]).ok();
    let observed = Observed {
        server,
        ..Observed::default()
    };
    let (keep, observed) = watch::channel(Arc::new(observed));
    let parts = Parts {
        worker,
        proc: tree.path().into(),
        ports: vec![],
        watching: Watching {
            view: watch::channel(Arc::default()).1,
            changes: watch::channel(0).1,
            history: crate::history::History::default(),
            hints: crate::prober::Hints::default(),
        },
        inventory: watch::channel(Arc::default()).1,
        observed,
        memory,
        client: crate::models::client().unwrap(),
        poke: Poke::default(),
        in_flight: InFlight::default(),
        canary: None,
        mend: Mend::default(),
    };
    let runner = Runner::new(parts, &metrics);
    tokio::spawn(async move {
        let _keep = keep;
        runner.processes().await;
    });
    seen
}

/// How long it takes until the workers are seen so.
async fn until(
    seen: &mut watch::Receiver<crate::worker::WorkerSeen>,
    so: impl Fn(&Workers) -> bool,
) -> Duration {
    let begun = tokio::time::Instant::now();
    seen.wait_for(|seen| so(&seen.workers)).await.unwrap();
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn what_the_workers_do_is_seen_within_a_second_however_long_nothing_happened() {
    let tree = Tree::new();
    let given = |last: u32| {
        tree.file("loadavg", &format!("0.00 0.00 0.00 1/9 {last}\n"));
    };
    given(20);
    tree.process(10, 1, "mlserver", &MAIN)
        .process(12, 10, "python3", &WORKER);
    let mut seen = watch_processes(&tree);
    let there =
        |n: usize| move |w: &Workers| matches!(w, Workers::There { count, .. } if *count == n);
    until(&mut seen, there(1)).await;
    sleep(Duration::from_secs(100)).await;

    gone(&tree, 12);
    let took = until(&mut seen, |w| matches!(w, Workers::Missing { .. })).await;
    assert!(took <= LOOK + Duration::from_millis(10), "{took:?}");
    assert_eq!(seen.borrow().exits, 1);

    tree.process(30, 10, "python3", &WORKER);
    given(30);
    let took = until(&mut seen, there(1)).await;
    assert!(took <= LOOK + Duration::from_millis(10), "{took:?}");
    sleep(Duration::from_secs(100)).await;

    // The main process starts anew, and what it left behind stays.
    gone(&tree, 10);
    tree.process(30, 1, "python3", &WORKER);
    let orphaned = async { seen.wait_for(|s| s.orphans == [30]).await.is_ok() };
    assert!(tokio::time::timeout(2 * LOOK, orphaned).await.unwrap());
    tree.process(50, 1, "mlserver", &MAIN)
        .process(51, 50, "python3", &WORKER)
        .process(52, 50, "python3", &WORKER);
    given(52);
    let took = until(&mut seen, there(2)).await;
    assert!(took <= LOOK + Duration::from_millis(10), "{took:?}");
}
