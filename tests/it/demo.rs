//! `agent-shim demo` as a person and as a script start it.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// The demo takes 6 s on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

fn demo(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_agent-shim"))
        .arg("demo")
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn for_machines_it_prints_an_object_a_step_and_a_summary() {
    let child = demo(&["--once", "--json", "--admin-port", "0"]);
    let output = timeout(LIMIT, child.wait_with_output()).await;
    let output = output.expect("the demo ends by itself").unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let objects: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (summary, steps) = objects.split_last().unwrap();
    for step in steps {
        assert_eq!(step["passed"], true, "{step:#}");
    }
    assert!(output.status.success(), "{text}");
    assert_eq!(output.stderr, b"", "the shim is quiet");
    let summary = &summary["summary"];
    assert_eq!(
        (&summary["passed"], &summary["steps"]),
        (&true.into(), &9.into())
    );

    let answers = |step: usize, side: &str| -> Vec<(String, bool, String)> {
        let all = steps[step - 1][side].as_array().unwrap();
        all.iter()
            .map(|a| {
                let text = |key: &str| a[key].as_str().unwrap().to_string();
                (text("call"), a["ok"] == true, text("answer"))
            })
            .collect()
    };
    assert!(
        answers(1, "without")
            .iter()
            .all(|a| a.2.contains("refused"))
    );
    assert!(answers(2, "with").iter().all(|a| a.1));
    for (call, ok, answer) in answers(4, "with") {
        if call.ends_with("live") {
            assert!(ok, "{call}: {answer}");
        } else {
            assert!(
                answer.contains("nothing listens there any more"),
                "{answer}"
            );
        }
    }
    assert!(answers(5, "with").iter().all(|a| !a.1));
    assert!(answers(6, "with").iter().all(|a| a.1));
    assert!(answers(8, "with").iter().all(|a| a.1));
}

#[tokio::test]
async fn for_people_it_fits_the_screen_and_leaves_the_admin_port_up_until_interrupted() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut child = demo(&["--admin-port", &port]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut admin = None;
    let told = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
            assert!(!line.contains("!!"), "not as told: {line}");
            // The last line of all.
            if let Some(url) = line.trim().strip_prefix("agent-shim status --admin ") {
                admin = Some(url.to_string());
                return;
            }
        }
    };
    timeout(LIMIT, told).await.expect("the story ends");
    let admin = admin.expect("the admin port is named");
    let ready = reqwest::get(format!("{admin}/readyz")).await.unwrap();
    assert_eq!(ready.status(), 200);
    let interrupted = Command::new("kill")
        .args(["-INT", &child.id().unwrap().to_string()])
        .status();
    assert!(interrupted.await.unwrap().success());
    let ended = timeout(LIMIT, child.wait())
        .await
        .expect("it ends")
        .unwrap();
    assert!(ended.success(), "{ended}");
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut said).await.unwrap();
    assert!(
        said.contains(&format!("cannot listen on 127.0.0.1:{port}")) && said.lines().count() == 1,
        "{said}"
    );
}
