//! What a command prints. Nothing here panics: a reader that has gone away (`| head`) is no
//! failure, and anything else that keeps a text from being written fails the command.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Prints the whole text to stdout and gives `code` back: what the command came to. Fails where
/// the text could not be written, and that not because its reader had enough.
pub(crate) fn out(text: &str, code: ExitCode) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match written(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    ) {
        Ok(()) => code,
        Err(error) => {
            said(&format!("agent-shim: stdout: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a line to stderr. Where nobody can be told, nobody is.
pub(crate) fn said(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn written(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_has_gone_is_no_failure() {
        assert!(written(Ok(())).is_ok());
        assert!(written(Err(ErrorKind::BrokenPipe.into())).is_ok());
        assert!(written(Err(ErrorKind::StorageFull.into())).is_err());
    }
}
