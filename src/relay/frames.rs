//! HTTP/2 frames as a byte stream: where each begins and ends, and leaving out single ones.
//!
//! Payloads are skipped, never read. Pure.

use std::borrow::Cow;
use std::collections::HashSet;

/// The client's first bytes on every HTTP/2 connection.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's head.
pub const HEAD: usize = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const CONTINUATION: u8 = 0x9;

const FLAG_ACK: u8 = 0x1;
const FLAG_END_STREAM: u8 = 0x1;
const FLAG_END_HEADERS: u8 = 0x4;

/// GOAWAY, NO_ERROR, "every stream that you have opened is served": the caller finishes its
/// running calls here and takes a new connection for the next one.
pub const GOAWAY: [u8; HEAD + 8] = [
    0, 0, 8, 0x7, 0, 0, 0, 0, 0, // length 8, type GOAWAY, stream 0
    0x7f, 0xff, 0xff, 0xff, // last stream: all
    0, 0, 0, 0, // NO_ERROR
];

/// The head of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// Length of the payload.
    pub length: u32,
    /// Frame type.
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// Stream identifier; 0 is the connection.
    pub stream: u32,
}

impl FrameHead {
    fn parse(bytes: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = bytes;
        FrameHead {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        }
    }

    /// Acknowledges the other side's SETTINGS.
    pub fn is_settings_ack(&self) -> bool {
        self.kind == SETTINGS && self.flags & FLAG_ACK != 0
    }

    /// Announces settings.
    pub fn is_settings(&self) -> bool {
        self.kind == SETTINGS && self.flags & FLAG_ACK == 0
    }

    /// Asks for a pong.
    pub fn is_ping(&self) -> bool {
        self.kind == PING && self.flags & FLAG_ACK == 0
    }

    /// Answers a ping.
    pub fn is_pong(&self) -> bool {
        self.kind == PING && self.flags & FLAG_ACK != 0
    }
}

/// Follows a stream of frames, however it is cut into pieces.
#[derive(Debug, Default)]
pub struct Walker {
    head: [u8; HEAD],
    have: usize,
    left: usize,
    in_header_block: bool,
}

impl Walker {
    /// Feeds bytes in; `on_head` is called at the end of each frame's head.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_head: impl FnMut(&FrameHead)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let n = self.left.min(bytes.len());
                self.left -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == HEAD {
                self.have = 0;
                let head = FrameHead::parse(self.head);
                self.left = head.length as usize;
                match head.kind {
                    HEADERS | CONTINUATION => {
                        self.in_header_block = head.flags & FLAG_END_HEADERS == 0;
                    }
                    _ => {}
                }
                on_head(&head);
            }
        }
    }

    /// Whether a frame may be put in here: no frame and no header block is half sent.
    pub fn at_boundary(&self) -> bool {
        self.have == 0 && self.left == 0 && !self.in_header_block
    }
}

/// Which calls are open on a connection, from the frames of both directions.
#[derive(Debug, Default)]
pub struct Calls {
    last: u32,
    open: HashSet<u32>,
}

impl Calls {
    /// A frame from the caller. True where it opens a call.
    pub fn from_caller(&mut self, head: &FrameHead) -> bool {
        match head.kind {
            HEADERS if head.stream > self.last => {
                self.last = head.stream;
                self.open.insert(head.stream);
                true
            }
            RST_STREAM => {
                self.open.remove(&head.stream);
                false
            }
            _ => false,
        }
    }

    /// A frame from the server. True where it ends a call.
    pub fn from_server(&mut self, head: &FrameHead) -> bool {
        let ends = match head.kind {
            DATA | HEADERS => head.flags & FLAG_END_STREAM != 0,
            RST_STREAM => true,
            _ => false,
        };
        ends && self.open.remove(&head.stream)
    }

    /// Calls that the server has not ended yet.
    pub fn open(&self) -> usize {
        self.open.len()
    }
}

/// Passes frames on and leaves out the first `acks` acknowledgements of SETTINGS: those that
/// belong to SETTINGS which the other end of the relay never sent.
#[derive(Debug, Default)]
pub struct AckFilter {
    acks: usize,
    held: Vec<u8>,
    walker: Walker,
}

impl AckFilter {
    /// A filter that leaves out `acks` acknowledgements.
    pub fn new(acks: usize) -> Self {
        AckFilter {
            acks,
            ..AckFilter::default()
        }
    }

    /// The bytes to pass on for these bytes; `on_head` sees each head that is passed on.
    pub fn pass<'a>(
        &mut self,
        bytes: &'a [u8],
        mut on_head: impl FnMut(&FrameHead),
    ) -> Cow<'a, [u8]> {
        if self.acks == 0 && self.held.is_empty() {
            self.walker.feed(bytes, on_head);
            return Cow::Borrowed(bytes);
        }
        // Slow path, for the first bytes of a connection: whole heads are looked at before they
        // are passed on, so a head that is cut is held until the rest comes.
        let mut out = Vec::with_capacity(bytes.len() + self.held.len());
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.walker.left > 0 {
                let n = self.walker.left.min(rest.len());
                out.extend_from_slice(&rest[..n]);
                self.walker.feed(&rest[..n], &mut on_head);
                rest = &rest[n..];
                continue;
            }
            let n = (HEAD - self.held.len()).min(rest.len());
            self.held.extend_from_slice(&rest[..n]);
            rest = &rest[n..];
            let Ok(whole) = <[u8; HEAD]>::try_from(self.held.as_slice()) else {
                break;
            };
            self.held.clear();
            let head = FrameHead::parse(whole);
            if self.acks > 0 && head.is_settings_ack() && head.length == 0 {
                self.acks -= 1;
                continue;
            }
            out.extend_from_slice(&whole);
            self.walker.feed(&whole, &mut on_head);
        }
        Cow::Owned(out)
    }

    /// Whether a frame may be put in here.
    pub fn at_boundary(&self) -> bool {
        self.held.is_empty() && self.walker.at_boundary()
    }
}

