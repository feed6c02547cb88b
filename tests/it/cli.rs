//! The binary as a person or a kubelet starts it.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use agent_shim::demo::standin::StandIn;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use crate::support::{Shim, eventually, refused, within};

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-shim"));
    command.args(args).env_clear().kill_on_drop(true);
    command
}

async fn output(args: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let run = program(args).envs(environment.iter().copied()).output();
    let output = within("the command to end", run).await.unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// A running sidecar and the address of its admin port, from its own log.
struct Running {
    child: Child,
    admin: SocketAddr,
    log: Lines<BufReader<ChildStderr>>,
}

impl Running {
    async fn start(environment: &[(&str, &str)]) -> Running {
        let mut child = program(&[])
            .envs([
                ("SHIM_RELAY_HTTP_PORT", "0"),
                ("SHIM_RELAY_GRPC_PORT", "0"),
                ("SHIM_ADMIN_PORT", "0"),
                ("SHIM_ADMIN_LISTEN", "127.0.0.1"),
                ("SHIM_LOG_FORMAT", "json"),
            ])
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = line(&mut log, "listening").await;
        let admin = listening["fields"]["admin"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        Running { child, admin, log }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let killed = std::process::Command::new("kill")
            .args(["-s", name, &pid])
            .status();
        assert!(killed.unwrap().success());
    }

    async fn code(&mut self) -> Option<i32> {
        within("the process to end", self.child.wait())
            .await
            .unwrap()
            .code()
    }
}

async fn line(log: &mut Lines<BufReader<ChildStderr>>, message: &str) -> serde_json::Value {
    within(message, async {
        while let Some(text) = log.next_line().await.unwrap() {
            let line: serde_json::Value = serde_json::from_str(&text).unwrap();
            if line["fields"]["message"]
                .as_str()
                .unwrap_or_default()
                .starts_with(message)
            {
                return line;
            }
        }
        panic!("the log ended before {message:?}");
    })
    .await
}

#[tokio::test]
async fn a_bad_configuration_is_told_whole_and_exits_with_2() {
    let (code, out, err) = output(
        &["run"],
        &[
            ("SHIM_INFERENCE_GRPC_PORT", "95000"),
            ("SHIM_PROBE_TIMEOUT", "5s"),
        ],
    )
    .await;
    assert_eq!((code, out.as_str()), (2, ""));
    assert_eq!(
        err,
        "agent-shim: the configuration has 2 problem(s):\n  \
         SHIM_INFERENCE_GRPC_PORT=\"95000\": expected a port from 1 to 65535\n  \
         SHIM_PROBE_TIMEOUT=\"5s\": expected at most SHIM_PROBE_INTERVAL (1s), or probes would outlast their turn\n"
    );
    assert_eq!(output(&["--nonsense"], &[]).await.0, 2);
}

#[tokio::test]
async fn config_shows_every_value_and_where_it_comes_from() {
    let (code, out, err) = output(
        &["config"],
        &[("SHIM_PROBE_INTERVAL", "2s"), ("SHIM_PROBE_RISES", "2")],
    )
    .await;
    assert_eq!(code, 0);
    let row = |name: &str| {
        let line = out.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace()
            .map(str::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(row("SHIM_PROBE_INTERVAL")[1..], ["2s", "environment"]);
    assert_eq!(row("SHIM_PROBE_RISE ")[1..], ["1", "default"]);
    assert!(err.contains("did you mean SHIM_PROBE_RISE?"), "{err}");
    let (_, json, _) = output(&["config", "--json"], &[]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["SHIM_MODE"]["value"], "correct");
}

#[tokio::test]
async fn a_taken_port_ends_the_start_with_its_name() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let quiet = [
        ("SHIM_RELAY_HTTP_PORT", "0"),
        ("SHIM_RELAY_GRPC_PORT", port.as_str()),
    ];
    let (code, _, err) = output(&["run"], &quiet).await;
    assert_eq!(code, 1);
    let told =
        format!("cannot listen on 127.0.0.1:{port} for the gRPC relay (SHIM_RELAY_GRPC_PORT)");
    assert!(err.contains(&told), "{err}");
    assert!(
        !err.contains("listening"),
        "nothing was called started: {err}"
    );
}

#[tokio::test]
async fn sigterm_without_connections_exits_with_0() {
    let mut running = Running::start(&[]).await;
    running.signal("TERM");
    let told = line(&mut running.log, "told to stop").await;
    assert_eq!(told["fields"]["signal"], "SIGTERM");
    assert_eq!(running.code().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_exits_now() {
    let (nowhere, _port) = refused().await;
    let port = nowhere.port().to_string();
    let mut running = Running::start(&[("SHIM_INFERENCE_GRPC_PORT", port.as_str())]).await;
    let status = crate::support::http::get(running.admin, "/status").await.1;
    assert!(status.contains("\"mode\""));
    running.signal("TERM");
    line(&mut running.log, "stopping").await;
    running.signal("TERM");
    line(&mut running.log, "told to stop again").await;
    assert_eq!(running.code().await, Some(1));
}

#[tokio::test]
async fn status_prints_a_table_for_people_and_json_for_scripts() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    server.set_models([("iris", "v1", "READY")]);
    let shim = Shim::before("127.0.0.1,::1", server.http(), server.grpc(), &[]);
    shim.ready().await;
    let admin = format!("http://{}", shim.admin());
    let table = eventually("the model in the table", async || {
        let (code, out, _) = output(&["status", "--admin", &admin], &[]).await;
        assert_eq!(code, 0);
        out.contains("iris").then_some(out)
    })
    .await;
    assert!(
        table.starts_with(concat!(
            "agent-shim ",
            env!("CARGO_PKG_VERSION"),
            " (READY)"
        )),
        "{table}"
    );
    let used = table.lines().filter(|l| l.starts_with("  *")).count();
    assert_eq!(used, 2, "{table}");
    for part in ["[::1]:", "refused", "inference-grpc", "READY"] {
        assert!(table.contains(part), "{part} is not in:\n{table}");
    }
    for line in table.lines() {
        assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
    let (_, json, _) = output(&["status", "--json", "--admin", &admin], &[]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["selection"]["grpc"], "127.0.0.1");
}

#[tokio::test]
async fn status_calls_a_pod_ready_whose_scheduler_is_away_as_readyz_does() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let (nowhere, _port) = refused().await;
    let scheduler = nowhere.to_string();
    let settings = [
        ("SHIM_SCHEDULER", scheduler.as_str()),
        ("SHIM_AGENT_PORT", "0"),
    ];
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &settings);
    let admin = format!("http://{}", shim.admin());
    let verdict = async || {
        let (_, out, _) = output(&["status", "--admin", &admin], &[]).await;
        let subscribed = out.lines().find(|l| l.starts_with("subscribed "))?;
        assert!(subscribed.contains(" NO "), "{out}");
        Some(out.lines().next()?.contains("(READY)"))
    };
    shim.ready().await;
    let ready = eventually("the condition in the table", verdict).await;
    assert!(ready);
    server.stop().await;
    shim.state("127.0.0.1", "grpc", "down").await;
    let ready = eventually("the condition in the table", verdict).await;
    assert!(!ready);
}

#[tokio::test]
async fn status_without_a_shim_says_where_it_looked() {
    let (nowhere, _port) = refused().await;
    let url = format!("http://{nowhere}");
    let (code, _, err) = output(&["status", "--admin", &url], &[]).await;
    assert_eq!(code, 1);
    assert!(
        err.contains(&format!("no answer from {url}/status")),
        "{err}"
    );
}

#[tokio::test]
async fn probe_has_a_code_for_each_way_to_fail() {
    let server = StandIn::start(LOOPBACK).await.unwrap();
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[]);
    shim.ready().await;
    let (nowhere, _port) = refused().await;
    let at = |address: SocketAddr| address.to_string();
    let (admin, http, grpc, nowhere) = (
        at(shim.admin()),
        at(server.http()),
        at(server.grpc()),
        at(nowhere),
    );
    for (args, code) in [
        (vec!["probe", "readyz", "--at", &admin], 0),
        (vec!["probe", "livez", "--at", &admin], 0),
        (vec!["probe", "startupz", "--at", &admin], 0),
        (vec!["probe", "server-http", "--at", &http], 0),
        (vec!["probe", "server-grpc", "--at", &grpc], 0),
        (vec!["probe", "readyz", "--at", "nonsense"], 1),
        (vec!["probe", "--nonsense"], 1),
        (vec!["probe", "--help"], 0),
        (vec!["probe", "readyz", "--at", &nowhere], 2),
        (vec!["probe", "server-grpc", "--at", &nowhere], 2),
        // HTTP/1.1 to a gRPC port, and the other way round: connected, and the call fails.
        (vec!["probe", "server-http", "--at", &grpc], 3),
        (vec!["probe", "server-grpc", "--at", &http], 3),
    ] {
        let (got, _, err) = output(&args, &[]).await;
        assert_eq!(got, code, "{args:?}: {err}");
    }
    server.set_live(false);
    let (code, _, err) = output(&["probe", "server-grpc", "--at", &grpc], &[]).await;
    assert_eq!(code, 4, "{err}");
    server.set_live(true);
    server.wedge();
    let quick = ["probe", "server-grpc", "--timeout", "100ms", "--at", &grpc];
    assert_eq!(output(&quick, &[]).await.0, 3);
}

#[tokio::test]
async fn probe_uses_the_pods_own_settings() {
    // A server that is not there, whatever else runs on this machine.
    let (nowhere, _port) = refused().await;
    let shim = Shim::before("127.0.0.1", nowhere, nowhere, &[]);
    let port = shim.admin().port().to_string();
    // The limits are another test's: here a slow machine must not decide.
    let patient = ["probe", "--connect-timeout", "15s", "--timeout", "15s"];
    let (code, _, err) = output(&patient, &[("SHIM_ADMIN_PORT", port.as_str())]).await;
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("inference-grpc: "), "{err}");
}

/// As in `agent-shim config | head -0`: the reader has gone before a byte is written.
#[tokio::test]
async fn a_reader_that_has_gone_is_no_failure_and_no_panic() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/inject/server.yaml");
    // Nothing listens there.
    let (nobody, _port) = refused().await;
    let nobody = nobody.to_string();
    let cases: [(&[&str], i32); 11] = [
        (&["--help"], 0),
        (&["config"], 0),
        (&["config", "--json"], 0),
        (&["config", "--markdown"], 0),
        (&["config", "--no-such-flag"], 2),
        (&["inject", manifest], 0),
        (&["inject", "--diff", manifest], 0),
        (&["inject", "--check", manifest], 1),
        (&["inject", "--set", "SHIM_LGO=info", manifest], 2),
        (&["doctor", "--rules-markdown"], 0),
        (&["probe", "livez", "--at", &nobody], 2),
    ];
    for (args, expected) in cases {
        let gone = || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            Stdio::from(writer)
        };
        let mut command = program(args);
        command.stdout(gone()).stderr(gone());
        let status = within("the command to end", command.status())
            .await
            .unwrap();
        assert_eq!(status.code(), Some(expected), "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_cannot_be_written_for_another_reason_fails_and_says_so() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = program(&["config"]);
    command.stdout(full.unwrap()).stderr(Stdio::piped());
    // Not `output`, which would take stdout for itself.
    let child = command.spawn().unwrap();
    let output = within("the command to end", child.wait_with_output());
    let output = output.await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("agent-shim: stdout: "), "{said}");
}
