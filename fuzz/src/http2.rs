//! The start of a connection: what `opening` makes of a caller's first bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agent_shim::relay::frames::PREFACE;
use agent_shim::relay::opening::open;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::frames::{frames, open_calls, passed};

const SETTINGS_ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
}

/// One byte says how much had been read before; the rest is what follows the preface.
pub fn check(input: &[u8]) {
    let Some((&before, stream)) = input.split_first() else {
        return;
    };
    // All of it fits into the socket's buffer, so that one thread can do both sides.
    let stream = &stream[..stream.len().min(64 * 1024)];
    RUNTIME.with(|runtime| runtime.block_on(opened(usize::from(before) * 4, stream)));
}

async fn opened(before: usize, stream: &[u8]) {
    let (mut far, near) = UnixStream::pair().expect("a pair of sockets");
    near.set_nonblocking(true).expect("a socket");
    far.set_nonblocking(true).expect("a socket");
    let (before, after) = stream.split_at(before.min(stream.len()));
    far.write_all(after).expect("there is room");
    far.shutdown(Shutdown::Write).expect("it is open");
    // A pair of Unix sockets takes no port, and stays readable after a close.
    let near = std::net::TcpStream::from(OwnedFd::from(near));
    let near = TcpStream::from_std(near).expect("it does not block");
    let before = Bytes::from([PREFACE, before].concat());
    // No limit is met: the caller has said all, and has closed.
    let opening = timeout(
        Duration::from_secs(60),
        open(near, before, Duration::from_secs(30)),
    );
    let Ok(mut opening) = opening.await.expect("the caller has closed") else {
        return;
    };
    let mut rest = Vec::new();
    let _ = opening.caller.read_to_end(&mut rest).await;
    assert!(stream.ends_with(&rest));
    let heard = &stream[..stream.len() - rest.len()];

    // The server gets all that was heard, but pings and the answer to the shim's own SETTINGS.
    let kept = opening
        .to_server
        .strip_prefix(PREFACE)
        .expect("the preface is first");
    let (mut all, asked) = passed(heard, 1, true);
    let (whole, tail) = frames(heard);
    all.truncate(all.len() - tail.len());
    assert_eq!(kept, all, "what the server gets first");
    let mut total = kept.to_vec();
    total.extend_from_slice(&opening.from_caller.pass(&rest, |_| {}, |_| {}));
    total.extend(opening.from_caller.rest());
    assert_eq!(
        total,
        passed(stream, 1, true).0,
        "what the server gets in all"
    );
    assert!(
        asked.ends_with(&opening.pings),
        "pings that are still to be answered"
    );
    assert_eq!(
        opening.calls.open(),
        open_calls(whole.iter().map(|f| (true, f)))
    );

    // What the caller was told is whole frames, and the server does not say it again.
    let mut said = Vec::new();
    match far.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) => assert!(
            matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::ConnectionReset
            ),
            "{error}"
        ),
    }
    said.extend_from_slice(&opening.to_caller);
    let (told, tail) = frames(&said);
    assert!(tail.is_empty() && told.last().is_none_or(|f| f.bytes.len() == 9 + f.length));
    let settings = told
        .iter()
        .filter(|f| f.kind == 4 && f.flags & 1 == 0)
        .count();
    assert_eq!(settings, 1, "SETTINGS are said once");
    let acks = told.iter().filter(|f| f.is_settings_ack()).count();
    for _ in 0..acks {
        let passed = opening
            .from_server
            .pass(&SETTINGS_ACK, |_| {}, |_| {})
            .len();
        assert_eq!(passed, 0, "an acknowledgement that the caller has had");
    }
    let passed = opening
        .from_server
        .pass(&SETTINGS_ACK, |_| {}, |_| {})
        .len();
    assert_eq!(passed, SETTINGS_ACK.len());
    // No flood of answers is kept.
    assert!(opening.to_server.len() + opening.to_caller.len() <= 3 * stream.len() + 4096);
}
