//! Everything that crosses a socket, in one binary: it links once.

#![allow(clippy::unwrap_used)]

mod demo;
mod standin;
