//! What is seen of Seldon's agent: its own readiness, and whether it is stuck.
//!
//! A thin loop that looks and publishes; the rule is in [`watchdog`], the questions are in [`ask`].
//! Never part of the pod's readiness: the agent waits for its pod, so its pod must not wait for it.
//! An agent without a readiness port (before 2.9.1) is unknown, which is nobody's fault.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use prometheus::{IntCounterVec, IntGaugeVec};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::clock::Clock;
use crate::config::scheduler::Target;
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::prober::Watching;
use crate::readiness::{self, Condition};
use crate::subscription::status::{Phase, Status};
use crate::tls;

pub mod ask;
pub mod watchdog;

use watchdog::{Absence, Facts, Limits, Look, State, Watchdog};

/// The condition's name.
pub const CONDITION: &str = "agent-ready";
/// Longest time between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// Time between two looks at the scheduler while the agent is not ready.
const SCHEDULER_INTERVAL: Duration = Duration::from_secs(10);
/// Limit for that look: looks at the agent must not fall too far apart meanwhile.
const SCHEDULER_LIMIT: Duration = Duration::from_secs(8);

/// Where to look, and when to worry.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The agent's readiness port; 0 is off.
    pub port: u16,
    /// See [`Limits::stuck_after`].
    pub stuck_after: Duration,
    /// The schedulers; none where the interposer is off, and then nothing is ever stuck.
    pub targets: Vec<Target>,
    /// How they are spoken to.
    pub tls: Option<tls::Client>,
}

/// The latest of everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// How the agent stands.
    pub state: State,
    /// Since when, on the process clock.
    pub since: Duration,
    /// Why, in words.
    pub reason: String,
    /// When the last look ended.
    pub looked: Duration,
    /// How often it was seen to come back: nothing listened, and then it answered.
    pub starts: u64,
    /// Since when nobody listens where it called itself ready before; `None` where somebody does, or it
    /// never has.
    pub absent: Option<Duration>,
}

impl Seen {
    /// As a condition, where it says anything.
    pub fn condition(&self) -> Option<Condition> {
        (self.state != State::Unknown).then(|| Condition {
            name: CONDITION,
            holds: self.state == State::Ready,
            reason: self.reason.clone(),
            since: self.since,
        })
    }

    /// The verdict of `/livez/agent`, and its words. A look that is no longer fresh says nothing.
    pub fn live(&self, now: Duration) -> (bool, String) {
        let fresh = now.saturating_sub(self.looked) <= 10 * INTERVAL;
        let stuck = self.state == State::Stuck && fresh;
        let word = if stuck { "" } else { "ok: " };
        (!stuck, format!("{word}{}\n", self.reason))
    }
}

/// Looks for ever.
#[derive(Debug)]
pub struct Watcher {
    settings: Settings,
    watching: Watching,
    drain: Drain,
    status: Option<watch::Receiver<Status>>,
    clock: Clock,
    out: watch::Sender<Seen>,
    states: IntGaugeVec,
    looks: IntCounterVec,
}

/// What the watcher reads.
#[derive(Debug)]
pub struct Parts {
    /// The server.
    pub watching: Watching,
    /// Whether anything drains.
    pub drain: Drain,
    /// The subscription; `None` where the interposer is off.
    pub status: Option<watch::Receiver<Status>>,
    /// The process clock.
    pub clock: Clock,
}

const OUTCOMES: [&str; 5] = ["ready", "not-ready", "silent", "gone", "strange"];

impl Watcher {
    /// A watcher, and what it publishes.
    pub fn new(
        settings: Settings,
        parts: Parts,
        metrics: &Metrics,
    ) -> (Self, watch::Receiver<Seen>) {
        let states = metrics.int_gauge_vec(
            "agent_shim_agent_state",
            "1 for how Seldon's agent stands by its own readiness port, 0 for the others.",
            &["state"],
        );
        let looks = metrics.counter_vec(
            "agent_shim_agent_looks_total",
            "Looks at the agent's readiness, by outcome.",
            &["outcome"],
        );
        for outcome in OUTCOMES {
            looks.with_label_values(&[outcome]);
        }
        let reason = match settings.port {
            0 => "SHIM_AGENT_READY_PORT is 0: the agent is not looked at",
            _ => "the agent has not been looked at yet",
        };
        let (out, seen) = watch::channel(Seen {
            state: State::Unknown,
            since: parts.clock.now(),
            reason: reason.into(),
            looked: parts.clock.now(),
            starts: 0,
            absent: None,
        });
        let watcher = Watcher {
            settings,
            watching: parts.watching,
            drain: parts.drain,
            status: parts.status,
            clock: parts.clock,
            out,
            states,
            looks,
        };
        watcher.export(State::Unknown);
        (watcher, seen)
    }

