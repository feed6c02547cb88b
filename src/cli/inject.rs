//! `agent-shim inject`: manifests from files or stdin, with the shim in place, to stdout or back.
//!
//! A thin loop around [`crate::inject::manifest`]. Nothing is written unless every document of
//! every file was understood. Manifests go to stdout, all that is said about them to stderr.
//! Exit codes: 0 as asked, 1 failed or, with `--check`, incomplete, 2 usage.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use similar::TextDiff;

use super::{USAGE, failed};
use crate::config::Mode;
use crate::inject::manifest::{self, Found, Outcome, Refused};
use crate::inject::{self, Kind, Options, Resources, Style, Tls};

/// Arguments of `inject`.
#[derive(Debug, Args)]
#[command(
    after_help = "Goes into Pod, StatefulSet, Deployment, and Seldon's Server and ServerConfig; all other documents pass unchanged.\nWithout FILES, or with -, it reads stdin. Exit code 0: as asked; 1: failed, or with --check something is missing; 2: usage."
)]
pub struct InjectArgs {
    /// Manifests, YAML or JSON, any number of documents each
    files: Vec<PathBuf>,

    /// Take the shim out again
    #[arg(long, conflicts_with = "check")]
    remove: bool,
    /// Change nothing; say what is missing or differs, and exit with 1 if anything does
    #[arg(long, conflicts_with_all = ["in_place", "output"])]
    check: bool,
    /// Print what would change as a unified diff instead of the result
    #[arg(long, conflicts_with_all = ["in_place", "output"])]
    diff: bool,
    /// Write each file back
    #[arg(short, long, conflicts_with = "output")]
    in_place: bool,
    /// Write the result to this file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,

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
    /// A preStop hook on /drain
    #[arg(long, help_heading = "The container")]
    drain_hook: bool,

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

impl InjectArgs {
    fn options(&self) -> Result<Options, String> {
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

/// One input.
struct Input {
    /// `None`: stdin.
    path: Option<PathBuf>,
    text: String,
}

impl Input {
    fn name(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "stdin".into(),
        }
    }
}

/// Runs the command.
pub fn main(args: &InjectArgs) -> ExitCode {
    let mut options = match args.options() {
        Ok(options) => options,
        Err(why) => return usage(&why),
    };
    let inputs = match read(&args.files) {
        Ok(inputs) => inputs,
        Err(why) => return failed(&why),
    };
    if args.in_place && inputs.iter().any(|i| i.path.is_none()) {
        return usage("--in-place: expected files, not stdin");
    }
    if !args.remove {
        options.injected_configs = configs(&inputs, &options);
    }
    let work = |text: &str| -> Result<Outcome, Refused> {
        if args.remove {
            manifest::remove(text, &options)
        } else {
            manifest::inject(text, &options)
        }
    };
    let mut done: Vec<(Input, Outcome)> = Vec::new();
    let mut refused = false;
    for input in inputs {
        match work(&input.text) {
            Ok(outcome) => done.push((input, outcome)),
            // Every file's first mistake is shown, not only the first file's.
            Err(why) => {
                eprintln!("agent-shim: {}, {why}", input.name());
                refused = true;
            }
        }
    }
    if refused {
        return ExitCode::FAILURE;
    }
    if !args.quiet {
        for (input, outcome) in &done {
            comment(&input.name(), outcome);
        }
        if !done.iter().any(|(_, outcome)| outcome.applies()) {
            eprintln!(
                "note: nothing to do: no pod with containers {} and {}, no Server and no ServerConfig",
                options.agent, options.inference
            );
        }
    }
    if args.diff {
        for (input, outcome) in &done {
            print!("{}", unified(&input.name(), &input.text, &outcome.text));
        }
    }
    if args.check {
        return check(&done, &options);
    }
    if args.diff {
        return ExitCode::SUCCESS;
    }
    match write(args, &done) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

/// The `ServerConfig`s among the inputs that the shim goes into. What cannot be read is reported
/// when it is worked on.
fn configs(inputs: &[Input], options: &Options) -> Vec<String> {
    let texts = inputs.iter().filter_map(|i| manifest::values(&i.text).ok());
    texts
        .flatten()
        .filter(|object| Kind::of(object) == Some(Kind::ServerConfig))
        .filter(|object| inject::inject(&mut object.clone(), options).is_ok_and(|r| r.applies()))
        .filter_map(|object| Some(object.pointer("/metadata/name")?.as_str()?.to_string()))
        .collect()
}

fn usage(why: &str) -> ExitCode {
    eprintln!("agent-shim: {why}");
    ExitCode::from(USAGE)
}

fn read(files: &[PathBuf]) -> Result<Vec<Input>, String> {
    let stdin = [PathBuf::from("-")];
    let files = if files.is_empty() { &stdin[..] } else { files };
    files
        .iter()
        .map(|path| {
            let (path, bytes) = if path.as_os_str() == "-" {
                let mut bytes = Vec::new();
                let read = std::io::stdin().read_to_end(&mut bytes);
                read.map_err(|error| format!("stdin: {error}"))?;
                (None, bytes)
            } else {
                let bytes = std::fs::read(path);
                let bytes = bytes.map_err(|error| format!("{}: {error}", path.display()))?;
                (Some(path.clone()), bytes)
            };
            let name = || path.as_deref().unwrap_or(Path::new("stdin")).display();
            match String::from_utf8(bytes) {
                Ok(text) => Ok(Input { path, text }),
                Err(error) => Err(format!(
                    "{}: expected UTF-8 text, found another byte at {}",
                    name(),
                    error.utf8_error().valid_up_to()
                )),
            }
        })
        .collect()
}

fn place(file: &str, found: &Found) -> String {
    format!("{file}:{}: {}", found.line, found.report.name)
}

/// Says what was seen, on stderr.
fn comment(file: &str, outcome: &Outcome) {
    for found in &outcome.reports {
        let at = place(file, found);
        if let Some(skipped) = &found.report.skipped {
            eprintln!("note: {at} is left alone: {skipped}");
        }
        for warning in &found.report.warnings {
            eprintln!(
                "warning[{}]: {at}: {}\n  fix: {}",
                warning.id, warning.text, warning.fix
            );
        }
    }
}

fn check(done: &[(Input, Outcome)], options: &Options) -> ExitCode {
    let mut complete = true;
    let mut seen = 0;
    for (input, _) in done {
        // Cannot be refused: the same text has just been injected.
        let Ok(outcome) = manifest::check(&input.text, options) else {
            return ExitCode::FAILURE;
        };
        for found in outcome.reports.iter().filter(|f| f.report.applies()) {
            seen += 1;
            let at = place(&input.name(), found);
            if found.report.missing.is_empty() {
                println!("{at}: complete");
            }
            for difference in &found.report.missing {
                complete = false;
                println!("{at}: {difference}");
            }
        }
    }
    if complete && seen > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn unified(name: &str, before: &str, after: &str) -> String {
    if before == after {
        return String::new();
    }
    let (old, new) = (format!("a/{name}"), format!("b/{name}"));
    TextDiff::from_lines(before, after)
        .unified_diff()
        .header(&old, &new)
        .to_string()
}

fn write(args: &InjectArgs, done: &[(Input, Outcome)]) -> Result<(), String> {
    if args.in_place {
        for (input, outcome) in done {
            if let Some(path) = &input.path
                && outcome.text != input.text
            {
                replace(path, &outcome.text)
                    .map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        return Ok(());
    }
    let mut text = String::new();
    for (_, outcome) in done {
        if !text.is_empty() && !outcome.text.starts_with("---") {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str("---\n");
        }
        text.push_str(&outcome.text);
    }
    match &args.output {
        Some(path) => replace(path, &text).map_err(|error| format!("{}: {error}", path.display())),
        // Nobody may read on; that is no failure of ours.
        None => match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(format!("stdout: {error}"))
            }
            _ => Ok(()),
        },
    }
}

/// Whole or not at all: a file beside it, renamed over it. Through a link to what it points at.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mut beside = path.clone().into_os_string();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = std::fs::write(&beside, text).and_then(|()| {
        if let Ok(there) = std::fs::metadata(&path) {
            std::fs::set_permissions(&beside, there.permissions())?;
        }
        std::fs::rename(&beside, &path)
    });
    if written.is_err() {
        // The first error is the one that matters.
        let _ = std::fs::remove_file(&beside);
    }
    written
}
