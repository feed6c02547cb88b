//! Names to addresses, with the reasons told apart that have different fixes.

use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::endpoint::{Candidate, Host, Protocol};
use crate::prober::resolve::Resolver;

/// Limit for one look-up.
const LIMIT: Duration = Duration::from_millis(1500);

/// How a look-up ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// An address was given, nothing to look up.
    Literal,
    /// It has addresses.
    Resolved,
    /// There is no such name, or it has no address.
    Unknown,
    /// No answer in time, or the system says to try again: the name server is out of reach.
    NoAnswer,
    /// The look-up failed in another way.
    Failed,
}

/// What a name led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameFacts {
    /// How it ended.
    pub found: Found,
    /// The addresses, in the system's order.
    pub addresses: Vec<IpAddr>,
    /// The resolver's words where there is no address; empty otherwise.
    pub detail: String,
}

impl NameFacts {
    /// An address instead of a name.
    pub fn literal(ip: IpAddr) -> Self {
        NameFacts {
            found: Found::Literal,
            addresses: vec![ip],
            detail: String::new(),
        }
    }

    /// Addresses that were found.
    pub fn resolved(addresses: Vec<IpAddr>) -> Self {
        NameFacts {
            found: Found::Resolved,
            addresses,
            detail: String::new(),
        }
    }

    /// No answer, and why.
    pub fn unanswered(detail: &str) -> Self {
        NameFacts {
            found: Found::NoAnswer,
            addresses: Vec::new(),
            detail: detail.into(),
        }
    }

    /// From the words of the system's resolver, which are all that it gives.
    pub fn from_words(words: &str) -> Self {
        let has = |parts: &[&str]| parts.iter().any(|p| words.contains(p));
        // glibc's words, then musl's.
        let found = if has(&[
            "Name or service not known",
            "No address associated",
            "Name does not resolve",
            "has no usable address",
            "has no address",
        ]) {
            Found::Unknown
        } else if has(&["Temporary failure", "Try again", "no answer about"]) {
            Found::NoAnswer
        } else {
            Found::Failed
        };
        NameFacts {
            found,
            addresses: Vec::new(),
            detail: words.into(),
        }
    }
}

/// A way to look up names.
pub trait LookUp: Send + Sync {
    /// What a name leads to. Has a limit of its own.
    fn look_up(
        &self,
        name: String,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = NameFacts> + Send + '_>>;
}

/// The system's resolver.
#[derive(Debug, Clone)]
pub struct System(Resolver);

impl System {
    /// With its usual limit.
    pub fn new() -> Self {
        System(Resolver::new(LIMIT))
    }
}

impl Default for System {
    fn default() -> Self {
        System::new()
    }
}

impl LookUp for System {
    fn look_up(
        &self,
        name: String,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = NameFacts> + Send + '_>> {
        Box::pin(async move {
            let candidate = Candidate {
                host: Host::Name(name),
                port,
                protocol: Protocol::Grpc,
            };
            match self.0.resolve(&candidate).await {
                Ok(addresses) => {
                    let mut unique: Vec<IpAddr> = Vec::new();
                    for address in addresses {
                        if !unique.contains(&address.ip()) {
                            unique.push(address.ip());
                        }
                    }
                    NameFacts::resolved(unique)
                }
                Err(words) => NameFacts::from_words(&words),
            }
        })
    }
}
