//! The environment, read once: raw strings through `envy`, then one validated [`Config`].
//!
//! Owns the table of variables ([`VARIABLES`]); README, `agent-shim config` and the warnings about
//! unknown names are made from it. Nothing else in the crate reads the environment.
//! All problems are collected before any is reported, so an operator sees every mistake at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::capability;
use crate::capacity::{self, Basis, Fraction, Reserve, quantity};
use crate::endpoint::{Candidate, Host, Protocol, in_order};
use crate::health::Thresholds;
use crate::nearest::nearest;

pub mod scheduler;

use scheduler::{SELDON_VARIABLES, SchedulerConfig, Target, TlsMode, tls_files};

/// What the shim may do to the traffic it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Answers health calls, corrects what is wrong.
    Correct,
    /// Relays every byte as it came and only measures.
    Observe,
}

impl Mode {
    /// The name used in the environment, in JSON and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Correct => "correct",
            Mode::Observe => "observe",
        }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How candidates are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeConfig {
    /// Time between two probes of one candidate once it has answered.
    pub interval: Duration,
    /// Limit for opening a connection, of probes and of relayed callers alike.
    pub connect_timeout: Duration,
    /// Limit for one answer once connected.
    pub timeout: Duration,
    /// When states flip.
    pub thresholds: Thresholds,
}

/// How the server's memory is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryConfig {
    /// What counts, and what is kept free.
    pub policy: capacity::Policy,
    /// The inference container's request, from the downward API.
    pub request: Option<u64>,
    /// Its limit, from the downward API; the node's allocatable memory where it has none.
    pub limit: Option<u64>,
}

/// How the server's capabilities are learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapabilitiesConfig {
    /// What is done with the agent's list, and the operator's own.
    pub policy: capability::Policy,
    /// A list that the pod itself writes.
    pub file: Option<PathBuf>,
    /// Whether the server may be asked through a model of the shim's.
    pub probe: bool,
    /// Where the shim would put that model.
    pub models_dir: PathBuf,
}

/// The validated settings of `agent-shim run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `SHIM_MODE`.
    pub mode: Mode,
    /// Candidate hosts in order: the configured ones, then the pod's own addresses.
    pub hosts: Vec<Host>,
    /// The server's HTTP port.
    pub http_port: u16,
    /// The server's gRPC port.
    pub grpc_port: u16,
    /// Addresses of the two relay listeners.
    pub relay_listen: Vec<IpAddr>,
    /// Port of the HTTP relay; 0 takes a free one.
    pub relay_http_port: u16,
    /// Port of the gRPC relay; 0 takes a free one.
    pub relay_grpc_port: u16,
    /// Addresses of the admin listener.
    pub admin_listen: Vec<IpAddr>,
    /// Port of the admin listener; 0 takes a free one.
    pub admin_port: u16,
    /// Probing.
    pub probe: ProbeConfig,
    /// How long a preferred candidate must have been up before it is used again.
    pub failback_hold: Duration,
    /// How long after the last answer the server still counts as live.
    pub outage_grace: Duration,
    /// How long a gRPC `ServerLive` whose caller has the time is held instead of answered with no.
    pub live_hold: Duration,
    /// Limit for a caller's first bytes and for every header that it has begun to send.
    pub header_timeout: Duration,
    /// How long connections are carried on after SIGTERM.
    pub drain_time: Duration,
    /// Time between two looks at the repository index without an event.
    pub index_interval: Duration,
    /// Capacity.
    pub memory: MemoryConfig,
    /// Capabilities.
    pub capabilities: CapabilitiesConfig,
    /// The scheduler, and the agent's way to it.
    pub scheduler: SchedulerConfig,
    /// Log filter.
    pub log: LogFilter,
    /// Log format.
    pub log_format: LogFormat,
}

/// A log filter that has been checked: a level, or a comma list of `target=level`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The directives as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Config {
    /// The candidates of one protocol, in order.
    pub fn candidates(&self, protocol: Protocol) -> Vec<Candidate> {
        let port = match protocol {
            Protocol::Http => self.http_port,
            Protocol::Grpc => self.grpc_port,
        };
        self.hosts
            .iter()
            .map(|host| Candidate {
                host: host.clone(),
                port,
                protocol,
            })
            .collect()
    }
}

/// One variable of the environment.
#[derive(Debug)]
pub struct Variable {
    /// The name.
    pub name: &'static str,
    /// The default as written in the environment; empty where there is none.
    pub default: &'static str,
    /// What is accepted.
    pub accepts: &'static str,
    /// The effect, in one line.
    pub effect: &'static str,
    show: fn(&Config) -> String,
}

const DURATION: &str = "a duration with a unit, such as 500ms, 10s or 5m, from 10ms to 24h";
const DURATION_OR_ZERO: &str = "0s, or a duration with a unit, such as 500ms, 10s or 5m, up to 24h";
const COUNT: &str = "a whole number from 1 to 100";
const PORT: &str = "a port from 1 to 65535";
const LISTEN_PORT: &str = "a port from 1 to 65535, or 0 for any free one";
const ADDRESSES: &str = "IP addresses separated by commas";
const HOSTS: &str = "hosts separated by commas: IPv4, IPv6 with or without brackets, or names";
const TARGET: &str = "host:port, an IPv6 address in brackets; empty for none";
const FILE: &str = "a path; empty for none";
const LOG: &str = "a level (error, warn, info, debug, trace, off) or a comma list of target=level";
const QUANTITY: &str = "bytes as a Kubernetes quantity, such as 4Gi, 512M or 1073741824";
const AMOUNT: &str = "bytes as a Kubernetes quantity above 0, such as 4Gi, 512M or 1073741824";
const RESERVED: &str =
    "a Kubernetes quantity such as 512Mi, a percentage from 0% to 99%, or measured";
