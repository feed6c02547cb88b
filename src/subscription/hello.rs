//! Listens for the first word of the other side of a new connection.
//!
//! With TLS 1.3 our side of the handshake is done before the other side has judged our
//! certificate, and a request for HTTP/2 is sent before anybody has answered: a connection counts
//! only when the server's first frame has come. Passes every byte on and keeps none.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// The head of a frame.
const HEAD: usize = 9;
/// The type of SETTINGS, the first frame of every HTTP/2 server.
const SETTINGS: u8 = 4;

/// What was heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Heard {
    /// Nothing, or too little.
    #[default]
    Nothing,
    /// The first frame of HTTP/2.
    Settings,
    /// A record of TLS: it was asked in plain text.
    Tls,
    /// Something else.
    Else,
}

/// A connection that tells what comes first on it.
#[derive(Debug)]
pub struct Listening<S> {
    inner: S,
    first: [u8; HEAD],
    length: usize,
    heard: watch::Sender<Heard>,
}

impl<S> Listening<S> {
    /// The connection, and what is heard on it.
    pub fn new(inner: S) -> (Self, watch::Receiver<Heard>) {
        let (heard, receiver) = watch::channel(Heard::Nothing);
        let first = [0; HEAD];
        let listening = Listening {
            inner,
            first,
            length: 0,
            heard,
        };
        (listening, receiver)
    }

    fn take(&mut self, new: &[u8]) {
        if self.length == HEAD {
            return;
        }
        let taken = new.len().min(HEAD - self.length);
        self.first[self.length..self.length + taken].copy_from_slice(&new[..taken]);
        self.length += taken;
        let heard = judge(&self.first[..self.length]);
        if heard != Heard::Nothing {
            self.length = HEAD;
            self.heard.send_replace(heard);
        }
    }
}

fn judge(first: &[u8]) -> Heard {
    match first {
        // An alert, or the start of a handshake; as a frame it would be far too long.
        [0x15 | 0x16, 0x03, ..] => Heard::Tls,
        [_, _, _, SETTINGS, _, _, _, _, _] => Heard::Settings,
        [_, _, _, _, _, _, _, _, _] => Heard::Else,
        _ => Heard::Nothing,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.take(&buffer.filled()[before..]);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        all: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_are_judged_as_soon_as_they_can_be_and_never_again() {
        let (mut stream, heard) = Listening::new(());
        stream.take(&[0, 0, 18, 4]);
        assert_eq!(*heard.borrow(), Heard::Nothing);
        stream.take(&[0, 0, 0, 0, 0, 9, 9]);
        assert_eq!(*heard.borrow(), Heard::Settings);
        stream.take(b"\x15\x03\x01");
        assert_eq!(*heard.borrow(), Heard::Settings);
        let (mut stream, heard) = Listening::new(());
        stream.take(b"\x15\x03\x01");
        assert_eq!(*heard.borrow(), Heard::Tls);
        let (mut stream, heard) = Listening::new(());
        stream.take(b"HTTP/1.1 400 Bad Request");
        assert_eq!(*heard.borrow(), Heard::Else);
    }
}
