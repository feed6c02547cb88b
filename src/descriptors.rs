//! File descriptors: how many there may be, and how many callers that makes.
//!
//! Every caller costs two, his own connection and the server's. The relays have no more places
//! (see [`crate::places`]) than leave room for probes, for kubelet's questions and for the way to
//! the scheduler. So a lack of descriptors reaches callers alone, and the idle ones first.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors that are not the callers': listeners, logs, probes, the admin port's connections.
const RESERVED: u64 = 384;
/// Where the limit is small: this part of it.
const RESERVED_PART: u64 = 3;

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
    let places = ((limit - reserved) / 2).max(1);
    usize::try_from(places).unwrap_or(usize::MAX)
}

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
        for limit in 3..5000 {
            assert!(2 * places(limit) as u64 <= limit.max(2));
        }
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
