//! As much of kubelet as a pod meets: environment from the manifest, probes as written, the
//! order of starting and of stopping.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_shim::capacity::quantity;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::http::Client;

/// The pod's address.
pub const POD_IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub type Environment = BTreeMap<String, String>;
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What stands for a container's process.
pub trait Process: Send {
    /// SIGTERM; completes when the process has ended, with its exit code.
    fn terminate(&mut self) -> Later<'_, i32>;
}

/// Makes the process of a container: by its name, with its environment.
pub trait Runtime: Sync {
    fn start<'a>(&'a self, name: &'a str, env: Environment) -> Later<'a, Box<dyn Process>>;
}

/// What happened, in order.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Vec<String>>>);

impl Events {
    pub fn push(&self, event: impl Into<String>) {
        self.0.lock().unwrap().push(event.into());
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// The place of an event.
    #[track_caller]
    pub fn at(&self, event: &str) -> usize {
        let all = self.all();
        let at = all.iter().position(|e| e == event);
        at.unwrap_or_else(|| panic!("{event:?} is not in {all:#?}"))
    }
}

/// A running pod.
pub struct Pod {
    manifest: Value,
    /// Ordinary containers.
    main: Vec<(Value, Box<dyn Process>)>,
    /// Native sidecars, in the order of their start.
    sidecars: Vec<(Value, Box<dyn Process>)>,
    pub events: Events,
}

impl Pod {
    /// Native sidecars one after the other, each after the startup probe of the one before; then
    /// all ordinary containers at once, each with its startup probe.
    pub async fn start(manifest: &Value, runtime: &impl Runtime, events: Events) -> Pod {
        let mut pod = Pod {
            manifest: manifest.clone(),
            main: Vec::new(),
            sidecars: Vec::new(),
            events,
        };
        for container in list(manifest, "initContainers") {
            assert_eq!(container["restartPolicy"], "Always", "no others here");
            let process = pod.run(container, runtime).await;
            pod.sidecars.push((container.clone(), process));
            pod.startup(container).await;
        }
        for container in list(manifest, "containers") {
            let process = pod.run(container, runtime).await;
            pod.main.push((container.clone(), process));
        }
        for container in list(manifest, "containers") {
            pod.startup(container).await;
        }
        pod
    }

    async fn run(&self, container: &Value, runtime: &impl Runtime) -> Box<dyn Process> {
        let name = container["name"].as_str().unwrap();
        self.events.push(format!("start {name}"));
        let env = environment(&self.manifest, container);
        runtime.start(name, env).await
    }

    async fn startup(&self, container: &Value) {
        let name = container["name"].as_str().unwrap();
        let Some(probe) = container.get("startupProbe") else {
            return;
        };
        let failures = probe["failureThreshold"].as_u64().unwrap_or(3);
        for _ in 0..failures {
            if passes(container, probe).await {
                self.events.push(format!("started {name}"));
                return;
            }
            sleep(period(probe)).await;
        }
        panic!("kubelet would restart {name}: its startup probe failed {failures} times");
    }

    /// Whether every readiness probe passes now.
    pub async fn is_ready(&self) -> bool {
        for (container, _) in self.sidecars.iter().chain(&self.main) {
            if let Some(probe) = container.get("readinessProbe")
                && !passes(container, probe).await
            {
                return false;
            }
        }
        true
    }

    /// Whether every liveness probe passes now: where one does not, kubelet would restart.
    pub async fn is_live(&self) -> bool {
        for (container, _) in self.sidecars.iter().chain(&self.main) {
            if let Some(probe) = container.get("livenessProbe")
                && !passes(container, probe).await
            {
                return false;
            }
        }
        true
    }

