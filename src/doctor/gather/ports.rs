//! What answers at the scheduler's ports: name, connection, protocol, certificate and service, each
//! step told apart from the next, because each one that fails has another fix.
//!
//! Only asks; what the answers mean is for the rules. Nothing here changes anything at the
//! scheduler: the calls that tell the services apart name a method that no service has. Bounded in
//! time as a whole: what was not reached in time is left out, and said.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::scheduler::Target;
use crate::endpoint::Host;
use crate::tls;

pub use self::names::{Found, LookUp, NameFacts, System};
pub use self::serves::Serves;
pub use self::speaks::{Speaks, TlsVerdict};

mod fact;
mod names;
mod serves;
mod speaks;
#[cfg(test)]
mod tests;

/// Limit for one connection to open.
const CONNECT: Duration = Duration::from_millis(1500);
/// Limit for everything about one port.
const WHOLE: Duration = Duration::from_secs(4);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// A port of the scheduler, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Envoy's configuration, 9002.
    Xds,
    /// The scheduler's own API, 9004.
    Api,
    /// The same with TLS, 9044.
    ApiTls,
    /// The agents' service, 9005.
    Agent,
    /// The same with TLS, 9055.
    AgentTls,
}

impl Purpose {
    /// All of them, in the order of the chain that they belong to.
    pub const ALL: [Purpose; 5] = [
        Purpose::Agent,
        Purpose::AgentTls,
        Purpose::Api,
        Purpose::ApiTls,
        Purpose::Xds,
    ];

    /// The number that Seldon's charts give it.
    pub fn port(self) -> u16 {
        match self {
            Purpose::Xds => 9002,
            Purpose::Api => 9004,
            Purpose::ApiTls => 9044,
            Purpose::Agent => 9005,
            Purpose::AgentTls => 9055,
        }
    }

    /// Whether TLS is expected.
    pub fn secured(self) -> bool {
        matches!(self, Purpose::ApiTls | Purpose::AgentTls)
    }

    /// The service that is expected.
    pub fn serves(self) -> Serves {
        match self {
            Purpose::Xds => Serves::Xds,
            Purpose::Api | Purpose::ApiTls => Serves::Api,
            Purpose::Agent | Purpose::AgentTls => Serves::Agent,
        }
    }

    /// As named in a sentence.
    pub fn title(self) -> &'static str {
        match self {
            Purpose::Xds => "Envoy's configuration (xDS)",
            Purpose::Api => "the scheduler's API",
            Purpose::ApiTls => "the scheduler's API with TLS",
            Purpose::Agent => "the agents' service",
            Purpose::AgentTls => "the agents' service with TLS",
        }
    }
}

/// One port to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// What it is for; decides what is expected of it.
    pub purpose: Purpose,
    /// Where it is.
    pub target: Target,
    /// Whether TLS is expected; a setting may differ from what is usual for the purpose.
    pub secured: bool,
}

impl Ask {
    /// The usual port of a purpose on a host.
    pub fn usual(purpose: Purpose, host: &Host) -> Self {
        let target = Target {
            host: host.clone(),
            port: purpose.port(),
        };
        Ask {
            purpose,
            target,
            secured: purpose.secured(),
        }
    }
}

/// How one connection went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "detail", rename_all = "snake_case")]
pub enum Connect {
    /// Open.
    Connected,
    /// Somebody said no: nobody listens, or a policy rejects.
    Refused,
    /// Nobody said anything: packets are dropped, as most network policies do.
    TimedOut,
    /// Opened and torn down again.
    Reset,
    /// The network, or a rule on this machine, says that there is no way: in the system's words.
    Unreachable(String),
    /// Anything else, in the system's words.
    Other(String),
}

impl Connect {
    /// From a socket's error.
    pub fn from_error(error: &std::io::Error) -> Self {
        use std::io::ErrorKind::*;
        match error.kind() {
            ConnectionRefused => Connect::Refused,
            TimedOut => Connect::TimedOut,
            ConnectionReset | ConnectionAborted => Connect::Reset,
            // Some networks reject with "not permitted" or "no route", where others drop.
            HostUnreachable | NetworkUnreachable | NetworkDown | PermissionDenied
            | AddrNotAvailable => Connect::Unreachable(error.to_string()),
            _ => Connect::Other(error.to_string()),
        }
    }
}

