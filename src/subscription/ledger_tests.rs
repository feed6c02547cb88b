use proptest::prelude::*;

use super::*;

const GI: u64 = 1 << 30;

fn key(name: &str) -> Key {
    Key {
        name: name.into(),
        version: 1,
    }
}

fn totals(requested: u64, reported: u64, over_commit: u32) -> Totals {
    Totals {
        requested,
        reported,
        over_commit,
    }
}

fn listed(name: &str, memory: u64) -> Listed {
    Listed {
        key: key(name),
        memory: Some(memory),
        workers: None,
        original: None,
    }
}

/// Loads and confirms one model; what the agent was given.
fn loaded(ledger: &mut Ledger, name: &str, memory: u64) -> Load {
    let load = ledger.load(&key(name), Some(memory));
    ledger.event(EventKind::Loaded, &key(name), None);
    load
}

#[test]
fn free_memory_in_each_row_of_the_complaint() {
    for (what, requested, reported, over_commit, models, expected) in [
        (
            "no request and no limit",
            0,
            8 * GI,
            0,
            &[][..],
            Some(8 * GI),
        ),
        (
            "an agent that cannot evict",
            0,
            8 * GI,
            10,
            &[],
            Some(8 * GI),
        ),
        (
            "a missing variable",
            1_000_000,
            8 * GI,
            10,
            &[],
            Some(8 * GI * 110 / 100),
        ),
        (
            "models count in full",
            1_000_000,
            8 * GI,
            0,
            &[GI, 2 * GI],
            Some(5 * GI),
        ),
        ("above the limit", 64 * GI, 8 * GI, 50, &[GI], Some(11 * GI)),
        (
            "over-committed to the end",
            64 * GI,
            GI,
            50,
            &[GI, GI],
            Some(0),
        ),
        ("plausible: the agent is right", GI, GI, 10, &[GI], None),
        ("nothing is known", GI, 0, 10, &[GI], None),
    ] {
        let mut ledger = Ledger::default();
        ledger.subscribe(totals(requested, reported, over_commit), None, &[]);
        for (i, memory) in models.iter().enumerate() {
            loaded(&mut ledger, &format!("m{i}"), *memory);
        }
        let corrected = ledger.event(EventKind::UnloadFailed, &key("other"), None);
        assert_eq!(corrected.available, expected, "{what}");
    }
}

#[test]
fn a_load_is_put_into_the_agents_measure() {
    for (what, requested, reported, memory, expected) in [
        ("a total of 0 accepts only 0", 0, 8 * GI, GI, Load::Send(0)),
        (
            "smaller",
            1_000_000,
            8_000_000,
            4_000_000,
            Load::Send(500_000),
        ),
        (
            "larger, so that it evicts in time",
            64 * GI,
            8 * GI,
            GI,
            Load::Send(8 * GI),
        ),
        ("equal", 8 * GI, 8 * GI, GI, Load::Pass),
        ("unknown", 8 * GI, 0, 9 * GI, Load::Pass),
    ] {
        let mut ledger = Ledger::default();
        ledger.subscribe(totals(requested, reported, 0), None, &[]);
        assert_eq!(ledger.load(&key("m"), Some(memory)), expected, "{what}");
    }
}

#[test]
fn what_cannot_fit_at_all_is_refused_with_a_sentence_even_within_over_commit() {
    let mut ledger = Ledger::default();
    ledger.subscribe(totals(4 * GI, 4 * GI, 100), None, &[]);
    let Load::Refuse(why) = ledger.load(&key("big"), Some(5 * GI)) else {
        panic!("not refused");
    };
    assert_eq!(
        why,
        "agent-shim: model big version 1 asks for 5.0Gi and this replica has 4.0Gi for models in all: it cannot fit, whatever is unloaded; lower the model's memory or give the server more"
    );
    assert!(ledger.is_idle());
    ledger.subscribe(totals(4 * GI, 4 * GI, 100), Some(4), &[]);
    let Load::Refuse(why) = ledger.load(&key("wide"), Some(2 * GI)) else {
        panic!("workers are not counted");
    };
    assert!(why.contains("2.0Gi for each of 4 workers"), "{why}");
}

#[test]
fn the_original_comes_back_from_the_mark_without_any_memory_of_this_process() {
    let marked = Listed {
        original: Some(Some(GI)),
        ..listed("m", 0)
    };
    let absent = Listed {
        original: Some(None),
        ..listed("n", 0)
    };
    let mut fresh = Ledger::default();
    let (available, restored) = fresh.subscribe(
        totals(0, 8 * GI, 0),
        None,
        &[marked, absent, listed("own", GI)],
    );
    assert_eq!(available, Some(6 * GI));
    let memory: Vec<_> = restored.iter().map(|r| r.memory).collect();
    assert_eq!(memory, [Some(Some(GI)), Some(None), None]);
    // Unloading it gives its memory back.
    let corrected = fresh.event(EventKind::Unloaded, &key("m"), None);
    assert_eq!(corrected.available, Some(7 * GI));
}