const NAMES: &str = "names separated by commas";
const PATH: &str = "an absolute path";

/// Every variable that the shim reads under its own prefix, in the order of the README.
pub const VARIABLES: &[Variable] = &[
    Variable {
        name: "SHIM_MODE",
        default: "correct",
        accepts: "correct or observe",
        effect: "`correct` answers health calls itself; `observe` relays every byte as it came and only measures",
        show: |c| c.mode.as_str().into(),
    },
    Variable {
        name: "SHIM_INFERENCE_HOSTS",
        default: "127.0.0.1,::1",
        accepts: HOSTS,
        effect: "where the inference server may be, in order of preference; the addresses in `POD_IPS` and `POD_IP` are appended when set",
        show: |c| join(&c.hosts),
    },
    Variable {
        name: "SHIM_INFERENCE_HTTP_PORT",
        default: "9000",
        accepts: PORT,
        effect: "the server's HTTP port",
        show: |c| c.http_port.to_string(),
    },
    Variable {
        name: "SHIM_INFERENCE_GRPC_PORT",
        default: "9500",
        accepts: PORT,
        effect: "the server's gRPC port",
        show: |c| c.grpc_port.to_string(),
    },
    Variable {
        name: "SHIM_RELAY_LISTEN",
        default: "127.0.0.1",
        accepts: ADDRESSES,
        effect: "addresses on which the relays listen",
        show: |c| join(&c.relay_listen),
    },
    Variable {
        name: "SHIM_RELAY_HTTP_PORT",
        default: "9600",
        accepts: LISTEN_PORT,
        effect: "the HTTP relay: give it to the agent as `SELDON_SERVER_HTTP_PORT`",
        show: |c| c.relay_http_port.to_string(),
    },
    Variable {
        name: "SHIM_RELAY_GRPC_PORT",
        default: "9650",
        accepts: LISTEN_PORT,
        effect: "the gRPC relay: give it to the agent as `SELDON_SERVER_GRPC_PORT`",
        show: |c| c.relay_grpc_port.to_string(),
    },
    Variable {
        name: "SHIM_ADMIN_LISTEN",
        default: "::",
        accepts: ADDRESSES,
        effect: "addresses of the admin port; `::` takes IPv4 too, and becomes `0.0.0.0` where IPv6 is off",
        show: |c| join(&c.admin_listen),
    },
    Variable {
        name: "SHIM_ADMIN_PORT",
        default: "9680",
        accepts: LISTEN_PORT,
        effect: "health, metrics and status",
        show: |c| c.admin_port.to_string(),
    },
    Variable {
        name: "SHIM_PROBE_INTERVAL",
        default: "1s",
        accepts: DURATION,
        effect: "time between two probes of a candidate; 100ms until the first answer and while a fall is being confirmed",
        show: |c| show(c.probe.interval),
    },
    Variable {
        name: "SHIM_PROBE_CONNECT_TIMEOUT",
        default: "500ms",
        accepts: DURATION,
        effect: "limit for opening a connection to a candidate, for probes and relayed callers; not above the interval",
        show: |c| show(c.probe.connect_timeout),
    },
    Variable {
        name: "SHIM_PROBE_TIMEOUT",
        default: "1s",
        accepts: DURATION,
        effect: "limit for one answer to a probe; not above the interval",
        show: |c| show(c.probe.timeout),
    },
    Variable {
        name: "SHIM_PROBE_RISE",
        default: "1",
        accepts: COUNT,
        effect: "answers in a row that make a candidate `up`",
        show: |c| c.probe.thresholds.rise.to_string(),
    },
    Variable {
        name: "SHIM_PROBE_FALL",
        default: "3",
        accepts: COUNT,
        effect: "failures in a row that end `up`",
        show: |c| c.probe.thresholds.fall.to_string(),
    },
    Variable {
        name: "SHIM_FAILBACK_HOLD",
        default: "10s",
        accepts: DURATION_OR_ZERO,
        effect: "how long a preferred candidate must have been up before it is used again",
        show: |c| show(c.failback_hold),
    },
    Variable {
        name: "SHIM_OUTAGE_GRACE",
        default: "20s",
        accepts: DURATION_OR_ZERO,
        effect: "after the last answer of the server: how long the agent is still told `live`, and how long silence is `stalled` before it is `down`",
        show: |c| show(c.outage_grace),
    },
    Variable {
        name: "SHIM_LIVE_HOLD",
        default: "50s",
        accepts: DURATION_OR_ZERO,
        effect: "a gRPC `ServerLive` that would be answered `false`, from a caller whose deadline leaves more than 10s, is held for so long (5s less than the deadline at most) and answered `true` as soon as the server is up; `0s` answers at once",
        show: |c| show(c.live_hold),
    },
    Variable {
        name: "SHIM_HEADER_TIMEOUT",
        default: "30s",
        accepts: DURATION,
        effect: "limit for a caller's first bytes, and for each header it has begun to send; an HTTP/1.1 connection that is idle for longer is closed",
        show: |c| show(c.header_timeout),
    },
    Variable {
        name: "SHIM_DRAIN_TIME",
        default: "100s",
        accepts: DURATION_OR_ZERO,
        effect: "after SIGTERM: how long old and new connections are carried on; keep it below the pod's grace period",
        show: |c| show(c.drain_time),
    },
    Variable {
        name: "SHIM_INDEX_INTERVAL",
        default: "5m",
        accepts: DURATION,
        effect: "time between two looks at the server's repository index when nothing has happened (each look freezes the server for about 2 ms a model)",
        show: |c| show(c.index_interval),
    },
    Variable {
        name: "SHIM_MEMORY_BYTES",
        default: "",
        accepts: AMOUNT,
        effect: "the server's memory for models, whatever the agent and the container say",
        show: |c| shown(c.memory.policy.explicit),
    },
    Variable {
        name: "SHIM_MEMORY_BASIS",
        default: "auto",
        accepts: "request, limit or auto",
        effect: "which figure of the container counts; `auto` is the request where it is set, as Seldon takes it, else the limit, and leaves the agent's own figure where it is plausible",
        show: |c| c.memory.policy.basis.as_str().into(),
    },
    Variable {
        name: "SHIM_MEMORY_RESERVED",
        default: "0",
        accepts: RESERVED,
        effect: "kept free of models, whichever figure is taken; `measured` is what the server's processes use with no model loaded",
        show: |c| c.memory.policy.reserve.to_string(),
    },
    Variable {
        name: "SHIM_MEMORY_REQUEST",
        default: "",
        accepts: QUANTITY,
        effect: "the inference container's memory request, from the downward API",
        show: |c| shown(c.memory.request),
    },
    Variable {
        name: "SHIM_MEMORY_LIMIT",
        default: "",
        accepts: QUANTITY,
        effect: "the inference container's memory limit, from the downward API",
        show: |c| shown(c.memory.limit),
    },
    Variable {
        name: "SHIM_MEMORY_NODE_FRACTION",
        default: "0.8",
        accepts: "a number above 0 and up to 1, with at most three digits after the point",
        effect: "the part of the node's memory that is taken where the container has neither request nor limit",
        show: |c| c.memory.policy.node_fraction.to_string(),
    },
    Variable {
        name: "SHIM_CAPABILITIES",
        default: "add",
        accepts: "add, strict, declared or explicit",
        effect: "what is done with the agent's list: `add` what is installed, `strict` also drops what is known not to be, `declared` leaves it, `explicit` sends `SHIM_CAPABILITIES_LIST` instead",
        show: |c| c.capabilities.policy.mode.as_str().into(),
    },
    Variable {
        name: "SHIM_CAPABILITIES_LIST",
        default: "",
        accepts: NAMES,
        effect: "what the server can run, instead of looking",
        show: |c| join(&c.capabilities.policy.list),
    },
    Variable {
        name: "SHIM_CAPABILITIES_FILE",
        default: "",
        accepts: PATH,
        effect: "a file that says what the server has, as JSON or as `pip freeze` prints it; used where the server's own files cannot be read",
        show: |c| shown(c.capabilities.file.as_deref().map(Path::display)),
    },
    Variable {
        name: "SHIM_CAPABILITIES_PROBE",
        default: "false",
        accepts: "true or false",
        effect: "whether the server may be asked what it has through a tiny model, which is put into `SHIM_MODELS_DIR`, loaded, asked once and removed",
        show: |c| c.capabilities.probe.to_string(),
    },
    Variable {
        name: "SHIM_MODELS_DIR",
        default: "/mnt/agent/models",
        accepts: PATH,
        effect: "the folder of models that the server and the agent share",
        show: |c| c.capabilities.models_dir.display().to_string(),
    },
    Variable {
        name: "SHIM_SCHEDULER",
        default: "",
        accepts: "host:port separated by commas, an IPv6 address in brackets; empty for none",
        effect: "the scheduler's agent service (9005, or 9055 with TLS), in order of preference; where it is empty the interposer is off and the agent goes to the scheduler itself",
        show: |c| join(&c.scheduler.targets),
    },
    Variable {
        name: "SHIM_SCHEDULER_STATUS",
        default: "",
        accepts: TARGET,
        effect: "the scheduler's own API (9004, or 9044 with TLS), to read back what it believes; where it is empty that is not checked",
        show: |c| {
            c.scheduler
                .status
                .as_ref()
                .map_or_else(String::new, Target::to_string)
        },
    },
    Variable {
        name: "SHIM_SCHEDULER_TLS",
        default: "auto",
        accepts: "auto, on or off",
        effect: "whether the scheduler is spoken to with TLS; `auto`: where `CONTROL_PLANE_SECURITY_PROTOCOL` is `SSL` or a CA file is given",
        show: |c| c.scheduler.tls_mode.as_str().into(),
    },
    Variable {
        name: "SHIM_SCHEDULER_CA_FILE",
        default: "",
        accepts: FILE,
        effect: "PEM file of the authorities that sign the scheduler's certificate; else `CONTROL_PLANE_SERVER_TLS_CA_LOCATION`, `CONTROL_PLANE_CLIENT_TLS_CA_LOCATION`; read again when it changes",
        show: |c| c.scheduler.files[0].clone(),
    },
    Variable {
        name: "SHIM_SCHEDULER_CERT_FILE",
        default: "",
        accepts: FILE,
        effect: "PEM file of the shim's own certificate; else `CONTROL_PLANE_CLIENT_TLS_CRT_LOCATION`; read again when it changes",
        show: |c| c.scheduler.files[1].clone(),
    },
    Variable {
        name: "SHIM_SCHEDULER_KEY_FILE",
        default: "",
        accepts: FILE,
        effect: "PEM file of its key; else `CONTROL_PLANE_CLIENT_TLS_KEY_LOCATION`; read again when it changes",
        show: |c| c.scheduler.files[2].clone(),
    },
    Variable {
        name: "SHIM_AGENT_PORT",
        default: "9605",
        accepts: LISTEN_PORT,
        effect: "the agent's way to the scheduler: give it to the agent as `SELDON_SCHEDULER_PORT`, with `SELDON_SCHEDULER_HOST` as in `SHIM_RELAY_LISTEN`",
        show: |c| c.scheduler.agent_port.to_string(),
    },
    Variable {
        name: "SHIM_SUBSCRIBE_HOLD",
        default: "60s",
        accepts: DURATION_OR_ZERO,
        effect: "how long a subscription waits for the server to be usable and its capacity and capabilities to be known, before it goes on as it is",
        show: |c| show(c.scheduler.subscribe_hold),
    },
    Variable {
        name: "SHIM_RESUBSCRIBE_MIN_INTERVAL",
        default: "5m",
        accepts: DURATION,
        effect: "shortest time between two subscriptions that the shim renews by itself because capacity or capabilities have changed for good",
        show: |c| show(c.scheduler.resubscribe_min_interval),
    },
    Variable {
        name: "SHIM_LOG",
        default: "info",
        accepts: LOG,
        effect: "what is logged",
        show: |c| c.log.0.clone(),
    },
    Variable {
        name: "SHIM_LOG_FORMAT",
        default: "text",
        accepts: "text or json",
        effect: "how log lines are written",
        show: |c| match c.log_format {
            LogFormat::Text => "text".into(),
            LogFormat::Json => "json".into(),
        },
    },
];

