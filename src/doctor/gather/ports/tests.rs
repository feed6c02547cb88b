use super::*;

fn facts(purpose: Purpose) -> PortFacts {
    PortFacts {
        purpose,
        target: "seldon-scheduler:9005".into(),
        secured: purpose.secured(),
        name: NameFacts::resolved(vec![[10, 0, 0, 1].into()]),
        tried: vec![Tried {
            address: ([10, 0, 0, 1], 9005).into(),
            connect: Connect::Connected,
            took_ms: 1,
        }],
        speaks: Some(Speaks::Http2),
        tls: None,
        serves: Some(Serves::Agent),
        cut_short: false,
        took_ms: 2,
    }
}

#[test]
fn the_first_thing_that_is_wrong_is_told() {
    let good = facts(Purpose::Agent);
    assert_eq!(good.verdict(), Verdict::Fine);
    let mut worse = facts(Purpose::AgentTls);
    worse.serves = Some(Serves::Api);
    worse.speaks = Some(Speaks::Tls);
    assert_eq!(worse.verdict(), Verdict::OtherService(Serves::Api));
    worse.tls = Some(TlsVerdict::Expired);
    assert_eq!(worse.verdict(), Verdict::Tls(TlsVerdict::Expired));
    worse.speaks = Some(Speaks::Http2);
    assert_eq!(worse.verdict(), Verdict::PlainWhereTls);
    worse.tried[0].connect = Connect::TimedOut;
    assert_eq!(worse.verdict(), Verdict::NotConnected(Connect::TimedOut));
    worse.name = NameFacts::unanswered("silence");
    assert_eq!(worse.verdict(), Verdict::NoNameServer("silence".into()));
}

#[test]
fn the_resolvers_words_are_told_apart() {
    let prefix = "failed to lookup address information: ";
    for (words, found) in [
        ("Name or service not known", Found::Unknown),
        ("No address associated with hostname", Found::Unknown),
        ("Name does not resolve", Found::Unknown),
        ("Temporary failure in name resolution", Found::NoAnswer),
        ("Try again", Found::NoAnswer),
        ("Non-recoverable failure in name resolution", Found::Failed),
    ] {
        assert_eq!(
            NameFacts::from_words(&format!("{prefix}{words}")).found,
            found,
            "{words}"
        );
    }
    let late = NameFacts::from_words("no answer about seldon-scheduler within 1.5s");
    assert_eq!(late.found, Found::NoAnswer);
}

#[test]
fn every_way_to_be_turned_away_has_a_name() {
    use std::io::{Error, ErrorKind};
    for (kind, expected) in [
        (ErrorKind::ConnectionRefused, Connect::Refused),
        (ErrorKind::TimedOut, Connect::TimedOut),
        (ErrorKind::ConnectionReset, Connect::Reset),
    ] {
        assert_eq!(Connect::from_error(&kind.into()), expected);
    }
    // EPERM, EACCES, ENETUNREACH and EHOSTUNREACH on Linux.
    for number in [1, 13, 101, 113] {
        let connect = Connect::from_error(&Error::from_raw_os_error(number));
        assert!(matches!(connect, Connect::Unreachable(_)), "{number}");
    }
}

#[test]
fn the_rules_get_one_outcome_and_one_sentence() {
    use crate::doctor::evidence::{PortOutcome, PortUse};
    let mut dropped = facts(Purpose::AgentTls);
    dropped.target = "[fd00::1]:9055".into();
    dropped.tried[0].connect = Connect::TimedOut;
    let fact = dropped.fact(true);
    assert_eq!(fact.purpose, PortUse::AgentService);
    assert_eq!((fact.host.as_str(), fact.port), ("fd00::1", 9055));
    assert!(fact.tls && fact.configured);
    assert_eq!(fact.outcome, PortOutcome::TimedOut);
    assert!(fact.detail.contains("dropped"), "{}", fact.detail);
    let mut other = facts(Purpose::Agent);
    other.serves = Some(Serves::Api);
    let fact = other.fact(false);
    assert_eq!(fact.outcome, PortOutcome::WrongProtocol);
    assert_eq!(fact.detail, "the scheduler's API answers there");
}
