//! The parts of the status document that a diagnosis needs beside what people look at: the
//! subscription, and what surrounds the server.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::endpoint::Protocol;
use crate::health::State;
use crate::places::Places;
use crate::registration::Check;
use crate::relay;
use crate::state::Shared;
use crate::subscription::status::Phase;
use crate::view::View;

/// The agent's way to the scheduler.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SubscriptionStatus {
    /// `none`, `held`, `unreachable` or `open`.
    pub phase: String,
    /// What is waited for, or why the scheduler cannot be reached.
    pub detail: Option<String>,
    /// Attempts in a row that failed.
    pub failures: u32,
    /// What the scheduler answered to the latest subscription, where it refused it.
    pub refusal: Option<String>,
    /// For how long the phase has lasted, in seconds.
    pub for_s: f64,
    /// The scheduler in use.
    pub scheduler: Option<String>,
    /// The server's name, by the latest subscription; empty before the first.
    pub server: String,
    /// The replica's index.
    pub replica: u32,
    /// Over-commit in percent, as the agent says.
    pub over_commit: u32,
    /// Workers of the server, where they are known.
    pub workers: Option<u32>,
    /// Whether models that name no server may come to it; null before the first subscription.
    pub shared: Option<bool>,
    /// For how long the agent has been draining, in seconds; null where it is not.
    pub draining_s: Option<f64>,
    /// Events of the agent that the scheduler refused with "State mismatch".
    pub mismatches: u64,
    /// Loads of this subscription whose end was refused so, and for which the scheduler holds memory
    /// back until the next one.
    #[serde(default)]
    pub held_back: u64,
    /// Models that were refused because they can never fit.
    pub refused: Vec<RefusedModel>,
    /// Whether the scheduler's belief could be read: `not-configured`, `pending`, `failed`, `read`.
    pub belief: String,
    /// Why it could not.
    pub belief_error: Option<String>,
}

/// A model that can never fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedModel {
    /// Its name.
    pub model: String,
    /// Its version.
    pub version: u32,
    /// The sentence that the scheduler was given.
    pub why: String,
}

/// The shim itself, and what it sees around the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Around {
    /// A mark of the network namespace, so that a command can tell whether it runs in it.
    pub place: Option<String>,
    /// Age of the shim's process, in seconds.
    pub uptime_s: f64,
    /// Whether the shim was told to stop.
    pub stopping: bool,
    /// Addresses that listen at the server's HTTP port although every candidate refuses.
    pub elsewhere_http: Vec<String>,
    /// The same for gRPC.
    pub elsewhere_grpc: Vec<String>,
    /// Whether a process of the server is visible; null before the first look.
    pub process: Option<bool>,
    /// Why none is.
    pub process_reason: Option<String>,
    /// How often the server was lost or started anew within the last ten minutes.
    pub restarts: usize,
    /// For how long both protocols of the server have been up without a break, in seconds; null where
    /// one of them is not.
    #[serde(default)]
    pub usable_s: Option<f64>,
    /// How many callers' connections a relay may have at once.
    #[serde(default)]
    pub places: usize,
    /// For how long new callers of a relay have waited for one that the limit on descriptors does not
    /// allow, in seconds; null where none waits.
    #[serde(default)]
    pub places_short_s: Option<f64>,
    /// The same where there are as many as a relay ever has, and a call runs on each.
    #[serde(default)]
    pub places_full_s: Option<f64>,
}

pub(super) fn subscription(shared: &Shared) -> Option<SubscriptionStatus> {
    let scheduler = shared.scheduler.as_ref()?;
    let status = scheduler.status.borrow().clone();
    let check = scheduler.registration.borrow().check.clone();
    let (phase, detail, failures) = match status.phase {
        Phase::None => ("none", None, 0),
        Phase::Held(what) => ("held", Some(what), 0),
        Phase::Unreachable { why, failures } => ("unreachable", Some(why), failures),
        Phase::Open => ("open", None, 0),
    };
    let (belief, belief_error) = match check {
        Check::NotConfigured => ("not-configured", None),
        Check::Pending => ("pending", None),
        Check::Failed(why) => ("failed", Some(why)),
        Check::Read(_) => ("read", None),
    };
    let refused = status.refused.into_iter().map(|r| RefusedModel {
        model: r.model.name,
        version: r.model.version,
        why: r.why,
    });
    Some(SubscriptionStatus {
        phase: phase.into(),
        detail,
        failures,
        refusal: status.refusal,
        for_s: shared
            .clock
            .now()
            .saturating_sub(status.since)
            .as_secs_f64(),
        scheduler: status.scheduler,
        server: status.server,
        replica: status.replica,
        over_commit: status.requested.as_ref().map_or(0, |r| r.over_commit),
        shared: status.requested.as_ref().map(|r| r.shared),
        draining_s: status
            .drain_asked
            .map(|at| shared.clock.now().saturating_sub(at).as_secs_f64()),
        workers: status
            .wanted
            .as_ref()
            .or(status.reported.as_ref())
            .and_then(|r| r.workers),
        mismatches: status.mismatches,
        held_back: status.held_back,
        refused: refused.collect(),
        belief: belief.into(),
        belief_error,
    })
}

pub(super) fn around(shared: &Shared, view: &View) -> Around {
    let observed = shared.observed.borrow().clone();
    let elsewhere = |protocol: Protocol| {
        let all = view.elsewhere[protocol.index()].iter();
        all.map(ToString::to_string).collect()
    };
    Around {
        place: place(),
        uptime_s: shared.clock.now().as_secs_f64(),
        stopping: shared.drain.has_begun(),
        elsewhere_http: elsewhere(Protocol::Http),
        elsewhere_grpc: elsewhere(Protocol::Grpc),
        process: (observed.looks > 0).then_some(observed.server.is_some()),
        process_reason: observed.no_server.clone(),
        restarts: shared.history.restarts(shared.clock.now()),
        usable_s: usable(view).map(|since| {
            let now = shared.clock.now();
            now.saturating_sub(since).as_secs_f64()
        }),
        places: shared.places[0].limit(),
        places_short_s: waited(shared, true).map(|d| d.as_secs_f64()),
        places_full_s: waited(shared, false).map(|d| d.as_secs_f64()),
    }
}

/// Since when both protocols have been up.
fn usable(view: &View) -> Option<Duration> {
    let since = Protocol::ALL.map(|protocol| {
        let selected = view.selected(protocol)?;
        (selected.health.state == State::Up).then_some(selected.health.since)
    });
    let [first, second] = since;
    Some(first?.max(second?))
}

/// For how long callers have waited for a place of relays that have fewer of them than they would
/// use, or of those that have all.
fn waited(shared: &Shared, limited: bool) -> Option<Duration> {
    let such = shared.places.iter();
    let such = such.filter(|p| relay::is_limited(p) == limited);
    such.filter_map(Places::short).max()
}

/// A mark of this boot and this network namespace: two processes with the same one share their
/// loopback. A hash, because the parts identify a machine.
pub fn place() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/net").ok()?;
    let parts = [boot.trim().to_string(), namespace.display().to_string()];
    Some(format!("{:013x}", crate::capability::hash(&parts)))
}