/// Variables that Kubernetes sets from the pod's own status through the downward API.
pub const POD_VARIABLES: [&str; 2] = ["POD_IPS", "POD_IP"];

/// A duration as an operator would write it: 500ms, 100s, 5m.
fn show(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    match (seconds, millis) {
        (_, 1..) => format!("{}ms", duration.as_millis()),
        (300.., 0) if seconds % 60 == 0 => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

/// A value that need not be set.
fn shown<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn join<T: fmt::Display>(items: &[T]) -> String {
    let texts: Vec<String> = items.iter().map(T::to_string).collect();
    texts.join(",")
}

/// One thing wrong with the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable.
    pub variable: String,
    /// Its value, as found.
    pub value: String,
    /// What would be accepted, or which rule is broken.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}={:?}: expected {}",
            self.variable, self.value, self.expected
        )
    }
}

/// All problems of one reading.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {} problem(s):{}", .0.len(), .0.iter().map(|p| format!("\n  {p}")).collect::<String>())]
pub struct Problems(pub Vec<Problem>);

/// A reading that worked.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Names set in the environment, so that each value's origin can be shown.
    pub from_environment: Vec<&'static str>,
    /// Things worth a look that stop nothing: unknown names, ignored service links.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// Every variable with its effective value and where that came from, in the table's order.
    pub fn effective(&self) -> Vec<(&'static Variable, String, &'static str)> {
        VARIABLES
            .iter()
            .map(|variable| {
                let origin = if self.from_environment.contains(&variable.name) {
                    "environment"
                } else {
                    "default"
                };
                (variable, (variable.show)(&self.config), origin)
            })
            .collect()
    }
}

