//! How much and how long one caller may take. Constants in production; tests shorten them.

use std::time::Duration;

/// The bounds of the HTTPS port.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections that are served at once; more wait in the listener's queue.
    pub connections: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the first request of a connection.
    pub first_request: Duration,
    /// For an HTTP/1.1 connection between requests, and for the head of one. Longer than the 90 s
    /// after which the API server closes an idle connection itself, so that it never sends into
    /// one that is being closed.
    pub idle: Duration,
    /// For a body to arrive.
    pub body: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 512,
            handshake: Duration::from_secs(10),
            first_request: Duration::from_secs(30),
            idle: Duration::from_secs(120),
            body: Duration::from_secs(10),
        }
    }
}
