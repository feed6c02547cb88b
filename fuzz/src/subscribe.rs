//! Messages between agent and scheduler, in any order, through the editor and its account.

use std::sync::Arc;

use agent_shim::config::Mode;
use agent_shim::metrics::Metrics;
use agent_shim::proto::agent::model_event_message::Event;
use agent_shim::proto::agent::{AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage};
use agent_shim::proto::scheduler::model_runtime_info::Runtime;
use agent_shim::subscription::correct::{CapabilityReport, CapacityReport, Correct, Known};
use agent_shim::subscription::editor::{Editor, Verdict};
use agent_shim::subscription::frames::{Deframer, Piece, Single, framed, message, single};
use agent_shim::subscription::metrics::SubscriptionMetrics;
use agent_shim::subscription::status::Status;
use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;

use super::protobuf::others;

/// The observed side: figures out of the input.
struct Seen {
    bytes: u64,
    more: Vec<String>,
    workers: Option<u32>,
    known: watch::Sender<Known>,
}

impl Correct for Seen {
    fn capacity(&self, _: u64) -> CapacityReport {
        CapacityReport {
            bytes: self.bytes,
            why: "the input".into(),
        }
    }

    fn capabilities(&self, requested: &[String]) -> CapabilityReport {
        CapabilityReport {
            reported: requested.iter().chain(&self.more).cloned().collect(),
            ..CapabilityReport::default()
        }
    }

    fn workers(&self) -> Option<u32> {
        self.workers
    }

    fn known(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }
}

thread_local! {
    static SERIES: SubscriptionMetrics = SubscriptionMetrics::new(&Metrics::new());
}

fn editor(mode: Mode, [scale, workers, more]: [u8; 3]) -> (Editor, Arc<Seen>) {
    let seen = Arc::new(Seen {
        bytes: match scale {
            0 => 0,
            255 => u64::MAX,
            n => 1 << (n % 64),
        },
        more: (0..more % 3).map(|i| format!("added-{i}")).collect(),
        workers: match workers {
            0 => None,
            255 => Some(u32::MAX),
            n => Some(n.into()),
        },
        known: watch::Sender::default(),
    });
    let status = watch::Sender::new(Status::default());
    let series = SERIES.with(SubscriptionMetrics::clone);
    (Editor::new(mode, seen.clone(), status, series), seen)
}

/// Three bytes of figures, then messages: what it is, its length in two bytes, its content.
pub fn check(input: &[u8]) {
    let Some((&how, mut script)) = input.split_first_chunk::<3>() else {
        return;
    };
    deframed(how[0], script);
    let (correct, seen) = editor(Mode::Correct, how);
    let (observe, _) = editor(Mode::Observe, how);
    for _ in 0..64 {
        let Some((&[kind, high, low], rest)) = script.split_first_chunk::<3>() else {
            return;
        };
        let length = usize::from(high) << 8 | usize::from(low);
        let (message, rest) = rest.split_at(length.min(rest.len()));
        script = rest;
        match kind % 3 {
            0 => {
                assert_eq!(observe.subscribe(message), None);
                let sent = correct.subscribe(message);
                subscribed(message, sent.as_deref(), &seen);
            }
            1 => {
                assert_eq!(observe.operation(message), Verdict::Forward);
                operated(message, correct.operation(message));
            }
            _ => {
                let accounted = observe.account(message);
                assert_eq!(observe.event(message, &accounted), None);
                let accounted = correct.account(message);
                reported(message, correct.event(message, &accounted).as_deref());
            }
        }
    }
}

/// What a later release adds survives; see [`others`].
fn kept(before: &[u8], after: &[u8], paths: &[&[u64]]) {
    assert_eq!(
        others(before, paths),
        others(after, paths),
        "fields that are not edited"
    );
    assert!(
        after.len() <= 3 * before.len() + 4096,
        "the size of the edit is bounded"
    );
}

