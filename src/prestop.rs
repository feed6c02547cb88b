//! A drain that somebody calls for, before any SIGTERM: the pod takes no more traffic, the agent
//! drains by its own rule, and what runs is waited for, so that a container's preStop hook can
//! hold back its end. Taken back where it turns out that nothing ends.
//!
//! Nothing is refused and nothing is cut: the relays and the interposer go on as always. The rules
//! are in [`judge`]. A drain ends within its bound, whatever anybody else does.

use std::time::Duration;

use http::StatusCode;
use prometheus::IntCounterVec;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::agent::watchdog::State;
use crate::agent::{Seen, ask};
use crate::clock::Clock;
use crate::config::agent::DrainConfig;
use crate::drain::{Drain, QUIET};
use crate::metrics::Metrics;
use crate::prober::Watching;
use crate::prober::http::status_of;
use crate::subscription::status::Status;

mod handle;
pub mod judge;

pub use handle::{Handle, Progress, TooMany};
use judge::{Agent, Evidence, Phase};

/// How long the hooks of the pod's containers may come apart and still belong together.
const TOGETHER: Duration = Duration::from_secs(2);
/// How long the agent is given to begin by its own hooks.
const BY_ITSELF: Duration = Duration::from_millis(300);
/// Calls that the agent wants within 100 ms before it drains.
const AGENT_CALLS: usize = 3;
/// How long its own call to the scheduler may take to begin.
const AGENT_BEGINS: Duration = Duration::from_secs(2);
/// Time between two looks at whether a drain is to be taken back.
const LOOK: Duration = Duration::from_millis(500);

/// Runs the drains.
#[derive(Debug)]
pub struct Coordinator {
    config: DrainConfig,
    bound: Duration,
    parts: Parts,
    asked: watch::Receiver<u32>,
    /// Calls that belong to earlier drains.
    answered: u32,
    out: watch::Sender<Progress>,
    events: IntCounterVec,
}

/// What the coordinator reads and moves.
#[derive(Debug)]
pub struct Parts {
    /// The switch and the counts.
    pub drain: Drain,
    /// The server.
    pub watching: Watching,
    /// The agent.
    pub agent: watch::Receiver<Seen>,
    /// The subscription; `None` where the interposer is off.
    pub status: Option<watch::Receiver<Status>>,
    /// The process clock.
    pub clock: Clock,
}

/// What was there when a drain began.
struct Before {
    server: bool,
    agent: bool,
    agent_starts: u64,
    server_was_gone: bool,
}

impl Coordinator {
    /// A coordinator whose drains take `bound` at most, and the handle to it.
    pub fn new(
        config: DrainConfig,
        bound: Duration,
        parts: Parts,
        metrics: &Metrics,
    ) -> (Self, Handle) {
        let events = metrics.counter_vec(
            "agent_shim_drains_total",
            "Drains that were called for: begun, ended with nothing running, ended by their bound, taken back.",
            &["event"],
        );
        for event in ["begun", "drained", "gave-up", "undone"] {
            events.with_label_values(&[event]);
        }
        let (out, progress) = watch::channel(Progress::default());
        let (ask, asked) = watch::channel(0);
        let handle = Handle::new(progress, ask, bound, config.open);
        let coordinator = Coordinator {
            config,
            bound,
            parts,
            asked,
            answered: 0,
            out,
            events,
        };
        (coordinator, handle)
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        loop {
            self.until_asked().await;
            let mut before = self.before();
            loop {
                self.drain(&mut before).await;
                if self.undone_before_asked(&mut before).await {
                    break;
                }
            }
        }
    }

    async fn until_asked(&mut self) {
        if self.asked.changed().await.is_err() {
            // Every handle is gone, and with them whoever could ask.
            std::future::pending::<()>().await;
        }
    }

    fn before(&self) -> Before {
        let agent = self.parts.agent.borrow();
        let now = self.parts.clock.now();
        Before {
            server: judge::up_for(&self.parts.watching.view.borrow(), now).is_some(),
            agent: agent.state != State::Unknown,
            agent_starts: agent.starts,
            server_was_gone: false,
        }
    }

