//! The interposer: the agent's way to the scheduler, on which what it requested is made to agree with
//! what is observed.
//!
//! Serves `AgentService` on plain HTTP/2 and forwards every call, known or not, streaming both
//! ways. Three messages are read: the request of `Subscribe`, the stream that answers it, and
//! the request of `AgentEvent`. What cannot be read or changed goes on as it came, counted. A `Subscribe` is
//! held, never refused: the agent would call again in a tight loop. Must not know where observed
//! figures come from: it asks a [`Correct`].

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, Version, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::budget::{Charge, Exhausted};
use crate::clock::Clock;
use crate::config::Mode;
use crate::config::scheduler::Target;
use crate::drain::{Busy, Drain};
use crate::metrics::Metrics;
use crate::places::{Cuts, Place, Places};
use crate::prober::connect::innermost;
use crate::relay::greeting::begun;
use crate::relay::guarded::Guarded;
use crate::relay::{accept_failed, prepare};
use crate::tls;

pub mod body;
pub mod correct;
pub mod editor;
pub mod event;
pub mod frames;
pub mod held_back;
pub mod hello;
pub mod ledger;
pub mod live;
pub mod message;
pub mod metrics;
pub mod order;
pub mod pace;
pub mod status;
pub mod stream;
pub mod subscribe;
pub mod upstream;
pub mod wire;

use body::{DEADLINE_EXCEEDED, Outgoing, RESOURCE_EXHAUSTED, UNAVAILABLE, refusal};
use correct::Correct;
use editor::Editor;
use live::Registry;
use metrics::SubscriptionMetrics;
use pace::Renewal;
use status::{Phase, Status};
use stream::{Debts, Owed};
use upstream::{Line, Upstream};

const SUBSCRIBE: &str = "/seldon.mlops.agent.AgentService/Subscribe";
const EVENT: &str = "/seldon.mlops.agent.AgentService/AgentEvent";
const DRAIN: &str = "/seldon.mlops.agent.AgentService/AgentDrain";

/// Calls of one connection at a time: one for each model that changes, and the few long ones. An
/// agent with more waits for the first ones to end.
const MAX_CALLS: u32 = 1_000;
/// Connections at once; the agent has one or two.
const MAX_CONNECTIONS: usize = 64;
/// Limit for a caller's first bytes.
const BEGIN_LIMIT: Duration = Duration::from_secs(30);
/// Largest header list of a call; the agent's have a few hundred bytes.
const MAX_CALL_HEADERS: u32 = 64 * 1024;
/// What of requests may be on its way and not yet taken.
const WINDOW: u32 = 256 * 1024;
/// Longest time between two looks at whether the report is still true, and at the TLS files.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// While a model is being loaded, the next look comes sooner.
const BUSY_INTERVAL: Duration = Duration::from_secs(2);

/// The settings of the interposer.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether anything may be changed.
    pub mode: Mode,
    /// The schedulers, in order.
    pub targets: Vec<Target>,
    /// Secured connections, where they are configured.
    pub tls: Option<tls::Client>,
    /// How long a subscription waits for what is not known yet.
    pub hold: Duration,
    /// Shortest life of a subscription that the shim ends itself.
    pub resubscribe_min_interval: Duration,
    /// How long a difference must last before it counts as one; [`pace::SETTLE`].
    pub settle: Duration,
    /// How long the scheduler may take to drain the replica.
    pub drain_limit: Duration,
}

/// The interposer. Cheap to clone.
#[derive(Clone)]
pub struct Interposer {
    settings: Arc<Settings>,
    correct: Arc<dyn Correct>,
    editor: Editor,
    registry: Registry,
    upstream: Upstream,
    status: watch::Sender<Status>,
    metrics: SubscriptionMetrics,
    /// Events of the agent, under way or delivered; a held subscription that saw one is out of date.
    events_seen: Arc<AtomicUsize>,
    events_running: Arc<AtomicUsize>,
    debts: Debts,
    owed_reader: Arc<Mutex<mpsc::UnboundedReceiver<Owed>>>,
}

