//! The rule as a table, and its promise as a property.

use proptest::prelude::*;

use super::*;

#[test]
fn only_an_agent_that_was_ready_is_missed_and_only_until_somebody_listens() {
    let s = Duration::from_secs;
    let gone = Look::Gone("refused".into());
    let mut absence = Absence::default();
    assert_eq!(absence.look(&gone, s(1)), None, "it may have no such port");
    assert_eq!(absence.look(&Look::NotReady(404), s(2)), None);
    assert_eq!(absence.look(&gone, s(3)), None);
    assert_eq!(absence.look(&Look::Ready, s(4)), None);
    assert_eq!(absence.look(&gone, s(6)), Some(s(6)));
    assert_eq!(absence.look(&gone, s(8)), Some(s(6)));
    assert_eq!(absence.look(&Look::NotReady(503), s(10)), None);
    assert_eq!(absence.look(&gone, s(12)), Some(s(12)));
}

const LIMITS: Limits = Limits {
    stuck_after: Duration::from_secs(180),
    gap: Duration::from_secs(15),
};
const FINE: Facts = Facts {
    usable: true,
    scheduler: true,
    life: 0,
};
const REFUSED: fn() -> Look = || Look::Gone("refused".into());
const SILENT: fn() -> Look = || Look::Silent("no answer".into());

/// Looks every 2 s: each entry for so many seconds. The state at the end of each.
fn played(script: &[(Look, Facts, u64)]) -> Vec<State> {
    let mut dog = Watchdog::new(LIMITS);
    let mut now = 0;
    let mut states = Vec::new();
    for (look, facts, seconds) in script {
        let mut state = State::Unknown;
        let end = now + seconds;
        while now < end {
            state = dog.observe(look, *facts, Duration::from_secs(now)).state;
            now += 2;
        }
        states.push(state);
    }
    states
}

#[test]
fn an_agent_that_was_ready_and_stays_unready_for_no_reason_is_stuck() {
    for look in [Look::NotReady(404), Look::NotReady(503)] {
        let script = [
            (Look::Ready, FINE, 10),
            (look.clone(), FINE, 182),
            (look, FINE, 2),
        ];
        assert_eq!(
            played(&script),
            [State::Ready, State::NotReady, State::Stuck]
        );
    }
    let script = [(Look::Ready, FINE, 2), (SILENT(), FINE, 200)];
    assert_eq!(played(&script)[1], State::Stuck);
}

#[test]
fn whatever_explains_it_clears_it() {
    let unready = Look::NotReady(503);
    let explained = [
        Facts {
            usable: false,
            ..FINE
        },
        Facts {
            scheduler: false,
            ..FINE
        },
    ];
    for facts in explained {
        let script = [
            (Look::Ready, FINE, 2),
            (unready.clone(), facts, 100_000),
            (unready.clone(), FINE, 180),
            // One moment is enough, also of an agent that counts as stuck.
            (unready.clone(), FINE, 10),
            (unready.clone(), facts, 2),
            (unready.clone(), FINE, 180),
        ];
        let states = played(&script);
        assert_eq!(
            &states[1..],
            [
                State::NotReady,
                State::NotReady,
                State::Stuck,
                State::NotReady,
                State::NotReady
            ]
        );
    }
}

#[test]
fn a_sign_of_life_begins_the_count_again() {
    let alive = |life| (Look::NotReady(503), Facts { life, ..FINE }, 120);
    let script: Vec<_> = std::iter::once((Look::Ready, FINE, 2))
        .chain((0..50).map(alive))
        .collect();
    assert!(!played(&script).contains(&State::Stuck));
}

#[test]
fn a_process_that_has_gone_is_not_stuck_and_its_successor_gets_the_time_to_start() {
    let script = [
        (Look::Ready, FINE, 2),
        (Look::NotReady(503), FINE, 170),
        (REFUSED(), FINE, 100_000),
        (Look::NotReady(503), FINE, START_LIMIT.as_secs()),
        (Look::NotReady(503), FINE, 10),
    ];
    assert_eq!(
        &played(&script)[2..],
        [State::Unknown, State::NotReady, State::Stuck]
    );
}

#[test]
fn what_was_never_ready_is_held_against_nobody_unless_it_says_so_as_an_agent_does() {
    let forever = 10 * START_LIMIT.as_secs();
    for look in [
        Look::NotReady(404),
        SILENT(),
        REFUSED(),
        Look::Strange("?".into()),
    ] {
        assert!(!played(&[(look.clone(), FINE, forever)]).contains(&State::Stuck));
        // Nor what comes after something that is no agent.
        let script = [
            (Look::Ready, FINE, 2),
            (Look::Strange("?".into()), FINE, 2),
            (look, FINE, forever),
        ];
        assert!(!played(&script).contains(&State::Stuck));
    }
}

#[test]
fn a_shim_that_was_frozen_holds_nothing_of_that_time_against_the_agent() {
    let mut dog = Watchdog::new(LIMITS);
    dog.observe(&Look::Ready, FINE, Duration::ZERO);
    for at in [2, 4, 100_000, 100_002, 100_180] {
        let verdict = dog.observe(&Look::NotReady(503), FINE, Duration::from_secs(at));
        assert_eq!(verdict.state, State::NotReady, "at {at} s");
    }
}

fn any_look() -> impl Strategy<Value = Look> {
    prop_oneof![
        1 => Just(Look::Ready),
        6 => Just(Look::NotReady(503)),
        4 => Just(Look::NotReady(404)),
        4 => Just(SILENT()),
        1 => Just(REFUSED()),
        1 => Just(Look::Strange("?".into())),
    ]
}

proptest! {
    /// Whatever happened before: within the bound after any change nobody is called stuck.
    #[test]
    fn nothing_is_stuck_within_the_bound_after_any_change(
        steps in prop::collection::vec(
            (any_look(), prop::bool::weighted(0.95), prop::bool::weighted(0.95),
             prop::bool::weighted(0.05), 1u64..20, 1u64..200),
            1..30,
        )
    ) {
        let mut dog = Watchdog::new(LIMITS);
        let (mut now, mut life) = (0u64, 0u64);
        let mut before: Option<(Facts, bool)> = None;
        let mut changed = 0;
        for (look, usable, scheduler, alive, pause, times) in steps {
            life += u64::from(alive);
            let facts = Facts { usable, scheduler, life };
            let bad = matches!(look, Look::NotReady(_) | Look::Silent(_));
            for _ in 0..times {
                now += pause;
                if before.replace((facts, bad)) != Some((facts, bad)) || pause > LIMITS.gap.as_secs() {
                    changed = now;
                }
                let verdict = dog.observe(&look, facts, Duration::from_secs(now));
                if verdict.state == State::Stuck {
                    prop_assert!(bad && usable && scheduler);
                    prop_assert!(now - changed > LIMITS.stuck_after.as_secs());
                }
            }
        }
    }

    /// It is not a rule that never fires: unready without a reason, it does, one look later.
    #[test]
    fn without_a_reason_it_fires_soon_after_the_bound(pause in 1u64..15) {
        let mut dog = Watchdog::new(LIMITS);
        dog.observe(&Look::Ready, FINE, Duration::ZERO);
        let first = (1..10_000).find(|n| {
            let at = Duration::from_secs(n * pause);
            dog.observe(&Look::NotReady(503), FINE, at).state == State::Stuck
        });
        let took = first.unwrap() * pause - pause;
        prop_assert!((181..=180 + pause).contains(&took), "{took}");
    }
}
