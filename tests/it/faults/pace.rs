//! How slow this machine is. The promises (ready within 3 s, belief within 30 s) are checked as they
//! are where the machine has a core for everybody; where `/proc/loadavg` says that it does not, they
//! are multiplied by what it says, up to 8, and the factor is printed. `FAULTS_FACTOR` sets it.

use std::sync::OnceLock;
use std::time::Duration;

use super::process::variable;

/// `SHIM_OUTAGE_GRACE` of a cell, before it is scaled, in milliseconds.
pub const GRACE: u64 = 2000;

/// How much slower this machine is than promised.
pub fn factor() -> f64 {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    *FACTOR.get_or_init(measured)
}

/// The periods of the shim are short here, and longer where the machine is slow: a server that
/// gets no processor for seconds would be called silent, and rightly.
pub fn scaled(millis: u64) -> Duration {
    Duration::from_millis(millis).mul_f64((factor() / 2.0).min(2.5))
}

fn measured() -> f64 {
    if let Some(set) = variable("FAULTS_FACTOR") {
        return set.parse().unwrap();
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let now: f64 = load
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1.0);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()) as f64;
    // The cells themselves keep both cores busy for a part of the time.
    (1.0 + now / cores).clamp(2.0, 8.0)
}

/// A duration that is promised on a quiet machine.
pub fn promised(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * factor())
}
