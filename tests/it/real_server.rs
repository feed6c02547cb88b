//! What is read from a running real MLServer: its processes, memory and packages, and what it
//! says itself through the probe model. Needs the virtual environment of `tests/mlserver`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_shim::capability::{self, Source, Verdict, installed, probe_model};
use agent_shim::capacity::{self, cgroup, memory};
use agent_shim::clock::Clock;
use agent_shim::config::load_from;
use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::demo::store::Store;
use agent_shim::metrics::Metrics;
use agent_shim::models::Inventory;
use agent_shim::observer::{Observer, Settings};
use agent_shim::process::{self, FoundBy, Role};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::support::{Shim, eventually, grpc};

const PROC: &str = "/proc";
const LIMIT: Duration = Duration::from_secs(30);

/// A real server in a folder of its own.
struct MlServer {
    child: Child,
    home: PathBuf,
    http: u16,
    grpc: u16,
}

impl MlServer {
    fn start(venv: &Path) -> MlServer {
        let [http, grpc, metrics] = free_ports();
        let home = std::env::temp_dir().join(format!("agent-shim-mlserver-{http}"));
        std::fs::create_dir_all(home.join("models")).unwrap();
        let log = std::fs::File::create(home.join("log")).unwrap();
        let child = Command::new(venv.join("bin/mlserver"))
            .args(["start", "models"])
            .current_dir(&home)
            .envs([
                ("MLSERVER_HOST", "127.0.0.1"),
                ("MLSERVER_HTTP_PORT", &http.to_string()),
                ("MLSERVER_GRPC_PORT", &grpc.to_string()),
                ("MLSERVER_METRICS_PORT", &metrics.to_string()),
                ("MLSERVER_DEBUG", "false"),
            ])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // Its workers outlive it when it is killed, so the whole group is.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        MlServer {
            child,
            home,
            http,
            grpc,
        }
    }

    fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }
}

impl Drop for MlServer {
    fn drop(&mut self) {
        if let Some(pid) = self.child.id() {
            let _ = std::process::Command::new("kill")
                .args(["-KILL", "--", &format!("-{pid}")])
                .status();
        }
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// Ports that were free a moment ago; all are held until the last is known.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn venv() -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/mlserver-venv");
    if venv.join("bin/mlserver").exists() {
        return Some(venv);
    }
    eprintln!(
        "SKIPPED: no MLServer at {}; tests/mlserver/setup.sh builds it",
        venv.display()
    );
    None
}

/// What the folder says, by its entries.
fn packages(venv: &Path) -> BTreeSet<String> {
    let lib = std::fs::read_dir(venv.join("lib")).unwrap();
    let versions = lib
        .flatten()
        .map(|entry| entry.path().join("site-packages"));
    let entries = versions.flat_map(|site| std::fs::read_dir(site).unwrap().flatten());
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        let stem = name.strip_suffix(".dist-info")?.to_string();
        let (name, version) = stem.split_once('-').unwrap();
        Some(format!("{} {version}", capability::table::normalise(name)))
    });
    names.collect()
}

fn shown(distributions: &[capability::Distribution]) -> BTreeSet<String> {
    let all = distributions.iter();
    all.map(|d| format!("{} {}", d.name, d.version)).collect()
}

