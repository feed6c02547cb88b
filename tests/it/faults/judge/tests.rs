//! The judge itself: each invariant, broken once in a record that is good otherwise.

use std::time::Duration;

use tokio::time::Instant;

use super::super::ledger::{Call, Fate, Kind};
use super::super::loads;
use super::super::look::{Look, Ready as Answer, Says};
use super::super::row::{Phase, Ready, Row, USUAL};
use super::super::scheduler::Message;
use super::{Played, all};

const ROW: Row = Row {
    findings: &["AS001"],
    besides: &["AS003"],
    ..USUAL
};

fn fine() -> Answer {
    Answer {
        code: 200,
        text: "ok\n".into(),
    }
}

fn gone() -> Answer {
    Answer {
        code: 503,
        text: "inference-http: refused\n".into(),
    }
}

/// One call a second from -1 s to 4 s around a fault from 0 s to 2 s, all served.
fn good() -> Played {
    let zero = Instant::now() + Duration::from_secs(100);
    let at = |seconds: f64| zero + Duration::from_secs_f64(seconds + 1.0);
    let call = |n: u64| Call {
        id: n,
        kind: Kind::HttpUnary,
        begun: at(n as f64 - 2.0),
        end: Some((at(n as f64 - 1.9), Fate::Served)),
    };
    // Every 100 ms, from the fault to its end; what the server is like is known after 300 ms.
    let look = |n: u64| Look {
        at: at(n as f64 / 10.0),
        ready: Some(if n < 3 { fine() } else { gone() }),
        found: Some(["AS001".to_string()].into()),
    };
    Played {
        calls: (1..6).map(call).collect(),
        received: (1..6).map(|n| (n, 1)).collect(),
        injected: Some(at(0.0)),
        struck: Some(at(0.0)),
        told_fault: Some(Duration::from_millis(300)),
        looks: (0..20).map(look).collect(),
        settled: Some(at(0.5)),
        healed: Some(at(2.0)),
        calm: Some(at(2.5)),
        stopped: Some(at(3.5)),
        found: ["AS001".to_string()].into(),
        messages: vec![Message::Event("loaded".into())],
        ..Played::default()
    }
}

fn complaints(with: &Played, without: Option<&Played>) -> Vec<String> {
    all(&ROW, None, Phase::UnderLoad, with, without)
}

fn broken(change: impl FnOnce(&mut Played), complaint: &str) {
    let mut with = good();
    change(&mut with);
    let said = complaints(&with, Some(&good()));
    assert!(
        said.iter().any(|c| c.contains(complaint)),
        "{complaint}: {said:?}"
    );
}

#[test]
fn a_good_record_gets_no_complaint() {
    assert_eq!(complaints(&good(), Some(&good())), Vec::<String>::new());
}

#[test]
fn each_broken_invariant_gets_its_complaint() {
    let lost = || Fate::ByShim("503".into());
    let fate = |played: &mut Played, n: usize, fate: Fate| {
        played.calls[n].end.as_mut().unwrap().1 = fate;
    };
    broken(
        |p| p.received.extend([(3, 2)]),
        "reached the server 2 times",
    );
    broken(
        |p| p.received.retain(|id, _| *id != 3),
        "never reached the server",
    );
    broken(|p| fate(p, 2, Fate::NotSent), "was told to send it again");
    broken(|p| p.unasked = vec!["two".into()], "had not asked for");
    broken(
        |p| p.loads.doubled.extend(["iris_1".into()]),
        "two loads of iris_1",
    );
    broken(|p| p.looks[9].ready = Some(fine()), "readiness is to be");
    broken(|p| p.looks[19].ready = None, "readiness is to be");
    broken(|p| p.looks.clear(), "readiness is to be");
    broken(
        |p| {
            let last = p.looks.len() - 1;
            p.looks[last].at += Duration::from_secs(60);
            for look in &mut p.looks {
                look.found.as_mut().unwrap().insert("AS018".into());
            }
        },
        "and not so: AS018",
    );
    broken(|p| fate(p, 0, lost()), "although nothing was wrong");
    broken(|p| fate(p, 4, lost()), "although nothing was wrong");
    broken(|p| fate(p, 2, lost()), "none without the shim");
    broken(|p| p.calls[2].end = None, "hung");
    broken(
        |p| p.calls[2].end.as_mut().unwrap().0 += Duration::from_secs(60),
        "hung",
    );
    broken(|p| p.belief = Some("wrong".into()), "belief is wrong");
    broken(|p| p.lost_models = vec!["iris".into()], "does not have");
    broken(|p| p.subscribes = 1, "1 Subscribes, at most 0");
    broken(|p| p.log = "thread panicked at".into(), "panic");
    broken(|p| p.found.extend(["AS018".into()]), "AS018");
    broken(|p| p.complain("as said"), "as said");
    broken(
        |p| {
            for n in 3..5 {
                fate(p, n, lost());
            }
        },
        "served again after None",
    );
}

