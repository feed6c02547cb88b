//! The table of variables: README, `agent-shim config` and the warnings about unknown names are
//! made from it.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::scheduler::Target;
use super::{Config, LogFormat};

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
    pub(super) show: fn(&Config) -> String,
}

pub(super) const DURATION: &str =
    "a duration with a unit, such as 500ms, 10s or 5m, from 10ms to 24h";
pub(super) const DURATION_OR_ZERO: &str =
    "0s, or a duration with a unit, such as 500ms, 10s or 5m, up to 24h";
pub(super) const COUNT: &str = "a whole number from 1 to 100";
pub(super) const PORT: &str = "a port from 1 to 65535";
pub(super) const LISTEN_PORT: &str = "a port from 1 to 65535, or 0 for any free one";
pub(super) const PORT_OR_OFF: &str = "a port from 1 to 65535, or 0 for off";
pub(super) const ADDRESSES: &str = "IP addresses separated by commas";
pub(super) const HOSTS: &str =
    "hosts separated by commas: IPv4, IPv6 with or without brackets, or names";
pub(super) const TARGET: &str = "host:port, an IPv6 address in brackets; empty for none";
pub(super) const FILE: &str = "a path; empty for none";
pub(super) const LOG: &str =
    "a level (error, warn, info, debug, trace, off) or a comma list of target=level";
pub(super) const QUANTITY: &str = "bytes as a Kubernetes quantity, such as 4Gi, 512M or 1073741824";
pub(super) const AMOUNT: &str =
    "bytes as a Kubernetes quantity above 0, such as 4Gi, 512M or 1073741824";
pub(super) const RESERVED: &str =
    "a Kubernetes quantity such as 512Mi, a percentage from 0% to 99%, or measured";
pub(super) const NAMES: &str = "names separated by commas";
pub(super) const PATH: &str = "an absolute path";

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
        effect: "time between two probes of a candidate; 100ms while no candidate of the protocol is up, and while a fall is being confirmed",
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
        name: "SHIM_RESTORE_MODELS",
        default: "true",
        accepts: "true or false",
        effect: "whether models that the server has lost in a restart are loaded again in the background; never in mode `observe`",
        show: |c| c.models.restore.to_string(),
    },
    Variable {
        name: "SHIM_COALESCE_LOADS",
        default: "true",
        accepts: "true or false",
        effect: "whether a load over gRPC is answered without loading where the model is READY from unchanged files (seen in `SHIM_MODELS_DIR`), or shares the same load that is under way",
        show: |c| c.models.coalesce.to_string(),
    },
    Variable {
        name: "SHIM_CANARY_MODEL",
        default: "",
        accepts: "the name of a model as the server has it; empty for none",
        effect: "a loaded model that is asked now and then whether the worker works",
        show: |c| shown(c.models.canary.as_ref().map(|canary| &canary.model)),
    },
    Variable {
        name: "SHIM_CANARY_REQUEST",
        default: "",
        accepts: PATH,
        effect: "the file with the JSON body of that request",
        show: |c| {
            shown(
                c.models
                    .canary
                    .as_ref()
                    .map(|canary| canary.request.display()),
            )
        },
    },
    Variable {
        name: "SHIM_CANARY_INTERVAL",
        default: "30s",
        accepts: "a duration of 1s or more, such as 30s or 2m",
        effect: "time from the end of one such request to the next; none is sent while inferences run, until 60s have brought no result",
        show: |c| show(c.models.canary_interval),
    },
    Variable {
        name: "SHIM_MEND",
        default: "off",
        accepts: "off, all, or a list of stuck, lost and fatal",
        effect: "which bad states are mended: `stuck`, a model left UNKNOWN by a cancelled load, is unloaded; `lost`, a READY model that its worker no longer has, is unloaded and loaded; `fatal`, a server in which every inference has failed for 5 minutes, is ended, so that kubelet starts it again (needs a shared process namespace and the server's user)",
        show: |c| c.models.mend.shown(),
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
        name: "SHIM_AGENT_READY_PORT",
        default: "9008",
        accepts: PORT_OR_OFF,
        effect: "the agent's own readiness, which it has from 2.9.1 on: shown, and watched for `/livez/agent`",
        show: |c| c.agent.ready_port.to_string(),
    },
    Variable {
        name: "SHIM_AGENT_STUCK_AFTER",
        default: "180s",
        accepts: DURATION,
        effect: "`/livez/agent` fails when the agent has been not ready for longer than this while the server was usable, the scheduler answered and nothing else explained it",
        show: |c| show(c.agent.stuck_after),
    },
    Variable {
        name: "SHIM_AGENT_DRAIN_PORT",
        default: "9007",
        accepts: PORT_OR_OFF,
        effect: "where `/drain` makes the agent drain",
        show: |c| c.drain.agent_port.to_string(),
    },
    Variable {
        name: "SHIM_DRAIN_ENDPOINT",
        default: "false",
        accepts: "true or false",
        effect: "whether `/drain` may be begun from outside the pod, as kubelet's `httpGet` hooks do; else from loopback only",
        show: |c| c.drain.open.to_string(),
    },
    Variable {
        name: "SHIM_DRAIN_HOOKS",
        default: "1",
        accepts: COUNT,
        effect: "calls of `/drain` within 2s that make the agent drain too: the number of containers whose preStop hook calls it, so that the restart of one does not",
        show: |c| c.drain.hooks.to_string(),
    },
    Variable {
        name: "SHIM_DRAIN_UNDO_AFTER",
        default: "5m",
        accepts: DURATION,
        effect: "a drain that was followed by no SIGTERM for so long is undone, sooner where the server or the agent has come back; keep it above the pod's grace period",
        show: |c| show(c.drain.undo_after),
    },
    Variable {
        name: "SHIM_MERGE_METRICS",
        default: "false",
        accepts: "true or false",
        effect: "whether `/metrics?merge` adds the agent's and the server's own metrics, so that the pod needs one scrape",
        show: |c| c.merge.on.to_string(),
    },
    Variable {
        name: "SHIM_AGENT_METRICS_PORT",
        default: "9006",
        accepts: PORT_OR_OFF,
        effect: "the agent's metrics, on loopback, for `/metrics?merge`",
        show: |c| c.merge.agent_port.to_string(),
    },
    Variable {
        name: "SHIM_INFERENCE_METRICS_PORT",
        default: "8082",
        accepts: PORT_OR_OFF,
        effect: "the server's metrics, on the host in use for HTTP, for `/metrics?merge`",
        show: |c| c.merge.server_port.to_string(),
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
pub(super) fn show(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    match (seconds, nanos) {
        (300.., 0) if seconds % 60 == 0 => format!("{}m", seconds / 60),
        (_, 0) => format!("{seconds}s"),
        _ if nanos % 1_000_000 == 0 => format!("{}ms", duration.as_millis()),
        _ if nanos % 1000 == 0 => format!("{}us", duration.as_micros()),
        _ => format!("{}ns", duration.as_nanos()),
    }
}

/// A value that need not be set.
pub(super) fn shown<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

pub(super) fn join<T: fmt::Display>(items: &[T]) -> String {
    let texts: Vec<String> = items.iter().map(T::to_string).collect();
    texts.join(",")
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
