//! What the agent's container says, what the shim is told because of it, and what the agent is
//! told instead.

use serde_json::{Value, json};

use super::edit::{Editor, path};
use super::env::{self, Stated, variable};
use super::target::Target;
use super::{Error, Options, Warning, drain, tls};
use crate::config::scheduler::Target as HostPort;

/// What both containers are given.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Variables of the agent.
    pub(super) agent: Vec<Value>,
    /// Variables of the shim, in an order in which references can be expanded.
    pub(super) shim: Vec<Value>,
    /// The shim's mounts.
    pub(super) mounts: Vec<Value>,
    /// Volumes of the pod for them.
    pub(super) volumes: Vec<Value>,
}

impl Plan {
    /// Adds a variable of the shim; the first of a name stays.
    pub(super) fn tell(&mut self, entry: Value) {
        if !self.shim.iter().any(|e| env::name(e) == env::name(&entry)) {
            self.shim.push(entry);
        }
    }

    /// The value of another container's variable in the shim's own: as it stands, or, where it
    /// comes from elsewhere, the entry itself and a reference to it.
    fn carry(&mut self, container: &Value, name: &str) -> Option<String> {
        match env::stated(container, name) {
            Stated::No => None,
            Stated::Text(text) if env::references(text).is_empty() => Some(text.into()),
            Stated::Text(_) | Stated::From(_) => {
                for entry in env::with_references(container, &[name]) {
                    self.tell(entry);
                }
                Some(format!("$({name})"))
            }
        }
    }
}

/// Looks at the pod and decides what both containers are given.
pub(super) fn plan(
    object: &Value,
    target: &Target,
    options: &Options,
    warnings: &mut Vec<Warning>,
) -> Plan {
    let nothing = json!({});
    let agent = target.container(object, &options.agent).unwrap_or(&nothing);
    let server = target
        .container(object, &options.inference)
        .unwrap_or(&nothing);
    let mut plan = Plan::default();
    plan.mounts.extend(models(agent, options));
    ports_and_hosts(&mut plan, agent, server);
    drain_time(&mut plan, object, target, options, warnings);
    drain::plan(&mut plan, object, target, options, warnings);
    let port = |name: &str| options.port(name).to_string();
    plan.agent = vec![
        variable("SELDON_SERVER_HTTP_PORT", &port("SHIM_RELAY_HTTP_PORT")),
        variable("SELDON_SERVER_GRPC_PORT", &port("SHIM_RELAY_GRPC_PORT")),
    ];
    if options.interposes() {
        plan.agent.extend([
            variable("SELDON_SCHEDULER_HOST", &listen_host(options)),
            variable("SELDON_SCHEDULER_PORT", &port("SHIM_AGENT_PORT")),
        ]);
        let secured = tls::plan(&mut plan, agent, target, options, warnings);
        scheduler(&mut plan, agent, target, options, secured, warnings);
    }
    plan
}

/// The volume of the models as the agent has it, to see whether the files of a model have changed.
/// To write only where the shim puts a model of its own there.
fn models(agent: &Value, options: &Options) -> Option<Value> {
    let folder = std::path::Path::new(options.setting("SHIM_MODELS_DIR"));
    let at = |mount: &Value| mount["mountPath"].as_str().map(str::to_string);
    let mut mount = agent["volumeMounts"]
        .as_array()?
        .iter()
        .filter(|mount| at(mount).is_some_and(|at| folder.starts_with(at)))
        .max_by_key(|mount| at(mount).map(|at| at.len()))?
        .clone();
    if options.setting("SHIM_CAPABILITIES_PROBE") != "true" {
        mount["readOnly"] = json!(true);
    }
    Some(mount)
}

/// Where the agent finds the shim: the first address that it listens on.
fn listen_host(options: &Options) -> String {
    let first = options.setting("SHIM_RELAY_LISTEN").split(',').next();
    match first.map(str::trim).unwrap_or_default() {
        "0.0.0.0" => "127.0.0.1".into(),
        "::" => "::1".into(),
        host => host.into(),
    }
}

fn ports_and_hosts(plan: &mut Plan, agent: &Value, server: &Value) {
    for (own, of_agent, setting, default) in [
        (
            "MLSERVER_HTTP_PORT",
            "SELDON_SERVER_HTTP_PORT",
            "SHIM_INFERENCE_HTTP_PORT",
            "9000",
        ),
        (
            "MLSERVER_GRPC_PORT",
            "SELDON_SERVER_GRPC_PORT",
            "SHIM_INFERENCE_GRPC_PORT",
            "9500",
        ),
    ] {
        // The server's own word counts before what the agent was told.
        let port = plan
            .carry(server, own)
            .or_else(|| plan.carry(agent, of_agent));
        if let Some(port) = port.filter(|p| p != default) {
            plan.tell(variable(setting, &port));
        }
    }
    for (of_agent, setting, default) in [
        ("SELDON_READINESS_PORT", "SHIM_AGENT_READY_PORT", "9008"),
        ("SELDON_DRAINER_PORT", "SHIM_AGENT_DRAIN_PORT", "9007"),
    ] {
        let port = plan.carry(agent, of_agent);
        if let Some(port) = port.filter(|p| p != default) {
            plan.tell(variable(setting, &port));
        }
    }
    // The pod's own addresses are candidates already; so is loopback.
    if let Some(host) = env::text(server, "MLSERVER_HOST") {
        let bare = host.trim_matches(['[', ']']);
        let covered = match bare.parse::<std::net::IpAddr>() {
            Ok(ip) => ip.is_unspecified() || ip.is_loopback(),
            Err(_) => bare == "localhost" || !env::references(host).is_empty(),
        };
        if !covered {
            let hosts = format!("{bare},127.0.0.1,::1");
            plan.tell(variable("SHIM_INFERENCE_HOSTS", &hosts));
        }
    }
}

