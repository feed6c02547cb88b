//! The probe model in a running shim: run before the agent can see the server, never seen by it,
//! never in the way of its loads, and never left behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_shim::capability::probe_model::NAME;
use agent_shim::demo::standin::StandIn;
use agent_shim::proto::RepositoryIndexResponse;
use prost::Message;

use crate::support::http::{Client, get, request};
use crate::support::{Shim, eventually, grpc, pair, within};

const SAID: &str = r#"{"distributions": [["mlserver", "1.7.1"], ["mlserver-sklearn", "1.7.1"]], "cgroup": {"version": 0, "limit": "", "current": "", "peak": ""}}"#;
const LIVE: &[u8] = &[8, 1];

/// A folder of models; gone with the test.
struct Models(PathBuf);

impl Models {
    fn new(test: &str) -> Models {
        let name = format!("agent-shim-probe-model-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Models(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn folder(&self) -> PathBuf {
        self.0.join(NAME)
    }
}

impl Drop for Models {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn server() -> StandIn {
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    server.set_said(SAID);
    server
}

fn before(server: &StandIn, models_dir: &str) -> Shim {
    let settings = [
        ("SHIM_CAPABILITIES_PROBE", "true"),
        ("SHIM_MODELS_DIR", models_dir),
        ("SHIM_OUTAGE_GRACE", "5s"),
    ];
    Shim::before("127.0.0.1", server.http(), server.grpc(), &settings)
}

fn path(action: &str) -> String {
    format!("/v2/repository/models/{NAME}/{action}")
}

/// How often the probe model was loaded or unloaded.
fn asked(server: &StandIn, action: &str) -> usize {
    let calls = server.calls();
    calls.iter().filter(|c| c.is_to(&path(action))).count()
}

fn probes(outcome: &str) -> String {
    format!(r#"agent_shim_capability_probes_total{{outcome="{outcome}"}}"#)
}

async fn live(shim: &Shim) -> bool {
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    let answer = agent.call("ServerLive", b"").await.unwrap();
    answer.messages[0] == LIVE
}

async fn until_live(shim: &Shim) {
    eventually("the shim to say live", async || {
        live(shim).await.then_some(())
    })
    .await;
}

async fn index_http(shim: &Shim) -> String {
    let ask = request("POST", "/v2/repository/index", "{}");
    let (status, headers, body) = Client::connect(shim.http()).await.call(ask).await;
    assert_eq!(status, 200);
    assert_eq!(headers["content-length"], body.len().to_string().as_str());
    String::from_utf8(body.to_vec()).unwrap()
}

async fn index_grpc(shim: &Shim) -> Vec<String> {
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    let answer = agent.call("RepositoryIndex", b"").await.unwrap();
    assert_eq!(answer.status().0, 0);
    let index = RepositoryIndexResponse::decode(answer.messages[0].clone()).unwrap();
    index.models.into_iter().map(|m| m.name).collect()
}

#[tokio::test]
async fn the_agent_sees_neither_the_server_nor_the_model_before_the_probe_is_over() {
    let models = Models::new("gate");
    let server = server().await;
    server.set_load_delay(Duration::from_secs(2));
    let shim = before(&server, models.path());
    within("the load", server.wait_for_call(&path("load"))).await;
    shim.ready().await;
    shim.state("127.0.0.1", "grpc", "up").await;

    assert!(!live(&shim).await);
    let (status, why) = get(shim.http(), "/v2/health/live").await;
    assert_eq!(status, 503);
    assert!(why.contains("SHIM_CAPABILITIES_PROBE"), "{why}");
    assert!(server.models().iter().any(|m| m.name == NAME));
    let json = index_http(&shim).await;
    assert!(json.contains("iris") && !json.contains(NAME), "{json}");
    assert_eq!(index_grpc(&shim).await, ["iris"]);
    assert_eq!(asked(&server, "unload"), 0, "all of that during the load");

    // A caller with the time for it is held until then.
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    let deadline = [("grpc-timeout", "60S")];
    let held = agent.call_with("ServerLive", b"", &deadline).await.unwrap();
    assert_eq!(held.messages[0], LIVE);
    assert_eq!(asked(&server, "unload"), 1);
    assert!(!models.folder().exists());
    assert_eq!(get(shim.http(), "/v2/health/live").await.0, 200);
    assert_eq!(shim.metric(&probes("answered")).await, 1.0);
    let distributions = "agent_shim_capability_probe_distributions";
    assert_eq!(shim.metric(distributions).await, 2.0);
    // The stand-in keeps it in its index for good.
    assert!(!index_http(&shim).await.contains(NAME));
    assert_eq!(index_grpc(&shim).await, ["iris"]);
}

#[tokio::test]
async fn a_restarted_server_is_asked_again_but_never_while_a_model_is_loaded() {
    let models = Models::new("restart");
    let server = server().await;
    let shim = before(&server, models.path());
    until_live(&shim).await;

    // A load over gRPC is under way while the HTTP side comes back. It is a second one of a model
    // that serves, so the server calls itself ready, and only the relay knows.
    server.set_load_delay(Duration::from_secs(8));
    server.stop_http().await;
    shim.state("127.0.0.1", "http", "down").await;
    let to = shim.grpc();
    let load = tokio::spawn(async move {
        let mut agent = grpc::Client::connect(to).await;
        agent
            .open_with("RepositoryModelLoad", &[], &[b"\x12\x04iris"])
            .await
    });
    let method = "/inference.GRPCInferenceService/RepositoryModelLoad";
    within("the load", server.wait_for_call(method)).await;
    server.restart_http().await.unwrap();
    shim.metric_reaches(&probes("skipped"), 1.0).await;
    assert_eq!(asked(&server, "load"), 1);
    assert!(live(&shim).await);
    // It is carried to its end, also if its caller went away.
    let _ = within("the load's end", load).await;
    server.set_models([("iris", "", "READY")]);

    // The next start finds nothing under way; an agent that was told live once is not told other.
    server.set_load_delay(Duration::from_secs(1));
    server.stop_http().await;
    shim.state("127.0.0.1", "http", "down").await;
    server.restart_http().await.unwrap();
    eventually("the second probe", async || {
        (asked(&server, "load") == 2).then_some(())
    })
    .await;
    assert!(live(&shim).await);
    assert_eq!(asked(&server, "unload"), 1, "that was during the probe");
    shim.metric_reaches(&probes("answered"), 2.0).await;
    assert!(!models.folder().exists());
}

fn leave(models: &Path) {
    let folder = models.join(NAME);
    std::fs::create_dir(&folder).unwrap();
    for name in ["agent_shim_probe.py", "model-settings.json"] {
        std::fs::write(folder.join(name), "left").unwrap();
    }
}

#[tokio::test]
async fn what_a_crash_has_left_is_removed_first() {
    let models = Models::new("crash");
    leave(&models.0);
    let server = server().await;
    server.set_models([(NAME, "", "READY")]);
    let shim = before(&server, models.path());
    until_live(&shim).await;
    let calls = server.calls();
    let order: Vec<&str> = calls
        .iter()
        .filter(|c| c.path.contains(NAME))
        .map(|c| c.path.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(order, ["unload", "load", "infer", "unload"]);
    assert!(!models.folder().exists());
    assert_eq!(shim.metric(&probes("answered")).await, 1.0);
}

#[tokio::test]
async fn a_stop_in_the_middle_of_the_probe_leaves_nothing() {
    let models = Models::new("stop");
    let server = server().await;
    server.set_load_delay(Duration::from_secs(1));
    let mut shim = before(&server, models.path());
    within("the load", server.wait_for_call(&path("load"))).await;
    shim.stop();
    shim.ended().await.unwrap();
    assert_eq!(asked(&server, "unload"), 1);
    assert!(!models.folder().exists());
}

#[tokio::test]
async fn a_probe_that_cannot_be_made_does_not_keep_the_agent_waiting() {
    let server = server().await;
    let shim = before(&server, "/proc/none");
    until_live(&shim).await;
    assert_eq!(shim.metric(&probes("failed")).await, 1.0);
    assert_eq!(asked(&server, "load"), 0);
}

#[tokio::test]
async fn callers_cannot_load_or_unload_the_model_and_all_others_as_before() {
    let models = Models::new("refuse");
    let server = server().await;
    let shim = before(&server, models.path());
    until_live(&shim).await;
    let before = (asked(&server, "load"), asked(&server, "unload"));
    for action in ["load", "unload"] {
        let ask = request("POST", &path(action), "");
        let (status, _, body) = Client::connect(shim.http()).await.call(ask).await;
        assert_eq!(status, 403);
        assert!(String::from_utf8_lossy(&body).contains("reserved"));
    }
    assert_eq!((asked(&server, "load"), asked(&server, "unload")), before);
    let mut agent = grpc::Client::connect(shim.grpc()).await;
    let ours = format!("\x12\x10{NAME}");
    for method in ["RepositoryModelLoad", "RepositoryModelUnload"] {
        let (code, why) = agent.call(method, ours.as_bytes()).await.unwrap().status();
        assert_eq!(code, 7);
        assert!(why.contains("reserved"), "{why}");
        let other = agent.call(method, b"\x12\x05other").await.unwrap();
        assert_eq!(other.status().0, 0);
    }
    let ask = request("POST", "/v2/repository/models/iris/load", "");
    assert_eq!(Client::connect(shim.http()).await.call(ask).await.0, 200);
}

#[tokio::test]
async fn without_the_option_the_name_is_like_any_other() {
    let models = Models::new("off");
    leave(&models.0);
    let (server, shim) = pair(&[("SHIM_MODELS_DIR", models.path())]).await;
    server.set_models([(NAME, "", "READY")]);
    until_live(&shim).await;
    assert!(index_http(&shim).await.contains(NAME));
    assert_eq!(index_grpc(&shim).await, [NAME]);
    let ask = request("POST", &path("unload"), "");
    assert_eq!(Client::connect(shim.http()).await.call(ask).await.0, 200);
    assert!(models.folder().exists());
}
