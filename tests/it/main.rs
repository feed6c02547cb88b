//! Everything that crosses a socket, in one binary: it links once.

mod demo;
mod standin;