#[test]
fn a_mark_that_got_lost_is_remembered_by_the_process_that_made_it() {
    let mut ledger = Ledger::default();
    ledger.subscribe(totals(0, 8 * GI, 0), None, &[]);
    assert_eq!(loaded(&mut ledger, "m", GI), Load::Send(0));
    let (available, restored) = ledger.subscribe(totals(0, 8 * GI, 0), None, &[listed("m", 0)]);
    assert_eq!(restored[0].memory, Some(Some(GI)));
    assert_eq!(available, Some(7 * GI));
}

#[test]
fn what_is_being_loaded_is_not_counted_twice() {
    let mut ledger = Ledger::default();
    ledger.subscribe(totals(0, 8 * GI, 0), None, &[]);
    ledger.load(&key("a"), Some(GI));
    ledger.load(&key("b"), Some(GI));
    assert!(!ledger.is_idle());
    // The scheduler still holds the reservation for b.
    let first = ledger.event(EventKind::Loaded, &key("a"), None);
    assert_eq!(first.available, Some(7 * GI));
    let second = ledger.event(EventKind::LoadFailed, &key("b"), None);
    assert_eq!(second.available, Some(7 * GI));
    assert!(ledger.is_idle());
}

#[test]
fn workers_count_where_they_are_known_and_reach_both_sides() {
    let mut ledger = Ledger::default();
    ledger.subscribe(totals(8 * GI, 8 * GI, 0), Some(4), &[]);
    ledger.load(&key("first"), Some(GI / 4));
    // The agent multiplies by 1, whatever the server runs.
    let corrected = ledger.event(EventKind::Loaded, &key("first"), Some(1));
    assert_eq!(corrected.workers, Some(4));
    assert_eq!(corrected.available, Some(7 * GI));
    assert_eq!(ledger.load(&key("second"), Some(GI / 4)), Load::Send(GI));
    // And an agent that was told 0 workers books nothing: the model still runs once.
    let mut zero = Ledger::default();
    zero.subscribe(totals(8 * GI, 8 * GI, 0), None, &[]);
    zero.load(&key("m"), Some(GI));
    let corrected = zero.event(EventKind::Loaded, &key("m"), Some(0));
    assert_eq!(
        (corrected.available, corrected.workers),
        (Some(7 * GI), Some(1))
    );
}

#[test]
fn a_model_nobody_told_us_about_is_counted_and_not_guessed() {
    let mut ledger = Ledger::default();
    ledger.subscribe(totals(0, GI, 0), None, &[]);
    ledger.event(EventKind::Loaded, &key("ghost"), None);
    assert_eq!(ledger.balance().unknown, 1);
    assert_eq!(ledger.available(), Some(GI));
}

/// The agent's arithmetic: refuses what goes below zero.
struct Agent {
    total: u64,
    booked: BTreeMap<String, u64>,
    lists: BTreeMap<String, Listed>,
}

impl Agent {
    fn accepts(&mut self, name: &str, memory: u64, load: &Load) -> bool {
        let sent = match load {
            Load::Pass => memory,
            Load::Send(sent) => *sent,
            Load::Refuse(_) => return false,
        };
        let free = self.total - self.booked.values().sum::<u64>();
        if sent <= free {
            self.booked.insert(name.into(), sent);
            let original = matches!(load, Load::Send(_)).then_some(Some(memory));
            let model = Listed {
                original,
                ..listed(name, sent)
            };
            self.lists.insert(name.into(), model);
        }
        sent <= free
    }
}

proptest! {
    /// Whatever the two totals, the order, the restarts and the changes of capacity: what truly
    /// fits is accepted by the agent, and the scheduler sees exactly what is left.
    #[test]
    fn both_directions_agree(
        requested in prop_oneof![Just(0u64), Just(1_000_000), 0..100 * GI],
        reported in 1..100 * GI,
        steps in prop::collection::vec((0u8..10, 0usize..6, 0..60 * GI), 1..40),
    ) {
        let mut reported = reported;
        let mut ledger = Ledger::default();
        let mut agent = Agent { total: requested, booked: BTreeMap::new(), lists: BTreeMap::new() };
        let mut truth: BTreeMap<String, u64> = BTreeMap::new();
        ledger.subscribe(totals(requested, reported, 0), None, &[]);
        for (what, model, memory) in steps {
            let name = format!("m{model}");
            let used: u64 = truth.values().sum();
            match what {
                0..=5 if !truth.contains_key(&name) && memory <= reported.saturating_sub(used) => {
                    let load = ledger.load(&key(&name), Some(memory));
                    prop_assert!(agent.accepts(&name, memory, &load), "{load:?}");
                    truth.insert(name.clone(), memory);
                    ledger.event(EventKind::Loaded, &key(&name), None);
                }
                6..=7 => {
                    ledger.event(EventKind::Unloaded, &key(&name), None);
                    truth.remove(&name);
                    agent.booked.remove(&name);
                    agent.lists.remove(&name);
                }
                8..=9 => {
                    // The shim is restarted, and perhaps finds another capacity.
                    reported = if what == 8 { reported } else { memory.max(1) };
                    ledger = Ledger::default();
                    let lists: Vec<Listed> = agent.lists.values().cloned().collect();
                    let (_, restored) = ledger.subscribe(totals(requested, reported, 0), None, &lists);
                    for (model, restored) in lists.iter().zip(restored) {
                        let memory = restored.memory.unwrap_or(model.memory);
                        prop_assert_eq!(memory, truth.get(&model.key.name).copied());
                    }
                }
                _ => {}
            }
            let used: u64 = truth.values().sum();
            prop_assert_eq!(ledger.available(), Some(reported.saturating_sub(used)));
        }
    }
}

