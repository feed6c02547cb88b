//! Frames of HTTP/2 as a splice follows them, against a parser that has the whole stream.

use std::collections::BTreeSet;

use agent_shim::relay::frames::{Calls, Filter, LeaveOut, Walker};

/// A frame as it stands in a stream; its payload may be cut off.
pub struct Frame<'s> {
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub bytes: &'s [u8],
}

impl Frame<'_> {
    pub fn is_ping(&self) -> bool {
        self.kind == 6 && self.flags & 1 == 0 && self.length == 8
    }

    fn is_ack(&self) -> bool {
        self.kind == 4 && self.flags & 1 == 1 && self.length == 0
    }

    pub fn is_settings_ack(&self) -> bool {
        self.kind == 4 && self.flags & 1 == 1
    }
}

/// All frames, and what is left of a head.
pub fn frames(mut stream: &[u8]) -> (Vec<Frame<'_>>, &[u8]) {
    let mut all = Vec::new();
    while stream.len() >= 9 {
        let length =
            usize::from(stream[0]) << 16 | usize::from(stream[1]) << 8 | usize::from(stream[2]);
        let end = stream.len().min(9 + length);
        let id = u32::from_be_bytes([stream[5], stream[6], stream[7], stream[8]]);
        all.push(Frame {
            length,
            kind: stream[3],
            flags: stream[4],
            stream: id & 0x7fff_ffff,
            bytes: &stream[..end],
        });
        stream = &stream[end..];
    }
    (all, stream)
}

/// What is to be passed on of a stream, the beginning of a head at its end included, and the
/// pings that are not.
pub fn passed(stream: &[u8], mut acks: usize, pings: bool) -> (Vec<u8>, Vec<[u8; 8]>) {
    let (all, rest) = frames(stream);
    let (mut out, mut asked) = (Vec::new(), Vec::new());
    for frame in &all {
        if frame.is_ack() && acks > 0 {
            acks -= 1;
        } else if frame.is_ping() && pings {
            asked.extend(<[u8; 8]>::try_from(&frame.bytes[9..]).ok());
        } else {
            out.extend_from_slice(frame.bytes);
        }
    }
    out.extend_from_slice(rest);
    (out, asked)
}

/// Calls that a caller has opened and neither side has ended, by frames and who sent them.
pub fn open_calls<'f, 's: 'f>(sent: impl Iterator<Item = (bool, &'f Frame<'s>)>) -> usize {
    let (mut highest, mut open) = (0, BTreeSet::new());
    for (by_caller, frame) in sent {
        match frame.kind {
            1 if by_caller && frame.stream > highest => {
                highest = frame.stream;
                open.insert(frame.stream);
            }
            0 | 1 if !by_caller && frame.flags & 1 == 1 => {
                open.remove(&frame.stream);
            }
            3 => {
                open.remove(&frame.stream);
            }
            _ => {}
        }
    }
    open.len()
}

/// Four bytes that say how, then a stream.
pub fn check(input: &[u8]) {
    let Some((&[acks, pings, step, by], stream)) = input.split_first_chunk::<4>() else {
        return;
    };
    let (acks, pings, step) = (
        usize::from(acks % 4),
        pings % 2 == 1,
        usize::from(step % 40) + 1,
    );
    let by_caller = |i: usize| by >> (i % 8) & 1 == 0;
    let (all, rest) = frames(stream);
    let (expected, asked) = passed(stream, acks, pings);

    let mut filter = Filter::new(LeaveOut { acks, pings });
    let mut walker = Walker::default();
    let (mut out, mut heads, mut seen, mut pinged) = (Vec::new(), 0, 0, Vec::new());
    for piece in stream.chunks(step) {
        let on_head = |head: &agent_shim::relay::frames::FrameHead| {
            heads += 1;
            assert!(head.length < 1 << 24 && head.stream < 1 << 31);
        };
        out.extend_from_slice(&filter.pass(piece, on_head, |ping| pinged.push(ping)));
        walker.feed(piece, |head| {
            let frame = &all[seen];
            let told = (head.length as usize, head.kind, head.flags, head.stream);
            assert_eq!(told, (frame.length, frame.kind, frame.flags, frame.stream));
            seen += 1;
        });
    }
    // In a header block, from its first frame to the one that says that it ends.
    let block = |f: &&Frame<'_>| matches!(f.kind, 1 | 5 | 9);
    let in_block = all.iter().rfind(block).is_some_and(|f| f.flags & 4 == 0);
    let whole = rest.is_empty() && all.last().is_none_or(|f| f.bytes.len() == 9 + f.length);
    assert_eq!(walker.at_boundary(), whole && !in_block);
    if !all.last().is_some_and(|f| f.is_ping()) {
        assert_eq!(filter.at_boundary(), whole && !in_block);
    }
    out.extend(filter.rest());
    assert_eq!(out, expected, "what is passed on");
    assert_eq!(pinged, asked, "pings");
    assert_eq!(seen, all.len());
    assert!(heads <= seen);

    let mut calls = Calls::default();
    let mut at = 0;
    Walker::default().feed(stream, |head| {
        match by_caller(at) {
            true => calls.from_caller(head),
            false => calls.from_server(head),
        };
        at += 1;
    });
    let sent = all.iter().enumerate().map(|(i, f)| (by_caller(i), f));
    assert_eq!(calls.open(), open_calls(sent));
}
