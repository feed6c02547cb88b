//! Listening sockets that serve both address families where the machine has both.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Listens on an address, which stands beside the result: `::` means "every address" and becomes
/// `0.0.0.0` where there is no IPv6. `purpose` is for the log. Must be called inside a runtime.
pub fn listen(
    mut address: SocketAddr,
    purpose: &'static str,
) -> (SocketAddr, io::Result<TcpListener>) {
    let mut result = bind(address);
    let no_ipv6 = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
        ) || error.raw_os_error() == Some(EAFNOSUPPORT)
    };
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && result.as_ref().is_err_and(no_ipv6) {
        tracing::info!(purpose, "no IPv6 here: listening on 0.0.0.0");
        address.set_ip(Ipv4Addr::UNSPECIFIED.into());
        result = bind(address);
    }
    (address, result)
}

/// Linux's "address family not supported".
const EAFNOSUPPORT: i32 = 97;

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // Both families on one socket, whatever the system's default is.
        socket.set_only_v6(false)?;
    }
    // Only skips TIME_WAIT; two live listeners on one port still conflict, and must.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}
