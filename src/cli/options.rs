//! The flags that say what is injected, for every command that injects.

use clap::Args;

use crate::config::Mode;
use crate::inject::{Options, Resources, Style, Tls};

/// What is injected.
#[derive(Debug, Args)]
pub struct OptionArgs {
    /// The shim's image [default: agent-shim:VERSION]
    #[arg(long, help_heading = "The container")]
    image: Option<String>,
    /// Always, IfNotPresent or Never
    #[arg(long, value_name = "POLICY", help_heading = "The container")]
    image_pull_policy: Option<String>,
    /// As a native sidecar, the default: needs Kubernetes 1.29
    #[arg(long, conflicts_with = "plain", help_heading = "The container")]
    native: bool,
    /// As one container more
    #[arg(long, help_heading = "The container")]
    plain: bool,
    /// Its requests [default: cpu=10m,memory=32Mi]
    #[arg(long, value_name = "LIST", help_heading = "The container")]
    requests: Option<String>,
    /// Its limits [default: cpu=500m,memory=64Mi]; "none" for none
    #[arg(long, value_name = "LIST", help_heading = "The container")]
    limits: Option<String>,
    /// Seconds that its startup probe allows
    #[arg(
        long,
        value_name = "N",
        default_value_t = 60,
        help_heading = "The container"
    )]
    startup_seconds: u16,
    /// Measure and report, change nothing (SHIM_MODE=observe)
    #[arg(long, help_heading = "The container")]
    observe: bool,
    /// A setting of the shim; can be given several times
    #[arg(
        long = "set",
        value_name = "SHIM_X=VALUE",
        help_heading = "The container"
    )]
    set: Vec<String>,

    /// Name of Seldon's agent container
    #[arg(
        long,
        value_name = "NAME",
        default_value = "agent",
        help_heading = "The pod"
    )]
    agent_container: String,
    /// Name of the inference server's container
    #[arg(
        long,
        value_name = "NAME",
        default_value = "mlserver",
        help_heading = "The pod"
    )]
    inference_container: String,
    /// Name of the shim's container
    #[arg(
        long,
        value_name = "NAME",
        default_value = "agent-shim",
        help_heading = "The pod"
    )]
    shim_container: String,
    /// Share the pod's processes, so that the shim sees what the server has installed
    #[arg(long, help_heading = "The pod")]
    share_process_namespace: bool,
    /// A liveness probe for the agent, judged by the shim
    #[arg(long, help_heading = "The pod")]
    agent_watchdog: bool,
    /// A preStop hook on the shim's /drain for the server's and the agent's containers, in place
    /// of Seldon's: they are told to end when no call runs any more
    #[arg(long, help_heading = "The pod")]
    drain_hook: bool,
    /// Namespace of Seldon's operator
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = "seldon-mesh",
        help_heading = "The pod"
    )]
    operator_namespace: String,

    /// host:port of the scheduler's agent service [default: as the agent has it]
    #[arg(long, value_name = "HOST:PORT", help_heading = "The scheduler")]
    scheduler: Option<String>,
    /// host:port of the scheduler's own API [default: port 9004 or 9044 there]
    #[arg(long, value_name = "HOST:PORT", help_heading = "The scheduler")]
    scheduler_status: Option<String>,
    /// Leave the agent its own way to the scheduler
    #[arg(long, conflicts_with_all = ["scheduler", "scheduler_status"], help_heading = "The scheduler")]
    no_scheduler: bool,
    /// TLS to the scheduler: auto, as the agent has it, or off
    #[arg(long, value_parser = ["auto", "off"], default_value = "auto", help_heading = "The scheduler")]
    tls: String,
    /// Secret with tls.crt, tls.key and ca.crt for the shim
    #[arg(long, value_name = "SECRET", help_heading = "The scheduler")]
    tls_client_secret: Option<String>,
    /// Secret with the ca.crt of the scheduler's certificate, where it is another
    #[arg(
        long,
        value_name = "SECRET",
        requires = "tls_client_secret",
        help_heading = "The scheduler"
    )]
    tls_server_secret: Option<String>,
}

impl OptionArgs {
    /// The options, checked; the text of an error is for a person.
    pub fn options(&self) -> Result<Options, String> {
        let mut options = Options {
            pull_policy: self.image_pull_policy.clone(),
            agent: self.agent_container.clone(),
            inference: self.inference_container.clone(),
            shim: self.shim_container.clone(),
            style: if self.plain {
                Style::Plain
            } else {
                Style::Native
            },
            interpose: !self.no_scheduler,
            scheduler: self.scheduler.clone(),
            scheduler_status: self.scheduler_status.clone(),
            tls: match (&self.tls_client_secret, self.tls.as_str()) {
                (Some(client), _) => Tls::Secrets {
                    client: client.clone(),
                    server: self.tls_server_secret.clone(),
                },
                (None, "off") => Tls::Off,
                (None, _) => Tls::Auto,
            },
            share_process_namespace: self.share_process_namespace,
            agent_watchdog: self.agent_watchdog,
            drain_hook: self.drain_hook,
            startup_seconds: self.startup_seconds,
            operator_namespace: self.operator_namespace.clone(),
            ..Options::default()
        };
        if let Some(image) = &self.image {
            options.image = image.clone();
        }
        if self.observe {
            options.mode = Mode::Observe;
        }
        let r = &mut options.resources;
        let Resources {
            cpu_request,
            memory_request,
            cpu_limit,
            memory_limit,
        } = r;
        quantities(
            "--requests",
            self.requests.as_deref(),
            cpu_request,
            memory_request,
        )?;
        quantities("--limits", self.limits.as_deref(), cpu_limit, memory_limit)?;
        for setting in &self.set {
            let (name, value) = setting
                .split_once('=')
                .ok_or_else(|| format!("--set {setting}: expected NAME=VALUE"))?;
            options.settings.insert(name.into(), value.into());
        }
        options.validate().map_err(|error| error.to_string())?;
        Ok(options)
    }
}

/// `cpu=10m,memory=32Mi`; what is not named stays.
fn quantities(
    flag: &str,
    text: Option<&str>,
    cpu: &mut String,
    memory: &mut String,
) -> Result<(), String> {
    if text == Some("none") {
        cpu.clear();
        memory.clear();
        return Ok(());
    }
    for part in text
        .unwrap_or_default()
        .split(',')
        .filter(|p| !p.is_empty())
    {
        match part.split_once('=') {
            Some(("cpu", value)) => *cpu = value.into(),
            Some(("memory", value)) => *memory = value.into(),
            _ => {
                return Err(format!(
                    "{flag} {part}: expected cpu=QUANTITY or memory=QUANTITY"
                ));
            }
        }
    }
    Ok(())
}
