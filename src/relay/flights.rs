//! Loads and unloads over gRPC while they are under way: who joins whose, who waits for whom, what
//! is carried to its end although its caller has gone.
//!
//! Of one model one load is under way and one waits for its end, whoever else asks for it: a
//! caller that gives up and asks again, however often, leaves no more behind. And a load waits for
//! the end of the unloads that were asked for before: a server that still unloads a model fails a
//! load of it, and has it no more when it has ended.
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

mod order;

use order::Order;
pub(super) use order::{Sent, Unsent};

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

type Answer = watch::Receiver<Option<Whole>>;

/// A load under way, for all who ask for the same, or one that waits for the end of other calls.
#[derive(Debug)]
struct Flight {
    model: String,
    files: Option<Fingerprint>,
    answer: Answer,
    /// While it waits: its end is the sign not to wait any more.
    waits: Option<watch::Sender<()>>,
}

#[derive(Debug, Default)]
struct Board {
    flights: Vec<Flight>,
    /// Unloads that have not been answered.
    unloads: Vec<(String, Answer)>,
    order: Order,
}

/// Loads under way that may be joined. Cheap to clone; one for both relays.
#[derive(Debug, Clone, Default)]
pub struct Flights(Arc<Mutex<Board>>);

impl Flights {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of the same files, where of files that are not known nothing is the same; or one that
    /// waits, which will find what anybody wants who asks before it begins.
    fn joined(&self, model: &str, files: Option<Fingerprint>) -> Option<Answer> {
        let board = self.lock();
        let same = |f: &Flight| f.waits.is_some() || files.is_some() && f.files == files;
        let mut flights = board.flights.iter();
        let found = flights.find(|f| f.model == model && same(f));
        found.map(|f| f.answer.clone())
    }

    /// What a load has to wait for that cannot join one: the unloads, and where `loads` is true
    /// the last load.
    fn ahead(&self, model: &str, loads: bool) -> Ahead {
        let board = self.lock();
        let unloads = board.unloads.iter().filter(|(name, _)| name == model);
        let load = board.flights.iter().rfind(|f| loads && f.model == model);
        Ahead {
            unloads: unloads.map(|(_, answer)| answer.clone()).collect(),
            load: load.map(|f| f.answer.clone()),
        }
    }

    fn begin(&self, model: &str, files: Option<Fingerprint>, ahead: Ahead) -> Begun {
        let (sender, answer) = watch::channel(None);
        let wait = (!ahead.is_empty()).then(|| {
            let (sender, released) = watch::channel(());
            (sender, Wait { ahead, released })
        });
        let (waits, wait) = wait.unzip();
        self.lock().flights.push(Flight {
            model: model.into(),
            files,
            answer: answer.clone(),
            waits,
        });
        let flights = self.clone();
        let landing = Landing {
            flights,
            answer,
            sender,
        };
        Begun { landing, wait }
    }

    /// A load sets off: nobody joins it any more for having waited.
    fn sets_off(&self, answer: &Answer) {
        let mut board = self.lock();
        let own = |f: &&mut Flight| f.answer.same_channel(answer);
        if let Some(flight) = board.flights.iter_mut().find(own) {
            flight.waits = None;
        }
    }

    /// An unload of a model passes: the server carries it out behind the loads that were asked for
    /// before, so a load that comes after it has to be a call of its own, and one that waits for
    /// another sets off. What the unload has to wait for, so as not to overtake it.
    pub(super) fn unloading(&self, model: &str) -> Option<Sent> {
        let mut board = self.lock();
        board.flights.retain(|f| f.model != model);
        board.order.last(model)
    }

