//! The webhook as its pod runs it: flags, signals, exit codes; and what its page says of it.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use super::support::*;
use crate::support::{eventually, http as plain, within};

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-shim"));
    command.arg("webhook").args(args).env_clear();
    command.kill_on_drop(true);
    command
}

struct Running {
    child: Child,
    authority: Authority,
    review: SocketAddr,
    ops: SocketAddr,
    log: Lines<BufReader<ChildStderr>>,
}

impl Running {
    async fn start(args: &[&str]) -> Running {
        let authority = Authority::new();
        authority.write(&authority.pair((2020, 2050)));
        let files = authority.files();
        let mut child = program(&[
            "--listen=127.0.0.1",
            "--port=0",
            "--ops-port=0",
            "--log-format=json",
        ])
        .args(["--tls-cert".as_ref(), files.cert.as_os_str()])
        .args(["--tls-key".as_ref(), files.key.as_os_str()])
        .args(args)
        .env("POD_NAMESPACE", "shim")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = line(&mut log, "listening").await;
        let address = |name: &str| listening["fields"][name].as_str().unwrap().parse().unwrap();
        Running {
            review: address("review"),
            ops: address("ops"),
            child,
            authority,
            log,
        }
    }

    async fn caller(&self) -> Caller {
        Caller::connect(self.review, self.authority.client(&["h2"])).await
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let kill = std::process::Command::new("kill")
            .args(["-s", name, &pid])
            .status();
        assert!(kill.unwrap().success());
    }

    async fn code(&mut self) -> Option<i32> {
        let ended = within("the process to end", self.child.wait()).await;
        ended.unwrap().code()
    }
}

async fn line(log: &mut Lines<BufReader<ChildStderr>>, message: &str) -> serde_json::Value {
    within(message, async {
        while let Some(text) = log.next_line().await.unwrap() {
            let line: serde_json::Value = serde_json::from_str(&text).unwrap();
            let said = line["fields"]["message"].as_str().unwrap_or_default();
            if said.starts_with(message) {
                return line;
            }
        }
        panic!("the log ended before {message:?}");
    })
    .await
}

#[tokio::test]
async fn told_to_stop_it_is_not_ready_serves_on_and_ends_with_0() {
    let mut running = Running::start(&["--stop-delay=2s", "--image=shim:9"]).await;
    assert_eq!(plain::get(running.ops, "/readyz").await.0, 200);
    let pod = pod();
    let first = review(&pod);
    let mut caller = running.caller().await;
    let (_, answer) = caller.post(first.to_string()).await;
    let injected = patched(&pod, &response(&first, &answer)).to_string();
    assert!(injected.contains("\"shim:9\""), "{injected}");
    running.signal("TERM");
    line(&mut running.log, "stopping").await;
    let (status, said) = plain::get(running.ops, "/readyz").await;
    assert_eq!(status, 503);
    assert_eq!(said, "not-draining: the webhook was told to stop\n");
    // Old connections and new ones.
    assert_eq!(caller.post(first.to_string()).await.0, 200);
    assert_eq!(running.caller().await.post(first.to_string()).await.0, 200);
    assert_eq!(running.code().await, Some(0));
}

#[tokio::test]
async fn a_request_under_way_is_answered_after_the_port_is_closed() {
    let mut running = Running::start(&["--stop-delay=0s"]).await;
    let body = review(&pod()).to_string();
    let client = running.authority.client(&["http/1.1"]);
    let mut stream = secured(running.review, client).await.unwrap();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let (now, later) = body.split_at(body.len() / 2);
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(now.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    // Its handshake is answered behind the bytes above, which the server has then seen.
    let mut witness = running.caller().await;
    assert_eq!(witness.post("{}").await.0, 400);
    running.signal("TERM");
    eventually("the port to be closed", async || {
        let refused = tokio::net::TcpStream::connect(running.review).await;
        refused.is_err().then_some(())
    })
    .await;
    stream.write_all(later.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    let _ = within("the answer", read).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("JSONPatch"), "{answer}");
    assert_eq!(running.code().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut running = Running::start(&["--stop-delay=1h"]).await;
    running.signal("TERM");
    line(&mut running.log, "stopping").await;
    running.signal("INT");
    line(&mut running.log, "told to stop again").await;
    assert_eq!(running.code().await, Some(1));
}

#[tokio::test]
async fn its_own_namespace_comes_from_the_pod() {
    let running = Running::start(&[]).await;
    for (namespace, outcome) in [
        ("shim", "unchanged"),
        ("kube-system", "unchanged"),
        ("ns", "injected"),
    ] {
        let mut review = review(&pod());
        review["request"]["namespace"] = namespace.into();
        let (_, answer) = running.caller().await.post(review.to_string()).await;
        let response = response(&review, &answer);
        assert_eq!(
            response["auditAnnotations"]["outcome"], outcome,
            "{namespace}"
        );
    }
}

#[tokio::test]
async fn bad_flags_end_it_with_2_and_a_taken_port_with_1() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = format!("--port={}", taken.local_addr().unwrap().port());
    for (args, code, part) in [
        (
            &["--allow-overrides=image,nonsense"][..],
            2,
            "\"nonsense\": expected all, none, or",
        ),
        (
            &["--own-namespace=$(POD_NAMESPACE)"],
            2,
            "expected the name of a namespace",
        ),
        (&["--image=two words"], 2, "expected an image"),
        (&["--stop-delay=soon"], 2, "--stop-delay"),
        (&["--log=loud"], 2, "expected a level"),
        (
            &["--listen=127.0.0.1", &port],
            1,
            "for admission reviews (--port)",
        ),
    ] {
        let run = program(args).output();
        let output = within("the command to end", run).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {said}");
    }
}

const PAGE: &str = include_str!("../../../docs/webhook.md");

#[tokio::test]
async fn its_page_has_every_series_and_every_override_and_no_other() {
    let hook = Arc::new(Hook::start());
    let (_, text) = hook.get("/metrics").await;
    let mut exported: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .filter(|(name, _)| name.starts_with("agent_shim_webhook_"))
        .map(|(name, kind)| format!("| `{name}` | {kind} |"))
        .collect();
    exported.sort();
    let rows = |start: &str| {
        let rows = PAGE.lines().filter(|l| l.starts_with(start));
        let mut rows: Vec<String> = rows
            .map(|l| l.split('|').take(3).collect::<Vec<_>>().join("|") + "|")
            .collect();
        rows.sort();
        rows
    };
    assert_eq!(rows("| `agent_shim_webhook_"), exported);
    let mut overrides: Vec<String> = agent_shim::webhook::overrides::OVERRIDES
        .iter()
        .map(|o| format!("| `agent-shim.io/{}` | {} |", o.name, o.expected))
        .collect();
    overrides.sort();
    assert_eq!(rows("| `agent-shim.io/"), overrides);
    // Zeros from the start.
    for outcome in agent_shim::webhook::metrics::Outcome::ALL {
        let series = format!(
            "agent_shim_webhook_requests_total{{outcome=\"{}\"}}",
            outcome.as_str()
        );
        assert_eq!(hook.series(&series).await, 0.0);
    }
}
