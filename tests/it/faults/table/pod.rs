//! Faults of the agent and of the shim itself, and floods.

use std::sync::atomic::Ordering;

use super::super::flood;
use super::super::pace::promised;
use super::super::process::signal;
use super::super::row::{Phase, Ready, Row, SECOND, USUAL};

/// Every one of them.
pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "agent-killed",
            fault: "the agent's process ends and is started again",
            phases: Phase::RUNNING,
            unplayed: "the agent is not there yet",
            inject: |stage| Box::pin(async { stage.kill_agent() }),
            heal: |stage| Box::pin(async { stage.start_agent() }),
            lasts: 2 * SECOND,
            ready: Ready::Stays,
            findings: &["AS034"],
            besides: &["AS089"],
            // After a drain that was none, when SIGTERM has had its time to come.
            named: 22.0,
            subscribes: 2,
            words: "its subscription ends at the scheduler too; its next one goes through",
            ..USUAL
        },
        Row {
            name: "agent-tight-loop",
            fault: "the agent subscribes, lets go and subscribes again without a pause",
            phases: &[Phase::Idle, Phase::UnderLoad],
            more: &[Phase::Loading, Phase::Draining],
            unplayed: "the agent is not there yet",
            inject: |stage| {
                Box::pin(async {
                    stage.kill_agent();
                    let at = stage.scheduler_of_agent();
                    let turns = stage.turns.clone();
                    stage.tasks.lock().await.spawn(flood::tight_loop(at, turns));
                })
            },
            heal: |stage| {
                Box::pin(async {
                    stage.tasks.lock().await.shutdown().await;
                    let asked = stage.turns.load(Ordering::Relaxed);
                    let came = stage.scheduler.subscribes().len();
                    // With the one before the fault, and one that the shim keeps open.
                    if came > asked + 2 {
                        stage.complain(format!("{asked} Subscribes in the loop became {came}"));
                    }
                    stage.start_agent();
                })
            },
            lasts: 2 * SECOND,
            ready: Ready::Stays,
            nameless: "each of its subscriptions is one in order",
            besides: &["AS089"],
            // Eight are free (`pace::FREE`), then they wait ever longer; the agent's own at the end.
            subscribes: 20,
            words: "callers are served meanwhile, and the scheduler sees few of them",
            ..USUAL
        },
        Row {
            name: "shim-killed",
            fault: "the shim gets SIGKILL and is started again",
            phases: &[Phase::Idle, Phase::UnderLoad, Phase::Loading],
            more: &[Phase::Draining],
            unplayed: "a start is what follows in every other phase",
            inject: |stage| {
                Box::pin(async {
                    let mut shim = stage.shim.lock().await;
                    let running = shim.as_mut().unwrap();
                    signal(running.pid(), "KILL");
                    running.wait(SECOND * 10).await;
                })
            },
            heal: |stage| Box::pin(stage.start_shim()),
            drains: false,
            direct: false,
            ready: Ready::Unasked,
            nameless: "the shim cannot be asked; AS020 of `agent-shim doctor` names it",
            subscribes: 2,
            words: "what was in flight is lost; it needs nothing from before",
            ..USUAL
        },
        Row {
            name: "shim-terminated",
            fault: "the shim gets SIGTERM, ends in order and is started again",
            inject: |stage| {
                Box::pin(async {
                    if let Some(shim) = stage.shim.lock().await.as_ref() {
                        signal(shim.pid(), "TERM");
                        stage.terminated.store(true, Ordering::Relaxed);
                    }
                })
            },
            heal: |stage| {
                Box::pin(async {
                    if let Some(shim) = stage.shim.lock().await.as_mut() {
                        // A second one would end it at once.
                        if !stage.terminated.load(Ordering::Relaxed) {
                            signal(shim.pid(), "TERM");
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
            ready: Ready::Unasked,
            nameless: "not waited for: AS021 is there until it has ended",
            besides: &["AS021"],
            subscribes: 2,
            words: "calls are served until it ends, with exit code 0",
            ..USUAL
        },
        Row {
            name: "thousand-connections",
            fault: "1,000 callers connect at once, each makes a call and stays",
            phases: &[Phase::Idle, Phase::UnderLoad],
            more: &[Phase::Loading, Phase::Draining],
            unplayed: "nobody can connect before the start",
            inject: |stage| Box::pin(flood::crowd(stage)),
            heal: |stage| Box::pin(async { stage.tasks.lock().await.shutdown().await }),
            memory: 64 << 10,
            weight: 8,
            ready: Ready::Recovers,
            nameless: "nobody is harmed",
            words: "every call is served",
            ..USUAL
        },
        Row {
            name: "huge-message",
            fault: "one HTTP body and one gRPC message of 1 GB",
            phases: &[Phase::UnderLoad],
            more: &[Phase::Idle, Phase::Loading, Phase::Draining],
            unplayed: "nobody can connect before the start",
            inject: |stage| Box::pin(flood::huge(stage)),
            direct: false,
            weight: 4,
            ready: Ready::Recovers,
            nameless: "nobody is harmed",
            words: "memory grows by less than 32 MiB meanwhile",
            ..USUAL
        },
    ]
}
