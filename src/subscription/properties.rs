//! Subscription and ledger against an oracle: an agent, a scheduler and the shim between them,
//! over long random histories of loads, unloads, reconnects, restarts of each of the three, of Subscribes that
//! cannot be read, of what is observed of the server, and of readings of what the scheduler believes.
//!
//! The agent and the scheduler are a few lines of the contract each ([`sides`], [`traffic`]), and real messages
//! pass between them. The oracle is a log of what happened, from which everything is worked out anew
//! after each step ([`oracle`]): what is in memory, what the scheduler has to believe, and whether the
//! shim may end a subscription.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use tokio::time::sleep;

use self::sides::Agent;
use self::world::{World, ending};
use super::pace;
use crate::config::Mode;

mod interleavings;
mod oracle;
mod reading;
mod sides;
mod traffic;
mod world;

const MIB: u64 = 1 << 20;
const MIN_INTERVAL: Duration = Duration::from_secs(300);
const SETTLE: Duration = pace::SETTLE;

#[derive(Debug, Clone)]
enum Step {
    Load(usize, Option<u64>),
    Finish(usize, bool),
    Unload(usize),
    Deliver(usize),
    Observe(u8, u64),
    Ready(bool),
    Pass(u64),
    Reconnect,
    /// Words that the shim cannot read.
    Unread(u8),
    /// The scheduler takes something else for free, until it is told again.
    Forgets(u64),
    /// The shim asks for what the scheduler believes, is answered, and has the answer.
    Asks,
    Answers,
    Reads,
    AgentRestarts,
    ShimRestarts,
    Drain,
}

const MODELS: usize = 5;

fn step() -> impl Strategy<Value = Step> {
    let memory = prop::option::weighted(0.9, 0..9 * 1024u64);
    prop_oneof![
        8 => (0..MODELS, memory).prop_map(|(m, mib)| Step::Load(m, mib.map(|n| n * MIB))),
        8 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(m, ok)| Step::Finish(m, ok)),
        4 => (0..MODELS).prop_map(Step::Unload),
        12 => any::<usize>().prop_map(Step::Deliver),
        2 => (0..4u8, 0..12u64).prop_map(|(what, n)| Step::Observe(what, n)),
        2 => any::<bool>().prop_map(Step::Ready),
        6 => (1..100_000u64).prop_map(Step::Pass),
        1 => (100_000..1_000_000u64).prop_map(Step::Pass),
        2 => Just(Step::Reconnect),
        1 => any::<u8>().prop_map(Step::Unread),
        1 => (1..1000u64).prop_map(Step::Forgets),
        6 => Just(Step::Asks),
        6 => Just(Step::Answers),
        6 => Just(Step::Reads),
        1 => Just(Step::AgentRestarts),
        1 => Just(Step::ShimRestarts),
        1 => Just(Step::Drain),
    ]
}

fn paused() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_scheduler_believes_what_is_true_and_is_left_alone(
        steps in prop::collection::vec(step(), 200..1200),
        total in prop_oneof![Just(0), Just(1_000_000), (0..12u64).prop_map(|n| n * 1024 * MIB)],
        workers in prop_oneof![Just(None), Just(Some(1))],
        over_commit in prop_oneof![3 => Just(0), 2 => 1..150u32],
        bytes in (0..12u64).prop_map(|n| n * 1024 * MIB),
        observe in prop::bool::weighted(0.2),
    ) {
        let mode = if observe { Mode::Observe } else { Mode::Correct };
        paused().block_on(async {
            let mut world = World::new(mode, Agent { total, workers, over_commit, ..Agent::default() }, bytes);
            world.subscribes()?;
            for step in &steps {
                world.does(step).await?;
            }
            Ok::<(), TestCaseError>(())
        })?;
    }

    /// A Subscribe waits until the server can be spoken for, for the configured time at most, and
    /// is never turned away meanwhile.
    #[test]
    fn a_subscription_is_held_until_ready_or_for_the_time_and_no_longer(
        turns in prop::collection::vec((1..20_000u64, prop::bool::weighted(0.1)), 0..20),
        observe in any::<bool>(),
    ) {
        let mode = if observe { Mode::Observe } else { Mode::Correct };
        paused().block_on(async {
            let world = World::new(mode, Agent::default(), 0);
            world.observing.known.send_modify(|k| k.ready = false);
            let live = world.shim.registry.enter();
            let began = world.clock.now();
            // Ready for the first time after so long.
            let mut at = 0;
            let mut expected = 60_000;
            for (ms, ready) in &turns {
                at += ms;
                if *ready {
                    expected = expected.min(at);
                    break;
                }
            }
            if observe {
                expected = 0;
            }
            let turning = async {
                for (ms, ready) in &turns {
                    sleep(Duration::from_millis(*ms)).await;
                    world.observing.known.send_modify(|k| {
                        k.ready = *ready;
                        k.revision += 1;
                    });
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = world.shim.hold(&live) => {}
                () = turning => {}
            }
            let held = (world.clock.now() - began).as_millis() as u64;
            prop_assert_eq!(held, expected);
            prop_assert_eq!(ending(&live), None);
            Ok::<(), TestCaseError>(())
        })?;
    }
}
