//! Where log lines go: a bounded queue, and a thread that writes it to standard error.
//!
//! A pipe that nobody reads blocks who writes to it, and the shim has one thread for everything. So
//! that thread never writes: what the queue has no room for is lost, counted, and told where it is
//! missing once somebody reads again. A log that is closed or on a full disk loses its lines, counted
//! as well, and nothing else. An output that is set not to block is waited for like any other.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that wait, at most: some thousand lines, and little beside the process itself.
const ROOM: usize = 256 * 1024;

/// Pause before an output that has no room just now is tried again.
const NO_ROOM: Duration = Duration::from_millis(10);

static LOST: LazyLock<IntCounter> = LazyLock::new(|| {
    IntCounter::new(
        "agent_shim_log_lines_lost_total",
        "Log lines that were lost because nobody read standard error, or it could not be written.",
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
    /// In their order; never two losses side by side, so there are no more of those than lines.
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Whether the thread is in the middle of a write.
    writing: bool,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// So many lines had no room here.
    Lost(u64),
}

impl State {
    fn lose(&mut self) {
        LOST.inc();
        match self.entries.back_mut() {
            Some(Entry::Lost(lines)) => *lines += 1,
            _ => self.entries.push_back(Entry::Lost(1)),
        }
    }

    #[cfg(test)]
    fn lost_now(&self) -> u64 {
        let lost = self.entries.iter().map(|entry| match entry {
            Entry::Line(_) => 0,
            Entry::Lost(lines) => *lines,
        });
        lost.sum()
    }
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
        let waiting = |s: &mut State| s.writing || !s.entries.is_empty();
        // Poisoned only by a panic of the thread, after which nothing is written anyway.
        drop(self.0.empty.wait_timeout_while(state, limit, waiting));
    }

    fn put(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.bytes + line.len() > ROOM {
            state.lose();
            return;
        }
        state.bytes += line.len();
        state.entries.push_back(Entry::Line(line.to_vec()));
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
        // Lost and not yet told.
        let (mut unread, mut unwritten) = (0, 0);
        loop {
            let Some(entry) = state.entries.pop_front() else {
                state.writing = false;
                self.empty.notify_all();
                state = self
                    .more
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.writing = true;
            if let Entry::Line(line) = &entry {
                state.bytes -= line.len();
            }
            drop(state);
            if let Entry::Lost(lines) = entry {
                unread += lines;
            }
            let (lost, why) = match unread {
                0 => (unwritten, "standard error could not be written"),
                _ => (unread + unwritten, "nobody read standard error"),
            };
            let told = lost == 0 || tell(&mut out, lost, why).is_ok();
            if told {
                (unread, unwritten) = (0, 0);
            }
            if let Entry::Line(line) = entry
                && (!told || put_all(&mut out, &line).is_err())
            {
                // Nobody can be told that nobody can be told.
                LOST.inc();
                unwritten += 1;
            }
            state = self.lock();
        }
    }
}

fn tell(out: &mut impl Write, lost: u64, why: &str) -> io::Result<()> {
    let text = format!("agent-shim: {lost} log lines were lost here: {why}\n");
    put_all(out, text.as_bytes())
}

/// All of it. A descriptor that is shared may have been set not to block by whoever shares it: then
/// it has no room at times, and this thread has nothing else to do than wait for it.
fn put_all(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::park_timeout(NO_ROOM);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
        // The writer's thread may have made room in between: then there is more than one gap.
        let (before, lost) = {
            let held = sink.0.lock();
            (held.bytes, held.lost_now())
        };
        assert!(before <= ROOM && before > ROOM / 2, "{before}");
        assert!(lost > 0 && lost < lines as u64);
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            let mut some = [0; 4096];
            while told(&text) < lost {
                let n = reader.read(&mut some).unwrap();
                text.push_str(&String::from_utf8_lossy(&some[..n]));
            }
            text
        });
        assert_eq!(told(&reading.join().unwrap()), lost);
    }

    /// How many lines a log says that it has lost.
    fn told(text: &str) -> u64 {
        text.lines()
            .filter_map(|line| {
                line.strip_prefix("agent-shim: ")?
                    .split_once(" log lines were lost here:")
            })
            .map(|(lost, _)| lost.parse::<u64>().unwrap())
            .sum()
    }

    /// Takes a few bytes at a time, and every other time says that it has no room just now.
    struct Choked(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Choked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut taken = self.0.lock().unwrap();
            taken.1 = !taken.1;
            if taken.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = bytes.len().min(5);
            taken.0.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_output_that_has_no_room_just_now_loses_nothing() {
        let taken = Arc::new(Mutex::new((Vec::new(), false)));
        let mut sink = Sink::start(Choked(taken.clone())).unwrap();
        for line in ["the first line\n", "the second line\n"] {
            sink.write_all(line.as_bytes()).unwrap();
        }
        Sink::flush(&sink, Duration::from_secs(10));
        let text = String::from_utf8(taken.lock().unwrap().0.clone()).unwrap();
        assert_eq!(text, "the first line\nthe second line\n");
    }

    /// Fails while it is told to.
    struct Full(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut taken = self.0.lock().unwrap();
            if taken.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            taken.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_where_it_is_missing() {
        let taken = Arc::new(Mutex::new((Vec::new(), false)));
        let mut sink = Sink::start(Full(taken.clone())).unwrap();
        let before = LOST.get();
        let mut say = |line: &str, full: bool| {
            taken.lock().unwrap().1 = full;
            sink.write_all(line.as_bytes()).unwrap();
            Sink::flush(&sink, Duration::from_secs(10));
        };
        say("one\n", false);
        say("two\n", true);
        say("three\n", true);
        say("four\n", false);
        let text = String::from_utf8(taken.lock().unwrap().0.clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            (lines[0], lines[2], lines.len()),
            ("one", "four", 3),
            "{text}"
        );
        assert!(lines[1].contains("2 log lines were lost here"), "{text}");
        assert!(LOST.get() >= before + 2);
    }

    #[test]
    fn a_loss_is_told_where_it_was() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = Sink::start(writer).unwrap();
        let mut n = 0;
        while sink.0.lock().lost_now() == 0 {
            sink.write_all(format!("{n:0999}\n").as_bytes()).unwrap();
            n += 1;
        }
        let reading = std::thread::spawn(move || {
            let mut text = Vec::new();
            let mut some = [0; 4096];
            while !text.ends_with(b"after\n") {
                let n = reader.read(&mut some).unwrap();
                text.extend_from_slice(&some[..n]);
            }
            String::from_utf8(text).unwrap()
        });
        Sink::flush(&sink, Duration::from_secs(10));
        sink.write_all(b"after\n").unwrap();
        let text = reading.join().unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let at = lines.iter().position(|l| l.contains("lost here")).unwrap();
        // All but the last one had room, and come before the word about it.
        assert_eq!(at, n - 1, "of {n}");
        assert_eq!(lines.last(), Some(&"after"));
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
        assert!(!sink.0.lock().entries.is_empty());
    }
}
