//! An injected pod is run: each container's stand-in with exactly the environment and the probes
//! of the manifest, in kubelet's order, until it is ready; and ended as kubelet ends it.
//!
//! Substituted, before the injection: the ports (free ones instead of the usual) and the
//! scheduler's host, and a shorter hold, as settings and values that an operator could write. Nothing is
//! changed in what comes out of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::{FakeScheduler, Manners};
use agent_shim::demo::standin::StandIn;
use agent_shim::inject::{self, Options, Style};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::support::pages::{Page, Pages};
use crate::support::{eventually, http, refused, within};

mod kubelet;

use kubelet::{Environment, Events, Later, Pod, Process, Runtime};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What runs on this machine in the place of the images.
struct Machine {
    server: StandIn,
    events: Events,
    /// The environments that were given, by container.
    given: Mutex<Vec<(String, Environment)>>,
}

impl Runtime for Machine {
    fn start<'a>(&'a self, name: &'a str, env: Environment) -> Later<'a, Box<dyn Process>> {
        self.given.lock().unwrap().push((name.into(), env.clone()));
        Box::pin(async move {
            let process: Box<dyn Process> = match name {
                "agent-shim" => Box::new(Shim::start(&env)),
                "mlserver" => {
                    // The port that its environment names is the one that it was given.
                    let port = |name: &str| env[name].parse::<u16>().unwrap();
                    assert_eq!(port("MLSERVER_HTTP_PORT"), self.server.http().port());
                    assert_eq!(port("MLSERVER_GRPC_PORT"), self.server.grpc().port());
                    self.server.restart().await.unwrap();
                    Box::new(Server(self.server.clone()))
                }
                "agent" => Box::new(Agent::start(&env, self.events.clone())),
                "rclone" => Box::new(Idle),
                other => panic!("no stand-in for {other}"),
            };
            process
        })
    }
}

/// The real binary.
struct Shim(Child);

impl Shim {
    fn start(env: &Environment) -> Shim {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-shim"));
        command.env_clear().envs(env).kill_on_drop(true);
        Shim(command.stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Process for Shim {
    fn terminate(&mut self) -> Later<'_, i32> {
        Box::pin(async {
            let pid = self.0.id().unwrap().to_string();
            let kill = std::process::Command::new("kill").arg(pid).status();
            assert!(kill.unwrap().success());
            self.0.wait().await.unwrap().code().unwrap()
        })
    }
}

struct Server(StandIn);

impl Process for Server {
    fn terminate(&mut self) -> Later<'_, i32> {
        Box::pin(async {
            self.0.stop().await;
            0
        })
    }
}

/// Drains at the scheduler that its environment names, and then ends.
struct Agent {
    agent: Option<FakeAgent>,
    events: Events,
}

impl Agent {
    fn start(env: &Environment, events: Events) -> Agent {
        let address = |host: &str, port: &str| -> SocketAddr {
            format!("{}:{}", env[host], env[port]).parse().unwrap()
        };
        let scheduler = address("SELDON_SCHEDULER_HOST", "SELDON_SCHEDULER_PORT");
        // What the real one takes where it is told nothing of the server's memory.
        let mut config = AgentConfig::new(scheduler, 1_000_000);
        let capabilities = env["SELDON_SERVER_CAPABILITIES"].split(',');
        config.capabilities = capabilities.map(String::from).collect();
        let port = env["SELDON_SERVER_GRPC_PORT"].parse().unwrap();
        config.inference = Some(SocketAddr::new(LOOPBACK, port));
        Agent {
            agent: Some(FakeAgent::start(config)),
            events,
        }
    }
}

impl Process for Agent {
    fn terminate(&mut self) -> Later<'_, i32> {
        Box::pin(async {
            let agent = self.agent.take().unwrap();
            let drained = agent.drain().await;
            self.events.push(format!("drained {}", drained.is_ok()));
            0
        })
    }
}

struct Idle;

impl Process for Idle {
    fn terminate(&mut self) -> Later<'_, i32> {
        Box::pin(std::future::ready(0))
    }
}

