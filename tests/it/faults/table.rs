//! The table: faults of the server, of the scheduler, of the agent and of the shim itself.

use std::sync::atomic::Ordering;
use std::time::Duration;

use agent_shim::demo::scheduler::Manners;

use super::driver::{Expect, MEMORY, Phase, Ready, Row, promised, run, run_pairs, usual};
use super::place::Place;
use super::process::variable;
use super::stage::{LOADED, Wants};

const SECOND: Duration = Duration::from_secs(1);

/// A row with the usual answers.
const USUAL: Row = Row {
    name: "",
    fault: "",
    phases: Phase::RUNNING,
    wants: usual,
    inject: |_| Box::pin(async {}),
    heal: |_| Box::pin(async {}),
    lasts: SECOND,
    expect: Expect {
        ready: Ready::Goes,
        findings: &[],
        subscribes: 0,
        answers: false,
        words: "",
    },
    weight: 1,
    direct: true,
    memory: MEMORY,
};

/// Faults of the inference server.
fn server() -> Vec<Row> {
    vec![
        Row {
            name: "server-killed",
            fault: "the server's process gets SIGKILL and is started again",
            phases: Phase::ALL,
            inject: |stage| Box::pin(stage.server.kill()),
            heal: |stage| {
                Box::pin(async {
                    let ip = stage.place.ip();
                    stage.server.start(ip, &[LOADED, "second_1"]).await;
                })
            },
            expect: Expect {
                ready: Ready::Goes,
                findings: &["AS001", "AS003"],
                subscribes: 0,
                answers: false,
                words: "calls fail at once with 503 or UNAVAILABLE; its models are loaded again",
            },
            ..USUAL
        },
        Row {
            name: "server-slow-to-start",
            fault: "the server's process is started seconds after the shim",
            phases: &[Phase::ColdStart],
            inject: |stage| Box::pin(stage.server.kill()),
            heal: |stage| {
                Box::pin(async {
                    if stage.with_shim && !stage.scheduler.subscribes().is_empty() {
                        stage.complain(
                            "the scheduler was told of a replica without a server".into(),
                        );
                    }
                    stage.server.start(stage.place.ip(), &[]).await;
                })
            },
            lasts: 4 * SECOND,
            expect: Expect {
                ready: Ready::Goes,
                findings: &["AS001"],
                subscribes: 0,
                answers: false,
                words: "the subscription is held until it is there",
            },
            ..USUAL
        },
        Row {
            name: "server-refuses",
            fault: "the server's process lives and closes both ports",
            inject: |stage| {
                Box::pin(async {
                    stage.server.order("close http").await;
                    stage.server.order("close grpc").await;
                })
            },
            heal: |stage| Box::pin(stage.server.order("open")),
            expect: Expect {
                ready: Ready::Goes,
                findings: &["AS003"],
                subscribes: 0,
                answers: false,
                words: "calls fail at once with 503 or UNAVAILABLE",
            },
            ..USUAL
        },
        Row {
            name: "server-moved",
            fault: "the server comes back on another address of SHIM_INFERENCE_HOSTS, and later on the first",
            wants: |place| Wants {
                env: vec![(
                    "SHIM_INFERENCE_HOSTS",
                    format!("{},{}", place.ip(), place.beside()),
                )],
                ..Wants::default()
            },
            inject: |stage| {
                Box::pin(async {
                    stage.server.kill().await;
                    let models = [LOADED, "second_1"];
                    stage.server.start(stage.place.beside(), &models).await;
                })
            },
            heal: |stage| {
                Box::pin(async {
                    stage.server.kill().await;
                    stage
                        .server
                        .start(stage.place.ip(), &[LOADED, "second_1"])
                        .await;
                })
            },
            lasts: 2 * SECOND,
            expect: Expect {
                ready: Ready::Recovers,
                findings: &[],
                subscribes: 0,
                answers: false,
                words: "calls go to the other address, without the shim they fail",
            },
            ..USUAL
        },
        Row {
            name: "server-elsewhere",
            fault: "the server comes back on an address that the shim was not told of",
            phases: &[Phase::ColdStart, Phase::Idle, Phase::UnderLoad],
            inject: |stage| {
                Box::pin(async {
                    stage.server.kill().await;
                    stage.server.start(stage.place.beside(), &[LOADED]).await;
                })
            },
            heal: |stage| {
                Box::pin(async {
                    stage.server.kill().await;
                    stage.server.start(stage.place.ip(), &[LOADED]).await;
                })
            },
            expect: Expect {
                ready: Ready::Goes,
                findings: &["AS010"],
                subscribes: 0,
                answers: false,
                words: "the finding names the address",
            },
            ..USUAL
        },
        Row {
            name: "server-garbage",
            fault: "both ports answer with bytes of no protocol",
            phases: Phase::ALL,
            inject: |stage| Box::pin(stage.server.order("garbage on")),
            heal: |stage| Box::pin(stage.server.order("open")),
            expect: Expect {
                ready: Ready::Goes,
                findings: &["AS016", "AS017"],
                subscribes: 0,
                answers: false,
                words: "no byte of it is taken for an answer",
            },
            ..USUAL
        },
        Row {
            name: "server-breaks-off",
            fault: "every inference's answer is reset in its middle",
            phases: &[Phase::UnderLoad, Phase::Draining],
            inject: |stage| Box::pin(stage.server.order("breaks-off on")),
            heal: |stage| Box::pin(stage.server.order("breaks-off off")),
            expect: Expect {
                ready: Ready::Stays,
                findings: &[],
                subscribes: 0,
                answers: false,
                words: "callers see it broken off too: nothing is repeated, nothing looks whole",
            },
            ..USUAL
        },
        Row {
            name: "server-not-live",
            fault: "the server answers that it is not live",
            phases: Phase::ALL,
            inject: |stage| Box::pin(stage.server.order("not-live on")),
            heal: |stage| Box::pin(stage.server.order("not-live off")),
            expect: Expect {
                ready: Ready::Goes,
                findings: &["AS018"],
                subscribes: 0,
                answers: true,
                words: "it is down by its own word; calls that it might serve are refused",
            },
            ..USUAL
        },
        Row {
            name: "server-name-unknown",
            fault: "the server's name does not resolve, and never has",
            phases: &[Phase::ColdStart],
            wants: own_names,
            inject: |stage| Box::pin(async { names(&stage.place, false) }),
            heal: |stage| Box::pin(async { names(&stage.place, true) }),
            // Without the shim nobody asks for the name.
            direct: false,
            expect: Expect {
                ready: Ready::Goes,
                findings: &["AS011"],
                subscribes: 0,
                answers: false,
                words: "the name is asked for again and again",
            },
            ..USUAL
        },
        Row {
            name: "server-name-gone",
            fault: "the server's name does not resolve any more",
            phases: &[Phase::Idle, Phase::UnderLoad],
            wants: own_names,
            inject: |stage| Box::pin(async { names(&stage.place, false) }),
            heal: |stage| Box::pin(async { names(&stage.place, true) }),
            lasts: 3 * SECOND,
            expect: Expect {
                ready: Ready::Stays,
                findings: &[],
                subscribes: 0,
                answers: false,
                words: "every call is served at the address that the name had",
            },
            ..USUAL
        },
        Row {
            name: "server-wedged",
            fault: "the server's process gets SIGSTOP, and SIGCONT later",
            phases: Phase::ALL,
            inject: |stage| Box::pin(stage.server.signal("STOP")),
            heal: |stage| Box::pin(stage.server.signal("CONT")),
            lasts: 3 * SECOND,
            expect: Expect {
                ready: Ready::GoesAfterGrace,
                findings: &["AS004"],
                subscribes: 0,
                answers: true,
                words: "calls wait within the grace and fail at once after it; what runs is not cut",
            },
            ..USUAL
        },
        Row {
            name: "server-one-protocol",
            fault: "the server closes its gRPC port and goes on with HTTP",
            phases: Phase::ALL,
            inject: |stage| Box::pin(stage.server.order("close grpc")),
            heal: |stage| Box::pin(stage.server.order("open")),
            expect: Expect {
                ready: Ready::Goes,
                findings: &["AS012", "AS001", "AS003"],
                subscribes: 0,
                answers: false,
                words: "HTTP is served as before",
            },
            ..USUAL
        },
    ]
}

