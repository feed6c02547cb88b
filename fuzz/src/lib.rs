//! What has to hold for bytes from outside, whatever they are: one function for each way in.
//!
//! The fuzz targets call these, and so does the replay in the main crate's tests, which includes
//! this file. A property that is broken panics. Oracles are independent of what they judge: they
//! have the whole input at once, or use another library.

mod admission;
mod environment;
mod exposition;
mod frames;
mod heads;
mod http2;
mod installed;
mod kubernetes;
mod manifest;
mod protobuf;
mod requests;
mod scheduler;
mod server;
mod subscribe;

/// One way in.
pub struct Target {
    /// Its name: that of the fuzz target, and of the folder of its corpus.
    pub name: &'static str,
    /// Panics where a property does not hold.
    pub check: fn(&[u8]),
}

/// All ways in.
#[rustfmt::skip]
pub const TARGETS: [Target; 13] = [
    Target { name: "admission", check: admission::check },
    Target { name: "environment", check: environment::check },
    Target { name: "exposition", check: exposition::check },
    Target { name: "frames", check: frames::check },
    Target { name: "heads", check: heads::check },
    Target { name: "http2", check: http2::check },
    Target { name: "installed", check: installed::check },
    Target { name: "kubernetes", check: kubernetes::check },
    Target { name: "manifest", check: manifest::check },
    Target { name: "requests", check: requests::check },
    Target { name: "scheduler", check: scheduler::check },
    Target { name: "server", check: server::check },
    Target { name: "subscribe", check: subscribe::check },
];

/// Checks one input of a target.
pub fn check(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|t| t.name == name);
    (target.expect("there is a target of this name").check)(input);
}

/// The parts of an input between lines of `%%`.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n%%\n")
}
