//! What the shim owes the scheduler is bounded: who asks for more of what can never fit, and takes
//! none of the refusals, is not read from.

use agent_shim::proto::agent::model_event_message::Event;
use agent_shim::proto::agent::model_operation_message::Operation;
use agent_shim::proto::agent::{ModelEventMessage, ModelOperationMessage, ModelVersion};
use agent_shim::subscription::frames::framed;
use bytes::Bytes;
use http_body::Frame;
use prost::Message;

use super::events::request;
use super::raw::*;
use super::support::*;

/// Refusals that may be on their way at one time.
const MOST: usize = 100;

fn load(name: &str, memory: u64) -> Bytes {
    let operation = ModelOperationMessage {
        operation: Operation::LoadModel.into(),
        model_version: Some(ModelVersion {
            model: Some(model(name, &["sklearn"], Some(memory))),
            version: 1,
            agent_shim_original: None,
        }),
        autoscaling_enabled: false,
    };
    framed(&operation.encode_to_vec())
}

/// The next refusal that reaches the scheduler, and its model.
async fn refusal(scheduler: &mut RawScheduler) -> (Call, String) {
    let mut call = scheduler.call().await;
    assert_eq!(call.head.uri.path(), EVENT);
    let event = ModelEventMessage::decode(&call.whole().await[5..]).unwrap();
    assert_eq!(event.event(), Event::LoadFailMemory);
    (call, event.model_name)
}

#[tokio::test]
async fn a_scheduler_that_takes_no_refusal_is_not_read_from_and_nothing_is_lost() {
    let mut scheduler = RawScheduler::start().await;
    let shim = Shim::start(settings(&[scheduler.address]), Double::new(Some(8 * GI))).await;
    let agent = RawAgent::connect(shim.address).await;
    let (operations, _body, mut stream) = standing(&agent, &mut scheduler, request()).await;
    let asked = 3 * MOST;
    for n in 0..asked {
        let data = load(&format!("m{n}"), 100 * GI);
        operations.send(Frame::data(data)).unwrap();
    }
    let fits = load("fits", GI);
    operations.send(Frame::data(fits.clone())).unwrap();
    let mut waiting = Vec::new();
    let mut refused = Vec::new();
    for _ in 0..MOST {
        let (call, name) = refusal(&mut scheduler).await;
        waiting.push(call);
        refused.push(name);
    }
    // The agent's own calls pass all the while, and no other refusal comes between them.
    for _ in 0..20 {
        let drained = tokio::spawn(agent.unary(DRAIN, framed(&[]), &[]));
        let call = scheduler.call().await;
        assert_eq!(call.head.uri.path(), DRAIN);
        call.status("0");
        within(drained).await.unwrap().unwrap();
    }
    // One that is asked for has been judged and waits.
    let judged = shim.messages("operation", "refused");
    assert!(judged <= (MOST + 1) as f64, "{judged}");
    // Each that is taken makes room for one.
    while refused.len() < asked {
        waiting.pop().unwrap().status("0");
        let (call, name) = refusal(&mut scheduler).await;
        waiting.push(call);
        refused.push(name);
    }
    waiting.into_iter().for_each(|call| call.status("0"));
    refused.sort();
    refused.dedup();
    assert_eq!(refused.len(), asked, "each is refused once");
    // What fits comes to the agent behind them.
    assert_eq!(next(&mut stream).await, fits);
}
