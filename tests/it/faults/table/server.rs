//! Faults of the inference server.

use std::net::IpAddr;

use super::super::place::Place;
use super::super::row::{Phase, Ready, Row, SECOND, USUAL};
use super::super::stage::{LOADED, Stage, Wants};

/// Every one of them.
pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "server-killed",
            fault: "the server's process gets SIGKILL and is started again",
            inject: |stage| Box::pin(stage.server.kill()),
            heal: |stage| Box::pin(anew(stage, stage.place.ip())),
            findings: &["AS001", "AS003"],
            besides: &["AS098"],
            words: "calls fail at once with 503 or UNAVAILABLE; its models are loaded again",
            ..USUAL
        },
        Row {
            name: "server-slow-to-start",
            fault: "the server's process is started seconds after the shim",
            phases: &[Phase::ColdStart],
            unplayed: "it is about a start",
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
            findings: &["AS001"],
            besides: &["AS098"],
            words: "the subscription is held until it is there",
            ..USUAL
        },
        Row {
            name: "server-refuses",
            fault: "the server's process lives and closes both ports",
            phases: Phase::RUNNING,
            more: &[Phase::ColdStart],
            inject: |stage| {
                Box::pin(async {
                    stage.server.order("close http").await;
                    stage.server.order("close grpc").await;
                })
            },
            heal: |stage| Box::pin(stage.server.order("open")),
            findings: &["AS001", "AS003"],
            words: "calls fail at once with 503 or UNAVAILABLE",
            ..USUAL
        },
        Row {
            name: "server-moved",
            fault: "the server comes back on another address of SHIM_INFERENCE_HOSTS, and later on the first",
            phases: Phase::RUNNING,
            more: &[Phase::ColdStart],
            wants: |place| Wants {
                env: vec![(
                    "SHIM_INFERENCE_HOSTS",
                    format!("{},{}", place.ip(), place.beside()),
                )],
                ..Wants::default()
            },
            inject: |stage| Box::pin(anew(stage, stage.place.beside())),
            heal: |stage| Box::pin(anew(stage, stage.place.ip())),
            // Longer than it may be away.
            lasts: 4 * SECOND,
            ready: Ready::Recovers,
            nameless: "calls are served at the other address",
            besides: &["AS098"],
            words: "calls go to the other address, without the shim they fail",
            ..USUAL
        },
        Row {
            name: "server-elsewhere",
            fault: "the server comes back on an address that the shim was not told of",
            phases: &[Phase::ColdStart, Phase::Idle, Phase::UnderLoad],
            more: &[Phase::Loading, Phase::Draining],
            inject: |stage| Box::pin(anew(stage, stage.place.beside())),
            heal: |stage| Box::pin(anew(stage, stage.place.ip())),
            findings: &["AS010"],
            besides: &["AS098"],
            words: "the finding names the address",
            ..USUAL
        },
        Row {
            name: "server-garbage",
            fault: "both ports answer with bytes of no protocol",
            inject: |stage| Box::pin(stage.server.order("garbage on")),
            heal: |stage| Box::pin(stage.server.order("open")),
            findings: &["AS016"],
            babbles: true,
            besides: &["AS017"],
            words: "no byte of it is taken for an answer",
            ..USUAL
        },
        Row {
            name: "server-breaks-off",
            fault: "every inference's answer is reset in its middle",
            phases: &[Phase::UnderLoad, Phase::Draining],
            more: &[Phase::Loading],
            unplayed: "nobody calls",
            inject: |stage| Box::pin(stage.server.order("breaks-off on")),
            heal: |stage| Box::pin(stage.server.order("breaks-off off")),
            ready: Ready::Stays,
            nameless: "each caller is told by the end of its own answer",
            words: "callers see it broken off too: nothing is repeated, nothing looks whole",
            ..USUAL
        },
        Row {
            name: "server-not-live",
            fault: "the server answers that it is not live",
            inject: |stage| Box::pin(stage.server.order("not-live on")),
            heal: |stage| Box::pin(stage.server.order("not-live off")),
            findings: &["AS018"],
            answers: true,
            words: "it is down by its own word; calls that it might serve are refused",
            ..USUAL
        },
        Row {
            name: "server-name-unknown",
            fault: "the server's name does not resolve, and never has",
            phases: &[Phase::ColdStart],
            unplayed: "it is about a start; afterwards it is `server-name-gone`",
            wants: own_names,
            inject: |stage| Box::pin(async { names(&stage.place, false) }),
            heal: |stage| Box::pin(async { names(&stage.place, true) }),
            // Without the shim nobody asks for the name.
            direct: false,
            findings: &["AS011"],
            words: "the name is asked for again and again",
            ..USUAL
        },
        Row {
            name: "server-name-gone",
            fault: "the server's name does not resolve any more",
            phases: &[Phase::Idle, Phase::UnderLoad],
            more: &[Phase::Loading, Phase::Draining],
            unplayed: "there it is `server-name-unknown`",
            wants: own_names,
            inject: |stage| Box::pin(async { names(&stage.place, false) }),
            heal: |stage| Box::pin(async { names(&stage.place, true) }),
            lasts: 3 * SECOND,
            ready: Ready::Stays,
            nameless: "nobody is harmed",
            words: "every call is served at the address that the name had",
            ..USUAL
        },
        Row {
            name: "server-wedged",
            fault: "the server's process gets SIGSTOP, and SIGCONT later",
            inject: |stage| Box::pin(stage.server.signal("STOP")),
            heal: |stage| Box::pin(stage.server.signal("CONT")),
            lasts: 3 * SECOND,
            ready: Ready::GoesAfterGrace,
            findings: &["AS004"],
            answers: true,
            words: "calls wait within the grace and fail at once after it; what runs is not cut",
            ..USUAL
        },
        Row {
            name: "server-one-protocol",
            fault: "the server closes its gRPC port and goes on with HTTP",
            inject: |stage| Box::pin(stage.server.order("close grpc")),
            heal: |stage| Box::pin(stage.server.order("open")),
            findings: &["AS012"],
            besides: &["AS001", "AS003"],
            words: "HTTP is served as before",
            ..USUAL
        },
    ]
}

/// The server's process begins anew on an address, with its models on disk alone.
async fn anew(stage: &Stage, ip: IpAddr) {
    stage.server.kill().await;
    stage.server.start(ip, &[LOADED, "second_1"]).await;
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