/// The shim in a mount namespace with name files of its own; no root is needed for that.
fn own_names(place: &Place) -> Wants {
    names(place, true);
    let folder = place.folder.display();
    let script = format!(
        "mount --bind {folder}/hosts /etc/hosts && mount --bind {folder}/resolv.conf /etc/resolv.conf && exec \"$0\""
    );
    let words = ["/usr/bin/unshare", "-rm", "/bin/sh", "-c", &script];
    Wants {
        env: vec![
            ("SHIM_INFERENCE_HOSTS", NAME.into()),
            ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin".into()),
        ],
        before: words.map(String::from).into(),
        ..Wants::default()
    }
}

const NAME: &str = "the-server.test";

/// Writes the files in place, because they are mounted. The name server refuses.
fn names(place: &Place, known: bool) {
    let line = match known {
        true => format!("{} {NAME}\n", place.ip()),
        false => String::new(),
    };
    std::fs::write(place.folder.join("hosts"), line).unwrap();
    std::fs::write(
        place.folder.join("resolv.conf"),
        "nameserver 127.0.0.53\noptions attempts:1 timeout:1\n",
    )
    .unwrap();
}

/// What every fault of the scheduler has in common: no caller and no probe feels it.
const SCHEDULER: Row = Row {
    phases: Phase::ALL,
    lasts: Duration::from_secs(2),
    expect: Expect {
        ready: Ready::Stays,
        findings: &[],
        subscribes: 2,
        answers: false,
        words: "",
    },
    ..USUAL
};

