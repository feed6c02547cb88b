//! `agent-shim probe`: one health question with distinct exit codes, for exec probes and scripts.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | serving |
//! | 1 | bad usage, as in grpc-health-probe |
//! | 2 | could not connect |
//! | 3 | connected, and the call failed or timed out |
//! | 4 | answered: not serving |

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::print;
use crate::config::ProbeConfig;
use crate::endpoint::Protocol;
use crate::health::{Outcome, Reason, Thresholds};

const SERVING: u8 = 0;
/// Bad usage, of `probe` only.
pub(super) const BAD_USAGE: u8 = 1;
const CONNECT: u8 = 2;
const CALL: u8 = 3;
const NOT_SERVING: u8 = 4;

/// What to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ask {
    /// Does the shim's process work?
    Livez,
    /// Is the shim ready?
    Readyz,
    /// Has the shim started?
    Startupz,
    /// Is the inference server live, over HTTP?
    ServerHttp,
    /// Is the inference server live, over gRPC?
    ServerGrpc,
}

/// Arguments of `agent-shim probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// What to ask
    #[arg(value_enum, default_value = "readyz")]
    pub ask: Ask,
    /// Where: host:port; by default this pod's shim, or the first configured candidate
    #[arg(long, value_name = "HOST:PORT")]
    pub at: Option<String>,
    /// Limit for connecting
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub connect_timeout: Duration,
    /// Limit for the answer
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub timeout: Duration,
}

/// Runs the command.
pub async fn main(args: ProbeArgs) -> ExitCode {
    let (code, said) = probe(&args).await;
    if code == SERVING {
        // The answer is the exit code, whether or not the words can be written.
        print::out(&format!("{said}\n"), ExitCode::SUCCESS);
    } else {
        print::said(&format!("agent-shim: {said}"));
    }
    ExitCode::from(code)
}

async fn probe(args: &ProbeArgs) -> (u8, String) {
    let place = match &args.at {
        Some(place) => place.clone(),
        None => match default_place(args.ask) {
            Ok(place) => place,
            Err(why) => return (BAD_USAGE, why),
        },
    };
    let port_ok = place
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !port_ok {
        return (BAD_USAGE, format!("{place:?} is no host:port"));
    }
    let address = match timeout(args.connect_timeout, connect(&place)).await {
        Err(_) => {
            return (
                CONNECT,
                format!("no connection to {place} within {:?}", args.connect_timeout),
            );
        }
        Ok(Err(error)) => return (CONNECT, format!("cannot connect to {place}: {error}")),
        Ok(Ok(address)) => address,
    };
    let limits = ProbeConfig {
        interval: args.timeout.max(args.connect_timeout),
        connect_timeout: args.connect_timeout,
        timeout: args.timeout,
        thresholds: Thresholds {
            rise: 1,
            fall: 1,
            grace: Duration::ZERO,
        },
    };
    let client = match crate::models::client() {
        Ok(client) => client,
        Err(error) => return (CALL, error.to_string()),
    };
    let path = match args.ask {
        Ask::Livez => "livez",
        Ask::Readyz => "readyz",
        Ask::Startupz => "startupz",
        Ask::ServerHttp => {
            let outcome = crate::prober::http::probe(address, &limits).await;
            return from_outcome(outcome, &place);
        }
        Ask::ServerGrpc => {
            return from_outcome(crate::prober::grpc::probe(address, &limits).await, &place);
        }
    };
    let answer = client
        .get(format!("http://{address}/{path}"))
        .timeout(args.timeout)
        .send()
        .await;
    match answer {
        Err(error) => (
            CALL,
            format!(
                "{place}/{path}: {}",
                crate::prober::connect::innermost(&error)
            ),
        ),
        Ok(answer) if answer.status().is_success() => (SERVING, format!("{path}: serving")),
        Ok(answer) => {
            let status = answer.status();
            let body = answer.text().await.unwrap_or_default();
            (
                NOT_SERVING,
                format!("{path}: {status}\n{}", body.trim_end()),
            )
        }
    }
}

fn default_place(ask: Ask) -> Result<String, String> {
    let loaded = crate::config::load().map_err(|problems| problems.to_string())?;
    let config = loaded.config;
    let candidate = |protocol| {
        config
            .candidates(protocol)
            .first()
            .map(ToString::to_string)
            .ok_or_else(|| "SHIM_INFERENCE_HOSTS names no host".to_string())
    };
    match ask {
        Ask::ServerHttp => candidate(Protocol::Http),
        Ask::ServerGrpc => candidate(Protocol::Grpc),
        _ => Ok(format!("127.0.0.1:{}", config.admin_port)),
    }
}

/// Resolves and connects once; gives the address that took the connection.
async fn connect(place: &str) -> std::io::Result<SocketAddr> {
    TcpStream::connect(place).await?.peer_addr()
}

fn from_outcome(outcome: Outcome, place: &str) -> (u8, String) {
    match outcome {
        Outcome::Healthy { latency, .. } => {
            (SERVING, format!("{place}: live, answered in {latency:?}"))
        }
        Outcome::Unhealthy { reason, detail } => {
            let code = match reason {
                Reason::Status => NOT_SERVING,
                Reason::Refused | Reason::ConnectTimeout | Reason::Dns => CONNECT,
                Reason::ResponseTimeout | Reason::Reset | Reason::Protocol => CALL,
            };
            (code, format!("{place}: {reason}: {detail}"))
        }
    }
}
