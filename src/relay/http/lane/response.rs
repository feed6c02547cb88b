//! What the head of an answer says, and in which words it goes on. Pure.
//!
//! Most heads go on as they came. One that speaks of the server's connection, or of its end in
//! more than one way, is written anew, as the full path's library would write it, and the server's
//! connection is used up where two readers could disagree.

use std::mem::MaybeUninit;

use http::StatusCode;
use httparse::{Header, Status};

use super::chunks::Chunks;
use super::request::{digits, line, place};
use crate::relay::http::is_hop_by_hop;

/// As many as the full path's library takes.
const MAX_HEADERS: usize = 100;

/// What the first bytes of an answer are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// A head without its end.
    Partial,
    /// A word before the answer, of so many bytes.
    Interim(usize),
    /// The head of the answer.
    Final(Answer),
    /// No head, and why not.
    Malformed(String),
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Its bytes.
    pub(crate) head: usize,
    /// What is said of it.
    pub(crate) status: StatusCode,
    /// How its body ends.
    pub(crate) framing: Framing,
    /// The head in other words, where it does not go on as it came.
    pub(crate) rewritten: Option<Vec<u8>>,
    /// The server's connection takes no further request.
    pub(crate) last: bool,
    /// Whether the body calls itself plain text.
    pub(crate) is_text: bool,
}

/// How a body ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With its last chunk.
    Chunks(Chunks),
    /// With the connection; the caller gets it in chunks.
    Close,
}

/// Judges what has come of an answer so far; `to_head` where the request was a HEAD.
pub(crate) fn judge(bytes: &[u8], to_head: bool) -> Judged {
    let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let parsed = config.parse_response_with_uninit_headers(&mut response, bytes, &mut room);
    let head = match parsed {
        Ok(Status::Complete(head)) => head,
        Ok(Status::Partial) => return Judged::Partial,
        Err(error) => return Judged::Malformed(error.to_string()),
    };
    let code = response.code.unwrap_or_default();
    let Ok(status) = StatusCode::from_u16(code) else {
        return Judged::Malformed(format!("the status {code}"));
    };
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        return Judged::Interim(head);
    }
    judge_final(bytes, head, status, &response, to_head).unwrap_or_else(Judged::Malformed)
}

/// What the headers say of connection and body.
#[derive(Default)]
struct Said<'a> {
    /// The values of `Content-Length`: the one that all give; an error where they differ or are
    /// no numbers.
    length: Option<Result<u64, ()>>,
    lengths: usize,
    codings: usize,
    /// The last value of `Transfer-Encoding`.
    coding: &'a [u8],
    /// The values of `Connection`.
    connection: Vec<&'a [u8]>,
    /// A header that belongs to one connection.
    hops: bool,
    /// The value of the first `Content-Type`.
    kind: Option<&'a [u8]>,
    /// The lines stand one after the other, as they would be written here.
    as_written: bool,
}

fn judge_final(
    bytes: &[u8],
    head: usize,
    status: StatusCode,
    response: &httparse::Response<'_, '_>,
    to_head: bool,
) -> Result<Judged, String> {
    let reason = response.reason.unwrap_or_default();
    let is_new = response.version == Some(1);
    let begin = "HTTP/1.1 200 ".len() + reason.len() + 2;
    let said = heard(bytes, begin, head, response.headers);
    let chunked = is_chunked(said.coding);
    let is_bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = if is_bodiless || to_head {
        Framing::Length(0)
    } else if said.codings > 0 && !is_new {
        return Err("a Transfer-Encoding in HTTP/1.0".into());
    } else if said.codings > 0 && chunked {
        Framing::Chunks(Chunks::default())
    } else if said.codings > 0 {
        Framing::Close
    } else {
        match said.length {
            Some(Ok(length)) => Framing::Length(length),
            Some(Err(())) => return Err("an invalid Content-Length".into()),
            None => Framing::Close,
        }
    };
    let is_plain = is_new
        && said.as_written
        && !said.hops
        && said.lengths + said.codings <= 1
        && !matches!(said.length, Some(Err(())))
        && (said.codings == 0 || (said.coding.eq_ignore_ascii_case(b"chunked") && !is_bodiless))
        && (said.lengths == 0 || status != StatusCode::NO_CONTENT)
        && framing != Framing::Close;
    let last = !is_new
        || said.lengths + said.codings > 1
        || framing == Framing::Close
        || (is_bodiless && said.codings > 0)
        || (said.lengths > 0 && status == StatusCode::NO_CONTENT)
        || said.names(b"close");
    let rewritten = (!is_plain).then(|| {
        let mut out = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
        for header in response
            .headers
            .iter()
            .filter(|header| !said.drops(header.name))
        {
            write(&mut out, header.name, header.value);
        }
        match (&framing, said.length) {
            // The length is of what is not sent.
            (Framing::Length(_), Some(Ok(length))) if status != StatusCode::NO_CONTENT => {
                write(&mut out, "content-length", length.to_string().as_bytes());
            }
            (Framing::Length(_), _) => {}
            (Framing::Chunks(_) | Framing::Close, _) => {
                write(&mut out, "transfer-encoding", b"chunked");
            }
        }
        out.extend_from_slice(b"\r\n");
        out
    });
    Ok(Judged::Final(Answer {
        head,
        status,
        framing,
        rewritten,
        last,
        is_text: said
            .kind
            .is_some_and(|kind| kind.starts_with(b"text/plain")),
    }))
}

