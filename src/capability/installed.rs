//! The Python distributions of the running server, read from its own file system through
//! `/proc/PID/root`. Same user id only; without permission there is a named reason.
//!
//! The folder is found from what the process has mapped (the only witness that knows virtual
//! environments, conda and unpacked archives alike), then from its command line, then from its
//! interpreter. Nothing of the environment is read: it holds secrets.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::capability::Distribution;
use crate::capability::table::normalise;
use crate::process;
use crate::procfs::{self, Unreadable};

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The folders, as the server sees them.
    pub folders: Vec<PathBuf>,
    /// The distributions, sorted by name, one version each.
    pub distributions: Vec<Distribution>,
}

/// Why the distributions are not known. The set is closed: it is shown and labels metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotRead {
    /// The process may not be looked into: another user id.
    Denied,
    /// No folder of packages was found.
    NoFolder,
    /// Folders were found, and MLServer is in none of them: they are not the server's.
    NotTheServers,
    /// A read failed.
    Failed(Unreadable),
}

impl NotRead {
    /// The name used in labels, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            NotRead::Denied => "denied",
            NotRead::NoFolder => "no-site-packages",
            NotRead::NotTheServers => "no-mlserver-in-site-packages",
            NotRead::Failed(why) => why.as_str(),
        }
    }
}

impl fmt::Display for NotRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotRead::Denied => {
                "the server's files may not be read: the shim must run as the server's user id (runAsUser)"
            }
            NotRead::NoFolder => "the server's site-packages folder was not found",
            NotRead::NotTheServers => "site-packages were found, and MLServer is not in them",
            NotRead::Failed(why) => return write!(f, "the server's files could not be read: {why}"),
        })
    }
}

/// A large server maps some thousand ranges of about 100 bytes.
const MAX_MAPS: usize = 8 * 1024 * 1024;
/// Name and version stand at the top, before the description.
const METADATA_HEAD: usize = 16 * 1024;
/// Bounds for file systems that lie.
const MAX_FOLDERS: usize = 16;
const MAX_ENTRIES: usize = 100_000;
const MAX_NAME: usize = 200;

/// The distributions of the process `pid`. Takes some 10 ms for a hundred: not for an async task.
pub fn read(proc: &Path, pid: u32) -> Result<Installed, NotRead> {
    let root = procfs::of(proc, pid).join("root");
    let folders = folders(proc, pid, &root)?;
    let mut distributions: Vec<Distribution> = Vec::new();
    for folder in &folders {
        distributions.extend(in_folder(&root, folder));
    }
    // Stable, so the first folder's version stays where two folders have one.
    distributions.sort_by(|a, b| a.name.cmp(&b.name));
    distributions.dedup_by(|later, first| later.name == first.name);
    if !distributions.iter().any(|d| d.name == "mlserver") {
        return Err(NotRead::NotTheServers);
    }
    Ok(Installed {
        folders,
        distributions,
    })
}

/// Folders of packages as the server sees them, the surest first.
fn folders(proc: &Path, pid: u32, root: &Path) -> Result<Vec<PathBuf>, NotRead> {
    let mut found: Vec<PathBuf> = Vec::new();
    // The kernel asks for the same permission for all of these, so one refusal settles it.
    match procfs::read_start(&procfs::of(proc, pid).join("maps"), MAX_MAPS) {
        Ok(maps) => add(&mut found, maps.lines().filter_map(mapped_folder)),
        Err(Unreadable::Denied) => return Err(NotRead::Denied),
        Err(why) => return Err(NotRead::Failed(why)),
    }
    // A virtual environment has its programs beside its packages; the first two words are the
    // interpreter and the script.
    for program in process::cmdline(proc, pid).iter().take(2) {
        add(&mut found, beside(root, Path::new(program)));
    }
    if found.is_empty() {
        // The base interpreter's own: right only where there is no virtual environment.
        match std::fs::read_link(procfs::of(proc, pid).join("exe")) {
            Ok(exe) => add(&mut found, beside(root, &exe)),
            Err(error) if Unreadable::from(&error) == Unreadable::Denied => {
                return Err(NotRead::Denied);
            }
            Err(_) => {}
        }
    }
    if found.is_empty() {
        return Err(NotRead::NoFolder);
    }
    Ok(found)
}

