//! HTTP/2 frames as a byte stream: where each begins and ends, and leaving out single ones.
//!
//! Payloads are skipped, never read. Pure.

use std::borrow::Cow;

/// The client's first bytes on every HTTP/2 connection.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's head.
pub const HEAD: usize = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
const PING: u8 = 0x6;
const GOING: u8 = 0x7;
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

    /// Carries a piece of a header block, which no other frame may interrupt.
    fn has_header_block(&self) -> bool {
        matches!(self.kind, HEADERS | PUSH_PROMISE | CONTINUATION)
    }

    /// Acknowledges the other side's SETTINGS.
    pub fn is_settings_ack(&self) -> bool {
        self.kind == SETTINGS && self.flags & FLAG_ACK != 0
    }

    /// Carries a piece of a message.
    pub fn is_data(&self) -> bool {
        self.kind == DATA
    }

    /// Announces settings.
    pub fn is_settings(&self) -> bool {
        self.kind == SETTINGS && self.flags & FLAG_ACK == 0
    }

    /// Says that no more calls are taken.
    pub fn is_goaway(&self) -> bool {
        self.kind == GOING
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
                if head.has_header_block() {
                    self.in_header_block = head.flags & FLAG_END_HEADERS == 0;
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
    /// Rising, as the callers count them.
    open: Vec<u32>,
}

impl Calls {
    /// A frame from the caller. True where it opens a call.
    pub fn from_caller(&mut self, head: &FrameHead) -> bool {
        match head.kind {
            HEADERS if head.stream > self.last => {
                self.last = head.stream;
                self.open.push(head.stream);
                true
            }
            RST_STREAM => {
                self.close(head.stream);
                false
            }
            _ => false,
        }
    }

    fn close(&mut self, stream: u32) -> bool {
        let found = self.open.binary_search(&stream);
        if let Ok(at) = found {
            self.open.remove(at);
        }
        found.is_ok()
    }

    /// A frame from the server. True where it ends a call.
    pub fn from_server(&mut self, head: &FrameHead) -> bool {
        let ends = match head.kind {
            DATA | HEADERS => head.flags & FLAG_END_STREAM != 0,
            RST_STREAM => true,
            _ => false,
        };
        ends && self.close(head.stream)
    }

    /// Calls that the server has not ended yet.
    pub fn open(&self) -> usize {
        self.open.len()
    }
}

/// What a filter leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaveOut {
    /// So many acknowledgements of SETTINGS: of those that the other end of the relay never sent.
    pub acks: usize,
    /// Every ping. They are answered here: MLServer ends a connection on which it is asked for
    /// its fourth pong during one long call, and the agent asks once a minute.
    pub pings: bool,
}

/// Passes frames on and leaves some of them out, however the stream is cut into pieces.
#[derive(Debug)]
pub struct Filter {
    leave_out: LeaveOut,
    /// The beginning of a head, until it can be judged.
    held: Vec<u8>,
    /// The payload of a ping, until it is whole.
    ping: Option<Vec<u8>>,
    left: usize,
    in_header_block: bool,
}

impl Filter {
    /// A filter at the beginning of a frame.
    pub fn new(leave_out: LeaveOut) -> Self {
        Filter {
            leave_out,
            held: Vec::new(),
            ping: None,
            left: 0,
            in_header_block: false,
        }
    }

