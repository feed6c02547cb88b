//! Subscribes, the looks that renew them, a server that changes and an event, in every order in
//! which they can meet. The scheduler is a few lines; what a connection to it would bring about is
//! a task that yields, in the steps of `Interposer::subscribe`.

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use prost::Message;
use tokio::sync::watch;
use tokio::time::sleep;

use super::sides::{Agent, Observed, Observing, later, version};
use super::world::interposer;
use super::{MIB, MIN_INTERVAL};
use crate::clock::Clock;
use crate::config::Mode;
use crate::interleave::{Stage, in_every_order_of_time, yields};
use crate::proto::agent::model_event_message::Event as EventKind;
use crate::proto::agent::model_operation_message::Operation as OperationKind;
use crate::proto::agent::{AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage};
use crate::subscription::correct::{Correct, Known};
use crate::subscription::editor::Verdict;
use crate::subscription::live::Ending;
use crate::subscription::status::Phase;
use crate::subscription::{Interposer, LOOK_INTERVAL};

const GIB: u64 = 1024 * MIB;
const BEFORE: u64 = 8 * GIB;
const AFTER: u64 = 9 * GIB;
/// By then all has been renewed that had to be.
const END: Duration = MIN_INTERVAL.saturating_add(Duration::from_secs(120));

#[derive(Default)]
struct Truth {
    agent: Agent,
    /// Which of the agent's calls subscribed last.
    newest: u32,
    /// The streams at the scheduler.
    open: Vec<u32>,
    /// What the scheduler believes: in all, and free.
    total: u64,
    free: u64,
}

#[derive(Clone)]
struct World {
    shim: Interposer,
    observing: Arc<Observing>,
    truth: Arc<Mutex<Truth>>,
    /// Which of two comes first where a call's own progress and its end meet: the library's choice
    /// is random.
    end_first: bool,
}

/// A stream at the scheduler, until it is dropped.
struct AtScheduler(World, u32);

impl Drop for AtScheduler {
    fn drop(&mut self) {
        self.0.truth().open.retain(|no| *no != self.1);
    }
}

impl World {
    fn new(stage: &Stage, ready: bool, end_first: bool) -> Self {
        let observing = Arc::new(Observing {
            now: Mutex::new(Observed {
                bytes: BEFORE,
                installed: Vec::new(),
                workers: None,
            }),
            known: watch::Sender::new(Known {
                ready,
                ..Default::default()
            }),
        });
        let shim = interposer(Mode::Correct, &observing, Clock::start());
        let agent = Agent {
            total: 4 * GIB,
            ..Agent::default()
        };
        let world = World {
            shim,
            observing,
            truth: Arc::new(Mutex::new(Truth {
                agent,
                ..Truth::default()
            })),
            end_first,
        };
        stage.background("looks", world.clone().looks());
        world
    }

    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    /// As `Interposer::tend` does it.
    async fn looks(self) {
        let mut known = self.observing.known();
        let mut next = LOOK_INTERVAL;
        loop {
            tokio::select! {
                biased;
                Ok(()) = known.changed() => {}
                () = sleep(next) => {}
            }
            next = self.shim.look();
        }
    }

    /// The server turns out to have more memory, and all that follows from it has its time.
    async fn server(self, loaded: u64) {
        self.observing.now.lock().unwrap().bytes = AFTER;
        self.observing.known.send_modify(|known| {
            known.ready = true;
            known.revision += 1;
        });
        sleep(END).await;
        self.check(loaded);
    }

