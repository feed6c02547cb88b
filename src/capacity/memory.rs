//! The node's memory, and what a tree of processes uses of it.

use std::path::Path;

use crate::procfs::{self, Unreadable};

const MAX_MEMINFO: usize = 64 * 1024;
const MAX_STATUS: usize = 64 * 1024;
const MAX_ROLLUP: usize = 16 * 1024;

/// The node's memory in bytes. The node's also inside a container: `/proc/meminfo` is not
/// namespaced.
pub fn node_total(proc: &Path) -> Result<u64, Unreadable> {
    let text = procfs::read(&proc.join("meminfo"), MAX_MEMINFO)?;
    kilobytes(&text, "MemTotal:").ok_or(Unreadable::Malformed)
}

/// What a tree of processes uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeUse {
    /// The sum of resident memory. Counts shared pages once for each process.
    pub rss: u64,
    /// The processes that were counted; one that has ended in between is not.
    pub processes: usize,
}

/// Resident memory of the processes; anyone may read it. A process that has vanished counts 0.
pub fn resident(proc: &Path, pids: &[u32]) -> Result<TreeUse, Unreadable> {
    let mut sum = TreeUse {
        rss: 0,
        processes: 0,
    };
    let mut reason = Unreadable::NotFound;
    for pid in pids {
        match procfs::read(&procfs::of(proc, *pid).join("status"), MAX_STATUS) {
            Ok(text) => {
                // A zombie has no VmRSS line, and no memory.
                let rss = kilobytes(&text, "VmRSS:").unwrap_or(0);
                sum.rss = sum.rss.saturating_add(rss);
                sum.processes += 1;
            }
            Err(why) => reason = why,
        }
    }
    if sum.processes == 0 {
        return Err(reason);
    }
    Ok(sum)
}

/// Proportional memory of the processes: shared pages are divided among those that share them.
/// Only the same user id may read it, and the kernel walks the page tables for it, so ask
/// rarely. All or nothing: a sum over some of the processes would be a wrong number.
pub fn proportional(proc: &Path, pids: &[u32]) -> Result<u64, Unreadable> {
    let mut sum = 0u64;
    for pid in pids {
        let text = procfs::read(&procfs::of(proc, *pid).join("smaps_rollup"), MAX_ROLLUP)?;
        let pss = kilobytes(&text, "Pss:").ok_or(Unreadable::Malformed)?;
        sum = sum.saturating_add(pss);
    }
    if pids.is_empty() {
        return Err(Unreadable::NotFound);
    }
    Ok(sum)
}

/// The value of a `Name:   123 kB` line in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number = value.trim().strip_suffix("kB")?.trim();
    number.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::tree::Tree;

    #[test]
    fn the_nodes_memory_is_in_meminfo() {
        let tree = Tree::new();
        assert_eq!(node_total(tree.path()), Err(Unreadable::NotFound));
        tree.file("meminfo", "MemTotal:       24684096 kB\nMemFree: 1 kB\n");
        assert_eq!(node_total(tree.path()), Ok(24_684_096 * 1024));
        tree.file("meminfo", "MemTotal: lots\n");
        assert_eq!(node_total(tree.path()), Err(Unreadable::Malformed));
        tree.file("meminfo", &format!("MemTotal: {} kB\n", u64::MAX));
        assert_eq!(node_total(tree.path()), Err(Unreadable::Malformed));
    }

    #[test]
    fn a_vanished_process_and_a_zombie_count_nothing() {
        let tree = Tree::new();
        tree.process(10, 1, "mlserver", &[])
            .process(20, 10, "python3", &[])
            .file("30/status", "Name:\tpython3\nState:\tZ (zombie)\n");
        let both = resident(tree.path(), &[10, 20, 30, 40]);
        assert_eq!(
            both,
            Ok(TreeUse {
                rss: 30 * 1024,
                processes: 3
            })
        );
        assert_eq!(resident(tree.path(), &[40]), Err(Unreadable::NotFound));
    }

    #[test]
    fn proportional_memory_is_all_or_nothing() {
        let tree = Tree::new();
        tree.file(
            "10/smaps_rollup",
            "00-ff [rollup]\nRss: 9 kB\nPss:  4 kB\nPss_Anon: 1 kB\n",
        );
        assert_eq!(proportional(tree.path(), &[10]), Ok(4096));
        assert_eq!(
            proportional(tree.path(), &[10, 20]),
            Err(Unreadable::NotFound)
        );
        assert_eq!(proportional(tree.path(), &[]), Err(Unreadable::NotFound));
    }
}
