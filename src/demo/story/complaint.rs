//! The second part of the story: the agent is subscribed, the server is ready, and no model is
//! scheduled. First as it is without the shim, with the scheduler's own reasons; then the same
//! agent, with the shim's port for the scheduler's.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{LIMIT, selected};
use crate::capacity::AGENT_DEFAULT;
use crate::demo::agent::{AgentConfig, FakeAgent};
use crate::demo::caller::{Answer, Caller, GRPC_INFER, HTTP_INFER};
use crate::demo::stage::{INSTALLED, POD, Stage};
use crate::demo::store::{NO_REPLICA, NO_SERVER, Store};
use crate::demo::tell::{Side, Teller};
use crate::endpoint::Protocol;
use crate::proto::scheduler::model_status::ModelState;
use crate::proto::scheduler::{MetaData, Model, ModelSpec};

mod claims;

/// The list that a `ServerConfig` comes with.
const DECLARED: [&str; 10] = [
    "mlserver",
    "alibi-detect",
    "alibi-explain",
    "huggingface",
    "lightgbm",
    "mlflow",
    "python",
    "sklearn",
    "spark-mlib",
    "xgboost",
];
/// Declares memory, and nothing that is not declared.
const FRAUD: &str = "fraud";
/// Its author wrote down what the code imports.
const CHURN: &str = "churn";
/// Its author wrote pip's name for sklearn.
const WINE: &str = "wine";
const MODELS: [(&str, &[&str], Option<u64>); 3] = [
    (FRAUD, &["sklearn"], Some(512 << 20)),
    (CHURN, &["mlflow", "torch", "numpy", "scikit-learn"], None),
    (WINE, &["scikit-learn"], None),
];
/// How the scheduler begins every reason; left out where there is little room.
const REASON_BEGINS: &str = "Failed to schedule model as ";

/// What stands where the agent should tell its memory.
#[derive(Clone, Copy)]
enum Cause {
    /// The container has no request, so the downward API gives 0.
    NoRequest,
    /// The agent's own default.
    NoVariable,
}

impl Cause {
    fn memory(self) -> u64 {
        match self {
            Cause::NoRequest => 0,
            Cause::NoVariable => AGENT_DEFAULT,
        }
    }
}

/// Tells it. Gives the agent that is subscribed at the end.
pub(super) async fn tell(teller: &mut Teller, stage: &Stage) -> FakeAgent {
    teller.say("");
    teller.say(
        "Now the control plane: a stand-in scheduler, and a stand-in for Seldon's agent. \"without\" is an agent that subscribes to the scheduler itself; \"with\" is the same agent, and it subscribes to the shim.",
    );
    for (name, requirements, memory) in MODELS {
        stage.scheduler.load(model(name, requirements, memory));
    }
    let no_request = unplaced(teller, stage, Cause::NoRequest).await;
    let no_variable = unplaced(teller, stage, Cause::NoVariable).await;
    let (agent, with_variable) = moved(teller, stage).await;
    let (agent, with_request) = restarted(teller, stage, agent).await;
    let believed = claims::tell(teller, stage).await;

    let memory = format!("placed: the scheduler believes {believed}");
    for (situation, without, with) in [
        (
            "no memory request: the agent says 0",
            &no_request[0],
            &with_request[0],
        ),
        (
            "MEMORY_REQUEST missing: the agent says 1,000,000",
            &no_variable[0],
            &with_variable[0],
        ),
    ] {
        teller.row(situation, &short(without), &placed_as(with, &memory));
    }
    teller.row(
        "requires mlflow torch numpy scikit-learn",
        &short(&no_request[1]),
        &placed_as(
            &with_request[1],
            "placed: what is installed is reported too",
        ),
    );
    teller.row(
        "requires scikit-learn; the list says sklearn",
        &short(&no_request[2]),
        &placed_as(&with_request[2], "placed: both spellings are reported"),
    );
    agent
}

/// The agent goes to the scheduler itself, and nothing is placed.
async fn unplaced(teller: &mut Teller, stage: &Stage, cause: Cause) -> Vec<Answer> {
    let (names, reasons): (&[&str], &[&str]) = match cause {
        Cause::NoRequest => {
            teller.step(
                "The agent subscribes, and no model is scheduled",
                &format!(
                    "The server's container has no memory request, so MEMORY_REQUEST is 0. The agent declares the usual capabilities: {}. fraud requires sklearn and 512Mi; churn requires mlflow, torch, numpy and scikit-learn; wine requires scikit-learn:",
                    DECLARED.join(", ")
                ),
            );
            (&[FRAUD, CHURN, WINE], &[NO_REPLICA, NO_SERVER, NO_SERVER])
        }
        Cause::NoVariable => {
            teller.step(
                "The agent without MEMORY_REQUEST",
                "The variable is missing altogether: the agent says its default, 1,000,000 bytes.",
            );
            (&[FRAUD], &[NO_REPLICA])
        }
    };
    let started = Instant::now();
    let agent = agent(stage, Side::Without, cause);
    // Placing is tried before the replica can be seen.
    let subscribed = stage
        .scheduler
        .until(LIMIT, |store| total(store) == Some(cause.memory()))
        .await;
    teller.expect(
        subscribed,
        format!("the agent is subscribed with {} bytes", cause.memory()),
    );
    let mut answers = Vec::new();
    for (name, reason) in names.iter().zip(reasons) {
        let answer = state(stage, name, started);
        teller.got(Side::Without, &answer);
        teller.expect(
            answer.answer == format!("ScheduleFailed: {reason}"),
            format!("{name} is not scheduled: {reason}"),
        );
        answers.push(answer);
    }
    leaves(teller, stage, agent).await;
    teller.end();
    answers
}

