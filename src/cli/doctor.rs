//! `agent-shim doctor`: why a model is not scheduled. Exit codes: 0 nothing is broken, 1 something
//! is, 2 usage, 3 neither the shim nor the scheduler could be asked.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::print;
use crate::config::foreign;
use crate::config::scheduler::Target;
use crate::doctor::engine::Outcome;
use crate::doctor::gather::kube::{Ask, Places};
use crate::doctor::{Diagnosis, diagnose, gather, rules, show};

const FINDING: u8 = 1;
const UNCHECKED: u8 = 3;

/// Arguments of `agent-shim doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing is broken, 1 something is, 2 bad usage, 3 neither the shim nor the scheduler could be asked."
)]
pub struct DoctorArgs {
    /// The model that is not scheduled; without it, every model in trouble
    pub model: Option<String>,
    /// Where the shim's admin port is; by default that of this pod. Given again: other replicas of
    /// the server, to compare with
    #[arg(long, value_name = "URL", value_parser = admin)]
    pub admin: Vec<String>,
    /// The scheduler's agent service, instead of SHIM_SCHEDULER
    #[arg(long, value_name = "HOST:PORT")]
    pub scheduler: Option<Target>,
    /// The scheduler's own API, instead of SHIM_SCHEDULER_STATUS
    #[arg(long, value_name = "HOST:PORT")]
    pub scheduler_status: Option<Target>,
    /// Ask Kubernetes as well: with --kubeconfig, $KUBECONFIG, the service account of the pod, or
    /// ~/.kube/config
    #[arg(long)]
    pub kube: bool,
    /// The kubeconfig to ask Kubernetes with
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<std::path::PathBuf>,
    /// The context of the kubeconfig; by default the current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace of the Server; by default that of the context or the pod
    #[arg(long, short = 'n', value_name = "NAME")]
    pub namespace: Option<String>,
    /// The Server; by default the one that the shim stands beside, else all of the namespace
    #[arg(long, value_name = "NAME")]
    pub server: Option<String>,
    /// Where Seldon's operator runs; by default seldon-system or seldon-mesh, where it is found
    #[arg(long, value_name = "NAME")]
    pub operator_namespace: Option<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "markdown")]
    pub json: bool,
    /// Print Markdown, for a ticket
    #[arg(long)]
    pub markdown: bool,
    /// Print no colours; they are printed on a terminal only, and not with NO_COLOR
    #[arg(long)]
    pub no_color: bool,
    /// Limit for everything together
    #[arg(long, default_value = "4s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Print the table of rules as Markdown, as it stands in docs/diagnosis.md
    #[arg(long, exclusive = true)]
    pub rules_markdown: bool,
}

/// A URL; `host:port` is enough.
fn admin(text: &str) -> Result<String, String> {
    let url = match text.contains("://") {
        true => text.to_string(),
        false => format!("http://{text}"),
    };
    let known = url.parse::<http::Uri>().ok().filter(|uri| {
        let scheme = uri.scheme_str().unwrap_or_default();
        uri.host().is_some_and(|host| !host.is_empty()) && matches!(scheme, "http" | "https")
    });
    match known {
        Some(_) => Ok(url.trim_end_matches('/').into()),
        None => Err("expected a URL such as http://127.0.0.1:9680".into()),
    }
}

/// Runs the command.
pub fn run(args: DoctorArgs) -> ExitCode {
    if args.rules_markdown {
        return print::out(&show::rules::markdown(), ExitCode::SUCCESS);
    }
    let own = match super::load() {
        Ok(own) => own,
        Err(code) => return code,
    };
    super::block_on(main(args, own))
}

async fn main(args: DoctorArgs, own: crate::config::Loaded) -> ExitCode {
    let settings = gather::Settings {
        admin: args.admin.clone(),
        model: args.model.clone(),
        scheduler: args.scheduler.clone(),
        scheduler_status: args.scheduler_status.clone(),
        kube: kube(&args),
        own,
        timeout: args.timeout,
        proc: crate::procfs::PROC.into(),
        agent_ports: gather::AGENT_PORTS,
    };
    let evidence = gather::evidence(&settings).await;
    let diagnosis = diagnose(&evidence, rules::all());
    let code = match diagnosis.outcome {
        Outcome::Healthy => ExitCode::SUCCESS,
        Outcome::Finding => ExitCode::from(FINDING),
        Outcome::Unchecked => ExitCode::from(UNCHECKED),
    };
    print::out(&shown(&args, &diagnosis), code)
}

/// Any flag that is about Kubernetes asks for it.
fn kube(args: &DoctorArgs) -> Option<Ask> {
    let flags = [
        &args.context,
        &args.namespace,
        &args.server,
        &args.operator_namespace,
    ];
    let flags = flags.iter().any(|flag| flag.is_some());
    if !args.kube && args.kubeconfig.is_none() && !flags {
        return None;
    }
    let mut ask = Ask::new(Places {
        file: args.kubeconfig.clone(),
        context: args.context.clone(),
        files: foreign("KUBECONFIG"),
        home: foreign("HOME").map(Into::into),
        service: foreign("KUBERNETES_SERVICE_HOST").zip(foreign("KUBERNETES_SERVICE_PORT")),
        mount: None,
    });
    ask.namespace = args.namespace.clone();
    ask.server = args.server.clone();
    ask.operator_namespace = args.operator_namespace.clone();
    Some(ask)
}

fn shown(args: &DoctorArgs, diagnosis: &Diagnosis) -> String {
    if args.json {
        return show::json(diagnosis);
    }
    if args.markdown {
        return show::markdown::shown(diagnosis);
    }
    let out = std::io::stdout();
    let colour = !args.no_color && out.is_terminal() && !crate::config::no_color();
    show::text::shown(diagnosis, width(), colour)
}

/// The width of the terminal, within reason; 80 where there is none.
fn width() -> usize {
    let columns = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    columns.unwrap_or(80).clamp(40, 120)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_port_may_be_named_without_a_scheme() {
        for (given, taken) in [
            ("http://shim:9680/", Ok("http://shim:9680")),
            ("https://shim/a", Ok("https://shim/a")),
            ("127.0.0.1:9680", Ok("http://127.0.0.1:9680")),
            ("[::1]:9680", Ok("http://[::1]:9680")),
            ("ftp://shim", Err(())),
            ("http://", Err(())),
            ("", Err(())),
            ("a b", Err(())),
        ] {
            let got = admin(given).map_err(|_| ());
            assert_eq!(got.as_deref().map_err(|_| ()), taken, "{given}");
        }
    }
}
