//! Whether a model's files have changed: a fingerprint of its folder, without reading contents.
//!
//! Size, times and inode of every file. Where the folder cannot be seen, is too large, or names
//! files outside itself, there is no fingerprint, and the caller must not assume anything.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Deserialize;

/// What a folder looked like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    hash: u64,
    files: usize,
}

#[cfg(test)]
impl Fingerprint {
    /// Some folder or other, the same for the same number.
    pub(crate) fn number(hash: u64) -> Self {
        Fingerprint { hash, files: 1 }
    }
}

/// More files than a model has; the bound of one look.
const MAX_FILES: usize = 5_000;
const MAX_DEPTH: usize = 16;
const MAX_SETTINGS: u64 = 1024 * 1024;

const SETTINGS: &str = "model-settings.json";

#[derive(Deserialize)]
struct Settings {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    parameters: Option<Parameters>,
}

#[derive(Deserialize)]
struct Parameters {
    #[serde(default)]
    uri: Option<String>,
}

/// The fingerprint of the folder of a model below `models`; `None` where it cannot be told.
/// Blocks on the file system.
pub fn fingerprint(models: &Path, name: &str) -> Option<Fingerprint> {
    // The name comes from outside the program.
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        return None;
    }
    let folder = models.join(name);
    if !is_all_inside(&folder, name) {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    let mut files = 0;
    walk(&folder, 0, &mut hasher, &mut files)?;
    let hash = hasher.finish();
    Some(Fingerprint { hash, files })
}

/// Whether the settings are those of the model and name no file outside of the folder.
fn is_all_inside(folder: &Path, name: &str) -> bool {
    let path = folder.join(SETTINGS);
    let small = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_SETTINGS);
    let settings = small.then(|| std::fs::read(&path).ok()).flatten();
    let Some(settings) = settings.and_then(|s| serde_json::from_slice::<Settings>(&s).ok()) else {
        return false;
    };
    let uri = settings.parameters.and_then(|p| p.uri).unwrap_or_default();
    let inside = match Path::new(&uri) {
        path if path.is_absolute() => path.starts_with(folder),
        _ => !uri.contains("://"),
    };
    settings.name.is_none_or(|n| n == name) && inside && !uri.split('/').any(|part| part == "..")
}

fn walk(folder: &Path, depth: usize, hasher: &mut DefaultHasher, files: &mut usize) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .ok()?
        .take(MAX_FILES + 1)
        .collect::<Result<_, _>>()
        .ok()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        *files += 1;
        if *files > MAX_FILES {
            return None;
        }
        // Links are followed: the server reads what they lead to.
        let path = entry.path();
        let seen = std::fs::metadata(&path).ok()?;
        entry.file_name().hash(hasher);
        if seen.is_dir() {
            depth.hash(hasher);
            walk(&path, depth + 1, hasher, files)?;
        } else {
            (seen.dev(), seen.ino(), seen.len()).hash(hasher);
            (
                seen.mtime(),
                seen.mtime_nsec(),
                seen.ctime(),
                seen.ctime_nsec(),
            )
                .hash(hasher);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_of_any_file_changes_the_fingerprint_and_what_is_outside_has_none() {
        let models = std::env::temp_dir().join(format!("agent-shim-files-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&models);
        let folder = models.join("iris_1");
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        let write = |path: &str, text: &str| std::fs::write(folder.join(path), text).unwrap();
        let now = || fingerprint(&models, "iris_1");
        assert_eq!(now(), None, "no settings");
        write(
            SETTINGS,
            r#"{"name":"iris_1","parameters":{"uri":"./model"}}"#,
        );
        let first = now();
        assert!(first.is_some());
        assert_eq!(first, now());
        write("deep/model", "12");
        let second = now();
        assert!(second.is_some() && second != first);
        // The same length, another content: the times tell.
        // They have the grain of the kernel's tick.
        let rewritten = (0..100_000).any(|_| {
            write("deep/model", "34");
            now() != second
        });
        assert!(rewritten);
        for uri in [
            "/elsewhere/model",
            "../other",
            "s3://bucket/model",
            "a/../../b",
        ] {
            write(SETTINGS, &format!(r#"{{"parameters":{{"uri":"{uri}"}}}}"#));
            assert_eq!(now(), None, "{uri}");
        }
        write(SETTINGS, r#"{"name":"another"}"#);
        assert_eq!(now(), None);
        for name in ["", ".", "..", "../iris_1", "none"] {
            assert_eq!(fingerprint(&models, name), None, "{name}");
        }
        std::fs::remove_dir_all(&models).unwrap();
    }
}
