//! The integration tests: the whole shim in one process, on real loopback sockets. One binary,
//! because linking is what takes the time.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    missing_debug_implementations
)]

mod support;

mod admin;
mod agent;
mod bad_input;
mod cli;
mod complaint;
mod demo;
mod doctor;
mod drain;
mod faults;
mod fuzz_replay;
mod gather;
mod grpc_relay;
mod hostile;
mod http_relay;
mod inject;
mod life_cycle;
mod metrics;
mod observe;
mod os;
mod page;
mod pod_run;
mod probe_model;
mod real_server;
mod regression;
mod restore;
mod scrape;
mod selection;
mod standin;
mod subscription;
mod webhook;
mod worker;
