//! Logging: set up once, structured, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::config::{LogFilter, LogFormat};

mod limit;

pub use limit::tell as tell_what_was_left_out;

/// Whether a text is a log filter: a level, or a comma list of `target=level`.
pub fn is_filter(text: &str) -> bool {
    let directive_ok = |directive: &str| {
        let level = directive.rsplit('=').next().unwrap_or_default();
        let known = ["off", "error", "warn", "info", "debug", "trace"];
        known.contains(&level.to_ascii_lowercase().as_str())
            && (directive == level || directive.split('=').count() == 2)
    };
    text.split(',').all(directive_ok) && text.parse::<Targets>().is_ok()
}

/// Installs the process-wide subscriber. A second call changes nothing.
pub fn init(filter: &LogFilter, format: LogFormat) {
    let targets: Targets = filter
        .as_str()
        .parse()
        .unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO));
    let registry = tracing_subscriber::registry()
        .with(targets)
        .with(limit::Limit::default());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // The error says that a subscriber is already there, which is what was wanted.
    let _ = match format {
        LogFormat::Json => registry.with(lines.json()).try_init(),
        LogFormat::Text => registry
            .with(
                lines
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_target(false),
            )
            .try_init(),
    };
}
