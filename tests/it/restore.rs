//! Models that a restart of the server has lost come back by themselves; loads that are needless
//! are not made; a load that has begun is carried to its end.

use std::path::PathBuf;
use std::time::Duration;

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::demo::standin::StandIn;
use agent_shim::endpoint::Protocol;
use agent_shim::proto::RepositoryIndexResponse;
use agent_shim::proto::scheduler::{MetaData, Model, ModelSpec};
use prost::Message;
use tokio::time::{Instant, timeout};

use crate::support::http::{Client, request};
use crate::support::{Shim, eventually, grpc, pair, refused, within};

const LOAD: &str = "/inference.GRPCInferenceService/RepositoryModelLoad";
const READY: &str = r#"agent_shim_server_models{state="READY"}"#;

/// A load or unload request.
fn named(model: &str) -> Vec<u8> {
    let mut message = vec![0x12, model.len() as u8];
    message.extend(model.as_bytes());
    message
}

async fn change(shim: &Shim, method: &str, model: &str) -> grpc::Answer {
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    agent.call(method, &named(model)).await.unwrap()
}

fn outcomes(outcome: &str) -> String {
    format!(r#"agent_shim_restore_loads_total{{outcome="{outcome}"}}"#)
}

fn saved(reason: &str) -> String {
    format!(r#"agent_shim_loads_coalesced_total{{reason="{reason}"}}"#)
}

/// The models that were loaded over HTTP, in order: those are the shim's own loads.
fn loads(server: &StandIn) -> Vec<String> {
    let calls = server.calls().into_iter();
    calls
        .filter(|c| c.protocol == Protocol::Http && c.path.ends_with("/load"))
        .map(|c| c.path.split('/').nth(4).unwrap().to_string())
        .collect()
}

fn state(server: &StandIn, model: &str) -> String {
    let models = server.models();
    models.into_iter().find(|m| m.name == model).unwrap().state
}

async fn condition(shim: &Shim) -> (bool, String) {
    let status = shim.status().await;
    let all = status["conditions"].as_array().unwrap().clone();
    let found = all.into_iter().find(|c| c["name"] == "models-restored");
    let found = found.unwrap();
    (
        found["status"].as_bool().unwrap(),
        found["reason"].as_str().unwrap().to_string(),
    )
}

/// A server with models in memory, and a shim that knows them.
async fn with(models: &[&str], settings: &[(&str, &str)]) -> (StandIn, Shim) {
    let (server, shim) = pair(settings).await;
    let ready = models.iter().map(|m| (*m, "", "READY"));
    server.set_models(ready.chain([("on-disk", "", "UNAVAILABLE")]));
    // The stand-in's own first model; also a hint that the index has changed.
    change(&shim, "RepositoryModelUnload", "iris").await;
    eventually("the shim to know the models", async || {
        let status = shim.status().await;
        let listed = status["models"].as_array().unwrap().clone();
        let known = |m: &&str| listed.iter().any(|l| l["name"] == **m);
        models.iter().all(known).then_some(())
    })
    .await;
    (server, shim)
}

/// What SIGKILL and a new start do.
async fn restart(server: &StandIn, shim: &Shim) {
    server.stop().await;
    server.lose_models();
    shim.state("127.0.0.1", "http", "down").await;
    server.restart().await.unwrap();
}

#[tokio::test]
async fn lost_models_come_back_without_a_request_most_recently_used_first() {
    let (server, shim) = with(&["a", "b", "c"], &[]).await;
    assert!(condition(&shim).await.0);
    // By their names alone it would be the last one.
    let ask = request("POST", "/v2/models/c/infer", "{}");
    assert_eq!(Client::connect(shim.http()).await.call(ask).await.0, 200);

    server.set_load_delay(Duration::from_millis(300));
    restart(&server, &shim).await;
    eventually("the condition to name what is missing", async || {
        let (holds, reason) = condition(&shim).await;
        let names = reason.rsplit(": ").next().unwrap();
        (!holds && names.split(", ").any(|model| model == "b")).then_some(())
    })
    .await;
    assert_eq!(shim.get("/readyz").await.0, 200, "it decides nothing");
    shim.metric_reaches(&outcomes("restored"), 3.0).await;
    for model in ["a", "b", "c"] {
        assert_eq!(state(&server, model), "READY");
    }
    assert_eq!(state(&server, "on-disk"), "UNAVAILABLE");
    let order = loads(&server);
    // Two at a time, each over a connection of its own: the second may be the first to arrive.
    assert!(order.len() == 3 && order[2] == "b", "{order:?}");
    assert!(condition(&shim).await.0);
    assert_eq!(shim.metric("agent_shim_server_restarts_total").await, 1.0);
    assert_eq!(
        shim.metric(r#"agent_shim_restore_models{stage="due"}"#)
            .await,
        0.0
    );
}

#[tokio::test]
async fn a_server_that_was_only_away_loads_nothing() {
    let (server, shim) = with(&["a"], &[]).await;
    server.stop().await;
    shim.state("127.0.0.1", "http", "down").await;
    server.restart().await.unwrap();
    shim.metric_reaches("agent_shim_server_restarts_total", 1.0)
        .await;
    server.wait_for_call("/v2/models/a/ready").await;
    eventually("the look to be over", async || {
        condition(&shim).await.0.then_some(())
    })
    .await;
    assert!(loads(&server).is_empty());
}

/// Until a model is loaded, MLServer lists it as UNKNOWN and answers 400 to whether it is ready.
#[tokio::test]
async fn a_model_that_the_server_loads_already_is_waited_for_and_not_loaded_again() {
    let (server, shim) = with(&["a"], &[]).await;
    server.stop().await;
    server.set_models([("a", "", "UNKNOWN")]);
    shim.state("127.0.0.1", "http", "down").await;
    let asked = |server: &StandIn| server.calls_to("/v2/models/a/ready").len();
    let before = asked(&server);
    server.restart().await.unwrap();
    // It is looked at again, a second later.
    let looked = server.wait_until(|server| asked(server) >= before + 3);
    within("three looks", looked).await;
    let (holds, reason) = condition(&shim).await;
    assert!(
        !holds && reason.ends_with("being loaded again: a"),
        "{reason}"
    );
    assert!(loads(&server).is_empty(), "it is being loaded");
    server.set_models([("a", "", "READY")]);
    eventually("the condition to hold", async || {
        condition(&shim).await.0.then_some(())
    })
    .await;
    assert!(loads(&server).is_empty());
    assert!(server.calls_to(LOAD).is_empty());
    assert_eq!(shim.metric(&outcomes("restored")).await, 0.0);
}

#[tokio::test]
async fn what_the_agent_has_unloaded_stays_unloaded() {
    let (server, shim) = with(&["a", "b"], &[]).await;
    assert_eq!(
        change(&shim, "RepositoryModelUnload", "a").await.status().0,
        0
    );
    restart(&server, &shim).await;
    shim.metric_reaches(&outcomes("restored"), 1.0).await;
    assert!(condition(&shim).await.0);
    assert_eq!(loads(&server), ["b"]);
}

#[tokio::test]
async fn a_model_that_is_unloaded_while_it_is_restored_does_not_stay() {
    let (server, shim) = with(&["a"], &[]).await;
    server.set_load_delay(Duration::from_secs(1));
    restart(&server, &shim).await;
    within(
        "the load",
        server.wait_for_call("/v2/repository/models/a/load"),
    )
    .await;
    // The stand-in does not make it wait for the load, as if it had come first.
    assert_eq!(
        change(&shim, "RepositoryModelUnload", "a").await.status().0,
        0
    );
    shim.metric_reaches(&outcomes("undone"), 1.0).await;
    eventually("the model to be gone", async || {
        (state(&server, "a") == "UNAVAILABLE").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_starts_meanwhile_ends_the_restoring_of_what_it_cannot_see() {
    let (server, shim) = with(&["a", "b", "c"], &[]).await;
    server.set_load_delay(Duration::from_secs(1));
    restart(&server, &shim).await;
    eventually("two loads", async || {
        (loads(&server).len() == 2).then_some(())
    })
    .await;
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    let answer = agent.call("RepositoryIndex", b"").await.unwrap();
    let index = RepositoryIndexResponse::decode(answer.messages[0].clone()).unwrap();
    let of = |name: &str| index.models.iter().find(|m| m.name == name).unwrap();
    // With equal use the names decide: c is the one that waits.
    let states = ["a", "b", "c", "on-disk"].map(|m| of(m).state.clone());
    assert_eq!(states, ["LOADING", "LOADING", "UNAVAILABLE", "UNAVAILABLE"]);
    shim.metric_reaches(&outcomes("restored"), 2.0).await;
    assert!(condition(&shim).await.0);
    // Two at a time, each over a connection of its own: either may be the first to arrive.
    let mut loaded = loads(&server);
    loaded.sort();
    assert_eq!(loaded, ["a", "b"]);
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_named_with_the_servers_reason() {
    let (server, shim) = with(&["a", "b"], &[]).await;
    server.set_broken(["a"]);
    restart(&server, &shim).await;
    shim.metric_reaches(&outcomes("restored"), 1.0).await;
    shim.metric_reaches(&outcomes("failed"), 1.0).await;
    let (holds, reason) = condition(&shim).await;
    assert!(
        !holds && reason.contains("a (1. try failed: 422: mlserver.errors.InvalidModelURI"),
        "{reason}"
    );
    let status = shim.status().await;
    let models = status["restoring"].as_array().unwrap();
    assert_eq!(models.len(), 1);
    assert_eq!(
        (models[0]["model"].as_str(), models[0]["failures"].as_u64()),
        (Some("a"), Some(1))
    );
}

#[tokio::test]
async fn nothing_is_restored_where_it_is_switched_off_or_only_observed() {
    for setting in [("SHIM_RESTORE_MODELS", "false"), ("SHIM_MODE", "observe")] {
        let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
        let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[setting]);
        shim.ready().await;
        shim.metric_reaches(READY, 1.0).await;
        restart(&server, &shim).await;
        shim.metric_reaches("agent_shim_server_restarts_total", 1.0)
            .await;
        shim.ready().await;
        assert!(loads(&server).is_empty());
        assert!(condition(&shim).await.0);
    }
}

/// Server and shim die together and come back; the agent, which has two models, lives on. `left` is what
/// the server has then.
async fn after_both_died(
    left: &[(&'static str, &'static str, &'static str)],
    more: &[(&str, &str)],
) -> (StandIn, Shim, FakeScheduler, FakeAgent) {
    let scheduler = FakeScheduler::start().await.unwrap();
    let (address, _port) = refused().await;
    let (at, port) = (scheduler.agent.to_string(), address.port().to_string());
    let mut settings = vec![
        ("SHIM_SCHEDULER", at.as_str()),
        ("SHIM_AGENT_PORT", port.as_str()),
        ("SHIM_CAPABILITIES_LIST", "mlserver,sklearn"),
        ("SHIM_DRAIN_TIME", "0s"),
    ];
    settings.extend(more);
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let before = || Shim::before("127.0.0.1", server.http(), server.grpc(), &settings);
    let mut shim = before();
    shim.ready().await;
    let agent = FakeAgent::start(AgentConfig::new(address, 8 << 30));
    for name in ["iris", "tree"] {
        scheduler.load(Model {
            meta: Some(MetaData { name: name.into() }),
            model_spec: Some(ModelSpec {
                memory_bytes: Some(1 << 30),
                ..Default::default()
            }),
            ..Default::default()
        });
    }
    eventually("the agent to have both", async || {
        agent.read(|seen| seen.loaded.len() == 2).then_some(())
    })
    .await;
    shim.stop();
    shim.ended().await.unwrap();
    server.stop().await;
    server.set_models(left.iter().copied());
    server.restart().await.unwrap();
    let shim = before();
    shim.ready().await;
    eventually("the agent to subscribe again", async || {
        let status = shim.status().await;
        (status["subscription"]["phase"] == "open").then_some(())
    })
    .await;
    (server, shim, scheduler, agent)
}

const LOST: [(&str, &str, &str); 3] = [
    ("iris_1", "", "UNAVAILABLE"),
    ("tree_1", "", "UNAVAILABLE"),
    ("on-disk", "", "UNAVAILABLE"),
];

#[tokio::test]
async fn what_the_agent_lists_comes_back_where_server_and_shim_have_died_together() {
    let (server, shim, _scheduler, _agent) = after_both_died(&LOST, &[]).await;
    shim.metric_reaches(&outcomes("restored"), 2.0).await;
    let mut loaded = loads(&server);
    loaded.sort();
    assert_eq!(loaded, ["iris_1", "tree_1"]);
    assert_eq!(state(&server, "on-disk"), "UNAVAILABLE");
    assert!(condition(&shim).await.0);
}

#[tokio::test]
async fn what_the_agent_lists_is_left_alone_where_the_server_has_a_model_or_it_is_switched_off() {
    let mut some = LOST;
    some[1].2 = "READY";
    for (left, switch) in [(some, "true"), (LOST, "false")] {
        let more = [("SHIM_RESTORE_MODELS", switch)];
        let (server, shim, ..) = after_both_died(&left, &more).await;
        // The index has been read: whoever wanted to load had all for it.
        eventually("the index", async || {
            let status = shim.status().await;
            (status["models"].as_array().unwrap().len() == 3).then_some(())
        })
        .await;
        tokio::task::yield_now().await;
        assert!(condition(&shim).await.0);
        assert!(loads(&server).is_empty(), "{switch}");
    }
}

/// A folder of models; gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let name = format!("agent-shim-restore-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        let folder = Folder(path);
        folder.write("1");
        folder
    }

    fn write(&self, text: &str) {
        self.write_model("iris", text);
    }

    fn write_model(&self, name: &str, text: &str) {
        let folder = self.0.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("model"), text).unwrap();
        let settings = format!(r#"{{"name":"{name}","parameters":{{"uri":"./model"}}}}"#);
        std::fs::write(folder.join("model-settings.json"), settings).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_load_of_a_ready_model_from_unchanged_files_is_answered_without_loading() {
    let folder = Folder::new("coalesce");
    let settings = [
        ("SHIM_MODELS_DIR", folder.0.to_str().unwrap()),
        ("SHIM_RESTORE_MODELS", "false"),
    ];
    let (server, shim) = pair(&settings).await;
    let load = async || change(&shim, "RepositoryModelLoad", "iris").await;
    // READY already, but from which files is not known.
    assert_eq!(load().await.status().0, 0);
    assert_eq!(server.calls_to(LOAD).len(), 1);
    let answer = load().await;
    assert_eq!(answer.status().0, 0);
    assert_eq!((answer.messages.len(), answer.messages[0].len()), (1, 0));
    assert_eq!(server.calls_to(LOAD).len(), 1);
    assert_eq!(shim.metric(&saved("ready")).await, 1.0);

    folder.write("two");
    load().await;
    assert_eq!(server.calls_to(LOAD).len(), 2, "the files have changed");
    load().await;
    assert_eq!(server.calls_to(LOAD).len(), 2);

    // Lost behind the shim's back: the server itself is asked.
    server.lose_models();
    assert_eq!(load().await.status().0, 0);
    assert_eq!(server.calls_to(LOAD).len(), 3);
    assert_eq!(state(&server, "iris"), "READY");

    restart(&server, &shim).await;
    shim.ready().await;
    assert_eq!(load().await.status().0, 0);
    assert_eq!(server.calls_to(LOAD).len(), 4);
    change(&shim, "RepositoryModelUnload", "iris").await;
    assert_eq!(load().await.status().0, 0);
    assert_eq!(server.calls_to(LOAD).len(), 5);
}

#[tokio::test]
async fn a_load_that_is_to_heal_a_model_is_made() {
    let folder = Folder::new("heal");
    let dir = folder.0.to_str().unwrap();
    let (server, shim) = pair(&[("SHIM_MODELS_DIR", dir)]).await;
    let load = async || change(&shim, "RepositoryModelLoad", "iris").await;
    load().await;
    load().await;
    assert_eq!(server.calls_to(LOAD).len(), 1);
    // READY, and its worker has lost it: an inference is answered 404, and the agent loads.
    server.set_lost(["iris"]);
    let mut caller = Client::connect(shim.http()).await;
    let infer = || request("POST", "/v2/models/iris/infer", "{}");
    assert_eq!(caller.call(infer()).await.0, 404);
    assert_eq!(load().await.status().0, 0);
    assert_eq!(server.calls_to(LOAD).len(), 2);
    assert_eq!(caller.call(infer()).await.0, 200);
    load().await;
    assert_eq!(server.calls_to(LOAD).len(), 2);
}

#[tokio::test]
async fn a_load_over_http_whose_caller_has_gone_is_known_and_restored() {
    let (server, shim) = with(&["a"], &[]).await;
    server.set_load_delay(Duration::from_secs(2));
    let path = "/v2/repository/models/left/load";
    let mut caller = Client::connect(shim.http()).await;
    {
        let mut call = Box::pin(caller.start(request("POST", path, "")));
        tokio::select! {
            _ = &mut call => panic!("the load takes two seconds"),
            _ = server.wait_for_call(path) => {}
        }
    }
    drop(caller);
    shim.metric_reaches(READY, 2.0).await;
    server.set_load_delay(Duration::ZERO);
    restart(&server, &shim).await;
    shim.metric_reaches(&outcomes("restored"), 2.0).await;
    assert_eq!(state(&server, "left"), "READY");
}

#[tokio::test]
async fn without_the_files_or_with_the_switch_off_every_load_is_made() {
    let folder = Folder::new("switch");
    for settings in [
        [
            ("SHIM_MODELS_DIR", "/nowhere"),
            ("SHIM_COALESCE_LOADS", "true"),
        ],
        [
            ("SHIM_MODELS_DIR", folder.0.to_str().unwrap()),
            ("SHIM_COALESCE_LOADS", "false"),
        ],
    ] {
        let (server, shim) = pair(&settings).await;
        for _ in 0..2 {
            change(&shim, "RepositoryModelLoad", "iris").await;
        }
        assert_eq!(server.calls_to(LOAD).len(), 2);
        // Nor is one taken for another that has been sent.
        server.set_load_delay(Duration::from_millis(300));
        let same = || change(&shim, "RepositoryModelLoad", "iris");
        tokio::join!(same(), same());
        assert_eq!(server.calls_to(LOAD).len(), 4);
    }
}

#[tokio::test]
async fn the_same_load_at_the_same_time_is_made_once_and_its_failure_is_told_to_all() {
    let folder = Folder::new("shared");
    folder.write_model("bad", "1");
    let dir = folder.0.to_str().unwrap();
    let (server, shim) = pair(&[("SHIM_MODELS_DIR", dir)]).await;
    server.set_load_delay(Duration::from_millis(500));
    server.set_broken(["bad"]);
    let same =
        ["iris", "iris", "iris", "bad", "bad"].map(|m| change(&shim, "RepositoryModelLoad", m));
    let [a, b, c, d, e] = same;
    let (a, b, c, d, e) = tokio::join!(a, b, c, d, e);
    for answer in [a, b, c] {
        assert_eq!(answer.status().0, 0);
    }
    for answer in [d, e] {
        let (code, why) = answer.status();
        assert!(code == 9 && why.contains("InvalidModelURI"), "{code} {why}");
    }
    assert_eq!(server.calls_to(LOAD).len(), 2);
    assert_eq!(shim.metric(&saved("shared")).await, 3.0);
}

#[tokio::test]
async fn a_load_goes_on_when_its_caller_has_gone_and_no_deadline_reaches_the_server() {
    let (server, shim) = pair(&[]).await;
    server.set_load_delay(Duration::from_secs(1));
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    let deadline = [("grpc-timeout", "60S")];
    let mut call = Box::pin(agent.call_with("RepositoryModelLoad", b"\x12\x03new", &deadline));
    let arrived = server.wait_for_call(LOAD);
    tokio::select! {
        _ = &mut call => panic!("the load takes a second"),
        arrived = arrived => assert_eq!(arrived.header("grpc-timeout"), None),
    }
    drop(call);
    drop(agent);
    // A load that was cancelled would leave it UNKNOWN, as in MLServer.
    eventually("the model to be loaded", async || {
        (state(&server, "new") == "READY").then_some(())
    })
    .await;
}

/// As from a client whose deadline is shorter than the load, and that asks again.
#[tokio::test]
async fn loads_of_callers_who_have_gone_do_not_pile_up_behind_the_first() {
    let (server, shim) = pair(&[("SHIM_MODELS_DIR", "/nowhere")]).await;
    server.set_load_delay(Duration::from_secs(2));
    let begun = Instant::now();
    for _ in 0..50 {
        let mut agent = grpc::Client::connect(shim.grpc()).await;
        let load = agent.call("RepositoryModelLoad", b"\x12\x03new");
        assert!(timeout(Duration::from_millis(20), load).await.is_err());
    }
    assert_eq!(server.calls_to(LOAD).len(), 1);
    // Who still waits is answered by a load that began after he asked.
    assert_eq!(
        change(&shim, "RepositoryModelLoad", "new").await.status().0,
        0
    );
    assert!(begun.elapsed() >= Duration::from_secs(4));
    assert_eq!(server.calls_to(LOAD).len(), 2);
}

/// An unload never waits for the end of a load that may never come.
#[tokio::test]
async fn an_unload_ends_the_wait_of_a_load_and_follows_it() {
    let (server, shim) = pair(&[("SHIM_MODELS_DIR", "/nowhere")]).await;
    server.set_load_delay(Duration::from_secs(3600));
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    for _ in 0..2 {
        let load = agent.call("RepositoryModelLoad", b"\x12\x03new");
        assert!(timeout(Duration::from_millis(100), load).await.is_err());
    }
    assert_eq!(server.calls_to(LOAD).len(), 1);
    let unload = agent.call("RepositoryModelUnload", b"\x12\x03new");
    let _ = within("the unload", unload).await;
    let calls = server.calls();
    let changes = calls.iter().filter(|c| c.path.contains("RepositoryModel"));
    let changes: Vec<_> = changes
        .map(|c| c.path.rsplit('/').next().unwrap())
        .collect();
    let (load, unload) = ("RepositoryModelLoad", "RepositoryModelUnload");
    assert_eq!(changes, [load, load, unload]);
}

#[tokio::test]
async fn a_stop_waits_for_a_load_whose_caller_has_gone() {
    let (server, mut shim) = pair(&[("SHIM_DRAIN_TIME", "20s")]).await;
    server.set_load_delay(Duration::from_secs(2));
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    {
        let mut call = Box::pin(agent.call("RepositoryModelLoad", b"\x12\x03new"));
        tokio::select! {
            _ = &mut call => panic!("the load takes two seconds"),
            _ = server.wait_for_call(LOAD) => {}
        }
    }
    drop(agent);
    shim.stop();
    shim.ended().await.unwrap();
    assert_eq!(state(&server, "new"), "READY");
}

#[tokio::test]
async fn the_agent_is_told_states_in_the_words_it_compares_with() {
    let (server, shim) = pair(&[]).await;
    let unchanged = [
        ("a", "v1", "READY"),
        ("b", "", "UNKNOWN"),
        ("c", "", "UNAVAILABLE"),
    ];
    server.set_models(unchanged);
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    let answer = agent.call("RepositoryIndex", b"").await.unwrap();
    let index = RepositoryIndexResponse::decode(answer.messages[0].clone()).unwrap();
    let told: Vec<(String, String)> = index
        .models
        .into_iter()
        .map(|m| (m.name + &m.version, m.state))
        .collect();
    let expected = [("av1", "READY"), ("b", "LOADING"), ("c", "UNAVAILABLE")];
    assert_eq!(told, expected.map(|(n, s)| (n.to_string(), s.to_string())));
}
