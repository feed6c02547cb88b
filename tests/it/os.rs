//! The operating system runs short, or lies: no descriptors, no memory, nobody who reads the log,
//! packets dropped without a word, a clock that jumps, a disk that is full, no name server. The
//! real binary, in its own process, under the real limit.
//!
//! Where the machine lacks a means, the test says which check was not made, past the capture of
//! the test runner.

mod clock;
mod descriptors;
mod log;
pub mod means;
mod memory;
mod network;
pub mod process;
#[path = "../soak/trend.rs"]
mod trend;