impl fmt::Debug for Interposer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interposer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Interposer {
    /// An interposer, and what it publishes.
    pub fn new(
        settings: Settings,
        correct: Arc<dyn Correct>,
        clock: Clock,
        metrics: &Metrics,
    ) -> (Self, watch::Receiver<Status>) {
        let (status, watching) = watch::channel(Status::default());
        let metrics = SubscriptionMetrics::new(metrics);
        let (owed, owed_reader) = mpsc::unbounded_channel();
        let interposer = Interposer {
            editor: Editor::new(
                settings.mode,
                correct.clone(),
                status.clone(),
                metrics.clone(),
            ),
            registry: Registry::new(clock, settings.settle, status.clone(), metrics.clone()),
            upstream: Upstream::new(
                settings.targets.clone(),
                settings.tls.clone(),
                metrics.clone(),
            ),
            settings: Arc::new(settings),
            correct,
            status,
            metrics,
            events_seen: Arc::default(),
            events_running: Arc::default(),
            debts: Debts::new(owed),
            owed_reader: Arc::new(Mutex::new(owed_reader)),
        };
        (interposer, watching)
    }

    /// Accepts the agent's connections for ever. They are owned here, so they end with it.
    pub async fn serve(self, listener: TcpListener, drain: Drain) {
        let places = Places::new(MAX_CONNECTIONS, Cuts::Idle);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        places.room().await;
                        let held = (places.take(), drain.busy());
                        connections.spawn(self.clone().connection(stream, held));
                    }
                    Err(error) => accept_failed(&error, "agent").await,
                },
                Some(ended) = connections.join_next() => if let Err(error) = ended {
                    tracing::error!(%error, "a connection task failed");
                },
            }
        }
    }

    /// The background work, for ever: delivers the events that the shim itself owes the scheduler,
    /// renews a subscription whose report is no longer true, keeps TLS files fresh.
    pub async fn tend(self) {
        let mut deliveries = JoinSet::new();
        let mut owed = self.owed_reader.lock().await;
        let mut known = self.correct.known();
        let mut next = LOOK_INTERVAL;
        loop {
            tokio::select! {
                Some(owed) = owed.recv() => {
                    let interposer = self.clone();
                    deliveries.spawn(async move {
                        interposer.deliver_own(owed.event.clone()).await;
                        drop(owed);
                    });
                }
                Some(_) = deliveries.join_next() => {}
                Ok(()) = known.changed() => next = self.look(),
                () = sleep(next) => {
                    next = self.look();
                    if let Some(tls) = self.upstream.tls() {
                        // Errors are said when a connection is made, and when a file changes.
                        let _ = tls.connector();
                    }
                }
            }
        }
    }

    /// Looks at the live subscription; how long until the next look.
    fn look(&self) -> Duration {
        if self.settings.mode == Mode::Observe {
            return LOOK_INTERVAL;
        }
        if !self.correct.known().borrow().ready {
            // Nobody looks at what a server shows on its way down and up again.
            let _ = self
                .registry
                .renew(|renewer, _| (renewer.unsettled(), false));
            return LOOK_INTERVAL;
        }
        let Some(wanted) = self.editor.wanted() else {
            return LOOK_INTERVAL;
        };
        let idle = self.editor.is_idle() && self.events_running.load(Ordering::Relaxed) == 0;
        let interval = self.settings.resubscribe_min_interval;
        let renewal = self.registry.renew(|renewer, now| {
            let renewal = renewer.look(wanted.clone(), idle, now, interval);
            if renewal == Renewal::Now {
                tracing::warn!(reported = ?renewer.reported(), now = ?wanted, "the report is no longer true: the agent is made to subscribe again");
            }
            (renewal, renewal == Renewal::Now)
        });
        match renewal {
            Some(Renewal::Wait(wait)) => wait.min(LOOK_INTERVAL),
            Some(Renewal::Busy) => BUSY_INTERVAL,
            Some(Renewal::Agrees | Renewal::Now) | None => LOOK_INTERVAL,
        }
    }

    async fn connection(self, stream: TcpStream, (place, _busy): (Place, Busy)) {
        prepare(&stream);
        tokio::select! {
            begun = begun(&stream, BEGIN_LIMIT) => if !begun {
                return;
            },
            () = place.wanted() => return,
        }
        let marker = place.marker();
        let service = service_fn(move |request: Request<Incoming>| {
            let (interposer, call) = (self.clone(), marker.call());
            async move {
                let charged = match request.uri().path() {
                    SUBSCRIBE => Charge::vital_call(request.headers()),
                    _ => Charge::call(request.headers()),
                };
                let (response, held) = match charged {
                    Ok(held) => (interposer.handle(request).await, Some(held)),
                    Err(error) => (refusal(RESOURCE_EXHAUSTED, &error.to_string()), None),
                };
                Ok::<_, Infallible>(response.map(|body| Guarded::new(body, (call, held))))
            }
        });
        let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .auto_date_header(false)
            .max_header_list_size(MAX_CALL_HEADERS)
            .max_concurrent_streams(MAX_CALLS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .serve_connection(TokioIo::new(stream), service);
        // An error here is the agent's connection going away; each call has had its own answer.
        tokio::select! {
            _ = served => {}
            () = place.wanted() => {}
        }
    }

    async fn handle(self, request: Request<Incoming>) -> Response<Outgoing> {
        self.metrics.calls.inc();
        match request.uri().path() {
            SUBSCRIBE => self.subscribe(request).await,
            EVENT => self.event(request).await,
            DRAIN => {
                let _running = Draining::begin(&self.status);
                self.registry.draining();
                let limit = self.settings.drain_limit;
                // Dropping the call cancels it at the scheduler.
                timeout(limit, self.pass(request))
                    .await
                    .unwrap_or_else(|_| {
                        tracing::warn!(
                            ?limit,
                            "the scheduler has not drained this replica in time"
                        );
                        refusal(
                            DEADLINE_EXCEEDED,
                            &format!("the scheduler has not drained this replica within {limit:?}"),
                        )
                    })
            }
            _ => self.pass(request).await,
        }
    }

    /// Passes a call on as it is.
    async fn pass(&self, request: Request<Incoming>) -> Response<Outgoing> {
        let line = match self.upstream.line().await {
            Ok(line) => line,
            Err(error) => return refusal(UNAVAILABLE, &error.to_string()),
        };
        let (head, body) = request.into_parts();
        match send(line, &head, Outgoing::FromAgent(body)).await {
            Ok(response) => response,
            Err(Failed(why)) => refusal(UNAVAILABLE, &why),
        }
    }
}