/// The pod of the webhook's tests with the ports of this test, and the options that go with it.
async fn manifest(
    style: Style,
    hooks: Option<&Pages>,
    server: &StandIn,
    scheduler: &FakeScheduler,
) -> (Value, u16) {
    let mut pod = crate::webhook::support::silent_pod();
    let set = |pod: &mut Value, container: usize, name: &str, value: String| {
        let env = pod["spec"]["containers"][container]["env"].as_array_mut();
        let mut env = env.unwrap().iter_mut();
        env.find(|e| e["name"] == name).unwrap()["value"] = json!(value);
    };
    let (http, grpc) = (server.http().port(), server.grpc().port());
    for (container, prefix) in [(1, "SELDON_SERVER"), (2, "MLSERVER")] {
        set(
            &mut pod,
            container,
            &format!("{prefix}_HTTP_PORT"),
            http.to_string(),
        );
        set(
            &mut pod,
            container,
            &format!("{prefix}_GRPC_PORT"),
            grpc.to_string(),
        );
    }
    pod["spec"]["containers"][2]["ports"][0]["containerPort"] = json!(http);
    set(&mut pod, 1, "SELDON_SCHEDULER_HOST", LOOPBACK.to_string());
    set(
        &mut pod,
        1,
        "SELDON_SCHEDULER_PORT",
        scheduler.agent.port().to_string(),
    );
    if let Some(agent) = hooks {
        let port = agent.address.port();
        let seldons = json!({ "preStop": { "httpGet": { "port": port, "path": "terminate" } } });
        for container in 0..3 {
            pod["spec"]["containers"][container]["lifecycle"] = seldons.clone();
        }
        let env = pod["spec"]["containers"][1]["env"].as_array_mut().unwrap();
        env.push(json!({ "name": "SELDON_DRAINER_PORT", "value": agent.port() }));
    }
    let mut options = Options {
        style,
        drain_hook: hooks.is_some(),
        scheduler_status: Some(scheduler.status.to_string()),
        ..Options::default()
    };
    let mut settings = vec![
        ("SHIM_ADMIN_LISTEN", LOOPBACK.to_string()),
        // The stand-in's process is visible here, and has no Python to be read in it.
        ("SHIM_SUBSCRIBE_HOLD", "1s".to_string()),
    ];
    let mut admin = 0;
    for name in [
        "SHIM_RELAY_HTTP_PORT",
        "SHIM_RELAY_GRPC_PORT",
        "SHIM_AGENT_PORT",
        "SHIM_ADMIN_PORT",
    ] {
        admin = refused().await.0.port();
        settings.push((name, admin.to_string()));
    }
    for (name, value) in settings {
        options.settings.insert(name.into(), value);
    }
    let report = inject::inject(&mut pod, &options).unwrap();
    assert!(report.changed);
    (pod, admin)
}

