//! Gathers the evidence: the only part of the doctor with sockets and files. Everything at once,
//! everything with a limit; what does not answer is a reason, never an error.

use std::time::Duration;

use tokio::time::timeout;

use self::ports::{Ask, Purpose};
use super::evidence::{self, Evidence, PeerFact, PortFact, Vantage};
use super::rule::Need;
use crate::admin::status::{Document, around};
use crate::config::scheduler::Target;
use crate::config::{Config, Loaded};
use crate::metrics::Metrics;
use crate::registration::ask::Asker;
use crate::registration::facts::{self, SchedulerFacts};
use crate::tls;

pub mod agent;
pub mod environment;
pub mod kube;
pub mod ports;
pub mod probes;

/// What to look at.
#[derive(Debug)]
pub struct Settings {
    /// Admin URLs: the shim that is asked about, then other replicas of its server. Empty for
    /// this pod's.
    pub admin: Vec<String>,
    /// The model that is asked about.
    pub model: Option<String>,
    /// The scheduler's agent service, instead of `SHIM_SCHEDULER`.
    pub scheduler: Option<Target>,
    /// The scheduler's own API, instead of `SHIM_SCHEDULER_STATUS`.
    pub scheduler_status: Option<Target>,
    /// Settings of this container.
    pub own: Loaded,
    /// How Kubernetes is asked; `None`: not at all.
    pub kube: Option<kube::Ask>,
    /// Limit for everything together.
    pub timeout: Duration,
    /// Where processes are looked for.
    pub proc: std::path::PathBuf,
    /// Where the agent is asked, by loopback: readiness, metrics.
    pub agent_ports: [u16; 2],
}

/// The agent's ports for readiness and metrics.
pub const AGENT_PORTS: [u16; 2] = [9008, 9006];

/// The part of the whole limit that one question may take, so that its reason is known before
/// the whole is over.
const PART: f64 = 0.9;

/// Looks at everything.
pub async fn evidence(settings: &Settings) -> Evidence {
    let limit = settings.timeout.mul_f64(PART);
    let config = &settings.own.config;
    let admin = settings.admin.first().cloned().unwrap_or_else(|| {
        let port = config.admin_port;
        format!("http://127.0.0.1:{port}")
    });
    let mut evidence = Evidence {
        admin: public(&admin),
        asked_model: settings.model.clone(),
        ..Evidence::default()
    };
    // Whether this is the pod decides what else can be asked, and only the shim can tell for sure.
    // A pod's own shim answers at once or is not there; waiting long would cost the rest its time.
    let first = status(&admin, limit.mul_f64(0.4)).await;
    let rest = limit.mul_f64(0.6);
    match first {
        Ok(document) => {
            let same = document.around.place.is_some() && document.around.place == around::place();
            evidence.vantage = if same { Vantage::Pod } else { Vantage::Outside };
            evidence.status = Some(document);
        }
        Err(why) => {
            // Settings of a sidecar are set where there is one.
            let here = settings.admin.is_empty() && !settings.own.from_environment.is_empty();
            evidence.vantage = if here { Vantage::Pod } else { Vantage::Outside };
            evidence.lacks(Need::Status, why);
        }
    }
    if evidence
        .status
        .as_ref()
        .is_some_and(|s| s.subscription.is_none())
    {
        evidence.lacks(
            Need::Subscription,
            "SHIM_SCHEDULER is not set on agent-shim: the agent goes to the scheduler itself",
        );
    }
    let in_pod = evidence.vantage == Vantage::Pod;
    let probed = async {
        match in_pod {
            true => timeout(rest, probes::all(config, rest)).await.ok(),
            false => None,
        }
    };
    let agent = async {
        match in_pod {
            true => Some(agent::ask(settings.agent_ports, rest).await),
            false => None,
        }
    };
    let visible = async {
        let (proc, own) = (settings.proc.clone(), environment::of_shim(&settings.own));
        let reading = tokio::task::spawn_blocking(move || environment::visible(&proc));
        let mut all = if in_pod { own } else { Vec::new() };
        if let (true, Ok(Ok(others))) = (in_pod, timeout(rest, reading).await) {
            all.extend(others);
        }
        all
    };
    let target = settings.scheduler_status.clone();
    let target = target.or_else(|| config.scheduler.status.clone());
    let asked = scheduler(target, config, rest);
    let peers = peers(settings.admin.get(1..).unwrap_or_default(), rest);
    let targets = match &settings.scheduler {
        Some(target) => vec![target.clone()],
        None if in_pod => config.scheduler.targets.clone(),
        None => Vec::new(),
    };
    let connected = scheduler_ports(&targets, config, rest);
    let objects = objects(settings, &evidence, rest);
    let (probed, agent, visible, asked, peers, connected, objects) =
        tokio::join!(probed, agent, visible, asked, peers, connected, objects);

    match probed {
        Some(probes) => evidence.probes = probes,
        None if in_pod => evidence.lacks(Need::Server, "the probes did not end in time"),
        None => {}
    }
    match agent {
        Some(facts) => evidence.agent = Some(facts),
        None => evidence.lacks(
            Need::Agent,
            "the agent listens on loopback: run this in the pod (kubectl exec POD -c agent-shim -- agent-shim doctor)",
        ),
    }
    match objects {
        Ok(facts) => evidence.kube = Some(facts),
        Err(why) => evidence.lacks(Need::Kube, why),
    }
    evidence.environment = visible;
    match asked {
        Ok(facts) => evidence.scheduler = Some(facts),
        Err(why) => evidence.lacks(Need::Scheduler, why),
    }
    evidence.peers = peers;
    evidence.ports = connected;
    evidence
}