    /// `preStop`, then SIGTERM to all ordinary containers at once; when they have ended, to the
    /// sidecars, the last first. False where the grace period was not enough.
    pub async fn terminate(self) -> bool {
        let grace = self.manifest["spec"]["terminationGracePeriodSeconds"].as_u64();
        let grace = Duration::from_secs(grace.unwrap_or(30));
        let (main, sidecars, events) = (self.main, self.sidecars, self.events);
        let all = async {
            let mut stopping = JoinSet::new();
            for (container, process) in main {
                stopping.spawn(stop(container, process, events.clone()));
            }
            while let Some(ended) = stopping.join_next().await {
                ended.unwrap();
            }
            for (container, process) in sidecars.into_iter().rev() {
                stop(container, process, events.clone()).await;
            }
        };
        timeout(grace, all).await.is_ok()
    }
}

async fn stop(container: Value, mut process: Box<dyn Process>, events: Events) {
    let name = container["name"].as_str().unwrap();
    if let Some(hook) = container.pointer("/lifecycle/preStop") {
        // Bounded by the grace period only.
        let answered = answers(&container, hook, Duration::from_secs(3600)).await;
        assert!(answered, "the preStop of {name}");
    }
    events.push(format!("SIGTERM {name}"));
    let code = process.terminate().await;
    events.push(format!("end {name} {code}"));
}

fn list<'a>(manifest: &'a Value, list: &str) -> &'a [Value] {
    let list = manifest["spec"][list].as_array();
    list.map_or(&[], Vec::as_slice)
}

fn period(probe: &Value) -> Duration {
    Duration::from_secs(probe["periodSeconds"].as_u64().unwrap_or(10))
}

async fn passes(container: &Value, probe: &Value) -> bool {
    let limit = Duration::from_secs(probe["timeoutSeconds"].as_u64().unwrap_or(1));
    answers(container, probe, limit).await
}

/// An `httpGet` from the node to the pod's address.
async fn answers(container: &Value, probe: &Value, limit: Duration) -> bool {
    let get = &probe["httpGet"];
    let port = match &get["port"] {
        Value::Number(port) => port.as_u64().unwrap(),
        name => {
            let ports = container["ports"].as_array().unwrap();
            let port = ports.iter().find(|p| p["name"] == *name).unwrap();
            port["containerPort"].as_u64().unwrap()
        }
    };
    let to = SocketAddr::new(POD_IP, u16::try_from(port).unwrap());
    let asked = timeout(limit, async {
        // Connecting first: the helper of the tests expects somebody there.
        drop(tokio::net::TcpStream::connect(to).await.ok()?);
        // A path may stand without its slash, as Seldon's does.
        let path = get["path"].as_str().unwrap().trim_start_matches('/');
        Some(Client::connect(to).await.get(&format!("/{path}")).await.0)
    });
    matches!(asked.await, Ok(Some(200..=399)))
}

/// The variables of a container as kubelet makes them, and no others.
fn environment(manifest: &Value, container: &Value) -> Environment {
    let mut env = Environment::new();
    for entry in container["env"].as_array().into_iter().flatten() {
        let name = entry["name"].as_str().unwrap();
        let source = &entry["valueFrom"];
        let value = if let Some(path) = source["fieldRef"]["fieldPath"].as_str() {
            match path {
                "status.podIP" | "status.podIPs" => POD_IP.to_string(),
                "metadata.name" => manifest["metadata"]["name"].as_str().unwrap().into(),
                other => panic!("{name}: {other} is not known here"),
            }
        } else if let Some(of) = source["resourceFieldRef"].as_object() {
            let (kind, resource) = of["resource"].as_str().unwrap().split_once('.').unwrap();
            let mut all = list(manifest, "containers").iter();
            let from = all.find(|c| c["name"] == of["containerName"]).unwrap();
            let resources = &from["resources"];
            let stated = resources[kind][resource].as_str();
            // Kubernetes makes a limit without a request the request, too.
            let stated = stated.or(resources["limits"][resource].as_str());
            quantity::parse(stated.unwrap()).unwrap().to_string()
        } else {
            expand(entry["value"].as_str().unwrap_or_default(), &env)
        };
        env.insert(name.into(), value);
    }
    env
}

/// `$(NAME)` of variables before it; others stay as they are.
fn expand(text: &str, env: &Environment) -> String {
    let mut text = text.to_string();
    for (name, value) in env {
        text = text.replace(&format!("$({name})"), value);
    }
    text
}
