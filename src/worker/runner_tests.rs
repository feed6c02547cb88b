use super::*;
use crate::clock::Clock;
use crate::demo::standin::StandIn;
use crate::drain::Drain;
use crate::endpoint::Candidate;
use crate::health::{Health, Outcome, Thresholds};
use crate::procfs::tree::Tree;
use crate::restore;
use crate::worker::record::Workers;

const MAIN: [&str; 3] = ["python3", "/venv/bin/mlserver", "start"];
const WORKER: [&str; 3] = ["python3", "-c", "from multiprocessing.spawn import x"];

fn gone(tree: &Tree, pid: u32) {
    std::fs::remove_dir_all(tree.path().join(pid.to_string())).unwrap();
}

/// A runner over these views and these observations.
fn runner(
    proc: PathBuf,
    view: watch::Receiver<Arc<View>>,
    observed: watch::Receiver<Arc<Observed>>,
    canary: Option<models::Canary>,
) -> Runner {
    let (clock, metrics) = (Clock::start(), Metrics::new());
    let settings = restore::Settings {
        restore: false,
        coalesce: false,
        models_dir: PathBuf::new(),
    };
    let (memory, _jobs) = Memory::new(settings, clock, Drain::default(), &metrics);
    let parts = Parts {
        worker: Worker::new(clock),
        proc,
        ports: vec![],
        watching: Watching {
            view,
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
        canary,
        mend: Mend::default(),
    };
    Runner::new(parts, &metrics)
}

/// Watches the processes in `tree`, as where the observer sees them.
fn watch_processes(tree: &Tree) -> watch::Receiver<crate::worker::WorkerSeen> {
    let server = process::find(tree.path(), &[]).ok();
    let observed = Observed {
        server,
        ..Observed::default()
    };
    let (keep, observed) = watch::channel(Arc::new(observed));
    let view = watch::channel(Arc::default()).1;
    let runner = runner(tree.path().into(), view, observed, None);
    let seen = runner.parts.worker.seen();
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

#[tokio::test(start_paused = true)]
async fn what_was_seen_of_a_process_goes_with_it() {
    let tree = Tree::new();
    tree.process(10, 1, "mlserver", &MAIN);
    let observed = Observed {
        server: process::find(tree.path(), &[]).ok(),
        ..Observed::default()
    };
    let (_keep, observed) = watch::channel(Arc::new(observed));
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let view = watch::channel(view(&server, true)).1;
    let runner = runner(tree.path().into(), view, observed, None);
    let worker = runner.parts.worker.clone();
    let mut seen = worker.seen();
    tokio::spawn(async move { runner.processes().await });
    let known = |w: &Workers| *w == Workers::NoneYet;
    until(&mut seen, known).await;
    sleep(3 * LOOK).await;
    worker.0.seen.send_modify(|seen| {
        let canary = seen.canary.get_or_insert_default();
        canary.ended(Answer::WorkerFailed("x".into()), Duration::ZERO);
        seen.lost.push(crate::worker::Bad {
            model: "iris".into(),
            since: Duration::ZERO,
        });
    });
    sleep(3 * LOOK).await;
    assert_eq!(seen.borrow().lost.len(), 1, "it is the same");
    gone(&tree, 10);
    tree.process(20, 1, "mlserver", &MAIN);
    sleep(3 * LOOK).await;
    let seen = seen.borrow();
    assert_eq!(seen.canary.as_ref().unwrap().failures, 0);
    assert!(seen.lost.is_empty());
}

const INFER: &str = "/v2/models/iris/infer";

/// The server is up, or refuses.
fn view(server: &StandIn, up: bool) -> Arc<View> {
    let address = server.http();
    let candidate = Candidate {
        protocol: Protocol::Http,
        host: crate::endpoint::Host::Ip(address.ip()),
        port: address.port(),
    };
    let mut health = Health::new(Thresholds {
        rise: 1,
        fall: 1,
        grace: Duration::from_secs(20),
    });
    let outcome = match up {
        true => Outcome::Healthy {
            ready: Some(true),
            latency: Duration::ZERO,
        },
        false => Outcome::Unhealthy {
            reason: Reason::Refused,
            detail: String::new(),
        },
    };
    health.observe(&outcome, Duration::from_secs(1));
    let mut view = View::default();
    view.endpoints[Protocol::Http.index()] = vec![Endpoint::new(candidate, health)];
    view.selection[Protocol::Http.index()] = up.then_some(0);
    Arc::new(view)
}

/// A canary every 20 ms to a stand-in, and beside inferences that have been silent for 300 ms.
struct Canaries {
    server: StandIn,
    view: watch::Sender<Arc<View>>,
    in_flight: InFlight,
    memory: Memory,
    seen: watch::Receiver<crate::worker::WorkerSeen>,
    request: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Canaries {
    async fn begin(test: &str) -> Canaries {
        let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
        let name = format!("agent-shim-runner-{test}-{}.json", std::process::id());
        let request = std::env::temp_dir().join(name);
        std::fs::write(&request, "{}").unwrap();
        let canary = models::Canary {
            model: "iris".into(),
            request: request.clone(),
            interval: Duration::from_millis(20),
        };
        let (sender, view) = watch::channel(view(&server, true));
        let (keep, observed) = watch::channel(Arc::default());
        let mut runner = runner(PathBuf::new(), view, observed, Some(canary));
        runner.patience = Duration::from_millis(300);
        let parts = &runner.parts;
        let (in_flight, memory) = (parts.in_flight.clone(), parts.memory.clone());
        let seen = parts.worker.seen();
        let task = tokio::spawn(async move {
            let _keep = keep;
            runner.canary().await;
        });
        Canaries {
            server,
            view: sender,
            in_flight,
            memory,
            seen,
            request,
            task,
        }
    }

    fn sent(&self) -> usize {
        self.server.calls_to(INFER).len()
    }

    /// The worker hangs, and a canary is in its hands.
    async fn hung(&mut self) -> Canary {
        self.server.set_worker_hangs(true);
        loop {
            let out = self.until("one", |c| c.outstanding.is_some()).await;
            sleep(Duration::from_millis(100)).await;
            if self.seen.borrow().canary.as_ref() == Some(&out) {
                return out;
            }
        }
    }

    async fn until(&mut self, what: &str, so: impl Fn(&Canary) -> bool) -> Canary {
        let seen = self.seen.wait_for(|seen| so(seen.canary.as_ref().unwrap()));
        let seen = tokio::time::timeout(Duration::from_secs(30), seen).await;
        let seen = seen.unwrap_or_else(|_| panic!("not within 30 s: {what}"));
        seen.unwrap().canary.clone().unwrap()
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.request);
    }
}

#[tokio::test]
async fn beside_inferences_that_nobody_answers_one_canary_is_sent_and_no_other() {
    let mut canaries = Canaries::begin("beside").await;
    canaries.until("a canary", |c| c.worked.is_some()).await;
    let calls = canaries.in_flight.clone();
    let _hung = [calls.one(), calls.one()];
    canaries
        .until("a skip", |c| c.skipped == Some("inferences are under way"))
        .await;
    let before = canaries.sent();
    canaries.server.set_worker_hangs(true);
    // While others are answered the worker is only busy.
    for _ in 0..10 {
        calls.answered();
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(canaries.sent(), before);
    let begun = tokio::time::Instant::now();
    canaries
        .until("one beside", |c| c.outstanding.is_some())
        .await;
    assert!(begun.elapsed() >= Duration::from_millis(150), "not at once");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(canaries.sent(), before + 1, "one only");
    // It is answered: the worker works, and is left alone for as long again.
    canaries.server.set_worker_hangs(false);
    canaries.server.release();
    canaries
        .until("a skip", |c| c.skipped == Some("inferences are under way"))
        .await;
    assert_eq!(canaries.sent(), before + 1);
}

#[tokio::test]
async fn no_canary_is_sent_beside_a_load_of_another_model_and_its_time_does_not_count() {
    let mut canaries = Canaries::begin("load").await;
    canaries.until("a canary", |c| c.worked.is_some()).await;
    let out = canaries.hung().await;
    let load = canaries.memory.loading("other", None);
    // Excused by a look, once a second.
    canaries.until("an excuse", |c| *c != out).await;
    canaries.server.set_worker_hangs(false);
    canaries.server.release();
    canaries
        .until("a skip", |c| {
            c.skipped == Some("a model is being loaded or unloaded")
        })
        .await;
    let before = canaries.sent();
    sleep(Duration::from_millis(200)).await;
    assert_eq!(canaries.sent(), before);
    load.succeeded();
    canaries.until("one more", |c| c.skipped.is_none()).await;
}

#[tokio::test]
async fn a_canary_ends_with_the_server_although_its_connection_does_not() {
    let mut canaries = Canaries::begin("gone").await;
    canaries.until("a canary", |c| c.worked.is_some()).await;
    canaries.hung().await;
    canaries.view.send_replace(view(&canaries.server, false));
    let ended = canaries.until("its end", |c| c.outstanding.is_none()).await;
    assert_eq!(ended.last.unwrap().0, Answer::Broken);
}

#[tokio::test]
async fn what_a_canary_has_said_ends_with_its_model() {
    let mut canaries = Canaries::begin("unloaded").await;
    canaries.server.set_worker_dead(true);
    canaries.until("failures", |c| c.failures >= 3).await;
    canaries
        .server
        .set_models([("iris", "v1", "UNAVAILABLE"), ("iris_2", "v1", "READY")]);
    let not = Some("its model is not loaded");
    let seen = canaries.until("a skip", |c| c.skipped == not).await;
    assert_eq!((seen.failures, seen.failing, seen.last), (0, None, None));

    canaries.server.set_worker_dead(false);
    canaries.server.set_models([("iris", "v1", "READY")]);
    canaries.server.set_lost(["iris"]);
    let mut seen = canaries.seen.clone();
    let named = async |seen: &mut watch::Receiver<_>, lost: usize| {
        let named = seen.wait_for(|seen: &crate::worker::WorkerSeen| seen.lost.len() == lost);
        let named = tokio::time::timeout(Duration::from_secs(30), named).await;
        assert!(named.is_ok(), "not within 30 s: {lost}");
    };
    for gone in ["UNAVAILABLE", "UNKNOWN"] {
        named(&mut seen, 1).await;
        canaries.server.set_models([("iris", "v1", gone)]);
        named(&mut seen, 0).await;
        canaries.server.set_models([("iris", "v1", "READY")]);
    }
}

#[tokio::test]
async fn a_canarys_failures_end_with_a_result_of_inferences_that_keep_it_back() {
    let mut canaries = Canaries::begin("busy").await;
    canaries.server.set_worker_dead(true);
    canaries.until("failures", |c| c.failures >= 3).await;
    let calls = canaries.in_flight.clone();
    let _running = calls.one();
    let busy = Some("inferences are under way");
    let seen = canaries.until("a skip", |c| c.skipped == busy).await;
    assert!(seen.failures >= 3, "none was answered");
    calls.answered();
    canaries.until("their end", |c| c.failures == 0).await;
}

#[tokio::test]
async fn no_model_is_unloaded_for_what_was_seen_before_another_one_was() {
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    server.set_models([("a", "v1", "UNKNOWN"), ("b", "v1", "UNKNOWN")]);
    let (_keep, view) = watch::channel(view(&server, true));
    let observed = watch::channel(Arc::default()).1;
    let mut runner = runner(PathBuf::new(), view, observed, None);
    runner.parts.mend.stuck = true;
    let index = |asked: u64, models: &[&str]| Inventory {
        asked_at: Some(Duration::from_secs(asked)),
        models: models
            .iter()
            .map(|name| crate::models::Model {
                name: name.to_string(),
                version: String::new(),
                state: "UNKNOWN".into(),
                reason: String::new(),
            })
            .collect(),
        ..Inventory::default()
    };
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(100)).await;
    tokio::time::resume();
    let mut unknown = crate::worker::stuck::Unknown::default();
    unknown.look(&index(1, &[]), Duration::from_secs(1), |_| 0);
    unknown.look(&index(2, &["a", "b"]), Duration::from_secs(2), |_| 0);
    let asking = Asking::new(runner.parts.client.clone(), server.http());
    let stuck = unknown.old(runner.now());
    assert_eq!(stuck.len(), 2);
    runner.mend_stuck(&asking, &stuck, &mut unknown).await;
    // The unload of one may take long, and its owner loads the other one meanwhile.
    server.set_models([("a", "v1", "UNAVAILABLE"), ("b", "v1", "READY")]);
    unknown.look(&index(200, &["b"]), Duration::from_secs(200), |_| 0);
    runner.mend_stuck(&asking, &stuck, &mut unknown).await;
    let unloads = |model: &str| server.calls_to(&format!("/v2/repository/models/{model}/unload"));
    assert_eq!((unloads("a").len(), unloads("b").len()), (1, 0));
}

/// A server in which every inference fails, as the runner sees it, and whether its main process is
/// ended within an hour in which an inference is asked for every 10 s.
async fn ended_for_failing(mend: &str) -> (Option<i32>, u64) {
    use std::os::unix::process::ExitStatusExt;
    let tree = Tree::new();
    let mut main = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    tree.file("loadavg", &format!("0.00 0.00 0.00 1/9 {}\n", main.id()));
    tree.process(main.id(), 1, "mlserver", &MAIN);
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let up = watch::channel(view(&server, true)).1;
    let (_keep, observed) = watch::channel(Arc::default());
    let mut runner = runner(tree.path().into(), up, observed, None);
    runner.parts.mend = Mend::parse(mend).unwrap();
    let worker = runner.parts.worker.clone();
    // A worker has ended; the next one is not given any work.
    worker
        .0
        .seen
        .send_modify(|seen| seen.exited = Some(runner.now()));
    tokio::time::pause();
    let hour = async {
        for _ in 0..360 {
            worker.failed();
            sleep(Duration::from_secs(10)).await;
        }
    };
    tokio::select! {
        () = runner.fatal() => {}
        () = hour => {}
    }
    let mended = worker.seen().borrow().mended.get("fatal").copied();
    // Whatever it was sent comes before this one.
    let still = main.try_wait().unwrap();
    let signal = match mended {
        Some(_) => main.wait().unwrap().signal(),
        None => still.and_then(|status| status.signal()),
    };
    let _ = main.kill();
    let _ = main.wait();
    (signal, mended.unwrap_or_default())
}

#[tokio::test]
async fn a_server_in_which_all_fails_is_ended_once_in_half_an_hour_where_that_is_switched_on() {
    let (signal, times) = ended_for_failing("fatal").await;
    assert_eq!(signal, Some(15));
    assert_eq!(times, 2, "an hour, from its fifth minute on");
    tokio::time::resume();
    assert_eq!(ended_for_failing("stuck,lost").await, (None, 0));
}