fn add(found: &mut Vec<PathBuf>, folders: impl IntoIterator<Item = PathBuf>) {
    for folder in folders {
        if found.len() < MAX_FOLDERS && !found.contains(&folder) {
            found.push(folder);
        }
    }
}

/// `/venv/lib/python3.11/site-packages` of a line that maps something below it.
fn mapped_folder(line: &str) -> Option<PathBuf> {
    let path = &line[line.find('/')?..];
    ["/site-packages/", "/dist-packages/"]
        .iter()
        .find_map(|mark| {
            let end = path.find(mark)? + mark.len() - 1;
            Some(PathBuf::from(&path[..end]))
        })
}

/// The folders of packages beside the folder of a program, where there are any.
fn beside(root: &Path, program: &Path) -> Vec<PathBuf> {
    let Some(prefix) = program
        .is_absolute()
        .then(|| program.parent()?.parent())
        .flatten()
    else {
        return Vec::new();
    };
    let Ok(lib) = procfs::resolve_in(root, &prefix.join("lib")) else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir(lib) else {
        return Vec::new();
    };
    let mut versions: Vec<String> = entries
        .flatten()
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("python3"))
        .collect();
    versions.sort();
    versions
        .iter()
        .flat_map(|version| {
            let lib = prefix.join("lib").join(version);
            [lib.join("site-packages"), lib.join("dist-packages")]
        })
        .filter(|folder| procfs::resolve_in(root, folder).is_ok_and(|real| real.is_dir()))
        .collect()
}

/// The distributions of one folder; one that cannot be read has none.
fn in_folder(root: &Path, folder: &Path) -> Vec<Distribution> {
    let Ok(real) = procfs::resolve_in(root, folder) else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir(&real) else {
        return Vec::new();
    };
    entries
        .flatten()
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| {
            let stem = name.strip_suffix(".dist-info")?;
            // A link would lead out of the server's root; the folder's name says enough then.
            let metadata = real.join(&name).join("METADATA");
            let plain = std::fs::symlink_metadata(&metadata).is_ok_and(|m| m.is_file());
            let head = plain.then(|| procfs::read_start(&metadata, METADATA_HEAD).ok());
            head.flatten()
                .and_then(|head| parse_metadata(&head))
                .or_else(|| parse_stem(stem))
        })
        .collect()
}