/// The agent's scheduler port is the shim's, and everything is placed.
async fn moved(teller: &mut Teller, stage: &Stage) -> (FakeAgent, Vec<Answer>) {
    teller.step(
        "The same agent subscribes to the shim",
        &format!(
            "Its SELDON_SCHEDULER_PORT and SELDON_SERVER_GRPC_PORT are the shim's ({} and {}); nothing else has changed. The shim has the container's limit, 4Gi, from the downward API (SHIM_MEMORY_LIMIT), and is told what is installed (SHIM_CAPABILITIES_LIST={INSTALLED}).",
            stage.agent().port(),
            stage.relays()[Protocol::Grpc.index()].port()
        ),
    );
    // What the agent loads must arrive at the server that is there for good.
    selected(teller, stage, POD).await;
    let (agent, answers) = placed(teller, stage, Cause::NoVariable).await;
    let repository: BTreeSet<String> = stage
        .server
        .models()
        .into_iter()
        .filter(|m| m.state == "READY")
        .map(|m| m.name)
        .collect();
    for (name, _, _) in MODELS {
        let name = loaded_as(stage, name);
        teller.expect(
            repository.contains(&name),
            format!("{name} is loaded in the server"),
        );
    }
    let mut caller = Caller::new(stage.relays(), LIMIT).of(&loaded_as(stage, FRAUD));
    for call in [HTTP_INFER, GRPC_INFER] {
        let answer = caller.call(call).await;
        teller.got(Side::With, &answer);
        teller.expect(answer.ok, "an inference is answered");
    }
    teller.end();
    (agent, answers)
}

/// The other cause, behind the shim.
async fn restarted(
    teller: &mut Teller,
    stage: &Stage,
    before: FakeAgent,
) -> (FakeAgent, Vec<Answer>) {
    teller.step(
        "The agent is restarted, with MEMORY_REQUEST 0",
        "The scheduler takes its models away at once, and places them again when it is back:",
    );
    leaves(teller, stage, before).await;
    let done = placed(teller, stage, Cause::NoRequest).await;
    teller.end();
    done
}

async fn placed(teller: &mut Teller, stage: &Stage, cause: Cause) -> (FakeAgent, Vec<Answer>) {
    let started = Instant::now();
    let agent = agent(stage, Side::With, cause);
    let mut answers = Vec::new();
    for (name, _, _) in MODELS {
        let there = stage
            .scheduler
            .until(LIMIT, |store| store.is_available(name))
            .await;
        let answer = state(stage, name, started);
        teller.got(Side::With, &answer);
        teller.expect(there, format!("{name} is available"));
        answers.push(answer);
    }
    (agent, answers)
}

fn model(name: &str, requirements: &[&str], memory: Option<u64>) -> Model {
    Model {
        meta: Some(MetaData { name: name.into() }),
        model_spec: Some(ModelSpec {
            uri: format!("gs://models/{name}"),
            requirements: requirements.iter().map(ToString::to_string).collect(),
            memory_bytes: memory,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn agent(stage: &Stage, side: Side, cause: Cause) -> FakeAgent {
    let (scheduler, inference) = match side {
        Side::Without => (stage.scheduler.agent, stage.server.address(Protocol::Grpc)),
        Side::With => (stage.agent(), stage.relays()[Protocol::Grpc.index()]),
    };
    FakeAgent::start(AgentConfig {
        capabilities: DECLARED.map(String::from).to_vec(),
        inference: Some(inference),
        ..AgentConfig::new(scheduler, cause.memory())
    })
}

/// Ends an agent, and waits until the scheduler has noticed: a second Subscribe would wait for it.
async fn leaves(teller: &mut Teller, stage: &Stage, agent: FakeAgent) {
    drop(agent);
    let gone = stage
        .scheduler
        .until(LIMIT, |store| store.replicas.is_empty())
        .await;
    teller.expect(gone, "the scheduler has noticed that the agent is gone");
}

/// The total of the only replica.
fn total(store: &Store) -> Option<u64> {
    store.replicas.values().next().map(|replica| replica.total)
}

/// The name under which the agent loads a model.
fn loaded_as(stage: &Stage, name: &str) -> String {
    let version = stage
        .scheduler
        .read(|store| store.models.get(name).map(|record| record.version));
    format!("{name}_{}", version.unwrap_or_default())
}

/// A model's state as its user sees it, with the scheduler's own reason.
fn state(stage: &Stage, name: &'static str, started: Instant) -> Answer {
    let (ok, answer) = stage.scheduler.read(|store| match store.model(name) {
        Some((ModelState::ModelAvailable, _)) => (true, "Available".to_string()),
        Some((state, reason)) => (false, format!("{}: {reason}", state.as_str_name())),
        None => (false, "unknown to the scheduler".to_string()),
    });
    Answer {
        call: name,
        ok,
        answer,
        ms: (started.elapsed().as_secs_f64() * 1e4).round() / 10.0,
    }
}

fn short(answer: &Answer) -> String {
    answer.answer.replace(REASON_BEGINS, "")
}

fn placed_as(answer: &Answer, words: &str) -> String {
    if answer.ok {
        words.to_string()
    } else {
        short(answer)
    }
}