/// Faults of the scheduler and of the way to it.
fn scheduler() -> Vec<Row> {
    vec![
        Row {
            name: "scheduler-restarted",
            fault: "the scheduler stops, refuses, and comes back with nothing in its store",
            inject: |stage| Box::pin(async { stage.scheduler.kill() }),
            heal: |stage| Box::pin(stage.scheduler.start(Manners::default())),
            expect: Expect {
                findings: &["AS041", "AS043"],
                words: "no caller notices; the agent's next Subscribe goes through when it is back",
                ..SCHEDULER.expect
            },
            ..SCHEDULER
        },
        Row {
            name: "scheduler-wedged",
            fault: "the scheduler's connections stay and carry nothing",
            inject: |stage| {
                Box::pin(async {
                    stage.scheduler.agent.stall(true);
                    stage.scheduler.status.stall(true);
                })
            },
            heal: |stage| {
                Box::pin(async {
                    stage.scheduler.agent.stall(false);
                    stage.scheduler.status.stall(false);
                })
            },
            expect: Expect {
                words: "no caller notices; a stream that carries nothing looks like one with nothing to say",
                ..SCHEDULER.expect
            },
            ..SCHEDULER
        },
        Row {
            name: "scheduler-errors",
            fault: "the scheduler answers every Subscribe with an error",
            inject: |stage| {
                Box::pin(stage.scheduler.start(Manners {
                    refuse: Some("as asked".into()),
                    ..Manners::default()
                }))
            },
            heal: |stage| Box::pin(stage.scheduler.start(Manners::default())),
            expect: Expect {
                findings: &["AS054"],
                subscribes: 40,
                answers: false,
                words: "the agent's tight loop does not reach the scheduler as one",
                ..SCHEDULER.expect
            },
            ..SCHEDULER
        },
        Row {
            name: "scheduler-garbage",
            fault: "the scheduler's ports answer with bytes of no protocol",
            inject: |stage| {
                Box::pin(async {
                    stage.scheduler.agent.babble(true);
                    stage.scheduler.status.babble(true);
                })
            },
            heal: |stage| {
                Box::pin(async {
                    stage.scheduler.agent.babble(false);
                    stage.scheduler.status.babble(false);
                })
            },
            expect: Expect {
                findings: &["AS044", "AS043"],
                words: "the subscription is held",
                ..SCHEDULER.expect
            },
            ..SCHEDULER
        },
        Row {
            name: "certificate-rotated",
            fault: "authority, scheduler's certificate and the pod's files are all new",
            phases: Phase::RUNNING,
            wants: tls,
            inject: |stage| {
                Box::pin(async {
                    let tls = stage.tls.as_ref().unwrap();
                    tls.rotate();
                    if stage.with_shim {
                        stage.scheduler.agent.certify(tls.identity());
                        stage.scheduler.status.certify(tls.identity());
                    }
                })
            },
            expect: Expect {
                words: "the files are read again",
                ..SCHEDULER.expect
            },
            ..SCHEDULER
        },
        Row {
            name: "certificate-wrong",
            fault: "the scheduler shows a certificate of an unknown authority",
            wants: tls,
            inject: |stage| {
                Box::pin(async {
                    let tls = stage.tls.as_ref().unwrap();
                    if stage.with_shim {
                        stage.scheduler.agent.certify(tls.stranger());
                        stage.scheduler.status.certify(tls.stranger());
                    }
                })
            },
            heal: |stage| {
                Box::pin(async {
                    let tls = stage.tls.as_ref().unwrap();
                    if stage.with_shim {
                        stage.scheduler.agent.certify(tls.identity());
                        stage.scheduler.status.certify(tls.identity());
                    }
                })
            },
            expect: Expect {
                findings: &["AS045", "AS049"],
                words: "nothing is sent to it",
                ..SCHEDULER.expect
            },
            ..SCHEDULER
        },
    ]
}

