//! The one truth about the inference server, as a value: every candidate's health and the
//! selection of each protocol, and what follows from them in words.
//!
//! Written by the prober alone; everything else reads snapshots. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use crate::endpoint::{Candidate, Host, Protocol};
use crate::health::{Health, Reason, State};

/// One candidate with its health.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The candidate.
    pub candidate: Candidate,
    /// Its health.
    pub health: Health,
    /// The address that answered last; for a literal host it is known from the start.
    pub address: Option<SocketAddr>,
}

impl Endpoint {
    /// A candidate of which nothing is known yet.
    pub fn new(candidate: Candidate, health: Health) -> Self {
        let address = match candidate.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, candidate.port)),
            Host::Name(_) => None,
        };
        Endpoint {
            candidate,
            health,
            address,
        }
    }
}

/// A snapshot.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Candidates in order, for each protocol.
    pub endpoints: [Vec<Endpoint>; 2],
    /// The index of the one in use, for each protocol.
    pub selection: [Option<usize>; 2],
    /// Addresses on which somebody listens at the server's port although every candidate of the
    /// protocol refuses: the server is bound to an address that nobody told us about.
    pub elsewhere: [Vec<SocketAddr>; 2],
    /// When the last probe ended; the prober's heartbeat.
    pub updated: Duration,
}

/// How long one protocol must have failed before the other's health is held against it.
const SETTLED: Duration = Duration::from_secs(3);

/// How a protocol of the server stands, over all candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usable {
    /// A candidate is up.
    Up,
    /// The one in use is silent, within the grace: callers are relayed and wait.
    Stalled,
    /// Not probed enough to tell.
    Unknown,
    /// None.
    Down,
}

impl View {
    /// The candidates of a protocol, in order.
    pub fn of(&self, protocol: Protocol) -> &[Endpoint] {
        &self.endpoints[protocol.index()]
    }

    /// The candidate in use.
    pub fn selected(&self, protocol: Protocol) -> Option<&Endpoint> {
        let index = self.selection[protocol.index()]?;
        self.of(protocol).get(index)
    }

    /// How the protocol stands.
    pub fn usable(&self, protocol: Protocol) -> Usable {
        match self.selected(protocol).map(|e| e.health.state) {
            Some(State::Up) => Usable::Up,
            Some(State::Stalled) => Usable::Stalled,
            _ if self
                .of(protocol)
                .iter()
                .any(|e| e.health.state == State::Unknown) =>
            {
                Usable::Unknown
            }
            _ => Usable::Down,
        }
    }

    /// Whether every candidate has been probed at least once.
    pub fn all_probed(&self) -> bool {
        self.endpoints.iter().flatten().all(|e| {
            e.health.state != State::Unknown
                || e.health.reason.is_some()
                || e.health.last_success.is_some()
        })
    }

    /// The last answer from any candidate of the protocol.
    pub fn last_success(&self, protocol: Protocol) -> Option<Duration> {
        self.of(protocol)
            .iter()
            .filter_map(|e| e.health.last_success)
            .max()
    }

    /// Whether the server counts as live for callers who ask the shim: one candidate is up, or
    /// the last answer is younger than the grace. `Err` says why not, in words.
    pub fn live(&self, protocol: Protocol, now: Duration, grace: Duration) -> Result<(), String> {
        let up = self
            .of(protocol)
            .iter()
            .any(|e| e.health.state == State::Up);
        let recent = self
            .last_success(protocol)
            .is_some_and(|at| now.saturating_sub(at) <= grace);
        if up || recent {
            Ok(())
        } else {
            Err(self.why_not(protocol, now))
        }
    }

    /// The server's own readiness as it was last heard, from the candidate in use or else the
    /// one that answered last.
    pub fn server_ready(&self, protocol: Protocol) -> Option<bool> {
        self.selected(protocol)
            .or_else(|| {
                self.of(protocol)
                    .iter()
                    .max_by_key(|e| e.health.last_success)
            })
            .and_then(|e| e.health.server_ready)
    }

    /// The sentence of [`View::why_not`] after attempts of a caller's own, which are newer than
    /// the probes: each is a candidate's index and what came of it.
    pub fn why_not_after(
        &self,
        protocol: Protocol,
        attempts: &[(usize, Reason)],
        now: Duration,
    ) -> String {
        let mut seen = self.clone();
        for (index, reason) in attempts {
            if let Some(endpoint) = seen.endpoints[protocol.index()].get_mut(*index) {
                endpoint.health.reason = Some(*reason);
            }
        }
        seen.why_not(protocol, now)
    }

