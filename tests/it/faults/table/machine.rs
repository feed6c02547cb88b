//! What the machine does to the shim: a clock that jumps, limits, disks.

use super::super::flood;
use super::super::place::Place;
use super::super::row::{Phase, Ready, Row, SECOND, USUAL};
use super::super::stage::{Stage, Wants};
use crate::os::means::{cgroup, faketime};

/// Played under load, and in the other phases where everything is.
const MACHINE: Row = Row {
    phases: &[Phase::UnderLoad],
    more: Phase::BUT_UNDER_LOAD,
    ready: Ready::Stays,
    nameless: "nobody is harmed",
    ..USUAL
};

/// What a file says the time is, for the shim alone. Written as one step.
fn set_clock(place: &Place, offset: &str) {
    let file = place.folder.join("clock");
    let next = place.folder.join("clock.next");
    std::fs::write(&next, format!("{offset}\n")).unwrap();
    std::fs::rename(&next, &file).unwrap();
}

fn with_clock(place: &Place) -> Wants {
    set_clock(place, "+0");
    let file = place.folder.join("clock").display().to_string();
    Wants {
        env: vec![
            ("LD_PRELOAD", faketime().unwrap_or_default().into()),
            ("FAKETIME_TIMESTAMP_FILE", file),
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
        words: "nothing waits for the hour; ages in /status stay right",
        // Nobody else has that clock.
        direct: false,
        ..MACHINE
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

/// Rows that need limits and mounts.
pub fn limits() -> Vec<Row> {
    vec![
        Row {
            name: "log-disk-full",
            fault: "every write of the log fails: the disk is full",
            phases: &[Phase::ColdStart, Phase::UnderLoad],
            more: &[Phase::Idle, Phase::Loading, Phase::Draining],
            wants: |_| under(&["sh", "-c", "exec \"$0\" 2>/dev/full"]),
            words: "nothing but the log is missing",
            ..MACHINE
        },
        Row {
            name: "root-read-only",
            fault: "the root is read-only, and there is no space for temporary files",
            wants: |_| {
                let script = "mount -t tmpfs -o size=4k tmpfs /mnt && export TMPDIR=/mnt && mount -o remount,bind,ro / && exec \"$0\"";
                under(&["unshare", "--mount", "sh", "-c", script])
            },
            words: "the shim opens no file to write",
            ..MACHINE
        },
        Row {
            name: "descriptors-exhausted",
            fault: "more silent callers than the limit on descriptors has room for",
            phases: &[Phase::Idle],
            more: &[Phase::UnderLoad, Phase::Loading, Phase::Draining],
            unplayed: "nobody can connect before the start",
            wants: |_| under(&["prlimit", "--nofile=120:120"]),
            inject: |stage| Box::pin(flood::hoard(stage)),
            heal: |stage| Box::pin(async { stage.tasks.lock().await.shutdown().await }),
            words: "the silent ones give way; callers, probes and kubelet are served",
            ..MACHINE
        },
    ]
}

/// What the chart gives the shim.
const GROUP: u64 = 64 << 20;

fn in_a_group(place: &Place) -> Wants {
    let name = place
        .folder
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let group = cgroup(&name, GROUP).unwrap();
    let script = format!("{} && exec \"$0\"", group.enter());
    Wants {
        group: Some(std::sync::Arc::new(group)),
        ..under(&["sh", "-c", &script])
    }
}

/// Whether the kernel has killed nobody in the group.
fn nobody_killed(stage: &Stage) {
    let killed = stage
        .wants
        .group
        .as_ref()
        .map_or(0, |group| group.events().0);
    if killed > 0 {
        stage.complain(format!("the kernel killed {killed} processes at the limit"));
    }
}

/// Rows that need a limit on memory.
pub fn memory() -> Vec<Row> {
    vec![
        Row {
            name: "memory-limit",
            fault: "1,000 callers at once, then one HTTP body and one gRPC message of 1 GB, in the 64 MiB that the chart gives the shim",
            phases: &[],
            more: &[Phase::Idle, Phase::UnderLoad],
            unplayed: "nobody can connect before the start; a load and a drain take no memory",
            wants: in_a_group,
            inject: |stage| {
                Box::pin(async move {
                    flood::crowd(stage).await;
                    flood::huge(stage).await;
                })
            },
            heal: |stage| {
                Box::pin(async {
                    stage.tasks.lock().await.shutdown().await;
                    nobody_killed(stage);
                })
            },
            ready: Ready::Recovers,
            memory: 64 << 10,
            weight: 8,
            direct: false,
            words: "every call is served, and nobody is killed",
            ..MACHINE
        },
        Row {
            name: "memory-limit-reached",
            fault: "the limit on memory is lowered to what the shim uses, and more callers come: the kernel kills it, and it is started again",
            phases: &[],
            more: &[Phase::Idle, Phase::UnderLoad, Phase::Loading],
            unplayed: "as `shim-killed`",
            wants: in_a_group,
            inject: |stage| Box::pin(flood::over_the_limit(stage)),
            heal: |stage| {
                Box::pin(async {
                    stage.tasks.lock().await.shutdown().await;
                    if let Some(group) = &stage.wants.group {
                        group.limit(GROUP).unwrap();
                    }
                    stage.start_shim().await;
                })
            },
            ready: Ready::Unasked,
            direct: false,
            subscribes: 2,
            nameless: "the shim cannot be asked; AS123 of `agent-shim doctor` names it by the pod's state",
            words: "as `shim-killed`: the program does not end at the limit, the kernel ends it",
            ..MACHINE
        },
    ]
}
