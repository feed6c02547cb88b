//! Rows of the operating system: packets dropped and lost, a clock that jumps, a log on a full disk,
//! a read-only root, no descriptors. More of them, without the driver, in [`crate::os`].

use std::net::SocketAddr;
use std::time::Duration;

use super::driver::{Expect, MEMORY, Phase, Ready, Row, run, usual};
use super::place::{Place, RELAY_GRPC, RELAY_HTTP, SCHEDULER, STATUS};
use super::stage::{Stage, Wants};
use crate::os::means::{Dropped, Means, alone, faketime, has};

const SECOND: Duration = Duration::from_secs(1);

const USUAL: Row = Row {
    name: "",
    fault: "",
    phases: &[Phase::UnderLoad],
    wants: usual,
    inject: |_| Box::pin(async {}),
    heal: |_| Box::pin(async {}),
    lasts: SECOND,
    expect: Expect {
        ready: Ready::Stays,
        findings: &[],
        subscribes: 0,
        answers: false,
        words: "",
    },
    named: 8.0,
    weight: 1,
    direct: true,
    memory: MEMORY,
};

/// Drops packets until the fault ends.
async fn dropping(stage: &Stage, at: Vec<SocketAddr>, chance: Option<f64>) {
    let rules: Vec<Dropped> = at.into_iter().map(|at| Dropped::some(at, chance)).collect();
    stage.tasks.lock().await.spawn(async move {
        let _rules = rules;
        std::future::pending::<()>().await;
    });
}

/// The driver ends the tasks of a fault only after this.
async fn no_more(stage: &Stage) {
    stage.tasks.lock().await.shutdown().await;
}

/// Rows that need a packet filter.
pub fn network() -> Vec<Row> {
    vec![
        Row {
            name: "server-half-open",
            fault: "every packet to and from the server is dropped, also of established connections",
            phases: Phase::RUNNING,
            inject: |stage| {
                let at = vec![stage.server.http(), stage.server.grpc()];
                Box::pin(dropping(stage, at, None))
            },
            heal: |stage| Box::pin(no_more(stage)),
            lasts: 3 * SECOND,
            expect: Expect {
                ready: Ready::GoesAfterGrace,
                findings: &["AS004", "AS005"],
                subscribes: 0,
                answers: true,
                words: "calls wait within the grace and fail at once after it; what runs is not cut",
            },
            ..USUAL
        },
        Row {
            name: "server-packets-lost",
            fault: "one packet in ten to and from the server is lost",
            wants: |_| Wants {
                env: vec![("SHIM_OUTAGE_GRACE", "20s".into())],
                ..Wants::default()
            },
            inject: |stage| {
                let at = vec![stage.server.http(), stage.server.grpc()];
                Box::pin(dropping(stage, at, Some(0.1)))
            },
            heal: |stage| Box::pin(no_more(stage)),
            lasts: 4 * SECOND,
            expect: Expect {
                words: "calls are slower by TCP's repetitions",
                ..USUAL.expect
            },
            ..USUAL
        },
        Row {
            name: "scheduler-half-open",
            fault: "every packet to and from the scheduler is dropped, also of established connections",
            phases: &[Phase::Idle, Phase::UnderLoad, Phase::Loading],
            inject: |stage| {
                let at = [SCHEDULER, STATUS].map(|port| stage.place.at(port));
                Box::pin(dropping(stage, at.into(), None))
            },
            heal: |stage| Box::pin(no_more(stage)),
            lasts: 4 * SECOND,
            expect: Expect {
                words: "no call notices; what the agent said meanwhile arrives when packets do",
                ..USUAL.expect
            },
            ..USUAL
        },
    ]
}

/// What a file says the time is, for the shim alone. Written as one step.
fn set_clock(place: &Place, offset: &str) {
    let file = place.folder.join("clock");
    let next = place.folder.join("clock.next");
    std::fs::write(&next, format!("{offset}\n")).unwrap();
    std::fs::rename(&next, &file).unwrap();
}

fn with_clock(place: &Place) -> Wants {
    set_clock(place, "+0");
    Wants {
        env: vec![
            ("LD_PRELOAD", faketime().unwrap_or_default().into()),
            (
                "FAKETIME_TIMESTAMP_FILE",
                place.folder.join("clock").display().to_string(),
            ),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
        ],
        // The certificates are good for a day on both sides of now.
        tls: true,
        ..Wants::default()
    }
}

