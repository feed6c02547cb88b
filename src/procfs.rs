//! Bounded reads below a proc root, with named reasons instead of errors.
//!
//! Another process may vanish, hide behind a user id, or lie in wait with a huge file at any
//! moment; none of that is an error of the shim. Every function that looks at processes takes
//! the proc root as a path, so that tests build their own.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};

/// Where Linux has it.
pub const PROC: &str = "/proc";

/// Room for the first read of a file.
const FIRST: usize = 2048;

/// What is read at once of a file that is read line by line.
const BLOCK: usize = 16 * 1024;

/// Why something could not be read. The set is closed: it is shown and labels metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unreadable {
    /// The kernel says no: another user id, or no shared process namespace.
    Denied,
    /// It is not there, or no longer.
    NotFound,
    /// It is larger than anything of its kind.
    TooLarge,
    /// It is there and does not say what its kind says.
    Malformed,
    /// Any other failure.
    Failed,
}

impl Unreadable {
    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Unreadable::Denied => "denied",
            Unreadable::NotFound => "not-found",
            Unreadable::TooLarge => "too-large",
            Unreadable::Malformed => "malformed",
            Unreadable::Failed => "failed",
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<&io::Error> for Unreadable {
    fn from(error: &io::Error) -> Self {
        // ESRCH: a proc file was open when its process ended.
        const ESRCH: i32 = 3;
        match error.kind() {
            io::ErrorKind::PermissionDenied => Unreadable::Denied,
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unreadable::NotFound,
            _ if error.raw_os_error() == Some(ESRCH) => Unreadable::NotFound,
            _ => Unreadable::Failed,
        }
    }
}

/// The whole file, if it is not longer than `max` bytes.
pub fn read(path: &Path, max: usize) -> Result<String, Unreadable> {
    let text = read_start(path, max.saturating_add(1))?;
    if text.len() > max {
        return Err(Unreadable::TooLarge);
    }
    Ok(text)
}

/// At most the first `max` bytes. What is no UTF-8 is replaced, not refused.
pub fn read_start(path: &Path, max: usize) -> Result<String, Unreadable> {
    #[cfg(test)]
    tree::count();
    let file = open_regular(path)?;
    // Files of `/proc` have no size: with room for most of them one read and one for the end do.
    let mut bytes = Vec::with_capacity(max.min(FIRST));
    let limit = u64::try_from(max).unwrap_or(u64::MAX);
    match file.take(limit).read_to_end(&mut bytes) {
        Ok(_) => Ok(String::from_utf8(bytes)
            .unwrap_or_else(|other| String::from_utf8_lossy(other.as_bytes()).into_owned())),
        Err(error) => Err(Unreadable::from(&error)),
    }
}

/// Hands over the lines of at most the first `max` bytes, one by one, and holds none of them: the
/// kernel's tables of sockets grow to megabytes beside a busy server. A line that is no UTF-8 is
/// passed over. On an error what was handed over before it stands.
pub fn each_line(path: &Path, max: u64, mut take: impl FnMut(&str)) -> Result<(), Unreadable> {
    #[cfg(test)]
    tree::count();
    let file = open_regular(path)?;
    let mut lines = BufReader::with_capacity(BLOCK, file.take(max));
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => std::str::from_utf8(&line).map_or((), &mut take),
            Err(error) => return Err(Unreadable::from(&error)),
        }
    }
}

/// Opens a file only if it is one: opening a FIFO that another process has placed would block
/// for ever.
fn open_regular(path: &Path) -> Result<File, Unreadable> {
    let kind = std::fs::metadata(path).map_err(|e| Unreadable::from(&e))?;
    if !kind.is_file() {
        return Err(Unreadable::Malformed);
    }
    File::open(path).map_err(|e| Unreadable::from(&e))
}

/// The directory of a process.
pub fn of(proc: &Path, pid: u32) -> PathBuf {
    proc.join(pid.to_string())
}

/// Symbolic links followed before a path counts as a loop.
const MAX_LINKS: usize = 40;

/// Where `path` leads for a process whose file system root is `root`: symbolic links are
/// followed inside `root`. The kernel would follow an absolute link below `/proc/PID/root` from
/// the shim's own root, into files of another container.
pub fn resolve_in(root: &Path, path: &Path) -> Result<PathBuf, Unreadable> {
    let mut todo: Vec<PathBuf> = components(path).rev().collect();
    let mut done: Vec<PathBuf> = Vec::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part.as_os_str() == ".." {
            done.pop();
            continue;
        }
        let here: PathBuf = done.iter().collect::<PathBuf>().join(&part);
        let full = root.join(&here);
        let kind = std::fs::symlink_metadata(&full).map_err(|e| Unreadable::from(&e))?;
        if !kind.is_symlink() {
            done.push(part);
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Unreadable::Malformed);
        }
        let target = std::fs::read_link(&full).map_err(|e| Unreadable::from(&e))?;
        if target.is_absolute() {
            done.clear();
        }
        todo.extend(components(&target).rev().collect::<Vec<_>>());
    }
    Ok(root.join(done.iter().collect::<PathBuf>()))
}

