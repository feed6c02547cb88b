//! What the operator chooses.

use super::{Error, Settings};
use crate::capacity::quantity;
use crate::config::scheduler::Target;
use crate::config::{self, Mode, VARIABLES};
use crate::nearest::nearest;

/// How the shim's container stands in the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// An init container that is restarted for ever: up before the others start, down after
    /// they ended. Kubernetes 1.29 or newer.
    Native,
    /// One container more.
    Plain,
}

/// Requests and limits of the shim's own container. A limit may be left out by an empty text; a
/// quota of the namespace may then refuse the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// CPU request.
    pub cpu_request: String,
    /// Memory request.
    pub memory_request: String,
    /// CPU limit.
    pub cpu_limit: String,
    /// Memory limit.
    pub memory_limit: String,
}

impl Default for Resources {
    /// Modest, because an HPA adds the shim's requests to the server's, and every replica pays
    /// them. The limit of memory leaves room for the buffers of some hundred connections; the
    /// limit of CPU is one that the relay reaches only above what MLServer can answer.
    fn default() -> Self {
        Resources {
            cpu_request: "10m".into(),
            memory_request: "32Mi".into(),
            cpu_limit: "500m".into(),
            memory_limit: "64Mi".into(),
        }
    }
}

/// How the shim gets at the scheduler's TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tls {
    /// As the agent's own variables say.
    #[default]
    Auto,
    /// Plain text, whatever they say.
    Off,
    /// TLS with these secrets, of which the pod mounts the files.
    Secrets {
        /// With `tls.crt`, `tls.key` and `ca.crt`: the shim's own certificate.
        client: String,
        /// With `ca.crt`: who signs the scheduler's certificate; the client's own where absent.
        server: Option<String>,
    },
}

/// Everything that can be chosen. The default is what a careful operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The shim's image.
    pub image: String,
    /// `imagePullPolicy`; left to Kubernetes where absent.
    pub pull_policy: Option<String>,
    /// Name of Seldon's agent container.
    pub agent: String,
    /// Name of the inference server's container.
    pub inference: String,
    /// Name of the shim's container.
    pub shim: String,
    /// How the container stands in the pod.
    pub style: Style,
    /// Whether the agent's way to the scheduler goes through the shim.
    pub interpose: bool,
    /// `host:port` of the scheduler's agent service; else as the agent's variables say.
    pub scheduler: Option<String>,
    /// `host:port` of the scheduler's own API; else derived from the scheduler.
    pub scheduler_status: Option<String>,
    /// TLS towards the scheduler.
    pub tls: Tls,
    /// The container's requests and limits.
    pub resources: Resources,
    /// `SHIM_MODE`.
    pub mode: Mode,
    /// More `SHIM_*` settings, which win over all that is derived.
    pub settings: Settings,
    /// Sets `shareProcessNamespace`, so that the shim can see what the server has installed.
    pub share_process_namespace: bool,
    /// Gives the agent's container a liveness probe on the shim, where it has none of its own.
    pub agent_watchdog: bool,
    /// Gives the inference server's and the agent's container a `preStop` hook on `/drain`, in
    /// place of Seldon's own, so that both are told to end when no call runs any more.
    pub drain_hook: bool,
    /// Seconds that the shim's startup probe allows.
    pub startup_seconds: u16,
    /// Namespace of Seldon's operator: the only one in which it looks for a `ServerConfig`.
    pub operator_namespace: String,
    /// Names of `ServerConfig`s that have the shim, or will have it: a `Server` of one of them
    /// gets none of its own, because the operator would put both into the pod.
    pub injected_configs: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            image: format!("agent-shim:{}", crate::VERSION),
            pull_policy: None,
            agent: "agent".into(),
            inference: "mlserver".into(),
            shim: "agent-shim".into(),
            style: Style::Native,
            interpose: true,
            scheduler: None,
            scheduler_status: None,
            tls: Tls::Auto,
            resources: Resources::default(),
            mode: Mode::Correct,
            settings: Settings::new(),
            share_process_namespace: false,
            agent_watchdog: false,
            drain_hook: false,
            startup_seconds: 60,
            operator_namespace: "seldon-mesh".into(),
            injected_configs: Vec::new(),
        }
    }
}