    /// One drain, from the call to its end.
    async fn drain(&mut self, before: &mut Before) {
        let started = Instant::now();
        let deadline = started + self.bound;
        // The process must not end while hooks wait for it.
        let _busy = self.parts.drain.busy();
        self.parts.drain.call(true);
        let running = self.parts.drain.in_flight().now();
        self.event("begun");
        tracing::warn!(running, limit = ?self.bound, "drain: not ready; calls are carried on and waited for");
        let now = self.parts.clock.now();
        let hooks = self.hooks();
        self.out.send_modify(|p| {
            // Called for again: what the agent has done it need not do twice.
            let agent = match (p.phase, &p.agent) {
                (Phase::Drained | Phase::GaveUp, Agent::Done) => Agent::Done,
                _ => Agent::Undecided,
            };
            *p = Progress {
                phase: Phase::Draining,
                since: now,
                hooks,
                at_start: running,
                agent,
                ended: p.ended,
                undone: p.undone,
                summary: String::new(),
            };
        });
        let work = async {
            self.agents_part(started, deadline).await;
            self.parts.drain.in_flight().quiet(QUIET).await;
        };
        let all = tokio::select! {
            ended = timeout_at(deadline, work) => ended.is_ok(),
            () = self.track(before) => false,
            () = self.count_hooks() => false,
        };
        let running = self.parts.drain.in_flight().now();
        let took =
            humantime::format_duration(Duration::from_millis(started.elapsed().as_millis() as u64));
        let (phase, result) = match all {
            true => (Phase::Drained, format!("drained in {took}: no call runs")),
            false => (
                Phase::GaveUp,
                format!("not drained within {took}: {running} call(s) still run"),
            ),
        };
        self.event(phase.as_str());
        let now = self.parts.clock.now();
        // Before the callers are told: who comes after that asks for another drain.
        self.answered = *self.asked.borrow_and_update();
        self.out.send_modify(|p| {
            p.summary = format!(
                "{result}; {} ran when it began; the agent {}",
                p.at_start,
                p.agent.words()
            );
            (p.phase, p.since) = (phase, now);
            p.ended += 1;
        });
        let summary = self.out.borrow().summary.clone();
        match all {
            true => tracing::info!(summary, "drain ended"),
            false => tracing::warn!(summary, "drain ended"),
        }
    }

    fn event(&self, event: &str) {
        self.events.with_label_values(&[event]).inc();
    }

    fn agent(&self, agent: Agent) {
        self.out.send_modify(|p| p.agent = agent);
    }

    /// Counts the callers who join.
    async fn count_hooks(&self) {
        let mut asked = self.asked.clone();
        while asked.changed().await.is_ok() {
            let hooks = self.hooks();
            self.out.send_modify(|p| p.hooks = hooks);
        }
        std::future::pending().await
    }

    fn hooks(&self) -> u32 {
        self.asked.borrow().wrapping_sub(self.answered)
    }

