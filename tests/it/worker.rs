//! Evidence that the worker works, where the server's own health calls see nothing.

use std::time::Duration;

use agent_shim::demo::standin::StandIn;

use crate::support::http::{Client, request};
use crate::support::{Shim, eventually, grpc, pair, within};

const INFER: &str = "/v2/models/iris/infer";

/// A file with a request; gone with the test.
struct Request(std::path::PathBuf);

impl Request {
    fn new(test: &str) -> Request {
        let name = format!("agent-shim-canary-{test}-{}.json", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, r#"{"inputs":[]}"#).unwrap();
        Request(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn with_canary(request: &Request, mend: &str) -> (StandIn, Shim) {
    pair(&[
        ("SHIM_CANARY_MODEL", "iris"),
        ("SHIM_CANARY_REQUEST", request.path()),
        ("SHIM_CANARY_INTERVAL", "1s"),
        ("SHIM_MEND", mend),
    ])
    .await
}

fn canaries(outcome: &str) -> String {
    format!(r#"agent_shim_canaries_total{{outcome="{outcome}"}}"#)
}

async fn finds(shim: &Shim, name: &str) -> String {
    eventually(&format!("the finding {name}"), async || {
        let status = shim.status().await;
        let all = status["findings"].as_array().unwrap().clone();
        let found = all.into_iter().find(|f| f["name"] == name)?;
        Some(found["text"].as_str().unwrap().to_string())
    })
    .await
}

#[tokio::test]
async fn a_canary_is_asked_again_and_again_and_never_while_an_inference_runs() {
    let file = Request::new("busy");
    let (server, shim) = with_canary(&file, "off").await;
    shim.metric_reaches(&canaries("worked"), 2.0).await;
    assert_eq!(shim.status().await["worker"]["canary"], "worked");

    // A data connection with a call that hangs; what it is called does not matter to the shim.
    let mut caller = grpc::Client::connect(shim.grpc()).await;
    let mut running = Box::pin(caller.open_with("Hang", &[], &[b"x"]));
    tokio::select! {
        _ = &mut running => panic!("it hangs"),
        _ = server.wait_for_call("/inference.GRPCInferenceService/Hang") => {}
    }
    shim.metric_reaches(&canaries("skipped"), 1.0).await;
    let before = server.calls_to(INFER).len();
    let skipped = shim.metric(&canaries("skipped")).await;
    shim.metric_reaches(&canaries("skipped"), skipped + 2.0)
        .await;
    assert_eq!(server.calls_to(INFER).len(), before);
    server.release();
    within("the call", running).await.unwrap();
    let worked = shim.metric(&canaries("worked")).await;
    shim.metric_reaches(&canaries("worked"), worked + 1.0).await;
}

#[tokio::test]
async fn no_canary_is_sent_while_another_model_is_loaded() {
    let file = Request::new("load");
    let (server, shim) = with_canary(&file, "off").await;
    shim.metric_reaches(&canaries("worked"), 1.0).await;
    server.set_load_delay(Duration::from_secs(4));
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    let mut load = Box::pin(agent.call("RepositoryModelLoad", b"\x12\x05other"));
    tokio::select! {
        _ = &mut load => panic!("it takes 4 s"),
        _ = server.wait_for_call("/inference.GRPCInferenceService/RepositoryModelLoad") => {}
    }
    let skipped = shim.metric(&canaries("skipped")).await;
    shim.metric_reaches(&canaries("skipped"), skipped + 1.0)
        .await;
    let before = server.calls_to(INFER).len();
    let why = shim.status().await["worker"]["canary_skipped"].clone();
    assert_eq!(why, "a model is being loaded or unloaded");
    let answer = within("the load", load).await.unwrap();
    assert_eq!(answer.status().0, 0);
    // One may have been on its way in the moment in which the load ended.
    assert!(server.calls_to(INFER).len() <= before + 1);
    let worked = shim.metric(&canaries("worked")).await;
    shim.metric_reaches(&canaries("worked"), worked + 1.0).await;
}

#[tokio::test]
async fn a_lost_model_that_its_owner_unloads_while_it_is_mended_stays_unloaded() {
    let file = Request::new("owner");
    let (server, shim) = with_canary(&file, "lost").await;
    server.set_load_delay(Duration::from_secs(2));
    server.set_lost(["iris"]);
    within(
        "the load",
        server.wait_for_call("/v2/repository/models/iris/load"),
    )
    .await;
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    let unloaded = agent.call("RepositoryModelUnload", b"\x12\x04iris").await;
    assert_eq!(unloaded.unwrap().status().0, 0);
    eventually("the shim to take it back", async || {
        let unloads = server.calls_to("/v2/repository/models/iris/unload");
        (unloads.len() == 2).then_some(())
    })
    .await;
    eventually("the model to be gone", async || {
        let iris = server.models().into_iter().find(|m| m.name == "iris");
        (iris.unwrap().state == "UNAVAILABLE").then_some(())
    })
    .await;
    let mended = r#"agent_shim_mended_total{state="lost"}"#;
    assert_eq!(shim.metric(mended).await, 0.0);
}

#[tokio::test]
async fn a_failing_canary_is_told_and_says_nothing_of_readiness_at_once() {
    let file = Request::new("dead");
    let (server, shim) = with_canary(&file, "off").await;
    server.set_worker_dead(true);
    shim.metric_reaches(&canaries("failed"), 1.0).await;
    let text = finds(&shim, "canary-failing").await;
    assert!(text.contains("500 in plain text"), "{text}");
    assert_eq!(shim.get("/readyz").await.0, 200);
    server.set_worker_dead(false);
    let worked = shim.metric(&canaries("worked")).await;
    shim.metric_reaches(&canaries("worked"), worked + 1.0).await;
}

#[tokio::test]
async fn a_ready_model_that_the_worker_has_lost_is_named_and_mended_only_on_demand() {
    let file = Request::new("lost");
    let (server, shim) = with_canary(&file, "off").await;
    server.set_lost(["iris"]);
    let text = finds(&shim, "model-lost-by-worker").await;
    assert!(text.contains("iris"), "{text}");
    shim.metric_reaches(&canaries("lost"), 2.0).await;
    assert!(
        server
            .calls_to("/v2/repository/models/iris/load")
            .is_empty()
    );

    let (server, shim) = with_canary(&file, "lost").await;
    server.set_lost(["iris"]);
    shim.metric_reaches(r#"agent_shim_mended_total{state="lost"}"#, 1.0)
        .await;
    assert_eq!(
        server.calls_to("/v2/repository/models/iris/unload").len(),
        1
    );
    assert_eq!(server.calls_to("/v2/repository/models/iris/load").len(), 1);
    shim.metric_reaches(&canaries("worked"), 1.0).await;
}

#[tokio::test]
async fn relayed_inferences_that_all_fail_in_the_server_are_told() {
    let (server, shim) = pair(&[]).await;
    server.set_worker_dead(true);
    let mut caller = Client::connect(shim.http()).await;
    let told = eventually("the finding", async || {
        let (status, ..) = caller.call(request("POST", INFER, "{}")).await;
        assert_eq!(status, 500);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let status = shim.status().await;
        let all = status["findings"].as_array().unwrap().clone();
        all.into_iter().find(|f| f["name"] == "worker-fatal")
    })
    .await;
    assert!(told["text"].as_str().unwrap().contains("in a row"));
    assert_eq!(shim.get("/readyz").await.0, 200);
}
