//! What should be in the server's memory, and what is to be done about it. Pure: no clock, no
//! socket; every time is since the start of the process.
//!
//! A model belongs in memory once an index has shown it READY or a load that passed here has
//! succeeded, and until an unload passes here. An index that no longer shows it takes nothing
//! away by itself: after a restart that is exactly what is to be mended. It only counts against
//! the model where the server was still known alive afterwards: then somebody has unloaded it
//! without passing here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::files::Fingerprint;

mod putting_out;

/// Loads of the shim's own at one time. The server's main loop freezes while it imports, and its
/// workers serve everybody else; two, so that one that hangs does not keep back all others.
pub const AT_ONCE: usize = 2;
/// Tries for one model before it is left to the agent.
pub const TRIES: u32 = 4;
/// Pause after the first failure; it is multiplied by four with each further one.
const BACK_OFF: Duration = Duration::from_secs(2);
/// A model whose load has failed is loaded alone, and after the others that are due: where it takes
/// the server with it, no other one is under way whose try that would cost. For so long only, since
/// a load may hang.
const ALONE: Duration = Duration::from_secs(60);
/// The same for another one whose load has failed: it has fewer tries to lose.
const APART: Duration = Duration::from_secs(10 * 60);
/// Pause before a model that the server loads already is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a model that was seen to work is believed to be in its worker's hands, at least.
const TRUST: Duration = Duration::from_secs(60);
/// The same in loads: reloading a model may take a tenth of the time, however long one takes.
const TRUST_IN_LOADS: u32 = 10;
/// How long a load whose end nobody sees is believed to run at most.
pub const LONGEST: Duration = Duration::from_secs(30 * 60);
/// An index that was asked for so soon after a load was left may be older than the load.
const SETTLES: Duration = Duration::from_secs(1);
/// Models that are remembered; far above what one server holds.
const MOST: usize = 10_000;
/// Longest name that is remembered, in bytes: no file system takes one of a quarter of it.
const LONGEST_NAME: usize = 1024;

/// How far the restoring of one model is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Stage {
    /// There is nothing to restore.
    #[default]
    Nothing,
    /// It is to be looked at, and loaded where it is not there.
    Due {
        /// Not earlier.
        at: Duration,
    },
    /// It is being looked at or loaded.
    Running,
    /// It is left to the agent, which loads it when a request comes.
    GivenUp,
}

impl Stage {
    /// The label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Stage::Nothing => "nothing",
            Stage::Due { .. } => "due",
            Stage::Running => "loading",
            Stage::GivenUp => "given-up",
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Entry {
    /// Whether it belongs in memory.
    wanted: bool,
    /// When it last began to.
    since: Duration,
    /// When a request for it was last seen.
    used: Option<Duration>,
    /// When an inference of it last succeeded in sight of the shim.
    worked: Option<Duration>,
    /// When a call last changed it; an index from before says nothing.
    changed: Duration,
    /// When an index first showed that it is not in memory.
    gone: Option<Duration>,
    /// Callers' loads and unloads under way.
    calls: usize,
    /// Callers' unloads, since there is this entry.
    unloads: u64,
    /// When the caller of a load over HTTP had gone, with which the server goes on.
    left: Option<Duration>,
    /// The shim is unloading it, since a load of it was cut off.
    putting_out: bool,
    /// It has, and nobody has loaded it since: that it is not in memory says nothing of what its
    /// owner wants.
    put_out: bool,
    /// The last load that succeeded.
    loaded: Option<Loaded>,
    stage: Stage,
    /// When it last began to run.
    started: Duration,
    /// Its load had failed before it did.
    alone: bool,
    /// The server was started again while it ran: what it says of its end says nothing.
    again: bool,
    failures: u32,
    error: Option<String>,
}

impl Entry {
    fn is_of_use(&self) -> bool {
        self.wanted || self.is_at_work() || self.left.is_some()
    }

    /// Whether a call of its owner's or of the shim's own is under way.
    fn is_at_work(&self) -> bool {
        self.calls > 0 || self.is_shims()
    }

    /// Whether the shim is at it.
    fn is_shims(&self) -> bool {
        self.stage == Stage::Running || self.putting_out
    }

    /// From when on it may be looked at, with this beside it.
    fn may_start(&self, place: Place) -> Option<Duration> {
        let Stage::Due { at } = self.stage else {
            return None;
        };
        let beside = match self.failures {
            0 => place.unfailed,
            _ => place.failed,
        };
        let free = self.calls == 0 && !self.putting_out;
        (self.wanted && free && !place.full).then_some(at.max(beside))
    }

