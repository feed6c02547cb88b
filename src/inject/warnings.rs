//! What an operator should know about the pod that the shim goes into.
//!
//! Looks only; nothing here changes an object. The order is the order in which things break.

use serde_json::{Value, json};

use super::env;
use super::target::{Kind, Target};
use super::{Options, Warning};
use crate::capacity::quantity;

/// The ports that are the shim's by convention.
const RANGE: std::ops::RangeInclusive<u64> = 9600..=9699;

/// Everything there is to say about the object as it was before.
pub(super) fn look(object: &Value, target: &Target, options: &Options) -> Vec<Warning> {
    let nothing = json!({});
    let look = Look {
        object,
        target,
        options,
        agent: target.container(object, &options.agent).unwrap_or(&nothing),
        server: target
            .container(object, &options.inference)
            .unwrap_or(&nothing),
        out: Vec::new(),
    };
    look.all()
}

struct Look<'a> {
    object: &'a Value,
    target: &'a Target,
    options: &'a Options,
    agent: &'a Value,
    server: &'a Value,
    out: Vec<Warning>,
}

impl<'a> Look<'a> {
    fn all(mut self) -> Vec<Warning> {
        self.twice();
        self.namespace();
        self.owner();
        self.flags();
        self.ports();
        self.server_host();
        self.memory();
        self.capabilities();
        self.workers();
        self.duplicates();
        self.processes();
        self.quota();
        self.out
    }

    fn warn(&mut self, id: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.out.push(Warning {
            id,
            text: text.into(),
            fix: fix.into(),
        });
    }

