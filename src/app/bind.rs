//! Takes the ports of the configuration, or says which could not be taken and why.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol as Transport, Socket, Type};
use tokio::net::TcpListener;

use super::{Bound, Error};
use crate::config::Config;

/// Every listener, bound and not yet served.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    pub(super) bound: Bound,
    pub(super) admin: Vec<TcpListener>,
    pub(super) relay_http: Vec<TcpListener>,
    pub(super) relay_grpc: Vec<TcpListener>,
    pub(super) agent: Vec<TcpListener>,
}

impl Listeners {
    pub(super) fn bind(config: &Config) -> Result<Self, Error> {
        let mut all = Listeners::default();
        all.relay_http = bind_all(
            &config.relay_listen,
            config.relay_http_port,
            "the HTTP relay",
            "SHIM_RELAY_HTTP_PORT",
            &mut all.bound.relay_http,
        )?;
        all.relay_grpc = bind_all(
            &config.relay_listen,
            config.relay_grpc_port,
            "the gRPC relay",
            "SHIM_RELAY_GRPC_PORT",
            &mut all.bound.relay_grpc,
        )?;
        if !config.scheduler.targets.is_empty() {
            all.agent = bind_all(
                &config.relay_listen,
                config.scheduler.agent_port,
                "the agent's way to the scheduler",
                "SHIM_AGENT_PORT",
                &mut all.bound.agent,
            )?;
        }
        all.admin = bind_all(
            &config.admin_listen,
            config.admin_port,
            "admin",
            "SHIM_ADMIN_PORT",
            &mut all.bound.admin,
        )?;
        Ok(all)
    }
}

fn bind_all(
    addresses: &[IpAddr],
    port: u16,
    purpose: &'static str,
    variable: &'static str,
    bound: &mut Vec<SocketAddr>,
) -> Result<Vec<TcpListener>, Error> {
    let mut listeners = Vec::new();
    for ip in addresses {
        let mut address = SocketAddr::new(*ip, port);
        let mut result = listen(address);
        // `::` stands for "every address"; without IPv6 that is 0.0.0.0.
        let no_ipv6 = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
            ) || error.raw_os_error() == Some(EAFNOSUPPORT)
        };
        if *ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && result.as_ref().is_err_and(no_ipv6) {
            tracing::info!(purpose, "no IPv6 here: listening on 0.0.0.0");
            address.set_ip(Ipv4Addr::UNSPECIFIED.into());
            result = listen(address);
        }
        let bind_error = |source| Error::Bind {
            address,
            purpose,
            variable,
            source,
        };
        let listener = result.map_err(bind_error)?;
        bound.push(listener.local_addr().map_err(bind_error)?);
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Linux's "address family not supported".
const EAFNOSUPPORT: i32 = 97;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Transport::TCP),
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