/// Rows that need a clock of the shim's own.
pub fn clock() -> Vec<Row> {
    let row = Row {
        wants: with_clock,
        heal: |stage| Box::pin(async { set_clock(&stage.place, "+0") }),
        lasts: 3 * SECOND,
        expect: Expect {
            words: "nothing waits for the hour; ages in /status stay right",
            ..USUAL.expect
        },
        // Nobody else has that clock.
        direct: false,
        ..USUAL
    };
    vec![
        Row {
            name: "clock-forward",
            fault: "the system's clock jumps an hour ahead, and back later",
            inject: |stage| Box::pin(async { set_clock(&stage.place, "+3600") }),
            ..row
        },
        Row {
            name: "clock-back",
            fault: "the system's clock jumps an hour back, and ahead later",
            inject: |stage| Box::pin(async { set_clock(&stage.place, "-3600") }),
            ..row
        },
    ]
}

fn under(words: &[&str]) -> Wants {
    Wants {
        before: words.iter().map(ToString::to_string).collect(),
        // What such a container has of variables.
        env: vec![("PATH", env!("PATH").to_string())],
        ..Wants::default()
    }
}

/// Callers who say nothing and stay, far more than there are descriptors.
async fn hoard(stage: &Stage) {
    let at = [RELAY_HTTP, RELAY_GRPC].map(|port| stage.place.at(port));
    let mut all = Vec::new();
    for n in 0..200 {
        all.push(tokio::net::TcpStream::connect(at[n % 2]).await);
    }
    stage.tasks.lock().await.spawn(async move {
        let _all = all;
        std::future::pending::<()>().await;
    });
}

/// Rows that need limits and mounts.
pub fn limits() -> Vec<Row> {
    vec![
        Row {
            name: "log-disk-full",
            fault: "every write of the log fails: the disk is full",
            phases: &[Phase::ColdStart, Phase::UnderLoad],
            wants: |_| under(&["sh", "-c", "exec \"$0\" 2>/dev/full"]),
            expect: Expect {
                words: "nothing but the log is missing",
                ..USUAL.expect
            },
            ..USUAL
        },
        Row {
            name: "root-read-only",
            fault: "the root is read-only, and there is no space for temporary files",
            wants: |_| {
                let script = "mount -t tmpfs -o size=4k tmpfs /mnt && export TMPDIR=/mnt && mount -o remount,bind,ro / && exec \"$0\"";
                under(&["unshare", "--mount", "sh", "-c", script])
            },
            expect: Expect {
                words: "the shim opens no file to write",
                ..USUAL.expect
            },
            ..USUAL
        },
        Row {
            name: "descriptors-exhausted",
            fault: "more silent callers than the limit on descriptors has room for",
            phases: &[Phase::Idle],
            wants: |_| under(&["prlimit", "--nofile=120:120"]),
            inject: |stage| {
                Box::pin(async move {
                    if stage.with_shim {
                        hoard(stage).await;
                    }
                })
            },
            heal: |stage| Box::pin(no_more(stage)),
            expect: Expect {
                words: "the silent ones give way; callers, probes and kubelet are served",
                ..USUAL.expect
            },
            ..USUAL
        },
    ]
}

async fn played(rows: &[Row]) {
    let cells = run(rows).await;
    super::show::print(&cells);
    let bad: Vec<_> = cells.iter().filter(|c| !c.complaints.is_empty()).collect();
    assert!(
        bad.is_empty(),
        "{} cells of {} are bad",
        bad.len(),
        cells.len()
    );
}

#[test]
fn the_shim_survives_packets_that_are_dropped_and_lost() {
    let name = "faults::os::the_shim_survives_packets_that_are_dropped_and_lost";
    alone(name, &[Means::Filter], async { played(&network()).await });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_survives_a_clock_that_jumps() {
    if has("the rows of the clock", &[Means::Clock]) {
        played(&clock()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_survives_limits_of_the_machine() {
    if has(
        "the rows of the limits",
        &[Means::Limits, Means::Namespaces],
    ) {
        played(&limits()).await;
    }
}