/// One address and how the connection to it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// The address.
    pub address: SocketAddr,
    /// How it went.
    pub connect: Connect,
    /// Milliseconds.
    pub took_ms: u64,
}

/// Everything that is known about one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortFacts {
    /// What it is for.
    pub purpose: Purpose,
    /// `host:port`.
    pub target: String,
    /// Whether TLS was expected.
    pub secured: bool,
    /// What the name led to.
    pub name: NameFacts,
    /// Each address that was tried, at most four.
    pub tried: Vec<Tried>,
    /// What the first address that took the connection speaks; absent where none did, or where
    /// time was over.
    pub speaks: Option<Speaks>,
    /// How TLS went, where it is spoken.
    pub tls: Option<TlsVerdict>,
    /// Which service answers, where one could be asked.
    pub serves: Option<Serves>,
    /// The time was over before everything was asked.
    pub cut_short: bool,
    /// Milliseconds.
    pub took_ms: u64,
}

/// What [`PortFacts`] come to: the first thing that is wrong, in the order of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be, as far as could be seen.
    Fine,
    /// No such name: the words of the resolver.
    UnknownName(String),
    /// The name could not be looked up: the name server does not answer, or fails.
    NoNameServer(String),
    /// No address could be connected to: how it went with the last one.
    NotConnected(Connect),
    /// Accepts and says nothing, or hangs up: a proxy without a backend, or no gRPC server.
    Mute(Speaks),
    /// TLS is expected, and plain HTTP/2 is spoken.
    PlainWhereTls,
    /// Plain HTTP/2 is expected, and TLS is spoken.
    TlsWherePlain,
    /// TLS is spoken, and fails.
    Tls(TlsVerdict),
    /// Something that is no gRPC answers.
    NotGrpc(String),
    /// A gRPC server answers, and it serves something else.
    OtherService(Serves),
    /// The time was over before it could be told.
    Untold,
}

impl PortFacts {
    /// The first thing that is wrong, in the order of a connection.
    pub fn verdict(&self) -> Verdict {
        match &self.name.found {
            Found::Unknown => return Verdict::UnknownName(self.name.detail.clone()),
            Found::NoAnswer | Found::Failed => {
                return Verdict::NoNameServer(self.name.detail.clone());
            }
            Found::Literal | Found::Resolved => {}
        }
        let connected = self.tried.iter().any(|t| t.connect == Connect::Connected);
        match self.tried.last() {
            Some(last) if !connected => return Verdict::NotConnected(last.connect.clone()),
            None => return Verdict::Untold,
            Some(_) => {}
        }
        match &self.speaks {
            None => return Verdict::Untold,
            Some(mute @ (Speaks::Silent | Speaks::Closed | Speaks::Reset)) => {
                return Verdict::Mute(mute.clone());
            }
            Some(Speaks::Http1(line)) => return Verdict::NotGrpc(line.clone()),
            Some(Speaks::Unknown(bytes)) => return Verdict::NotGrpc(bytes.clone()),
            Some(Speaks::Http2) if self.secured => return Verdict::PlainWhereTls,
            Some(Speaks::Tls) if !self.secured => return Verdict::TlsWherePlain,
            Some(Speaks::Http2 | Speaks::Tls) => {}
        }
        match &self.tls {
            None | Some(TlsVerdict::Trusted) => {}
            Some(other) => return Verdict::Tls(other.clone()),
        }
        match &self.serves {
            Some(Serves::NotGrpc(why)) => Verdict::NotGrpc(why.clone()),
            Some(serves) if serves.differs_from(&self.purpose.serves()) => {
                Verdict::OtherService(serves.clone())
            }
            _ => Verdict::Fine,
        }
    }
}

/// How the ports are looked at.
#[derive(Clone)]
pub struct Gatherer {
    names: Arc<dyn LookUp>,
    tls: Option<tls::Client>,
    whole: Duration,
}

impl std::fmt::Debug for Gatherer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gatherer")
            .field("tls", &self.tls)
            .field("whole", &self.whole)
            .finish_non_exhaustive()
    }
}

impl Gatherer {
    /// With the system's resolver; `tls` holds the authority to judge by and the certificate to
    /// show. Without it TLS is noticed and not judged.
    pub fn new(tls: Option<tls::Client>) -> Self {
        Gatherer::with_names(Arc::new(System::new()), tls)
    }

