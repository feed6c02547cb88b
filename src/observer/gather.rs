//! One look: what is read, and what is remembered from one look to the next.
//!
//! A server that has gone for a moment takes nothing with it: what was known stays, with its
//! age, so that a restart does not look like a change.

use std::time::Duration;

use crate::capacity::{self, Found, Reading, Sources, cgroup, memory};
use crate::models::Inventory;
use crate::observer::sources::CapabilitySources;
use crate::observer::{Live, Observed, ProbeAnswer, Settings};
use crate::process::follow::Follower;
use crate::process::{NotFound, Server};
use crate::procfs::Unreadable;

/// Proportional memory makes the kernel walk page tables.
const PSS_INTERVAL: Duration = Duration::from_secs(60);
/// Two samples of a server at rest differ by less than one part in this.
const STEADY: u64 = 50;

#[derive(Debug)]
pub(super) struct Gatherer {
    settings: Settings,
    follower: Follower,
    looks: u64,
    server: Option<Server>,
    capabilities: CapabilitySources,
    cgroup: Reading,
    pss: Option<(Duration, Result<u64, Unreadable>)>,
    baseline: Baseline,
}

/// The server's memory with no model loaded, settled once for each main process: it must not
/// wander, or capacity would. Python never gives an import back, so a later quiet moment would
/// count what earlier models have left behind.
#[derive(Debug, Default)]
struct Baseline {
    of: (u32, u64),
    last: Option<u64>,
    settled: Option<(u64, Duration)>,
}

impl Gatherer {
    pub(super) fn new(settings: Settings) -> Self {
        Gatherer {
            capabilities: CapabilitySources::new(&settings),
            follower: Follower::new(&settings.proc, &settings.ports),
            settings,
            looks: 0,
            server: None,
            cgroup: Reading::default(),
            pss: None,
            baseline: Baseline::default(),
        }
    }

    pub(super) fn look(
        &mut self,
        inventory: &Inventory,
        probed: Option<&ProbeAnswer>,
        now: Duration,
    ) -> Observed {
        let found = self.follower.look(now);
        let name = |server: &Server| (server.main.pid, server.main.start);
        if found.as_ref().ok().map(name) != self.server.as_ref().map(name) {
            self.pss = None;
        }
        self.server = found.as_ref().ok().cloned();
        self.looks += 1;
        let cgroup = self.cgroup(found.as_ref(), now);
        // What the server itself has said is better than nothing, though it does not follow
        // changes.
        if let (true, Some(Ok(probing))) = (self.cgroup_is_unavailable(), probed)
            && let Some(cgroup) = probing.answer.cgroup
        {
            let limit = cgroup.limit.map_or(Found::Unlimited, Found::Bytes);
            self.cgroup = reading(limit, probing.at);
        }
        let live = self.live(cgroup, now);
        let answered = inventory.read_at.is_some();
        self.baseline
            .take(self.server.as_ref(), live.rss, inventory, now);
        Observed {
            capacity: self.capacity(now),
            capabilities: self
                .capabilities
                .look(found.as_ref(), probed, answered, now),
            live,
            server: self.server.clone(),
            no_server: found.err().map(|why| why.to_string()),
            looks: self.looks,
            at: now,
        }
    }

    /// Reads the cgroup and remembers its limit.
    fn cgroup(
        &mut self,
        found: Result<&Server, &NotFound>,
        now: Duration,
    ) -> Option<cgroup::Cgroup> {
        let answer = match found {
            Ok(server) => cgroup::read(&self.settings.proc, server.main.pid),
            Err(why) => {
                if self.cgroup.found == Found::Unset || self.cgroup_is_unavailable() {
                    self.cgroup = reading(Found::Unavailable(why.as_str()), now);
                }
                return None;
            }
        };
        match answer {
            Ok(cgroup) => {
                let limit = cgroup.limit.map_or(Found::Unlimited, Found::Bytes);
                self.cgroup = reading(limit, now);
                Some(cgroup)
            }
            Err(why) => {
                // The process has ended between two reads, or something is wrong for good.
                let known = matches!(self.cgroup.found, Found::Bytes(_) | Found::Unlimited);
                if !known || why == Unreadable::Denied {
                    self.cgroup = reading(Found::Unavailable(why.as_str()), now);
                }
                None
            }
        }
    }

    fn cgroup_is_unavailable(&self) -> bool {
        matches!(self.cgroup.found, Found::Unavailable(_))
    }

    fn live(&mut self, cgroup: Option<cgroup::Cgroup>, now: Duration) -> Live {
        let Some(server) = &self.server else {
            return Live::default();
        };
        let (proc, pids) = (&self.settings.proc, server.pids());
        let due = |at: Duration| now.saturating_sub(at) >= PSS_INTERVAL;
        if self.pss.as_ref().is_none_or(|(at, _)| due(*at)) {
            self.pss = Some((now, memory::proportional(proc, &pids)));
        }
        let pss = self.pss.as_ref().map(|(_, pss)| *pss);
        Live {
            rss: memory::resident(proc, &pids).ok().map(|used| used.rss),
            pss: pss.and_then(Result::ok),
            pss_reason: pss.and_then(Result::err).map(Unreadable::as_str),
            cgroup_current: cgroup.and_then(|c| c.current),
            cgroup_peak: cgroup.and_then(|c| c.peak),
            cgroup_version: cgroup.map(|c| c.version.as_str()),
        }
    }

    fn capacity(&self, now: Duration) -> capacity::Observation {
        let config = &self.settings.memory;
        // The downward API is read by kubelet before the shim starts.
        let from_environment =
            |bytes: Option<u64>| reading(bytes.map_or(Found::Unset, Found::Bytes), Duration::ZERO);
        let node = match memory::node_total(&self.settings.proc) {
            Ok(bytes) => Found::Bytes(bytes),
            Err(why) => Found::Unavailable(why.as_str()),
        };
        let sources = Sources {
            now,
            request: from_environment(config.request),
            limit: from_environment(config.limit),
            cgroup: self.cgroup,
            node: reading(node, now),
            baseline: match self.baseline.settled {
                Some((bytes, at)) => reading(Found::Bytes(bytes), at),
                None => Reading::default(),
            },
        };
        capacity::observe(&config.policy, &sources)
    }
}

fn reading(found: Found, at: Duration) -> Reading {
    Reading { found, at }
}

impl Baseline {
    /// Takes a sample that the next look confirms: no model then either, a worker there, and the
    /// memory at rest. A load under way would have shown in the index by then.
    fn take(
        &mut self,
        server: Option<&Server>,
        rss: Option<u64>,
        inventory: &Inventory,
        now: Duration,
    ) {
        let Some(server) = server else {
            return;
        };
        let of = (server.main.pid, server.main.start);
        if self.of != of {
            *self = Baseline {
                of,
                ..Baseline::default()
            };
        }
        let idle = inventory.read_at.is_some()
            && inventory.error.is_none()
            && inventory.models.iter().all(|m| m.state == "UNAVAILABLE");
        let sample = rss.filter(|_| idle && server.workers() > 0 && self.settled.is_none());
        if let (Some(last), Some(sample)) = (self.last, sample)
            && last.abs_diff(sample) <= sample / STEADY
        {
            self.settled = Some((sample, now));
        }
        self.last = sample;
    }
}
