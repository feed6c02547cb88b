//! The admission webhook: a real TLS client asks the real server.

mod admission;
mod certificates;
mod hostile;
mod overrides;
mod process;
pub mod support;
