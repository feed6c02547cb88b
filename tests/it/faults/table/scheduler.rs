//! Faults of the scheduler and of the way to it.

use std::sync::Arc;
use std::time::Duration;

use agent_shim::demo::scheduler::Manners;
use tokio_rustls::rustls::ServerConfig;

use super::super::place::Place;
use super::super::row::{Phase, Ready, Row, USUAL};
use super::super::scheduler::Front;
use super::super::stage::{Stage, Wants};
use super::super::tls::Authority;

/// What every fault of the scheduler has in common: no caller and no probe feels it.
const SCHEDULER: Row = Row {
    lasts: Duration::from_secs(2),
    ready: Ready::Stays,
    subscribes: 2,
    ..USUAL
};

/// Every one of them.
pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "scheduler-restarted",
            fault: "the scheduler stops, refuses, and comes back with nothing in its store",
            inject: |stage| Box::pin(async { stage.scheduler.kill() }),
            heal: |stage| Box::pin(stage.scheduler.start(Manners::default())),
            findings: &["AS041"],
            besides: &["AS043"],
            words: "no caller notices; the agent's next Subscribe goes through when it is back",
            ..SCHEDULER
        },
        Row {
            name: "scheduler-wedged",
            fault: "the scheduler's connections stay and carry nothing",
            inject: |stage| Box::pin(async { fronts(stage, |front| front.stall(true)) }),
            heal: |stage| Box::pin(async { fronts(stage, |front| front.stall(false)) }),
            findings: &["AS052"],
            // Asked every 10 s, and given 10 s to answer.
            named: 22.0,
            words: "no caller notices; a scheduler that is asked what it knows and does not say is named",
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
            findings: &["AS054"],
            besides: &["AS089"],
            subscribes: 40,
            words: "the agent's tight loop does not reach the scheduler as one",
            ..SCHEDULER
        },
        Row {
            name: "scheduler-garbage",
            fault: "the scheduler's ports answer with bytes of no protocol",
            inject: |stage| Box::pin(async { fronts(stage, |front| front.babble(true)) }),
            heal: |stage| Box::pin(async { fronts(stage, |front| front.babble(false)) }),
            findings: &["AS044"],
            besides: &["AS043"],
            words: "the subscription is held",
            ..SCHEDULER
        },
        Row {
            name: "certificate-rotated",
            fault: "authority, scheduler's certificate and the pod's files are all new",
            phases: Phase::RUNNING,
            wants: tls,
            inject: |stage| {
                Box::pin(async {
                    stage.tls.as_ref().unwrap().rotate();
                    shown(stage, Authority::identity);
                })
            },
            unplayed: "what is read at a start is the newest",
            nameless: "it is over before it could be read",
            words: "the files are read again",
            ..SCHEDULER
        },
        Row {
            name: "certificate-wrong",
            fault: "the scheduler shows a certificate of an unknown authority",
            wants: tls,
            inject: |stage| Box::pin(async { shown(stage, Authority::stranger) }),
            heal: |stage| Box::pin(async { shown(stage, Authority::identity) }),
            findings: &["AS045"],
            words: "nothing is sent to it",
            ..SCHEDULER
        },
    ]
}

/// Does something to both of the scheduler's ports.
fn fronts(stage: &Stage, act: impl Fn(&Front)) {
    act(&stage.scheduler.agent);
    act(&stage.scheduler.status);
}

/// The scheduler shows this certificate from now on. Without the shim nothing speaks TLS.
fn shown(stage: &Stage, identity: fn(&Authority) -> Arc<ServerConfig>) {
    if stage.with_shim {
        let tls = stage.tls.as_ref().expect("the row wants it");
        fronts(stage, |front| front.certify(identity(tls)));
    }
}

fn tls(_: &Place) -> Wants {
    Wants {
        tls: true,
        ..Wants::default()
    }
}