    /// The bytes to pass on for these bytes: most often the same. `on_head` sees each head that is
    /// passed on, `on_ping` each ping that is not.
    pub fn pass<'a>(
        &mut self,
        bytes: &'a [u8],
        mut on_head: impl FnMut(&FrameHead),
        mut on_ping: impl FnMut([u8; 8]),
    ) -> Cow<'a, [u8]> {
        // `None` while everything up to `at` is passed on as it is.
        let mut copy: Option<Vec<u8>> = (!self.held.is_empty() || self.ping.is_some())
            .then(|| Vec::with_capacity(bytes.len() + HEAD));
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if let Some(payload) = &mut self.ping {
                let n = (8 - payload.len()).min(rest.len());
                payload.extend_from_slice(&rest[..n]);
                at += n;
                if let Ok(whole) = <[u8; 8]>::try_from(payload.as_slice()) {
                    self.ping = None;
                    on_ping(whole);
                }
                continue;
            }
            if self.left > 0 {
                let n = self.left.min(rest.len());
                if let Some(copy) = &mut copy {
                    copy.extend_from_slice(&rest[..n]);
                }
                self.left -= n;
                at += n;
                continue;
            }
            let (whole, from_here) = match rest.first_chunk::<HEAD>() {
                Some(whole) if self.held.is_empty() => (*whole, true),
                _ => {
                    copy.get_or_insert_with(|| bytes[..at].to_vec());
                    let n = (HEAD - self.held.len()).min(rest.len());
                    self.held.extend_from_slice(&rest[..n]);
                    at += n;
                    let Ok(whole) = <[u8; HEAD]>::try_from(self.held.as_slice()) else {
                        break;
                    };
                    self.held.clear();
                    (whole, false)
                }
            };
            let head = FrameHead::parse(whole);
            let is_ack = self.leave_out.acks > 0 && head.is_settings_ack() && head.length == 0;
            let is_ping = self.leave_out.pings && head.is_ping() && head.length == 8;
            if is_ack || is_ping {
                copy.get_or_insert_with(|| bytes[..at].to_vec());
                self.leave_out.acks -= usize::from(is_ack);
                self.ping = is_ping.then(Vec::new);
            } else {
                if let Some(copy) = &mut copy {
                    copy.extend_from_slice(&whole);
                }
                self.left = head.length as usize;
                if head.has_header_block() {
                    self.in_header_block = head.flags & FLAG_END_HEADERS == 0;
                }
                on_head(&head);
            }
            if from_here {
                at += HEAD;
            }
        }
        copy.map_or(Cow::Borrowed(bytes), Cow::Owned)
    }

    /// What is still held when the stream ends; it ended in the middle of a head.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Whether a frame may be put in here.
    pub fn at_boundary(&self) -> bool {
        self.held.is_empty() && self.left == 0 && !self.in_header_block
    }
}

/// The answer to a ping.
pub fn pong(payload: [u8; 8]) -> [u8; HEAD + 8] {
    let mut frame = [0; HEAD + 8];
    frame[..HEAD].copy_from_slice(&[0, 0, 8, PING, FLAG_ACK, 0, 0, 0, 0]);
    frame[HEAD..].copy_from_slice(&payload);
    frame
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
        fn exactly_what_is_to_be_left_out_is_however_the_stream_is_cut(
            frames in prop::collection::vec(any_frame(), 0..20),
            acks in 0usize..4,
            pings in any::<bool>(),
            cuts in prop::collection::vec(0usize..30, 0..60),
        ) {
            let whole: Vec<u8> = frames.concat();
            let mut left = acks;
            let is_ping = |f: &Vec<u8>| f[3] == PING && f[4] & FLAG_ACK == 0 && f.len() == HEAD + 8;
            let kept: Vec<Vec<u8>> = frames.iter().filter(|f| {
                let ack = f[3] == SETTINGS && f[4] & FLAG_ACK != 0;
                let skip = ack && left > 0;
                left -= usize::from(skip);
                !(skip || pings && is_ping(f))
            }).cloned().collect();
            let mut filter = Filter::new(LeaveOut { acks, pings });
            let (mut heads, mut pinged) = (0, Vec::new());
            let mut out: Vec<u8> = Vec::new();
            for piece in cut(&whole, &cuts) {
                out.extend_from_slice(&filter.pass(&piece, |_| heads += 1, |p| pinged.push(p.to_vec())));
            }
            prop_assert_eq!(out, kept.concat());
            prop_assert_eq!(heads, kept.len());
            let expected: Vec<Vec<u8>> =
                frames.iter().filter(|f| pings && is_ping(f)).map(|f| f[HEAD..].to_vec()).collect();
            prop_assert_eq!(pinged, expected);
            prop_assert!(filter.rest().is_empty());
        }

        #[test]
        fn a_stream_that_ends_anywhere_loses_nothing(
            frames in prop::collection::vec(any_frame(), 1..6), end in any::<prop::sample::Index>()
        ) {
            let mut whole: Vec<u8> = frames.concat();
            whole.truncate(end.index(whole.len() + 1));
            let mut filter = Filter::new(LeaveOut { acks: 0, pings: false });
            let mut out = filter.pass(&whole, |_| {}, |_| {}).into_owned();
            out.extend(filter.rest());
            prop_assert_eq!(out, whole);
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
                if [HEADERS, PUSH_PROMISE, CONTINUATION].contains(&f[3]) {
                    open = f[4] & FLAG_END_HEADERS == 0;
                }
                prop_assert_eq!(again.at_boundary(), !open);
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), acks in 0usize..3) {
            let mut calls = Calls::default();
            let mut filter = Filter::new(LeaveOut { acks, pings: acks % 2 == 0 });
            filter.pass(&bytes, |h| { calls.from_caller(h); calls.from_server(h); }, |_| {});
        }
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