fn subscribed(message: &[u8], sent: Option<&[u8]>, seen: &Seen) {
    let Ok(mut before) = AgentSubscribeRequest::decode(message) else {
        assert_eq!(sent, None, "what is not understood goes on as it is");
        return;
    };
    let mut after =
        AgentSubscribeRequest::decode(sent.unwrap_or(message)).expect("an edit decodes");
    let requested = before.replica_config.clone().unwrap_or_default();
    let reported = after.replica_config.clone().unwrap_or_default();
    let memory = match seen.bytes {
        0 => requested.memory_bytes,
        bytes => bytes,
    };
    assert_eq!(reported.memory_bytes, memory);
    let all: Vec<String> = requested
        .capabilities
        .iter()
        .chain(&seen.more)
        .cloned()
        .collect();
    assert_eq!(reported.capabilities, all);
    kept(
        message,
        sent.unwrap_or(message),
        &[
            &[4, 4],
            &[4, 5],
            &[6],
            &[5, 1, 2, 5],
            &[5, 1, 2, 9, 1, 1],
            &[5, 50605],
        ],
    );
    // Apart from that nothing has changed in what a decoder sees.
    for request in [&mut before, &mut after] {
        request.available_memory_bytes = 0;
        let config = request.replica_config.get_or_insert_default();
        config.memory_bytes = 0;
        config.capabilities.clear();
        for model in &mut request.loaded_models {
            model.agent_shim_original = None;
            let model = model.model.get_or_insert_default();
            let spec = model.model_spec.get_or_insert_default();
            spec.memory_bytes = None;
            let info = spec.model_runtime_info.get_or_insert_default();
            info.runtime = Some(Runtime::Mlserver(Default::default()));
        }
    }
    assert_eq!(before, after);
}

fn operated(message: &[u8], verdict: Verdict) {
    let decoded = ModelOperationMessage::decode(message);
    match verdict {
        Verdict::Forward => {}
        Verdict::Replace(sent) => {
            let before = decoded.expect("only what is understood is changed");
            let mut after = ModelOperationMessage::decode(&sent[..]).expect("an edit decodes");
            kept(message, &sent, &[&[2, 1, 2, 5], &[2, 50605]]);
            let version = after.model_version.get_or_insert_default();
            let original = version
                .agent_shim_original
                .take()
                .expect("the original travels along");
            let spec = version
                .model
                .get_or_insert_default()
                .model_spec
                .get_or_insert_default();
            spec.memory_bytes = original.memory_bytes;
            let mut before = before;
            let version = before.model_version.get_or_insert_default();
            version.agent_shim_original = None;
            version
                .model
                .get_or_insert_default()
                .model_spec
                .get_or_insert_default();
            assert_eq!(before, after);
        }
        Verdict::Refuse(event) => {
            let before = decoded.expect("only what is understood is refused");
            let version = before.model_version.unwrap_or_default();
            let name = version
                .model
                .unwrap_or_default()
                .meta
                .unwrap_or_default()
                .name;
            let event = ModelEventMessage::decode(&event[..]).expect("an event decodes");
            assert_eq!(
                (event.model_name.as_str(), event.model_version),
                (name.as_str(), version.version)
            );
            assert_eq!(event.event(), Event::LoadFailMemory);
        }
    }
}

fn reported(message: &[u8], sent: Option<&[u8]>) {
    let Ok(mut before) = ModelEventMessage::decode(message) else {
        assert_eq!(sent, None, "what is not understood goes on as it is");
        return;
    };
    let sent = sent.unwrap_or(message);
    let mut after = ModelEventMessage::decode(sent).expect("an edit decodes");
    kept(message, sent, &[&[7], &[8, 1, 1]]);
    for event in [&mut before, &mut after] {
        event.available_memory_bytes = 0;
        let info = event.runtime_info.get_or_insert_default();
        info.runtime = Some(Runtime::Mlserver(Default::default()));
    }
    assert_eq!(before, after);
}

/// Every byte of a body comes out again, however it is cut.
fn deframed(step: u8, body: &[u8]) {
    let (mut deframer, mut out) = (Deframer::default(), Vec::new());
    for piece in body.chunks(usize::from(step) + 1) {
        deframer.push(piece);
        while let Some(piece) = deframer.piece() {
            match piece {
                Piece::Plain(frame) => {
                    assert_eq!(single(&frame), Single::Plain(message(&frame)));
                    assert_eq!(framed(&message(&frame)), frame);
                    out.extend_from_slice(&frame);
                }
                Piece::Opaque(bytes, _) | Piece::More(bytes) => out.extend_from_slice(&bytes),
            }
        }
    }
    out.extend_from_slice(&deframer.rest().unwrap_or_default());
    assert_eq!(out, body);
    let _ = single(&Bytes::copy_from_slice(body));
}