    fn starts(&mut self, now: Duration) {
        self.stage = Stage::Running;
        self.started = now;
        self.alone = self.failures > 0;
    }

    fn is_left(&self, now: Duration) -> bool {
        self.left
            .is_some_and(|at| now.saturating_sub(at) <= LONGEST)
    }
}

/// From when on a model that is due may run, beside what runs already.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// As many run as may.
    full: bool,
    /// One whose last load has failed.
    failed: Duration,
    /// Any other.
    unfailed: Duration,
}

/// A load that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// When it ended.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// The files as they were before it began; `None` where they cannot be seen.
    pub files: Option<Fingerprint>,
}

/// What has to be done after a load of the shim's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing: the model is back.
    Restored,
    /// Unload it: it was unloaded by its owner while it was being loaded. It still counts as
    /// running, so that no load of its owner's overtakes the unload; [`Book::ended`] tells the end.
    Undo,
    /// Its owner's unload is under way, and may have come to the server before the load did or
    /// after it: when that has ended, [`Book::settled`] tells. It still counts as running.
    Wait,
    /// It failed, and is tried again later.
    Later,
    /// It failed for the last time.
    GivenUp,
    /// It failed, and nobody wants it any more.
    Dropped,
}

/// A model that is being restored, or could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restoring {
    /// Its name.
    pub model: String,
    /// How far it is.
    pub stage: Stage,
    /// Failed tries.
    pub failures: u32,
    /// Why the last one failed.
    pub error: Option<String>,
}

/// The account of what belongs in memory.
#[derive(Debug, Clone, Default)]
pub struct Book {
    entries: BTreeMap<String, Entry>,
    /// Something has belonged in memory since the start of the process: what an agent lists says
    /// nothing more.
    knows: bool,
    /// What is in memory by the first index; `None` before it.
    found: Option<bool>,
    /// What the agent listed before there was an index.
    told: Vec<String>,
    /// What was unloaded before anything was known: an agent's list may be older.
    unloaded: BTreeSet<String>,
}