    /// With another way to look up names.
    pub fn with_names(names: Arc<dyn LookUp>, tls: Option<tls::Client>) -> Self {
        Gatherer {
            names,
            tls,
            whole: WHOLE,
        }
    }

    /// With another limit for everything about one port; 4 s unless told.
    #[must_use]
    pub fn within(mut self, whole: Duration) -> Self {
        self.whole = whole;
        self
    }

    /// Looks at all of them at once; the facts come in the order of the questions.
    pub async fn gather(&self, asks: &[Ask]) -> Vec<PortFacts> {
        let mut tasks = tokio::task::JoinSet::new();
        for (index, ask) in asks.iter().cloned().enumerate() {
            let this = self.clone();
            tasks.spawn(async move { (index, this.port(ask).await) });
        }
        let mut all = tasks.join_all().await;
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, facts)| facts).collect()
    }

    async fn port(&self, ask: Ask) -> PortFacts {
        let started = Instant::now();
        let deadline = started + self.whole;
        let facts = Mutex::new(PortFacts {
            purpose: ask.purpose,
            target: ask.target.to_string(),
            secured: ask.secured,
            name: NameFacts::unanswered("the time was over"),
            tried: Vec::new(),
            speaks: None,
            tls: None,
            serves: None,
            cut_short: false,
            took_ms: 0,
        });
        let cut = timeout_at(deadline, self.steps(&ask, &facts))
            .await
            .is_err();
        let mut facts = facts.into_inner().unwrap_or_else(PoisonError::into_inner);
        facts.cut_short = cut;
        facts.took_ms = millis(started.elapsed());
        facts
    }

    /// The steps of one port; what is known after each is noted, so that a limit loses nothing.
    async fn steps(&self, ask: &Ask, facts: &Mutex<PortFacts>) {
        let facts = || facts.lock().unwrap_or_else(PoisonError::into_inner);
        let name = match &ask.target.host {
            Host::Ip(ip) => NameFacts::literal(*ip),
            Host::Name(name) => self.names.look_up(name.clone(), ask.target.port).await,
        };
        facts().name = name.clone();
        let addresses = name.addresses.iter().take(MAX_ADDRESSES);
        let tried = connect_all(addresses.copied(), ask.target.port).await;
        facts().tried = tried.clone();
        let Some(open) = tried.iter().find(|t| t.connect == Connect::Connected) else {
            return;
        };
        let peer = speaks::Peer {
            address: open.address,
            host: ask.target.host.clone(),
            tls: self.tls.clone(),
        };
        let (spoken, tls) = peer.listen(ask.secured).await;
        {
            let mut facts = facts();
            facts.speaks = Some(spoken.clone());
            facts.tls = tls.clone();
        }
        match (spoken, tls) {
            (Speaks::Http2, _) => {
                let Ok(stream) = dial(open.address).await else {
                    return;
                };
                let serves = serves::ask(stream, &ask.target, false).await;
                facts().serves = Some(serves);
            }
            (Speaks::Tls, Some(TlsVerdict::Trusted)) => {
                let Ok(stream) = peer.secured().await else {
                    return;
                };
                let serves = serves::ask(stream, &ask.target, true).await;
                facts().serves = Some(serves);
            }
            _ => {}
        }
    }
}

async fn connect_all(addresses: impl Iterator<Item = IpAddr>, port: u16) -> Vec<Tried> {
    let mut tasks = tokio::task::JoinSet::new();
    for (index, ip) in addresses.enumerate() {
        let address = SocketAddr::new(ip, port);
        tasks.spawn(async move {
            let started = Instant::now();
            let connect = match dial(address).await {
                Ok(_) => Connect::Connected,
                Err(error) => Connect::from_error(&error),
            };
            let took_ms = millis(started.elapsed());
            (
                index,
                Tried {
                    address,
                    connect,
                    took_ms,
                },
            )
        });
    }
    let mut all = tasks.join_all().await;
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, tried)| tried).collect()
}

/// A connection, within its limit.
async fn dial(address: SocketAddr) -> std::io::Result<TcpStream> {
    match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(answer) => {
            let stream = answer?;
            // Fails only on a connection that is gone, which the next read says better.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
