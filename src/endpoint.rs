//! Where the inference server may be: hosts, candidates in order, and the choice among them.
//!
//! Pure: no clock, no sockets, no runtime. Time is a [`Duration`] since the process started.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::health::State;

/// The two protocols of the inference server; each has a port and a selection of its own,
/// because the real server can bind them to different address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, the Open Inference Protocol's REST form.
    Http,
    /// gRPC over HTTP/2 with prior knowledge.
    Grpc,
}

impl Protocol {
    /// Both protocols, in the order in which they are shown.
    pub const ALL: [Protocol; 2] = [Protocol::Http, Protocol::Grpc];

    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
        }
    }

    /// The name used in sentences.
    pub fn title(self) -> &'static str {
        match self {
            Protocol::Http => "HTTP",
            Protocol::Grpc => "gRPC",
        }
    }

    /// Position in arrays with one entry for each protocol.
    pub fn index(self) -> usize {
        match self {
            Protocol::Http => 0,
            Protocol::Grpc => 1,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A host as configured: an IP address, or a name to be resolved at every probe.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A DNS name, lower case, without a trailing dot.
    Name(String),
}

/// Why a text is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a host: expected an IPv4 address, an IPv6 address with or without brackets, or a host name, without a port"
)]
pub struct HostError {
    text: String,
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let text = text.trim();
        let error = || HostError { text: text.into() };
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or_else(error)?;
            return match inner.parse() {
                Ok(ip @ IpAddr::V6(_)) => Ok(Host::Ip(ip)),
                _ => Err(error()),
            };
        }
        if let Ok(ip) = text.parse() {
            return Ok(Host::Ip(ip));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        // Labels as in RFC 1123, with the underscore that clusters do use in practice.
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // A last label of digits only is a mistyped IPv4 address, never a name.
        let numeric_tail = name
            .rsplit('.')
            .next()
            .is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
        if name.is_empty() || name.len() > 253 || numeric_tail || !name.split('.').all(label_ok) {
            return Err(error());
        }
        Ok(Host::Name(name))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(ip) => write!(f, "{ip}"),
            Host::Name(name) => f.write_str(name),
        }
    }
}

impl Host {
    /// `host:port`, with brackets around an IPv6 address.
    pub fn with_port(&self, port: u16) -> String {
        match self {
            Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
            Host::Ip(IpAddr::V4(ip)) => format!("{ip}:{port}"),
            Host::Name(name) => format!("{name}:{port}"),
        }
    }
}

/// One candidate of one protocol: configured, not proven.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// The host as configured.
    pub host: Host,
    /// The server's port for this protocol.
    pub port: u16,
    /// The protocol spoken there.
    pub protocol: Protocol,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host.with_port(self.port))
    }
}

/// The hosts in order without repeats; the first mention of a host keeps its place.
pub fn in_order(hosts: impl IntoIterator<Item = Host>) -> Vec<Host> {
    let mut seen: Vec<Host> = Vec::new();
    for host in hosts {
        if !seen.contains(&host) {
            seen.push(host);
        }
    }
    seen
}

/// Chooses one candidate of a protocol and remembers the choice.
///
/// The first candidate that is up is taken; a fall moves on at once; the way back to an earlier
/// candidate opens only after that one has been up for the hold time. A stalled candidate is
/// taken only when none is up: its callers wait, as they would without the shim.
#[derive(Debug, Clone)]
pub struct Selector {
    hold: Duration,
    current: Option<usize>,
}

/// What the selector reads of a candidate.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// The health state.
    pub state: State,
    /// When that state began, since the process started.
    pub since: Duration,
    /// Whether it has fallen before. One that never has is taken at once: at the start the
    /// candidates answer in any order, and only a fall is a reason for caution.
    pub has_fallen: bool,
}

impl Selector {
    /// A selector that has chosen nothing; `hold` is the time before failing back.
    pub fn new(hold: Duration) -> Self {
        Selector {
            hold,
            current: None,
        }
    }

    /// The index of the candidate in use.
    pub fn current(&self) -> Option<usize> {
        self.current
    }