impl Book {
    /// Takes an index that was asked for at `asked`: name and state of each model.
    pub fn index<'a>(&mut self, models: impl Iterator<Item = (&'a str, &'a str)>, asked: Duration) {
        let listed: BTreeMap<&str, &str> = models.collect();
        // UNKNOWN is the server's word for a model that it loads.
        let held = listed.values().any(|state| *state != "UNAVAILABLE");
        self.found = Some(held);
        self.knows |= held;
        for (name, state) in &listed {
            if *state == "READY" && !name.is_empty() {
                let Some(entry) = self.entry(name) else {
                    continue;
                };
                // While it is unloaded it is listed as READY until its worker has answered.
                let called = entry.calls > 0;
                if called || entry.changed >= asked && entry.changed > Duration::ZERO {
                    continue;
                }
                entry.gone = None;
                entry.put_out = false;
                // One that runs and is not wanted is about to be unloaded by the shim.
                if !entry.wanted && entry.stage != Stage::Running {
                    entry.wanted = true;
                    entry.since = asked;
                }
            }
        }
        for (name, entry) in &mut self.entries {
            // Not listed is not unloaded: the server does not list what has lost its folder.
            let not_in_memory = listed
                .get(name.as_str())
                .is_some_and(|s| *s == "UNAVAILABLE");
            // Nor is a model that is only not back yet.
            let ours = entry.putting_out || entry.put_out;
            let settled = entry.calls == 0 && entry.stage == Stage::Nothing && !ours;
            if entry.wanted && not_in_memory && entry.changed < asked && settled {
                entry.gone.get_or_insert(asked);
            }
            let state = listed.get(name.as_str());
            let loads = state.is_some_and(|s| matches!(*s, "UNKNOWN" | "LOADING"));
            entry.left = entry.left.filter(|at| {
                loads && asked.saturating_sub(*at) <= LONGEST || asked <= *at + SETTLES
            });
        }
        self.entries.retain(|_, e| e.is_of_use());
        let told = std::mem::take(&mut self.told);
        self.adopt(told, asked);
    }

    /// What an agent lists as loaded, which counts only where this process has never known of a model
    /// in memory and the server has none at all: then server and shim have been lost together. Where it
    /// has some, the missing ones may be those that the agent has put out to make room. Returns how many are to
    /// be looked at from now on; where the index is still to come they are taken with it.
    pub fn listed(&mut self, names: Vec<String>, now: Duration) -> usize {
        match self.found {
            None => {
                self.told = names;
                0
            }
            Some(_) => self.adopt(names, now),
        }
    }

    fn adopt(&mut self, names: Vec<String>, now: Duration) -> usize {
        if self.knows || self.found != Some(false) {
            return 0;
        }
        let mut taken = 0;
        let unloaded = std::mem::take(&mut self.unloaded);
        for name in names.into_iter().filter(|name| !unloaded.contains(name)) {
            let Some(entry) = self.entry(&name).filter(|e| !e.wanted && e.calls == 0) else {
                continue;
            };
            entry.wanted = true;
            entry.since = now;
            entry.stage = Stage::Due { at: now };
            taken += 1;
        }
        self.knows |= taken > 0;
        taken
    }

    /// A caller's load passes. Returns what [`Book::is_overtaken`] takes.
    pub fn load_begins(&mut self, name: &str, now: Duration) -> u64 {
        self.knows = true;
        let Some(entry) = self.entry(name) else {
            return 0;
        };
        entry.calls += 1;
        entry.changed = now;
        entry.unloads
    }

    /// Whether an unload has passed since a load began that is still under way: the server carries
    /// it out behind the load, so its success puts nothing into memory.
    pub fn is_overtaken(&self, name: &str, load: u64) -> bool {
        self.entries.get(name).is_some_and(|e| e.unloads != load)
    }

    /// It has ended: with what was loaded, or `None` where it failed or how it ended is not known.
    pub fn load_ended(&mut self, name: &str, loaded: Option<Loaded>, now: Duration) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        entry.calls = entry.calls.saturating_sub(1);
        entry.changed = now;
        if loaded.is_some() {
            entry.wanted = true;
            entry.since = now;
            entry.gone = None;
            entry.put_out = false;
            entry.loaded = loaded;
            entry.left = None;
            entry.failures = 0;
            entry.error = None;
            if entry.stage != Stage::Running {
                entry.stage = Stage::Nothing;
            }
        }
    }

    /// It has ended for the shim only: its caller has gone, and the server goes on with it.
    pub fn load_left(&mut self, name: &str, now: Duration) {
        self.load_ended(name, None, now);
        if let Some(entry) = self.entries.get_mut(name) {
            entry.left = Some(now);
        }
    }

    /// A caller's unload passes: from now on nobody wants the model in memory.
    pub fn unload_begins(&mut self, name: &str, now: Duration) {
        if !self.knows && self.unloaded.len() < MOST && name.len() <= LONGEST_NAME {
            self.unloaded.insert(name.to_string());
        }
        if let Some(entry) = self.entry(name) {
            entry.calls += 1;
            entry.unloads += 1;
            entry.changed = now;
            entry.wanted = false;
            entry.loaded = None;
            entry.worked = None;
            entry.failures = 0;
            entry.error = None;
            if entry.stage != Stage::Running {
                entry.stage = Stage::Nothing;
            }
        }
    }

    /// It has ended.
    pub fn unload_ended(&mut self, name: &str, now: Duration) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.calls = entry.calls.saturating_sub(1);
            entry.changed = now;
            // The server carries it out behind the load.
            entry.left = None;
        }
    }

    /// A request for the model was seen.
    pub fn used(&mut self, name: &str, now: Duration) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.used = Some(now);
        }
    }

    /// An inference of the model was seen to succeed.
    pub fn worked(&mut self, name: &str, now: Duration) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.worked = Some(now);
        }
    }

    /// The server was seen not to have the model after all: from now on nothing is believed of
    /// what is in its worker's hands.
    pub fn missed(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.loaded = None;
            entry.worked = None;
        }
    }

    /// As [`Book::missed`], of every model: a worker has ended.
    pub fn worker_ended(&mut self) {
        for entry in self.entries.values_mut() {
            entry.loaded = None;
            entry.worked = None;
        }
    }

    /// An agent that starts has asked for the index: it unloads what is listed, and knows nothing
    /// of what is not. So what is still to be loaded is not wanted any more.
    pub fn agent_starts(&mut self) {
        self.told.clear();
        for entry in self.entries.values_mut() {
            if matches!(entry.stage, Stage::Due { .. } | Stage::GivenUp) || entry.put_out {
                entry.wanted = false;
                entry.stage = Stage::Nothing;
                entry.loaded = None;
            }
        }
    }

    /// The server may be another process than before; the old one was last known alive at
    /// `alive`. Everything that belongs in memory is to be looked at.
    pub fn restarted(&mut self, alive: Duration, now: Duration) {
        for entry in self.entries.values_mut() {
            // What was gone before the restart was not taken by it.
            if entry.gone.is_some_and(|gone| gone <= alive) {
                entry.wanted = false;
            }
            entry.gone = None;
            entry.loaded = None;
            entry.worked = None;
            entry.left = None;
            entry.again = entry.stage == Stage::Running;
            if entry.wanted && entry.stage == Stage::Nothing {
                entry.stage = Stage::Due { at: now };
            }
        }
        self.entries.retain(|_, e| e.is_of_use());
    }

    /// The next model to look at: those that have not failed first, of these the most recently
    /// used, then the most recently loaded. It counts as running until [`Book::ended`] or one of
    /// its kind.
    pub fn next(&mut self, now: Duration) -> Option<String> {
        let place = self.place();
        let (name, entry) = self
            .entries
            .iter_mut()
            .filter(|(_, e)| e.may_start(place).is_some_and(|at| at <= now))
            .max_by_key(|(name, e)| {
                let name = std::cmp::Reverse((*name).clone());
                (e.failures == 0, e.used, e.since, name)
            })?;
        entry.starts(now);
        Some(name.clone())
    }

    /// From when on something may run beside what does.
    fn place(&self) -> Place {
        let mut place = Place {
            full: self
                .entries
                .values()
                .filter(|e| e.stage == Stage::Running)
                .count()
                >= AT_ONCE,
            ..Place::default()
        };
        for e in self.entries.values() {
            let runs = e.stage == Stage::Running;
            let (alone, since) = match runs {
                true => (e.alone, e.started),
                // Its owner loads it, of which nothing keeps him.
                false => (e.failures > 0, e.changed),
            };
            if runs {
                place.failed = place.failed.max(since + APART);
            }
            // A load whose caller has gone goes on in the server.
            if alone && (runs || e.calls > 0 || e.left.is_some()) {
                place.failed = place.failed.max(since + APART);
                place.unfailed = place.unfailed.max(since + ALONE);
            }
        }
        place
    }

    /// Takes a model that is to be unloaded and loaded again: it counts as running, as after
    /// [`Book::next`]. False where nobody wants it, its owner or the shim is at it already, or
    /// nothing may run beside what does.
    pub fn takes(&mut self, name: &str, now: Duration) -> bool {
        let place = self.place();
        if place.full || now < place.unfailed {
            return false;
        }
        let entry = self.entries.get_mut(name);
        let free = |e: &&mut Entry| e.wanted && !e.is_at_work() && e.stage == Stage::Nothing;
        let Some(entry) = entry.filter(free) else {
            return false;
        };
        entry.starts(now);
        true
    }

    /// When [`Book::next`] may have something that it has not now; `None` where nothing is due.
    pub fn due(&self) -> Option<Duration> {
        // The end of what runs tells of itself.
        let place = self.place();
        let entries = self.entries.values();
        entries.filter_map(|e| e.may_start(place)).min()
    }

    /// Whether a model that runs may now be loaded: it is still wanted, and no call of its owner
    /// is under way.
    pub fn may_load(&self, name: &str) -> bool {
        let entry = self.entries.get(name);
        entry.is_some_and(|e| e.wanted && e.calls == 0 && e.stage == Stage::Running)
    }

    /// What runs was found READY, whoever has loaded it.
    pub fn found(&mut self, name: &str, now: Duration) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.failures = 0;
            entry.error = None;
        }
        self.ended(name, now);
    }

    /// What runs is no longer to be loaded.
    pub fn ended(&mut self, name: &str, now: Duration) {
        if let Some(entry) = self.entries.get_mut(name) {
            // An index from before may still show what has been unloaded meanwhile.
            entry.changed = now;
            entry.stage = match std::mem::take(&mut entry.again) && entry.wanted {
                true => Stage::Due { at: now },
                false => Stage::Nothing,
            };
        }
    }

    /// What runs cannot be judged yet: the server loads it already, does not answer, or has no
    /// room. No try is lost by it.
    pub fn not_yet(&mut self, name: &str, now: Duration) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.stage = match entry.wanted {
                true => Stage::Due {
                    at: now + LOOK_AGAIN,
                },
                false => Stage::Nothing,
            };
        }
    }

    /// The load of what runs has ended.
    pub fn load_done(
        &mut self,
        name: &str,
        outcome: Result<Loaded, String>,
        now: Duration,
    ) -> Then {
        let Some(entry) = self.entries.get_mut(name) else {
            return Then::Dropped;
        };
        if outcome.is_ok() && !entry.wanted {
            return match entry.calls {
                0 => Then::Undo,
                _ => Then::Wait,
            };
        }
        entry.stage = Stage::Nothing;
        if outcome.is_err() {
            entry.again = false;
        }
        match outcome {
            Ok(_) if std::mem::take(&mut entry.again) => {
                entry.stage = Stage::Due { at: now };
                Then::Later
            }
            Ok(loaded) => {
                entry.changed = now;
                entry.put_out = false;
                entry.loaded = Some(loaded);
                entry.failures = 0;
                entry.error = None;
                Then::Restored
            }
            Err(_) if !entry.wanted => Then::Dropped,
            Err(why) => {
                entry.failures += 1;
                entry.error = Some(why);
                if entry.failures >= TRIES {
                    entry.stage = Stage::GivenUp;
                    return Then::GivenUp;
                }
                let pause = BACK_OFF * 4u32.pow(entry.failures - 1);
                entry.stage = Stage::Due { at: now + pause };
                Then::Later
            }
        }
    }

    /// What is to become of a model that was loaded while its owner unloaded it; `None` while a
    /// call of its owner's is still under way.
    pub fn settled(&mut self, name: &str) -> Option<Then> {
        let Some(entry) = self.entries.get_mut(name) else {
            return Some(Then::Dropped);
        };
        match (entry.calls, entry.wanted) {
            (0, false) => Some(Then::Undo),
            (0, true) => Some(Then::Dropped),
            _ => None,
        }
    }

    /// Whether a load of the model would be needless as far as is known here: it was loaded from
    /// these very files, and was seen to work not long ago. A model that its worker has lost is
    /// listed as READY too, so trust ends.
    pub fn is_fresh(&self, name: &str, files: &Fingerprint, now: Duration) -> bool {
        let Some(entry) = self.entries.get(name).filter(|e| e.wanted && e.calls == 0) else {
            return false;
        };
        let Some(loaded) = &entry.loaded else {
            return false;
        };
        let proven = entry.worked.map_or(loaded.at, |at| at.max(loaded.at));
        let trust = TRUST.max(loaded.took * TRUST_IN_LOADS);
        loaded.files.as_ref() == Some(files) && now.saturating_sub(proven) <= trust
    }

    /// Whether the shim is loading or unloading the model just now.
    pub fn is_running(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(Entry::is_shims)
    }

    /// Callers' loads and unloads of the model under way, and the shim's own.
    pub fn calls(&self, name: &str) -> usize {
        let entry = self.entries.get(name);
        entry.map_or(0, |e| e.calls + usize::from(e.is_shims()))
    }

    /// Whether a load of the model goes on in the server although its caller has gone.
    pub fn is_left(&self, name: &str, now: Duration) -> bool {
        self.entries.get(name).is_some_and(|e| e.is_left(now))
    }

    /// Whether that is so of any.
    pub fn any_left(&self, now: Duration) -> bool {
        self.entries.values().any(|e| e.is_left(now))
    }

    /// Whether any model is being loaded or unloaded.
    pub fn is_changing(&self, now: Duration) -> bool {
        let changes = |e: &Entry| e.is_at_work() || e.is_left(now);
        self.entries.values().any(changes)
    }

    /// How many models belong in memory.
    pub fn wanted(&self) -> usize {
        self.entries.values().filter(|e| e.wanted).count()
    }

    /// Everything that is being restored, or could not be.
    pub fn restoring(&self) -> Vec<Restoring> {
        self.entries
            .iter()
            .filter(|(_, e)| e.stage != Stage::Nothing)
            .map(|(name, e)| Restoring {
                model: name.clone(),
                stage: e.stage.clone(),
                failures: e.failures,
                error: e.error.clone(),
            })
            .collect()
    }

    /// The entry of a model, made where there is room.
    fn entry(&mut self, name: &str) -> Option<&mut Entry> {
        if name.len() > LONGEST_NAME {
            return None;
        }
        if self.entries.len() >= MOST && !self.entries.contains_key(name) {
            return None;
        }
        Some(self.entries.entry(name.to_string()).or_default())
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