#[tokio::test]
async fn processes_memory_and_packages_of_the_real_server_are_read() {
    let Some(venv) = venv() else {
        return;
    };
    let server = MlServer::start(&venv);
    let client = reqwest::Client::new();
    let live = format!("{}/v2/health/live", server.base());
    let started = tokio::time::timeout(2 * LIMIT, async {
        while client.get(&live).send().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(started.await.is_ok(), "it did not start:\n{}", server.log());
    let proc = Path::new(PROC);
    let ports = [server.http, server.grpc];

    // Processes. The worker comes a second after the ports.
    let tree = eventually("a worker", async || {
        process::find(proc, &ports)
            .ok()
            .filter(|s| s.workers() == 1)
    })
    .await;
    assert_eq!(Some(tree.main.pid), server.child.id());
    assert_eq!(tree.found_by, FoundBy::Cmdline);
    assert!(tree.children.iter().any(|p| p.role == Role::Tracker));
    let own = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap());
    assert_eq!(tree.main.uid, Some(own));
    assert!(process::is_running(proc, &tree.main));

    // Memory.
    let used = memory::resident(proc, &tree.pids()).unwrap();
    assert!(used.processes >= 3, "{used:?}");
    assert!((50 << 20..4 << 30).contains(&used.rss), "{used:?}");
    let pss = memory::proportional(proc, &tree.pids()).unwrap();
    assert!(
        pss > 50 << 20 && pss < used.rss * 3 / 2,
        "{pss} of {used:?}"
    );
    let node = memory::node_total(proc).unwrap();
    assert!(node > used.rss);
    let cgroup = cgroup::read(proc, tree.main.pid);
    if let Ok(cgroup) = cgroup {
        assert!(cgroup.limit.is_none_or(|limit| limit > 0), "{cgroup:?}");
        assert!(
            cgroup.current.is_none_or(|current| current > 0),
            "{cgroup:?}"
        );
    }

    // Packages.
    let installed = installed::read(proc, tree.main.pid).unwrap();
    assert_eq!(shown(&installed.distributions), packages(&venv));
    let observation = capability::Observation {
        source: Source::Distributions,
        distributions: installed.distributions.clone(),
        ..capability::Observation::default()
    };
    let policy = capability::Policy {
        mode: capability::Mode::Strict,
        list: Vec::new(),
    };
    let declared = ["sklearn", "xgboost", "gpu-a100"].map(String::from);
    let out = capability::reconcile(&declared, &observation, &policy);
    for name in [
        "sklearn",
        "scikit-learn",
        "mlserver[sklearn]",
        "numpy",
        "python",
        "gpu-a100",
    ] {
        assert_eq!(
            capability::check(name, &out.reported),
            Verdict::Satisfied,
            "{name}"
        );
    }
    assert_eq!(out.dropped, ["xgboost"]);

    // The loop over all of it.
    let http = server.http.to_string();
    let grpc = server.grpc.to_string();
    let variables = [
        ("SHIM_INFERENCE_HTTP_PORT", http.as_str()),
        ("SHIM_INFERENCE_GRPC_PORT", grpc.as_str()),
        ("SHIM_MEMORY_RESERVED", "measured"),
    ];
    let settings = Settings::of(&load_from(variables).unwrap().config);
    let inventory = Inventory {
        read_at: Some(Duration::ZERO),
        ..Inventory::default()
    };
    let (_inventory, inventory) = watch::channel(Arc::new(inventory));
    let (_probed, probed) = watch::channel(None);
    let (observer, mut observed) =
        Observer::new(settings, inventory, probed, Clock::start(), &Metrics::new());
    let running = tokio::spawn(observer.run());
    let known = observed.wait_for(|o| o.capacity.baseline.is_some());
    let known = tokio::time::timeout(LIMIT, known)
        .await
        .unwrap()
        .unwrap()
        .clone();
    running.abort();
    assert_eq!(known.server.as_ref().map(|s| s.main.pid), server.child.id());
    assert_eq!(known.capabilities.source, Source::Distributions);
    assert!(known.capabilities.settled);
    let baseline = known.capacity.baseline.unwrap();
    assert_eq!(known.capacity.reserved, capacity::Reserved::Bytes(baseline));
    assert!(known.capacity.bytes.unwrap() > 0);

    // The server's own word.
    let models = server.home.join("models");
    let answer = probe_model::probe(&client, &server.base(), &models, LIMIT).await;
    let answer = answer.unwrap_or_else(|why| panic!("{why}\n{}", server.log()));
    assert_eq!(shown(&answer.distributions), packages(&venv));
    assert_eq!(answer.left_behind, None);
    assert!(std::fs::read_dir(&models).unwrap().next().is_none());
    let index = client
        .post(format!("{}/v2/repository/index", server.base()))
        .json(&serde_json::json!({}));
    let index = index.send().await.unwrap().text().await.unwrap();
    assert_eq!(index, "[]");
    let ready = format!("{}/v2/health/ready", server.base());
    assert!(
        client
            .get(&ready)
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );

    // A crash half way leaves the model loaded, and the next run begins with removing it.
    let base = server.base();
    let crashed = probe_model::probe(&client, &base, &models, LIMIT);
    let _ = tokio::time::timeout(Duration::from_millis(15), crashed).await;
    let folder = models.join(probe_model::NAME);
    if folder.exists() {
        probe_model::clean_up(&client, &server.base(), &models, LIMIT)
            .await
            .unwrap();
    }
    assert!(!folder.exists());
    let again = probe_model::probe(&client, &server.base(), &models, LIMIT).await;
    assert_eq!(again.map(|a| a.left_behind), Ok(None));
}

#[tokio::test]
async fn the_whole_sidecar_asks_the_real_server_before_the_agent_sees_it() {
    let Some(venv) = venv() else {
        return;
    };
    let server = MlServer::start(&venv);
    let (http, grpc_port) = (server.http.to_string(), server.grpc.to_string());
    let models = server.home.join("models");
    let scheduler = FakeScheduler::start().await.unwrap();
    let scheduler_at = scheduler.agent.to_string();
    let shim = Shim::start(&[
        ("SHIM_SCHEDULER", &scheduler_at),
        ("SHIM_AGENT_PORT", "0"),
        ("SHIM_INFERENCE_HOSTS", "127.0.0.1"),
        ("SHIM_INFERENCE_HTTP_PORT", &http),
        ("SHIM_INFERENCE_GRPC_PORT", &grpc_port),
        ("SHIM_CAPABILITIES_PROBE", "true"),
        ("SHIM_MODELS_DIR", models.to_str().unwrap()),
        // The server is not killed for being slow here: it imports, on a busy machine.
        ("SHIM_OUTAGE_GRACE", "20s"),
    ]);
    // As the agent asks. The first yes comes after the probe.
    let live = async {
        loop {
            let mut agent = grpc::Client::connect(shim.grpc()).await;
            let answer = agent.call("ServerLive", b"").await.unwrap();
            if answer.messages.first().is_some_and(|m| !m.is_empty()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(3 * LIMIT, live).await;
    assert!(waited.is_ok(), "never live:\n{}", server.log());
    let answered = r#"agent_shim_capability_probes_total{outcome="answered"}"#;
    assert_eq!(shim.metric(answered).await, 1.0, "{}", server.log());
    let distributions = "agent_shim_capability_probe_distributions";
    assert_eq!(
        shim.metric(distributions).await,
        packages(&venv).len() as f64
    );
    assert!(std::fs::read_dir(&models).unwrap().next().is_none());
    let known = eventually("the capabilities", async || {
        let known = shim.status().await["capabilities"].clone();
        (known["distributions"] != 0).then_some(known)
    })
    .await;
    assert_eq!(known["distributions"], packages(&venv).len(), "{known}");

    // An agent that declares nothing of the kind is subscribed with sklearn.
    let mut config = AgentConfig::new(shim.bound.agent[0], 1 << 30);
    config.capabilities = vec!["mlserver".into()];
    let _agent = FakeAgent::start(config);
    let told = |store: &Store| {
        let mut replicas = store.replicas.values();
        replicas.any(|r| r.capabilities.iter().any(|name| name == "sklearn"))
    };
    let subscribed = scheduler.until(LIMIT, told).await;
    assert!(subscribed, "{}", shim.status().await);
}
