//! Models in a bad state: found, named, and mended where that is switched on.
//!
//! What was cut off or lost is told by the server itself at that moment; what its owner or the shim
//! is at is left alone. No load or unload is cancelled or given a limit.

use std::time::Duration;

use tokio::time::sleep;

use super::Runner;
use crate::endpoint::Protocol;
use crate::restore::back::{put_anew, put_out};
use crate::restore::server::{Asking, Has, address};
use crate::worker::Bad;
use crate::worker::stuck::Unknown;

/// Time between two looks at models that may be stuck.
const MODELS_LOOK: Duration = Duration::from_secs(5);
/// Time from one index to the next while the server says that it is not ready.
const INDEX_GAP: Duration = Duration::from_secs(15);

impl Runner {
    /// The worker does not have a model that the server calls READY.
    pub(super) async fn lost(&self, server: &Asking, model: &str) {
        // Unloaded in between, it was not lost.
        if server.has(model).await != Has::Ready {
            self.not_lost(model);
            return;
        }
        if self.parts.memory.calls(model) > 0 {
            return;
        }
        self.parts.memory.missed(model);
        let now = self.now();
        let seen = &self.parts.worker.0.seen;
        let new = seen.send_if_modified(|seen| {
            let new = seen.lost.iter().all(|l| l.model != model);
            if new {
                seen.lost.push(Bad {
                    model: model.into(),
                    since: now,
                });
            }
            new
        });
        if new {
            tracing::warn!(model, "the model is READY and the worker does not have it");
        }
        if !self.parts.mend.lost {
            return;
        }
        if let Some(outcome) = put_anew(&self.parts.memory, model, server).await {
            self.mended("lost", model, outcome);
        }
    }

    /// The worker has the model, or the server does not call it READY.
    pub(super) fn not_lost(&self, model: &str) {
        self.parts.worker.0.seen.send_if_modified(|seen| {
            let before = seen.lost.len();
            seen.lost.retain(|l| l.model != model);
            seen.lost.len() < before
        });
    }

    pub(super) fn mended(&self, state: &'static str, model: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                tracing::info!(model, state, "mended a model");
                self.series.mended(state);
                self.parts.worker.0.seen.send_modify(|seen| {
                    *seen.mended.entry(state).or_default() += 1;
                    seen.lost.retain(|l| state != "lost" || l.model != model);
                    seen.stuck.retain(|s| state != "stuck" || s.model != model);
                });
            }
            Err(error) => {
                tracing::warn!(model, state, error, "could not mend a model");
                self.series.mended("failed");
            }
        }
        self.parts.poke.now();
    }

    /// Models that are UNKNOWN without being loaded.
    pub(super) async fn models(&self) {
        let mut inventory = self.parts.inventory.clone();
        let mut unknown = Unknown::default();
        let mut asked: Option<Duration> = None;
        let mut was_ready = true;
        loop {
            tokio::select! {
                () = sleep(MODELS_LOOK) => {}
                changed = inventory.changed() => if changed.is_err() { return },
            }
            let now = self.now();
            let index = inventory.borrow_and_update().clone();
            let (not_ready, up) = {
                let view = self.parts.watching.view.borrow();
                (
                    view.server_ready(Protocol::Http) == Some(false),
                    address(&view),
                )
            };
            let memory = &self.parts.memory;
            // A model that loads makes the server not ready: else there is nothing to look for,
            // but for a load whose end nobody tells.
            let is_over = !std::mem::replace(&mut was_ready, !not_ready) && !not_ready;
            let look = not_ready || memory.any_left();
            let due = asked.is_none_or(|at| now.saturating_sub(at) >= INDEX_GAP);
            if is_over || look && due {
                asked = Some(now);
                self.parts.poke.now();
            }
            unknown.look(&index, now, |name| memory.calls(name));
            let Some(address) = up else {
                continue;
            };
            let server = Asking::new(self.parts.client.clone(), address);
            let mut stuck = Vec::new();
            for bad in unknown.old(now) {
                // Its caller has gone and it goes on, for as long as that may take.
                let loads = memory.is_left(&bad.model) || memory.calls(&bad.model) > 0;
                if !loads && server.has(&bad.model).await == Has::Loading {
                    stuck.push(bad);
                }
            }
            self.tell_stuck(&stuck);
            self.mend_stuck(&server, &stuck, &mut unknown).await;
        }
    }

    fn tell_stuck(&self, stuck: &[Bad]) {
        let seen = &self.parts.worker.0.seen;
        let known: Vec<String> = seen
            .borrow()
            .stuck
            .iter()
            .map(|s| s.model.clone())
            .collect();
        for new in stuck.iter().filter(|s| !known.contains(&s.model)) {
            let model = &new.model;
            tracing::warn!(
                model,
                "the model is UNKNOWN although no load of it is known to be under way: a load was cut off"
            );
        }
        seen.send_if_modified(|seen| {
            let changed = seen.stuck != stuck;
            seen.stuck = stuck.to_vec();
            changed
        });
    }

    /// Unloads what may be mended, where that is switched on.
    pub(super) async fn mend_stuck(&self, server: &Asking, stuck: &[Bad], unknown: &mut Unknown) {
        if !self.parts.mend.stuck {
            return;
        }
        for bad in stuck {
            if !unknown.may_mend(&bad.model, self.now()) {
                continue;
            }
            if let Some(outcome) = put_out(&self.parts.memory, &bad.model, server).await {
                unknown.mended(self.now());
                self.mended("stuck", &bad.model, outcome);
            }
        }
    }
}
