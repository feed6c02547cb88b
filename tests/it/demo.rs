//! `agent-shim demo` as a person and as a script start it.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use agent_shim::demo::store::{NO_REPLICA, NO_SERVER};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// The demo takes 8 s on an idle machine.
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
        (&true.into(), &14.into())
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

    let called = |answers: Vec<(String, bool, String)>| -> Vec<String> {
        answers
            .into_iter()
            .map(|(call, ok, answer)| format!("{call} {ok} {answer}"))
            .collect()
    };
    let no_room = format!("fraud false ScheduleFailed: {NO_REPLICA}");
    let unmet = |model: &str| format!("{model} false ScheduleFailed: {NO_SERVER}");
    assert_eq!(
        called(answers(10, "without")),
        [no_room.clone(), unmet("churn"), unmet("wine")]
    );
    assert_eq!(called(answers(11, "without")), [no_room]);
    let available = ["fraud", "churn", "wine"].map(|model| format!("{model} true Available"));
    let moved = called(answers(12, "with"));
    assert_eq!(moved[..3], available);
    assert_eq!(
        moved[3..],
        [
            "HTTP infer true 200: fraud_1 answered",
            "gRPC infer true OK: fraud_1 answered"
        ]
    );
    assert_eq!(called(answers(13, "with")), available);
    the_shims_own_words(&steps[13]);

    let table = summary["table"].as_array().unwrap();
    let complaint = &table[table.len() - 4..];
    for (row, begins) in complaint.iter().zip([
        "no memory request",
        "MEMORY_REQUEST missing",
        "requires mlflow torch",
        "requires scikit-learn",
    ]) {
        let cell = |name: &str| row[name].as_str().unwrap();
        assert!(cell("situation").starts_with(begins), "{row}");
        assert!(
            cell("without").starts_with("ScheduleFailed: no matching server"),
            "{row}"
        );
        assert!(cell("with").starts_with("placed"), "{row}");
    }
    assert_eq!(complaint[0]["with"], "placed: the scheduler believes 4.0Gi");
}

/// The last step: memory and capabilities as `/status` has them.
fn the_shims_own_words(step: &Value) {
    let facts = step["facts"].as_array().unwrap();
    let fact = |name: &str| -> &Value {
        let found = facts.iter().find(|f| f["name"] == name);
        &found.unwrap_or_else(|| panic!("no {name} in {step:#}"))["value"]
    };
    let limit = 4u64 << 30;
    assert_eq!(fact("requested"), 0);
    assert_eq!(
        fact("observed"),
        &json!({"bytes": limit, "source": "limit"})
    );
    assert_eq!(fact("reported"), limit);
    assert_eq!(fact("believed"), limit);
    assert_eq!(fact("kept").as_array().unwrap().len(), 10);
    assert_eq!(fact("dropped"), &json!([]));
    let has = |name: &str, entry: &str| fact(name).as_array().unwrap().contains(&entry.into());
    for name in ["torch", "numpy", "scikit-learn"] {
        assert!(has("added", name), "{name}");
    }
    assert!(has("aliased", "HuggingFace"));
    assert!(has("not installed", "huggingface"));
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
