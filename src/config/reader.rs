//! From raw strings to one validated [`Config`], with every problem collected.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::models::{Canary, Mend, ModelsConfig};
use super::scheduler::{SELDON_VARIABLES, SchedulerConfig, Target, TlsMode, tls_files};
use super::variables::*;
use super::{
    CapabilitiesConfig, Config, LogFilter, LogFormat, MemoryConfig, Mode, ProbeConfig, Problem,
};
use crate::capability;
use crate::capacity::{self, Basis, Fraction, Reserve, quantity};
use crate::endpoint::{Host, in_order};
use crate::health::Thresholds;
use crate::nearest::nearest;

const PREFIX: &str = "SHIM_";

/// A canary costs the worker an inference.
const CANARY_LEAST: Duration = Duration::from_secs(1);

pub(super) struct Reader {
    /// Below the prefix, lower case, as envy gives them.
    raw: BTreeMap<String, String>,
    pod: BTreeMap<String, String>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

impl Reader {
    pub(super) fn new<I, N, V>(variables: I) -> Self
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
                .any(|scheme| value.trim_start().starts_with(scheme));
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
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let key = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
        let value = self.raw.get(&key)?.trim();
        (!value.is_empty()).then_some(value)
    }

    pub(super) fn read<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Option<T>) -> T {
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

    pub(super) fn config(&mut self) -> Config {
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
            models: self.models(),
            scheduler: self.scheduler(),
            agent: self.agent(),
            drain: self.drain(),
            merge: self.merge(),
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

    fn models(&mut self) -> ModelsConfig {
        let name = |text: &str| Some(text.to_string());
        let path = |text: &str| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
        let model: Option<String> = self.read("SHIM_CANARY_MODEL", optional(name));
        let request: Option<PathBuf> = self.read("SHIM_CANARY_REQUEST", optional(path));
        let interval = self.read("SHIM_CANARY_INTERVAL", |text| {
            duration(text).filter(|interval| *interval >= CANARY_LEAST)
        });
        let canary = match (model, request) {
            (Some(model), Some(request)) => Some(Canary {
                model,
                request,
                interval,
            }),
            (None, None) => None,
            (Some(model), None) => {
                self.problem(
                    "SHIM_CANARY_MODEL",
                    model,
                    "SHIM_CANARY_REQUEST to be set too",
                );
                None
            }
            (None, Some(request)) => {
                let expected = "SHIM_CANARY_MODEL to be set too";
                self.problem("SHIM_CANARY_REQUEST", request.display(), expected);
                None
            }
        };
        ModelsConfig {
            restore: self.read("SHIM_RESTORE_MODELS", |text| text.parse().ok()),
            coalesce: self.read("SHIM_COALESCE_LOADS", |text| text.parse().ok()),
            canary,
            canary_interval: interval,
            mend: self.read("SHIM_MEND", Mend::parse),
        }
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
        self.check_merge(config);
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

    /// The page that is asked for the pod's metrics must not be one of those that it asks.
    fn check_merge(&mut self, config: &Config) {
        let (own, merge) = (config.admin_port, config.merge);
        for (name, port) in [
            ("SHIM_AGENT_METRICS_PORT", merge.agent_port),
            ("SHIM_INFERENCE_METRICS_PORT", merge.server_port),
        ] {
            if merge.on && port != 0 && port == own {
                let expected = format!("a port other than SHIM_ADMIN_PORT ({own})");
                self.problem(name, port, expected);
            }
        }
    }

    pub(super) fn warn_unknown(&mut self) {
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

pub(super) fn duration(text: &str) -> Option<Duration> {
    duration_or_zero(text).filter(|d| *d >= Duration::from_millis(10))
}
