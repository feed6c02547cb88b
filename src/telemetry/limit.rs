//! Bounds what is logged: no caller can fill a disk, or drown what matters, by doing the same thing
//! over and over.
//!
//! Each place in the code may say so many lines a minute. What is left out is counted, and told
//! in one line when the minute is over. Debug and trace lines are left alone: somebody has
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
        let lines = LEFT_OUT.swap(0, Ordering::Relaxed);
        if lines > 0 {
            tracing::warn!(
                lines,
                "log lines were left out: each kind of line is written {LINES} times a minute at most"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
