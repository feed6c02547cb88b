//! The real probe of a candidate: resolve its name, then ask each address until one is healthy.

use super::resolve::Resolver;
use super::{Probe, ProbeFuture, Report, grpc, http};
use crate::config::ProbeConfig;
use crate::endpoint::{Candidate, Protocol};
use crate::health::{Outcome, Reason};

/// Whether the outcome of one address of a name stands for the name rather than that of an earlier
/// one: a server that is silent is there, whatever is refused beside it, and slow is not dead.
fn says_more(new: &Outcome, old: &Outcome) -> bool {
    let rank = |outcome: &Outcome| match outcome {
        Outcome::Healthy { .. } => 2,
        Outcome::Unhealthy { reason, .. } if reason.is_silence() => 1,
        Outcome::Unhealthy { .. } => 0,
    };
    rank(new) >= rank(old)
}

/// The real probes: resolve, then ask each address until one is healthy.
#[derive(Debug)]
pub struct ServerProbe {
    /// Limits of a probe.
    pub limits: ProbeConfig,
    /// Names to addresses.
    pub resolver: Resolver,
}

/// Addresses of one name that are asked in one probe.
const MAX_ADDRESSES: usize = 4;

impl Probe for ServerProbe {
    fn probe(&self, candidate: &Candidate) -> ProbeFuture {
        let (limits, resolver) = (self.limits, self.resolver.clone());
        let candidate = candidate.clone();
        Box::pin(async move {
            let no_name = |detail| Report {
                outcome: Outcome::Unhealthy {
                    reason: Reason::Dns,
                    detail,
                },
                address: None,
            };
            // A name server that is gone is no word about the server: it is asked where it was.
            let (addresses, unresolved) = match resolver.resolve(&candidate).await {
                Ok(addresses) => (addresses, None),
                Err(detail) => match resolver.last(&candidate, &detail) {
                    Some(addresses) => (addresses, Some(detail)),
                    None => return no_name(detail),
                },
            };
            let mut last: Option<Report> = None;
            for address in addresses.into_iter().take(MAX_ADDRESSES) {
                let outcome = match candidate.protocol {
                    Protocol::Http => http::probe(address, &limits).await,
                    Protocol::Grpc => grpc::probe(address, &limits).await,
                };
                let healthy = matches!(outcome, Outcome::Healthy { .. });
                if last
                    .as_ref()
                    .is_none_or(|l| says_more(&outcome, &l.outcome))
                {
                    last = Some(Report {
                        outcome,
                        address: Some(address),
                    });
                }
                if healthy {
                    break;
                }
            }
            let Some(report) = last else {
                return no_name("the name has no address".into());
            };
            match (unresolved, &report.outcome) {
                // It may have moved, and then this says nothing about where it is now.
                (Some(why), Outcome::Unhealthy { reason, detail }) if !reason.is_silence() => {
                    no_name(format!("{why}; and where it was before: {detail}"))
                }
                _ => report,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_silent_address_of_a_name_stands_before_one_that_refuses() {
        let of = |reason| Outcome::Unhealthy {
            reason,
            detail: String::new(),
        };
        let (silent, refused) = (of(Reason::ResponseTimeout), of(Reason::Refused));
        assert!(says_more(&silent, &refused) && !says_more(&refused, &silent));
        let healthy = Outcome::Healthy {
            ready: None,
            latency: Duration::ZERO,
        };
        assert!(says_more(&healthy, &silent) && !says_more(&silent, &healthy));
    }
}
