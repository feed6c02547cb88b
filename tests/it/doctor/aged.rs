//! Faults that show only after a minute, or that the stand-ins cannot make: evidence of a pod in
//! which everything is well, with the one thing changed. Pure from there on.

use agent_shim::doctor::evidence::{Evidence, ProbeFact};
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

    let never = |shim: f64, server: Option<f64>| {
        with(&move |e| {
            scheduler(e).servers.clear();
            let s = subscription(e);
            (s.phase, s.for_s, s.server) = ("none".into(), shim, String::new());
            e.status.as_mut().unwrap().around.usable_s = server;
        })
    };
    only(&never(600.0, Some(91.0)), "AS032");
    // An agent that starts a minute later, a server that has only just come.
    for waiting in [
        never(600.0, Some(75.0)),
        never(75.0, Some(75.0)),
        never(600.0, None),
    ] {
        nothing(&waiting);
    }

    let gone = |for_s: f64, drain: &'static str, drains: bool| {
        with(&move |e| {
            scheduler(e).servers.clear();
            let s = subscription(e);
            (s.phase, s.for_s) = ("none".into(), for_s);
            s.draining_s = drains.then_some(for_s + 1.0);
            e.status.as_mut().unwrap().drain.state = drain.into();
        })
    };
    let found = only(&gone(6.0, "none", false), "AS034");
    let text = found.first.unwrap().text;
    assert!(text.contains("6s") && text.contains("mlserver"), "{text}");
    // It subscribes again at once where only its stream has ended.
    nothing(&gone(4.0, "none", false));
    // A pod that ends: the agent has done its part and goes before the shim.
    nothing(&gone(60.0, "draining", true));
    nothing(&gone(9.0, "drained", false));
    // It goes before it has drained, or the drain is long over and nothing has ended.
    only(&gone(6.0, "draining", false), "AS034");
    let mut long_over = gone(60.0, "gave-up", false);
    long_over.status.as_mut().unwrap().drain.for_s = 11.0;
    only(&long_over, "AS034");

    let wedged = with(&|e| {
        e.scheduler = None;
        let s = subscription(e);
        s.belief = "failed".into();
        s.belief_error = Some("scheduler:9004 did not answer within 10s".into());
    });
    let found = only(&wedged, "AS052");
    let text = found.first.unwrap().text;
    assert!(text.contains("scheduler:9004"), "{text}");
    // Whoever asks it now and gets an answer knows better; and a port that refuses is no silence.
    let answers_by_now = with(&|e| {
        let s = subscription(e);
        s.belief = "failed".into();
        s.belief_error = Some("scheduler:9004 did not answer within 10s".into());
    });
    nothing(&answers_by_now);
    let refuses = with(&|e| {
        e.scheduler = None;
        let s = subscription(e);
        s.belief = "failed".into();
        s.belief_error = Some("cannot connect to scheduler:9004: Connection refused".into());
    });
    nothing(&refuses);
    for why in [
        "cannot speak HTTP/2 to scheduler:9005: no answer within 5s",
        "TLS with scheduler:9055: no answer within 5s; is this a plain-text port?",
    ] {
        let silent = with(&|e| {
            (e.scheduler, e.ports) = (None, Vec::new());
            let s = subscription(e);
            (s.phase, s.detail) = ("unreachable".into(), Some(why.into()));
        });
        only(&silent, "AS052");
    }

    let remembered = with(&|e| {
        let endpoints = e.status.as_ref().unwrap().endpoints.clone();
        e.probes = endpoints
            .iter()
            .map(|known| ProbeFact {
                host: known.host.clone(),
                port: known.port,
                protocol: known.protocol.clone(),
                healthy: false,
                reason: Some("dns".into()),
                detail: "failed to lookup address information".into(),
                tls: false,
                ms: 1.0,
            })
            .collect();
    });
    // The shim reaches it at the address that the name had.
    nothing(&remembered);

    // Without the interposer it is missed by its readiness port.
    let absent = |for_s: Option<f64>, stopping: bool| {
        with(&move |e| {
            e.scheduler = None;
            e.agent = None;
            let status = e.status.as_mut().unwrap();
            status.subscription = None;
            status.agent.state = "unknown".into();
            status.agent.absent_s = for_s;
            status.around.stopping = stopping;
        })
    };
    only(&absent(Some(11.0), false), "AS034");
    for fine in [absent(Some(9.0), false), absent(None, false)] {
        nothing(&fine);
    }
    only(&absent(Some(11.0), true), "AS021");

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

    // Those of loads of before, and of ends that were told twice, hold nothing back.
    let mismatch = with(&|e| subscription(e).mismatches = 2);
    nothing(&mismatch);
    let mismatch = with(&|e| subscription(e).held_back = 2);
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

/// Real callers, 1,024 of them with a call each, are in `hostile::crowd`.
#[tokio::test]
async fn a_relay_that_is_full_of_running_calls_is_named() {
    let (_pod, mut evidence) = well().await;
    let around = &mut evidence.status.as_mut().unwrap().around;
    (around.places, around.places_full_s) = (1024, Some(12.0));
    let d = only(&evidence, "AS023");
    let text = d.first.unwrap().text;
    assert!(text.contains("12s") && text.contains("1024"), "{text}");
}
