//! The prober by a paused clock: when it asks, and what it makes of the answers.

use super::*;
use std::sync::Mutex;
use tokio::time::Instant;

type Script = Arc<dyn Fn(&Candidate, Duration) -> (Duration, Outcome) + Send + Sync>;

/// Answers by script: how long it takes and what comes of it, by candidate and time.
struct Scripted {
    script: Script,
    start: Instant,
    asked: Arc<Mutex<Vec<(String, Protocol, Duration)>>>,
    in_flight: Arc<Mutex<Vec<(String, Protocol)>>>,
}

impl Probe for Scripted {
    fn probe(&self, candidate: &Candidate) -> ProbeFuture {
        let now = self.start.elapsed();
        let key = (candidate.host.to_string(), candidate.protocol);
        self.asked.lock().unwrap().push((key.0.clone(), key.1, now));
        let in_flight = self.in_flight.clone();
        assert!(
            !in_flight.lock().unwrap().contains(&key),
            "two probes of {key:?} at once"
        );
        in_flight.lock().unwrap().push(key.clone());
        let (takes, outcome) = (self.script)(candidate, now);
        Box::pin(async move {
            sleep(takes).await;
            in_flight.lock().unwrap().retain(|k| *k != key);
            Report {
                outcome,
                address: None,
            }
        })
    }
}

struct Run {
    watching: Watching,
    asked: Arc<Mutex<Vec<(String, Protocol, Duration)>>>,
    start: Instant,
    _task: JoinSet<()>,
}

impl Run {
    fn selection(&self) -> Option<String> {
        let view = self.watching.view.borrow().clone();
        Some(view.selected(Protocol::Grpc)?.candidate.host.to_string())
    }

    fn state(&self, host: &str) -> State {
        let view = self.watching.view.borrow().clone();
        let mut of = view.of(Protocol::Grpc).iter();
        of.find(|e| e.candidate.host.to_string() == host)
            .unwrap()
            .health
            .state
    }

    fn asked(&self, host: &str, from: u64, to: u64) -> usize {
        let (from, to) = (Duration::from_secs(from), Duration::from_secs(to));
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|(h, p, at)| h == host && *p == Protocol::Grpc && *at >= from && *at < to)
            .count()
    }

    async fn at(&self, seconds: f64) {
        tokio::time::sleep_until(self.start + Duration::from_secs_f64(seconds)).await;
    }
}

fn up() -> (Duration, Outcome) {
    let latency = Duration::from_millis(1);
    let ready = Some(true);
    (latency, Outcome::Healthy { ready, latency })
}

fn down(reason: Reason) -> (Duration, Outcome) {
    let takes = if reason.is_silence() { 1000 } else { 0 };
    let detail = "scripted".into();
    (
        Duration::from_millis(takes),
        Outcome::Unhealthy { reason, detail },
    )
}

fn run(
    script: impl Fn(&Candidate, Duration) -> (Duration, Outcome) + Send + Sync + 'static,
) -> Run {
    let loaded = crate::config::load_from([("SHIM_INFERENCE_HOSTS", "a,b")]).unwrap();
    let (asked, start) = (Arc::default(), Instant::now());
    let probe = Scripted {
        script: Arc::new(script),
        start,
        asked: Arc::clone(&asked),
        in_flight: Arc::default(),
    };
    let (prober, watching) = Prober::new(&loaded.config, probe, Clock::start(), &Metrics::new());
    let mut task = JoinSet::new();
    task.spawn(prober.run());
    Run {
        watching,
        asked,
        start,
        _task: task,
    }
}

fn is(candidate: &Candidate, host: &str) -> bool {
    candidate.host.to_string() == host
}

