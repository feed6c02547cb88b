//! The table: faults of the server, of the scheduler, of the agent and of the shim itself.

use std::time::Duration;

use super::driver::{Expect, MEMORY, Phase, Ready, Row, run, usual};
use super::stage::LOADED;

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
        words: "",
    },
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
                words: "calls fail at once with 503 or UNAVAILABLE; its models are loaded again",
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
                words: "HTTP is served as before",
            },
            ..USUAL
        },
    ]
}

/// Every row of this table.
pub fn rows() -> Vec<Row> {
    server()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_survives_what_breaks_beside_it() {
    let cells = run(&rows()).await;
    super::show::print(&cells);
    let bad: Vec<_> = cells.iter().filter(|c| !c.complaints.is_empty()).collect();
    assert!(bad.is_empty(), "{} cells of {} are bad", bad.len(), cells.len());
}