/// Name and version of the header lines.
fn parse_metadata(text: &str) -> Option<Distribution> {
    let head = || text.lines().take_while(|line| !line.trim().is_empty());
    let field = |name: &str| {
        head().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    distribution(field("Name")?, field("Version").unwrap_or_default())
}

/// `name-version`, as the folder is called.
fn parse_stem(stem: &str) -> Option<Distribution> {
    let (name, version) = stem.split_once('-').unwrap_or((stem, ""));
    distribution(name, version)
}

fn distribution(name: &str, version: &str) -> Option<Distribution> {
    // pip leaves `~umpy` behind where it was interrupted.
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(sound);
    fits.then(|| Distribution {
        name: normalise(name),
        version: version
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_NAME)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::tree::Tree;

    const SITE: &str = "/opt/venv/lib/python3.11/site-packages";

    fn dist(tree: &Tree, folder: &str, name: &str, version: &str) {
        tree.file(
            &format!("7/root{folder}/{name}-{version}.dist-info/METADATA"),
            &format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: wrong\n"),
        );
    }

    fn names(result: Result<Installed, NotRead>) -> Vec<String> {
        let installed = result.unwrap().distributions.into_iter();
        installed
            .map(|d| format!("{} {}", d.name, d.version))
            .collect()
    }

    #[test]
    fn the_folder_is_found_by_what_is_mapped() {
        let tree = Tree::new();
        dist(&tree, SITE, "mlserver", "1.7.1");
        dist(&tree, SITE, "Mlserver_SKLearn", "1.7.1");
        dist(&tree, "/usr/lib/python3/dist-packages", "numpy", "1.0");
        dist(&tree, SITE, "numpy", "2.0");
        let maps = format!(
            "7f0-7f1 r-xp 0 08:01 7 /usr/bin/python3.11\n\
             7f1-7f2 r--p 0 08:01 9 {SITE}/numpy/core/x y.so\n\
             7f1-7f2 r--p 0 08:01 9 {SITE}/uvloop/loop.so (deleted)\n\
             7f1-7f2 r--p 0 08:01 9 /usr/lib/python3/dist-packages/_c.so\n\
             7f3-7f4 rw-p 0 00:00 0 [heap]\n"
        );
        tree.file("7/maps", &maps);
        let installed = read(tree.path(), 7).unwrap();
        assert_eq!(installed.folders[0], PathBuf::from(SITE));
        assert_eq!(
            names(Ok(installed)),
            ["mlserver 1.7.1", "mlserver-sklearn 1.7.1", "numpy 2.0"]
        );
    }

    #[test]
    fn without_native_modules_the_command_line_tells_and_then_the_interpreter() {
        let tree = Tree::new();
        dist(
            &tree,
            "/data/envs/one/lib/python3.10/site-packages",
            "mlserver",
            "1.6",
        );
        // conda and mounted volumes have absolute links, which must stay inside the root.
        tree.link("7/root/opt/conda", "/data/envs/one")
            .file("7/maps", "")
            .file(
                "7/cmdline",
                "/opt/conda/bin/python3\0/opt/conda/bin/mlserver\0start\0",
            );
        assert_eq!(names(read(tree.path(), 7)), ["mlserver 1.6"]);
        tree.file("7/cmdline", "mlserver\0start\0")
            .link("7/exe", "/opt/conda/bin/python3.10");
        assert_eq!(names(read(tree.path(), 7)), ["mlserver 1.6"]);
    }

    #[test]
    fn what_cannot_be_known_has_a_name() {
        let tree = Tree::new();
        let gone = NotRead::Failed(Unreadable::NotFound);
        assert_eq!(read(tree.path(), 7), Err(gone));
        tree.file("7/maps", "")
            .file("7/cmdline", "mlserver\0start\0");
        assert_eq!(read(tree.path(), 7), Err(NotRead::NoFolder));
        dist(&tree, SITE, "numpy", "2.0");
        tree.file("7/maps", &format!("0-1 r 0 0 0 {SITE}/x.so\n"));
        assert_eq!(read(tree.path(), 7), Err(NotRead::NotTheServers));
    }

    #[test]
    fn broken_metadata_falls_back_on_the_folders_name() {
        let tree = Tree::new();
        tree.file(&format!("7/root{SITE}/mlserver-1.7.1.dist-info/RECORD"), "")
            .file(
                &format!("7/root{SITE}/torch-2.1.dist-info/METADATA"),
                "\u{0}\u{1}",
            )
            .file(
                &format!("7/root{SITE}/~umpy-1.dist-info/METADATA"),
                "Name: ~umpy\n",
            )
            .file(
                &format!("7/root{SITE}/long-1.dist-info/METADATA"),
                &format!("Name: {}\nVersion: 1\n", "x".repeat(100_000)),
            )
            .link(
                &format!("7/root{SITE}/linked-3.dist-info/METADATA"),
                "/etc/passwd",
            )
            .file("7/maps", &format!("0-1 r 0 0 0 {SITE}/x.so\n"));
        assert_eq!(
            names(read(tree.path(), 7)),
            ["linked 3", "long 1", "mlserver 1.7.1", "torch 2.1"]
        );
    }

    #[test]
    fn thousands_of_distributions_are_read() {
        let tree = Tree::new();
        for n in 0..3000 {
            dist(&tree, SITE, &format!("package{n:04}"), "1.0");
        }
        dist(&tree, SITE, "mlserver", "1.7.1");
        tree.file("7/maps", &format!("0-1 r 0 0 0 {SITE}/x.so\n"));
        assert_eq!(read(tree.path(), 7).unwrap().distributions.len(), 3001);
    }
}
