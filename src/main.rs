//! The `agent-shim` binary: parses the command line and exits with the command's code.

fn main() -> std::process::ExitCode {
    agent_shim::cli::main()
}
