//! What the scheduler believes, compared with what it was told.

use agent_shim::clock::Clock;
use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::registration::{Check, Reader, Registration};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::support::*;

async fn until(
    registration: &mut watch::Receiver<Registration>,
    holds: impl FnMut(&Registration) -> bool,
) -> Registration {
    let waited = tokio::time::timeout(LIMIT, registration.wait_for(holds)).await;
    let shown = match &waited {
        Ok(Ok(registration)) => return (**registration).clone(),
        other => format!("{}", other.is_err()),
    };
    drop(waited);
    panic!("not in time ({shown}): {:?}", registration.borrow());
}

fn holds(registration: &Registration, name: &str) -> Option<bool> {
    registration
        .conditions
        .iter()
        .find(|c| c.name == name)
        .map(|c| c.holds)
}

#[tokio::test]
async fn the_four_figures_agree_and_models_in_trouble_are_named() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(Some(8 * GI))).await;
    let (reader, mut registration) = Reader::new(
        Some(target(scheduler.status)),
        None,
        shim.status.clone(),
        Clock::start(),
        &shim.metrics,
    );
    let mut tasks = JoinSet::new();
    reader.metrics().observed(Some(8 * GI));
    tasks.spawn(reader.run());
    let _agent = FakeAgent::start(AgentConfig::new(shim.address, 1_000_000));
    scheduler.load(model("iris", &["sklearn"], Some(3 * GI)));
    available(&scheduler, "iris").await;
    scheduler.load(model("tree", &["sk-learn"], None));
    scheduler.load(model("large", &["sklearn"], Some(7 * GI)));
    let found = until(&mut registration, |r| {
        holds(r, "capacity-agrees") == Some(true)
            && matches!(&r.check, Check::Read(Some(b)) if b.available == 5 * GI)
            && r.models.len() == 2
    })
    .await;
    assert_eq!(holds(&found, "subscribed"), Some(true));
    assert_eq!(holds(&found, "registered"), Some(true));
    let large = found.models.iter().find(|m| m.model == "large").unwrap();
    assert_eq!(large.memory, Some(2 * GI));
    let tree = found.models.iter().find(|m| m.model == "tree").unwrap();
    assert_eq!(tree.requirements[0].nearest.as_deref(), Some("sklearn"));
    for (figure, expected) in [
        ("requested", 1_000_000),
        ("observed", 8 * GI),
        ("reported", 8 * GI),
        ("believed", 8 * GI),
    ] {
        let series = format!("agent_shim_capacity_bytes{{figure=\"{figure}\"}}");
        assert_eq!(shim.series(&series), expected as f64, "{figure}");
    }
    assert_eq!(
        shim.series("agent_shim_unavailable_models{lacks=\"capability\"}"),
        1.0
    );
    drop(scheduler);
    let lost = until(&mut registration, |r| holds(r, "subscribed") == Some(false)).await;
    assert_ne!(lost.conditions.len(), 0);
    let unread = until(&mut registration, |r| matches!(r.check, Check::Failed(_))).await;
    assert_eq!(holds(&unread, "registered"), None);
}

#[tokio::test]
async fn without_an_address_nothing_is_claimed_and_nothing_fails() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let shim = Shim::start(settings(&[scheduler.agent]), Double::new(None)).await;
    let (reader, mut registration) = Reader::new(
        None,
        None,
        shim.status.clone(),
        Clock::start(),
        &shim.metrics,
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(reader.run());
    let _agent = FakeAgent::start(AgentConfig::new(shim.address, GI));
    let found = until(&mut registration, |r| holds(r, "subscribed") == Some(true)).await;
    assert_eq!(found.check, Check::NotConfigured);
    assert_eq!(found.conditions.len(), 1);
}