    /// Notes whether the server goes away.
    async fn track(&self, before: &mut Before) {
        let mut changes = self.parts.watching.changes.clone();
        loop {
            changes.mark_unchanged();
            before.server_was_gone |= judge::is_gone(&self.parts.watching.view.borrow());
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Makes the agent drain where it does not by itself, and waits for it.
    async fn agents_part(&self, started: Instant, deadline: Instant) {
        if self.out.borrow().agent == Agent::Done {
            return;
        }
        if self.config.agent_port == 0 {
            return self.agent(Agent::Left("SHIM_AGENT_DRAIN_PORT is 0".into()));
        }
        if !self.is_termination(started).await {
            let (hooks, wanted) = (self.out.borrow().hooks, self.config.hooks);
            return self.agent(Agent::Left(format!(
                "{hooks} of {wanted} hooks have called, as at the restart of one container"
            )));
        }
        // What is left after it belongs to the calls that run.
        let limit = deadline - (deadline - started) / 10;
        let before = self.drains().map(|(_, begun)| begun);
        if timeout(BY_ITSELF, self.agent_drains(|running, _| running > 0))
            .await
            .is_ok()
        {
            self.agent(Agent::Itself);
        } else {
            self.agent(Agent::Asked);
            if let Err(why) = self.ask_agent(limit).await {
                return self.agent(Agent::Failed(why));
            }
            if let Some(before) = before {
                // An agent that answers at once still has to call the scheduler.
                let begins = self.agent_drains(|_, begun| begun > before);
                let _ = timeout(AGENT_BEGINS, begins).await;
            }
        }
        let ended = timeout_at(limit, self.agent_drains(|running, _| running == 0)).await;
        self.agent(match ended {
            Ok(()) => Agent::Done,
            Err(_) => Agent::Failed("the scheduler has not answered in time".into()),
        });
    }

    /// So many hooks, close together: the pod ends, and not one container. A SIGTERM says it too.
    async fn is_termination(&self, started: Instant) -> bool {
        let mut progress = self.out.subscribe();
        let wanted = self.config.hooks;
        let together = progress.wait_for(|p| p.hooks >= wanted);
        tokio::select! {
            in_time = timeout_at(started + TOGETHER, together) => in_time.is_ok(),
            () = self.parts.drain.begun() => true,
        }
    }

    /// The agent's drains at the scheduler, where they can be seen: running, and begun so far.
    fn drains(&self) -> Option<(usize, u64)> {
        let status = self.parts.status.as_ref()?.borrow();
        Some((status.draining, status.drains))
    }

    /// Completes when this holds of the agent's drains; at once or never where they are not seen.
    async fn agent_drains(&self, holds: impl Fn(usize, u64) -> bool) {
        match self.parts.status.clone() {
            Some(mut status) => {
                // The interposer lives as long as the process.
                let _ = status.wait_for(|s| holds(s.draining, s.drains)).await;
            }
            None if holds(0, 0) => {}
            None => std::future::pending().await,
        }
    }

    /// The agent's own rule: so many calls at once. Each may be answered only when it has drained.
    async fn ask_agent(&self, limit: Instant) -> Result<(), String> {
        let at = ask::at(self.config.agent_port);
        let left = limit.saturating_duration_since(Instant::now());
        let call = || status_of(at, "/terminate", ask::CONNECT, left);
        let (a, b, c) = tokio::join!(call(), call(), call());
        let answers: [_; AGENT_CALLS] = [a, b, c];
        for answer in answers {
            match answer {
                Ok(StatusCode::OK) => {}
                Ok(status) => return Err(format!("http://{at}/terminate answered {status}")),
                Err(outcome) => {
                    return Err(format!(
                        "http://{at}/terminate: {}",
                        match outcome {
                            crate::health::Outcome::Unhealthy { detail, .. } => detail,
                            crate::health::Outcome::Healthy { .. } => "no status".into(),
                        }
                    ));
                }
            }
        }
        Ok(())
    }

    /// Waits until the drain is taken back (true) or called for again (false).
    async fn undone_before_asked(&mut self, before: &mut Before) -> bool {
        let ended = Instant::now();
        loop {
            {
                let view = self.parts.watching.view.borrow();
                before.server_was_gone |= judge::is_gone(&view);
                let agent = self.parts.agent.borrow();
                let evidence = Evidence {
                    terminated: self.parts.drain.has_begun(),
                    up_for: judge::up_for(&view, self.parts.clock.now()),
                    server_was_gone: before.server && before.server_was_gone,
                    agent_came_back: before.agent && agent.starts > before.agent_starts,
                    ended_for: ended.elapsed(),
                };
                if let Some(undo) = judge::undo(&evidence, self.config.undo_after) {
                    let why = undo.words();
                    tracing::warn!(why, "drain taken back: ready again");
                    self.event("undone");
                    self.parts.drain.call(false);
                    let now = self.parts.clock.now();
                    self.out.send_modify(|p| {
                        (p.phase, p.since) = (Phase::None, now);
                        p.undone += 1;
                        p.summary = format!("taken back: {why}; it had {}", p.summary);
                    });
                    return true;
                }
            }
            let mut changes = self.parts.watching.changes.clone();
            tokio::select! {
                () = self.until_asked() => return false,
                _ = changes.changed() => {}
                () = sleep(LOOK) => {}
            }
        }
    }
}

#[cfg(test)]
mod interleavings;