impl Options {
    /// Checks what can be checked without an object: names, targets, quantities, and every
    /// setting against the program's own table.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |option: &str, why: String| {
            Err(Error::Option {
                option: option.into(),
                why,
            })
        };
        if self.image.trim().is_empty() || self.image.contains(char::is_whitespace) {
            return wrong("image", format!("{:?}: expected an image", self.image));
        }
        for name in [&self.agent, &self.inference, &self.shim] {
            if !is_label(name) {
                return wrong("container", format!("{name:?}: expected a DNS label"));
            }
        }
        if self.shim == self.agent || self.shim == self.inference || self.agent == self.inference {
            return wrong("container", "expected three different names".into());
        }
        if let Some(policy) = &self.pull_policy
            && !["Always", "IfNotPresent", "Never"].contains(&policy.as_str())
        {
            let why = format!("{policy:?}: expected Always, IfNotPresent or Never");
            return wrong("pull-policy", why);
        }
        for (option, value) in [
            ("scheduler", &self.scheduler),
            ("scheduler-status", &self.scheduler_status),
        ] {
            if let Some(value) = value
                && value
                    .split(',')
                    .any(|t| t.trim().parse::<Target>().is_err())
            {
                return wrong(option, format!("{value:?}: expected host:port"));
            }
        }
        let r = &self.resources;
        for (option, request, limit) in [
            ("cpu", &r.cpu_request, &r.cpu_limit),
            ("memory", &r.memory_request, &r.memory_limit),
        ] {
            // Milli-units: parse rounds up to whole ones.
            let read = |q: &String| match q.as_str() {
                "" => Some(None),
                q => quantity::milli(q).map(Some),
            };
            match (read(request), read(limit)) {
                (Some(Some(request)), Some(Some(limit))) if request > limit => {
                    return wrong(
                        option,
                        format!("the request {request}m is above the limit {limit}m"),
                    );
                }
                (Some(_), Some(_)) => {}
                _ => {
                    let why = format!("{request:?}, {limit:?}: expected Kubernetes quantities");
                    return wrong(option, why);
                }
            }
        }
        if self.startup_seconds == 0 {
            return wrong("startup-seconds", "expected at least 1".into());
        }
        self.validate_settings()
    }

    fn validate_settings(&self) -> Result<(), Error> {
        for name in self.settings.keys() {
            if !VARIABLES.iter().any(|v| v.name == *name) {
                let near = nearest(name, VARIABLES.iter().map(|v| v.name));
                let hint = near.map_or_else(String::new, |n| format!("; did you mean {n}?"));
                return Err(Error::Option {
                    option: name.clone(),
                    why: format!("there is no such setting{hint}"),
                });
            }
        }
        // Files named by a setting are not looked for: they are in the pod, not here.
        config::load_from(self.settings.iter())
            .map_err(|problems| {
                let first = problems.0.into_iter().next();
                let (option, why) = first.map_or_else(Default::default, |p| {
                    (
                        p.variable,
                        format!("{:?}: expected {}", p.value, p.expected),
                    )
                });
                Error::Option { option, why }
            })
            .and_then(|loaded| {
                let c = &loaded.config;
                let ports = [
                    ("SHIM_RELAY_HTTP_PORT", c.relay_http_port),
                    ("SHIM_RELAY_GRPC_PORT", c.relay_grpc_port),
                    ("SHIM_AGENT_PORT", c.scheduler.agent_port),
                    ("SHIM_ADMIN_PORT", c.admin_port),
                ];
                match ports.iter().find(|(_, port)| *port == 0) {
                    Some((name, _)) => Err(Error::Option {
                        option: (*name).into(),
                        why: "0: expected a fixed port, because others dial it".into(),
                    }),
                    None => Ok(()),
                }
            })
    }

    /// A setting as it will be in the container: the operator's, else the table's default.
    pub(super) fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or_else(
            || {
                VARIABLES
                    .iter()
                    .find(|v| v.name == name)
                    .map_or("", |v| v.default)
            },
            |value| value.trim(),
        )
    }

    /// A port among the settings; validated, so there is one.
    pub(super) fn port(&self, name: &str) -> u16 {
        self.setting(name).parse().unwrap_or_default()
    }
}

/// Whether a text can name a container.
fn is_label(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(ok)
        && !text.starts_with('-')
        && !text.ends_with('-')
}