fn tls(_: &Place) -> Wants {
    Wants {
        tls: true,
        ..Wants::default()
    }
}

/// Faults of the agent, of the shim itself, and floods.
fn others() -> Vec<Row> {
    vec![
        Row {
            name: "agent-killed",
            fault: "the agent's process ends and is started again",
            phases: Phase::RUNNING,
            inject: |stage| Box::pin(async { stage.kill_agent() }),
            heal: |stage| Box::pin(async { stage.start_agent() }),
            lasts: 2 * SECOND,
            expect: Expect {
                ready: Ready::Stays,
                // The condition `subscribed` says that the agent is gone; no rule does.
                findings: &["AS089"],
                subscribes: 2,
                answers: false,
                words: "its subscription ends at the scheduler too; its next one goes through",
            },
            ..USUAL
        },
        Row {
            name: "agent-tight-loop",
            fault: "the agent subscribes, lets go and subscribes again without a pause",
            phases: &[Phase::Idle, Phase::UnderLoad],
            inject: |stage| {
                Box::pin(async {
                    stage.kill_agent();
                    let at = stage.scheduler_of_agent();
                    stage.tasks.lock().await.spawn(super::flood::tight_loop(at));
                })
            },
            heal: |stage| {
                Box::pin(async {
                    stage.tasks.lock().await.shutdown().await;
                    stage.start_agent();
                })
            },
            lasts: 2 * SECOND,
            expect: Expect {
                ready: Ready::Stays,
                findings: &[],
                // Eight are free (`pace::FREE`), then they wait ever longer; the agent's own at the end.
                subscribes: 20,
                answers: false,
                words: "callers are served meanwhile, and the scheduler sees few of them",
            },
            ..USUAL
        },
        Row {
            name: "shim-killed",
            fault: "the shim gets SIGKILL and is started again",
            phases: &[Phase::Idle, Phase::UnderLoad, Phase::Loading],
            inject: |stage| {
                Box::pin(async {
                    let mut shim = stage.shim.lock().await;
                    let running = shim.as_mut().unwrap();
                    super::process::signal(running.pid(), "KILL");
                    running.wait(SECOND * 10).await;
                })
            },
            heal: |stage| Box::pin(stage.start_shim()),
            direct: false,
            expect: Expect {
                ready: Ready::Unasked,
                findings: &[],
                subscribes: 2,
                answers: false,
                words: "what was in flight is lost; it needs nothing from before",
            },
            ..USUAL
        },
        Row {
            name: "shim-terminated",
            fault: "the shim gets SIGTERM, ends in order and is started again",
            phases: Phase::ALL,
            inject: |stage| {
                Box::pin(async {
                    if let Some(shim) = stage.shim.lock().await.as_ref() {
                        super::process::signal(shim.pid(), "TERM");
                        stage.terminated.store(true, Ordering::Relaxed);
                    }
                })
            },
            heal: |stage| {
                Box::pin(async {
                    if let Some(shim) = stage.shim.lock().await.as_mut() {
                        // A second one would end it at once.
                        if !stage.terminated.load(Ordering::Relaxed) {
                            super::process::signal(shim.pid(), "TERM");
                        }
                        let end = shim.wait(SECOND * 4 + promised(3.0)).await;
                        if end != Some(Some(0)) {
                            stage.complain(format!("SIGTERM: it ended with {end:?}, not 0"));
                        }
                    }
                    stage.start_shim().await;
                })
            },
            direct: false,
            expect: Expect {
                ready: Ready::Unasked,
                findings: &[],
                subscribes: 2,
                answers: false,
                words: "calls are served until it ends, with exit code 0",
            },
            ..USUAL
        },
        Row {
            name: "thousand-connections",
            fault: "1,000 callers connect at once, each makes a call and stays",
            phases: &[Phase::Idle, Phase::UnderLoad],
            inject: |stage| Box::pin(super::flood::crowd(stage)),
            heal: |stage| Box::pin(async { stage.tasks.lock().await.shutdown().await }),
            memory: 64 << 10,
            weight: 8,
            expect: Expect {
                ready: Ready::Recovers,
                findings: &[],
                subscribes: 0,
                answers: false,
                words: "every call is served",
            },
            ..USUAL
        },
        Row {
            name: "huge-message",
            fault: "one HTTP body and one gRPC message of 1 GB",
            phases: &[Phase::UnderLoad],
            inject: |stage| Box::pin(super::flood::huge(stage)),
            direct: false,
            weight: 4,
            expect: Expect {
                ready: Ready::Recovers,
                findings: &[],
                subscribes: 0,
                answers: false,
                words: "memory grows by less than 32 MiB meanwhile",
            },
            ..USUAL
        },
    ]
}

