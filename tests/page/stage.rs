//! The stage of the browser tests: a stand-in server and scheduler, and an agent once it is told
//! where. Prints its addresses as one JSON line, then obeys a command a line and answers `ok`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::Write as _;

use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::demo::standin::StandIn;
use agent_shim::proto::scheduler::{MetaData, Model, ModelSpec};
use tokio::sync::mpsc;

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}

/// Names that try to break out of the page, to hide, to reorder and to fill it.
fn hostile() -> Vec<(String, String, String)> {
    let of = |name: &str| (name.to_string(), "v1".to_string(), "READY".to_string());
    vec![
        of("<script>document.title='owned'</script>"),
        of("\"><img src=x onerror=\"document.title='owned'\">"),
        of("'; alert(1); //"),
        of("\u{202e}gpj.elif\u{2066}\u{200f}"),
        of("שלום-model"),
        of("two\nlines\u{0}nul"),
        of(&format!("{}-v17", "x".repeat(10_000))),
        ("iris".into(), "<b>1</b>".into(), "</td><script>".into()),
    ]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let scheduler = FakeScheduler::start().await.unwrap();
    let (http, grpc) = (server.http().port(), server.grpc().port());
    let (agents, status) = (scheduler.agent, scheduler.status);
    say(&format!(
        r#"{{"http":{http},"grpc":{grpc},"scheduler":"{agents}","status":"{status}"}}"#
    ));
    let mut agent = None;
    let (heard, mut lines) = mpsc::unbounded_channel();
    // Reading blocks, and the stand-ins share this thread.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if heard.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["agent", at, memory] => {
                let mut config = AgentConfig::new(at.parse().unwrap(), memory.parse().unwrap());
                config.capabilities = ["mlserver", "sklearn", "xgboost", "huggingface"]
                    .map(Into::into)
                    .into();
                config.inference = Some(server.grpc());
                agent = Some(FakeAgent::start(config));
            }
            ["no-agent"] => agent = None,
            ["stop"] => server.stop().await,
            ["restart"] => server.restart().await.unwrap(),
            ["stop-grpc"] => server.stop_grpc().await,
            ["restart-grpc"] => server.restart_grpc().await.unwrap(),
            ["wedge"] => server.wedge(),
            ["unwedge"] => server.unwedge(),
            ["models", "hostile"] => server.set_models(hostile()),
            ["models", n] => server.set_models((0..n.parse::<u32>().unwrap()).map(|i| {
                let state = ["READY", "READY", "UNAVAILABLE", "UNKNOWN"][i as usize % 4];
                (format!("fraud-detector-{i}"), "v0.1.0", state)
            })),
            ["require", name, requirement] => scheduler.load(Model {
                meta: Some(MetaData { name: name.into() }),
                model_spec: Some(ModelSpec {
                    uri: "gs://models/any".into(),
                    requirements: vec![requirement.into()],
                    ..Default::default()
                }),
                ..Default::default()
            }),
            _ => panic!("no such command: {line}"),
        }
        say("ok");
    }
    drop(agent);
}