/// Reads the process environment.
pub fn load() -> Result<Loaded, Problems> {
    load_from(std::env::vars_os())
}

/// Reads any list of names and values; tests pass their own.
pub fn load_from<I, N, V>(variables: I) -> Result<Loaded, Problems>
where
    I: IntoIterator<Item = (N, V)>,
    N: Into<OsString>,
    V: Into<OsString>,
{
    let mut reader = Reader::new(variables);
    let config = reader.config();
    reader.warn_unknown();
    if !reader.problems.is_empty() {
        return Err(Problems(reader.problems));
    }
    let from_environment = VARIABLES
        .iter()
        .map(|v| v.name)
        .filter(|name| reader.text(name).is_some())
        .collect();
    Ok(Loaded {
        config,
        from_environment,
        warnings: reader.warnings,
    })
}

const PREFIX: &str = "SHIM_";

struct Reader {
    /// Below the prefix, lower case, as envy gives them.
    raw: BTreeMap<String, String>,
    pod: BTreeMap<String, String>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Reader {
    fn new<I, N, V>(variables: I) -> Self
    where
        I: IntoIterator<Item = (N, V)>,
        N: Into<OsString>,
        V: Into<OsString>,
    {
        let mut problems = Vec::new();
        let mut ours = Vec::new();
        let mut pod = BTreeMap::new();
        for (name, value) in variables {
            // A name that is no text is none of ours; a value that is no text is a mistake.
            let Ok(name) = name.into().into_string() else {
                continue;
            };
            let known_pod = POD_VARIABLES
                .iter()
                .chain(&SELDON_VARIABLES)
                .any(|known| *known == name);
            if !name.starts_with(PREFIX) && !known_pod {
                continue;
            }
            match value.into().into_string() {
                Ok(value) if known_pod => {
                    pod.insert(name, value);
                }
                Ok(value) => ours.push((name, value)),
                Err(value) => problems.push(Problem {
                    variable: name,
                    value: value.to_string_lossy().into_owned(),
                    expected: "UTF-8 text".into(),
                }),
            }
        }
        // All values are strings here, so envy has nothing left to refuse.
        let raw = envy::prefixed(PREFIX).from_iter(ours).unwrap_or_default();
        let mut reader = Reader {
            raw,
            pod,
            problems,
            warnings: Vec::new(),
        };
        reader.drop_service_links();
        reader
    }

    /// Kubernetes gives every container `<SERVICE>_PORT=tcp://...` for each service of the
    /// namespace. A service called `shim-admin` would so set `SHIM_ADMIN_PORT`; a value that was
    /// never meant for us must not keep a pod from starting.
    fn drop_service_links(&mut self) {
        let warnings = &mut self.warnings;
        self.raw.retain(|key, value| {
            let link = ["tcp://", "udp://", "sctp://"]
                .iter()
                .any(|scheme| value.starts_with(scheme));
            if link {
                warnings.push(format!(
                    "{PREFIX}{}={value:?} is a Kubernetes service link, not a setting: ignored (enableServiceLinks: false on the pod removes it)",
                    key.to_ascii_uppercase()
                ));
            }
            !link
        });
    }

    /// The value of a variable; empty counts as unset.
    fn text(&self, name: &str) -> Option<&str> {
        let key = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
        let value = self.raw.get(&key)?.trim();
        (!value.is_empty()).then_some(value)
    }

    fn read<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Option<T>) -> T {
        let variable = VARIABLES
            .iter()
            .find(|v| v.name == name)
            .expect("every variable that is read is in the table");
        if let Some(value) = self.text(name) {
            if let Some(parsed) = parse(value) {
                return parsed;
            }
            let value = value.to_string();
            self.problem(name, value, variable.accepts);
        }
        parse(variable.default).expect("every default in the table parses")
    }