fn heard<'a>(bytes: &[u8], begin: usize, head: usize, headers: &[Header<'a>]) -> Said<'a> {
    let first = headers.first();
    let begins = match first {
        Some(first) => place(bytes, first.name.as_bytes()),
        None => head.saturating_sub(2),
    };
    let mut said = Said {
        as_written: begins == begin
            && bytes.starts_with(b"HTTP/1.1 ")
            && bytes.get(12) == Some(&b' '),
        ..Said::default()
    };
    let mut next = begin;
    for header in headers {
        match line(bytes, next, header).filter(|_| said.as_written) {
            Some(end) => next = end,
            None => said.as_written = false,
        }
        said.hear(header);
    }
    said.as_written &= next + 2 == head && bytes.get(next..head) == Some(b"\r\n");
    said.as_written &= bytes.get(begin.saturating_sub(2)..begin) == Some(b"\r\n");
    said
}

impl<'a> Said<'a> {
    fn hear(&mut self, header: &Header<'a>) {
        let is = |other: &str| header.name.eq_ignore_ascii_case(other);
        match header.name.len() {
            10 if is("connection") => {
                self.hops = true;
                self.connection.push(header.value);
            }
            12 if is("content-type") => {
                self.kind.get_or_insert(header.value);
            }
            14 if is("content-length") => {
                self.lengths += 1;
                for one in header.value.split(|c| *c == b',') {
                    let one = number(one.trim_ascii()).ok_or(());
                    let same = self.length.is_none_or(|known| known == one);
                    self.length = Some(if same { one } else { Err(()) });
                }
                // A list, or digits too many: said in other words.
                self.as_written &= digits(header.value).is_some();
            }
            17 if is("transfer-encoding") => {
                self.codings += 1;
                self.coding = header.value;
            }
            _ => self.hops |= is_hop_by_hop(header.name),
        }
    }

    /// Whether `Connection` names it.
    fn names(&self, name: &[u8]) -> bool {
        let mut names = self
            .connection
            .iter()
            .flat_map(|value| value.split(|c| *c == b','));
        names.any(|one| one.trim_ascii().eq_ignore_ascii_case(name))
    }

    /// Whether a header stays here, or is said again in one way.
    fn drops(&self, name: &str) -> bool {
        name.eq_ignore_ascii_case("content-length")
            || is_hop_by_hop(name)
            || (self.names(name.as_bytes()) && !name.eq_ignore_ascii_case("host"))
    }
}

/// A length, as the full path's library reads it.
fn number(text: &[u8]) -> Option<u64> {
    let is_one = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| is_one)?;
    // The two largest have a meaning of their own there.
    text.parse().ok().filter(|length| *length < u64::MAX - 1)
}

/// Whether the last coding is the one that says where the body ends.
fn is_chunked(codings: &[u8]) -> bool {
    let last = codings.rsplit(|c| *c == b',').next().unwrap_or_default();
    last.trim_ascii().eq_ignore_ascii_case(b"chunked")
}

fn write(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests;
