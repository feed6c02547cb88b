//! The server's record of loads: which went on at once, and which were cut off. The stand-in's process
//! looks at its own calls often and writes down what has changed, so the record outlives it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use agent_shim::demo::standin::{Call, Model, Outcome, StandIn};

/// Between two looks. A load that takes no time may be between two, and is not seen.
const PACE: Duration = Duration::from_millis(20);

/// What the record says, all processes of the server together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loads {
    /// Models of which two loads were seen to go on at once.
    pub doubled: BTreeSet<String>,
    /// Models of which a load was cut off by its caller.
    pub cut: Vec<String>,
    /// Models of which a load was seen, by the name that the server has for them.
    pub seen: BTreeSet<String>,
}

/// Of which model a load is; `None` where that has not arrived. Over gRPC the name is in the body, of
/// which the stand-in keeps the length alone: the prefix, and one field with a name.
fn model(call: &Call, names: &[&str]) -> Option<String> {
    if let Some(path) = call.path.strip_suffix("/load") {
        return Some(path.rsplit('/').next()?.into());
    }
    let of = |name: &&&str| call.body_bytes == 5 + 2 + name.len() as u64;
    match names.iter().find(of) {
        Some(name) => Some(name.to_string()),
        None if call.body_bytes > 5 => Some(format!("{}-bytes", call.body_bytes)),
        None => None,
    }
}

fn is_load(call: &Call) -> bool {
    call.path.ends_with("/load") || call.path.ends_with("/RepositoryModelLoad")
}

/// Writes down what changes with the loads under way, as long as the server's process lives. Of the
/// names no two have the same length.
pub async fn note(server: StandIn, record: Arc<File>, names: &'static [&'static str]) {
    let (mut open, mut next, mut said) = (BTreeSet::new(), 0, String::new());
    loop {
        let from = open.first().copied().unwrap_or(next);
        let (calls, after) = server.calls_from(from);
        let first = after - calls.len();
        let (mut running, mut ended) = (Vec::new(), Vec::new());
        let mut lines = String::new();
        let all = calls.iter().enumerate().map(|(n, call)| (first + n, call));
        for (n, call) in all.filter(|(_, call)| is_load(call)) {
            if n < next && !open.contains(&n) {
                continue;
            }
            let model = model(call, names);
            match call.outcome {
                Outcome::Running => {
                    open.insert(n);
                    running.extend(model);
                }
                _ => {
                    open.remove(&n);
                    ended.push(model.unwrap_or_else(|| "unnamed".into()));
                }
            }
        }
        // A load that is cut off leaves its model loading for good, as in MLServer.
        let models = server.models();
        for model in ended {
            let loading = |m: &Model| m.name == model && m.state == "UNKNOWN";
            let how = match !running.contains(&model) && models.iter().any(loading) {
                true => "cut",
                false => "ended",
            };
            lines += &format!("load {how} {model}\n");
        }
        next = after;
        let now = format!("loads {}\n", running.join(" "));
        if now != said {
            lines += &now;
            said = now;
        }
        (&*record).write_all(lines.as_bytes()).unwrap();
        tokio::time::sleep(PACE).await;
    }
}

/// Reads what was written down.
pub fn read(record: &str) -> Loads {
    let mut loads = Loads::default();
    for line in record.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words.as_slice() {
            ["loads", running @ ..] => {
                let mut at_once = BTreeSet::new();
                for model in running.iter().filter(|m| !m.is_empty()) {
                    loads.seen.insert(model.to_string());
                    if !at_once.insert(model) {
                        loads.doubled.insert(model.to_string());
                    }
                }
            }
            ["load", how, model] => {
                loads.seen.insert(model.to_string());
                if *how == "cut" {
                    loads.cut.push(model.to_string());
                }
            }
            _ => {}
        }
    }
    loads
}
