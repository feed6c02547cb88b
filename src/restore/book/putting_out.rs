//! Unloading a model whose load was cut off, which only frees the server of it: what its owner wants
//! stays as it is, and no load of his overtakes the unload.

use std::time::Duration;

use super::Book;

impl Book {
    /// Takes a model that may have to be unloaded: until [`Book::put_out_ended`] nobody else begins
    /// with it. False where its owner or the shim is at it already.
    pub fn put_out_begins(&mut self, name: &str, now: Duration) -> bool {
        let Some(entry) = self.entry(name) else {
            return false;
        };
        let free = !entry.is_at_work() && !entry.is_left(now);
        entry.putting_out |= free;
        free
    }

    /// Whether its owner is still not at it.
    pub fn may_put_out(&self, name: &str) -> bool {
        let entry = self.entries.get(name);
        entry.is_some_and(|e| e.putting_out && e.calls == 0)
    }

    /// It is over: whether an unload was sent, however that went.
    pub fn put_out_ended(&mut self, name: &str, unloaded: bool, now: Duration) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.putting_out = false;
            if unloaded {
                entry.put_out = true;
                entry.loaded = None;
                entry.worked = None;
                entry.changed = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::Loaded;

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn loaded(book: &mut Book, at: u64) {
        book.load_begins("m", s(at));
        let loaded = Loaded {
            at: s(at),
            took: s(0),
            files: None,
        };
        book.load_ended("m", Some(loaded), s(at));
    }

    fn index(book: &mut Book, state: &str, asked: u64) {
        book.index([("m", state)].into_iter(), s(asked));
    }

    #[test]
    fn it_counts_as_a_change_and_nobody_else_begins_beside_it() {
        let mut book = Book::default();
        assert!(book.put_out_begins("m", s(1)) && !book.put_out_begins("m", s(1)));
        assert!(book.is_running("m") && book.is_changing(s(1)));
        assert_eq!((book.calls("m"), book.may_put_out("m")), (1, true));
        book.unload_begins("m", s(2));
        assert!(!book.may_put_out("m"), "its owner is at it");
        book.unload_ended("m", s(3));
        book.put_out_ended("m", true, s(4));
        assert!(!book.is_running("m") && !book.is_changing(s(4)));

        loaded(&mut book, 5);
        book.load_begins("m", s(6));
        assert!(!book.put_out_begins("m", s(6)));
        book.load_left("m", s(7));
        assert!(
            !book.put_out_begins("m", s(7)),
            "the server goes on with it"
        );
    }

    #[test]
    fn nothing_is_restored_beside_it_and_what_is_due_is_after_it() {
        let mut book = Book::default();
        loaded(&mut book, 1);
        book.restarted(s(2), s(3));
        assert!(book.put_out_begins("m", s(4)));
        assert_eq!((book.next(s(4)), book.due()), (None, None));
        assert!(!book.takes("m", s(4)));
        book.put_out_ended("m", true, s(5));
        assert_eq!(book.next(s(5)).as_deref(), Some("m"));
        assert!(!book.put_out_begins("m", s(6)), "it is being restored");
    }

    #[test]
    fn what_the_owner_wants_stays_as_it_is() {
        let mut book = Book::default();
        loaded(&mut book, 1);
        assert!(book.put_out_begins("m", s(10)));
        index(&mut book, "UNAVAILABLE", 11);
        book.put_out_ended("m", true, s(12));
        index(&mut book, "UNAVAILABLE", 20);
        book.restarted(s(30), s(31));
        assert_eq!((book.wanted(), book.next(s(31)).is_some()), (1, true));

        // Loaded again, and then unloaded by somebody who does not pass here.
        let mut book = Book::default();
        loaded(&mut book, 1);
        book.put_out_begins("m", s(10));
        book.put_out_ended("m", true, s(12));
        index(&mut book, "READY", 15);
        index(&mut book, "UNAVAILABLE", 20);
        book.restarted(s(30), s(31));
        assert_eq!(book.wanted(), 0);

        // An agent that starts does not know of it.
        let mut book = Book::default();
        loaded(&mut book, 1);
        book.put_out_begins("m", s(10));
        book.put_out_ended("m", true, s(12));
        book.agent_starts();
        assert_eq!(book.wanted(), 0);
    }
}
