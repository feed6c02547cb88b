//! Turns of tasks on the one thread.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

/// Has the task that returns `Pending` now polled again, after all others that are ready and after
/// a look at the sockets. A waker that is woken in the task's own turn lets the others pass, too, but
/// the runtime looks at the sockets only with every 61st turn then: while one connection is never at
/// rest, who has just called would wait for some sixty of its turns, and again with each piece.
pub(crate) fn pass<T>(cx: &mut Context<'_>) -> Poll<T> {
    let first = pin!(tokio::task::yield_now()).poll(cx);
    debug_assert!(first.is_pending());
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::AsyncReadExt;

    /// Turns that a task which is never at rest has while a byte goes to and fro.
    fn turns(again: fn(&mut Context<'_>)) -> usize {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let (mut here, there) = tokio::net::UnixStream::pair().unwrap();
            let there = there.into_std().unwrap();
            let turns = Arc::new(AtomicUsize::new(0));
            let counted = turns.clone();
            let busy = tokio::spawn(std::future::poll_fn(move |cx| {
                counted.fetch_add(1, Ordering::Relaxed);
                again(cx);
                Poll::<()>::Pending
            }));
            for _ in 0..10 {
                // Nothing is there yet: the socket has to be looked at.
                let mut byte = [0];
                let read = here.read(&mut byte);
                let say = async {
                    tokio::task::yield_now().await;
                    std::io::Write::write_all(&mut &there, b"x").unwrap();
                };
                let (read, ()) = tokio::join!(read, say);
                read.unwrap();
            }
            busy.abort();
            turns.load(Ordering::Relaxed)
        })
    }

    #[test]
    fn the_sockets_are_looked_at_after_each_turn() {
        let passed = turns(|cx| _ = pass::<()>(cx));
        assert!(passed < 50, "{passed}");
        let woken = turns(|cx| cx.waker().wake_by_ref());
        assert!(woken > 100, "or there is no need for it: {woken}");
    }
}
