//! Takes the ports of the configuration, or says which could not be taken and why.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpListener;

use super::{Bound, Error};
use crate::config::Config;
use crate::dual_stack;

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
        let (address, result) = dual_stack::listen(SocketAddr::new(*ip, port), purpose);
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
