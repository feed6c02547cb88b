//! File descriptors: how many there may be, and how many callers that makes.
//!
//! Every caller costs two, his own connection and the server's. Callers get no more places than
//! leave room for probes, for kubelet's questions and for the way to the scheduler; who comes
//! later waits in the kernel's queue. So a lack of descriptors reaches new callers alone.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Descriptors that are not the callers': listeners, logs, probes, the admin port's connections.
const RESERVED: u64 = 384;
/// Where the limit is small: this part of it.
const RESERVED_PART: u64 = 3;
/// More than any machine holds; a semaphore has a bound of its own.
const MOST: u64 = 1 << 20;

/// A place for one caller's connection.
pub type Place = OwnedSemaphorePermit;

/// The limit on descriptors of this process now; without one, as good as none.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the soft limit to the hard one, as Go's programs do: container runtimes leave it at 1024
/// for the sake of programs that use `select`. What cannot be raised stays.
pub fn raise() {
    let mut both = getrlimit(Resource::Nofile);
    if both.current != both.maximum {
        both.current = both.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, both) {
            tracing::info!(%error, "cannot raise the limit on descriptors");
        }
    }
}

/// Whether an error says that there are no descriptors: of the process, or of the machine.
pub fn is_short(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

/// How many callers' connections a limit allows at once; at least 1.
pub fn places(limit: u64) -> usize {
    let reserved = RESERVED.min(limit / RESERVED_PART);
    let places = ((limit - reserved) / 2).clamp(1, MOST);
    usize::try_from(places).unwrap_or(usize::MAX)
}

/// The places of both relays together. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Places {
    all: usize,
    free: Arc<Semaphore>,
    /// Since when somebody has waited for one.
    short: Arc<Mutex<Option<Instant>>>,
}

impl Places {
    /// As many as a limit on descriptors allows.
    pub fn new(limit: u64) -> Self {
        let all = places(limit);
        Places {
            all,
            free: Arc::new(Semaphore::new(all)),
            short: Arc::default(),
        }
    }

    /// How many there are.
    pub fn all(&self) -> usize {
        self.all
    }

    /// For how long all have been taken; `None` where one is free.
    pub fn short(&self) -> Option<Duration> {
        let mut short = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        if self.free.available_permits() > 0 {
            *short = None;
            return None;
        }
        Some(short.get_or_insert_with(Instant::now).elapsed())
    }

    /// Accepts one connection, once there is a place for it. Cancel safe: a place that was waited
    /// for is given back.
    pub async fn accept(
        &self,
        listener: &TcpListener,
    ) -> (Place, io::Result<(TcpStream, SocketAddr)>) {
        if self.free.available_permits() == 0 && self.short().is_some_and(|d| d < JUST) {
            tracing::warn!(
                places = self.all,
                "no descriptors for more callers: new connections wait until others end"
            );
        }
        let place = self.free.clone().acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        (place, listener.accept().await)
    }
}

/// What counts as the beginning of a want, so that it is logged once or twice and not for each end.
const JUST: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_leave_room_for_probes_and_questions() {
        for (limit, expected) in [
            (0, 1),
            (64, 21),
            (1024, 341),
            (4096, 1856),
            (1 << 20, 524_096),
        ] {
            assert_eq!(places(limit), expected, "{limit}");
        }
        assert_eq!(places(u64::MAX), 1 << 20);
        for limit in 3..5000 {
            assert!(2 * places(limit) as u64 <= limit.max(2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_want_begins_when_all_are_taken_and_ends_with_the_first_that_is_free() {
        let places = Places::new(6);
        assert_eq!((places.all(), places.short()), (2, None));
        let all = [(); 2].map(|()| places.free.clone().try_acquire_owned().unwrap());
        assert_eq!(places.short(), Some(Duration::ZERO));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(places.short(), Some(Duration::from_secs(3)));
        drop(all);
        assert_eq!(places.short(), None);
    }

    #[test]
    fn only_a_lack_of_descriptors_is_one() {
        assert!(is_short(&io::Error::from_raw_os_error(24)));
        assert!(is_short(&io::Error::from_raw_os_error(23)));
        assert!(!is_short(&io::Error::from(
            io::ErrorKind::ConnectionRefused
        )));
    }
}