#[tokio::test(start_paused = true)]
async fn probing_is_fast_until_something_answers_and_then_keeps_to_the_interval() {
    let run = run(|c, now| {
        if is(c, "a") && now >= Duration::from_secs(5) {
            up()
        } else {
            down(Reason::Refused)
        }
    });
    run.at(4.9).await;
    let fast = run.asked("a", 0, 4);
    assert!((36..=45).contains(&fast), "{fast} probes in 4 s");
    assert_eq!(run.selection(), None);
    run.at(5.2).await;
    assert_eq!(run.selection().as_deref(), Some("a"));
    run.at(30.0).await;
    for host in ["a", "b"] {
        let slow = run.asked(host, 10, 30);
        assert!((17..=23).contains(&slow), "{slow} probes of {host} in 20 s");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_hurried_for_ever_and_each_fall_is_hurried_anew() {
    let run = run(|c, now| {
        let now = now.as_secs_f64();
        if is(c, "a") && (100.0..110.0).contains(&now) {
            up()
        } else {
            down(Reason::Refused)
        }
    });
    run.at(99.0).await;
    let (fast, slow) = (run.asked("a", 10, 50), run.asked("a", 70, 90));
    assert!((360..=450).contains(&fast), "{fast} probes in 40 s");
    assert!((17..=23).contains(&slow), "{slow} probes in 20 s");
    // A caller still brings one forward.
    run.watching.hints.probe_now(Protocol::Grpc);
    run.at(99.05).await;
    assert!(run.asked("a", 99, 100) >= 1);
    run.at(102.0).await;
    assert_eq!(run.selection().as_deref(), Some("a"));
    run.at(140.0).await;
    let again = run.asked("a", 115, 135);
    assert!((180..=225).contains(&again), "{again} probes in 20 s");
}

#[tokio::test(start_paused = true)]
async fn a_refusing_server_is_left_within_a_second_and_a_half() {
    let run = run(|c, now| {
        let now = now.as_secs_f64();
        if is(c, "b") && now > 1.0 || is(c, "a") && now < 10.0 {
            up()
        } else {
            down(Reason::Refused)
        }
    });
    run.at(9.9).await;
    assert_eq!(run.selection().as_deref(), Some("a"));
    run.at(11.5).await;
    assert_eq!(run.state("a"), State::Down);
    assert_eq!(run.selection().as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn the_preferred_server_is_taken_back_only_after_it_has_held() {
    let run = run(|c, now| {
        let away = (10.0..20.0).contains(&now.as_secs_f64());
        if is(c, "a") && away {
            down(Reason::Refused)
        } else {
            up()
        }
    });
    run.at(15.0).await;
    assert_eq!(run.selection().as_deref(), Some("b"));
    run.at(29.0).await;
    assert_eq!(run.state("a"), State::Up);
    assert_eq!(run.selection().as_deref(), Some("b"));
    run.at(33.0).await;
    assert_eq!(run.selection().as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn a_freeze_of_twelve_seconds_is_a_stall_and_nothing_moves() {
    let run = run(|c, now| match (is(c, "a"), now.as_secs_f64()) {
        (true, t) if !(10.0..22.0).contains(&t) => up(),
        (true, _) => down(Reason::ResponseTimeout),
        (false, _) => down(Reason::Refused),
    });
    run.at(17.0).await;
    assert_eq!(run.state("a"), State::Stalled);
    assert_eq!(run.selection().as_deref(), Some("a"));
    run.at(26.0).await;
    assert_eq!(run.state("a"), State::Up);
    let selections = run.watching.view.borrow().selection;
    assert_eq!(selections, [Some(0), Some(0)]);
}

#[tokio::test(start_paused = true)]
async fn silence_beyond_the_grace_is_down_and_the_selection_is_given_up() {
    let run = run(|c, now| {
        if is(c, "a") && now < Duration::from_secs(10) {
            up()
        } else if is(c, "a") {
            down(Reason::ResponseTimeout)
        } else {
            down(Reason::Refused)
        }
    });
    run.at(28.0).await;
    assert_eq!(run.state("a"), State::Stalled);
    run.at(33.0).await;
    assert_eq!(run.state("a"), State::Down);
    assert_eq!(run.selection(), None);
}

#[tokio::test(start_paused = true)]
async fn a_callers_hint_brings_the_next_probe_forward_and_many_hints_bring_one() {
    let run = run(|_, _| up());
    run.at(10.0).await;
    let before = run.asked.lock().unwrap().len();
    for _ in 0..50 {
        run.watching.hints.probe_now(Protocol::Grpc);
    }
    tokio::time::sleep(HINT_GAP * 2).await;
    let after = run.asked.lock().unwrap().len();
    assert!(
        (2..=4).contains(&(after - before)),
        "{} probes",
        after - before
    );
}

#[tokio::test(start_paused = true)]
async fn changes_wake_nobody_while_nothing_changes() {
    let run = run(|_, _| up());
    run.at(5.0).await;
    let mut changes = run.watching.changes.clone();
    changes.mark_unchanged();
    run.at(60.0).await;
    assert!(!changes.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn all_candidates_are_probed_in_the_same_moments() {
    let run = run(|c, _| {
        if is(c, "a") {
            up()
        } else {
            down(Reason::Refused)
        }
    });
    run.at(40.0).await;
    let asked = run.asked.lock().unwrap();
    let from = Duration::from_secs(10);
    let settled: Vec<Duration> = asked.iter().map(|a| a.2).filter(|at| *at >= from).collect();
    let mut moments = settled.clone();
    moments.dedup();
    assert!((27..=34).contains(&moments.len()), "{moments:?}");
    // Two candidates, two protocols; the last moment may be cut off by the end.
    assert!(settled.len() >= 4 * (moments.len() - 1), "{settled:?}");
}
