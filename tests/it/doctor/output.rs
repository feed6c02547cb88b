//! What people and programs read.

use std::process::Stdio;
use std::time::Duration;

use agent_shim::doctor::{diagnose, rules, show};
use tokio::process::Command;
use tokio::time::Instant;

use super::support::*;
use crate::subscription::support::model;
use crate::support::{eventually, refused, within};

async fn command(args: &[&str], settings: &[(String, String)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-shim"));
    command
        .arg("doctor")
        .args(args)
        .env_clear()
        .kill_on_drop(true);
    command.envs(settings.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    command.stdin(Stdio::null());
    let output = within("the doctor", command.output()).await.unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[tokio::test]
async fn the_command_finds_and_exits_as_documented() {
    let pod = Pod::start(agent(GI), &[]).await;
    pod.healthy().await;
    let visit = pod.visit();
    let admin = visit.admin[0].clone();
    let (code, out, err) = command(&["--admin", &admin], &visit.settings).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("Nothing is broken"), "{out}");

    pod.scheduler.load(model("iris", &["gpu-a100"], None));
    let (code, out, _) = command(&["iris", "--admin", &admin], &visit.settings).await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("AS071 requirement-missing"), "{out}");
    assert!(!out.contains('\x1b'), "colour without a terminal");
    let (code, out, _) = command(&["--json", "--admin", &admin], &visit.settings).await;
    assert_eq!(code, 1);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["first"]["rule"], "AS071");
    let mut keys: Vec<&str> = json
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "also",
            "chain",
            "first",
            "follows",
            "model",
            "outcome",
            "unchecked",
            "warnings"
        ]
    );
    let (code, out, _) = command(&["--markdown", "--admin", &admin], &visit.settings).await;
    assert_eq!(code, 1);
    assert!(
        out.starts_with("## agent-shim doctor") && out.contains("AS071"),
        "{out}"
    );
    let (code, _, err) = command(&["--json", "--markdown"], &[]).await;
    assert_eq!(code, 2, "{err}");
}

#[tokio::test]
async fn a_verdict_comes_within_five_seconds_with_everything_unreachable() {
    let (dropped, _held) = dropping().await;
    let (other, _held_too) = dropping().await;
    let other = other.port().to_string();
    let (admin_port, _held_as_well) = dropping().await;
    let admin_port = admin_port.port().to_string();
    let at = dropped.to_string();
    let port = dropped.port().to_string();
    let admin = format!("http://{at}");
    // In the pod as far as can be told, and nothing answers: neither shim nor server nor scheduler.
    let settings: Vec<(String, String)> = [
        ("SHIM_ADMIN_PORT", admin_port.as_str()),
        ("SHIM_INFERENCE_HOSTS", "127.0.0.1"),
        ("SHIM_INFERENCE_HTTP_PORT", &port),
        ("SHIM_INFERENCE_GRPC_PORT", &other),
        ("SHIM_SCHEDULER", &at),
        ("SHIM_SCHEDULER_STATUS", &at),
    ]
    .map(|(n, v)| (n.to_string(), v.to_string()))
    .into();
    let started = Instant::now();
    let (code, out, err) = command(&[], &settings).await;
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("AS005"), "{out}");

    let started = Instant::now();
    let (code, out, _) = command(&["--admin", &admin], &[]).await;
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(code, 3, "{out}");
    assert!(out.contains("Could not check"), "{out}");
    let (nowhere, _port) = refused().await;
    let admin = format!("http://bob:planted-password@{nowhere}");
    for format in [&[][..], &["--json"], &["--markdown"]] {
        let args = [&["--admin", admin.as_str()], format].concat();
        let (code, out, _) = command(&args, &[]).await;
        assert_eq!(code, 3);
        assert!(
            out.contains(&nowhere.to_string()) && !out.contains("planted"),
            "{out}"
        );
        if format != ["--json"] {
            // Everything that one reason explains is one item.
            assert_eq!(out.matches("no answer from").count(), 1, "{out}");
            assert!(!out.contains("\n\n\n"), "{out}");
        }
    }
    assert_eq!(command(&["--admin", "ftp://shim"], &[]).await.0, 2);
}