/// A drain of the agent at the scheduler, while it runs.
struct Draining(watch::Sender<Status>);

impl Draining {
    fn begin(status: &watch::Sender<Status>) -> Self {
        status.send_modify(|s| {
            s.draining += 1;
            s.drains += 1;
        });
        Draining(status.clone())
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        self.0.send_modify(|s| s.draining -= 1);
    }
}

/// A call that got no answer.
struct Failed(String);

/// Sends one call and waits for the head of its answer.
async fn send(
    mut line: Line,
    head: &http::request::Parts,
    body: Outgoing,
) -> Result<Response<Outgoing>, Failed> {
    let mut request = Request::new(body);
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = match head.uri.path_and_query() {
        Some(path) => line.uri(path),
        None => head.uri.clone(),
    };
    *request.headers_mut() = head.headers.clone();
    // The authority of the new address speaks for it.
    request.headers_mut().remove(header::HOST);
    match line.sender.send_request(request).await {
        Ok(response) => Ok(response.map(|body| Outgoing::FromScheduler(Some(body)))),
        Err(error) => Err(Failed(format!(
            "{} broke the call off before it answered ({})",
            line.target,
            innermost(&error)
        ))),
    }
}

/// The body of a request that is read whole, and what it holds of the memory for all callers.
struct Whole {
    bytes: Bytes,
    _held: Charge,
}

/// The whole body of a request, which `add` charges; or, where the agent has gone or says too much, its answer.
async fn whole(
    mut body: Incoming,
    add: fn(&mut Charge, usize) -> Result<(), Exhausted>,
) -> Result<Whole, Response<Outgoing>> {
    let (mut bytes, mut held) = (BytesMut::new(), Charge::default());
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| refusal(UNAVAILABLE, &format!("the request broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            add(&mut held, data.len())
                .map_err(|error| refusal(RESOURCE_EXHAUSTED, &error.to_string()))?;
            bytes.extend_from_slice(&data);
        }
    }
    let bytes = bytes.freeze();
    Ok(Whole { bytes, _held: held })
}

/// The headers for a body that may have another length than the one that came.
fn without_length(head: &mut http::request::Parts) {
    head.headers.remove(header::CONTENT_LENGTH);
}

/// An answer is its status and nothing else, in the headers or in a body that has ended.
fn is_only_a_status(response: &Response<Outgoing>) -> bool {
    response.headers().contains_key("grpc-status") && response.body().is_end_stream()
}

/// The headers of a call of the shim's own.
fn own_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/grpc"),
    );
    headers.insert(header::TE, header::HeaderValue::from_static("trailers"));
    headers.insert(
        header::USER_AGENT,
        header::HeaderValue::from_static(concat!("agent-shim/", env!("CARGO_PKG_VERSION"))),
    );
    headers
}

/// The phase of a subscription that waits for the scheduler.
fn unreachable_phase(why: &str, failures: u32) -> Phase {
    Phase::Unreachable {
        why: why.into(),
        failures,
    }
}

#[cfg(test)]
mod properties;
