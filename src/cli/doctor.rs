//! `agent-shim doctor`: why a model is not scheduled. Exit codes: 0 nothing is broken, 1 something
//! is, 2 usage, 3 neither the shim nor the scheduler could be asked.

#![allow(clippy::print_stdout, clippy::print_stderr)] // A command line prints.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::doctor::engine::Outcome;
use crate::doctor::{diagnose, gather, rules};

const FINDING: u8 = 1;
const UNCHECKED: u8 = 3;

/// Arguments of `agent-shim doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The model that is not scheduled; without it, every model in trouble
    pub model: Option<String>,
    /// Where the shim's admin port is; by default that of this pod
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Limit for everything together
    #[arg(long, default_value = "4s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub timeout: Duration,
}

/// Runs the command.
pub fn run(args: DoctorArgs) -> ExitCode {
    super::block_on(main(args))
}

async fn main(args: DoctorArgs) -> ExitCode {
    let evidence = gather::evidence(&gather::Settings {
        admin: args.admin,
        model: args.model,
        timeout: args.timeout,
    })
    .await;
    let diagnosis = diagnose(&evidence, rules::all());
    match serde_json::to_string_pretty(&diagnosis) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("agent-shim: {error}"),
    }
    match diagnosis.outcome {
        Outcome::Healthy => ExitCode::SUCCESS,
        Outcome::Finding => ExitCode::from(FINDING),
        Outcome::Unchecked => ExitCode::from(UNCHECKED),
    }
}
