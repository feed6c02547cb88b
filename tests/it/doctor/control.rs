//! Faults between the shim, the agent and the scheduler.

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::{FakeScheduler, Manners};
use agent_shim::doctor::engine::Outcome;
use tokio::task::JoinSet;

use super::support::*;
use crate::gather::certificates::Authority;
use crate::support::{eventually, refused};

/// A pod before a scheduler that may be anything, and the doctor in it.
async fn pod_before(more: &[(&str, &str)]) -> Pod {
    let scheduler = FakeScheduler::start().await.unwrap();
    Pod::at(scheduler, agent(GI), more).await
}

#[tokio::test]
async fn a_healthy_stack_yields_no_finding_and_every_link_that_was_seen_is_fine() {
    let pod = Pod::start(agent(GI), &[]).await;
    let evidence = pod.healthy().await;
    let d = agent_shim::doctor::diagnose(&evidence, agent_shim::doctor::rules::all());
    assert_eq!(d.outcome, Outcome::Healthy);
    assert_eq!(d.findings().count(), 0);
    let fine = |r: &&agent_shim::doctor::engine::LinkReport| {
        r.standing == agent_shim::doctor::engine::Standing::Fine
    };
    assert!(d.chain.iter().filter(fine).count() >= 9, "{:#?}", d.chain);
}

#[tokio::test]
async fn every_way_not_to_reach_the_scheduler_has_its_own_rule() {
    let mut tasks = JoinSet::new();
    let (nowhere, _port) = refused().await;
    let (dropped, _held) = dropping().await;
    let reset = resetting(&mut tasks).await;
    for (at, id) in [
        ("no-such-scheduler.invalid:9005".to_string(), "AS040"),
        (nowhere.to_string(), "AS041"),
        (dropped.to_string(), "AS042"),
        (reset.to_string(), "AS043"),
    ] {
        let pod = pod_before(&[("SHIM_SCHEDULER", &at)]).await;
        pod.visit().only(id).await;
    }
}

#[tokio::test]
async fn another_port_of_the_scheduler_is_the_wrong_port() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let status = scheduler.status.to_string();
    let pod = Pod::at(scheduler, agent(GI), &[("SHIM_SCHEDULER", &status)]).await;
    pod.visit().only("AS044").await;
    // Without a connection of the doctor's own the shim's word is enough.
    let visit = pod.visit();
    let mut evidence = eventually("the refusal", async || {
        let evidence = visit.evidence().await;
        let refused = evidence.subscription().is_some_and(|s| s.refusal.is_some());
        refused.then_some(evidence)
    })
    .await;
    evidence.ports.clear();
    only(&evidence, "AS044");
}