    /// The agent subscribes, and again where it is told to.
    async fn subscribes(self, no: u32) {
        loop {
            let mut live = self.shim.registry.enter();
            self.truth().newest = no;
            let mut ended = pin!(live.ended());
            let came = later(&self.truth().agent.request());
            let seen = self.shim.events_seen.load(Ordering::Relaxed);
            let ending = {
                let mut opens = pin!(async {
                    // Its body, and the connection.
                    yields().await;
                    self.shim.hold(&live).await;
                    yields().await;
                    if self.shim.events_seen.load(Ordering::Relaxed) != seen {
                        return;
                    }
                    let sent = self.shim.editor.subscribe(&came).unwrap_or(came);
                    live.open("scheduler:9005".into(), self.shim.editor.wanted());
                    let read = AgentSubscribeRequest::decode(&sent[..]).unwrap();
                    let _stream = AtScheduler(self.clone(), no);
                    {
                        let mut truth = self.truth();
                        truth.open.push(no);
                        truth.total = read.replica_config.unwrap().memory_bytes;
                        truth.free = read.available_memory_bytes;
                    }
                    pending::<()>().await;
                });
                poll_fn(|cx| {
                    if self.end_first
                        && let Poll::Ready(ending) = ended.as_mut().poll(cx)
                    {
                        return Poll::Ready(Some(ending));
                    }
                    if opens.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(None);
                    }
                    ended.as_mut().poll(cx).map(Some)
                })
                .await
            };
            drop(live);
            if ending == Some(Ending::Superseded) {
                return;
            }
        }
    }

    /// A model that the agent was asked for is loaded, and reported.
    async fn event(self, model: crate::proto::agent::ModelVersion) {
        let bytes = {
            let mut truth = self.truth();
            truth.agent.loaded.insert("m0".into(), model);
            later(&ModelEventMessage {
                model_name: "m0".into(),
                model_version: 1,
                event: EventKind::Loaded.into(),
                available_memory_bytes: truth.agent.free(),
                ..Default::default()
            })
        };
        self.shim.events_seen.fetch_add(1, Ordering::Relaxed);
        let accounted = self.shim.editor.account(&bytes);
        yields().await;
        let sent = self.shim.editor.event(&bytes, &accounted).unwrap_or(bytes);
        let read = ModelEventMessage::decode(&sent[..]).unwrap();
        self.truth().free = read.available_memory_bytes;
    }

    /// What has to be so at the end of every order.
    fn check(&self, loaded: u64) {
        let truth = self.truth();
        assert_eq!(truth.open, [truth.newest], "one stream, the newest");
        assert_eq!(self.shim.status.borrow().phase, Phase::Open);
        assert_eq!(truth.total, AFTER, "the report is no longer true");
        assert_eq!(truth.free, AFTER - loaded, "the scheduler counts wrongly");
    }
}

fn tried(ready: bool, loaded: u64, scenario: impl Fn(&Stage, &World)) {
    for end_first in [true, false] {
        let orders = in_every_order_of_time(LOOK_INTERVAL, |stage| {
            let world = World::new(stage, ready, end_first);
            scenario(stage, &world);
            stage.task("server", world.clone().server(loaded));
            || ()
        });
        assert!(orders > 100, "{orders}: nobody meets anybody");
    }
}

#[test]
fn of_two_subscribes_the_newer_one_stays_and_what_it_reported_is_kept_true() {
    for ready in [true, false] {
        tried(ready, 0, |stage, world| {
            stage.background("first", world.clone().subscribes(1));
            stage.background("second", world.clone().subscribes(2));
        });
    }
}

#[test]
fn a_model_that_is_loaded_while_the_agent_subscribes_is_counted_once() {
    for ready in [true, false] {
        tried(ready, GIB, |stage, world| {
            // Over a subscription that is lost.
            let editor = &world.shim.editor;
            editor.subscribe(&later(&world.truth().agent.request()));
            let asked = later(&ModelOperationMessage {
                operation: OperationKind::LoadModel.into(),
                model_version: Some(version(0, Some(GIB))),
                autoscaling_enabled: false,
            });
            let given = match editor.operation(&asked) {
                Verdict::Forward => asked,
                Verdict::Replace(given) => given,
                Verdict::Refuse(_) => panic!("it fits"),
            };
            let given = ModelOperationMessage::decode(&given[..]).unwrap();
            stage.background("again", world.clone().subscribes(1));
            stage.task("event", world.clone().event(given.model_version.unwrap()));
        });
    }
}