    fn problem(&mut self, variable: &str, value: impl ToString, expected: impl Into<String>) {
        self.problems.push(Problem {
            variable: variable.into(),
            value: value.to_string(),
            expected: expected.into(),
        });
    }

    fn config(&mut self) -> Config {
        let port = |text: &str| text.parse::<u16>().ok().filter(|&p| p > 0);
        let listen_port = |text: &str| text.parse::<u16>().ok();
        let count = |text: &str| text.parse::<u32>().ok().filter(|n| (1..=100).contains(n));
        let mode = self.read("SHIM_MODE", |text| match text {
            "correct" => Some(Mode::Correct),
            "observe" => Some(Mode::Observe),
            _ => None,
        });
        let mut hosts: Vec<Host> = self.read("SHIM_INFERENCE_HOSTS", list);
        for name in POD_VARIABLES {
            let Some(value) = self.pod.get(name).cloned() else {
                continue;
            };
            if value.trim().is_empty() {
                continue;
            }
            match list::<IpAddr>(&value) {
                Some(ips) => hosts.extend(ips.into_iter().map(Host::Ip)),
                None => self.problem(name, value, ADDRESSES),
            }
        }
        let log = self.read("SHIM_LOG", |text| {
            crate::telemetry::is_filter(text).then(|| LogFilter(text.into()))
        });
        let outage_grace = self.read("SHIM_OUTAGE_GRACE", duration_or_zero);
        let config = Config {
            mode,
            hosts: in_order(hosts),
            http_port: self.read("SHIM_INFERENCE_HTTP_PORT", port),
            grpc_port: self.read("SHIM_INFERENCE_GRPC_PORT", port),
            relay_listen: self.read("SHIM_RELAY_LISTEN", list),
            relay_http_port: self.read("SHIM_RELAY_HTTP_PORT", listen_port),
            relay_grpc_port: self.read("SHIM_RELAY_GRPC_PORT", listen_port),
            admin_listen: self.read("SHIM_ADMIN_LISTEN", list),
            admin_port: self.read("SHIM_ADMIN_PORT", listen_port),
            probe: ProbeConfig {
                interval: self.read("SHIM_PROBE_INTERVAL", duration),
                connect_timeout: self.read("SHIM_PROBE_CONNECT_TIMEOUT", duration),
                timeout: self.read("SHIM_PROBE_TIMEOUT", duration),
                thresholds: Thresholds {
                    rise: self.read("SHIM_PROBE_RISE", count),
                    fall: self.read("SHIM_PROBE_FALL", count),
                    grace: outage_grace,
                },
            },
            failback_hold: self.read("SHIM_FAILBACK_HOLD", duration_or_zero),
            outage_grace,
            live_hold: self.read("SHIM_LIVE_HOLD", duration_or_zero),
            header_timeout: self.read("SHIM_HEADER_TIMEOUT", duration),
            drain_time: self.read("SHIM_DRAIN_TIME", duration_or_zero),
            index_interval: self.read("SHIM_INDEX_INTERVAL", duration),
            memory: self.memory(),
            capabilities: self.capabilities(),
            scheduler: self.scheduler(),
            log,
            log_format: self.read("SHIM_LOG_FORMAT", |text| match text {
                "text" => Some(LogFormat::Text),
                "json" => Some(LogFormat::Json),
                _ => None,
            }),
        };
        self.check_rules(&config);
        config
    }

    fn memory(&mut self) -> MemoryConfig {
        let basis = |text: &str| {
            let all = [Basis::Auto, Basis::Request, Basis::Limit];
            all.into_iter().find(|basis| basis.as_str() == text)
        };
        let above_zero = |text: &str| quantity::parse(text).filter(|bytes| *bytes > 0);
        let config = MemoryConfig {
            policy: capacity::Policy {
                explicit: self.read("SHIM_MEMORY_BYTES", optional(above_zero)),
                basis: self.read("SHIM_MEMORY_BASIS", basis),
                reserve: self.read("SHIM_MEMORY_RESERVED", reserve),
                node_fraction: self.read("SHIM_MEMORY_NODE_FRACTION", Fraction::parse),
            },
            request: self.read("SHIM_MEMORY_REQUEST", optional(quantity::parse)),
            limit: self.read("SHIM_MEMORY_LIMIT", optional(quantity::parse)),
        };
        if let (Some(explicit), Reserve::Bytes(reserve)) =
            (config.policy.explicit, config.policy.reserve)
            && reserve >= explicit
        {
            let expected = format!("less than SHIM_MEMORY_BYTES ({explicit})");
            self.problem("SHIM_MEMORY_RESERVED", reserve, expected);
        }
        config
    }