/// What is true of the fault besides, and what nobody would have got without the shim, is no fault.
#[test]
fn what_the_fault_brings_with_it_is_no_complaint() {
    let mut with = good();
    with.found.insert("AS003".into());
    with.calls[2].end.as_mut().unwrap().1 = Fate::ByShim("503".into());
    let without = with.clone();
    assert_eq!(complaints(&with, Some(&without)), Vec::<String>::new());
}

/// What the server did not see may be sent again, and who is away for a moment is not found wrongly.
#[test]
fn what_was_not_sent_and_what_stood_for_a_moment_are_no_complaint() {
    let mut with = good();
    with.calls[2].end.as_mut().unwrap().1 = Fate::NotSent;
    with.received.remove(&3);
    with.looks[7].found.as_mut().unwrap().insert("AS018".into());
    assert_eq!(complaints(&with, None), Vec::<String>::new());
}

/// A row of which the server stays as it is.
#[test]
fn readiness_that_is_to_stay_never_goes_and_no_load_is_cut() {
    let row = Row {
        ready: Ready::Stays,
        ..ROW
    };
    let mut with = good();
    let said = all(&row, None, Phase::Draining, &with, None);
    assert!(said[0].contains("readiness is to be Fine"), "{said:?}");
    // A drain alone says nothing of the server.
    let drain = Answer {
        code: 503,
        text: "not-draining: /drain was called\n".into(),
    };
    for look in &mut with.looks {
        look.ready = Some(drain.clone());
    }
    let said = all(&row, None, Phase::Draining, &with, None);
    assert_eq!(said, Vec::<String>::new());
    with.loads.cut.push("second_1".into());
    let said = all(&row, None, Phase::Draining, &with, None);
    assert!(said[0].contains("second_1 was cut off"), "{said:?}");
}

#[test]
fn what_readiness_says_of_the_server_is_told_from_the_rest() {
    let says = |code, text: &str| {
        let text = text.into();
        Answer { code, text }.says()
    };
    assert_eq!(says(200, "ok\n"), Some(Says::Fine));
    assert_eq!(says(503, "not-draining: so\n"), Some(Says::Fine));
    assert_eq!(
        says(503, "not-draining: a\ninference-grpc: b\n"),
        Some(Says::Gone)
    );
    assert_eq!(
        says(503, "probed: a\ninference-grpc: b\n"),
        Some(Says::NotYet)
    );
    assert_eq!(says(200, "inference-http: a\n"), None);
    assert_eq!(says(503, ""), None);
}

#[test]
fn two_faults_at_once_are_told_as_the_worse_of_them() {
    use Ready::{Goes, GoesAfterGrace, Recovers, Stays, Unasked};
    assert_eq!(Stays.and(Goes), Goes);
    assert_eq!(Goes.and(GoesAfterGrace), GoesAfterGrace);
    assert_eq!(Unasked.and(Goes), Unasked);
    assert_eq!(Recovers.and(Stays), Recovers);
    assert_eq!(Stays.and(Stays), Stays);
}

#[test]
fn loads_at_once_and_loads_cut_off_are_read_from_the_record() {
    let record = "17\nloads \nloads iris_1\nload ended iris_1\nloads second_1 iris_1\nload cut iris_1\nloads second_1\n";
    let seen = loads::read(record);
    assert_eq!(seen.cut, ["iris_1"]);
    assert!(seen.doubled.is_empty());
    let twice = loads::read("loads iris_1 second_1 iris_1\n");
    assert_eq!(twice.doubled, ["iris_1".to_string()].into());
}
