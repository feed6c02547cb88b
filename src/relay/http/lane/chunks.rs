//! Where a body in chunks ends, and what of it goes on: the chunks as they came, without the
//! extensions and trailers that nobody has asked for. Pure.
//!
//! Takes what the full path's library takes, and what it does not is an error: a caller must not be
//! given a framing that its own reader could understand in another way.

use std::borrow::Cow;

/// Bytes of extensions and trailers in one body, as the library has it.
const MAX_LEFT_OUT: usize = 16 * 1024;

/// The place in a body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chunks {
    at: At,
    /// Of the chunk: what has been read of its size, then what is left of it.
    size: u64,
    left_out: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum At {
    #[default]
    FirstDigit,
    Digits,
    Space,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    LineBegin,
    Trailer,
    TrailerLf,
    LastLf,
    End,
}

/// The bytes are no body in chunks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl Chunks {
    /// Whether the body is complete.
    pub(crate) fn is_done(&self) -> bool {
        self.at == At::End
    }

    /// Follows `bytes` to the body's end or their own; gives how many are the body's, and what of
    /// them goes on.
    pub(crate) fn pass<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Cow<'a, [u8]>), Broken> {
        // What goes on, where that is not everything.
        let mut shorter: Option<Vec<u8>> = None;
        let mut i = 0;
        while i < bytes.len() && self.at != At::End {
            if self.at == At::Data {
                let n = usize::try_from(self.size)
                    .map_or(bytes.len() - i, |size| size.min(bytes.len() - i));
                if let Some(shorter) = &mut shorter {
                    shorter.extend_from_slice(&bytes[i..i + n]);
                }
                self.size -= n as u64;
                i += n;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            let c = bytes[i];
            if self.step(c)? {
                if let Some(shorter) = &mut shorter {
                    shorter.push(c);
                }
            } else {
                shorter.get_or_insert_with(|| bytes[..i].to_vec());
                self.left_out += 1;
                if self.left_out > MAX_LEFT_OUT {
                    return Err(Broken);
                }
            }
            i += 1;
        }
        let goes_on = shorter.map_or(Cow::Borrowed(&bytes[..i]), Cow::Owned);
        Ok((i, goes_on))
    }

    /// One byte of what is around the data; whether it goes on.
    fn step(&mut self, c: u8) -> Result<bool, Broken> {
        let (next, goes_on) = match (self.at, c) {
            (At::FirstDigit | At::Digits, c) if c.is_ascii_hexdigit() => {
                let digit = char::from(c).to_digit(16).unwrap_or(0);
                let size = self.size.checked_mul(16).ok_or(Broken)?;
                self.size = size + u64::from(digit);
                (At::Digits, true)
            }
            (At::Digits | At::Space | At::Extension, b'\r') => (At::SizeLf, true),
            (At::Digits | At::Space, b' ' | b'\t') => (At::Space, false),
            (At::Digits | At::Space, b';') => (At::Extension, false),
            (At::Extension, c) if c != b'\n' => (At::Extension, false),
            (At::SizeLf, b'\n') if self.size == 0 => (At::LineBegin, true),
            (At::SizeLf, b'\n') => (At::Data, true),
            (At::DataCr, b'\r') => (At::DataLf, true),
            (At::DataLf, b'\n') => (At::FirstDigit, true),
            (At::LineBegin, b'\r') => (At::LastLf, true),
            (At::LastLf, b'\n') => (At::End, true),
            (At::Trailer, b'\r') => (At::TrailerLf, false),
            (At::TrailerLf, b'\n') => (At::LineBegin, false),
            (At::LineBegin | At::Trailer, c) if c != b'\n' => (At::Trailer, false),
            _ => return Err(Broken),
        };
        self.at = next;
        Ok(goes_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is passed in pieces of `n` bytes: what is used, what goes on, whether it is done.
    fn passed(body: &[u8], n: usize) -> Result<(usize, Vec<u8>, bool), Broken> {
        let (mut chunks, mut used, mut out) = (Chunks::default(), 0, Vec::new());
        for piece in body.chunks(n) {
            let (n, goes_on) = chunks.pass(piece)?;
            used += n;
            out.extend_from_slice(&goes_on);
        }
        Ok((used, out, chunks.is_done()))
    }

    #[test]
    fn a_plain_body_goes_on_as_it_came_and_ends_where_it_ends() {
        let body = b"5\r\n12345\r\n0A\r\n0123456789\r\n0\r\n\r\nHTTP/1.1 200";
        let end = body.len() - 12;
        for n in 1..=body.len() {
            let (used, out, done) = passed(body, n).unwrap();
            assert_eq!((used, &out[..], done), (end, &body[..end], true), "{n}");
            let (_, _, done) = passed(&body[..end - 1], n).unwrap();
            assert!(!done);
        }
    }

    #[test]
    fn extensions_and_trailers_stay_behind() {
        let body = b"5 ;a=\"b\r\"\r\n";
        assert_eq!(passed(body, 1), Err(Broken), "a bare CR is no end");
        for n in 1..50 {
            let body = b"5;a=b\r\n12345\r\n1 \t;c\r\nx\r\n0;d\r\nx: y\r\nz: 1\r\n\r\n";
            let (used, out, done) = passed(body, n).unwrap();
            assert_eq!(out, b"5\r\n12345\r\n1\r\nx\r\n0\r\n\r\n", "{n}");
            assert_eq!((used, done), (body.len(), true));
        }
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        for bad in [
            &b"\r\n"[..],
            b"x\r\n",
            b"+5\r\n",
            b"-1\r\n",
            b" 5\r\n",
            b"0x5\r\n",
            b"5\n12345",
            b"5\r12345",
            b"5 5\r\n",
            b"5;a\nb\r\n",
            b"5\r\n123456\r\n",
            b"5\r\n12345\n",
            b"5\r\n12345\r\r",
            b"0\r\n\n",
            b"0\r\nx: y\r\r\n",
            b"10000000000000000\r\n",
        ] {
            assert_eq!(
                passed(bad, 1),
                Err(Broken),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
            assert_eq!(passed(bad, 100), Err(Broken));
        }
        let long = |part: &str, n: usize| format!("1;{}\r\n", part.repeat(n)).into_bytes();
        assert!(passed(&long("e", 16_000), 100).is_ok());
        assert_eq!(passed(&long("e", 17_000), 100), Err(Broken));
        let trailers = format!("0\r\n{}", "x: y\r\n".repeat(3000));
        assert_eq!(passed(trailers.as_bytes(), 100), Err(Broken));
    }
}
