use super::*;
use proptest::prelude::*;

const GI: u64 = 1 << 30;
const MI: u64 = 1 << 20;

fn policy() -> Policy {
    Policy {
        explicit: None,
        basis: Basis::Auto,
        reserve: Reserve::Bytes(0),
        node_fraction: Fraction::parse("0.8").unwrap(),
    }
}

fn bytes(bytes: u64) -> Reading {
    Reading {
        found: Found::Bytes(bytes),
        at: Duration::ZERO,
    }
}

fn found(found: Found) -> Reading {
    Reading {
        found,
        at: Duration::ZERO,
    }
}

/// A pod with request 2 Gi and limit 4 Gi on a node with 16 Gi, process namespace shared.
fn pod() -> Sources {
    Sources {
        now: Duration::from_secs(9),
        request: bytes(2 * GI),
        limit: bytes(4 * GI),
        cgroup: bytes(4 * GI),
        node: bytes(16 * GI),
        baseline: bytes(300 * MI),
    }
}

/// The same without anything set for the container.
fn bare() -> Sources {
    Sources {
        request: bytes(0),
        limit: bytes(15 * GI),
        cgroup: found(Found::Unlimited),
        ..pod()
    }
}

fn check(policy: &Policy, sources: &Sources, requested: u64) -> (u64, Why, Option<Source>) {
    let observation = observe(policy, sources);
    let reported = report(requested, policy, &observation);
    (reported.bytes, reported.why, observation.source)
}

#[test]
fn every_row_of_totals() {
    let node = 16 * GI * 8 / 10;
    let nothing = Sources::default();
    let (request, limit, cgroup, by_node) = (
        Some(Source::Request),
        Some(Source::Limit),
        Some(Source::Cgroup),
        Some(Source::Node),
    );
    let no_request = Sources {
        request: found(Found::Unset),
        ..pod()
    };
    let only_cgroup = Sources {
        limit: found(Found::Unset),
        ..no_request
    };
    let denied = Sources {
        cgroup: found(Found::Unavailable("denied")),
        ..no_request
    };
    let denied_bare = Sources {
        cgroup: found(Found::Unavailable("denied")),
        ..bare()
    };
    for (name, sources, requested, expected) in [
        (
            "plausible",
            pod(),
            2 * GI,
            (2 * GI, Why::Plausible, request),
        ),
        (
            "plausible and not the request",
            pod(),
            3 * GI,
            (3 * GI, Why::Plausible, request),
        ),
        ("total 0", pod(), 0, (2 * GI, Why::WasZero, request)),
        (
            "missing variable",
            pod(),
            1_000_000,
            (2 * GI, Why::WasDefault, request),
        ),
        (
            "one byte off the default",
            pod(),
            1_000_001,
            (1_000_001, Why::Plausible, request),
        ),
        (
            "at the limit",
            pod(),
            4 * GI,
            (4 * GI, Why::Plausible, request),
        ),
        (
            "above the limit",
            pod(),
            4 * GI + 1,
            (2 * GI, Why::WasAboveLimit, request),
        ),
        ("no request", no_request, 0, (4 * GI, Why::WasZero, limit)),
        (
            "only the cgroup",
            only_cgroup,
            0,
            (4 * GI, Why::WasZero, cgroup),
        ),
        ("cgroup denied", denied, 0, (4 * GI, Why::WasZero, limit)),
        (
            "nothing set on the container",
            bare(),
            0,
            (node, Why::WasZero, by_node),
        ),
        (
            "nothing set, cgroup denied",
            denied_bare,
            0,
            (node, Why::WasZero, by_node),
        ),
        (
            "nothing set, plausible",
            bare(),
            5 * GI,
            (5 * GI, Why::Plausible, by_node),
        ),
        ("no source, 0", nothing, 0, (0, Why::NothingObserved, None)),
        (
            "no source, default",
            nothing,
            1_000_000,
            (1_000_000, Why::NothingObserved, None),
        ),
        (
            "no source, plausible",
            nothing,
            GI,
            (GI, Why::Plausible, None),
        ),
    ] {
        assert_eq!(check(&policy(), &sources, requested), expected, "{name}");
    }
}

