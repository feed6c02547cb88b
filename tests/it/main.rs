//! One binary for everything that crosses a socket, because linking is what takes the time.

#[allow(unreachable_pub, reason = "shared helpers, not an API")]
mod subscription;
