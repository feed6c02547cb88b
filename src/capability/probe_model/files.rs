//! The model's folder: placed whole, removed only where it is the shim's own.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Failed, NAME};

const CODE: (&str, &str) = ("agent_shim_probe.py", include_str!("agent_shim_probe.py"));
const SETTINGS: (&str, &str) = (
    "model-settings.json",
    "{\"name\": \"agent-shim-probe\", \"implementation\": \"agent_shim_probe.Probe\"}\n",
);
/// The settings under a name that the server does not look for.
const UNFINISHED: &str = "model-settings.unfinished";
/// Where Python may leave byte code.
const CACHE: &str = "__pycache__";

/// Whether the folder is there.
pub(super) async fn left(models_dir: &Path) -> Result<bool, Failed> {
    let folder = models_dir.join(NAME);
    blocking(move || match fs::symlink_metadata(&folder) {
        Ok(_) => own(&folder).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failed::Place(format!("{}: {error}", folder.display()))),
    })
    .await
}

/// Writes the model. The settings come last and whole: the server reads every settings file
/// whenever anything is loaded.
pub(super) async fn place(models_dir: &Path) -> Result<(), Failed> {
    let folder = models_dir.join(NAME);
    blocking(move || {
        let write = || {
            fs::create_dir(&folder)?;
            // Whatever the umask is: the server may have another user id.
            fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
            for (name, text) in [CODE, (UNFINISHED, SETTINGS.1)] {
                fs::write(folder.join(name), text)?;
                fs::set_permissions(folder.join(name), Permissions::from_mode(0o644))?;
            }
            fs::rename(folder.join(UNFINISHED), folder.join(SETTINGS.0))
        };
        write().map_err(|error: io::Error| {
            // Nothing is loaded yet, so what is there may go.
            let _ = delete(&folder);
            Failed::Place(format!("{}: {error}", folder.display()))
        })
    })
    .await
}

/// Removes the folder; it is no failure if there is none.
pub(super) async fn remove(models_dir: &Path) -> Result<(), Failed> {
    let folder = models_dir.join(NAME);
    blocking(move || {
        own(&folder)?;
        let left = |error: io::Error| Failed::LeftBehind(format!("{}: {error}", folder.display()));
        delete(&folder).map_err(left)
    })
    .await
}

/// Refuses a folder that holds anything else than the shim puts there, and a link.
fn own(folder: &Path) -> Result<(), Failed> {
    let foreign = || Failed::Foreign(folder.to_path_buf());
    match fs::symlink_metadata(folder) {
        Ok(kind) if !kind.is_dir() => return Err(foreign()),
        Ok(_) => {}
        Err(_) => return Ok(()),
    }
    let ours = [CODE.0, SETTINGS.0, UNFINISHED, CACHE];
    let entries = fs::read_dir(folder).map_err(|_| foreign())?;
    let all_ours = entries
        .flatten()
        .all(|entry| ours.iter().any(|name| entry.file_name() == *name));
    all_ours.then_some(()).ok_or_else(foreign)
}

/// The settings first: without them the folder is no model.
fn delete(folder: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(fs::remove_file(folder.join(SETTINGS.0)))?;
    // Follows no links.
    gone(fs::remove_dir_all(folder))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failed::Place(error.to_string())),
    }
}
