//! The inference server's candidates, from fresh probes where there are any, else as the shim
//! sees them: rules need not know which.

use super::Evidence;
use crate::endpoint::Protocol;

/// How one candidate stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The host as configured.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// Whether it answers.
    pub answers: bool,
    /// Whether it has not been probed enough to tell.
    pub open: bool,
    /// Whether it is silent, within the grace.
    pub stalled: bool,
    /// The reason of the last failed probe.
    pub reason: Option<String>,
    /// What that probe saw.
    pub detail: String,
    /// Whether it has answered since the shim started.
    pub answered_before: bool,
    /// Whether it was seen to speak TLS.
    pub tls: bool,
}

impl Candidate {
    /// Whether the last probe failed for this reason.
    pub fn failed_by(&self, reason: &str) -> bool {
        !self.answers && self.reason.as_deref() == Some(reason)
    }

    /// `http 127.0.0.1:9000 refused`.
    pub fn line(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let said = match (&self.reason, self.answers) {
            (_, true) => "answers".to_string(),
            (Some(reason), false) if self.detail.is_empty() => reason.clone(),
            (Some(reason), false) => format!("{reason}: {}", self.detail),
            (None, false) => "not probed yet".into(),
        };
        format!("{} {host}:{}: {said}", self.protocol.title(), self.port)
    }
}

impl Evidence {
    /// Every candidate, HTTP first.
    pub fn candidates(&self) -> Vec<Candidate> {
        let known = self.status.iter().flat_map(|s| &s.endpoints);
        let seen: Vec<Candidate> = known
            .filter_map(|e| {
                let detail = e.detail.clone().unwrap_or_default();
                Some(Candidate {
                    host: e.host.clone(),
                    port: e.port,
                    protocol: protocol(&e.protocol)?,
                    answers: e.state == "up",
                    open: e.state == "unknown",
                    stalled: e.state == "stalled",
                    reason: e.reason.clone(),
                    tls: detail.contains("expects TLS"),
                    detail,
                    answered_before: e.last_success.is_some(),
                })
            })
            .collect();
        if self.probes.is_empty() {
            return seen;
        }
        let fresh = self.probes.iter().filter_map(|p| {
            let protocol = protocol(&p.protocol)?;
            let before = seen
                .iter()
                .find(|c| (&c.host, c.port, c.protocol) == (&p.host, p.port, protocol));
            // A name that is gone takes nothing away while the shim reaches the server at the
            // address that it had.
            let remembered =
                p.reason.as_deref() == Some("dns") && before.is_some_and(|b| b.answers);
            Some(Candidate {
                host: p.host.clone(),
                port: p.port,
                protocol,
                answers: p.healthy || remembered,
                open: false,
                // A single look with a short limit does not outweigh what the shim sees all the
                // time: a server that answered until now may only be busy.
                stalled: !p.healthy
                    && !remembered
                    && before.is_some_and(|b| b.stalled || b.answers),
                reason: p.reason.clone(),
                detail: p.detail.clone(),
                answered_before: before.is_some_and(|b| b.answered_before || b.answers),
                tls: p.tls || p.detail.contains("expects TLS"),
            })
        });
        fresh.collect()
    }

    /// Whether any candidate of the protocol answers.
    pub fn answers(&self, protocol: Protocol) -> bool {
        let mut all = self.candidates().into_iter();
        all.any(|c| c.protocol == protocol && c.answers)
    }

    /// Whether the server can be used at all, as far as is known.
    pub fn server_up(&self) -> bool {
        Protocol::ALL.into_iter().all(|p| self.answers(p))
    }
}

fn protocol(name: &str) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|p| p.as_str() == name)
}
