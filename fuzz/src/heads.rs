//! Heads and chunks of HTTP/1.1 that the relay carries as bytes: whatever it takes for plain has one
//! meaning to a reader of lines, and whatever it sends on is plain.

use agent_shim::fuzzing::{BodyEnd, answer, chunked, plain_request};

/// A request, an answer, or a body in chunks.
pub fn check(input: &[u8]) {
    request(input);
    response(input, false);
    response(input, true);
    body(input);
}

/// The first line and the headers of a head that ends with an empty line.
fn lines(head: &[u8]) -> (&str, Vec<(String, &[u8])>) {
    let inner = head.strip_suffix(b"\r\n\r\n").expect("a head ends");
    let mut all = Vec::new();
    let mut rest = inner;
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        all.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    all.push(rest);
    assert!(
        !all.iter()
            .any(|line| line.contains(&b'\n') || line.contains(&b'\r'))
    );
    assert!(!head.contains(&0));
    let headers = all[1..].iter().map(|line| {
        let colon = line
            .iter()
            .position(|c| *c == b':')
            .expect("a header has a colon");
        let name = std::str::from_utf8(&line[..colon]).expect("a name is ASCII");
        assert!(!name.is_empty() && !name.contains([' ', '\t']), "{name:?}");
        (name.to_ascii_lowercase(), line[colon + 1..].trim_ascii())
    });
    let first = std::str::from_utf8(all[0]).unwrap_or_default();
    (first, headers.collect())
}

fn all<'a>(headers: &[(String, &'a [u8])], name: &str) -> Vec<&'a [u8]> {
    let named = headers.iter().filter(|(n, _)| n == name);
    named.map(|(_, value)| *value).collect()
}

fn number(value: &[u8]) -> u64 {
    assert!(value.iter().all(u8::is_ascii_digit));
    std::str::from_utf8(value)
        .expect("digits")
        .parse()
        .expect("a number")
}

const HOPS: [&str; 7] = [
    "connection",
    "te",
    "upgrade",
    "keep-alive",
    "http2-settings",
    "proxy-connection",
    "expect",
];

fn request(input: &[u8]) {
    let Some((head, cut, body)) = plain_request(input) else {
        return;
    };
    let goes_on = [&input[..cut.start], &input[cut.end..head]].concat();
    let (first, headers) = lines(&goes_on);
    assert_eq!(all(&headers, "host").len(), 1);
    assert!(all(&headers, "transfer-encoding").is_empty());
    for name in HOPS {
        assert!(all(&headers, name).is_empty(), "{name} goes on");
    }
    let lengths = all(&headers, "content-length");
    assert!(lengths.len() <= 1);
    assert_eq!(lengths.first().map_or(0, |l| number(l)), body);
    let parts: Vec<&str> = first.split(' ').collect();
    assert!(
        parts.len() == 3 && parts[1].starts_with('/') && parts[2] == "HTTP/1.1",
        "{first}"
    );
    let path = parts[1]
        .split('?')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    assert!(!path.starts_with("/v2/health") && !path.starts_with("/v2/repository"));
    assert!(!path.contains(['%', '\\', ';', '#']) && !path.contains("//") && !path.contains("/."));
    // Nothing before its end is a head, and what follows changes nothing.
    assert_eq!(plain_request(&input[..head - 1]), None);
    assert_eq!(plain_request(&input[..head]), Some((head, cut, body)));
    // What goes on is plain to the next one, too.
    assert_eq!(plain_request(&goes_on), Some((goes_on.len(), 0..0, body)));
}

fn response(input: &[u8], to_head: bool) {
    let Some((head, goes_on, end, _)) = answer(input, to_head) else {
        return;
    };
    if input[..head]
        .windows(12)
        .any(|w| w == b"HTTP/1.1 101" || w == b"HTTP/1.0 101")
    {
        return;
    }
    let (_, headers) = lines(&goes_on);
    for name in HOPS {
        assert!(all(&headers, name).is_empty(), "{name} goes on");
    }
    let (lengths, codings) = (
        all(&headers, "content-length"),
        all(&headers, "transfer-encoding"),
    );
    assert!(lengths.len() + codings.len() <= 1, "two ends go on");
    assert!(codings.iter().all(|c| c.eq_ignore_ascii_case(b"chunked")));
    match &end {
        BodyEnd::Length(n) if *n > 0 => assert_eq!(number(lengths[0]), *n),
        BodyEnd::Length(_) => {}
        BodyEnd::Chunks | BodyEnd::Close => assert_eq!(codings.len(), 1),
    }
    // An answer of as many lines as are read may go on with one more, which says where it ends.
    if headers.len() > 100 {
        return;
    }
    // What goes on has one meaning, and the same.
    let again = match end {
        BodyEnd::Close => BodyEnd::Chunks,
        end => end,
    };
    let expected = Some((goes_on.len(), goes_on.clone(), again, false));
    assert_eq!(answer(&goes_on, to_head), expected);
}

/// The data of a plain body in chunks, which has to be whole.
fn data(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let end = bytes
            .windows(2)
            .position(|w| w == b"\r\n")
            .expect("a size ends");
        let size = std::str::from_utf8(&bytes[..end]).expect("digits");
        assert!(
            !size.is_empty() && size.bytes().all(|c| c.is_ascii_hexdigit()),
            "{size:?}"
        );
        let size = usize::from_str_radix(size, 16).expect("a size");
        bytes = &bytes[end + 2..];
        out.extend_from_slice(&bytes[..size]);
        assert_eq!(&bytes[size..size + 2], b"\r\n");
        bytes = &bytes[size + 2..];
        if size == 0 {
            assert!(bytes.is_empty(), "bytes after the last chunk");
            return out;
        }
    }
}

fn body(input: &[u8]) {
    let whole = chunked(input, input.len().max(1));
    for size in [1, 2, 7] {
        assert_eq!(chunked(input, size), whole, "in pieces of {size}");
    }
    let Some((used, goes_on, done)) = whole else {
        return;
    };
    assert!(used <= input.len() && goes_on.len() <= used);
    if done {
        data(&goes_on);
        // Once more, nothing is left out.
        assert_eq!(
            chunked(&goes_on, 3),
            Some((goes_on.len(), goes_on.clone(), true))
        );
    } else {
        assert_eq!(used, input.len());
    }
}
