//! The memory cgroup of another process, versions 2 and 1, seen through its own mounts.
//!
//! `/proc/PID/root/sys/fs/cgroup` is what the process itself sees. Inside a container that is
//! the container's own cgroup at the mount's root (a cgroup namespace, or a bind mount); on a
//! host it is the whole tree, and `/proc/PID/cgroup` says where in it the process is.

use std::path::{Component, Path, PathBuf};

use crate::procfs::{self, Unreadable};

/// Which interface answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The unified hierarchy.
    V2,
    /// The memory controller's own hierarchy.
    V1,
}

impl Version {
    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V2 => "v2",
            Version::V1 => "v1",
        }
    }
}

/// What the cgroup says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cgroup {
    /// Which interface answered.
    pub version: Version,
    /// The lowest limit that holds; `None` where there is none.
    pub limit: Option<u64>,
    /// Bytes in use now, page cache included.
    pub current: Option<u64>,
    /// The most that was ever in use, where the kernel keeps it.
    pub peak: Option<u64>,
}

struct Files {
    version: Version,
    limit: &'static str,
    current: &'static str,
    peak: &'static str,
}

const V2: Files = Files {
    version: Version::V2,
    limit: "memory.max",
    current: "memory.current",
    peak: "memory.peak",
};

const V1: Files = Files {
    version: Version::V1,
    limit: "memory.limit_in_bytes",
    current: "memory.usage_in_bytes",
    peak: "memory.max_usage_in_bytes",
};

/// A number and a line end.
const MAX_NUMBER: usize = 64;
/// One line for each hierarchy; a path may be 4 KiB.
const MAX_PATHS: usize = 256 * 1024;
/// Version 1 says "no limit" as the largest number of whole pages: 9223372036854771712 with
/// 4 KiB pages, less with larger ones. No machine has a quarter of that.
const V1_UNLIMITED: u64 = 1 << 61;

/// The memory cgroup of `pid`. Reads at most a few small files.
pub fn read(proc: &Path, pid: u32) -> Result<Cgroup, Unreadable> {
    let dir = procfs::of(proc, pid);
    let mount = dir.join("root/sys/fs/cgroup");
    // Readable by anyone; what is below `root` is not, so the first failure there is the reason.
    let paths = procfs::read(&dir.join("cgroup"), MAX_PATHS).unwrap_or_default();
    let mut reason = Unreadable::NotFound;
    for (files, base, path) in [
        (&V2, mount.clone(), path_of(&paths, Version::V2)),
        (&V1, mount.join("memory"), path_of(&paths, Version::V1)),
    ] {
        // The process's own place in the tree first: the tree's root has no limit of its own.
        for below in [path, Some(PathBuf::new())].into_iter().flatten() {
            match read_at(files, &base, &below) {
                Ok(cgroup) => return Ok(cgroup),
                Err(Unreadable::NotFound) => {}
                Err(why) => reason = why,
            }
        }
    }
    Err(reason)
}

fn read_at(files: &Files, base: &Path, below: &Path) -> Result<Cgroup, Unreadable> {
    let here = base.join(below);
    let mut limit = limit_of(files, &here)?;
    // A limit further up holds as well: that of the pod, as seen from a host.
    for up in below.ancestors().skip(1) {
        if let Ok(Some(above)) = limit_of(files, &base.join(up)) {
            limit = Some(limit.map_or(above, |own| own.min(above)));
        }
    }
    Ok(Cgroup {
        version: files.version,
        limit,
        current: number(&here.join(files.current)).ok(),
        peak: number(&here.join(files.peak)).ok(),
    })
}

fn limit_of(files: &Files, dir: &Path) -> Result<Option<u64>, Unreadable> {
    let text = procfs::read(&dir.join(files.limit), MAX_NUMBER)?;
    parse_limit(files.version, &text).ok_or(Unreadable::Malformed)
}

/// What the file of the limit says: `Some(None)` is no limit, `None` is nonsense.
pub fn parse_limit(version: Version, text: &str) -> Option<Option<u64>> {
    match (version, text.trim()) {
        (Version::V2, "max") | (Version::V1, "-1") => Some(None),
        (version, text) => {
            let bytes: u64 = text.parse().ok()?;
            Some(Some(bytes).filter(|b| version == Version::V2 || *b < V1_UNLIMITED))
        }
    }
}

fn number(path: &Path) -> Result<u64, Unreadable> {
    let text = procfs::read(path, MAX_NUMBER)?;
    text.trim().parse().map_err(|_| Unreadable::Malformed)
}