#[tokio::test]
async fn every_fault_of_tls_has_its_own_rule() {
    let authority = Authority::new("doctor-tls");
    let stranger = Authority::new("doctor-stranger");
    let scheduler = FakeScheduler::start().await.unwrap();
    let plain = scheduler.agent;
    let mut tasks = JoinSet::new();
    let good = authority.server("127.0.0.1");
    let open = authority
        .front(plain, good.clone(), false, &mut tasks)
        .await;
    let asks = authority.front(plain, good, true, &mut tasks).await;
    let old = authority.signed("127.0.0.1", 2019, 2021);
    let old = authority.front(plain, old, false, &mut tasks).await;
    let other = authority.server("elsewhere");
    let other = authority.front(plain, other, false, &mut tasks).await;
    let ca = |a: &Authority| a.folder.join("ca.crt").display().to_string();
    let (ours, theirs) = (ca(&authority), ca(&stranger));
    let missing = "/nonexistent/ca.crt".to_string();
    for (at, ca, id) in [
        (open, &theirs, "AS045"),
        (old, &ours, "AS046"),
        (other, &ours, "AS047"),
        (asks, &ours, "AS048"),
        (plain, &ours, "AS049"),
        (open, &missing, "AS051"),
    ] {
        let at = at.to_string();
        let more = [
            ("SHIM_SCHEDULER", at.as_str()),
            ("SHIM_SCHEDULER_CA_FILE", ca),
        ];
        let pod = pod_before(&more).await;
        pod.visit().only(id).await;
        // The sidecar, which connects to nobody for it, comes to the same from what it knows.
        let mut last = None;
        let seen = tokio::time::timeout(crate::support::PATIENCE, async {
            loop {
                let status = pod.shim.status().await;
                if status["findings"][0]["rule"] == id {
                    return;
                }
                last = Some(format!("{} {}", status["findings"], status["subscription"]));
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
        assert!(seen.await.is_ok(), "{id} is not in /status: {last:?}");
    }
    let at = open.to_string();
    let pod = pod_before(&[("SHIM_SCHEDULER", &at)]).await;
    pod.visit().only("AS050").await;
    eventually("AS050 in /status", async || {
        let status = pod.shim.status().await;
        (status["findings"][0]["rule"] == "AS050").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_scheduler_that_refuses_the_subscription_is_quoted() {
    let any = ([127, 0, 0, 1], 0).into();
    let manners = Manners {
        refuse: Some("replica is unwelcome".into()),
        ..Manners::default()
    };
    let scheduler = FakeScheduler::start_at(any, any, manners).await.unwrap();
    let pod = Pod::at(scheduler, agent(GI), &[]).await;
    let d = pod.visit().only("AS054").await;
    let text = d.first.unwrap().text;
    assert!(text.contains("Internal: replica is unwelcome"), "{text}");
}

#[tokio::test]
async fn two_agents_of_one_replica_are_seen_from_their_shims() {
    let first = Pod::start(agent(GI), &[]).await;
    let settings = control(first.scheduler.agent, first.scheduler.status);
    let shim = shim_with(&first.server, &settings);
    shim.ready().await;
    let _second = FakeAgent::start(AgentConfig {
        scheduler: shim.bound.agent[0],
        ..agent(GI)
    });
    let mut visit = first.visit();
    visit.admin.push(format!("http://{}", shim.admin()));
    visit.only("AS055").await;
}

#[tokio::test]
async fn two_agents_with_different_memory_are_seen_by_one_shim_from_the_belief() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let _other = FakeAgent::start(AgentConfig::new(scheduler.agent, 2 * GI));
    assert!(
        scheduler
            .until(crate::support::PATIENCE, |s| !s.replicas.is_empty())
            .await
    );
    let pod = Pod::at(scheduler, agent(GI), &[]).await;
    let visit = pod.visit();
    let mut evidence = eventually("the difference", async || {
        let evidence = visit.evidence().await;
        let differs = evidence
            .condition("capacity-agrees")
            .is_some_and(|c| !c.status);
        differs.then_some(evidence)
    })
    .await;
    // It has stood like this for a while.
    let status = evidence.status.as_mut().unwrap();
    status.subscription.as_mut().unwrap().for_s = 20.0;
    let d = only(&evidence, "AS055");
    let text = d.first.unwrap().text;
    assert!(
        text.contains("believes in 2.0Gi") && text.contains("told 1.0Gi"),
        "{text}"
    );
}

#[tokio::test]
async fn a_scheduler_that_waits_for_replicas_is_told_from_one_that_has_no_room() {
    let pod = Pod::start(agent(GI), &[]).await;
    pod.scheduler.expect("mlserver", 2);
    pod.scheduler.load(crate::subscription::support::model(
        "iris",
        &["sklearn"],
        None,
    ));
    let d = pod.visit().only("AS057").await;
    let text = &d.first.as_ref().unwrap().text;
    assert!(
        text.contains("expects 2 replicas of mlserver and 1 are there"),
        "{text}"
    );
    let follows: Vec<&str> = d.follows.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(follows, ["model-not-scheduled"]);
}

#[tokio::test]
async fn a_subscription_that_is_held_is_said_to_be_for_as_long_as_it_has_been() {
    let server = server().await;
    server.stop().await;
    let scheduler = FakeScheduler::start().await.unwrap();
    let shim = shim_with(&server, &control(scheduler.agent, scheduler.status));
    let _agent = FakeAgent::start(AgentConfig {
        scheduler: shim.bound.agent[0],
        ..agent(GI)
    });
    // Nothing changes meanwhile but the time.
    eventually("two seconds of being held", async || {
        let status = shim.status().await;
        let all = status["conditions"].as_array().unwrap().clone();
        let subscribed = all.into_iter().find(|c| c["name"] == "subscribed")?;
        let reason = subscribed["reason"].as_str().unwrap().to_string();
        (reason.contains("is held for") && reason.ends_with("for 2 s now")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_drain_without_termination_is_named() {
    let pod = Pod::start(agent(GI), &[]).await;
    pod.healthy().await;
    pod.agent.as_ref().unwrap().drain().await.unwrap();
    // An agent that drains calls itself not ready; it is not stuck for that.
    let mut tasks = JoinSet::new();
    let mut visit = pod.visit();
    visit.agent_ports = [answering(503, &mut tasks).await, 1];
    let d = visit.only("AS033").await;
    assert!(
        d.first
            .unwrap()
            .text
            .contains("although the pod is not ending")
    );
}

#[tokio::test]
async fn a_drain_that_was_called_for_is_held_against_nobody_until_it_has_ended_without_an_end() {
    let pod = Pod::start(agent(GI), &[]).await;
    let well = pod.healthy().await;
    let with = |state: &str, for_s: f64, asked: Option<f64>| {
        let mut evidence = well.clone();
        let status = evidence.status.as_mut().unwrap();
        status.drain.state = state.into();
        status.drain.agent_drains = true;
        status.drain.for_s = for_s;
        status.drain.summary = "nothing ran any more".into();
        status.subscription.as_mut().unwrap().draining_s = asked;
        evidence
    };
    for young in [
        with("draining", 60.0, Some(60.0)),
        with("drained", 9.0, Some(10.0)),
    ] {
        let d = agent_shim::doctor::diagnose(&young, agent_shim::doctor::rules::all());
        assert_eq!(d.first, None);
        let known = d.unchecked.iter().flat_map(|u| &u.rules);
        assert!(known.into_iter().any(|r| r == "AS033"), "{d:#?}");
    }
    for old in [
        with("drained", 10.0, Some(11.0)),
        with("gave-up", 10.0, None),
    ] {
        let d = only(&old, "AS033");
        let seen = d.first.unwrap().evidence;
        assert!(
            seen.last().unwrap().contains("nothing ran any more"),
            "{seen:?}"
        );
    }
}

#[tokio::test]
async fn an_agent_that_the_shim_has_seen_stuck_needs_no_look_of_the_doctors_own() {
    let pod = Pod::start(agent(GI), &[]).await;
    let mut evidence = pod.healthy().await;
    evidence.agent = None;
    let known = &mut evidence.status.as_mut().unwrap().agent;
    (known.state, known.reason) = ("not-ready".into(), "it counts as stuck after 3m".into());
    let d = agent_shim::doctor::diagnose(&evidence, agent_shim::doctor::rules::all());
    assert_eq!(d.first, None);
    assert!(
        d.unchecked
            .iter()
            .any(|u| u.why == "it counts as stuck after 3m")
    );
    evidence.status.as_mut().unwrap().agent.state = "stuck".into();
    only(&evidence, "AS031");
}

#[tokio::test]
async fn an_agent_that_is_starting_is_not_called_stuck() {
    let mut pod = Pod::start(agent(GI), &[]).await;
    pod.healthy().await;
    pod.agent.take();
    let mut tasks = JoinSet::new();
    let mut visit = pod.visit();
    visit.agent_ports = [answering(503, &mut tasks).await, 1];
    let mut evidence = eventually("the subscription to end", async || {
        let evidence = visit.evidence().await;
        let none = evidence.subscription().is_some_and(|s| s.phase == "none");
        none.then_some(evidence)
    })
    .await;
    let d = agent_shim::doctor::diagnose(&evidence, agent_shim::doctor::rules::all());
    assert!(!d.findings().any(|f| f.rule == "AS031"), "{d:#?}");
    let subscription = evidence.status.as_mut().unwrap().subscription.as_mut();
    subscription.unwrap().for_s = 600.0;
    only(&evidence, "AS031");
}

#[tokio::test]
async fn an_agent_that_has_given_up_is_stuck_while_all_else_is_well() {
    let pod = Pod::start(agent(GI), &[]).await;
    let mut tasks = JoinSet::new();
    let mut visit = pod.visit();
    visit.agent_ports = [answering(404, &mut tasks).await, 1];
    visit.only("AS031").await;
    visit.agent_ports = [answering(200, &mut tasks).await, 1];
    let d = visit.diagnosis().await;
    assert_eq!(d.first, None);
}

#[tokio::test]
async fn an_agent_that_goes_past_the_shim_is_seen_in_its_environment() {
    let pod = Pod::start(agent(GI), &[]).await;
    let mut pod = pod;
    pod.agent.take();
    let proc = std::env::temp_dir().join(format!("agent-shim-doctor-proc-{}", std::process::id()));
    std::fs::create_dir_all(proc.join("7")).unwrap();
    std::fs::write(proc.join("7/comm"), "agent\n").unwrap();
    let environ = "SELDON_SCHEDULER_HOST=seldon-scheduler\0SELDON_SCHEDULER_PORT=9005\0";
    std::fs::write(proc.join("7/environ"), environ).unwrap();
    let mut visit = pod.visit();
    visit.proc = proc.clone();
    let d = visit.only("AS030").await;
    let text = d.first.unwrap().text;
    std::fs::remove_dir_all(proc).unwrap();
    assert!(text.contains("seldon-scheduler:9005"), "{text}");
}
