//! Logging: set up once, structured, on standard error.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::config::{LogFilter, LogFormat};

mod limit;
mod sink;

pub use limit::tell as tell_what_was_left_out;
use sink::Sink;
pub use sink::lost;

static SINK: OnceLock<Sink> = OnceLock::new();

/// How long the end waits for the last lines: a log that nobody reads must not hold it up.
const LAST_WORDS: Duration = Duration::from_millis(500);

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

/// Installs the process-wide subscriber. A second call changes nothing. Lines are written by a
/// thread of their own, so nobody waits for a reader of the log; a panic is a line as well.
pub fn init(filter: &LogFilter, format: LogFormat) {
    let targets: Targets = filter
        .as_str()
        .parse()
        .unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO));
    let Ok(sink) = Sink::start(std::io::stderr()) else {
        // Not even a thread to be had: lines are written where they arise, as well as may be.
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let _ = tracing_subscriber::registry()
            .with(targets)
            .with(limit::Limit::default())
            .with(lines)
            .try_init();
        return;
    };
    let registry = tracing_subscriber::registry()
        .with(targets)
        .with(limit::Limit::default());
    let lines = tracing_subscriber::fmt::layer().with_writer(sink.clone());
    // The error says that a subscriber is already there, which is what was wanted.
    let installed = match format {
        LogFormat::Json => registry.with(lines.json()).try_init(),
        LogFormat::Text => registry
            .with(
                lines
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_target(false),
            )
            .try_init(),
    };
    if installed.is_ok() {
        let _ = SINK.set(sink);
        std::panic::set_hook(Box::new(|panic| {
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!("{panic}\n{backtrace}");
        }));
    }
}

/// Tells when it is dropped what the last minute left out, and waits for the lines that are not written yet, for half a second at most: so
/// also where a panic ends the program.
#[derive(Debug)]
pub struct LastWords;

impl Drop for LastWords {
    fn drop(&mut self) {
        limit::tell_now();
        if let Some(sink) = SINK.get() {
            sink.flush(LAST_WORDS);
        }
    }
}