/// Runs a pod of this style to its end and returns what happened. With `hooks`, the agent's drain
/// port, a call runs when the pod is told to end.
async fn run(style: Style, hooks: Option<&Pages>) -> Events {
    let events = Events::default();
    let server = StandIn::start(LOOPBACK).await.unwrap();
    // It runs when kubelet starts its container; its ports stay its own.
    server.stop().await;
    let any = SocketAddr::new(LOOPBACK, 0);
    let slow = Manners {
        drain: Duration::from_millis(500),
        ..Manners::default()
    };
    let scheduler = FakeScheduler::start_at(any, any, slow).await.unwrap();
    let (manifest, admin) = manifest(style, hooks, &server, &scheduler).await;
    let machine = Machine {
        server: server.clone(),
        events: events.clone(),
        given: Mutex::default(),
    };
    let pod = within(
        "every startup probe",
        Pod::start(&manifest, &machine, events.clone()),
    )
    .await;
    eventually("the pod to be ready", async || {
        pod.is_ready().await.then_some(())
    })
    .await;
    events.push("ready");
    assert!(pod.is_live().await);

    // What the shim was put in for: the agent subscribed through it, with the server's memory.
    let gibibyte = 1u64 << 30;
    let subscribed = scheduler
        .until(Duration::from_secs(20), |store| {
            store.replicas.values().any(|r| r.total == gibibyte)
        })
        .await;
    let asked = scheduler.read(|store| format!("{:?}", store.requests));
    let address = SocketAddr::new(LOOPBACK, admin);
    let (_, status) = http::get(address, "/status").await;
    assert!(subscribed, "{asked}\n{status}");
    let given = machine.given.lock().unwrap().clone();
    let shim = &given
        .iter()
        .find(|(name, _)| name == "agent-shim")
        .unwrap()
        .1;
    assert_eq!(shim["SHIM_MEMORY_REQUEST"], gibibyte.to_string());
    assert_eq!(shim["POD_IP"], LOOPBACK.to_string());

    assert_eq!(http::get(address, "/readyz").await.0, 200);
    let call = hooks.map(|_| {
        let relay = SocketAddr::new(LOOPBACK, shim["SHIM_RELAY_HTTP_PORT"].parse().unwrap());
        let events = events.clone();
        tokio::spawn(async move {
            let (status, _) = http::get(relay, "/hang").await;
            events.push(format!("answered {status}"));
        })
    });
    if call.is_some() {
        eventually("the call to run", async || {
            let (_, metrics) = http::get(address, "/metrics").await;
            let runs = |l: &str| l == "agent_shim_relay_running_calls 1";
            metrics.lines().any(runs).then_some(())
        })
        .await;
    }
    let release = async {
        if call.is_none() {
            return;
        }
        eventually("the drain to wait for the call alone", async || {
            let (_, drain) = http::get(address, "/drain?status").await;
            let drain: Value = serde_json::from_str(&drain).ok()?;
            let waits = drain["waiting"] == 2 && drain["agent"] == "has drained";
            waits.then_some(())
        })
        .await;
        events.push("released");
        server.release();
    };
    let (ended, ()) = tokio::join!(within("the pod to end", pod.terminate()), release);
    assert!(
        ended,
        "it was killed at the end of its grace period: {:#?}",
        events.all()
    );
    if let Some(call) = call {
        call.await.unwrap();
    }
    events
}

#[tokio::test]
async fn a_native_sidecar_is_up_before_the_others_and_down_after_them() {
    let events = run(Style::Native, None).await;
    let at = |event: &str| events.at(event);
    // Its startup probe does not wait for the server, which is started only after it.
    assert!(at("start agent-shim") < at("started agent-shim"));
    for container in ["rclone", "agent", "mlserver"] {
        assert!(at("started agent-shim") < at(&format!("start {container}")));
        let end = at(&format!("end {container} 0"));
        assert!(at("ready") < end && end < at("SIGTERM agent-shim"));
    }
    assert!(at("drained true") < at("end agent 0"));
    assert_eq!(events.all().last().unwrap(), "end agent-shim 0");
}

#[tokio::test]
async fn a_plain_container_is_told_with_the_others_and_ends_after_the_agent() {
    let events = run(Style::Plain, None).await;
    let at = |event: &str| events.at(event);
    assert!(at("started agent-shim") < at("ready"));
    // It was told before the agent had drained, and carried the drain all the same.
    assert!(
        at("SIGTERM agent-shim") < at("drained true"),
        "{:?}",
        events.all()
    );
    assert!(at("end agent 0") < at("end agent-shim 0"));
}

#[tokio::test]
async fn with_the_drain_hook_a_running_call_ends_before_the_server_is_told_to() {
    for style in [Style::Native, Style::Plain] {
        let agent = Pages::start().await;
        agent.set("/terminate", Page::new(200, ""));
        let events = run(style, Some(&agent)).await;
        let at = |event: &str| events.at(event);
        assert!(at("released") < at("answered 200"), "{:?}", events.all());
        for container in ["mlserver", "agent"] {
            assert!(at("answered 200") < at(&format!("SIGTERM {container}")));
        }
        // rclone's own hook is Seldon's still, and the shim makes the agent's three calls.
        assert!(at("SIGTERM rclone") < at("released"));
        assert_eq!(agent.asked("/terminate"), 1 + 3);
        assert!(at("end mlserver 0") < at("end agent-shim 0"));
    }
}
