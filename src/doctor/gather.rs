//! Where evidence comes from, beyond what a running shim knows.

pub mod ports;
