//! One binary for everything that crosses a socket, because linking is what takes the time.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    missing_debug_implementations
)]

mod subscription;