#[test]
fn what_the_operator_sets_takes_effect() {
    let explicit = Policy {
        explicit: Some(3 * GI),
        ..policy()
    };
    let basis = |basis| Policy { basis, ..policy() };
    let reserve = |reserve| Policy {
        reserve,
        ..policy()
    };
    let both = Policy {
        reserve: Reserve::Percent(50),
        ..explicit
    };
    for (name, policy, requested, expected) in [
        ("explicit", explicit, 2 * GI, (3 * GI, Why::Explicit)),
        ("explicit for 0", explicit, 0, (3 * GI, Why::Explicit)),
        ("explicit and reserve", both, 0, (3 * GI / 2, Why::Explicit)),
        ("limit", basis(Basis::Limit), 2 * GI, (4 * GI, Why::Basis)),
        (
            "request",
            basis(Basis::Request),
            3 * GI,
            (2 * GI, Why::Basis),
        ),
        (
            "bytes",
            reserve(Reserve::Bytes(GI)),
            2 * GI,
            (GI, Why::Reserve),
        ),
        (
            "bytes for 0",
            reserve(Reserve::Bytes(GI)),
            0,
            (GI, Why::WasZero),
        ),
        (
            "percent",
            reserve(Reserve::Percent(25)),
            2 * GI,
            (3 * GI / 2, Why::Reserve),
        ),
        (
            "measured",
            reserve(Reserve::Measured),
            2 * GI,
            (2 * GI - 300 * MI, Why::Reserve),
        ),
        (
            "everything",
            reserve(Reserve::Percent(100)),
            2 * GI,
            (2 * GI, Why::Plausible),
        ),
        (
            "too much",
            reserve(Reserve::Bytes(5 * GI)),
            0,
            (2 * GI, Why::WasZero),
        ),
    ] {
        let (bytes, why, _) = check(&policy, &pod(), requested);
        assert_eq!((bytes, why), expected, "{name}");
    }
}

#[test]
fn a_reserve_that_cannot_be_taken_off_says_so() {
    let measured = Policy {
        reserve: Reserve::Measured,
        ..policy()
    };
    let sources = Sources {
        baseline: Reading::default(),
        ..pod()
    };
    assert_eq!(observe(&measured, &sources).reserved, Reserved::NotMeasured);
    let huge = Policy {
        reserve: Reserve::Bytes(u64::MAX),
        ..policy()
    };
    let observation = observe(&huge, &pod());
    assert_eq!(observation.reserved, Reserved::LeavesNothing(u64::MAX));
    assert_eq!(observation.bytes, Some(2 * GI));
}

#[test]
fn a_limit_changed_in_place_is_the_one_that_counts() {
    let limit = Policy {
        basis: Basis::Limit,
        ..policy()
    };
    let raised = Sources {
        cgroup: bytes(6 * GI),
        ..pod()
    };
    assert_eq!(
        check(&limit, &raised, 0),
        (6 * GI, Why::Basis, Some(Source::Cgroup))
    );
    // Lowered below the request: the container is killed above it.
    let lowered = Sources {
        cgroup: bytes(GI),
        ..pod()
    };
    assert_eq!(check(&policy(), &lowered, 0).0, GI);
    assert_eq!(check(&policy(), &lowered, 2 * GI).1, Why::WasAboveLimit);
}

#[test]
fn an_explicit_figure_above_the_limit_stands_and_is_marked() {
    let explicit = Policy {
        explicit: Some(8 * GI),
        ..policy()
    };
    let observation = observe(&explicit, &pod());
    assert!(observation.explicit_above_ceiling);
    assert_eq!(observation.bytes, Some(8 * GI));
}

#[test]
fn every_source_is_shown_with_value_age_and_reason() {
    let seen: Vec<(Source, Option<u64>, bool, &str)> = observe(&policy(), &bare())
        .considered
        .iter()
        .map(|c| (c.source, c.bytes, c.chosen, c.reason))
        .collect();
    assert_eq!(
        seen,
        [
            (Source::Explicit, None, false, "not set"),
            (Source::Request, Some(0), false, "it is 0"),
            (
                Source::Limit,
                Some(15 * GI),
                false,
                "as large as the node: its allocatable memory, which stands for no limit"
            ),
            (Source::Cgroup, None, false, "no limit"),
            (
                Source::Node,
                Some(16 * GI * 8 / 10),
                true,
                "nothing limits the container but the node"
            ),
        ]
    );
    let aged = observe(&policy(), &pod());
    assert_eq!(aged.considered[1].age, Duration::from_secs(9));
    assert_eq!(aged.considered[4].reason, "the request comes first");
}