/// The parts of a path without root and `.`.
fn components(path: &Path) -> impl DoubleEndedIterator<Item = PathBuf> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
pub(crate) mod tree {
    //! Throw-away directory trees, so that tests can be a `/proc`.

    use std::cell::Cell;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    thread_local! {
        static READS: Cell<usize> = const { Cell::new(0) };
    }

    /// Notes one read of a file.
    pub(crate) fn count() {
        READS.set(READS.get() + 1);
    }

    /// How many files this thread has read since it last asked.
    pub(crate) fn reads() -> usize {
        READS.replace(0)
    }

    /// A directory that goes when it is dropped.
    #[derive(Debug)]
    pub(crate) struct Tree(PathBuf);

    impl Tree {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let dir =
                std::env::temp_dir().join(format!("agent-shim-test-{}-{n}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Tree(dir)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        /// Writes a file with everything above it.
        pub(crate) fn file(&self, path: &str, text: &str) -> &Self {
            let path = self.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            self
        }

        pub(crate) fn link(&self, path: &str, target: &str) -> &Self {
            let path = self.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, path).unwrap();
            self
        }

        /// A process as the kernel shows it.
        pub(crate) fn process(&self, pid: u32, ppid: u32, comm: &str, cmdline: &[&str]) -> &Self {
            let args: String = cmdline.iter().map(|a| format!("{a}\0")).collect();
            let start = 1000 + pid;
            self.file(
                &format!("{pid}/stat"),
                &format!(
                    "{pid} ({comm}) S {ppid} 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 9 0 {start} 1 2\n"
                ),
            )
            .file(&format!("{pid}/cmdline"), &args)
            .file(
                &format!("{pid}/status"),
                &format!("Name:\t{comm}\nUid:\t1000\t1000\t1000\t1000\nVmRSS:\t  {pid} kB\n"),
            )
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::tree::Tree;
    use super::*;

    #[test]
    fn reads_are_bounded_and_failures_have_names() {
        let tree = Tree::new();
        tree.file("small", "1234").file("file/x", "");
        let at = |name: &str| tree.path().join(name);
        assert_eq!(read(&at("small"), 4), Ok("1234".into()));
        assert_eq!(read(&at("small"), 3), Err(Unreadable::TooLarge));
        assert_eq!(read_start(&at("small"), 3), Ok("123".into()));
        assert_eq!(read(&at("nothing"), 3), Err(Unreadable::NotFound));
        assert_eq!(read(&at("small/below"), 3), Err(Unreadable::NotFound));
        assert_eq!(read(&at("file"), 3), Err(Unreadable::Malformed));
    }

    #[test]
    fn lines_are_handed_over_one_by_one_within_the_bound() {
        let tree = Tree::new();
        std::fs::write(tree.path().join("table"), b"one\n\xff\ntwo\nthree").unwrap();
        let lines = |max: u64| {
            let mut seen = Vec::new();
            let end = each_line(&tree.path().join("table"), max, |line| {
                seen.push(line.trim_end().to_string());
            });
            assert_eq!(end, Ok(()));
            seen
        };
        assert_eq!(lines(100), ["one", "two", "three"]);
        assert_eq!(lines(5), ["one"]);
        let nowhere = each_line(&tree.path().join("none"), 5, |_| panic!("no line"));
        assert_eq!(nowhere, Err(Unreadable::NotFound));
    }

    #[test]
    fn links_are_followed_inside_the_root_and_never_out_of_it() {
        let tree = Tree::new();
        tree.file("root/opt/env/lib/site", "x")
            .file("secret/lib/site", "y")
            .link("root/opt/conda", "/opt/env")
            .link("root/opt/up", "../../../../../secret")
            .link("root/loop", "/loop");
        let root = tree.path().join("root");
        let at = |path: &str| resolve_in(&root, Path::new(path));
        assert_eq!(at("/opt/conda/lib/site"), Ok(root.join("opt/env/lib/site")));
        assert_eq!(at("/opt/env/../env/lib"), Ok(root.join("opt/env/lib")));
        assert_eq!(at("/opt/up/lib/site"), Err(Unreadable::NotFound));
        assert_eq!(at("/loop/x"), Err(Unreadable::Malformed));
        assert_eq!(at("/"), Ok(root.clone()));
    }
}
