//! Whether the head of a request is one that every reader would understand in the same way. Pure.
//!
//! What is plain goes on as it came, byte for byte; so nothing is plain that the full path would
//! change, answer itself or refuse, and nothing that a server could take for something else. A
//! doubt costs a few microseconds: the full path reads the request again.

use std::mem::MaybeUninit;
use std::ops::Range;

use http::Method;
use httparse::Status;

use crate::relay::http::host::is_host;
use crate::relay::http::is_hop_by_hop;

/// Largest head that is taken here, and so what of one may wait for its end.
pub(super) const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// What the first bytes of a request are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// A head without its end.
    Partial,
    /// Nothing for the lane.
    Unusual,
    /// A head that has one meaning.
    Plain(Plain),
}

/// A plain head, by places in the bytes that were judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plain {
    /// Its bytes.
    pub(crate) head: usize,
    /// Bytes of the body that follows.
    pub(crate) body: u64,
    /// `Connection: keep-alive`, which is said to the shim alone; mostly empty.
    pub(crate) cut: Range<usize>,
    /// The method.
    pub(crate) method: Method,
    /// The path, without a query.
    pub(crate) path: Range<usize>,
}

/// Judges what has come of a request so far.
pub(crate) fn judge(bytes: &[u8]) -> Judged {
    let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut room) {
        Ok(Status::Complete(head)) if head <= MAX_HEAD => {
            plain(bytes, head, &request).map_or(Judged::Unusual, Judged::Plain)
        }
        Ok(Status::Partial) if bytes.len() < MAX_HEAD => Judged::Partial,
        _ => Judged::Unusual,
    }
}

/// Whether bytes that were no whole head may be one now that there are more than `before`.
pub(super) fn may_have_ended(bytes: &[u8], before: usize) -> bool {
    let new = &bytes[before.saturating_sub(3)..];
    new.windows(2).any(|two| two == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}

fn plain(bytes: &[u8], head: usize, request: &httparse::Request<'_, '_>) -> Option<Plain> {
    let method = match request.method? {
        "GET" => Method::GET,
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "DELETE" => Method::DELETE,
        "HEAD" => Method::HEAD,
        "OPTIONS" => Method::OPTIONS,
        "PATCH" => Method::PATCH,
        _ => return None,
    };
    let target = request.path?.as_bytes();
    let begin = method.as_str().len() + 1;
    let path = begin..begin + path_of(target)?;
    // The parser is lenient in places; only what stands here and nowhere else is taken.
    let mut next = begin + target.len();
    take(bytes, &mut next, b" HTTP/1.1\r\n")?;
    if place(bytes, target) != begin || place(bytes, request.method?.as_bytes()) != 0 {
        return None;
    }
    let (mut hosts, mut length, mut cut) = (0, None, 0..0);
    for header in request.headers.iter() {
        let begin = next;
        next = line(bytes, begin, header)?;
        match kind(header.name) {
            Kind::Other => {}
            Kind::Host if hosts == 0 && !header.value.is_empty() && is_host(header.value) => {
                hosts = 1;
            }
            Kind::Length if length.is_none() => length = Some(digits(header.value)?),
            Kind::Connection if cut.is_empty() && header.value == b"keep-alive" => {
                cut = begin..next;
            }
            _ => return None,
        }
    }
    take(bytes, &mut next, b"\r\n")?;
    // White space to some.
    if bytes[..next].contains(&b'\t') {
        return None;
    }
    let body = length.unwrap_or(0);
    let may_have_body = matches!(method, Method::POST | Method::PUT | Method::PATCH);
    (next == head && hosts == 1 && (may_have_body || body == 0)).then_some(Plain {
        head,
        body,
        cut,
        method,
        path,
    })
}

/// Where a part of `bytes` stands in them.
pub(super) fn place(bytes: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr().wrapping_sub(bytes.as_ptr().addr())
}

/// `part` has to stand at `next`, which moves behind it.
fn take(bytes: &[u8], next: &mut usize, part: &[u8]) -> Option<()> {
    let end = *next + part.len();
    (bytes.get(*next..end)? == part).then(|| *next = end)
}

/// Where the line of a header ends that has to begin at `begin`: a name, a colon, white space, a
/// value, CR and LF, and nothing else.
pub(super) fn line(bytes: &[u8], begin: usize, header: &httparse::Header<'_>) -> Option<usize> {
    if place(bytes, header.name.as_bytes()) != begin {
        return None;
    }
    let mut end = place(bytes, header.value).checked_add(header.value.len())?;
    take(bytes, &mut end, b"\r\n")?;
    Some(end)
}

/// Digits alone, in one way only.
pub(super) fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || (value.len() > 1 && value[0] == b'0') {
        return None;
    }
    value.iter().try_fold(0, |sum: u64, c| {
        c.is_ascii_digit().then(|| sum * 10 + u64::from(c - b'0'))
    })
}

enum Kind {
    Host,
    Length,
    Connection,
    /// Speaks of the connection, or of the body in another way.
    Odd,
    Other,
}

fn kind(name: &str) -> Kind {
    // Most names differ in their length already.
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        4 if is("host") => Kind::Host,
        7 if is("trailer") => Kind::Odd,
        10 if is("connection") => Kind::Connection,
        14 if is("content-length") => Kind::Length,
        // Some readers make no difference between a line and a dash.
        14 if is("content_length") => Kind::Odd,
        17 if is("transfer_encoding") => Kind::Odd,
        _ if is_hop_by_hop(name) => Kind::Odd,
        _ => Kind::Other,
    }
}

/// What may stand in a target: what needs no escape and divides nothing in two readings.
const FINE: [bool; 256] = {
    let mut fine = [false; 256];
    let mut c = 0;
    while c < 128 {
        fine[c] = (c as u8).is_ascii_alphanumeric();
        c += 1;
    }
    let others = b"-._~!$&'()*+,=:@/";
    c = 0;
    while c < others.len() {
        fine[others[c] as usize] = true;
        c += 1;
    }
    fine
};

/// The length of the path in a target that has one meaning and is not the shim's own business.
fn path_of(target: &[u8]) -> Option<usize> {
    if target.first() != Some(&b'/') {
        return None;
    }
    let end = target.iter().position(|c| *c == b'?');
    let (path, query) = target.split_at(end.unwrap_or(target.len()));
    let mut before = 0;
    for c in path {
        // `//`, `/.` and `/..` are other paths to some.
        if !FINE[usize::from(*c)] || (before == b'/' && matches!(c, b'/' | b'.')) {
            return None;
        }
        before = *c;
    }
    if !query
        .iter()
        .all(|c| FINE[usize::from(*c)] || b"?%;".contains(c))
    {
        return None;
    }
    let begins = |with: &[u8]| {
        let start = path.get(..with.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    let is_own = begins(b"/v2/health") || begins(b"/v2/repository");
    (!is_own).then_some(path.len())
}

#[cfg(test)]
mod tests;
