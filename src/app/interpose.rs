//! The way to the scheduler as the settings want it, and how long a drain may take there.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::Config;
use crate::correction::Correction;
use crate::metrics::Metrics;
use crate::state::Scheduler;
use crate::subscription::{self, Interposer};
use crate::{registration, tls};

/// The agent's way to the scheduler, and the reader of what the scheduler believes.
pub(super) struct Interposed {
    pub(super) interposer: Interposer,
    pub(super) reader: registration::Reader,
    pub(super) seen: Scheduler,
    pub(super) tls: Option<tls::Client>,
}

/// Makes both; `None` where no scheduler is named.
pub(super) fn interpose(
    config: &Config,
    correction: Correction,
    clock: Clock,
    metrics: &Metrics,
) -> Option<Interposed> {
    let scheduler = &config.scheduler;
    if scheduler.targets.is_empty() {
        return None;
    }
    let tls = scheduler
        .tls
        .clone()
        .map(|files| tls::Client::new(files, metrics));
    let settings = subscription::Settings {
        mode: config.mode,
        targets: scheduler.targets.clone(),
        tls: tls.clone(),
        hold: scheduler.subscribe_hold,
        resubscribe_min_interval: scheduler.resubscribe_min_interval,
        settle: subscription::pace::SETTLE,
        drain_limit: drain_limit(config.drain_time),
    };
    let (interposer, status) = Interposer::new(settings, Arc::new(correction), clock, metrics);
    let target = scheduler.status.clone();
    let (reader, registration) =
        registration::Reader::new(target, tls.clone(), status.clone(), clock, metrics);
    Some(Interposed {
        interposer,
        reader,
        seen: Scheduler {
            status,
            registration,
        },
        tls,
    })
}

/// Where the shim itself stops at once, a drain that is called for before that has so long.
const LEAST: Duration = Duration::from_secs(5);

/// The scheduler's time for a drain: so much less than the shim's own that the answer still arrives.
fn drain_limit(drain_time: Duration) -> Duration {
    // The agent may drain although the shim itself stops at once.
    hook_limit(drain_time).max(LEAST)
}

/// The time of a `/drain`: its caller gets its answer although SIGTERM comes right after the call.
pub(super) fn hook_limit(drain_time: Duration) -> Duration {
    match drain_time.is_zero() {
        true => LEAST,
        false => drain_time - (drain_time / 10).min(Duration::from_secs(10)),
    }
}
