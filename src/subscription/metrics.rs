//! The interposer's series. Closed label sets, exported as zeros from the start.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use crate::metrics::Metrics;

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// All values, in the order in which they are exported.
            pub const ALL: &[$name] = &[$($name::$variant,)+];

            /// The label.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }
        }
    };
}

labels!(
    /// Which message.
    Kind {
        /// The agent's request to subscribe.
        Subscribe = "subscribe",
        /// What the scheduler asks for.
        Operation = "operation",
        /// What the agent reports.
        Event = "event",
    }
);

labels!(
    /// What became of a message.
    Fate {
        /// It went on as it came.
        Unchanged = "unchanged",
        /// It went on changed.
        Changed = "changed",
        /// It was answered for the agent.
        Refused = "refused",
        /// It could not be read, and went on as it came.
        Unreadable = "unreadable",
        /// It was compressed, and went on as it came.
        Compressed = "compressed",
        /// It was too long to be read, and went on as it came.
        Large = "large",
    }
);

labels!(
    /// What happened to subscriptions.
    Turn {
        /// A stream to the scheduler was opened.
        Opened = "opened",
        /// It was opened although not everything was known in time.
        Unready = "unready",
        /// The scheduler ended it.
        EndedByScheduler = "ended-by-scheduler",
        /// The agent ended it.
        EndedByAgent = "ended-by-agent",
        /// The connection to the scheduler broke.
        Lost = "lost",
        /// A newer one of the same agent took its place.
        Superseded = "superseded",
        /// The shim ended it, because what it had reported was no longer true.
        Renewed = "renewed",
    }
);

labels!(
    /// How the delivery of an event ended.
    Delivery {
        /// The scheduler took it.
        Taken = "taken",
        /// The scheduler has the model in another state.
        Mismatch = "state-mismatch",
        /// The scheduler refused it for another reason.
        Refused = "refused",
        /// It was sent once more after a transport error.
        Again = "sent-again",
        /// It could not be delivered in time.
        Lost = "lost",
        /// It was not sent once more, since its model had moved on.
        Overtaken = "overtaken",
    }
);

labels!(
    /// How an attempt to connect to a scheduler ended.
    Dial {
        /// Connected.
        Connected = "connected",
        /// The name could not be looked up.
        Dns = "dns",
        /// Refused, unreachable, or silent.
        Refused = "refused",
        /// The secured connection could not be agreed on.
        Tls = "tls",
    }
);

/// The interposer's series.
#[derive(Debug, Clone)]
pub struct SubscriptionMetrics {
    messages: IntCounterVec,
    turns: IntCounterVec,
    deliveries: IntCounterVec,
    dials: IntCounterVec,
    /// 1 while a stream to the scheduler stands.
    pub open: IntGauge,
    /// Calls of the agent that were passed on.
    pub calls: IntCounter,
}

impl SubscriptionMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let messages = metrics.counter_vec(
            "agent_shim_scheduler_messages_total",
            "Messages between agent and scheduler by what became of them.",
            &["message", "fate"],
        );
        for kind in Kind::ALL {
            for fate in Fate::ALL {
                messages.with_label_values(&[kind.as_str(), fate.as_str()]);
            }
        }
        let closed = |name: &str, help: &str, label: &str, values: &[&'static str]| {
            let counter = metrics.counter_vec(name, help, &[label]);
            for value in values {
                counter.with_label_values(&[value]);
            }
            counter
        };
        SubscriptionMetrics {
            messages,
            turns: closed(
                "agent_shim_subscriptions_total",
                "What happened to subscriptions.",
                "event",
                &Turn::ALL.iter().map(|t| t.as_str()).collect::<Vec<_>>(),
            ),
            deliveries: closed(
                "agent_shim_agent_events_total",
                "Deliveries of the agent's events to the scheduler.",
                "result",
                &Delivery::ALL.iter().map(|d| d.as_str()).collect::<Vec<_>>(),
            ),
            dials: closed(
                "agent_shim_scheduler_connects_total",
                "Attempts to connect to a scheduler.",
                "outcome",
                &Dial::ALL.iter().map(|d| d.as_str()).collect::<Vec<_>>(),
            ),
            open: metrics.int_gauge(
                "agent_shim_subscription_open",
                "1 while the agent's subscription stands at the scheduler.",
            ),
            calls: metrics.counter(
                "agent_shim_scheduler_calls_total",
                "Calls of the agent that were passed to the scheduler.",
            ),
        }
    }

    /// Counts a message.
    pub fn message(&self, kind: Kind, fate: Fate) {
        self.messages
            .with_label_values(&[kind.as_str(), fate.as_str()])
            .inc();
    }

    /// Counts what happened to a subscription.
    pub fn turn(&self, turn: Turn) {
        self.turns.with_label_values(&[turn.as_str()]).inc();
    }

    /// Counts a delivery.
    pub fn delivery(&self, delivery: Delivery) {
        self.deliveries
            .with_label_values(&[delivery.as_str()])
            .inc();
    }

    /// Counts an attempt to connect.
    pub fn dial(&self, dial: Dial) {
        self.dials.with_label_values(&[dial.as_str()]).inc();
    }
}
