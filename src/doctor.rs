//! Why is the model not scheduled? Evidence in, a causal chain out: what is fine, the first thing
//! that is broken, what follows from it, what could not be checked.
//!
//! [`gather`] looks (the only part with sockets and files), [`rules`] is the table of everything
//! that is known to go wrong, [`engine`] applies it, purely. The same table runs in the sidecar
//! over what the shim knows anyway. A rule never guesses: evidence that is missing makes it
//! unknown, and that is said.

pub mod engine;
pub mod evidence;
pub mod gather;
pub mod rule;
pub mod rules;
pub mod show;
pub mod watch;

pub use engine::{Diagnosis, Finding, diagnose};
pub use evidence::Evidence;
pub use rule::{Found, Kind, Link, Need, Rule, Severity, Verdict};