    /// Every container of the pod, init containers included.
    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let (object, target) = (self.object, self.target);
        ["containers", "initContainers"]
            .into_iter()
            .flat_map(move |list| target.containers(object, list))
    }

    fn meta(&self, pointer: &str) -> Option<&'a Value> {
        self.object.get("metadata")?.pointer(pointer)
    }

    /// Only a `Server` that was injected before gets here with its `ServerConfig` injected too.
    fn twice(&mut self) {
        let config = self.object.pointer("/spec/serverConfig");
        if let Some(config) = config.and_then(Value::as_str)
            && self.target.kind == Kind::Server
            && self.options.injected_configs.iter().any(|c| c == config)
        {
            self.warn(
                "injected-twice",
                format!("the Server and its ServerConfig {config} both have the shim: the operator puts both into the pod, which Kubernetes then refuses"),
                "take it out of one of them with --remove",
            );
        }
    }

    fn namespace(&mut self) {
        let namespace = self.meta("/namespace").and_then(Value::as_str);
        let operator = &self.options.operator_namespace;
        if let Some(namespace) = namespace
            && self.target.kind == Kind::ServerConfig
            && namespace != operator
        {
            self.warn(
                "serverconfig-namespace",
                format!("the ServerConfig is in namespace {namespace}, and Seldon's operator looks for it in its own only, which is taken to be {operator}: a Server that names it gets no images"),
                format!("put it into {operator}, or name the operator's namespace with --operator-namespace"),
            );
        }
    }

    fn owner(&mut self) {
        if !matches!(self.target.kind, Kind::StatefulSet | Kind::Deployment) {
            return;
        }
        let owners = self.meta("/ownerReferences").and_then(Value::as_array);
        let owned = owners
            .into_iter()
            .flatten()
            .any(|o| o.get("kind").and_then(Value::as_str) == Some("Server"));
        if owned || self.meta("/labels/seldon-server-name").is_some() {
            self.warn(
                "operator-owned",
                "the object was rendered by Seldon's operator, which writes it back when it differs",
                "inject the Server or the ServerConfig, or the pods by the webhook",
            );
        }
    }

    /// A flag on the agent's command line beats its variables.
    fn flags(&mut self) {
        let interposed = self.options.interposes();
        let words: Vec<&str> = ["command", "args"]
            .iter()
            .filter_map(|key| self.agent.get(key).and_then(Value::as_array))
            .flatten()
            .filter_map(Value::as_str)
            .flat_map(str::split_whitespace)
            .collect();
        for (at, word) in words.iter().enumerate() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                continue;
            };
            let (flag, value) = match flag.split_once('=') {
                Some((flag, value)) => (flag, value),
                None => (flag, words.get(at + 1).copied().unwrap_or_default()),
            };
            let (name, matters) = match flag {
                "inference-http-port" => ("SELDON_SERVER_HTTP_PORT", true),
                "inference-grpc-port" => ("SELDON_SERVER_GRPC_PORT", true),
                "scheduler-host" => ("SELDON_SCHEDULER_HOST", interposed),
                "scheduler-port" => ("SELDON_SCHEDULER_PORT", interposed),
                "inference-host" => {
                    if !["0.0.0.0", "127.0.0.1", "localhost"].contains(&value) {
                        self.warn(
                            "agent-flag-wins",
                            format!("the agent is started with --inference-host={value}, so it does not dial the shim, which listens on loopback"),
                            "remove the flag; the shim finds the server on any address of the pod",
                        );
                    }
                    continue;
                }
                _ => continue,
            };
            if matters && value != format!("$({name})") {
                self.warn(
                    "agent-flag-wins",
                    format!("the agent is started with --{flag}={value}, which beats {name}: it bypasses the shim"),
                    format!("remove the flag from the container, or write --{flag}=$({name})"),
                );
            }
        }
    }

    fn ports(&mut self) {
        let own: Vec<u64> = [
            "SHIM_RELAY_HTTP_PORT",
            "SHIM_RELAY_GRPC_PORT",
            "SHIM_AGENT_PORT",
            "SHIM_ADMIN_PORT",
        ]
        .iter()
        .map(|name| u64::from(self.options.port(name)))
        .collect();
        for container in self.containers() {
            let ports = container.get("ports").and_then(Value::as_array);
            for port in ports.into_iter().flatten() {
                let name = env::name(container).to_string();
                let Some(port) = port.get("containerPort").and_then(Value::as_u64) else {
                    continue;
                };
                if own.contains(&port) {
                    self.warn(
                        "port-taken",
                        format!("container {name} states port {port}, on which the shim listens: whoever starts second fails"),
                        "move one of them; the shim's ports are SHIM_RELAY_HTTP_PORT, SHIM_RELAY_GRPC_PORT, SHIM_AGENT_PORT and SHIM_ADMIN_PORT",
                    );
                } else if RANGE.contains(&port) {
                    self.warn(
                        "port-in-range",
                        format!("container {name} states port {port}; 9600 to 9699 are meant for the shim"),
                        "nothing today; move it when you can",
                    );
                }
            }
        }
        if self.target.field(self.object, "hostNetwork") == Some(&Value::Bool(true)) {
            self.warn(
                "host-network",
                "the pod uses the node's network, so the shim's ports are the node's: a second such pod on a node does not start, and the relays can be reached by the node's other processes",
                "take hostNetwork off, or allow one such pod a node",
            );
        }
    }

    fn server_host(&mut self) {
        let Some(entry) = env::entry(self.server, "MLSERVER_HOST") else {
            return;
        };
        let value = entry.get("value").and_then(Value::as_str).unwrap_or("");
        let stated = entry.get("valueFrom").is_none_or(Value::is_null);
        if stated && ["", "::", "[::]"].contains(&value) {
            self.warn(
                "server-host",
                format!("MLSERVER_HOST is {value:?}: MLServer does not start its servers with it, and does not exit either"),
                "set it to 0.0.0.0, or to $(POD_IP) where IPv6 is wanted",
            );
        }
    }

    fn quantity(container: &Value, pointer: &str) -> Option<u64> {
        let value = container.pointer(pointer)?;
        match value {
            Value::String(text) => quantity::parse(text),
            value => quantity::parse(&value.to_string()),
        }
    }

    fn memory(&mut self) {
        let name = self.options.inference.clone();
        let request = Self::quantity(self.server, "/resources/requests/memory");
        let limit = Self::quantity(self.server, "/resources/limits/memory");
        match (request, limit) {
            (Some(request), Some(limit)) if limit < request => self.warn(
                "memory-limit",
                format!("container {name} has a memory limit below its request: Kubernetes refuses the pod"),
                "raise the limit",
            ),
            (None | Some(0), None | Some(0)) if !self.target.kind.is_fragment() => self.warn(
                "no-memory-request",
                format!("container {name} has no memory request: Seldon then counts 0 bytes for models, and the shim has to fall back on the cgroup or the node"),
                format!("state resources.requests.memory for {name}"),
            ),
            _ => {}
        }
    }

    fn capabilities(&mut self) {
        const NAME: &str = "SELDON_SERVER_CAPABILITIES";
        let spec = |key: &str| {
            let list = self.object.get("spec")?.get(key)?.as_array()?;
            (!list.is_empty()).then_some(key.to_string())
        };
        match self.target.kind {
            Kind::ServerConfig if env::entry(self.agent, NAME).is_none() => self.warn(
                "capabilities-ignored",
                format!("the agent of this ServerConfig does not list {NAME}, and the operator only rewrites what is listed: capabilities of a Server are ignored"),
                format!("list {NAME} in the agent's container"),
            ),
            Kind::Server => {
                let set = spec("capabilities").or_else(|| spec("extraCapabilities"));
                if let Some(key) = set
                    && env::entry(self.agent, NAME).is_some()
                {
                    self.warn(
                        "capabilities-ignored",
                        format!("the Server sets {NAME} in podSpec and has {key}, which the operator writes over it"),
                        "keep one of the two",
                    );
                }
            }
            _ => {}
        }
    }

    fn workers(&mut self) {
        const NAME: &str = "MLSERVER_PARALLEL_WORKERS";
        if let Some(workers) = env::text(self.server, NAME)
            && workers != "1"
            && env::text(self.agent, NAME) != Some(workers)
        {
            self.warn(
                "parallel-workers",
                format!("the server runs {workers} workers, and the agent, which multiplies a model's memory by its own {NAME}, has not the same"),
                format!("give the agent's container {NAME}={workers}, if the memory of your models is stated for one worker"),
            );
        }
    }

    fn duplicates(&mut self) {
        for container in self.containers() {
            let twice = env::duplicates(container);
            if !twice.is_empty() {
                self.warn(
                    "duplicate-env",
                    format!(
                        "container {} states {} more than once; the last one counts",
                        env::name(container),
                        twice.join(", ")
                    ),
                    "remove the earlier ones",
                );
            }
        }
    }

    fn processes(&mut self) {
        if !self.options.share_process_namespace {
            return;
        }
        if self.target.field(self.object, "hostPID") == Some(&Value::Bool(true)) {
            self.warn(
                "host-pid",
                "the pod uses the node's processes, so it cannot share a namespace of its own; the shim is given none",
                "take hostPID off",
            );
        }
        let pod = self.target.field(self.object, "securityContext");
        let user = |context: Option<&Value>| context?.get("runAsUser")?.as_u64();
        let server = user(self.server.get("securityContext")).or_else(|| user(pod));
        if server == Some(0) {
            self.warn(
                "other-user",
                "the server runs as root and the shim does not, so it may not look into the server's processes",
                "let the server run as another user, or give the shim SHIM_CAPABILITIES_LIST",
            );
        }
    }

    /// A ResourceQuota refuses a pod unless every container states everything.
    fn quota(&mut self) {
        if self.target.kind.is_fragment() {
            return;
        }
        let lacking: Vec<String> = self
            .containers()
            .filter_map(|container| {
                let missing: Vec<String> = [
                    ("requests", "cpu"),
                    ("requests", "memory"),
                    ("limits", "cpu"),
                    ("limits", "memory"),
                ]
                .iter()
                .filter(|(part, resource)| {
                    let at = |part| container.pointer(&format!("/resources/{part}/{resource}"));
                    // A limit alone is taken for the request too.
                    at(*part).is_none() && (*part == "limits" || at("limits").is_none())
                })
                .map(|(part, resource)| format!("{part}.{resource}"))
                .collect();
                let name = env::name(container);
                (!missing.is_empty()).then(|| format!("{name} ({})", missing.join(", ")))
            })
            .collect();
        let r = &self.options.resources;
        let own = [
            &r.cpu_request,
            &r.memory_request,
            &r.cpu_limit,
            &r.memory_limit,
        ];
        let own = own.iter().any(|q| q.is_empty());
        if !lacking.is_empty() || own {
            let mut lacking = lacking;
            if own {
                lacking.push(format!("{} (as asked for)", self.options.shim));
            }
            self.warn(
                "incomplete-resources",
                format!("not every container states requests and limits for cpu and memory: {}", lacking.join("; ")),
                "in a namespace with a ResourceQuota or without a LimitRange state them, or the pod is refused; elsewhere nothing",
            );
        }
    }
}
