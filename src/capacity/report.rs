//! The total that the scheduler is told: the agent's own where it is plausible.

use super::{AGENT_DEFAULT, Basis, Observation, Policy, Reserved, Source, keep_free};

/// Why the reported total is what it is. The set is closed: it labels metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The agent's own figure is plausible.
    Plausible,
    /// The agent's own figure, without the reserve.
    Reserve,
    /// The operator gave the figure.
    Explicit,
    /// The operator chose the basis, and it was found.
    Basis,
    /// The agent said 0: the container has no request.
    WasZero,
    /// The agent said 1,000,000: its variable is missing.
    WasDefault,
    /// The agent said more than the container may use.
    WasAboveLimit,
    /// The agent's figure is not plausible and nothing better is known: passed on as it is.
    NothingObserved,
}

impl Why {
    /// All, in the order in which they are exported.
    pub const ALL: [Why; 8] = [
        Why::Plausible,
        Why::Reserve,
        Why::Explicit,
        Why::Basis,
        Why::WasZero,
        Why::WasDefault,
        Why::WasAboveLimit,
        Why::NothingObserved,
    ];

    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Plausible => "plausible",
            Why::Reserve => "reserve",
            Why::Explicit => "explicit",
            Why::Basis => "basis",
            Why::WasZero => "was-zero",
            Why::WasDefault => "was-default",
            Why::WasAboveLimit => "was-above-limit",
            Why::NothingObserved => "nothing-observed",
        }
    }
}

/// The total that the scheduler is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// Bytes.
    pub bytes: u64,
    /// Why these.
    pub why: Why,
    /// What became of the reserve in this figure.
    pub reserved: Reserved,
}

/// The total to report where the agent requested `requested`.
pub fn report(requested: u64, policy: &Policy, observation: &Observation) -> Reported {
    let observed = |why| match observation.bytes {
        Some(bytes) => Reported {
            bytes,
            why,
            reserved: observation.reserved,
        },
        None => Reported {
            bytes: requested,
            why: Why::NothingObserved,
            reserved: Reserved::No,
        },
    };
    let by_basis = matches!(
        (policy.basis, observation.source),
        (Basis::Request, Some(Source::Request))
            | (Basis::Limit, Some(Source::Limit | Source::Cgroup))
    );
    if policy.explicit.is_some_and(|bytes| bytes > 0) {
        return observed(Why::Explicit);
    }
    if by_basis {
        return observed(Why::Basis);
    }
    match requested {
        0 => return observed(Why::WasZero),
        AGENT_DEFAULT => return observed(Why::WasDefault),
        _ => {}
    }
    if let Some(ceiling) = observation.ceiling.filter(|ceiling| requested > *ceiling) {
        return match observation.bytes {
            Some(_) => observed(Why::WasAboveLimit),
            None => Reported {
                bytes: ceiling,
                why: Why::WasAboveLimit,
                reserved: Reserved::No,
            },
        };
    }
    let (bytes, reserved) = keep_free(requested, policy.reserve, observation.baseline);
    let why = match reserved {
        Reserved::Bytes(_) => Why::Reserve,
        Reserved::No | Reserved::NotMeasured | Reserved::LeavesNothing(_) => Why::Plausible,
    };
    Reported {
        bytes,
        why,
        reserved,
    }
}