/// The shim must have drained before the kubelet kills it.
fn drain_time(
    plan: &mut Plan,
    object: &Value,
    target: &Target,
    options: &Options,
    warnings: &mut Vec<Warning>,
) {
    const DRAIN: u64 = 100;
    let stated = target.field(object, "terminationGracePeriodSeconds");
    let grace = match stated.and_then(Value::as_u64) {
        Some(grace) => grace,
        None if target.kind.is_fragment() => return,
        // What Kubernetes takes.
        None => 30,
    };
    if grace > DRAIN || options.settings.contains_key("SHIM_DRAIN_TIME") {
        return;
    }
    // A tenth, and at least a second, is left for ending.
    let drain = grace.saturating_sub((grace / 10).max(1)).max(1);
    plan.tell(variable("SHIM_DRAIN_TIME", &format!("{drain}s")));
    warnings.push(Warning {
        id: "short-grace",
        text: format!(
            "the pod has {grace} s to end, so the shim drains for {drain} s only; the agent may need minutes to hand its models over"
        ),
        fix: "set terminationGracePeriodSeconds to 120, as Seldon's own ServerConfig does".into(),
    });
}

fn scheduler(
    plan: &mut Plan,
    agent: &Value,
    target: &Target,
    options: &Options,
    secured: bool,
    warnings: &mut Vec<Warning>,
) {
    let given = options.settings.get("SHIM_SCHEDULER");
    let given = given.or(options.scheduler.as_ref());
    let (name, default, status) = if secured {
        ("SELDON_SCHEDULER_TLS_PORT", "9055", "9044")
    } else {
        ("SELDON_SCHEDULER_PORT", "9005", "9004")
    };
    let host = match given {
        Some(given) => {
            plan.tell(variable("SHIM_SCHEDULER", given));
            let first = given.split(',').next().unwrap_or_default().trim();
            first
                .parse::<HostPort>()
                .map(|t| first[..first.len() - t.port.to_string().len() - 1].to_string())
                .unwrap_or_default()
        }
        None => {
            let stated = plan.carry(agent, "SELDON_SCHEDULER_HOST");
            if stated.is_none() && !target.kind.is_fragment() {
                warnings.push(Warning {
                    id: "scheduler-assumed",
                    text: "the agent's container does not state SELDON_SCHEDULER_HOST, so seldon-scheduler is assumed".into(),
                    fix: "give the scheduler's address with --scheduler host:port".into(),
                });
            }
            let host = stated.unwrap_or_else(|| "seldon-scheduler".into());
            let host = match host.contains(':') && !host.starts_with('[') {
                true => format!("[{host}]"),
                false => host,
            };
            let port = plan.carry(agent, name).unwrap_or_else(|| default.into());
            plan.tell(variable("SHIM_SCHEDULER", &format!("{host}:{port}")));
            host
        }
    };
    let status = match &options.scheduler_status {
        Some(given) => given.clone(),
        None => format!("{host}:{status}"),
    };
    plan.tell(variable("SHIM_SCHEDULER_STATUS", &status));
}

/// Gives the agent its variables, and its watchdog where that is asked for.
pub(super) fn place(
    editor: &mut Editor<'_>,
    target: &Target,
    options: &Options,
    plan: &Plan,
) -> Result<(), Error> {
    let containers = target.list("containers");
    let probe = options.agent_watchdog.then(|| watchdog(options));
    let Some(agent) = target.container(editor.root(), &options.agent) else {
        // A fragment: the operator finds the container by its name and appends the variables,
        // and the later of two counts.
        let mut container = json!({ "name": options.agent, "env": plan.agent });
        if let Some(probe) = probe {
            container["livenessProbe"] = probe;
        }
        return editor.append(&containers, container);
    };
    let watched = agent.get("livenessProbe").is_some_and(|p| !p.is_null());
    let this = path(&containers, [format!("={}", options.agent).as_str()]);
    for entry in &plan.agent {
        editor.put(&path(&this, ["env"]), entry.clone())?;
    }
    if let Some(probe) = probe
        && !watched
    {
        editor.set(&path(&this, ["livenessProbe"]), probe)?;
    }
    Ok(())
}

/// The shim judges the agent; the kubelet restarts it. Slow: a restart of the agent takes its
/// models away for a while.
fn watchdog(options: &Options) -> Value {
    json!({
        "httpGet": { "path": "/livez/agent", "port": options.port("SHIM_ADMIN_PORT") },
        "periodSeconds": 15,
        "timeoutSeconds": 5,
        "failureThreshold": 4,
    })
}

impl Options {
    /// Whether the agent's way to the scheduler goes through the shim.
    pub(super) fn interposes(&self) -> bool {
        let off = self.settings.get("SHIM_SCHEDULER");
        self.interpose && off.is_none_or(|v| !v.trim().is_empty())
    }
}
