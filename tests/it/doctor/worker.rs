//! Faults of the server's worker and of the models in its hands.

use std::time::Duration;

use agent_shim::admin::status::{Restoring, WorkerStatus};
use agent_shim::demo::standin::StandIn;
use agent_shim::doctor::{Evidence, diagnose, rules};
use agent_shim::restore::Stage;

use super::support::*;
use crate::support::http::{Client, request};
use crate::support::{Shim, eventually, pair};

fn visit(server: &StandIn, shim: &Shim) -> Visit {
    Visit::to(shim).server("127.0.0.1", server.http(), server.grpc())
}

/// Evidence of a server and a shim in which all is well, with the worker changed; processes and
/// long times cannot be made with a stand-in.
async fn changed() -> (impl Drop, Evidence) {
    let (server, shim) = pair(&[]).await;
    let evidence = visit(&server, &shim).evidence().await;
    let d = diagnose(&evidence, rules::all());
    assert_eq!((d.first, d.warnings.len()), (None, 0));
    struct Both(#[allow(dead_code)] StandIn, #[allow(dead_code)] Shim);
    impl Drop for Both {
        fn drop(&mut self) {}
    }
    (Both(server, shim), evidence)
}

fn with(well: &Evidence, worker: WorkerStatus, broken: Option<&str>) -> Evidence {
    let mut evidence = well.clone();
    let status = evidence.status.as_mut().unwrap();
    status.worker = worker;
    if let Some(why) = broken {
        let all = &mut status.conditions;
        let condition = all.iter_mut().find(|c| c.name == "worker").unwrap();
        (condition.status, condition.reason) = (false, why.into());
    }
    evidence
}

fn first(evidence: &Evidence, id: &str) -> String {
    only(evidence, id).first.unwrap().text
}

fn warning(evidence: &Evidence, id: &str) -> String {
    let d = diagnose(evidence, rules::all());
    warns(&d, id);
    d.warnings[0].text.clone()
}

#[tokio::test]
async fn workers_that_die_or_are_missing_warn_at_first_and_are_broken_with_the_condition() {
    let (_pair, well) = changed().await;
    for (state, id, part) in [
        ("looping", "AS007", "for 31s (9 exits within a minute)"),
        ("missing", "AS008", "no worker process for 31s"),
    ] {
        let worker = WorkerStatus {
            state: state.into(),
            for_s: Some(31.0),
            recent_exits: 9,
            processes: Some(0),
            // What relayed inferences and a canary say is the same fault, seen less clearly.
            failed: 9,
            failed_for_s: 30.0,
            canary: Some("failed".into()),
            ..WorkerStatus::default()
        };
        let young = with(&well, worker.clone(), None);
        let d = diagnose(&young, rules::all());
        let shown: Vec<&str> = d.findings().map(|f| f.rule.as_str()).collect();
        assert_eq!(shown, [id]);
        let text = first(&with(&well, worker, Some("every inference fails")), id);
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn orphans_and_a_hanging_canary_are_named() {
    let (_pair, well) = changed().await;
    let worker = WorkerStatus {
        orphans: vec![71, 72],
        ..WorkerStatus::default()
    };
    let text = warning(&with(&well, worker, None), "AS019");
    assert!(text.contains("71, 72"), "{text}");

    let hangs = "a canary inference has had no answer for 61 s";
    let worker = WorkerStatus {
        state: "there".into(),
        canary: Some("worked".into()),
        ..WorkerStatus::default()
    };
    let text = first(&with(&well, worker, Some(hangs)), "AS009");
    assert_eq!(text, hangs);
}

#[tokio::test]
async fn inferences_fail_for_long_and_in_a_row_before_the_server_is_blamed() {
    let (_pair, well) = changed().await;
    let failed = |failed, failed_for_s| {
        let worker = WorkerStatus {
            failed,
            failed_for_s,
            ..WorkerStatus::default()
        };
        with(&well, worker, None)
    };
    for few in [failed(2, 60.0), failed(9, 9.0)] {
        assert_eq!(diagnose(&few, rules::all()).findings().count(), 0);
    }
    let text = first(&failed(3, 10.0), "AS013");
    assert!(text.contains("3 inferences in a row"), "{text}");
}

#[tokio::test]
async fn a_model_whose_load_was_cut_off_is_named() {
    let (_pair, well) = changed().await;
    let worker = WorkerStatus {
        stuck: ["a", "b", "c", "d", "e", "f", "g"].map(String::from).into(),
        ..WorkerStatus::default()
    };
    let text = first(&with(&well, worker, None), "AS096");
    assert!(
        text.contains("models a, b, c, d, e and 2 more have been UNKNOWN"),
        "{text}"
    );
}

/// A file with a canary's request; gone with the test.
struct Request(std::path::PathBuf);

impl Drop for Request {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn with_canary(test: &str) -> (Request, StandIn, Shim) {
    let name = format!("agent-shim-doctor-{test}-{}.json", std::process::id());
    let file = Request(std::env::temp_dir().join(name));
    std::fs::write(&file.0, r#"{"inputs":[]}"#).unwrap();
    let (server, shim) = pair(&[
        ("SHIM_CANARY_MODEL", "iris"),
        ("SHIM_CANARY_REQUEST", file.0.to_str().unwrap()),
        ("SHIM_CANARY_INTERVAL", "1s"),
    ])
    .await;
    (file, server, shim)
}

async fn warns_soon(visit: &Visit, id: &str) -> String {
    eventually(id, async || {
        let d = visit.diagnosis().await;
        let found = d.warnings.iter().find(|f| f.rule == id)?;
        assert_eq!(d.findings().count(), 1, "{d:#?}");
        Some(found.text.clone())
    })
    .await
}

#[tokio::test]
async fn a_canary_that_fails_warns_and_one_whose_model_is_lost_is_another_fault() {
    let (_file, server, shim) = with_canary("fails").await;
    let visit = visit(&server, &shim);
    server.set_worker_dead(true);
    let text = warns_soon(&visit, "AS009").await;
    assert!(text.contains("500 in plain text"), "{text}");
    server.set_worker_dead(false);
    server.set_lost(["iris"]);
    let d = visit.only("AS097").await;
    let text = d.first.unwrap().text;
    assert!(text.contains("model iris is READY"), "{text}");
}

#[tokio::test]
async fn a_canary_without_a_request_is_a_mistake_of_the_settings() {
    let (file, server, shim) = with_canary("gone").await;
    let visit = visit(&server, &shim);
    std::fs::remove_file(&file.0).unwrap();
    let text = warns_soon(&visit, "AS014").await;
    assert!(
        text.contains("SHIM_CANARY_REQUEST cannot be read"),
        "{text}"
    );

    let (_pair, well) = changed().await;
    let worker = WorkerStatus {
        canary: Some("refused".into()),
        canary_said: Some("422".into()),
        ..WorkerStatus::default()
    };
    let text = warning(&with(&well, worker, None), "AS014");
    assert!(text.ends_with("refuses the canary request: 422"), "{text}");
}

#[tokio::test]
async fn models_that_a_restart_has_taken_are_told_and_those_that_do_not_come_back() {
    let (server, shim) = pair(&[]).await;
    let visit = visit(&server, &shim);
    server.set_load_delay(Duration::from_secs(1));
    server.stop().await;
    server.lose_models();
    shim.state("127.0.0.1", "http", "down").await;
    server.restart().await.unwrap();
    let text = warns_soon(&visit, "AS098").await;
    assert!(text.contains("model iris is not back yet"), "{text}");
    eventually("the end of it", async || {
        (visit.diagnosis().await.findings().count() == 0).then_some(())
    })
    .await;

    let mut given_up = visit.evidence().await;
    given_up.status.as_mut().unwrap().restoring = vec![Restoring {
        model: "iris".into(),
        stage: Stage::GivenUp.as_str().into(),
        failures: 4,
        error: Some("no such file".into()),
    }];
    let d = only(&given_up, "AS099");
    assert_eq!(d.first.unwrap().evidence, ["model iris: no such file"]);
}

#[tokio::test]
async fn one_good_answer_takes_the_blame_back() {
    let (server, shim) = pair(&[]).await;
    let mut caller = Client::connect(shim.http()).await;
    let mut infer = async || {
        let ask = request("POST", "/v2/models/iris/infer", "{}");
        caller.call(ask).await.0
    };
    server.set_worker_dead(true);
    for _ in 0..3 {
        assert_eq!(infer().await, 500);
    }
    assert_eq!(shim.status().await["worker"]["failed"], 3);
    server.set_worker_dead(false);
    assert_eq!(infer().await, 200);
    assert_eq!(shim.status().await["worker"]["failed"], 0);
}
