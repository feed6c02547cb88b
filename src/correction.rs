//! What is observed, as the interposer asks for it: the policies of [`crate::capacity`] and
//! [`crate::capability`] over the latest look of [`crate::observer`].
//!
//! Owns the decision when enough is known to let a subscription go. Never invents a figure.

use std::sync::Arc;

use tokio::sync::watch;

use crate::capability;
use crate::capacity::{self, Reported, Why};
use crate::endpoint::Protocol;
use crate::observer::Observed;
use crate::prober::Watching;
use crate::registration::metrics::RegistrationMetrics;
use crate::subscription::correct::{CapabilityReport, CapacityReport, Correct, Known};
use crate::view::{Usable, View};

/// The observed side of the interposer.
#[derive(Debug)]
pub struct Correction {
    memory: capacity::Policy,
    capabilities: capability::Policy,
    observed: watch::Receiver<Arc<Observed>>,
    known: watch::Receiver<Known>,
}

/// Keeps [`Known`] up to date.
#[derive(Debug)]
pub struct Keeper {
    watching: Watching,
    observed: watch::Receiver<Arc<Observed>>,
    known: watch::Sender<Known>,
    figures: Option<RegistrationMetrics>,
}

impl Correction {
    /// The side that answers, and the side that has to run.
    pub fn new(
        memory: capacity::Policy,
        capabilities: capability::Policy,
        watching: Watching,
        observed: watch::Receiver<Arc<Observed>>,
    ) -> (Self, Keeper) {
        let first = known(&watching.view.borrow(), &observed.borrow(), 0);
        let (known, reader) = watch::channel(first);
        let correction = Correction {
            memory,
            capabilities,
            observed: observed.clone(),
            known: reader,
        };
        let keeper = Keeper {
            watching,
            observed,
            known,
            figures: None,
        };
        (correction, keeper)
    }
}

impl Keeper {
    /// Shows the observed figure beside those that are requested, reported and believed.
    pub fn showing(mut self, figures: Option<RegistrationMetrics>) -> Self {
        self.figures = figures;
        self
    }

    /// Watches for ever. Returns only when the prober or the observer is gone, which is a fault.
    pub async fn run(mut self) {
        let mut revision = 0;
        let mut last = self.observed.borrow_and_update().clone();
        loop {
            let now = known(&self.watching.view.borrow(), &last, revision);
            self.known.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
            tokio::select! {
                changed = self.watching.changes.changed() => if changed.is_err() { return },
                changed = self.observed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let next = self.observed.borrow_and_update().clone();
                    revision += u64::from(last.may_differ_for_the_scheduler(&next));
                    last = next;
                    if let Some(figures) = &self.figures {
                        figures.observed(last.capacity.bytes);
                    }
                }
            }
        }
    }
}

/// Whether a subscription may go: the server answers, and it has been looked at.
fn known(view: &View, observed: &Observed, revision: u64) -> Known {
    let usable = matches!(view.usable(Protocol::Grpc), Usable::Up | Usable::Stalled)
        && view.last_success(Protocol::Grpc).is_some();
    let missing = if !usable {
        "the inference server to answer gRPC"
    } else if observed.looks == 0 {
        "the first look at the server's memory"
    } else if !observed.capabilities.settled {
        "what the server has installed"
    } else {
        ""
    };
    Known {
        ready: missing.is_empty(),
        missing: missing.into(),
        revision,
    }
}

impl Correct for Correction {
    fn capacity(&self, requested: u64) -> CapacityReport {
        let observed = self.observed.borrow();
        let reported = capacity::report(requested, &self.memory, &observed.capacity);
        CapacityReport {
            bytes: reported.bytes,
            why: in_words(requested, &reported, &observed.capacity),
        }
    }

    fn capabilities(&self, requested: &[String]) -> CapabilityReport {
        let observed = self.observed.borrow();
        let r = capability::reconcile(requested, &observed.capabilities, &self.capabilities);
        CapabilityReport {
            reported: r.reported,
            added: r.added,
            dropped: r.dropped,
            aliased: r.aliased,
        }
    }

    fn workers(&self) -> Option<u32> {
        let observed = self.observed.borrow();
        let workers = observed.server.as_ref()?.workers();
        // Without workers the main process holds the one copy.
        u32::try_from(workers).ok().map(|n| n.max(1))
    }

    fn known(&self) -> watch::Receiver<Known> {
        self.known.clone()
    }
}

fn in_words(requested: u64, reported: &Reported, observation: &capacity::Observation) -> String {
    let source = observation
        .source
        .map_or("nothing", capacity::Source::as_str);
    match reported.why {
        Why::Plausible => "the agent's own figure, which is plausible".into(),
        Why::Reserve => "the agent's own figure less SHIM_MEMORY_RESERVED".into(),
        Why::Explicit => "SHIM_MEMORY_BYTES".into(),
        Why::Basis => format!("SHIM_MEMORY_BASIS chose the {source}"),
        Why::WasZero => format!(
            "the agent said 0 (its container has no memory request); taken from the {source}"
        ),
        Why::WasDefault => format!(
            "the agent said 1,000,000 (its variable MEMORY_REQUEST is missing); taken from the {source}"
        ),
        Why::WasAboveLimit => format!(
            "the agent said {requested}, which is above the container's limit; taken from the {source}"
        ),
        Why::NothingObserved => {
            "the agent's own figure, because nothing better could be observed".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::{Basis, Fraction, Observation, Reserve, Source};
    use crate::prober::Hints;
    use std::time::Duration;

    fn correction(observed: Observed) -> Correction {
        let memory = capacity::Policy {
            explicit: None,
            basis: Basis::Auto,
            reserve: Reserve::Bytes(0),
            node_fraction: Fraction::parse("0.8").unwrap(),
        };
        let capabilities = capability::Policy {
            mode: capability::Mode::Add,
            list: Vec::new(),
        };
        let watching = Watching {
            view: watch::channel(Arc::default()).1,
            changes: watch::channel(0).1,
            history: crate::history::History::default(),
            hints: Hints::default(),
        };
        let observed = watch::channel(Arc::new(observed)).1;
        Correction::new(memory, capabilities, watching, observed).0
    }

    fn with_limit(bytes: u64) -> Observed {
        Observed {
            capacity: Observation {
                bytes: Some(bytes),
                source: Some(Source::Limit),
                ceiling: Some(bytes),
                ..Observation::default()
            },
            looks: 1,
            ..Observed::default()
        }
    }

    #[test]
    fn a_total_of_zero_is_replaced_and_the_reason_is_told() {
        let report = correction(with_limit(4 << 30)).capacity(0);
        assert_eq!(report.bytes, 4 << 30);
        assert!(
            report
                .why
                .contains("said 0 (its container has no memory request)"),
            "{report:?}"
        );
    }

    #[test]
    fn a_plausible_total_stands_and_nothing_observed_changes_nothing() {
        assert_eq!(
            correction(with_limit(4 << 30)).capacity(1 << 30).bytes,
            1 << 30
        );
        let report = correction(Observed::default()).capacity(0);
        assert_eq!(report.bytes, 0);
        assert!(
            report.why.contains("nothing better could be observed"),
            "{report:?}"
        );
    }

    #[test]
    fn a_subscription_waits_for_the_server_first_and_is_told_for_what() {
        let known = known(
            &View {
                updated: Duration::ZERO,
                ..View::default()
            },
            &with_limit(1),
            0,
        );
        assert!(!known.ready);
        assert_eq!(known.missing, "the inference server to answer gRPC");
    }
}
