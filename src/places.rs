//! How many connections a listener serves at once, and which one gives way to a new caller.
//!
//! Owns the count and the order; must not know what a connection carries. A caller is never turned
//! away: where every place is taken, the connection that has been idle for longest gives its place
//! up, one that has never called first, and where none is idle the new caller waits in the
//! listener's queue. How long that lasts is known, so that somebody can be told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// How long nobody gives way after its connection, or a call on it, has begun or ended: what a
/// caller says follows its connection by a moment. Longer, and a crowd would fill the queue.
const GRACE: Duration = Duration::from_millis(50);
/// Callers who find every place taken within such a time belong to one crowd.
const CROWD: Duration = Duration::from_secs(3);
/// A want of places that is shorter belongs to every crowd and is nobody's concern.
const SHORT: Duration = Duration::from_secs(1);

/// The places of one purpose. Cheap to clone: one for each of its listeners.
#[derive(Debug, Clone)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    cuts: Cuts,
    began: Instant,
    next: AtomicU64,
    taken: Mutex<HashMap<u64, Arc<State>>>,
    changed: Notify,
    short: Mutex<Short>,
    told: Mutex<Told>,
}

/// How many were told to give way together, and when.
#[derive(Debug, Default)]
struct Told {
    together: usize,
    at: Option<Instant>,
}

/// A want of places: somebody has come, and nobody may be made to give way.
#[derive(Debug, Default)]
struct Short {
    since: Option<Instant>,
    said: bool,
}

/// Which connections may be made to give way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cuts {
    /// Only one on which no call runs.
    Idle,
    /// Where none is idle, also one whose calls are the oldest, but never one that is kept.
    OldestCall,
}

#[derive(Debug)]
struct State {
    /// Calls under way.
    calls: AtomicUsize,
    /// Calls under way that must not be cut.
    kept: AtomicUsize,
    /// When a call last began or ended, in milliseconds since the places were made.
    since: AtomicU64,
    /// Whether it has ever called.
    called: AtomicBool,
    give_way: Notify,
    told: AtomicBool,
    ends: AtomicBool,
}

/// A place that is taken; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    id: u64,
    state: Arc<State>,
    places: Places,
}

/// Marks calls of a connection. Cheap to clone; holds no place.
#[derive(Debug, Clone)]
pub struct Marker(Arc<State>, Places);

/// A call under way, while it lives.
#[derive(Debug)]
pub struct Call {
    marker: Marker,
    kept: bool,
}

impl Places {
    /// So many places.
    pub fn new(limit: usize, cuts: Cuts) -> Self {
        Places(Arc::new(Shared {
            limit,
            cuts,
            began: Instant::now(),
            next: AtomicU64::new(0),
            taken: Mutex::default(),
            changed: Notify::new(),
            short: Mutex::default(),
            told: Mutex::default(),
        }))
    }

    /// How many there are.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// For how long new callers have had to wait, nobody being idle; `None` where none waits, and
    /// within the first second.
    pub fn short(&self) -> Option<Duration> {
        if self.taken().len() < self.0.limit {
            *self.want() = Short::default();
        }
        let lasted = self.want().since?.elapsed();
        (lasted >= SHORT).then_some(lasted)
    }

    /// Completes when there is room for one more; makes room where every place is taken.
    pub async fn room(&self) {
        let mut waited = false;
        loop {
            let changed = self.0.changed.notified();
            if self.has_room() {
                // Who had to wait may well be the first of many.
                if !waited {
                    *self.want() = Short::default();
                }
                return;
            }
            waited = true;
            self.say();
            tokio::select! {
                () = changed => {}
                // Somebody may have become old enough.
                () = sleep(GRACE / 5) => {}
            }
        }
    }