async fn status(admin: &str, limit: Duration) -> Result<Document, String> {
    let asked = crate::cli::status::fetch(admin, limit).await;
    let read = asked.and_then(|text| {
        serde_json::from_str(&text)
            .map_err(|error| format!("{admin}/status is not that of an agent-shim: {error}"))
    });
    // What is said may end in a ticket.
    read.map_err(|why| match credentials(admin) {
        Some(secret) => why.replace(secret, ""),
        None => why,
    })
}

/// `user:password@` of a URL.
fn credentials(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    authority.rfind('@').map(|at| &authority[..=at])
}

/// A URL as it may be shown.
fn public(url: &str) -> String {
    credentials(url).map_or_else(|| url.into(), |secret| url.replace(secret, ""))
}

/// The objects in Kubernetes, about the server and the scheduler that the shim names.
async fn objects(
    settings: &Settings,
    known: &Evidence,
    limit: Duration,
) -> Result<evidence::KubeFacts, String> {
    let Some(ask) = &settings.kube else {
        return Err("Kubernetes is asked with --kube only".into());
    };
    let mut ask = ask.clone();
    ask.timeout = limit;
    let subscription = known.status.as_ref().and_then(|s| s.subscription.as_ref());
    let named = subscription.map(|s| s.server.clone());
    ask.server = ask.server.or(named.filter(|name| !name.is_empty()));
    let targets = settings.scheduler.iter();
    let mut targets = targets.chain(&settings.own.config.scheduler.targets);
    ask.scheduler = ask.scheduler.or(targets.next().map(|t| t.host.to_string()));
    kube::gather(&ask).await
}

/// The configured ports of the scheduler, and the usual ones of its host to compare with.
async fn scheduler_ports(targets: &[Target], config: &Config, limit: Duration) -> Vec<PortFact> {
    let secured = config.scheduler.tls.is_some();
    let service = if secured {
        Purpose::AgentTls
    } else {
        Purpose::Agent
    };
    let api = if secured {
        Purpose::ApiTls
    } else {
        Purpose::Api
    };
    let ask = |purpose, target: &Target| Ask {
        purpose,
        target: target.clone(),
        secured,
    };
    let mut asks: Vec<Ask> = targets.iter().map(|t| ask(service, t)).collect();
    let mut configured = asks.len();
    if let Some(first) = targets.first() {
        asks.extend(config.scheduler.status.iter().map(|t| ask(api, t)));
        configured = asks.len();
        for purpose in Purpose::ALL {
            let usual = Ask::usual(purpose, &first.host);
            if !asks[..configured].iter().any(|a| a.target == usual.target) {
                asks.push(usual);
            }
        }
    }
    let metrics = Metrics::new();
    let tls = config.scheduler.tls.clone();
    let tls = tls.map(|files| tls::Client::new(files, &metrics));
    let all = ports::Gatherer::new(tls).within(limit).gather(&asks).await;
    let facts = all.iter().enumerate();
    facts.map(|(i, f)| f.fact(i < configured)).collect()
}

async fn peers(admins: &[String], limit: Duration) -> Vec<PeerFact> {
    let mut tasks = tokio::task::JoinSet::new();
    for admin in admins {
        let (admin, shown) = (admin.clone(), public(admin));
        tasks.spawn(async move {
            let document = status(&admin, limit).await.ok()?;
            let subscription = document.subscription?;
            Some(PeerFact {
                admin: shown,
                server: subscription.server,
                replica: subscription.replica,
                capabilities: document.capabilities.reported,
            })
        });
    }
    let mut all: Vec<PeerFact> = tasks.join_all().await.into_iter().flatten().collect();
    all.sort_by(|a, b| a.admin.cmp(&b.admin));
    all
}

async fn scheduler(
    target: Option<Target>,
    config: &Config,
    limit: Duration,
) -> Result<SchedulerFacts, String> {
    let Some(target) = target else {
        return Err(
            "no address of the scheduler's own API: set SHIM_SCHEDULER_STATUS (host:9004, or 9044 with TLS), or give --scheduler-status".into(),
        );
    };
    let metrics = Metrics::new();
    let tls = config.scheduler.tls.clone();
    let tls = tls.map(|files| tls::Client::new(files, &metrics));
    let mut asker = Asker::new(target.clone(), tls);
    let reading = async {
        let servers = asker.servers(None).await?;
        // All of them: the nearest name is told where the one that is asked about is unknown.
        let models = asker.models().await?;
        Ok::<_, String>((servers, models))
    };
    match timeout(limit, reading).await {
        Err(_) => Err(format!("{target} did not answer within {limit:.1?}")),
        Ok(Err(why)) => Err(why),
        Ok(Ok((servers, answers))) => {
            let mut models: Vec<_> = answers.iter().filter_map(facts::model).collect();
            models.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(SchedulerFacts {
                target: target.to_string(),
                servers,
                models,
                complete: true,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        for (url, shown) in [
            ("http://bob:hush@shim:9680", "http://shim:9680"),
            ("http://bob:h@sh@shim:9680/a@b", "http://shim:9680/a@b"),
            ("http://shim:9680/a@b", "http://shim:9680/a@b"),
            ("shim:9680", "shim:9680"),
        ] {
            assert_eq!(public(url), shown);
        }
    }
}
