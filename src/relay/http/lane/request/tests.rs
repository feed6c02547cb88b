use proptest::prelude::*;

use super::*;

/// What the lane makes of one request: method, path, head, cut and body.
fn taken(text: &str) -> Option<(String, String, String, u64)> {
    match judge(text.as_bytes()) {
        Judged::Plain(plain) => Some((
            plain.method.to_string(),
            text[plain.path.clone()].to_string(),
            format!(
                "{}{}",
                &text[..plain.cut.start],
                &text[plain.cut.end..plain.head]
            ),
            plain.body,
        )),
        _ => None,
    }
}

fn is_unusual(text: &str) -> bool {
    judge(text.as_bytes()) == Judged::Unusual
}

#[test]
fn a_plain_request_goes_on_as_it_came() {
    let post = "POST /v2/models/iris_1/infer?a=%2F HTTP/1.1\r\nHost: mlserver:9000\r\ncontent-length: 5\r\nX-Odd:  a b\r\n\r\n";
    let expected = Some((
        "POST".into(),
        "/v2/models/iris_1/infer".into(),
        post.into(),
        5,
    ));
    assert_eq!(taken(&format!("{post}12345GET / HTTP/1.1\r\n")), expected);
    for method in ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"] {
        let text = format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(
            taken(&text),
            Some((method.into(), "/".into(), text.clone(), 0))
        );
    }
    let kept = "GET /v2 HTTP/1.1\r\nhost: a\r\nConnection: keep-alive\r\naccept: */*\r\n\r\n";
    let (_, _, head, _) = taken(kept).unwrap();
    assert_eq!(head, "GET /v2 HTTP/1.1\r\nhost: a\r\naccept: */*\r\n\r\n");
    for n in 0..kept.len() {
        assert_eq!(judge(&kept.as_bytes()[..n]), Judged::Partial, "{n}");
    }
}

#[test]
fn what_two_could_read_in_two_ways_is_not_plain() {
    let with = |line: &str| format!("POST /v2 HTTP/1.1\r\nhost: a\r\n{line}\r\n\r\n");
    for line in [
        "transfer-encoding: chunked",
        "Transfer-Encoding: identity",
        "transfer_encoding: chunked",
        "te: trailers",
        "upgrade: h2c",
        "expect: 100-continue",
        "http2-settings: x",
        "proxy-connection: keep-alive",
        "keep-alive: timeout=5",
        "trailer: x",
        "connection: close",
        "connection: keep-alive, x",
        "connection: Keep-Alive",
        "connection: keep-alive\r\nconnection: keep-alive",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5\r\nContent-Length: 6",
        "content-length: 5, 5",
        "content-length: +5",
        "content-length: -5",
        "content-length: 0x5",
        "content-length: 05",
        "content-length: 5 5",
        "content-length:",
        "content-length: 1234567890123456789",
        "content_length: 5",
        "content-length : 5",
        "content-length\t: 5",
        "x: a\r\n b",
        "x: a\r\n\tb",
        "x: a\nb: c",
        "x: a\rb: c",
        "x: a\0b",
        "x",
        ": x",
        "x y: z",
        "host: b",
        "x: y ",
        "x:\ty",
        "x: a\tb",
    ] {
        assert!(is_unusual(&with(line)), "{line:?}");
    }
    let many = |n: usize| with(&vec!["x: y"; n].join("\r\n"));
    assert!(taken(&many(63)).is_some() && is_unusual(&many(64)));
    let large = |n: usize| with(&format!("x: {}", "y".repeat(n)));
    assert!(taken(&large(16_000)).is_some() && is_unusual(&large(16_400)));
    let endless = "GET / HTTP/1.1\r\nx: ".to_string() + &"y".repeat(MAX_HEAD);
    assert!(is_unusual(&endless));
    for host in ["", "a b", "a/b", "a@b", "a,b", "a?b", "a#b", "\u{e4}"] {
        assert!(
            is_unusual(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")),
            "{host}"
        );
    }
    assert!(is_unusual("GET / HTTP/1.1\r\nx: y\r\n\r\n"), "no host");
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        let text = format!("{method} / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n");
        assert!(is_unusual(&text), "a body for {method}");
        assert!(taken(&text.replace(": 1", ": 0")).is_some());
    }
    for line in [
        "\r\nGET / HTTP/1.1",
        "get / HTTP/1.1",
        "BREW / HTTP/1.1",
        "TRACE / HTTP/1.1",
        "CONNECT a:1 HTTP/1.1",
        "GET / HTTP/1.0",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /",
        "GET * HTTP/1.1",
        "GET http://a/ HTTP/1.1",
        "GET a HTTP/1.1",
        "GET // HTTP/1.1",
        "GET /a//b HTTP/1.1",
        "GET /. HTTP/1.1",
        "GET /a/../b HTTP/1.1",
        "GET /%2e%2e/b HTTP/1.1",
        "GET /a%2fb HTTP/1.1",
        "GET /a\\b HTTP/1.1",
        "GET /a;b HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /a?b#c HTTP/1.1",
        "GET /\u{e4} HTTP/1.1",
        "GET /a\0 HTTP/1.1",
        "GET /v2/health/live HTTP/1.1",
        "GET /v2/health/ready?x HTTP/1.1",
        "GET /v2/Health/live HTTP/1.1",
        "POST /v2/repository/index HTTP/1.1",
        "POST /v2/repository/models/a/load HTTP/1.1",
        "POST /V2/REPOSITORY/models/a/unload HTTP/1.1",
    ] {
        assert!(
            is_unusual(&format!("{line}\r\nhost: a\r\n\r\n")),
            "{line:?}"
        );
    }
    assert!(is_unusual("GET / HTTP/1.1\nhost: a\n\n"));
    assert!(is_unusual("GET / HTTP/1.1\r\nhost: a\r\n\n"));
}