/// The place of the process in a hierarchy, relative to its mount. A path with `..` is seen from
/// another cgroup namespace and says nothing about the mount.
fn path_of(paths: &str, version: Version) -> Option<PathBuf> {
    let path = paths.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let ours = match version {
            Version::V2 => id == "0" && controllers.is_empty(),
            Version::V1 => controllers.split(',').any(|c| c == "memory"),
        };
        ours.then_some(path)
    })?;
    let path = Path::new(path.strip_prefix('/')?);
    path.components()
        .all(|part| matches!(part, Component::Normal(_)))
        .then(|| path.to_path_buf())
        .filter(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::tree::Tree;

    fn cgroup(
        version: Version,
        limit: Option<u64>,
        current: Option<u64>,
        peak: Option<u64>,
    ) -> Result<Cgroup, Unreadable> {
        Ok(Cgroup {
            version,
            limit,
            current,
            peak,
        })
    }

    #[test]
    fn version_2_in_a_namespace_is_at_the_root_of_the_mount() {
        let tree = Tree::new();
        tree.file("7/cgroup", "0::/../other\n")
            .file("7/root/sys/fs/cgroup/memory.max", "4294967296\n")
            .file("7/root/sys/fs/cgroup/memory.current", "100\n")
            .file("7/root/sys/fs/cgroup/memory.peak", "200\n");
        let expected = cgroup(Version::V2, Some(4 << 30), Some(100), Some(200));
        assert_eq!(read(tree.path(), 7), expected);
    }

    #[test]
    fn version_2_on_a_host_is_below_the_path_of_the_process_and_the_lowest_limit_holds() {
        let tree = Tree::new();
        let base = "7/root/sys/fs/cgroup/kubepods/pod1";
        tree.file("7/cgroup", "0::/kubepods/pod1/main\n")
            .file(&format!("{base}/main/memory.max"), "max\n")
            .file(&format!("{base}/main/memory.current"), "5\n")
            .file(&format!("{base}/memory.max"), "3000\n")
            .file("7/root/sys/fs/cgroup/kubepods/memory.max", "9000\n");
        let expected = cgroup(Version::V2, Some(3000), Some(5), None);
        assert_eq!(read(tree.path(), 7), expected);
    }

    #[test]
    fn max_is_no_limit() {
        let tree = Tree::new();
        tree.file("7/root/sys/fs/cgroup/memory.max", "max\n");
        assert_eq!(read(tree.path(), 7), cgroup(Version::V2, None, None, None));
    }

    #[test]
    fn version_1_is_read_at_the_path_or_at_the_root_of_the_mount() {
        let tree = Tree::new();
        let base = "7/root/sys/fs/cgroup/memory";
        tree.file("7/cgroup", "9:cpu:/x\n4:memory,other:/docker/abc\n0::/\n")
            .file(&format!("{base}/memory.limit_in_bytes"), "536870912\n")
            .file(&format!("{base}/memory.usage_in_bytes"), "1\n")
            .file(&format!("{base}/memory.max_usage_in_bytes"), "2\n");
        let at_root = cgroup(Version::V1, Some(512 << 20), Some(1), Some(2));
        assert_eq!(read(tree.path(), 7), at_root);
        tree.file(&format!("{base}/docker/abc/memory.limit_in_bytes"), "7\n");
        let below = cgroup(Version::V1, Some(7), None, None);
        assert_eq!(read(tree.path(), 7), below);
    }

    #[test]
    fn version_1_says_no_limit_as_a_huge_number() {
        let tree = Tree::new();
        for none in ["9223372036854771712", "9223372036854710272", "-1"] {
            tree.file(
                "7/root/sys/fs/cgroup/memory/memory.limit_in_bytes",
                &format!("{none}\n"),
            );
            assert_eq!(read(tree.path(), 7), cgroup(Version::V1, None, None, None));
        }
    }

    #[test]
    fn what_cannot_be_read_has_a_name() {
        let tree = Tree::new();
        assert_eq!(read(tree.path(), 7), Err(Unreadable::NotFound));
        tree.file("7/root/sys/fs/cgroup/memory.max", "lots\n");
        assert_eq!(read(tree.path(), 7), Err(Unreadable::Malformed));
        tree.file("7/root/sys/fs/cgroup/memory.max", &"9".repeat(100));
        assert_eq!(read(tree.path(), 7), Err(Unreadable::TooLarge));
    }
}
