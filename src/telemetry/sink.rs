//! Where log lines go: a bounded queue, and a thread that writes it to standard error.
//!
//! A pipe that nobody reads blocks who writes to it, and the shim has one thread for everything. So
//! that thread never writes: what the queue has no room for is lost, counted, and told once
//! somebody reads again. A log that is closed or on a full disk loses its lines and nothing else.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that wait, at most: some thousand lines, and little beside the process itself.
const ROOM: usize = 256 * 1024;

static LOST: LazyLock<IntCounter> = LazyLock::new(|| {
    IntCounter::new(
        "agent_shim_log_lines_lost_total",
        "Log lines that were lost because nobody read standard error.",
    )
    .expect("metric names are well formed")
});

/// The count of lines that were lost in this process.
pub fn lost() -> IntCounter {
    LOST.clone()
}

/// A handle to the queue. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Sink(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    /// Told when there is something to write.
    more: Condvar,
    /// Told when there is nothing more.
    empty: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lost since it was last told.
    lost: u64,
    /// Whether the thread is in the middle of a write.
    writing: bool,
}

impl Sink {
    /// Starts the thread that writes to `out`. Without one there would be no log: the error says why
    /// the system has none to give.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Sink> {
        let sink = Sink::default();
        let queue = sink.0.clone();
        std::thread::Builder::new()
            .name("log".into())
            .stack_size(128 * 1024)
            .spawn(move || queue.write(out))?;
        Ok(sink)
    }

    /// Waits until every line is written, for `limit` at most.
    pub(super) fn flush(&self, limit: Duration) {
        let state = self.0.lock();
        let waiting = |s: &mut State| s.writing || !s.lines.is_empty();
        // Poisoned only by a panic of the thread, after which nothing is written anyway.
        drop(self.0.empty.wait_timeout_while(state, limit, waiting));
    }

    fn put(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.bytes + line.len() > ROOM {
            state.lost += 1;
            LOST.inc();
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_vec());
        drop(state);
        self.0.more.notify_one();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut out: impl Write) {
        let mut state = self.lock();
        loop {
            let Some(line) = state.lines.pop_front() else {
                state.writing = false;
                self.empty.notify_all();
                state = self
                    .more
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.bytes -= line.len();
            state.writing = true;
            let lost = std::mem::take(&mut state.lost);
            drop(state);
            // Nobody can be told that nobody can be told.
            let _ = out.write_all(&line);
            if lost > 0 {
                let _ = writeln!(
                    out,
                    "agent-shim: {lost} log lines were lost here: nobody read standard error"
                );
            }
            state = self.lock();
        }
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Sink;

    fn make_writer(&'a self) -> Sink {
        self.clone()
    }
}

impl Write for Sink {
    /// One call is one line: the formatter hands over whole ones.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_has_no_room_is_counted_and_told_and_the_writer_never_waits() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = Sink::start(writer).unwrap();
        let line = [b'x'; 999]
            .iter()
            .chain(b"\n")
            .copied()
            .collect::<Vec<u8>>();
        let lines = 4 * ROOM / line.len();
        for _ in 0..lines {
            assert_eq!(sink.write(&line).unwrap(), line.len());
        }
        let before = sink.0.lock().bytes;
        assert!(before <= ROOM && before > ROOM / 2, "{before}");
        let lost = sink.0.lock().lost;
        assert!(lost > 0 && lost < lines as u64);
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            let mut some = [0; 4096];
            while !text.contains(" lost here") {
                let n = reader.read(&mut some).unwrap();
                text.push_str(&String::from_utf8_lossy(&some[..n]));
            }
            text
        });
        let text = reading.join().unwrap();
        assert!(text.contains(&format!("agent-shim: {lost} log lines were lost here")));
    }

    #[test]
    fn a_flush_waits_for_the_last_line_and_not_for_ever() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = Sink::start(writer).unwrap();
        sink.write_all(b"last\n").unwrap();
        Sink::flush(&sink, Duration::from_secs(10));
        let mut read = [0; 5];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"last\n");
        for _ in 0..200 {
            sink.write_all(&[b'x'; 1000]).unwrap();
        }
        Sink::flush(&sink, Duration::from_millis(10));
        assert!(!sink.0.lock().lines.is_empty());
    }
}