#[test]
fn an_end_that_came_in_pieces_is_seen() {
    for end in ["\r\n\r\n", "\n\n", "\n\r\n"] {
        let text = format!("GET / HTTP/1.1\r\nhost: a{end}");
        for n in 1..text.len() {
            assert!(may_have_ended(text.as_bytes(), n), "{n}");
        }
    }
    assert!(!may_have_ended(b"GET / HTTP/1.1\r\nhost: a\r\n", 5));
}

proptest! {
    /// Whatever is plain is said in the same way by a reader that has nothing in common with it.
    #[test]
    fn plain_heads_are_plain_to_a_reader_of_lines(
        method in prop::sample::select(vec!["GET", "POST", "HEAD", "TRACE"]),
        target in "[/a-z.%;?#]{1,8}",
        lines in prop::collection::vec(
            prop::sample::select(vec![
                "host: a", "Host: b", "content-length: 3", "Content-Length: 03", "connection: keep-alive",
                "connection: close", "x: y", "x:\ty", "x : y", " x: y", "x: y\r", "\r", "x: y\nz: 1",
                "transfer-encoding: chunked",
            ]),
            0..5,
        ),
        end in prop::sample::select(vec!["\r\n", "\n", "\r\n\r\n"]),
    ) {
        let text = format!("{method} {target} HTTP/1.1\r\n{}\r\n{end}", lines.join("\r\n"));
        if let Judged::Plain(plain) = judge(text.as_bytes()) {
            let end = text.find("\r\n\r\n").unwrap() + 4;
            prop_assert_eq!(plain.head, end);
            let headers: Vec<(&str, &str)> = text[..end - 4]
                .split("\r\n")
                .skip(1)
                .map(|line| line.split_once(':').unwrap())
                .map(|(name, value)| (name, value.trim()))
                .collect();
            let all = |name: &str| {
                let named = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
                named.map(|(_, value)| *value).collect::<Vec<_>>()
            };
            prop_assert_eq!(all("host").len(), 1);
            prop_assert!(all("transfer-encoding").is_empty());
            let length = all("content-length");
            prop_assert!(length.len() <= 1);
            prop_assert_eq!(length.first().map_or(0, |l| l.parse().unwrap()), plain.body);
            prop_assert!(!text[..end].replace("\r\n", "").contains(['\r', '\n']));
            prop_assert!(headers.iter().all(|(name, _)| name.trim() == *name));
            let cut = &text[plain.cut.clone()];
            prop_assert_eq!(all("connection").len(), usize::from(!cut.is_empty()));
        }
    }
}
