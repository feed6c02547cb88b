//! `agent-shim webhook`: the flags of the admission webhook, and its life as a process.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::print;
use crate::config::{LogFilter, LogFormat};
use crate::webhook::certificate::Files;
use crate::webhook::decide::{Injector, Policy};
use crate::webhook::limits::Limits;
use crate::webhook::overrides::Allowed;
use crate::webhook::{Settings, Webhook};
use crate::{signal, telemetry};

/// Arguments of `agent-shim webhook`.
#[derive(Debug, Args)]
pub struct WebhookArgs {
    /// Addresses to listen on; :: means every address, of both families
    #[arg(
        long,
        value_name = "IP,...",
        value_delimiter = ',',
        default_value = "::"
    )]
    pub listen: Vec<IpAddr>,
    /// Port of the admission reviews (HTTPS, POST /mutate)
    #[arg(long, value_name = "PORT", default_value_t = 9443)]
    pub port: u16,
    /// Port of /livez, /readyz and /metrics (plain HTTP)
    #[arg(long, value_name = "PORT", default_value_t = 9681)]
    pub ops_port: u16,
    /// Certificate chain in PEM; read again when it changes
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/agent-shim/webhook/tls.crt"
    )]
    pub tls_cert: PathBuf,
    /// Its private key in PEM
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/agent-shim/webhook/tls.key"
    )]
    pub tls_key: PathBuf,
    /// The webhook's own namespace, in which nothing is changed
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", value_parser = namespace)]
    pub own_namespace: Option<String>,
    /// More namespaces in which nothing is changed
    #[arg(
        long,
        value_name = "NAMESPACE,...",
        value_delimiter = ',',
        value_parser = namespace,
        default_value = "kube-system,kube-public,kube-node-lease"
    )]
    pub exclude_namespaces: Vec<String>,
    /// Which agent-shim.io annotations of a pod may change what is injected: all, none, or a list
    #[arg(long, value_name = "NAME,...", default_value = "all")]
    pub allow_overrides: Allowed,
    /// Time between SIGTERM and the end of accepting, not ready: until nobody is sent here
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub stop_delay: Duration,
    /// Limit for the requests that are then under way; the pod's grace period must hold both
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = humantime::parse_duration)]
    pub stop_limit: Duration,
    /// Log level, or a list of target=level
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: LogFilter,
    /// How log lines are written
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: Lines,
    /// What is injected where a pod does not say otherwise
    #[command(flatten)]
    pub inject: super::options::OptionArgs,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lines {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

fn namespace(text: &str) -> Result<String, String> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match (1..=63).contains(&text.len()) && text.bytes().all(ok) {
        true => Ok(text.into()),
        // `$(POD_NAMESPACE)` stays as it is where the variable is not set.
        false => Err("expected the name of a namespace".into()),
    }
}

/// Runs the command: until SIGTERM or SIGINT, and then as long as requests are under way; a
/// second signal ends it at once.
pub async fn main(args: WebhookArgs) -> ExitCode {
    let format = match args.log_format {
        Lines::Text => LogFormat::Text,
        Lines::Json => LogFormat::Json,
    };
    telemetry::init(&args.log, format);
    let settings = match settings(args) {
        Ok(settings) => settings,
        Err(why) => {
            print::said(&format!("agent-shim: {why}"));
            return ExitCode::from(super::USAGE);
        }
    };
    let mut signals = match signal::Signals::new() {
        Ok(signals) => signals,
        Err(error) => return super::failed(&format!("cannot listen for signals: {error}")),
    };
    tracing::info!(
        version = crate::VERSION,
        ?settings,
        "agent-shim webhook starts"
    );
    let webhook = match Webhook::start(settings, Injector::default()) {
        Ok(webhook) => webhook,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let (told, stop) = tokio::sync::oneshot::channel();
    let running = webhook.run(async {
        // The sender lives as long as this function.
        let _ = stop.await;
    });
    let twice = async {
        let name = signals.next().await;
        tracing::info!(signal = name, "told to stop");
        let _ = told.send(());
        signals.next().await
    };
    tokio::select! {
        ended = running => match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error}");
                ExitCode::FAILURE
            }
        },
        signal = twice => {
            tracing::warn!(signal, "told to stop again: stopping now");
            ExitCode::FAILURE
        }
    }
}

fn settings(args: WebhookArgs) -> Result<Settings, String> {
    let defaults = args.inject.options()?;
    let mut excluded = args.exclude_namespaces;
    excluded.extend(args.own_namespace);
    Ok(Settings {
        listen: args.listen,
        port: args.port,
        ops_port: args.ops_port,
        files: Files {
            cert: args.tls_cert,
            key: args.tls_key,
        },
        policy: Policy {
            defaults,
            allowed: args.allow_overrides,
            excluded,
        },
        limits: Limits::default(),
        stop_delay: args.stop_delay,
        stop_limit: args.stop_limit,
    })
}
