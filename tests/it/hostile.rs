//! Attacks on the wire: a real shim in a process of its own, raw sockets, and an innocent caller
//! beside each attack who must not notice it. Memory and descriptors are the kernel's own figures
//! for that process.

mod admin;
mod binds;
mod callers;
mod crowd;
mod desync;
mod fair;
mod frames;
mod http1;
mod http2;
mod interposer;
mod lane;
mod lanes;
mod leftovers;
mod process;
mod upstream;
mod vital;
