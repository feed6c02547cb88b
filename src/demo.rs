//! Placeholder.
use std::process::ExitCode;
/// Arguments.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
/// Runs.
pub async fn main(_: DemoArgs) -> ExitCode {
    ExitCode::SUCCESS
}

pub mod agent;
pub mod scheduler;
pub mod store;