    fn capabilities(&mut self) -> CapabilitiesConfig {
        use capability::Mode::{Add, Declared, Explicit, Strict};
        let mode = |text: &str| {
            let all = [Add, Strict, Declared, Explicit];
            all.into_iter().find(|mode| mode.as_str() == text)
        };
        let path = |text: &str| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
        let names: Option<Vec<String>> = self.read("SHIM_CAPABILITIES_LIST", optional(list));
        let config = CapabilitiesConfig {
            policy: capability::Policy {
                mode: self.read("SHIM_CAPABILITIES", mode),
                list: names.unwrap_or_default(),
            },
            file: self.read("SHIM_CAPABILITIES_FILE", optional(path)),
            probe: self.read("SHIM_CAPABILITIES_PROBE", |text| text.parse().ok()),
            models_dir: self.read("SHIM_MODELS_DIR", path),
        };
        if config.policy.mode == Explicit && config.policy.list.is_empty() {
            let expected = "SHIM_CAPABILITIES_LIST to be set";
            self.problem("SHIM_CAPABILITIES", Explicit.as_str(), expected);
        }
        config
    }

    fn scheduler(&mut self) -> SchedulerConfig {
        let file = |text: &str| Some(text.to_string());
        let files = [
            self.read("SHIM_SCHEDULER_CA_FILE", file),
            self.read("SHIM_SCHEDULER_CERT_FILE", file),
            self.read("SHIM_SCHEDULER_KEY_FILE", file),
        ];
        let tls_mode = self.read("SHIM_SCHEDULER_TLS", |text| match text {
            "auto" => Some(TlsMode::Auto),
            "off" => Some(TlsMode::Off),
            "on" => Some(TlsMode::On),
            _ => None,
        });
        let targets: Vec<Target> = self.read("SHIM_SCHEDULER", |text| match text {
            "" => Some(Vec::new()),
            text => list(text),
        });
        let status: Option<Target> = self.read("SHIM_SCHEDULER_STATUS", |text| match text {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        });
        let mut tls = None;
        if !targets.is_empty() || status.is_some() {
            let seldon = |name: &str| {
                let value = self.pod.get(name)?.trim();
                (!value.is_empty()).then(|| value.to_string())
            };
            match tls_files(tls_mode, &files, seldon) {
                Ok(files) => tls = files,
                Err((variable, value, expected)) => self.problem(variable, value, expected),
            }
        }
        SchedulerConfig {
            targets,
            status,
            tls_mode,
            tls,
            files,
            agent_port: self.read("SHIM_AGENT_PORT", |text| text.parse().ok()),
            subscribe_hold: self.read("SHIM_SUBSCRIBE_HOLD", duration_or_zero),
            resubscribe_min_interval: self.read("SHIM_RESUBSCRIBE_MIN_INTERVAL", duration),
        }
    }

    /// Rules between variables.
    fn check_rules(&mut self, config: &Config) {
        let interval = config.probe.interval;
        for (name, limit) in [
            ("SHIM_PROBE_CONNECT_TIMEOUT", config.probe.connect_timeout),
            ("SHIM_PROBE_TIMEOUT", config.probe.timeout),
        ] {
            if limit > interval {
                self.problem(
                    name,
                    show(limit),
                    format!(
                        "at most SHIM_PROBE_INTERVAL ({}), or probes would outlast their turn",
                        show(interval)
                    ),
                );
            }
        }
        let listeners = [
            (
                "SHIM_RELAY_HTTP_PORT",
                config.relay_http_port,
                &config.relay_listen,
            ),
            (
                "SHIM_RELAY_GRPC_PORT",
                config.relay_grpc_port,
                &config.relay_listen,
            ),
            (
                "SHIM_AGENT_PORT",
                config.scheduler.agent_port,
                &config.relay_listen,
            ),
            ("SHIM_ADMIN_PORT", config.admin_port, &config.admin_listen),
        ];
        for (i, (name, port, addresses)) in listeners.iter().enumerate() {
            for (other, other_port, other_addresses) in &listeners[..i] {
                let meet = addresses
                    .iter()
                    .any(|a| other_addresses.iter().any(|b| overlap(*a, *b)));
                if *port != 0 && port == other_port && meet {
                    self.problem(name, port, format!("a port that {other} does not have"));
                }
            }
            // The interposer must not be its own scheduler.
            for target in &config.scheduler.targets {
                let own = match &target.host {
                    Host::Ip(ip) => addresses.iter().any(|a| overlap(*a, *ip)),
                    Host::Name(host) => host == "localhost",
                };
                if *port == target.port && own {
                    self.problem(
                        "SHIM_SCHEDULER",
                        target,
                        format!(
                            "a scheduler other than {name} ({port}): the shim would dial itself"
                        ),
                    );
                }
            }
            // A candidate that is one of our own listeners would relay to itself for ever.
            for (server, server_port) in [
                ("SHIM_INFERENCE_HTTP_PORT", config.http_port),
                ("SHIM_INFERENCE_GRPC_PORT", config.grpc_port),
            ] {
                let own = config.hosts.iter().any(|host| match host {
                    Host::Ip(ip) => addresses.iter().any(|a| overlap(*a, *ip)),
                    Host::Name(host) => host == "localhost",
                });
                if *port == server_port && own {
                    self.problem(
                        server,
                        server_port,
                        format!("a port other than {name} ({port}): the shim would dial itself"),
                    );
                }
            }
        }
    }

