//! Files of another container: `/proc`, cgroups, Python packages, a model's folder, lists. The input
//! is a whole tree.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use agent_shim::capability::{installed, listed, table};
use agent_shim::capacity::{cgroup, memory, quantity};
use agent_shim::process::{self, listener};
use agent_shim::procfs::resolve_in;
use agent_shim::restore::files::fingerprint;
use agent_shim::{listeners, tls};

/// A folder that goes when it is dropped; in memory, where there is such a file system.
struct Tree(PathBuf);

impl Tree {
    fn new() -> Tree {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("agent-shim-tree-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder can be made");
        Tree(path)
    }

    /// A file, or a link where the content says so. What cannot be written is left out.
    fn put(&self, path: &Path, content: &str) {
        let full = self.0.join(path);
        if let Some(folder) = full.parent() {
            // Not through a link that stands there already.
            let real = fs::create_dir_all(folder).and_then(|()| folder.canonicalize());
            if !real.is_ok_and(|real| real.starts_with(&self.0)) {
                return;
            }
        }
        let _ = match content.strip_prefix("-> ") {
            Some(to) => {
                let to = Path::new(to.lines().next().unwrap_or_default());
                // The kernel's own files may block whoever reads them.
                let real = ["/proc", "/sys", "/dev"]
                    .iter()
                    .any(|own| to.starts_with(own));
                if real
                    || full.exists()
                    || to.components().any(|c| c == Component::ParentDir)
                        && path.components().count() < 2
                {
                    return;
                }
                std::os::unix::fs::symlink(to, &full)
            }
            None if full.is_symlink() => return,
            None => fs::write(&full, content),
        };
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Parts of a path on the first line and the content of that file.
pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    lists(&text);
    let _ = tls::dates::validity(input);
    let tree = Tree::new();
    let mut paths = Vec::new();
    for part in super::parts(&text).take(12) {
        let (path, content) = part.split_once('\n').unwrap_or((part, ""));
        let path: PathBuf = Path::new(path)
            .components()
            .filter(|c| matches!(c, Component::Normal(name) if name.len() < 64))
            .take(8)
            .collect();
        if path.as_os_str().is_empty() || path.as_os_str().len() > 400 {
            continue;
        }
        tree.put(&path, content);
        paths.push(path);
    }
    let root = &tree.0;
    for path in &paths {
        if let Ok(found) = resolve_in(root, path) {
            let real = found.canonicalize().expect("what was found is there");
            assert!(real.starts_with(root), "{path:?} leads out, to {real:?}");
        }
    }
    let mut pids = vec![7];
    if let Ok(server) = process::find(root, &[9000, 9500]) {
        assert!(server.children.iter().all(|c| c.pid != server.main.pid));
        assert!(server.workers() < server.pids().len());
        let _ = process::is_running(root, &server.main);
        pids = server.pids();
    }
    for pid in &pids {
        if let Ok(found) = installed::read(root, *pid) {
            let names: Vec<&str> = found
                .distributions
                .iter()
                .map(|d| d.name.as_str())
                .collect();
            assert!(
                names.is_sorted_by(|a, b| a < b),
                "one of each name: {names:?}"
            );
            assert!(names.contains(&"mlserver"));
            let sound = |n: &&str| table::normalise(n) == **n && n.len() <= 200;
            assert!(names.iter().all(sound), "{names:?}");
        }
        let _ = cgroup::read(root, *pid);
    }
    let _ = memory::node_total(root);
    let _ = memory::resident(root, &pids);
    let _ = memory::proportional(root, &pids);
    let holding = listener::pids(root, &[9000], &pids);
    assert!(holding.iter().all(|pid| pids.contains(pid)));
    let seen = listeners::on_port(9000, &root.join("net"));
    assert!(seen.iter().all(|a| a.port() == 9000) && seen.is_sorted());
    let _ = listed::read(&root.join("list"));
    for name in ["m", "..", "m/..", text.lines().next().unwrap_or_default()] {
        if let Some(print) = fingerprint(root, name) {
            assert_eq!(fingerprint(root, name), Some(print), "nothing has changed");
        }
    }
    if root.join("crt").is_file() {
        let _ = tls::files::certificates(&root.join("crt"));
        let _ = tls::files::private_key(&root.join("crt"));
    }
}

fn lists(text: &str) {
    if let Some(listed) = listed::parse(text) {
        assert!(!listed.names.is_empty() || !listed.distributions.is_empty());
        assert!(listed.distributions.is_sorted_by(|a, b| a.name < b.name));
        for one in &listed.distributions {
            assert_eq!(table::normalise(&one.name), one.name);
            assert!(!one.version.contains("://"), "a URL may hold a password");
        }
    }
    let line = text.lines().next().unwrap_or_default();
    if let Some(bytes) = quantity::parse(line) {
        assert_eq!(quantity::parse(&bytes.to_string()), Some(bytes));
        if let Some(milli) = quantity::milli(line) {
            assert_eq!(milli.div_ceil(1000), u128::from(bytes), "{line}");
        }
        assert!(quantity::shown(bytes).len() < 32);
    }
    for version in [cgroup::Version::V2, cgroup::Version::V1] {
        if let Some(Some(limit)) = cgroup::parse_limit(version, line) {
            assert_eq!(
                cgroup::parse_limit(cgroup::Version::V2, &limit.to_string()),
                Some(Some(limit))
            );
        }
    }
}
