//! A pod with a control plane, and the doctor over it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use agent_shim::config::load_from;
use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::demo::standin::StandIn;
use agent_shim::doctor::{Diagnosis, Evidence, diagnose, gather, rules};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{Shim, eventually};

pub const GI: u64 = 1 << 30;

/// What is asked.
pub struct Visit {
    /// Settings of the container that the doctor runs in.
    pub settings: Vec<(String, String)>,
    pub admin: Vec<String>,
    pub model: Option<String>,
    pub proc: PathBuf,
    pub agent_ports: [u16; 2],
    pub timeout: Duration,
}

impl Visit {
    pub fn to(shim: &Shim) -> Visit {
        Visit {
            settings: Vec::new(),
            admin: vec![format!("http://{}", shim.admin())],
            model: None,
            proc: "/nonexistent".into(),
            agent_ports: [1, 1],
            timeout: Duration::from_secs(4),
        }
    }

    pub fn about(mut self, model: &str) -> Visit {
        self.model = Some(model.into());
        self
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Visit {
        self.settings.push((name.into(), value.to_string()));
        self
    }

    /// With the same candidates as the shim's.
    pub fn server(self, hosts: &str, http: SocketAddr, grpc: SocketAddr) -> Visit {
        self.with("SHIM_INFERENCE_HOSTS", hosts)
            .with("SHIM_INFERENCE_HTTP_PORT", http.port())
            .with("SHIM_INFERENCE_GRPC_PORT", grpc.port())
    }

    pub async fn evidence(&self) -> Evidence {
        let own = load_from(self.settings.iter().map(|(n, v)| (n.as_str(), v.as_str()))).unwrap();
        let settings = gather::Settings {
            kube: None,
            admin: self.admin.clone(),
            model: self.model.clone(),
            scheduler: None,
            scheduler_status: None,
            own,
            timeout: self.timeout,
            proc: self.proc.clone(),
            agent_ports: self.agent_ports,
        };
        gather::evidence(&settings).await
    }

    pub async fn diagnosis(&self) -> Diagnosis {
        diagnose(&self.evidence().await, rules::all())
    }

    /// Visits again until the rule is found first; then no other may claim the fault.
    pub async fn only(&self, id: &str) -> Diagnosis {
        let mut last = None;
        let found = tokio::time::timeout(crate::support::PATIENCE, async {
            loop {
                let diagnosis = self.diagnosis().await;
                let is = diagnosis.first.as_ref().is_some_and(|f| f.rule == id);
                last = Some(diagnosis.clone());
                if is && diagnosis.also.is_empty() {
                    return diagnosis;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        match found.await {
            Ok(diagnosis) => alone(diagnosis, id),
            Err(_) => panic!("{id} was not found first and alone: {last:#?}"),
        }
    }
}

/// The rule is first, and every other finding follows from it.
pub fn alone(diagnosis: Diagnosis, id: &str) -> Diagnosis {
    let first = diagnosis.first.as_ref().map(|f| f.rule.as_str());
    assert_eq!(first, Some(id), "{diagnosis:#?}");
    assert!(diagnosis.also.is_empty(), "{:#?}", diagnosis.also);
    let first = diagnosis.first.as_ref().unwrap();
    assert!(!first.text.is_empty() && !first.fix.is_empty(), "{first:?}");
    diagnosis
}

/// The rules over evidence that a test has changed.
pub fn only(evidence: &Evidence, id: &str) -> Diagnosis {
    alone(diagnose(evidence, rules::all()), id)
}

/// No rule finds anything.
pub fn nothing(evidence: &Evidence) {
    let diagnosis = diagnose(evidence, rules::all());
    let all: Vec<_> = diagnosis.findings().collect();
    assert!(all.is_empty(), "{all:#?}");
}

/// The rule warns, and nothing is broken.
pub fn warns(diagnosis: &Diagnosis, id: &str) {
    assert_eq!(diagnosis.first, None, "{diagnosis:#?}");
    let all: Vec<&str> = diagnosis.warnings.iter().map(|f| f.rule.as_str()).collect();
    assert_eq!(all, [id], "{:#?}", diagnosis.warnings);
}

/// A pod whose agent is subscribed.
pub struct Pod {
    pub scheduler: FakeScheduler,
    pub server: StandIn,
    pub shim: Shim,
    pub agent: Option<FakeAgent>,
    settings: Vec<(String, String)>,
}

pub async fn server() -> StandIn {
    StandIn::start([127, 0, 0, 1].into()).await.unwrap()
}

/// Settings of a shim in a pod with a control plane.
pub fn control(scheduler: SocketAddr, status: SocketAddr) -> Vec<(String, String)> {
    [
        ("SHIM_SCHEDULER", scheduler.to_string()),
        ("SHIM_SCHEDULER_STATUS", status.to_string()),
        ("SHIM_AGENT_PORT", "0".into()),
        ("SHIM_CAPABILITIES_LIST", "mlserver,sklearn".into()),
        ("SHIM_INDEX_INTERVAL", "1s".into()),
    ]
    .map(|(n, v)| (n.to_string(), v))
    .into()
}

pub fn shim_with(server: &StandIn, settings: &[(String, String)]) -> Shim {
    let settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    Shim::before("127.0.0.1", server.http(), server.grpc(), &settings)
}

pub fn set(settings: &mut Vec<(String, String)>, more: &[(&str, &str)]) {
    for (name, value) in more {
        settings.retain(|(n, _)| n != name);
        if !value.is_empty() {
            settings.push((name.to_string(), value.to_string()));
        }
    }
}

impl Pod {
    pub async fn start(agent: AgentConfig, more: &[(&str, &str)]) -> Pod {
        let scheduler = FakeScheduler::start().await.unwrap();
        let pod = Pod::at(scheduler, agent, more).await;
        let there = pod
            .scheduler
            .until(crate::support::PATIENCE, |s| !s.replicas.is_empty());
        assert!(there.await, "the agent has not subscribed");
        pod
    }

    /// `agent.scheduler` is replaced by the shim's address.
    pub async fn at(scheduler: FakeScheduler, agent: AgentConfig, more: &[(&str, &str)]) -> Pod {
        let server = server().await;
        let mut settings = control(scheduler.agent, scheduler.status);
        set(&mut settings, more);
        let shim = shim_with(&server, &settings);
        shim.ready().await;
        let agent = FakeAgent::start(AgentConfig {
            scheduler: shim.bound.agent[0],
            ..agent
        });
        Pod {
            scheduler,
            server,
            shim,
            agent: Some(agent),
            settings,
        }
    }

    pub fn visit(&self) -> Visit {
        let mut visit = Visit::to(&self.shim);
        visit = visit.server("127.0.0.1", self.server.http(), self.server.grpc());
        visit.settings.extend(self.settings.clone());
        visit
    }

    /// Evidence of a pod in which everything is well.
    pub async fn healthy(&self) -> Evidence {
        let visit = self.visit();
        eventually("a pod in which everything is well", async || {
            let evidence = visit.evidence().await;
            let d = diagnose(&evidence, rules::all());
            let agrees = evidence.condition("capacity-agrees");
            let registered = agrees.is_some_and(|c| c.status) && evidence.our_replica().is_some();
            (d.first.is_none() && d.warnings.is_empty() && registered).then_some(evidence)
        })
        .await
    }
}

pub fn agent(memory: u64) -> AgentConfig {
    AgentConfig::new(([127, 0, 0, 1], 1).into(), memory)
}

/// A port that takes connections and resets them at once.
pub async fn resetting(tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = stream.into_std().unwrap();
            let socket = socket2::Socket::from(stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    address
}

/// A port whose queue is full: packets are dropped.
pub async fn dropping() -> (SocketAddr, impl Drop) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(
        Duration::from_millis(200),
        tokio::net::TcpStream::connect(address),
    )
    .await
    {
        queued.push(stream);
    }
    struct Held(
        #[allow(dead_code)] TcpListener,
        #[allow(dead_code)] Vec<tokio::net::TcpStream>,
    );
    impl Drop for Held {
        fn drop(&mut self) {}
    }
    (address, Held(listener, queued))
}

/// A small HTTP server that answers everything with one status.
pub async fn answering(status: u16, tasks: &mut JoinSet<()>) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let head =
                format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
        }
    });
    port
}
