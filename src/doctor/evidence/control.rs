//! The control plane, as rules ask for it: the subscription, the scheduler's port, models.

use super::{Evidence, PortFact, PortOutcome, PortUse};
use crate::admin::status::{ConditionStatus, SubscriptionStatus};
use crate::registration::facts::{ModelFact, ReplicaFact, ServerFact};

/// The scheduler's reason where no server could take a model.
const NO_SERVER: &str = "no matching servers are available";
/// Its reason where a server could, and no replica had room.
const NO_REPLICA: &str = "enough suitable replicas";
/// The agent's own refusal.
const BELOW_ZERO: &str = "Memory will go below zero";
/// The shim's refusal of what can never fit.
const CANNOT_FIT: &str = "cannot fit";

impl Evidence {
    /// The agent's way to the scheduler.
    pub fn subscription(&self) -> Option<&SubscriptionStatus> {
        self.status.as_ref()?.subscription.as_ref()
    }

    /// Whether the agent's subscription stands.
    pub fn is_subscribed(&self) -> bool {
        self.subscription().is_some_and(|s| s.phase == "open")
    }

    /// One condition of the shim.
    pub fn condition(&self, name: &str) -> Option<&ConditionStatus> {
        let conditions = &self.status.as_ref()?.conditions;
        conditions.iter().find(|c| c.name == name)
    }

    /// `replica 0 of mlserver`.
    pub fn who(&self) -> String {
        match self.subscription() {
            Some(s) if !s.server.is_empty() => format!("replica {} of {}", s.replica, s.server),
            _ => "this replica".into(),
        }
    }

    /// The server of this pod as the scheduler sees it.
    pub fn our_server(&self) -> Option<&ServerFact> {
        let name = &self.subscription()?.server;
        self.scheduler
            .as_ref()?
            .servers
            .iter()
            .find(|s| s.name == *name)
    }

    /// This replica as the scheduler sees it.
    pub fn our_replica(&self) -> Option<&ReplicaFact> {
        let index = self.subscription()?.replica;
        self.our_server()?
            .replicas
            .iter()
            .find(|r| r.index == index)
    }

    /// How the agent service of the scheduler was reached: the first configured port that took a
    /// fresh connection, else the last that did not; without fresh attempts, what the shim says
    /// of its own. `None` where nothing is known.
    pub fn agent_service(&self) -> Option<PortFact> {
        let fresh = || {
            let all = self.ports.iter();
            all.filter(|p| p.purpose == PortUse::AgentService && p.configured)
        };
        if let Some(fact) = fresh()
            .find(|p| p.outcome == PortOutcome::Connected)
            .or_else(|| fresh().next_back())
        {
            return Some(fact.clone());
        }
        let subscription = self.subscription()?;
        let fact = |outcome, detail: &str, target: &str| {
            let (host, port) = target.rsplit_once(':').unwrap_or((target, ""));
            PortFact {
                purpose: PortUse::AgentService,
                host: host.into(),
                port: port.parse().unwrap_or(0),
                tls: detail.contains("TLS"),
                configured: true,
                outcome,
                detail: detail.into(),
                address: None,
                ms: 0,
            }
        };
        let target = subscription.scheduler.clone().unwrap_or_default();
        match (subscription.phase.as_str(), &subscription.detail) {
            ("open", _) => Some(fact(PortOutcome::Connected, "", &target)),
            ("unreachable", Some(why)) => {
                let (outcome, named) = PortOutcome::from_words(why);
                Some(fact(outcome, why, named.as_deref().unwrap_or(&target)))
            }
            _ => None,
        }
    }

    /// The shim's own sentence, where the scheduler took its question about this replica and has not
    /// answered it; nothing where somebody else has just had an answer.
    pub fn unanswered(&self) -> Option<&str> {
        let s = self.subscription().filter(|s| s.belief == "failed")?;
        let why = s.belief_error.as_deref()?;
        // The words are those of `registration::ask`.
        (self.scheduler.is_none() && why.contains("did not answer within")).then_some(why)
    }

    /// The models that are asked about: the named one, else all of which the scheduler knows.
    pub fn models(&self) -> impl Iterator<Item = &ModelFact> {
        let all = self.scheduler.iter().flat_map(|s| &s.models);
        let asked = self.asked_model.as_deref();
        all.filter(move |m| asked.is_none_or(|name| name == m.name))
    }

    /// Those that are in trouble and could be meant for this server.
    pub fn troubled(&self) -> impl Iterator<Item = &ModelFact> {
        self.models()
            .filter(|m| m.in_trouble() && self.may_be_here(m))
    }

    fn may_be_here(&self, model: &ModelFact) -> bool {
        match (&model.pinned, self.subscription()) {
            (Some(pinned), Some(s)) if !s.server.is_empty() => *pinned == s.server,
            _ => true,
        }
    }
}

impl ModelFact {
    /// Whether it does not serve because it could not be placed or loaded.
    pub fn in_trouble(&self) -> bool {
        matches!(self.state.as_str(), "schedule-failed" | "failed")
    }

    /// Whether no server could take it: none is there, or sharing, or requirements.
    pub fn no_server(&self) -> bool {
        self.state == "schedule-failed" && self.reason.contains(NO_SERVER)
    }