/// Evidence without anything that differs from run to run.
async fn steady() -> (Pod, agent_shim::doctor::Evidence) {
    let pod = Pod::start(agent(GI), &[]).await;
    let mut evidence = pod.healthy().await;
    evidence.ports.retain(|p| p.configured);
    for port in &mut evidence.ports {
        (port.host, port.port) = ("seldon-scheduler".into(), 9005);
    }
    for (i, probe) in evidence.probes.iter_mut().enumerate() {
        probe.port = [9000, 9500][i];
    }
    let status = evidence.status.as_mut().unwrap();
    for (i, endpoint) in status.endpoints.iter_mut().enumerate() {
        endpoint.port = [9000, 9500][i];
    }
    // Another server on this machine would be taken for the pod's.
    status.worker.state = "unseen".into();
    let subscription = status.subscription.as_mut().unwrap();
    subscription.scheduler = Some("seldon-scheduler:9005".into());
    (pod, evidence)
}

#[tokio::test]
async fn the_text_at_80_columns_is_what_a_colleague_would_write() {
    let (_pod, mut evidence) = steady().await;
    let text =
        |e: &agent_shim::doctor::Evidence| show::text::shown(&diagnose(e, rules::all()), 80, false);
    let healthy = text(&evidence);
    assert_eq!(healthy, include_str!("healthy.txt"), "\n{healthy}");

    let scheduler = evidence.scheduler.as_mut().unwrap();
    scheduler
        .models
        .push(agent_shim::registration::facts::ModelFact {
            name: "iris".into(),
            version: 1,
            state: "schedule-failed".into(),
            reason: "Failed to schedule model as no matching servers are available".into(),
            requirements: vec!["mlserver".into(), "torch".into()],
            wanted: 1,
            ..Default::default()
        });
    evidence.asked_model = Some("iris".into());
    let broken = text(&evidence);
    assert_eq!(broken, include_str!("broken.txt"), "\n{broken}");
    for line in healthy.lines().chain(broken.lines()) {
        assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
    let coloured = show::text::shown(&diagnose(&evidence, rules::all()), 80, true);
    let plain = strip(&coloured);
    assert_eq!(plain, broken, "colours change nothing else");
}

fn strip(text: &str) -> String {
    let mut out = String::new();
    let mut parts = text.split('\x1b');
    out.push_str(parts.next().unwrap());
    for part in parts {
        out.push_str(&part[part.find('m').unwrap() + 1..]);
    }
    let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

#[tokio::test]
async fn the_documents_table_of_rules_is_the_programs() {
    let document = include_str!("../../../docs/diagnosis.md");
    let [begin, end] = show::rules::MARKERS;
    let (_, rest) = document.split_once(begin).unwrap();
    let (table, _) = rest.split_once(end).unwrap();
    assert_eq!(
        table.trim(),
        show::rules::markdown().trim(),
        "put the output of `agent-shim doctor --rules-markdown` between the markers of docs/diagnosis.md"
    );
}

#[tokio::test]
async fn the_sidecar_shows_findings_as_gauges_and_in_its_status_and_they_go_again() {
    let scheduler = agent_shim::demo::scheduler::FakeScheduler::start()
        .await
        .unwrap();
    scheduler.load(model("iris", &["gpu-a100"], None));
    let pod = Pod::at(scheduler, agent(GI), &[]).await;
    for rule in rules::all().filter(|r| r.id != "AS071" && r.id != "AS089") {
        let series = format!("agent_shim_finding{{rule=\"{}\"}}", rule.id);
        assert_eq!(pod.shim.metric(&series).await, 0.0, "{series}");
    }
    let series = "agent_shim_finding{rule=\"AS071\"}";
    eventually("the gauge", async || {
        (pod.shim.metric(series).await == 1.0).then_some(())
    })
    .await;
    let status = pod.shim.status().await;
    let first = &status["findings"][0];
    assert_eq!(
        (&first["rule"], &first["name"]),
        (&"AS071".into(), &"requirement-missing".into())
    );
    assert_eq!(first["severity"], "broken");
    assert!(
        first["fix"]
            .as_str()
            .unwrap()
            .contains("Server.spec.capabilities"),
        "{first}"
    );
    let admin = format!("http://{}", pod.shim.admin());
    let table = Command::new(env!("CARGO_BIN_EXE_agent-shim"))
        .args(["status", "--admin", &admin])
        .output();
    let table = String::from_utf8(within("the table", table).await.unwrap().stdout).unwrap();
    assert!(
        table.contains("AS071") && table.contains("FINDING"),
        "{table}"
    );
    // The agent's event about another model makes the shim read the scheduler's belief again.
    pod.scheduler.unload("iris");
    pod.scheduler.load(model("other", &["sklearn"], None));
    eventually("the gauge to fall", async || {
        (pod.shim.metric(series).await == 0.0).then_some(())
    })
    .await;
}
