//! Faults that show only after a minute, or that the stand-ins cannot make: evidence of a pod in
//! which everything is well, with the one thing changed. Pure from there on.

use agent_shim::doctor::evidence::Evidence;
use agent_shim::registration::facts::{ModelFact, ReplicaFact, SchedulerFacts, ServerFact};

use super::support::*;

async fn well() -> (Pod, Evidence) {
    let pod = Pod::start(agent(GI), &[]).await;
    let evidence = pod.healthy().await;
    (pod, evidence)
}

fn failed(name: &str, reason: &str) -> ModelFact {
    ModelFact {
        name: name.into(),
        version: 1,
        state: "schedule-failed".into(),
        reason: reason.into(),
        wanted: 1,
        ..ModelFact::default()
    }
}

#[tokio::test]
async fn faults_that_take_time_or_many_replicas() {
    let (_pod, well) = well().await;
    let with = |change: &dyn Fn(&mut Evidence)| {
        let mut evidence = well.clone();
        change(&mut evidence);
        evidence
    };
    fn subscription(e: &mut Evidence) -> &mut agent_shim::admin::status::SubscriptionStatus {
        e.status.as_mut().unwrap().subscription.as_mut().unwrap()
    }
    fn scheduler(e: &mut Evidence) -> &mut SchedulerFacts {
        e.scheduler.as_mut().unwrap()
    }

    let silent = with(&|e| {
        scheduler(e).servers.clear();
        let s = subscription(e);
        (s.phase, s.for_s) = ("none".into(), 61.0);
    });
    only(&silent, "AS032");

    let unlisted = with(&|e| {
        scheduler(e).servers.clear();
        subscription(e).for_s = 60.0;
    });
    only(&unlisted, "AS056");

    let differs = with(&|e| {
        let conditions = &mut e.status.as_mut().unwrap().conditions;
        let agrees = conditions
            .iter_mut()
            .find(|c| c.name == "capacity-agrees")
            .unwrap();
        agrees.status = false;
        agrees.reason = "the scheduler believes that 1.0Gi are free and was told 2.0Gi".into();
    });
    only(&differs, "AS058");

    let mismatch = with(&|e| subscription(e).mismatches = 2);
    warns(
        &agent_shim::doctor::diagnose(&mismatch, agent_shim::doctor::rules::all()),
        "AS059",
    );

    let workers = with(&|e| {
        e.status.as_mut().unwrap().mode = "observe".into();
        subscription(e).workers = Some(4);
    });
    warns(
        &agent_shim::doctor::diagnose(&workers, agent_shim::doctor::rules::all()),
        "AS066",
    );

    let few = with(&|e| {
        scheduler(e).models = vec![ModelFact {
            wanted: 3,
            ..failed(
                "iris",
                "Failed to schedule model as no matching server had enough suitable replicas",
            )
        }];
    });
    only(&few, "AS084");

    let unexplained = with(&|e| {
        scheduler(e).models = vec![failed("iris", "for a reason of its own")];
    });
    only(&unexplained, "AS089");
}

#[test]
fn the_scheduler_alone_is_enough_for_what_it_knows() {
    // From outside, with no shim: only --scheduler-status.
    let evidence = Evidence {
        scheduler: Some(SchedulerFacts {
            servers: vec![ServerFact {
                name: "mlserver".into(),
                replicas: vec![ReplicaFact::default()],
                expected: 1,
                available: 1,
            }],
            complete: true,
            ..SchedulerFacts::default()
        }),
        ..Evidence::default()
    };
    only(&evidence, "AS060");
}

/// The real want, by a limit on the process, is made in `os::descriptors`.
#[tokio::test]
async fn a_want_of_descriptors_is_named_and_nothing_else_is_blamed() {
    let (_pod, mut evidence) = well().await;
    let around = &mut evidence.status.as_mut().unwrap().around;
    around.places = 170;
    around.places_short_s = Some(12.0);
    let d = only(&evidence, "AS022");
    let first = d.first.unwrap();
    assert!(
        first.text.contains("12s") && first.text.contains("170"),
        "{first:?}"
    );
    assert!(first.fix.contains("hard limit on open files"), "{first:?}");
}
