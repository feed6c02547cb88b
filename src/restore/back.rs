//! Putting one model back. Every wait lets callers' loads and unloads pass, so after each the
//! account is asked again; the order of all steps is tried by the tests.

use super::Memory;
use super::book::{Loaded, Then};
use super::files::Fingerprint;
use super::server::{Asking, Has};

/// What is asked of the server.
pub(crate) trait Serves: Send + Sync {
    /// Whether it has a model.
    fn has(&self, model: &str) -> impl Future<Output = Has> + Send;
    /// Loads it, however long that takes.
    fn load(&self, model: &str) -> impl Future<Output = Result<(), String>> + Send;
    /// Unloads it; one that is not there is no error.
    fn unload(&self, model: &str) -> impl Future<Output = Result<(), String>> + Send;
    /// Its files as they are now.
    fn files(
        &self,
        memory: &Memory,
        model: &str,
    ) -> impl Future<Output = Option<Fingerprint>> + Send;
}

impl Serves for Asking {
    fn has(&self, model: &str) -> impl Future<Output = Has> + Send {
        Asking::has(self, model)
    }

    fn load(&self, model: &str) -> impl Future<Output = Result<(), String>> + Send {
        Asking::load(self, model)
    }

    fn unload(&self, model: &str) -> impl Future<Output = Result<(), String>> + Send {
        Asking::unload(self, model)
    }

    fn files(
        &self,
        memory: &Memory,
        model: &str,
    ) -> impl Future<Output = Option<Fingerprint>> + Send {
        memory.files(model)
    }
}

/// Looks at one model that counts as running, and loads it where it is not there. True where
/// something may have changed in the server.
pub(crate) async fn put_back(memory: Memory, model: String, server: impl Serves) -> bool {
    match server.has(&model).await {
        Has::Ready => {
            memory.change(|book, now| book.found(&model, now));
            return false;
        }
        Has::Loading | Has::Unclear => {
            memory.change(|book, now| book.not_yet(&model, now));
            return false;
        }
        Has::Not => {}
    }
    let files = server.files(&memory, &model).await;
    if memory.0.drain.has_begun() || !memory.book().may_load(&model) {
        memory.change(|book, now| book.not_yet(&model, now));
        return false;
    }
    let _busy = memory.busy();
    let begun = memory.now();
    tracing::info!(model, "loading a model that the server has lost");
    let (then, error) = load(&memory, &model, &server, files).await;
    memory.0.series.done(then, error.is_none());
    let took = memory.now().saturating_sub(begun);
    match then {
        Then::Restored => tracing::info!(model, ?took, "the model is back in memory"),
        Then::Later => tracing::warn!(
            model,
            error,
            "the model was not restored; it is tried again"
        ),
        Then::GivenUp => tracing::warn!(
            model,
            error,
            "the model was not restored; it is left to the agent, which loads it at the next request for it"
        ),
        Then::Undo => undo(&memory, &model, &server).await,
        Then::Dropped | Then::Wait => {}
    }
    true
}

/// Unloads a READY model that its worker does not have, and loads it again. `None` where it was
/// left to its owner, who is at it or does not want it any more.
pub(crate) async fn put_anew(
    memory: &Memory,
    model: &str,
    server: &impl Serves,
) -> Option<Result<(), String>> {
    if memory.0.drain.has_begun() || !memory.change(|book, now| book.takes(model, now)) {
        return None;
    }
    let _busy = memory.busy();
    let ended = || memory.change(|book, now| book.ended(model, now));
    if let Err(error) = server.unload(model).await {
        ended();
        return Some(Err(error));
    }
    let files = server.files(memory, model).await;
    if !memory.book().may_load(model) {
        ended();
        return None;
    }
    let (then, error) = load(memory, model, server, files).await;
    let failed = || error.unwrap_or_else(|| "the server was restarted".into());
    match then {
        Then::Restored => Some(Ok(())),
        Then::Undo => {
            undo(memory, model, server).await;
            None
        }
        Then::Later | Then::GivenUp => {
            // Where nothing is restored nobody tries again but the agent.
            if !memory.settings().restore {
                ended();
            }
            Some(Err(failed()))
        }
        Then::Dropped | Then::Wait => None,
    }
}

/// Unloads a model that is UNKNOWN because a load of it was cut off. `None` where it is so no more,
/// or was left to its owner, who is at it.
pub(crate) async fn put_out(
    memory: &Memory,
    model: &str,
    server: &impl Serves,
) -> Option<Result<(), String>> {
    if memory.0.drain.has_begun() {
        return None;
    }
    let mut held = memory.putting_out(model)?;
    // Asked while no load of it may begin: what was known before may be long ago.
    if server.has(model).await != Has::Loading || !held.sets_off() {
        return None;
    }
    let _busy = memory.busy();
    Some(server.unload(model).await)
}

/// Loads a model that counts as running, and waits for its owner where he is at it as well. What
/// became of it, and the server's error.
async fn load(
    memory: &Memory,
    model: &str,
    server: &impl Serves,
    files: Option<Fingerprint>,
) -> (Then, Option<String>) {
    let begun = memory.now();
    let outcome = server.load(model).await;
    let error = outcome.as_ref().err().cloned();
    let mut then = memory.change(|book, now| {
        let took = now.saturating_sub(begun);
        let loaded = outcome.map(|()| Loaded {
            at: now,
            took,
            files,
        });
        book.load_done(model, loaded, now)
    });
    if then == Then::Wait {
        then = memory.settled(model).await;
        if then == Then::Dropped {
            memory.change(|book, now| book.ended(model, now));
        }
    }
    (then, error)
}

async fn undo(memory: &Memory, model: &str, server: &impl Serves) {
    tracing::info!(
        model,
        "the model was unloaded by its owner while it was restored: unloading it"
    );
    if let Err(error) = server.unload(model).await {
        tracing::warn!(model, error, "a model that nobody wants is still in memory");
    }
    memory.change(|book, now| book.ended(model, now));
}
