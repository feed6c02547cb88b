//! The command line. Exit codes: 0 as asked, 1 failed, 2 bad usage or configuration; `probe` has
//! its own, see [`probe`].

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Loaded};
use crate::{app, descriptors, telemetry};

pub mod doctor;
pub mod inject;
pub mod options;
mod print;
pub mod probe;
pub mod status;
pub mod webhook;

/// Bad usage or configuration.
pub const USAGE: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    name = "agent-shim",
    version,
    about = "A sidecar for MLServer pods of Seldon Core 2: finds the inference server, relays to it, and tells the truth about it.",
    after_help = "Without a command it runs the sidecar. Settings come from SHIM_* variables: see `agent-shim config`."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sidecar (the default)
    Run,
    /// Ask a running shim what it knows, as a table
    Status(status::StatusArgs),
    /// Say why a model is not scheduled: what is fine, what is broken first, and the fix
    Doctor(Box<doctor::DoctorArgs>),
    /// Ask a running shim or an inference server one health question, for exec probes
    Probe(probe::ProbeArgs),
    /// Put the shim into manifests, take it out, or say what is missing
    Inject(Box<inject::InjectArgs>),
    /// Put the shim into new pods, as a mutating admission webhook
    Webhook(Box<webhook::WebhookArgs>),
    /// Show the effective settings and where each comes from
    Config(ConfigArgs),
    /// Show the shim at work against a stand-in server, without a cluster
    #[cfg(feature = "demo")]
    Demo(crate::demo::DemoArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// Print the table of variables as Markdown, as it stands in the README
    #[arg(long)]
    markdown: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = !error.use_stderr();
            // Printing can fail only where nobody reads.
            let _ = error.print();
            // `probe` keeps 2 for "could not connect".
            let is_probe = std::env::args().nth(1).is_some_and(|a| a == "probe");
            return ExitCode::from(match (asked, is_probe) {
                (true, _) => 0,
                (false, true) => probe::BAD_USAGE,
                (false, false) => USAGE,
            });
        }
    };
    let _last_words = telemetry::LastWords;
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => run(),
        Command::Status(args) => block_on(status::main(args)),
        Command::Doctor(args) => doctor::run(*args),
        Command::Probe(args) => block_on(probe::main(args)),
        Command::Inject(args) => inject::main(&args),
        Command::Webhook(args) => block_on(webhook::main(*args)),
        Command::Config(args) => show_config(&args),
        #[cfg(feature = "demo")]
        Command::Demo(args) => block_on(crate::demo::main(args)),
    }
}

fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    match runtime() {
        Ok(runtime) => {
            let code = runtime.block_on(command);
            // A name look-up that hangs must not hold the exit up.
            runtime.shutdown_timeout(Duration::from_millis(100));
            code
        }
        Err(error) => failed(&format!("cannot start the runtime: {error}")),
    }
}

/// One thread: the work is moving bytes and waiting, and a sidecar should not spread over the
/// cores of the server that it stands beside.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("agent-shim")
        // Looks into /proc and name look-ups. Each thread that ever ran keeps an arena of the
        // allocator for good, and the default of 512 lets a busy machine add one after another.
        .max_blocking_threads(8)
        .build()
}

fn failed(why: &str) -> ExitCode {
    print::said(&format!("agent-shim: {why}"));
    ExitCode::FAILURE
}

fn load() -> Result<Loaded, ExitCode> {
    config::load().map_err(|problems| {
        print::said(&format!("agent-shim: {problems}"));
        ExitCode::from(USAGE)
    })
}

fn run() -> ExitCode {
    let loaded = match load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    telemetry::init(&loaded.config.log, loaded.config.log_format);
    descriptors::raise();
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let settings: Vec<String> = loaded
        .effective()
        .into_iter()
        .filter(|(_, _, origin)| *origin == "environment")
        .map(|(variable, value, _)| format!("{}={value}", variable.name))
        .collect();
    tracing::info!(
        version = crate::VERSION,
        settings = settings.join(" "),
        hosts = ?loaded.config.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "agent-shim starts"
    );
    block_on(async move {
        let mut signals = match crate::signal::Signals::new() {
            Ok(signals) => signals,
            Err(error) => return failed(&format!("cannot listen for signals: {error}")),
        };
        let app = match app::App::start(&loaded.config) {
            Ok(app) => app,
            Err(error) => {
                tracing::error!("{error}");
                return ExitCode::FAILURE;
            }
        };
        let (first, second) = (
            tokio::sync::oneshot::channel(),
            tokio::sync::oneshot::channel(),
        );
        let ((first_out, first_in), (second_out, second_in)) = (first, second);
        let listening = async {
            let name = signals.next().await;
            tracing::info!(signal = name, "told to stop");
            let _ = first_out.send(());
            let name = signals.next().await;
            let _ = second_out.send(name);
            std::future::pending::<()>().await;
        };
        let running = app.run(async {
            // The sender lives as long as this process.
            let _ = first_in.await;
        });
        tokio::select! {
            ended = running => match ended {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{error}");
                    ExitCode::FAILURE
                }
            },
            () = listening => ExitCode::FAILURE,
            second = second_in => {
                tracing::warn!(signal = second.unwrap_or_default(), "told to stop again: stopping now");
                ExitCode::FAILURE
            }
        }
    })
}

fn show_config(args: &ConfigArgs) -> ExitCode {
    if args.markdown {
        return print::out(&config::markdown_table(), ExitCode::SUCCESS);
    }
    let loaded = match load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    for warning in &loaded.warnings {
        print::said(&format!("warning: {warning}"));
    }
    if args.json {
        let all: serde_json::Map<String, serde_json::Value> = loaded
            .effective()
            .into_iter()
            .map(|(v, value, origin)| {
                let entry =
                    serde_json::json!({ "value": value, "from": origin, "default": v.default });
                (v.name.to_string(), entry)
            })
            .collect();
        let text = format!("{}\n", serde_json::Value::Object(all));
        return print::out(&text, ExitCode::SUCCESS);
    }
    let lines = loaded.effective().into_iter();
    let text: String = lines
        .map(|(variable, value, origin)| format!("{:<28} {:<24} {origin}\n", variable.name, value))
        .collect();
    print::out(&text, ExitCode::SUCCESS)
}
