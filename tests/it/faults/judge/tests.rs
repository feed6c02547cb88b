//! The judge itself: each invariant, broken once in a record that is good otherwise.

use std::time::Duration;

use tokio::time::Instant;

use super::super::ledger::{Call, Fate, Kind};
use super::super::row::{Phase, Row, USUAL};
use super::super::scheduler::Message;
use super::{Played, all};

const ROW: Row = Row {
    findings: &["AS001"],
    besides: &["AS003"],
    ..USUAL
};

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
    Played {
        calls: (1..6).map(call).collect(),
        received: (1..6).map(|n| (n, 1)).collect(),
        injected: Some(at(0.0)),
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