/// A scheduler that asks for ever other models, or by endless names.
#[test]
fn what_a_broken_scheduler_makes_the_account_hold_is_bounded_and_loads_go_on() {
    let mut ledger = Ledger::default();
    ledger.subscribe(totals(8 * GI, 8 * GI, 0), None, &[]);
    let before = ledger.load(&key("known"), Some(GI));
    for n in 0..MOST + 500 {
        let load = ledger.load(&key(&format!("model-{n}")), None);
        assert_eq!(load, Load::Pass);
    }
    let endless = Key {
        name: "x".repeat(LONGEST_NAME + 1),
        version: 1,
    };
    assert_eq!(ledger.load(&endless, Some(GI)), before);
    let held = |ledger: &Ledger| {
        let balance = ledger.balance();
        balance.loading + balance.loaded
    };
    assert_eq!(held(&ledger), MOST);
    // What was known before counts as before.
    ledger.event(EventKind::Loaded, &key("known"), None);
    assert_eq!(ledger.available(), Some(7 * GI));
    for n in 0..MOST + 500 {
        ledger.event(EventKind::Loaded, &key(&format!("other-{n}")), None);
    }
    assert_eq!(held(&ledger), MOST);
    // There is room again when something ends.
    ledger.event(EventKind::Unloaded, &key("model-1"), None);
    ledger.load(&key("late"), Some(GI));
    assert_eq!(held(&ledger), MOST);
    ledger.event(EventKind::Loaded, &key("late"), None);
    assert_eq!(ledger.available(), Some(6 * GI));
}

#[test]
fn an_agent_that_never_says_its_workers_is_corrected_before_a_server_with_four() {
    let mut ledger = Ledger::default();
    ledger.subscribe(totals(8 * GI, 8 * GI, 0), Some(4), &[]);
    assert_eq!(ledger.load(&key("m"), Some(GI)), Load::Pass);
    ledger.said(7 * GI);
    // The agent counts it once; the server holds it four times.
    let corrected = ledger.event(EventKind::Loaded, &key("m"), None);
    assert_eq!(corrected.available, Some(4 * GI));
    // And what fits by its own account is not accepted where it does not: 5 Gi and four times 1 Gi.
    assert_eq!(ledger.load(&key("next"), Some(GI)), Load::Send(4 * GI));
    assert!(matches!(
        ledger.load(&key("large"), Some(3 * GI)),
        Load::Refuse(_)
    ));
}

#[test]
fn a_load_of_before_that_failed_says_nothing_of_a_later_one_that_nobody_could_read() {
    for ended in [EventKind::LoadFailed, EventKind::Unloaded] {
        let mut ledger = Ledger::default();
        ledger.subscribe(totals(8 * GI, 8 * GI, 0), None, &[]);
        ledger.load(&key("m"), Some(GI));
        ledger.subscribe(totals(8 * GI, 8 * GI, 0), None, &[]);
        ledger.event(ended, &key("m"), None);
        ledger.event(EventKind::Loaded, &key("m"), None);
        let balance = ledger.balance();
        assert_eq!((balance.needed, balance.unknown), (0, 1), "{ended:?}");
    }
}

#[test]
fn after_a_subscribe_that_cannot_be_read_the_agent_speaks_for_itself() {
    let mut ledger = Ledger::default();
    ledger.subscribe(totals(0, 8 * GI, 0), Some(4), &[listed("old", 0)]);
    assert_eq!(ledger.load(&key("m"), Some(GI)), Load::Send(0));
    ledger.unread();
    assert_eq!(ledger.available(), None);
    ledger.said(7);
    assert_eq!(ledger.load(&key("n"), Some(GI)), Load::Pass);
    let corrected = ledger.event(EventKind::Loaded, &key("n"), Some(1));
    assert_eq!((corrected.available, corrected.workers), (Some(7), None));
    // What was under way is still known when it ends.
    ledger.event(EventKind::Loaded, &key("m"), None);
    assert_eq!(
        (ledger.balance().unknown, ledger.balance().needed),
        (0, 2 * GI)
    );
}

#[test]
fn an_agent_that_has_not_said_what_it_multiplies_by_is_not_believed_to_have_counted_right() {
    // The shim was restarted; the model was loaded before anybody knew of four workers.
    let mut fresh = Ledger::default();
    let (available, _) = fresh.subscribe(totals(8 * GI, 8 * GI, 0), Some(4), &[listed("m", GI)]);
    assert_eq!(available, Some(4 * GI));
}