#[test]
fn fractions_are_parsed_strictly() {
    for (text, of_1000) in [
        ("0.8", Some(800)),
        ("1", Some(1000)),
        ("1.0", Some(1000)),
        (".5", Some(500)),
        ("0.125", Some(125)),
        ("0", None),
        ("1.1", None),
        ("0.1234", None),
        ("-0.5", None),
        ("80%", None),
        ("10", None),
        ("0.5.1", None),
        ("", None),
    ] {
        assert_eq!(Fraction::parse(text).map(|f| f.of(1000)), of_1000, "{text}");
    }
    assert_eq!(Fraction::parse("0.8").unwrap().to_string(), "0.8");
}

#[test]
fn over_commit_is_reckoned_as_the_agent_does() {
    for (total, percent, used, expected) in [
        (1000, 0, 0, 1000),
        (1000, 10, 0, 1100),
        (1001, 10, 0, 1101),
        (1000, 10, 1050, 50),
        (1000, 10, 1200, 0),
        (0, 100, 5, 0),
        (u64::MAX, u32::MAX, 7, u64::MAX),
    ] {
        assert_eq!(available(total, percent, used), expected);
    }
    assert_eq!(overcommit(u64::MAX, 200), u64::MAX);
}

fn any_reading() -> impl Strategy<Value = Reading> {
    let amount = prop_oneof![Just(0), Just(AGENT_DEFAULT), 1..64 * GI, any::<u64>()];
    prop_oneof![
        4 => amount.prop_map(Found::Bytes),
        1 => Just(Found::Unset),
        1 => Just(Found::Unlimited),
        1 => Just(Found::Unavailable("denied")),
    ]
    .prop_map(found)
}

fn any_sources() -> impl Strategy<Value = Sources> {
    [
        any_reading(),
        any_reading(),
        any_reading(),
        any_reading(),
        any_reading(),
    ]
    .prop_map(|[request, limit, cgroup, node, baseline]| Sources {
        now: Duration::from_secs(1),
        request,
        limit,
        cgroup,
        node,
        baseline,
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (
        prop_oneof![3 => Just(None), 1 => (1..u64::MAX).prop_map(Some)],
        prop::sample::select(vec![Basis::Auto, Basis::Request, Basis::Limit]),
        prop_oneof![
            Just(Reserve::Bytes(0)),
            any::<u64>().prop_map(Reserve::Bytes),
            (0u8..=100).prop_map(Reserve::Percent),
            Just(Reserve::Measured)
        ],
    )
        .prop_map(|(explicit, basis, reserve)| Policy {
            explicit,
            basis,
            reserve,
            ..policy()
        })
}

proptest! {
    #[test]
    fn the_report_is_justified_whatever_was_read(
        policy in any_policy(),
        sources in any_sources(),
        requested in prop_oneof![Just(0), Just(AGENT_DEFAULT), 0..64 * GI, any::<u64>()],
    ) {
        let seen = observe(&policy, &sources);
        let out = report(requested, &policy, &seen);
        // Never a 0 that was not requested, and never one that could have been mended.
        prop_assert!(out.bytes > 0 || (requested == 0 && seen.bytes.is_none()));
        // Never an invented number: it is the agent's, or comes from a source.
        prop_assert_eq!(seen.bytes.is_none(), seen.source.is_none());
        match out.why {
            Why::Plausible | Why::NothingObserved => prop_assert_eq!(out.bytes, requested),
            Why::Reserve => prop_assert!(out.bytes < requested),
            Why::WasAboveLimit => prop_assert!(out.bytes < requested),
            Why::Explicit | Why::Basis | Why::WasZero | Why::WasDefault => {
                prop_assert_eq!(Some(out.bytes), seen.bytes);
            }
        }
        // Never above what the container is killed at, unless the operator said so.
        if policy.explicit.is_none() && out.why != Why::NothingObserved {
            prop_assert!(seen.ceiling.is_none_or(|c| out.bytes <= c));
        }
        prop_assert_eq!(seen.considered.len(), Source::ALL.len());
        prop_assert!(seen.considered.iter().filter(|c| c.chosen).count() <= 1);
        // What was reported is plausible to the shim itself: a second shim would not touch it.
        if policy.explicit.is_none() && out.why == Why::Plausible {
            prop_assert_eq!(report(out.bytes, &policy, &seen).bytes, out.bytes);
        }
    }

    #[test]
    fn available_never_wraps(total: u64, percent: u32, used: u64) {
        let free = available(total, percent, used);
        prop_assert!(free <= available(total, percent, 0));
        if used >= total && percent == 0 {
            prop_assert_eq!(free, 0);
        }
        prop_assert!(available(total, percent, used.saturating_add(1)) <= free);
    }
}
