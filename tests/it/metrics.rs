//! The exposition: names, labels, zeros from the start, and what promtool says of it.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::{Shim, eventually};

/// With every part that has series of its own.
fn with_interposer() -> Shim {
    Shim::start(&[("SHIM_SCHEDULER", "127.0.0.1:9"), ("SHIM_AGENT_PORT", "0")])
}

#[tokio::test]
async fn every_series_with_a_closed_label_set_is_there_from_the_start() {
    let shim = Shim::start(&[]);
    let (_, text) = shim.get("/metrics").await;
    for series in [
        r#"agent_shim_answers_total{answer="unavailable",protocol="grpc"} 0"#,
        r#"agent_shim_condition{condition="not-draining"} 1"#,
        r#"agent_shim_endpoint_up{candidate="1",protocol="http"} 0"#,
        r#"agent_shim_index_reads_total{outcome="ok"} 0"#,
        r#"agent_shim_relay_accept_errors_total{protocol="http"} 0"#,
        r#"agent_shim_relay_bytes_total{direction="received",protocol="grpc"} 0"#,
        r#"agent_shim_relay_calls_total{protocol="http"} 0"#,
        r#"agent_shim_relay_connect_attempts_total{outcome="timeout",protocol="grpc"} 0"#,
        r#"agent_shim_relay_connections_total{end="malformed",protocol="http"} 0"#,
        r#"agent_shim_relay_open_connections{protocol="grpc"} 0"#,
        r#"agent_shim_selected_candidate{protocol="http"} 0"#,
        r#"agent_shim_selection_changes_total{protocol="grpc"} 0"#,
        r#"agent_shim_server_models{state="READY"} 0"#,
    ] {
        assert!(
            text.lines().any(|line| line == series),
            "{series} is not in:\n{text}"
        );
    }
    for part in [
        "agent_shim_build_info{",
        r#"agent_shim_probe_outcomes_total{outcome="dns",protocol="http"}"#,
        "process_resident_memory_bytes ",
        "process_open_fds ",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

/// An alert hangs on it: it must not wait for somebody to read `/status`.
#[tokio::test]
async fn what_the_scheduler_believes_is_a_condition_in_the_metrics_alone() {
    let shim = with_interposer();
    let line = eventually("the condition `subscribed`", async || {
        let (_, text) = shim.get("/metrics").await;
        let found = text
            .lines()
            .find(|l| l.contains(r#"condition="subscribed""#))?;
        // Nothing was read back, so nothing is claimed of it.
        assert!(!text.contains(r#"condition="registered""#), "{text}");
        Some(found.to_string())
    })
    .await;
    assert_eq!(line, r#"agent_shim_condition{condition="subscribed"} 0"#);
}

/// The catalogue in the docs has a line for each family and no other.
#[tokio::test]
async fn the_catalogue_is_what_the_program_exports() {
    let shim = with_interposer();
    let (_, text) = shim.get("/metrics").await;
    let mut exported: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| format!("| `{name}` | {kind} |"))
        .collect();
    exported.sort();
    let docs = include_str!("../../docs/metrics.md");
    let mut documented: Vec<String> = docs
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').take(3).collect::<Vec<_>>().join("|") + "|")
        .collect();
    documented.sort();
    assert_eq!(
        documented, exported,
        "docs/metrics.md is not what /metrics exports"
    );
}

#[tokio::test]
async fn promtool_finds_nothing_to_complain_about() {
    let shim = with_interposer();
    let (_, text) = shim.get("/metrics").await;
    assert_eq!(complaints(&text).unwrap_or_default(), "");
}

/// What promtool says of an exposition; `None` where it is not here.
pub fn complaints(text: &str) -> Option<String> {
    let unpacked = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/target/tools/prometheus/usr/bin/promtool"
    );
    let program = ["promtool", unpacked]
        .into_iter()
        .find(|p| Command::new(p).arg("--version").output().is_ok());
    let Some(program) = program else {
        eprintln!("SKIPPED: promtool is not here (tools/test-tools.sh fetches it)");
        return None;
    };
    let mut promtool = Command::new(program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    Some(said)
}
