//! gRPC messages in an HTTP/2 body: five bytes of prefix, then the message. Pure.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A message that is longer is passed on as it comes, unread: what is read here is small, and a
/// length out of garbage must not make the shim wait, or grow, for ever.
pub const INSPECT_LIMIT: usize = 16 * 1024 * 1024;

const PREFIX: usize = 5;

/// One message with its prefix, ready to be sent.
pub fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX + message.len());
    out.put_u8(0);
    // A message that came in one frame, and was edited by a few bytes, fits into one.
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

/// What the body of a unary request holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Single {
    /// One plain message.
    Plain(Bytes),
    /// One compressed message.
    Compressed,
    /// None, several, or something else.
    Broken,
}

/// Reads the body of a unary request.
pub fn single(body: &Bytes) -> Single {
    let Some((flag, length)) = prefix(body) else {
        return Single::Broken;
    };
    match flag {
        _ if body.len() - PREFIX != length => Single::Broken,
        0 => Single::Plain(body.slice(PREFIX..)),
        _ => Single::Compressed,
    }
}

/// A part of a stream, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// One plain message, complete, with its prefix.
    Plain(Bytes),
    /// One compressed message, or the beginning of an oversized one.
    Opaque(Bytes, Why),
    /// More of what came before.
    More(Bytes),
}

/// Why a message is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is compressed.
    Compressed,
    /// It is longer than [`INSPECT_LIMIT`].
    Large,
}

/// The message of a complete frame.
pub fn message(frame: &Bytes) -> Bytes {
    frame.slice(PREFIX.min(frame.len())..)
}

/// Cuts a stream into messages. Every byte that goes in comes out again, in order.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: BytesMut,
    opaque_left: usize,
}

impl Deframer {
    /// Takes what has arrived.
    pub fn push(&mut self, data: impl Buf) {
        self.buffer.put(data);
    }

    /// The next piece, where there is a complete one.
    pub fn piece(&mut self) -> Option<Piece> {
        if self.opaque_left > 0 {
            if self.buffer.is_empty() {
                return None;
            }
            let n = self.opaque_left.min(self.buffer.len());
            self.opaque_left -= n;
            return Some(Piece::More(self.buffer.split_to(n).freeze()));
        }
        let (flag, length) = prefix(&self.buffer)?;
        if length > INSPECT_LIMIT {
            self.opaque_left = length;
            let head = self.buffer.split_to(PREFIX).freeze();
            return Some(Piece::Opaque(head, Why::Large));
        }
        if self.buffer.len() < PREFIX + length {
            return None;
        }
        let frame = self.buffer.split_to(PREFIX + length).freeze();
        Some(match flag {
            0 => Piece::Plain(frame),
            _ => Piece::Opaque(frame, Why::Compressed),
        })
    }

    /// What is left of a stream that ended within a message.
    pub fn rest(&mut self) -> Option<Bytes> {
        let rest = self.buffer.split().freeze();
        (!rest.is_empty()).then_some(rest)
    }
}

fn prefix(bytes: &[u8]) -> Option<(u8, usize)> {
    let (flag, length) = bytes.get(..PREFIX)?.split_first()?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    Some((*flag, length as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_unary_body_is_one_message_or_is_left_alone() {
        assert_eq!(single(&framed(b"abc")), Single::Plain(Bytes::from("abc")));
        assert_eq!(single(&framed(b"")), Single::Plain(Bytes::new()));
        let compressed = Bytes::from_static(&[1, 0, 0, 0, 1, 9]);
        assert_eq!(single(&compressed), Single::Compressed);
        for broken in [
            &b""[..],
            &[0, 0, 0],
            &[0, 0, 0, 0, 9, 1],
            &[0, 0, 0, 0, 0, 1],
        ] {
            assert_eq!(single(&Bytes::copy_from_slice(broken)), Single::Broken);
        }
    }

    #[test]
    fn a_length_out_of_garbage_is_passed_on_without_waiting() {
        let mut deframer = Deframer::default();
        deframer.push(&b"HTTP/1.1 400"[..]);
        assert_eq!(
            deframer.piece(),
            Some(Piece::Opaque(Bytes::from("HTTP/"), Why::Large))
        );
        assert_eq!(deframer.piece(), Some(Piece::More(Bytes::from("1.1 400"))));
        assert_eq!(deframer.piece(), None);
    }

    proptest! {
        #[test]
        fn every_byte_comes_out_in_order_however_it_went_in(
            messages in prop::collection::vec((0u8..2, prop::collection::vec(any::<u8>(), 0..50)), 0..6),
            tail in prop::collection::vec(any::<u8>(), 0..4),
            cuts in prop::collection::vec(1usize..40, 1..20),
        ) {
            let mut stream = Vec::new();
            for (flag, message) in &messages {
                stream.push(*flag);
                stream.extend_from_slice(&(message.len() as u32).to_be_bytes());
                stream.extend_from_slice(message);
            }
            stream.extend_from_slice(&tail);
            let (mut deframer, mut out, mut plain) = (Deframer::default(), Vec::new(), Vec::new());
            let (mut at, mut cut) = (0, cuts.iter().cycle());
            while at < stream.len() {
                let end = (at + cut.next().unwrap()).min(stream.len());
                deframer.push(&stream[at..end]);
                at = end;
                while let Some(piece) = deframer.piece() {
                    match piece {
                        Piece::Plain(frame) => {
                            plain.push(message(&frame).to_vec());
                            out.extend_from_slice(&frame);
                        }
                        Piece::Opaque(bytes, _) | Piece::More(bytes) => out.extend_from_slice(&bytes),
                    }
                }
            }
            out.extend_from_slice(&deframer.rest().unwrap_or_default());
            prop_assert_eq!(out, stream);
            let expected: Vec<Vec<u8>> =
                messages.into_iter().filter(|(f, _)| *f == 0).map(|(_, m)| m).collect();
            prop_assert_eq!(plain, expected);
        }
    }
}
