//! The flags of `agent-shim inject`, and what they say.

use std::path::PathBuf;

use clap::Args;

use super::super::options::OptionArgs;

/// Arguments of `inject`.
#[derive(Debug, Args)]
#[command(
    after_help = "Goes into Pod, StatefulSet, Deployment, and Seldon's Server and ServerConfig; all other documents pass unchanged.\nWithout FILES, or with -, it reads stdin. Exit code 0: as asked; 1: failed, or with --check something is missing; 2: usage."
)]
pub struct InjectArgs {
    /// Manifests, YAML or JSON, any number of documents each
    pub(super) files: Vec<PathBuf>,

    /// Take the shim out again
    #[arg(long, conflicts_with = "check")]
    pub(super) remove: bool,
    /// Change nothing; say what is missing or differs, and exit with 1 if anything does
    #[arg(long, conflicts_with_all = ["in_place", "output"])]
    pub(super) check: bool,
    /// Print what would change as a unified diff instead of the result
    #[arg(long, conflicts_with_all = ["in_place", "output"])]
    pub(super) diff: bool,
    /// Write each file back
    #[arg(short, long, conflicts_with = "output")]
    pub(super) in_place: bool,
    /// Write the result to this file
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,

    #[command(flatten)]
    pub(super) what: OptionArgs,
}