/// Every row of this table.
pub fn rows() -> Vec<Row> {
    [server(), scheduler(), others()].concat()
}

/// The ten worst, of which all pairs are played: what takes the server, the scheduler, the agent or
/// the shim away altogether, or makes one of them lie. The one that obeys nothing while it lasts
/// comes last, so that it strikes second and is healed first.
pub const WORST: [&str; 10] = [
    "server-killed",
    "server-refuses",
    "server-garbage",
    "server-breaks-off",
    "scheduler-restarted",
    "scheduler-errors",
    "scheduler-wedged",
    "agent-killed",
    "shim-killed",
    "server-wedged",
];

/// All pairs of the worst, 45.
fn pairs() -> Vec<(Row, Row)> {
    let rows = rows();
    let row = |name: &str| {
        *rows
            .iter()
            .find(|r| r.name == name)
            .expect("it is in the table")
    };
    let worst = WORST.map(row);
    let seconds = |i: usize| worst[i + 1..].iter().map(move |second| (worst[i], *second));
    (0..worst.len()).flat_map(seconds).collect()
}

fn all_good(cells: &[super::driver::Cell]) {
    super::show::print(cells);
    let bad = cells.iter().filter(|c| !c.complaints.is_empty()).count();
    assert_eq!(
        bad,
        0,
        "of {} cells so many are bad; see above",
        cells.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_survives_what_breaks_beside_it() {
    all_good(&run(&rows()).await);
}

/// Every seventh pair; `make faults` plays all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_survives_two_faults_at_once() {
    let step = if variable("FAULTS_FULL").is_some() {
        1
    } else {
        7
    };
    let chosen: Vec<_> = pairs().into_iter().step_by(step).collect();
    all_good(&run_pairs(&chosen).await);
}

/// `FAULTS_WRITE=1` writes the block instead.
#[test]
fn the_matrix_in_the_documentation_is_this_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reliability.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (begin, end) = (
        "<!-- fault matrix: begin -->\n",
        "<!-- fault matrix: end -->",
    );
    let (before, rest) = text.split_once(begin).unwrap();
    let (block, after) = rest.split_once(end).unwrap();
    let table = super::show::markdown(&rows(), &WORST);
    if variable("FAULTS_WRITE").is_some() {
        std::fs::write(path, format!("{before}{begin}{table}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(block, table, "write it with FAULTS_WRITE=1");
}
