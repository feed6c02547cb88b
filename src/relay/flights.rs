//! Loads and unloads over gRPC while they are under way: who joins whose, what is carried to its
//! end although its caller has gone.
//!
//! Knows no bytes and no connection: the call itself and the question whether the server has a
//! model are handed in. Everything between two awaits is one step, since the program has one
//! thread; every order of those steps is tried by the tests.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::watch;

use crate::restore::files::Fingerprint;
use crate::restore::{Coalesced, Memory};

/// An answer that can be given to several callers.
#[derive(Debug, Clone)]
pub(super) struct Whole {
    pub(super) head: HeaderMap,
    pub(super) message: Option<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
}

impl Whole {
    pub(super) fn is_ok(&self) -> bool {
        let status = |headers: &HeaderMap| headers.get("grpc-status").map(|s| s == "0");
        self.trailers
            .as_ref()
            .and_then(status)
            .or_else(|| status(&self.head))
            .unwrap_or(false)
    }
}

/// A call that got no answer, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost(pub(super) &'static str);

/// A load under way, for all who ask for the same.
#[derive(Debug, Clone)]
struct Flight {
    model: String,
    files: Option<Fingerprint>,
    answer: watch::Receiver<Option<Whole>>,
}

/// Loads under way that may be joined. Cheap to clone; one for both relays.
#[derive(Debug, Clone, Default)]
pub struct Flights(Arc<Mutex<Vec<Flight>>>);

impl Flights {
    fn lock(&self) -> MutexGuard<'_, Vec<Flight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the same files; of files that are not known nothing is the same.
    fn of(&self, model: &str, files: Option<Fingerprint>) -> Option<Flight> {
        let flights = self.lock();
        let known = files.is_some();
        let same = |f: &&Flight| known && f.model == model && f.files == files;
        flights.iter().find(same).cloned()
    }

    fn begin(&self, model: &str, files: Option<Fingerprint>) -> Landing {
        let (sender, answer) = watch::channel(None);
        self.lock().push(Flight {
            model: model.into(),
            files,
            answer: answer.clone(),
        });
        Landing {
            flights: self.clone(),
            answer,
            sender,
        }
    }

    /// An unload of a model passes: the server carries it out behind the loads that are under way,
    /// so a load that comes after it has to be a call of its own.
    pub(super) fn unloading(&self, model: &str) {
        self.lock().retain(|f| f.model != model);
    }

    /// A load: `call` makes it, `has` asks the server whether it has the model now.
    ///
    /// The server does not load twice where the same load is under way, or the model is READY, was
    /// loaded from the files as they are now, and was seen to work not long ago. READY is what the
    /// server says at this moment, never what was known before. Another load of the model, or one
    /// of files that are not known, is made, and the server carries it out behind the one under
    /// way. `None` where it has the model.
    pub(super) async fn load<H, A>(
        &self,
        memory: &Memory,
        model: &str,
        files: Option<Fingerprint>,
        has: H,
        call: impl Future<Output = Whole> + Send + 'static,
    ) -> Result<Option<Whole>, Lost>
    where
        H: Fn() -> A,
        A: Future<Output = bool>,
    {
        let mut asked = false;
        let mut restored = false;
        loop {
            // Each wait may have let others pass: so after each all is looked at anew, and
            // between the last look and the beginning of this load there is none.
            if memory.is_restoring(model) {
                memory.until_not_restoring(model).await;
                restored = true;
                continue;
            }
            // Nothing is to be saved; what the shim undoes must not come behind the load all the same.
            if !memory.settings().coalesce {
                break;
            }
            if let Some(mut flight) = self.of(model, files) {
                // It may break off without an answer; then this caller makes its own.
                let whole = flight.answer.wait_for(Option::is_some).await;
                if let Some(whole) = whole.ok().and_then(|whole| whole.clone()) {
                    memory.coalesced(Coalesced::Shared);
                    return Ok(Some(whole));
                }
                continue;
            }
            let fresh = files.is_some_and(|files| memory.is_fresh(model, &files));
            if fresh && !asked {
                asked = true;
                if has().await {
                    memory.coalesced(match restored {
                        true => Coalesced::Shared,
                        false => Coalesced::Ready,
                    });
                    return Ok(None);
                }
                continue;
            }
            break;
        }
        let guard = memory.loading(model, files);
        let landing = self.begin(model, files);
        let done = move |whole: &Whole| {
            if whole.is_ok() {
                guard.succeeded();
            }
        };
        let answer = landing.answer.clone();
        self.carry(memory, landing, answer, call, done)
            .await
            .map(Some)
    }

    /// An unload: `call` makes it.
    pub(super) async fn unload(
        &self,
        memory: &Memory,
        model: &str,
        call: impl Future<Output = Whole> + Send + 'static,
    ) -> Result<Whole, Lost> {
        self.unloading(model);
        let guard = memory.unloading(model);
        let (sender, answer) = watch::channel(None);
        // Nobody joins it.
        let landing = Landing {
            flights: Flights::default(),
            answer: answer.clone(),
            sender,
        };
        self.carry(memory, landing, answer, call, move |_| drop(guard))
            .await
    }

    /// Carries a call to its end, also when the caller has gone.
    async fn carry(
        &self,
        memory: &Memory,
        landing: Landing,
        mut answer: watch::Receiver<Option<Whole>>,
        call: impl Future<Output = Whole> + Send + 'static,
        done: impl FnOnce(&Whole) + Send + 'static,
    ) -> Result<Whole, Lost> {
        let busy = memory.busy();
        let job = async move {
            let whole = call.await;
            done(&whole);
            landing.ended(whole);
            drop(busy);
        };
        if !memory.carry(Box::pin(job)) {
            return Err(Lost("the shim is at its end"));
        }
        let whole = answer.wait_for(Option::is_some).await;
        let whole = whole.ok().and_then(|whole| whole.clone());
        whole.ok_or(Lost("the call was lost inside the shim"))
    }
}

/// Takes a flight off the list when it is over, however it ends.
struct Landing {
    flights: Flights,
    answer: watch::Receiver<Option<Whole>>,
    sender: watch::Sender<Option<Whole>>,
}

impl Landing {
    /// With its answer. Off the list first: whoever asks next begins anew.
    fn ended(self, whole: Whole) {
        let sender = self.sender.clone();
        drop(self);
        sender.send_replace(Some(whole));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let answer = &self.answer;
        let mut flights = self.flights.lock();
        flights.retain(|f| !f.answer.same_channel(answer));
    }
}

#[cfg(test)]
mod tests;