    fn warn_unknown(&mut self) {
        for key in self.raw.keys() {
            let name = format!("{PREFIX}{}", key.to_ascii_uppercase());
            if VARIABLES.iter().any(|v| v.name == name) {
                continue;
            }
            let near = nearest(&name, VARIABLES.iter().map(|v| v.name));
            self.warnings.push(match near {
                Some(known) => {
                    format!("{name} is not a variable of agent-shim: did you mean {known}?")
                }
                None => format!("{name} is not a variable of agent-shim: ignored"),
            });
        }
    }
}

/// Whether two listening addresses take the same port.
fn overlap(a: IpAddr, b: IpAddr) -> bool {
    let wildcard4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let wildcard6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let covers =
        |wide: IpAddr, ip: IpAddr| wide == wildcard6 || (wide == wildcard4 && ip.is_ipv4());
    a == b || covers(a, b) || covers(b, a)
}

/// A comma list without empty items; `None` where an item does not parse or nothing is left.
fn list<T: std::str::FromStr>(text: &str) -> Option<Vec<T>> {
    let items: Vec<T> = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| item.parse().ok())
        .collect::<Option<_>>()?;
    (!items.is_empty()).then_some(items)
}

/// For variables without a default: empty is nothing.
fn optional<T>(parse: impl Fn(&str) -> Option<T>) -> impl Fn(&str) -> Option<Option<T>> {
    move |text| match text {
        "" => Some(None),
        text => parse(text).map(Some),
    }
}

fn reserve(text: &str) -> Option<Reserve> {
    match (text, text.strip_suffix('%')) {
        ("measured", _) => Some(Reserve::Measured),
        (_, Some(percent)) => {
            let percent = percent.parse().ok().filter(|p| *p <= 99)?;
            Some(Reserve::Percent(percent))
        }
        (bytes, None) => quantity::parse(bytes).map(Reserve::Bytes),
    }
}

fn duration_or_zero(text: &str) -> Option<Duration> {
    humantime::parse_duration(text)
        .ok()
        .filter(|d| *d <= Duration::from_secs(24 * 3600))
}

fn duration(text: &str) -> Option<Duration> {
    duration_or_zero(text).filter(|d| *d >= Duration::from_millis(10))
}

