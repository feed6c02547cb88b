//! Packets that are dropped, lost and late, on sockets that know nothing of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use super::super::place::{Place, SCHEDULER, STATUS};
use super::super::row::{Phase, Ready, Row, SECOND, USUAL};
use super::super::stage::{Stage, Wants};
use crate::os::means::{Dropped, FAR, Link, NEAR};

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

fn to_server(stage: &Stage) -> Vec<SocketAddr> {
    vec![stage.server.http(), stage.server.grpc()]
}

/// Slow is not dead: with the grace and the limits of a probe as they are by default.
fn patient(_: &Place) -> Wants {
    Wants {
        env: vec![
            ("SHIM_OUTAGE_GRACE", "20s".into()),
            ("SHIM_PROBE_INTERVAL", "1s".into()),
            ("SHIM_PROBE_CONNECT_TIMEOUT", "1s".into()),
            ("SHIM_PROBE_TIMEOUT", "1s".into()),
        ],
        ..Wants::default()
    }
}

/// The link of this process, which has a network of its own; made by the first who wants it.
static LINK: Mutex<Option<Link>> = Mutex::new(None);

fn over_a_link(place: &Place) -> Wants {
    let mut link = LINK.lock().unwrap();
    link.get_or_insert_with(|| Link::up(std::time::Duration::ZERO, 0.0));
    let mut wants = patient(place);
    wants
        .env
        .push(("SHIM_INFERENCE_HOSTS", IpAddr::from(FAR).to_string()));
    wants.far = Some((NEAR.into(), FAR.into()));
    wants
}

async fn link(delay: &str, loss: &str) {
    if let Some(link) = LINK.lock().unwrap().as_mut() {
        link.set(delay, loss);
    }
}

/// Rows that need a packet filter.
pub fn filtered() -> Vec<Row> {
    let half_open = Row {
        name: "server-half-open",
        fault: "every packet to and from the server is dropped, also of established connections",
        phases: Phase::RUNNING,
        more: &[Phase::ColdStart],
        inject: |stage| Box::pin(dropping(stage, to_server(stage), None)),
        heal: |stage| Box::pin(no_more(stage)),
        lasts: 3 * SECOND,
        // TCP's repetitions come at ever greater intervals.
        late: 4 * SECOND,
        ready: Ready::GoesAfterGrace,
        findings: &["AS004", "AS005"],
        answers: true,
        words: "calls wait within the grace and fail at once after it; what runs is not cut",
        ..USUAL
    };
    vec![
        half_open,
        Row {
            name: "server-half-open-long",
            fault: "the same for longer than the 5 s after which the server closes idle connections, so that it has ended what the shim still holds",
            phases: &[Phase::UnderLoad],
            more: Phase::BUT_UNDER_LOAD,
            inject: |stage| {
                Box::pin(async {
                    stage.server.order("idle-close 5000").await;
                    dropping(stage, to_server(stage), None).await;
                })
            },
            lasts: 8 * SECOND,
            late: 8 * SECOND,
            words: "what the server has closed is ended for its caller when packets pass again",
            ..half_open
        },
        Row {
            name: "server-packets-lost",
            fault: "one packet in ten to and from the server is lost",
            phases: &[Phase::UnderLoad],
            more: Phase::BUT_UNDER_LOAD,
            wants: patient,
            inject: |stage| Box::pin(dropping(stage, to_server(stage), Some(0.1))),
            heal: |stage| Box::pin(no_more(stage)),
            lasts: 4 * SECOND,
            // Large ones lose several of their packets.
            late: 4 * SECOND,
            ready: Ready::Stays,
            nameless: "every call is served",
            words: "calls are slower by TCP's repetitions",
            ..USUAL
        },
        Row {
            name: "scheduler-half-open",
            fault: "every packet to and from the scheduler is dropped, also of established connections",
            phases: &[Phase::Idle, Phase::UnderLoad, Phase::Loading],
            more: &[Phase::ColdStart, Phase::Draining],
            inject: |stage| {
                let at = [SCHEDULER, STATUS].map(|port| stage.place.at(port));
                Box::pin(dropping(stage, at.into(), None))
            },
            heal: |stage| Box::pin(no_more(stage)),
            lasts: 4 * SECOND,
            ready: Ready::Stays,
            nameless: "it lasts for 4 s, and the scheduler is asked every 10 s and given 10 s",
            besides: &["AS042", "AS052", "AS089"],
            subscribes: 2,
            words: "no call notices; what the agent said meanwhile arrives when packets do",
            ..USUAL
        },
    ]
}

/// Rows that need a link through a program.
pub fn linked() -> Vec<Row> {
    vec![Row {
        name: "server-far",
        fault: "the way to the server becomes 300 ms long, there and back, and loses one packet in a hundred",
        phases: &[Phase::UnderLoad],
        more: Phase::BUT_UNDER_LOAD,
        wants: over_a_link,
        inject: |_| Box::pin(link("0.15", "0.01")),
        heal: |_| Box::pin(link("0", "0")),
        lasts: 4 * SECOND,
        // A large call takes many ways there and back.
        late: 8 * SECOND,
        ready: Ready::Stays,
        nameless: "every call is served",
        words: "calls are slower by the way",
        // There is one link.
        weight: 8,
        ..USUAL
    }]
}
