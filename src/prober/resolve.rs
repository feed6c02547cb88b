//! Names to addresses, with a bound, and never more than one look-up of a name under way.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::endpoint::{Candidate, Host};

type Answer = Result<Vec<SocketAddr>, String>;
type UnderWay = HashMap<(String, u16), JoinHandle<Answer>>;
type Known = HashMap<(String, u16), Found>;

/// The last good answer about a name.
#[derive(Debug)]
struct Found {
    addresses: Vec<SocketAddr>,
    /// No look-up has failed since.
    fresh: bool,
}

/// Resolves candidates. The system's resolver blocks a thread for as long as it likes (10 s is
/// common with an unreachable name server), so a look-up that outlasts its bound is kept and
/// waited for again at the next probe instead of starting another.
#[derive(Debug, Clone)]
pub struct Resolver {
    limit: Duration,
    under_way: Arc<Mutex<UnderWay>>,
    known: Arc<Mutex<Known>>,
}

impl Resolver {
    /// A resolver that waits for `limit` at most.
    pub fn new(limit: Duration) -> Self {
        Resolver {
            limit,
            under_way: Arc::default(),
            known: Arc::default(),
        }
    }

    /// The addresses of a candidate, at least one, or why there are none.
    pub async fn resolve(&self, candidate: &Candidate) -> Answer {
        let name = match &candidate.host {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, candidate.port)]),
            Host::Name(name) => name.clone(),
        };
        let key = (name, candidate.port);
        let kept = self.lock().remove(&key);
        let mut lookup = kept.unwrap_or_else(|| tokio::spawn(look_up(key.clone())));
        match tokio::time::timeout(self.limit, &mut lookup).await {
            Ok(Ok(Ok(addresses))) => {
                let found = Found {
                    addresses: addresses.clone(),
                    fresh: true,
                };
                let before = self.known().insert(key, found);
                if before.is_some_and(|before| !before.fresh) {
                    tracing::info!(%candidate, ?addresses, "the name resolves again");
                }
                Ok(addresses)
            }
            Ok(Ok(failed)) => failed,
            Ok(Err(error)) => Err(format!("the look-up of {} failed: {error}", key.0)),
            Err(_) => {
                let text = format!("no answer about {} within {:?}", key.0, self.limit);
                self.lock().insert(key, lookup);
                Err(text)
            }
        }
    }

    /// The addresses that a name had when it was last found; `None` where it never was. Says so in
    /// the log when it begins, with `why`: nobody else would, while the server answers there.
    pub fn last(&self, candidate: &Candidate, why: &str) -> Option<Vec<SocketAddr>> {
        let Host::Name(name) = &candidate.host else {
            return None;
        };
        let mut known = self.known();
        let found = known.get_mut(&(name.clone(), candidate.port))?;
        if found.fresh {
            found.fresh = false;
            let addresses = &found.addresses;
            tracing::warn!(%candidate, why, ?addresses, "the name does not resolve any more: its last addresses are used");
        }
        Some(found.addresses.clone())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look_up(key: (String, u16)) -> Answer {
    match tokio::net::lookup_host((key.0.as_str(), key.1)).await {
        Ok(addresses) => {
            let all: Vec<SocketAddr> = addresses.collect();
            if all.is_empty() {
                Err(format!("{} has no address", key.0))
            } else {
                Ok(all)
            }
        }
        Err(error) => Err(error.to_string()),
    }
}
