//! Placeholder.
use std::process::ExitCode;

pub mod standin;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
/// Runs.
pub async fn main(_: DemoArgs) -> ExitCode {
    ExitCode::SUCCESS
}
