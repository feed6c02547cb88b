//! Two faults at once: the earlier in the chain is first, whatever the order of the table.

use agent_shim::doctor::evidence::Evidence;
use agent_shim::doctor::{diagnose, rules};

use super::support::*;

type Change = fn(&mut Evidence);

fn subscription(e: &mut Evidence) -> &mut agent_shim::admin::status::SubscriptionStatus {
    e.status.as_mut().unwrap().subscription.as_mut().unwrap()
}

/// One fault for each link of the chain that can be broken alone, in the order of cause.
const FAULTS: [(&str, Change); 12] = [
    ("AS001", |e| {
        e.probes.iter_mut().for_each(|p| {
            (p.healthy, p.reason) = (false, Some("refused".into()));
        });
        e.status
            .as_mut()
            .unwrap()
            .endpoints
            .iter_mut()
            .for_each(|s| s.last_success = None);
        e.status
            .as_mut()
            .unwrap()
            .endpoints
            .iter_mut()
            .for_each(|s| s.state = "down".into());
    }),
    ("AS021", |e| {
        e.status.as_mut().unwrap().around.stopping = true
    }),
    ("AS033", |e| subscription(e).draining_s = Some(9.0)),
    ("AS040", |e| {
        port(e, agent_shim::doctor::evidence::PortOutcome::Unresolved)
    }),
    ("AS042", |e| {
        port(e, agent_shim::doctor::evidence::PortOutcome::TimedOut)
    }),
    ("AS046", |e| {
        port(e, agent_shim::doctor::evidence::PortOutcome::TlsExpired)
    }),
    ("AS054", |e| {
        let s = subscription(e);
        (s.phase, s.for_s, s.refusal) = ("none".into(), 1.0, Some("Internal: no".into()));
    }),
    ("AS057", |e| {
        let scheduler = e.scheduler.as_mut().unwrap();
        scheduler.servers[0].expected = 9;
        scheduler
            .models
            .push(trouble("waiting", "no matching servers are available"));
    }),
    ("AS060", |e| {
        e.status.as_mut().unwrap().capacity.reported = Some(0)
    }),
    ("AS071", |e| {
        let mut model = trouble("gpu", "no matching servers are available");
        model.requirements = vec!["gpu-a100".into()];
        e.scheduler.as_mut().unwrap().models.push(model);
    }),
    ("AS081", |e| {
        let mut model = trouble("pinned", "no matching servers are available");
        model.pinned = Some("nowhere".into());
        e.scheduler.as_mut().unwrap().models.push(model);
    }),
    ("AS090", |e| {
        let mut model = trouble("broken", "No module named x");
        model.state = "failed".into();
        e.scheduler.as_mut().unwrap().models.push(model);
    }),
];

fn trouble(name: &str, reason: &str) -> agent_shim::registration::facts::ModelFact {
    agent_shim::registration::facts::ModelFact {
        name: name.into(),
        state: "schedule-failed".into(),
        reason: reason.into(),
        wanted: 1,
        ..Default::default()
    }
}

fn port(e: &mut Evidence, outcome: agent_shim::doctor::evidence::PortOutcome) {
    e.ports
        .iter_mut()
        .filter(|p| p.configured)
        .for_each(|p| p.outcome = outcome);
}

#[tokio::test]
async fn of_two_faults_the_earlier_in_the_chain_is_first() {
    let pod = Pod::start(agent(GI), &[]).await;
    let well = pod.healthy().await;
    for (i, (first, one)) in FAULTS.iter().enumerate() {
        for (second, other) in &FAULTS[i + 1..] {
            let ports = ["AS040", "AS042", "AS046"];
            if ports.contains(first) && ports.contains(second) {
                // One port has one outcome.
                continue;
            }
            let mut evidence = well.clone();
            other(&mut evidence);
            one(&mut evidence);
            let found = diagnose(&evidence, rules::all());
            let id = found.first.as_ref().map(|f| f.rule.as_str());
            assert_eq!(id, Some(*first), "{first} with {second}: {found:#?}");
            let mut reversed: Vec<_> = rules::all().collect();
            reversed.sort_by_key(|r| std::cmp::Reverse(r.link));
            let again = diagnose(&evidence, reversed);
            assert_eq!(again.first, found.first);
        }
    }
}