/// A caller's first frames (after the preface) without the first `pings` pings, which were
/// answered here. A frame that is cut off at the end stays.
pub fn without_pings(frames: &[u8], mut pings: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(frames.len());
    let mut rest = frames;
    while let Some(head) = rest.first_chunk::<HEAD>() {
        let head = FrameHead::parse(*head);
        let whole = HEAD + head.length as usize;
        if whole > rest.len() {
            break;
        }
        if pings > 0 && head.is_ping() {
            pings -= 1;
        } else {
            out.extend_from_slice(&rest[..whole]);
        }
        rest = &rest[whole..];
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        out
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let payload = prop::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            2 => Just(frame(SETTINGS, FLAG_ACK, 0, &[])),
            1 => payload.clone().prop_map(|p| frame(SETTINGS, 0, 0, &p)),
            1 => Just(frame(PING, 0, 0, &[7; 8])),
            4 => (0u8..12, any::<u8>(), 0u32..9, payload)
                .prop_map(|(k, f, s, p)| frame(if k == SETTINGS { 0 } else { k }, f, s, &p)),
        ]
    }

    fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        for &n in cuts {
            let n = n.min(rest.len());
            pieces.push(rest[..n].to_vec());
            rest = &rest[n..];
        }
        pieces.push(rest.to_vec());
        pieces
    }

    proptest! {
        #[test]
        fn exactly_the_first_acks_are_left_out_however_the_stream_is_cut(
            frames in prop::collection::vec(any_frame(), 0..20),
            acks in 0usize..4,
            cuts in prop::collection::vec(0usize..30, 0..60),
        ) {
            let whole: Vec<u8> = frames.concat();
            let mut left = acks;
            let expected: Vec<u8> = frames.iter().filter(|f| {
                let ack = f[3] == SETTINGS && f[4] & FLAG_ACK != 0;
                let skip = ack && left > 0;
                left -= usize::from(skip);
                !skip
            }).flatten().copied().collect();
            let mut filter = AckFilter::new(acks);
            let mut heads = 0;
            let out: Vec<u8> = cut(&whole, &cuts)
                .iter()
                .flat_map(|piece| filter.pass(piece, |_| heads += 1).into_owned())
                .collect();
            prop_assert_eq!(out, expected);
            prop_assert_eq!(heads, frames.len() - (acks - left));
        }

        #[test]
        fn a_walker_sees_every_head_and_knows_the_boundaries(
            frames in prop::collection::vec(any_frame(), 0..20),
            cuts in prop::collection::vec(0usize..30, 0..60),
        ) {
            let mut seen = Vec::new();
            let mut walker = Walker::default();
            for piece in cut(&frames.concat(), &cuts) {
                walker.feed(&piece, |h| seen.push(*h));
            }
            prop_assert_eq!(seen.len(), frames.len());
            prop_assert_eq!((walker.have, walker.left), (0, 0));
            let mut again = Walker::default();
            let mut open = false;
            for f in &frames {
                again.feed(&f[..f.len().min(5)], |_| {});
                prop_assert!(!again.at_boundary());
                again.feed(&f[f.len().min(5)..], |_| {});
                if f[3] == HEADERS || f[3] == CONTINUATION {
                    open = f[4] & FLAG_END_HEADERS == 0;
                }
                prop_assert_eq!(again.at_boundary(), !open);
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), acks in 0usize..3) {
            let mut calls = Calls::default();
            AckFilter::new(acks).pass(&bytes, |h| { calls.from_caller(h); calls.from_server(h); });
            without_pings(&bytes, acks);
        }
    }

    #[test]
    fn only_answered_pings_are_taken_out() {
        let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        let ping = frame(PING, 0, 0, &[1; 8]);
        let headers = frame(HEADERS, FLAG_END_HEADERS, 1, &[0x82]);
        let half = &frame(DATA, 0, 1, &[9; 20])[..15];
        let all = [&settings[..], &ping, &headers, &ping, half].concat();
        assert_eq!(
            without_pings(&all, 1),
            [&settings[..], &headers, &ping, half].concat()
        );
        assert_eq!(without_pings(&ping[..12], 1), &ping[..12]);
    }

    #[test]
    fn calls_are_open_from_their_headers_to_the_servers_end() {
        let head = |kind, flags, stream| FrameHead {
            length: 0,
            kind,
            flags,
            stream,
        };
        let mut calls = Calls::default();
        assert!(calls.from_caller(&head(HEADERS, FLAG_END_HEADERS, 1)));
        assert!(calls.from_caller(&head(HEADERS, FLAG_END_HEADERS, 3)));
        assert!(
            !calls.from_caller(&head(HEADERS, FLAG_END_STREAM, 1)),
            "trailers open nothing"
        );
        assert!(!calls.from_server(&head(DATA, 0, 1)));
        assert!(calls.from_server(&head(HEADERS, FLAG_END_STREAM, 1)));
        assert_eq!(calls.open(), 1);
        calls.from_caller(&head(RST_STREAM, 0, 3));
        assert_eq!(calls.open(), 0);
    }
}