    /// Why a protocol is not usable: one sentence with every candidate, then what it means.
    pub fn why_not(&self, protocol: Protocol, now: Duration) -> String {
        let each: Vec<String> = self
            .of(protocol)
            .iter()
            .map(|e| {
                let reason = match (e.health.state, e.health.reason) {
                    (_, Some(reason)) => reason.as_str(),
                    (State::Up, None) => "up",
                    _ => "not probed yet",
                };
                format!("{} {reason}", e.candidate)
            })
            .collect();
        let seen = match self.last_success(protocol) {
            Some(at) => format!("last answer {}s ago", now.saturating_sub(at).as_secs()),
            None => "it has never answered".into(),
        };
        let title = protocol.title();
        format!(
            "the inference server does not answer {title} ({}; {seen}): {}",
            each.join(", "),
            self.meaning(protocol, now)
        )
    }

    /// What the pattern of reasons means and what to look at, in words.
    fn meaning(&self, protocol: Protocol, now: Duration) -> String {
        let reasons: Vec<Reason> = self
            .of(protocol)
            .iter()
            .filter_map(|e| e.health.reason)
            .collect();
        let any = |reason: Reason| reasons.contains(&reason);
        let all_refused = !reasons.is_empty() && reasons.iter().all(|r| *r == Reason::Refused);
        let other = match protocol {
            Protocol::Http => Protocol::Grpc,
            Protocol::Grpc => Protocol::Http,
        };
        let answered = self.last_success(protocol).is_some();
        let other_port = self.of(other).first().map_or(0, |e| e.candidate.port);
        let port_variable = match protocol {
            Protocol::Http => "SHIM_INFERENCE_HTTP_PORT",
            Protocol::Grpc => "SHIM_INFERENCE_GRPC_PORT",
        };
        if any(Reason::Protocol) {
            return format!(
                "something else listens on that port and does not speak {}; compare {port_variable} with the server's own port",
                protocol.title()
            );
        }
        if any(Reason::Status) {
            return "it answers that it is not live".into();
        }
        if any(Reason::ResponseTimeout) {
            return "it accepts connections and does not answer; if it stays so it is wedged, or half started because a port was taken or MLSERVER_HOST is no address it can bind: look at its log and restart its container".into();
        }
        if any(Reason::ConnectTimeout) {
            return "connections are neither accepted nor refused: the process is stopped, or packets to it are dropped".into();
        }
        let elsewhere: Vec<String> = self.elsewhere[protocol.index()]
            .iter()
            .map(|address| address.ip().to_string())
            .collect();
        if all_refused && !elsewhere.is_empty() {
            let list = elsewhere.join(",");
            return format!(
                "the server is bound to another address: somebody listens on {list}; add {list} to SHIM_INFERENCE_HOSTS, or bind the server to 127.0.0.1"
            );
        }
        // Right after a fall the other protocol may only not have been probed yet.
        let settled = self
            .last_success(protocol)
            .is_none_or(|at| now.saturating_sub(at) >= SETTLED);
        if self.usable(other) == Usable::Up && settled {
            return format!(
                "only {} answers (port {other_port}): the {} side failed to start or uses another port than {port_variable}; look at the server's log",
                other.title(),
                protocol.title()
            );
        }
        if all_refused && answered {
            return "nothing listens there any more: the server has stopped or is restarting"
                .into();
        }
        if all_refused {
            return "nothing listens there: the server has not started yet, or is bound to an address that is not in SHIM_INFERENCE_HOSTS".into();
        }
        if any(Reason::Dns) {
            return "a host name in SHIM_INFERENCE_HOSTS does not resolve".into();
        }
        if any(Reason::Reset) {
            return "connections are closed before an answer".into();
        }
        "it has not been probed yet".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Outcome, Thresholds};

    const THRESHOLDS: Thresholds = Thresholds {
        rise: 1,
        fall: 1,
        grace: Duration::from_secs(20),
    };

    fn endpoint(protocol: Protocol, host: &str, outcomes: &[(u64, Option<Reason>)]) -> Endpoint {
        let candidate = Candidate {
            host: host.parse().unwrap(),
            port: if protocol == Protocol::Http {
                9000
            } else {
                9500
            },
            protocol,
        };
        let mut health = Health::new(THRESHOLDS);
        for (at, reason) in outcomes {
            let outcome = match reason {
                None => Outcome::Healthy {
                    ready: Some(true),
                    latency: Duration::ZERO,
                },
                Some(reason) => Outcome::Unhealthy {
                    reason: *reason,
                    detail: String::new(),
                },
            };
            health.observe(&outcome, Duration::from_secs(*at));
        }
        Endpoint::new(candidate, health)
    }