    /// Whether a server could take it, and no replica had room.
    pub fn no_replica(&self) -> bool {
        self.state == "schedule-failed" && self.reason.contains(NO_REPLICA)
    }

    /// Whether it failed on a replica for want of memory.
    pub fn failed_for_memory(&self) -> bool {
        self.state == "failed"
            && (self.reason.contains(BELOW_ZERO) || self.reason.contains(CANNOT_FIT))
    }

    /// Bytes that it takes on a replica whose server has so many workers.
    pub fn needs(&self, workers: Option<u32>) -> u64 {
        let copies = self.workers.or(workers).unwrap_or(1).max(1);
        self.memory.unwrap_or(0).saturating_mul(copies.into())
    }
}

impl PortOutcome {
    /// What the shim's own sentence about a scheduler that it cannot reach means, and the
    /// `host:port` that it names. The sentences are those of [`crate::subscription::upstream`];
    /// where several schedulers were tried the last one counts.
    pub fn from_words(why: &str) -> (PortOutcome, Option<String>) {
        let starts = [
            "; cannot look up ",
            "; cannot connect to ",
            "; cannot speak ",
            "; TLS with ",
        ];
        // A library's own words may hold a semicolon as well.
        let begin = starts.iter().filter_map(|start| why.rfind(start)).max();
        let last = begin.map_or(why, |at| &why[at + 2..]);
        let has = |part: &str| last.contains(part);
        let named = |before: &str| {
            let rest = &last[last.find(before)? + before.len()..];
            let end = rest.find([' ', ',']).unwrap_or(rest.len());
            Some(rest[..end].trim_end_matches(':').to_string())
        };
        if has("cannot look up") {
            return (PortOutcome::Unresolved, named("cannot look up "));
        }
        if has("TLS with ") {
            let outcome = if has("no answer within") {
                PortOutcome::Silent
            } else if has("has expired") || has("NotValidYet") {
                PortOutcome::TlsExpired
            } else if has("not signed by") {
                PortOutcome::TlsUntrusted
            } else if has("for another name") || has("no DNS name") {
                PortOutcome::TlsWrongName
            } else if has("cannot read") || has("holds no usable") || has("cannot be used") {
                PortOutcome::TlsFiles
            } else if has("does not speak TLS") || has("is this a plain-text port") {
                PortOutcome::NotTls
            } else {
                PortOutcome::TlsRefused
            };
            return (outcome, named("TLS with "));
        }
        if has("cannot speak HTTP/2 to ") {
            let outcome = if has("no answer within") {
                PortOutcome::Silent
            } else if has("alert") {
                // With TLS 1.3 the peer judges our certificate after our side is done.
                PortOutcome::TlsRefused
            } else if has("expects TLS") {
                PortOutcome::WantsTls
            } else if has("reset") || has("roken pipe") || has("closed before") {
                PortOutcome::Reset
            } else {
                PortOutcome::WrongProtocol
            };
            return (outcome, named("cannot speak HTTP/2 to "));
        }
        if has("cannot connect to ") {
            let outcome = if has("no connection within") || has("timed out") {
                PortOutcome::TimedOut
            } else if has("reset") {
                PortOutcome::Reset
            } else {
                PortOutcome::Refused
            };
            return (outcome, named("cannot connect to "));
        }
        (PortOutcome::Reset, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shims_own_sentences_are_understood() {
        for (why, expected, named) in [
            (
                "cannot look up seldon-scheduler: failed to lookup address information",
                PortOutcome::Unresolved,
                "seldon-scheduler",
            ),
            (
                "cannot connect to 10.0.0.1:9005: Connection refused (os error 111)",
                PortOutcome::Refused,
                "10.0.0.1:9005",
            ),
            (
                "cannot connect to a:9005: Connection refused; cannot connect to s:9005: no connection within 3s",
                PortOutcome::TimedOut,
                "s:9005",
            ),
            (
                "TLS with s:9055: the scheduler's certificate has expired: renew it (x)",
                PortOutcome::TlsExpired,
                "s:9055",
            ),
            (
                "TLS with s:9055: the scheduler's certificate is not signed by the CA in the CA file (UnknownIssuer)",
                PortOutcome::TlsUntrusted,
                "s:9055",
            ),
            (
                "TLS with s:9055: the scheduler's certificate is for another name than the one in SHIM_SCHEDULER (a; b)",
                PortOutcome::TlsWrongName,
                "s:9055",
            ),
            (
                "TLS with s:9005: the scheduler does not speak TLS on this port (x)",
                PortOutcome::NotTls,
                "s:9005",
            ),
            (
                "cannot speak HTTP/2 to s:9005: no answer within 5s",
                PortOutcome::Silent,
                "s:9005",
            ),
            (
                "TLS with s:9055: no answer within 5s; is this a plain-text port?",
                PortOutcome::Silent,
                "s:9055",
            ),
            (
                "cannot speak HTTP/2 to s:9055: http2 error: frame with invalid size",
                PortOutcome::WrongProtocol,
                "s:9055",
            ),
        ] {
            let (outcome, target) = PortOutcome::from_words(why);
            assert_eq!(
                (outcome, target.as_deref()),
                (expected, Some(named)),
                "{why}"
            );
        }
    }
}
