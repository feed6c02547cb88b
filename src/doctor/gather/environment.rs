//! Settings of the containers, as far as they are visible: the shim's own, and those of processes
//! of the pod where it shares its process namespace. Only names of an allow-list are kept, none of
//! which holds a secret; everything else is forgotten in the same step that reads it.

use std::path::Path;

use crate::config::Loaded;
use crate::doctor::evidence::Variable;
use crate::procfs;

/// Names that are kept. No name of a secret's value is here, and none may come here.
pub const ALLOWED: [&str; 17] = [
    "SELDON_SERVER_HTTP_PORT",
    "SELDON_SERVER_GRPC_PORT",
    "SELDON_SCHEDULER_HOST",
    "SELDON_SCHEDULER_PORT",
    "SELDON_SCHEDULER_TLS_PORT",
    "SELDON_SERVER_CAPABILITIES",
    "SELDON_OVERCOMMIT_PERCENTAGE",
    "SELDON_SERVER_TYPE",
    "CONTROL_PLANE_SECURITY_PROTOCOL",
    "MEMORY_REQUEST",
    "MLSERVER_HOST",
    "MLSERVER_HTTP_PORT",
    "MLSERVER_GRPC_PORT",
    "MLSERVER_PARALLEL_WORKERS",
    "MLSERVER_MODEL_PARALLEL_WORKERS",
    "POD_NAME",
    "POD_NAMESPACE",
];

/// An environment is rarely larger, even with one link for each service.
const MAX_ENVIRON: usize = 256 * 1024;
/// Processes that are looked at.
const MAX_PROCESSES: usize = 2000;
/// A value that is longer is no setting of this list.
const MAX_VALUE: usize = 500;

/// The shim's own settings that differ from their defaults.
pub fn of_shim(own: &Loaded) -> Vec<Variable> {
    let all = own.effective().into_iter();
    all.filter(|(_, _, origin)| *origin == "environment")
        .map(|(variable, value, _)| Variable {
            of: "agent-shim".into(),
            name: variable.name.into(),
            value,
        })
        .collect()
}

/// Settings of the agent and of the server, where their processes can be read.
pub fn visible(proc: &Path) -> Vec<Variable> {
    let Ok(folder) = std::fs::read_dir(proc) else {
        return Vec::new();
    };
    let pids = folder.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.parse::<u32>().ok()
    });
    let mut all = Vec::new();
    for pid in pids.take(MAX_PROCESSES) {
        let place = procfs::of(proc, pid);
        let Ok(comm) = procfs::read_start(&place.join("comm"), 64) else {
            continue;
        };
        let of = match comm.trim() {
            "agent" => "agent",
            "mlserver" => "mlserver",
            _ => continue,
        };
        if all.iter().any(|v: &Variable| v.of == of) {
            continue;
        }
        if let Ok(environ) = procfs::read_start(&place.join("environ"), MAX_ENVIRON) {
            all.extend(kept(of, &environ));
        }
    }
    all
}

fn kept(of: &str, environ: &str) -> Vec<Variable> {
    let pairs = environ.split('\0').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(name, value)| ALLOWED.contains(name) && value.len() <= MAX_VALUE)
        .map(|(name, value)| Variable {
            of: of.into(),
            name: name.into(),
            value: value.into(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_list_are_kept() {
        let environ = "SELDON_SCHEDULER_PORT=9605\0AWS_SECRET_ACCESS_KEY=hush\0MEMORY_REQUEST=1\0";
        let names: Vec<String> = kept("agent", environ).into_iter().map(|v| v.name).collect();
        assert_eq!(names, ["SELDON_SCHEDULER_PORT", "MEMORY_REQUEST"]);
    }

    #[test]
    fn no_name_of_the_list_sounds_like_a_secret() {
        for name in ALLOWED {
            for part in ["SECRET", "PASSWORD", "TOKEN", "KEY", "CREDENTIAL"] {
                assert!(!name.contains(part), "{name}");
            }
        }
    }
}