    fn view(http: Vec<Endpoint>, grpc: Vec<Endpoint>) -> View {
        let select = |all: &[Endpoint]| all.iter().position(|e| e.health.state == State::Up);
        View {
            selection: [select(&http), select(&grpc)],
            endpoints: [http, grpc],
            elsewhere: Default::default(),
            updated: Duration::ZERO,
        }
    }

    #[test]
    fn live_outlives_the_last_answer_by_the_grace_and_then_says_why_not() {
        use Protocol::Grpc;
        let v = view(
            vec![],
            vec![endpoint(
                Grpc,
                "127.0.0.1",
                &[(5, None), (6, Some(Reason::Refused))],
            )],
        );
        let grace = Duration::from_secs(20);
        assert_eq!(v.live(Grpc, Duration::from_secs(25), grace), Ok(()));
        let why = v.live(Grpc, Duration::from_secs(26), grace).unwrap_err();
        assert_eq!(
            why,
            "the inference server does not answer gRPC (127.0.0.1:9500 refused; last answer 21s ago): nothing listens there any more: the server has stopped or is restarting"
        );
    }

    #[test]
    fn a_server_that_never_answered_is_never_live() {
        use Protocol::Grpc;
        let v = view(
            vec![],
            vec![endpoint(Grpc, "::1", &[(0, Some(Reason::ResponseTimeout))])],
        );
        assert_eq!(v.of(Grpc)[0].health.state, State::Stalled);
        assert!(
            v.live(Grpc, Duration::from_secs(1), Duration::from_secs(20))
                .is_err()
        );
    }

    #[test]
    fn right_after_a_fall_the_other_protocol_is_no_evidence() {
        use Protocol::*;
        let http = endpoint(Http, "127.0.0.1", &[(0, None), (9, None)]);
        let grpc = endpoint(Grpc, "127.0.0.1", &[(0, None), (9, None)]);
        let v = view(vec![http], vec![grpc]);
        let after = |now| v.why_not_after(Grpc, &[(0, Reason::Refused)], Duration::from_secs(now));
        let why = after(10);
        assert!(
            why.contains("127.0.0.1:9500 refused; last answer 1s ago"),
            "{why}"
        );
        assert!(why.contains("nothing listens there any more"), "{why}");
        assert!(after(13).contains("only HTTP answers"));
    }

    #[test]
    fn a_server_bound_elsewhere_is_named_with_its_address() {
        use Protocol::*;
        let refused = |p| vec![endpoint(p, "127.0.0.1", &[(0, Some(Reason::Refused))])];
        let mut v = view(refused(Http), refused(Grpc));
        v.elsewhere[Grpc.index()] = vec!["10.1.2.3:9500".parse().unwrap()];
        let why = v.why_not(Grpc, Duration::from_secs(1));
        assert!(
            why.contains("add 10.1.2.3 to SHIM_INFERENCE_HOSTS"),
            "{why}"
        );
        assert!(!v.why_not(Http, Duration::from_secs(1)).contains("10.1.2.3"));
    }

    #[test]
    fn the_causes_are_told_apart_in_words() {
        use Protocol::*;
        let up = |p| vec![endpoint(p, "127.0.0.1", &[(0, None)])];
        let failing = |p, r| vec![endpoint(p, "127.0.0.1", &[(0, Some(r))])];
        for (v, words) in [
            (
                view(
                    failing(Http, Reason::Refused),
                    failing(Grpc, Reason::Refused),
                ),
                "has not started yet, or is bound to an address",
            ),
            (
                view(up(Http), failing(Grpc, Reason::Refused)),
                "only HTTP answers (port 9000): the gRPC side failed to start",
            ),
            (
                view(vec![], failing(Grpc, Reason::ResponseTimeout)),
                "accepts connections and does not answer",
            ),
            (
                view(vec![], failing(Grpc, Reason::ConnectTimeout)),
                "neither accepted nor refused",
            ),
            (
                view(vec![], failing(Grpc, Reason::Protocol)),
                "does not speak gRPC; compare SHIM_INFERENCE_GRPC_PORT",
            ),
            (
                view(vec![], failing(Grpc, Reason::Status)),
                "answers that it is not live",
            ),
            (view(vec![], failing(Grpc, Reason::Dns)), "does not resolve"),
            (
                view(vec![], failing(Grpc, Reason::Reset)),
                "closed before an answer",
            ),
            (
                view(vec![], vec![endpoint(Grpc, "a", &[])]),
                "not been probed yet",
            ),
        ] {
            let why = v.why_not(Grpc, Duration::from_secs(1));
            assert!(why.contains(words), "{words:?} is not in {why:?}");
        }
    }
}