    /// Looks at all candidates, in order, and moves the choice where the rules say so.
    /// Returns the choice after the move.
    pub fn choose(&mut self, all: &[Standing], now: Duration) -> Option<usize> {
        let first = |state: State| all.iter().position(|s| s.state == state);
        let current = self.current.filter(|&i| i < all.len());
        self.current = match current.map(|i| (i, all[i].state)) {
            Some((i, State::Up)) => {
                let preferred = all[..i].iter().position(|s| {
                    s.state == State::Up
                        && (!s.has_fallen || now.saturating_sub(s.since) >= self.hold)
                });
                Some(preferred.unwrap_or(i))
            }
            Some((i, State::Stalled)) => Some(first(State::Up).unwrap_or(i)),
            _ => first(State::Up).or_else(|| first(State::Stalled)),
        };
        self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(text: &str) -> Host {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_are_read_in_every_accepted_form() {
        for (text, shown, joined) in [
            ("127.0.0.1", "127.0.0.1", "127.0.0.1:9000"),
            (" ::1 ", "::1", "[::1]:9000"),
            ("[::1]", "::1", "[::1]:9000"),
            ("[fd00::7]", "fd00::7", "[fd00::7]:9000"),
            ("localhost", "localhost", "localhost:9000"),
            (
                "MLServer.ns.svc.",
                "mlserver.ns.svc",
                "mlserver.ns.svc:9000",
            ),
            ("my_pod-0", "my_pod-0", "my_pod-0:9000"),
        ] {
            let parsed = host(text);
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(parsed.with_port(9000), joined);
        }
    }

    #[test]
    fn what_is_no_host_is_refused_with_the_accepted_forms() {
        for text in [
            "",
            "[127.0.0.1]",
            "[::1",
            "::1]",
            "10.0.0.256",
            "a..b",
            "-a",
            "a b",
            "host:9000",
            "http://x",
            "1.2.3",
            "é",
        ] {
            let error = text.parse::<Host>().unwrap_err().to_string();
            assert!(error.contains("without a port"), "{text}: {error}");
        }
    }

    #[test]
    fn repeated_hosts_keep_their_first_place() {
        let hosts = in_order(["::1", "127.0.0.1", "[::1]", "a", "A"].map(host));
        assert_eq!(hosts, ["::1", "127.0.0.1", "a"].map(host));
    }

    fn standings(states: &[(State, u64)]) -> Vec<Standing> {
        states
            .iter()
            .map(|&(state, since)| Standing {
                state,
                since: Duration::from_secs(since),
                has_fallen: true,
            })
            .collect()
    }

    #[test]
    fn the_first_candidate_up_is_chosen_and_a_fall_moves_on_at_once() {
        use State::*;
        let mut s = Selector::new(Duration::from_secs(10));
        let at = Duration::from_secs;
        assert_eq!(
            s.choose(&standings(&[(Unknown, 0), (Unknown, 0)]), at(1)),
            None
        );
        assert_eq!(s.choose(&standings(&[(Down, 1), (Up, 1)]), at(1)), Some(1));
        // the preferred one is back but has not held yet
        assert_eq!(s.choose(&standings(&[(Up, 5), (Up, 1)]), at(14)), Some(1));
        assert_eq!(s.choose(&standings(&[(Up, 5), (Up, 1)]), at(15)), Some(0));
        assert_eq!(
            s.choose(&standings(&[(Down, 16), (Up, 1)]), at(16)),
            Some(1)
        );
        assert_eq!(
            s.choose(&standings(&[(Down, 16), (Down, 17)]), at(17)),
            None
        );
    }

    #[test]
    fn a_preferred_candidate_that_never_fell_is_taken_as_soon_as_it_is_up() {
        use State::*;
        let mut s = Selector::new(Duration::from_secs(10));
        let mut all = standings(&[(Unknown, 0), (Up, 0)]);
        assert_eq!(s.choose(&all, Duration::ZERO), Some(1));
        all[0].state = Up;
        all[0].has_fallen = false;
        assert_eq!(s.choose(&all, Duration::ZERO), Some(0));
    }

    #[test]
    fn a_stalled_candidate_keeps_its_callers_unless_another_one_is_up() {
        use State::*;
        let mut s = Selector::new(Duration::ZERO);
        let at = Duration::from_secs(1);
        assert_eq!(
            s.choose(&standings(&[(Down, 0), (Stalled, 0)]), at),
            Some(1)
        );
        assert_eq!(
            s.choose(&standings(&[(Stalled, 0), (Stalled, 0)]), at),
            Some(1)
        );
        assert_eq!(s.choose(&standings(&[(Up, 0), (Stalled, 0)]), at), Some(0));
    }

    fn any_state() -> impl Strategy<Value = State> {
        prop_oneof![
            Just(State::Unknown),
            Just(State::Up),
            Just(State::Stalled),
            Just(State::Down)
        ]
    }

    proptest! {
        #[test]
        fn what_is_displayed_parses_back(ip in any::<u128>(), v4 in any::<u32>(), name in "[a-z]([a-z0-9-]{0,8}[a-z0-9])?(\\.[a-z]([a-z0-9-]{0,8}[a-z])?){0,3}") {
            for h in [Host::Ip(std::net::Ipv6Addr::from(ip).into()), Host::Ip(std::net::Ipv4Addr::from(v4).into()), Host::Name(name)] {
                prop_assert_eq!(&h.to_string().parse::<Host>().unwrap(), &h);
            }
        }

        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = text.parse::<Host>();
        }

        // Against an oracle in words: something usable is chosen whenever it exists, an up one
        // before a stalled one, and a choice that is up is left only for an earlier one that held.
        #[test]
        fn a_choice_is_always_the_best_usable_one(
            history in prop::collection::vec(prop::collection::vec(any_state(), 4), 1..40), hold in 0u64..5
        ) {
            let mut selector = Selector::new(Duration::from_secs(hold));
            let mut since = [(State::Unknown, 0u64); 4];
            let mut before = None;
            for (now, states) in history.iter().enumerate() {
                let now = now as u64;
                for (slot, &state) in since.iter_mut().zip(states) {
                    if slot.0 != state {
                        *slot = (state, now);
                    }
                }
                let chosen = selector.choose(&standings(&since), Duration::from_secs(now));
                match chosen {
                    None => prop_assert!(!states.iter().any(|s| matches!(s, State::Up | State::Stalled))),
                    Some(i) => {
                        prop_assert!(matches!(states[i], State::Up | State::Stalled));
                        if states[i] == State::Stalled {
                            prop_assert!(!states.contains(&State::Up));
                        }
                        if let Some(b) = before.filter(|&b: &usize| b != i && states[b] == State::Up) {
                            prop_assert!(i < b && now - since[i].1 >= hold);
                        }
                    }
                }
                before = chosen;
            }
        }
    }
}
