//! `agent-shim demo`: the shim at work on one machine, without a cluster and without Python.
//!
//! Owns the command; the story is in [`story`], the server it is told about in [`standin`], the
//! control plane in [`agent`] and [`scheduler`]. The demo checks itself: it exits 0 only where
//! every step behaved as it was told.

use std::pin::pin;
use std::process::ExitCode;

use clap::Args;

use crate::app;
use crate::signal::Signals;

pub mod agent;
mod caller;
pub mod scheduler;
mod stage;
pub mod standin;
pub mod store;
mod story;
mod tell;

use stage::Stage;
use tell::Teller;

/// Arguments of `agent-shim demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the story instead of leaving the admin port up
    #[arg(long)]
    pub once: bool,
    /// Print one JSON object for each step, and one with the result at the end
    #[arg(long)]
    pub json: bool,
    /// The shim's admin port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 9680, value_name = "PORT")]
    pub admin_port: u16,
}

/// Ended by Ctrl-C before the story was over, as shells count it.
const INTERRUPTED: u8 = 130;

/// Runs the command.
pub async fn main(args: DemoArgs) -> ExitCode {
    let settings = match crate::config::load() {
        Ok(loaded) => loaded,
        Err(problems) => {
            tell::complain(&problems.to_string());
            return ExitCode::from(crate::cli::USAGE);
        }
    };
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return failed(&format!("cannot listen for signals: {error}")),
    };
    let (stage, app) = match Stage::set(&settings, args.admin_port).await {
        Ok(set) => set,
        Err(why) => return failed(&why),
    };
    let mut teller = Teller::new(args.json);
    let mut shim = pin!(app.run(std::future::pending()));
    let _agent = tokio::select! {
        agent = story::tell(&mut teller, &stage) => agent,
        ended = &mut shim => return shim_ended(ended),
        _ = signals.next() => return ExitCode::from(INTERRUPTED),
    };
    let passed = teller.finish(stage.admin(), !args.once);
    if !args.once {
        tokio::select! {
            ended = shim => return shim_ended(ended),
            _ = signals.next() => {}
        }
    }
    if passed {
        ExitCode::SUCCESS
    } else {
        failed("the demo did not go as told")
    }
}

/// Nobody tells the shim to stop, so this is a failure.
fn shim_ended(ended: Result<(), app::Error>) -> ExitCode {
    match ended {
        Ok(()) => failed("the shim has ended by itself"),
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(why: &str) -> ExitCode {
    tell::complain(why);
    ExitCode::FAILURE
}
