//! Bounds what is logged: no caller can fill a disk, or drown what matters, by doing the same thing
//! over and over.
//!
//! Each place in the code may say so many lines a minute. What is left out is counted, and told
//! in one line when the minute is over, or at the end of the program. Debug and trace lines are left alone: somebody has
//! asked for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one place in the code in one [`WINDOW`].
const LINES: u32 = 60;
const WINDOW: Duration = Duration::from_secs(60);

static LEFT_OUT: AtomicU64 = AtomicU64::new(0);
static FIRST: Notify = Notify::const_new();

/// The layer that decides.
#[derive(Debug, Default)]
pub(super) struct Limit {
    said: Mutex<HashMap<Identifier, Window>>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
}

impl Window {
    /// Whether one more line may be said at this moment.
    fn admits(&mut self, now: Instant) -> bool {
        if now.duration_since(self.began) >= WINDOW {
            *self = Window {
                began: now,
                lines: 0,
            };
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= LINES
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if *event.metadata().level() > Level::INFO {
            return true;
        }
        let now = Instant::now();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        // As many entries as there are places in the code.
        let window = said.entry(event.metadata().callsite()).or_insert(Window {
            began: now,
            lines: 0,
        });
        let admitted = window.admits(now);
        if !admitted {
            LEFT_OUT.fetch_add(1, Ordering::Relaxed);
            FIRST.notify_one();
        }
        admitted
    }
}

/// Tells of lines that were left out, for ever; sleeps while none are.
pub async fn tell() {
    loop {
        FIRST.notified().await;
        tokio::time::sleep(WINDOW).await;
        tell_now();
    }
}

/// Tells of lines that were left out and have not been told of.
pub(super) fn tell_now() {
    let lines = LEFT_OUT.swap(0, Ordering::Relaxed);
    if lines > 0 {
        tracing::warn!(
            lines,
            "log lines were left out: each kind of line is written {LINES} times a minute at most"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what is said.
    #[derive(Clone, Default)]
    struct Heard(std::sync::Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_left_out_in_the_last_minute_is_told_at_the_end() {
        use tracing_subscriber::prelude::*;
        let heard = Heard::default();
        let writer = heard.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry()
            .with(Limit::default())
            .with(lines);
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..LINES + 7 {
                tracing::info!("over and over");
            }
            drop(crate::telemetry::LastWords);
        });
        let text = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("over and over").count(), LINES as usize);
        let last = text.lines().last().unwrap();
        assert!(
            last.contains("left out") && last.contains("lines=7"),
            "{last}"
        );
    }

    #[test]
    fn a_window_admits_so_many_lines_and_the_next_one_as_many() {
        let began = Instant::now();
        let mut window = Window { began, lines: 0 };
        for round in 0..3 {
            let now = began + round * WINDOW;
            let admitted = (0..1000).filter(|_| window.admits(now)).count();
            assert_eq!(admitted, LINES as usize, "{round}");
        }
    }
}