    /// A load: `call` makes it, `has` asks the server whether it has the model now.
    ///
    /// The server does not load twice where the same load is under way, or the model is READY, was
    /// loaded from the files as they are now, and was seen to work not long ago. READY is what the
    /// server says at this moment, never what was known before. Another load of the model, or one
    /// of files that are not known, is made when the one under way has ended, once for all who ask
    /// for it until then: each of them gets the answer of a load that began after he asked. `None`
    /// where the server has the model.
    ///
    /// Where needless loads are made all the same, every one is, and at once, but for an unload
    /// that is under way.
    pub(super) async fn load<H, A, C>(
        &self,
        memory: &Memory,
        model: &str,
        files: Option<Fingerprint>,
        has: H,
        call: impl FnOnce(Unsent) -> C,
    ) -> Result<Option<Whole>, Lost>
    where
        H: Fn() -> A,
        A: Future<Output = bool>,
        C: Future<Output = Whole> + Send + 'static,
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
            if let Some(mut answer) = self.joined(model, files) {
                // It may break off without an answer; then this caller makes its own.
                let whole = answer.wait_for(Option::is_some).await;
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
        let ahead = self.ahead(model, memory.settings().coalesce);
        // What waits finds the files of a later moment, at which nobody has looked at them.
        let files = files.filter(|_| ahead.is_empty());
        let guard = memory.loading(model, files);
        let Begun { landing, wait } = self.begin(model, files, ahead);
        let (unsent, before) = self.lock().order.queue(model);
        let call = call(unsent);
        let done = move |whole: &Whole| {
            if whole.is_ok() {
                guard.succeeded();
            }
        };
        let (flights, answer) = (self.clone(), landing.answer.clone());
        let own = answer.clone();
        let call = async move {
            if let Some(wait) = wait {
                wait.over().await;
            }
            flights.sets_off(&own);
            behind(before, call).await
        };
        self.carry(memory, landing, answer, call, done)
            .await
            .map(Some)
    }

    /// An unload: `call` makes it.
    pub(super) async fn unload<C>(
        &self,
        memory: &Memory,
        model: &str,
        call: impl FnOnce(Unsent) -> C,
    ) -> Result<Whole, Lost>
    where
        C: Future<Output = Whole> + Send + 'static,
    {
        self.unloading(model);
        let guard = memory.unloading(model);
        let (unsent, before) = self.lock().order.queue(model);
        let call = behind(before, call(unsent));
        let (sender, answer) = watch::channel(None);
        self.lock().unloads.push((model.into(), answer.clone()));
        let landing = Landing {
            flights: self.clone(),
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
        mut answer: Answer,
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

/// A call that is not made before the one that was asked for earlier has been sent.
async fn behind(before: Option<Sent>, call: impl Future<Output = Whole>) -> Whole {
    if let Some(before) = before {
        before.wait().await;
    }
    call.await
}

/// A load that was asked for, and what it waits for.
struct Begun {
    landing: Landing,
    wait: Option<Wait>,
}

/// What a load is behind.
#[derive(Debug, Default)]
struct Ahead {
    unloads: Vec<Answer>,
    load: Option<Answer>,
}

impl Ahead {
    fn is_empty(&self) -> bool {
        self.unloads.is_empty() && self.load.is_none()
    }
}

/// The wait for the end of what is ahead.
struct Wait {
    ahead: Ahead,
    released: watch::Receiver<()>,
}

impl Wait {
    /// However that ended, or because an unload must not wait behind a load. It may wait behind
    /// other unloads.
    async fn over(mut self) {
        for mut unload in self.ahead.unloads {
            let _ = unload.wait_for(Option::is_some).await;
        }
        if let Some(mut load) = self.ahead.load {
            tokio::select! {
                biased;
                _ = load.wait_for(Option::is_some) => {}
                _ = self.released.changed() => {}
            }
        }
    }
}

/// Takes a flight or an unload off the list when it is over, however it ends.
struct Landing {
    flights: Flights,
    answer: Answer,
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
        let mut board = self.flights.lock();
        board.flights.retain(|f| !f.answer.same_channel(answer));
        board.unloads.retain(|(_, a)| !a.same_channel(answer));
    }
}

#[cfg(test)]
mod tests;
