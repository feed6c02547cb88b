//! Which processes listen on a port: from the socket's inode to the descriptor that holds it.

use std::path::Path;

use crate::procfs;

/// A line is 150 bytes; a pod with ten thousand connections fits.
const MAX_TABLE: u64 = 4 * 1024 * 1024;
/// More descriptors than a server has open.
const MAX_DESCRIPTORS: usize = 65_536;

/// The processes among `candidates` that listen on one of `ports`, over IPv4 or IPv6. Without
/// permission to read another process's descriptors it is not among them.
pub fn pids(proc: &Path, ports: &[u16], candidates: &[u32]) -> Vec<u32> {
    // Where the process namespace is not shared there is nobody, and the tables cost the kernel
    // a walk over all of its sockets.
    if candidates.is_empty() {
        return Vec::new();
    }
    let mut inodes: Vec<String> = Vec::new();
    // A server on `0.0.0.0` has its gRPC port on `[::]`: both tables.
    for table in ["net/tcp", "net/tcp6"] {
        // What cannot be read shows nobody.
        let _ = procfs::each_line(&proc.join(table), MAX_TABLE, |line| {
            inodes.extend(listening(line, ports).map(|inode| format!("socket:[{inode}]")));
        });
    }
    if inodes.is_empty() {
        return Vec::new();
    }
    let holding = candidates.iter().filter(|pid| holds(proc, **pid, &inodes));
    holding.copied().collect()
}

fn holds(proc: &Path, pid: u32, sockets: &[String]) -> bool {
    let Ok(entries) = std::fs::read_dir(procfs::of(proc, pid).join("fd")) else {
        return false;
    };
    entries.flatten().take(MAX_DESCRIPTORS).any(|entry| {
        std::fs::read_link(entry.path())
            .is_ok_and(|target| sockets.iter().any(|s| target.as_os_str() == s.as_str()))
    })
}

/// The inode of a line of the table, where it listens on one of the ports.
fn listening<'a>(line: &'a str, ports: &[u16]) -> Option<&'a str> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
    (state == LISTEN && ports.contains(&port) && inode != "0").then_some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_of_the_ports_count() {
        let line = |state: &str| {
            format!(
                "   0: 0100007F:2328 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0000 100"
            )
        };
        assert_eq!(listening(&line("0A"), &[9500, 9000]), Some("4242"));
        assert_eq!(listening(&line("01"), &[9000]), None);
        assert_eq!(listening(&line("0A"), &[9500]), None);
        assert_eq!(listening("  sl  local_address rem_address", &[9000]), None);
        assert_eq!(listening("", &[9000]), None);
    }
}