/// The README's table of variables.
pub fn markdown_table() -> String {
    let mut out = String::from("| variable | default | accepts | effect |\n|---|---|---|---|\n");
    for v in VARIABLES {
        let default = match v.default {
            "" => "unset".to_string(),
            default => format!("`{default}`"),
        };
        out.push_str(&format!(
            "| `{}` | {default} | {} | {} |\n",
            v.name, v.accepts, v.effect
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Loaded, Problems> {
        load_from(pairs.iter().copied())
    }

    #[test]
    fn an_empty_environment_gives_the_documented_defaults() {
        let loaded = load(&[]).unwrap();
        for (variable, value, origin) in loaded.effective() {
            assert_eq!(value, variable.default, "{}", variable.name);
            assert_eq!(origin, "default");
        }
    }

    #[test]
    fn the_pods_addresses_follow_the_configured_hosts_without_repeats() {
        let loaded = load(&[
            ("POD_IPS", "10.1.2.3,fd00::3"),
            ("POD_IP", "10.1.2.3"),
            ("SHIM_INFERENCE_HOSTS", "[::1], localhost"),
        ])
        .unwrap();
        assert_eq!(join(&loaded.config.hosts), "::1,localhost,10.1.2.3,fd00::3");
    }

    #[test]
    fn every_problem_is_reported_at_once_with_variable_value_and_accepted_form() {
        let text = load(&[
            ("SHIM_MODE", "fix"),
            ("SHIM_INFERENCE_HTTP_PORT", "70000"),
            ("SHIM_INFERENCE_GRPC_PORT", "0"),
            ("SHIM_PROBE_RISE", "0"),
            ("SHIM_PROBE_TIMEOUT", "2s"),
            ("SHIM_OUTAGE_GRACE", "20"),
            ("SHIM_RELAY_LISTEN", "localhost"),
            ("SHIM_LOG", "info,x=loud"),
            ("POD_IP", "none"),
        ])
        .unwrap_err()
        .to_string();
        for part in [
            "8 problem(s)".replace('8', "9").as_str(),
            r#"SHIM_MODE="fix": expected correct or observe"#,
            r#"SHIM_INFERENCE_HTTP_PORT="70000": expected a port"#,
            r#"SHIM_INFERENCE_GRPC_PORT="0": expected a port"#,
            r#"SHIM_PROBE_RISE="0": expected a whole number from 1 to 100"#,
            r#"SHIM_PROBE_TIMEOUT="2s": expected at most SHIM_PROBE_INTERVAL (1s)"#,
            r#"SHIM_OUTAGE_GRACE="20": expected 0s, or a duration with a unit"#,
            r#"SHIM_RELAY_LISTEN="localhost": expected IP addresses"#,
            r#"SHIM_LOG="info,x=loud": expected a level"#,
            r#"POD_IP="none": expected IP addresses"#,
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn empty_values_count_as_unset() {
        let loaded = load(&[("SHIM_PROBE_RISE", ""), ("SHIM_LOG", " "), ("POD_IP", "")]).unwrap();
        assert_eq!(loaded.config, load(&[]).unwrap().config);
        assert!(loaded.from_environment.is_empty());
    }

    #[test]
    fn unknown_names_are_warned_about_with_the_nearest_known_one() {
        let loaded = load(&[
            ("SHIM_PROB_INTERVAL", "1s"),
            ("SHIM_ZZZZZZZZZZZZZZZZ", "1"),
            ("OTHER", "x"),
        ])
        .unwrap();
        assert_eq!(
            loaded.warnings,
            [
                "SHIM_PROB_INTERVAL is not a variable of agent-shim: did you mean SHIM_PROBE_INTERVAL?",
                "SHIM_ZZZZZZZZZZZZZZZZ is not a variable of agent-shim: ignored",
            ]
        );
    }

    #[test]
    fn memory_and_capabilities_are_read_with_their_rules() {
        let loaded = load(&[
            ("SHIM_MEMORY_BYTES", "4Gi"),
            ("SHIM_MEMORY_RESERVED", "10%"),
            ("SHIM_MEMORY_REQUEST", "2147483648"),
            ("SHIM_MEMORY_LIMIT", "0"),
            ("SHIM_CAPABILITIES", "explicit"),
            ("SHIM_CAPABILITIES_LIST", " sklearn, gpu-a100,"),
            ("SHIM_CAPABILITIES_FILE", "/run/shim/list"),
        ])
        .unwrap()
        .config;
        assert_eq!(loaded.memory.policy.explicit, Some(4 << 30));
        assert_eq!(loaded.memory.policy.reserve, Reserve::Percent(10));
        assert_eq!(
            (loaded.memory.request, loaded.memory.limit),
            (Some(2 << 30), Some(0))
        );
        assert_eq!(loaded.capabilities.policy.list, ["sklearn", "gpu-a100"]);
        let text = load(&[
            ("SHIM_MEMORY_BYTES", "1Gi"),
            ("SHIM_MEMORY_RESERVED", "1Gi"),
            ("SHIM_MEMORY_BASIS", "most"),
            ("SHIM_MEMORY_LIMIT", "4GB"),
            ("SHIM_MEMORY_NODE_FRACTION", "80%"),
            ("SHIM_CAPABILITIES", "explicit"),
            ("SHIM_CAPABILITIES_FILE", "list"),
            ("SHIM_CAPABILITIES_PROBE", "yes"),
        ])
        .unwrap_err()
        .to_string();
        for part in [
            "the configuration has 7 problem(s)",
            r#"SHIM_MEMORY_RESERVED="1073741824": expected less than SHIM_MEMORY_BYTES"#,
            r#"SHIM_MEMORY_BASIS="most": expected request, limit or auto"#,
            r#"SHIM_MEMORY_LIMIT="4GB": expected bytes as a Kubernetes quantity"#,
            r#"SHIM_MEMORY_NODE_FRACTION="80%": expected a number above 0"#,
            r#"SHIM_CAPABILITIES="explicit": expected SHIM_CAPABILITIES_LIST to be set"#,
            r#"SHIM_CAPABILITIES_FILE="list": expected an absolute path"#,
            r#"SHIM_CAPABILITIES_PROBE="yes": expected true or false"#,
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        let zero = load(&[("SHIM_MEMORY_BYTES", "0")]).unwrap_err();
        assert_eq!(zero.0.len(), 1, "a total of 0 is never meant");
        for share in ["100%", "-1%", "1.5%", "%"] {
            assert!(load(&[("SHIM_MEMORY_RESERVED", share)]).is_err(), "{share}");
        }
    }

    #[test]
    fn a_kubernetes_service_link_is_ignored_with_a_warning() {
        let loaded = load(&[("SHIM_ADMIN_PORT", "tcp://10.0.0.1:9680")]).unwrap();
        assert_eq!(loaded.config.admin_port, 9680);
        assert!(
            loaded.warnings[0].contains("service link"),
            "{:?}",
            loaded.warnings
        );
    }

    #[test]
    fn the_shim_refuses_to_dial_itself_and_to_bind_one_port_twice() {
        let text = load(&[
            ("SHIM_INFERENCE_HTTP_PORT", "9600"),
            ("SHIM_RELAY_GRPC_PORT", "9680"),
        ])
        .unwrap_err()
        .to_string();
        assert!(text.contains("would dial itself"), "{text}");
        assert!(text.contains("SHIM_ADMIN_PORT=\"9680\""), "{text}");
        // The relay may share the server's port on another address.
        load(&[
            ("SHIM_INFERENCE_HOSTS", "10.0.0.9"),
            ("SHIM_INFERENCE_HTTP_PORT", "9600"),
        ])
        .unwrap();
    }

    #[test]
    fn a_value_that_is_no_text_is_a_problem_of_that_variable() {
        use std::os::unix::ffi::OsStringExt;
        let bad = OsString::from_vec(vec![0xff]);
        let error = load_from([(OsString::from("SHIM_LOG"), bad)]).unwrap_err();
        assert_eq!(error.0[0].expected, "UTF-8 text");
    }

    #[test]
    fn the_readme_has_the_table_of_the_code() {
        let readme = include_str!("../README.md");
        assert!(
            readme.contains(&markdown_table()),
            "README.md does not hold the table of variables; `agent-shim config --markdown` prints it"
        );
    }

    proptest! {
        #[test]
        fn no_environment_panics(values in prop::collection::vec((0usize..48, ".{0,12}"), 0..12)) {
            let pairs: Vec<(String, String)> = values.into_iter().map(|(i, value)| {
                let name = VARIABLES.get(i).map_or("POD_IPS", |v| v.name);
                (name.to_string(), value)
            }).collect();
            let _ = load_from(pairs);
        }
    }
}
