//! agent-shim: a sidecar that stands between Seldon Core 2's agent and its inference server.
//!
//! The library is the whole program; `main` only parses the command line. Start reading at
//! [`app`], the only place that knows every part; ARCHITECTURE.md has the map.

pub mod admin;
pub mod agent;
pub mod app;
mod before_answer;
pub mod budget;
pub mod capability;
pub mod capacity;
pub mod cli;
pub mod clock;
pub mod config;
pub mod correction;
#[cfg(feature = "demo")]
pub mod demo;
pub mod descriptors;
pub mod doctor;
pub mod drain;
pub mod dual_stack;
pub mod endpoint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
pub mod history;
pub mod inject;
#[cfg(test)]
mod interleave;
pub mod listeners;
pub mod metrics;
pub mod models;
pub mod nearest;
pub mod observer;
pub mod places;
pub mod prestop;
pub mod prober;
pub mod process;
pub mod procfs;
pub mod readiness;
pub mod registration;
pub mod relay;
pub mod restore;
pub mod scrape;
pub mod signal;
pub mod state;
pub mod subscription;
pub mod telemetry;
pub mod tls;
mod turns;
pub mod view;
pub mod webhook;
pub mod worker;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The target triple of this build.
pub const TARGET: &str = env!("SHIM_BUILD_TARGET");

/// Generated from `proto/`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all
)]
pub mod proto {
    tonic::include_proto!("inference");

    /// `seldon.mlops`: the packages refer to each other by these names.
    pub mod agent {
        tonic::include_proto!("seldon.mlops.agent");
    }
    /// `seldon.mlops.scheduler`.
    pub mod scheduler {
        tonic::include_proto!("seldon.mlops.scheduler");
    }
}