    /// Looks for ever.
    pub async fn run(self) {
        if self.settings.port == 0 {
            return std::future::pending().await;
        }
        // A short bound, as in a test, is looked at more often.
        let interval = (self.settings.stuck_after / 20).clamp(INTERVAL / 20, INTERVAL);
        let mut dog = Watchdog::new(Limits {
            stuck_after: self.settings.stuck_after,
            gap: 8 * INTERVAL,
        });
        let mut scheduler = SchedulerLook::default();
        let mut life = Life::default();
        let mut gone = false;
        let mut absence = Absence::default();
        loop {
            let look = ask::ready(self.settings.port).await;
            self.looks.with_label_values(&[outcome(&look)]).inc();
            let (waiting, alive) = self.subscription(&mut life);
            let troubled = matches!(look, Look::NotReady(_) | Look::Silent(_));
            let facts = Facts {
                usable: self.is_usable(),
                scheduler: troubled && !waiting && scheduler.answers(&self.settings).await,
                life: alive,
            };
            let verdict = dog.observe(&look, facts, self.clock.now());
            let came = gone && !matches!(look, Look::Gone(_));
            gone = matches!(look, Look::Gone(_));
            let absent = absence.look(&look, self.clock.now());
            self.publish(verdict, came, absent);
            sleep(interval).await;
        }
    }

    /// Whether the pod has all that its readiness needs.
    fn is_usable(&self) -> bool {
        let facts = readiness::Facts {
            draining: self.drain.has_begun(),
            called: self.drain.is_called(),
        };
        let view = self.watching.view.borrow().clone();
        readiness::ready(&readiness::conditions(&view, facts, self.clock.now(), &[]))
    }

    /// Whether the shim keeps the agent waiting, and the count of its signs of life.
    fn subscription(&self, life: &mut Life) -> (bool, u64) {
        let Some(status) = &self.status else {
            return (true, 0);
        };
        let status = status.borrow();
        let waiting = matches!(status.phase, Phase::Held(_) | Phase::Unreachable { .. })
            || status.draining > 0;
        let phase = std::mem::discriminant(&status.phase);
        let mark = (phase, status.since, status.events, status.mismatches);
        (waiting, life.count(&mark))
    }

    fn publish(&self, verdict: watchdog::Verdict, came: bool, absent: Option<Duration>) {
        let now = self.clock.now();
        let before = self.out.borrow().state;
        if before != verdict.state {
            let (from, to) = (before.as_str(), verdict.state.as_str());
            let reason = verdict.reason.as_str();
            if verdict.state == State::Stuck {
                tracing::error!(from, to, reason, "the agent is stuck: /livez/agent fails");
            } else {
                tracing::info!(from, to, reason, "the agent's state changed");
            }
            self.export(verdict.state);
        }
        self.out.send_modify(|seen| {
            if seen.state != verdict.state {
                (seen.state, seen.since) = (verdict.state, now);
            }
            seen.reason = verdict.reason;
            seen.looked = now;
            seen.starts += u64::from(came);
            seen.absent = absent;
        });
    }

    fn export(&self, current: State) {
        for state in State::ALL {
            let value = i64::from(state == current);
            self.states.with_label_values(&[state.as_str()]).set(value);
        }
    }
}

fn outcome(look: &Look) -> &'static str {
    match look {
        Look::Ready => "ready",
        Look::NotReady(_) => "not-ready",
        Look::Silent(_) => "silent",
        Look::Gone(_) => "gone",
        Look::Strange(_) => "strange",
    }
}

/// Counts changes of what the agent does at the interposer.
#[derive(Debug, Default)]
struct Life {
    last: u64,
    count: u64,
}

impl Life {
    fn count(&mut self, mark: &impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        mark.hash(&mut hasher);
        let mark = hasher.finish();
        self.count += u64::from(std::mem::replace(&mut self.last, mark) != mark);
        self.count
    }
}

/// Asks the scheduler rarely, and only while the agent is in trouble.
#[derive(Debug, Default)]
struct SchedulerLook {
    last: Option<(Instant, bool)>,
}

impl SchedulerLook {
    async fn answers(&mut self, settings: &Settings) -> bool {
        if let Some((at, answered)) = self.last
            && at.elapsed() < SCHEDULER_INTERVAL
        {
            return answered;
        }
        let asked = ask::scheduler_speaks(&settings.targets, settings.tls.as_ref());
        let answered = timeout(SCHEDULER_LIMIT, asked).await.unwrap_or(false);
        self.last = Some((Instant::now(), answered));
        answered
    }
}