    /// Takes a place. Meant to be called after [`Places::room`]; it does not count itself out.
    pub fn take(&self) -> Place {
        let state = Arc::new(State {
            calls: AtomicUsize::new(0),
            kept: AtomicUsize::new(0),
            since: AtomicU64::new(self.now()),
            called: AtomicBool::new(false),
            give_way: Notify::new(),
            told: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.taken().insert(id, state.clone());
        Place {
            id,
            state,
            places: self.clone(),
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<u64, Arc<State>>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self) -> MutexGuard<'_, Short> {
        self.0.short.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once for each want.
    fn say(&self) {
        let mut want = self.want();
        let lasts = want.since.is_some_and(|since| since.elapsed() >= SHORT);
        if lasts && !want.said {
            want.said = true;
            tracing::warn!(
                places = self.0.limit,
                "every place is taken and none is idle: new connections wait until others end"
            );
        }
    }

    /// How many are to be told now: twice as many as a moment ago, of a sixteenth at most.
    fn together(&self) -> usize {
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = told.at.is_some_and(|at| at.elapsed() < CROWD);
        let most = (self.0.limit / 16).max(1);
        let together = if goes_on { 2 * told.together } else { 1 };
        *told = Told {
            together: together.min(most),
            at: Some(Instant::now()),
        };
        told.together
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn has_room(&self) -> bool {
        let taken = self.taken();
        // Who was told and has called meanwhile stays, and may not even listen any more.
        let leaves = |s: &State| s.told.load(Ordering::Relaxed) && may_give_way(s, self.0.cuts);
        let leaving = taken.values().any(|s| leaves(s));
        if taken.len() < self.0.limit {
            return true;
        }
        // Who was told leaves at once, or has a moment to take its leave. So one at a time is told,
        // and the longer callers keep coming the more.
        if leaving {
            return false;
        }
        let together = self.together();
        let told = oldest(&taken, self.0.cuts, self.now(), together);
        for one in &told {
            one.told.store(true, Ordering::Relaxed);
            one.give_way.notify_one();
        }
        if told.is_empty() {
            self.want().since.get_or_insert_with(Instant::now);
        } else {
            *self.want() = Short::default();
        }
        false
    }
}

fn is(count: &AtomicUsize) -> bool {
    count.load(Ordering::Relaxed) > 0
}

fn may_give_way(s: &State, cuts: Cuts) -> bool {
    !is(&s.kept) && (cuts == Cuts::OldestCall || !is(&s.calls))
}

/// Who give way, so many: the longest idle, and of those who have never called before all who have: a caller
/// between two calls would lose the next one, a silent one loses nothing. Else, where that is
/// allowed, the one with the oldest call: one, however many are asked for.
fn oldest(
    taken: &HashMap<u64, Arc<State>>,
    cuts: Cuts,
    now: u64,
    together: usize,
) -> Vec<&Arc<State>> {
    let is_new = |s: &State| {
        let age = now.saturating_sub(s.since.load(Ordering::Relaxed));
        u128::from(age) < GRACE.as_millis()
    };
    let mut all: Vec<_> = taken
        .iter()
        .filter(|(_, s)| may_give_way(s, cuts) && !is_new(s))
        .map(|(id, s)| {
            let called = s.called.load(Ordering::Relaxed);
            let since = s.since.load(Ordering::Relaxed);
            ((is(&s.calls), called, since, *id), s)
        })
        .collect();
    all.sort_unstable_by_key(|(key, _)| *key);
    let idle = all.iter().filter(|((busy, ..), _)| !busy).count();
    all.truncate(together.min(idle.max(1)));
    all.into_iter().map(|(_, state)| state).collect()
}

impl Place {
    /// Completes when this connection has to give way. A connection on which a call has begun
    /// meanwhile stays, where only idle ones may be cut.
    pub async fn wanted(&self) {
        loop {
            self.state.give_way.notified().await;
            let ends = self.state.ends.load(Ordering::Relaxed);
            let busy = self.places.0.cuts == Cuts::Idle && is(&self.state.calls);
            if (ends || !busy) && !is(&self.state.kept) {
                return;
            }
            self.state.told.store(false, Ordering::Relaxed);
            self.places.0.changed.notify_one();
        }
    }

    /// Completes when no call has run for so long, or for twice that at most.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let quiet = self.places.now() - self.state.since.load(Ordering::Relaxed);
            let left = limit.saturating_sub(Duration::from_millis(quiet));
            match is(&self.state.calls) {
                false if left.is_zero() => return,
                false => sleep(left).await,
                true => sleep(limit).await,
            }
        }
    }

    /// For those who know of calls.
    pub fn marker(&self) -> Marker {
        Marker(self.state.clone(), self.places.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().remove(&self.id);
        self.places.0.changed.notify_one();
    }
}

impl Marker {
    /// Counts a call until it is dropped.
    pub fn call(&self) -> Call {
        self.begins();
        Call {
            marker: self.clone(),
            kept: false,
        }
    }

    /// A call has begun; whoever says so says [`Marker::ends`] later.
    pub fn begins(&self) {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        self.0.since.store(self.1.now(), Ordering::Relaxed);
        self.0.called.store(true, Ordering::Relaxed);
    }

    /// A call that was said to have begun has ended.
    pub fn ends(&self) {
        self.0.since.store(self.1.now(), Ordering::Relaxed);
        if self.0.calls.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.1.0.changed.notify_one();
        }
    }

    /// Asks the connection to end, whatever runs on it, unless a call is kept.
    pub fn end(&self) {
        self.0.ends.store(true, Ordering::Relaxed);
        self.0.give_way.notify_one();
    }
}

impl Call {
    /// From now on the connection never gives way to another while this call runs.
    pub fn keep(&mut self) {
        if !self.kept {
            self.kept = true;
            self.marker.0.kept.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.kept {
            self.marker.0.kept.fetch_sub(1, Ordering::Relaxed);
        }
        self.marker.ends();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn stands(place: &Place) -> bool {
        tokio::time::timeout(Duration::from_millis(1), place.wanted())
            .await
            .is_err()
    }

    async fn has_room(places: &Places) -> bool {
        tokio::time::timeout(Duration::from_millis(1), places.room())
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_gives_way_and_nobody_before_all_places_are_taken() {
        let places = Places::new(2, Cuts::Idle);
        let (first, second) = (places.take(), places.take());
        assert!(stands(&first).await);
        let call = first.marker().call();
        sleep(Duration::from_millis(5)).await;
        drop(call);
        // Everybody is new.
        assert!(!has_room(&places).await);
        assert!(stands(&first).await && stands(&second).await);
        sleep(GRACE).await;
        // The first was busy later than the second.
        assert!(!has_room(&places).await);
        assert!(stands(&first).await && !stands(&second).await);
        drop(second);
        assert!(has_room(&places).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_between_two_calls_gives_way_after_all_who_have_never_called() {
        let places = Places::new(3, Cuts::Idle);
        let (caller, silent, newer) = (places.take(), places.take(), places.take());
        drop(caller.marker().call());
        sleep(GRACE).await;
        let _call = silent.marker().call();
        drop(newer);
        let newer = places.take();
        sleep(GRACE).await;
        // The newest is the only one that has never called.
        assert!(!has_room(&places).await);
        assert!(stands(&caller).await && !stands(&newer).await);
        drop(newer);
        let newest = places.take();
        // Nobody who is new gives way before the caller.
        assert!(!has_room(&places).await);
        assert!(stands(&newest).await && !stands(&caller).await);
    }

    #[tokio::test(start_paused = true)]
    async fn running_calls_are_cut_only_where_that_is_allowed_and_kept_ones_never() {
        for (cuts, gives_way) in [(Cuts::Idle, false), (Cuts::OldestCall, true)] {
            let places = Places::new(2, cuts);
            let (kept, busy) = (places.take(), places.take());
            let mut held = kept.marker().call();
            held.keep();
            let _call = busy.marker().call();
            sleep(GRACE).await;
            assert!(!has_room(&places).await);
            assert!(stands(&kept).await, "{cuts:?}");
            assert_eq!(!stands(&busy).await, gives_way, "{cuts:?}");
            // An ended call makes its connection one that may give way.
            drop(held);
            sleep(GRACE).await;
            if cuts == Cuts::Idle {
                assert!(!has_room(&places).await);
                assert!(!stands(&kept).await);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_longer_callers_keep_coming_the_more_give_way_together() {
        let places = Places::new(64, Cuts::Idle);
        let mut all: Vec<_> = (0..64).map(|_| places.take()).collect();
        sleep(GRACE).await;
        for expected in [1, 2, 4, 4] {
            assert!(!has_room(&places).await);
            // While these take their leave nobody else is told.
            sleep(CROWD / 2).await;
            assert!(!has_room(&places).await);
            for place in &all[..expected] {
                assert!(!stands(place).await);
            }
            assert!(stands(&all[expected]).await);
            all.drain(..expected);
            assert!(has_room(&places).await);
            all.extend((0..expected).map(|_| places.take()));
            sleep(GRACE).await;
        }
        sleep(CROWD).await;
        assert!(!has_room(&places).await);
        assert!(!stands(&all[0]).await && stands(&all[1]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_began_a_call_after_it_was_told_stays_and_another_is_told() {
        let places = Places::new(2, Cuts::Idle);
        let (first, second) = (places.take(), places.take());
        sleep(GRACE).await;
        assert!(!has_room(&places).await);
        let _call = first.marker().call();
        assert!(stands(&first).await);
        assert!(!has_room(&places).await);
        assert!(!stands(&second).await);
    }

    /// A carried gRPC connection listens no more once it has called.
    #[tokio::test(start_paused = true)]
    async fn who_began_a_call_and_listens_no_more_keeps_nobody_from_giving_way() {
        let places = Places::new(2, Cuts::Idle);
        let (first, second) = (places.take(), places.take());
        sleep(GRACE).await;
        assert!(!has_room(&places).await);
        let _call = first.marker().call();
        assert!(!has_room(&places).await);
        assert!(!stands(&second).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_want_is_one_when_nobody_is_idle_and_ends_with_the_first_free_place() {
        let places = Places::new(1, Cuts::Idle);
        let place = places.take();
        // Nobody has come.
        sleep(SHORT).await;
        assert_eq!(places.short(), None);
        let call = place.marker().call();
        let waiting = tokio::spawn({
            let places = places.clone();
            async move { places.room().await }
        });
        sleep(SHORT / 2).await;
        assert_eq!(places.short(), None);
        sleep(SHORT).await;
        assert!(places.short().is_some_and(|d| d < 2 * SHORT));
        // Idle, it is told to give way, and the want is over.
        drop(call);
        place.wanted().await;
        assert_eq!(places.short(), None);
        assert!(!waiting.is_finished());
        drop(place);
        waiting.await.unwrap();
        assert_eq!(places.short(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_is_counted_from_the_end_of_the_last_call() {
        let places = Places::new(1, Cuts::Idle);
        let place = places.take();
        let limit = Duration::from_secs(30);
        let call = place.marker().call();
        let began = Instant::now();
        tokio::select! {
            () = place.idle(limit) => panic!("a call runs"),
            () = sleep(Duration::from_secs(100)) => {}
        }
        drop(call);
        place.idle(limit).await;
        assert_eq!(began.elapsed(), Duration::from_secs(130));
    }
}
