//! The two ways of the HTTP relay against each other: the lane, where a connection begins, and the
//! full path, where one goes whose first request is not plain. Whatever streams of requests and
//! answers are made of, both let the same through: a server sees the same requests, a caller the
//! same answers.

use std::net::SocketAddr;
use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::desync::{FINE, Seen, Strict, chunks, setting};
use super::process::Process;
use crate::support::within;

/// Moves a connection to the full path, and is answered there.
const UNUSUAL: &str = "GET /unusual HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n";
const STREAMS: u64 = 250;

/// An answer as a caller understands it; `None` for a body that does not end.
type Heard = (String, Vec<String>, Option<Vec<u8>>);

/// The answers in what a caller heard.
fn answers(mut bytes: &[u8], heads: &[bool]) -> Vec<Heard> {
    let mut all = Vec::new();
    while let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes = &bytes[end + 4..];
        // A word before the answer.
        if head.starts_with("HTTP/1.1 1") {
            continue;
        }
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default()[..12].to_string();
        let named = lines.map(|line| line.split_once(':').unwrap_or((line, "")));
        let mut headers: Vec<String> = named
            .map(|(name, value)| format!("{name}: {}", value.trim()).to_ascii_lowercase())
            .collect();
        headers.sort();
        let length = headers
            .iter()
            .find_map(|h| h.strip_prefix("content-length: "));
        let is_chunked = headers.iter().any(|h| h == "transfer-encoding: chunked");
        let none = heads.get(all.len()).copied().unwrap_or_default()
            || ["204", "304"].iter().any(|code| status.ends_with(code));
        let body = if none {
            Some((Vec::new(), 0))
        } else if is_chunked {
            chunks(bytes).unwrap_or_else(|why| panic!("{why}: {head:?}"))
        } else {
            // The full path repeats a length that was said twice.
            let length = length.and_then(|l| l.split(',').next()?.trim().parse().ok());
            length
                .filter(|length| bytes.len() >= *length)
                .map(|length: usize| (bytes[..length].to_vec(), length))
        };
        // Both say where the body ends, each in its own way, and what is an error differs in words.
        let framing = [
            "content-length: ",
            "transfer-encoding: ",
            "connection: close",
        ];
        headers.retain(|h| !framing.iter().any(|f| h.starts_with(f)));
        let own = headers.iter().any(|h| h.starts_with("x-agent-shim"));
        let used = body.as_ref().map(|(_, used)| *used);
        all.push((
            status,
            headers,
            body.map(|(body, _)| if own { Vec::new() } else { body }),
        ));
        match used {
            Some(used) => bytes = &bytes[used..],
            None => break,
        }
    }
    all
}

/// Sends pieces, each by itself, then the end; everything that comes back.
async fn heard(to: SocketAddr, pieces: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for (i, piece) in pieces.iter().enumerate() {
        if i > 0 {
            // Segments of their own.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if stream.write_all(piece).await.is_err() {
            break;
        }
    }
    let _ = stream.shutdown().await;
    let mut all = Vec::new();
    let _ = within("the end", stream.read_to_end(&mut all)).await;
    all
}

fn pick<'a>(random: &mut Rng, all: &[&'a str]) -> &'a str {
    all[random.usize(..all.len())]
}

/// Up to three of them.
fn some<'a>(random: &mut Rng, all: &[&'a str]) -> Vec<&'a str> {
    let count = random.usize(..4);
    (0..count).map(|_| pick(random, all)).collect()
}

/// A request of parts that matter, most of them plain.
fn request(random: &mut Rng) -> Vec<u8> {
    let method = pick(
        random,
        &[
            "GET", "GET", "POST", "POST", "POST", "PUT", "HEAD", "DELETE", "TRACE",
        ],
    );
    let target = pick(
        random,
        &[
            "/fine",
            "/fine?a=b",
            "/v2/models/iris/infer",
            "/fine//x",
            "/./fine",
            "/a%2fb",
            "http://a/fine",
        ],
    );
    let mut out = format!("{method} {target} HTTP/1.1\r\n");
    let mut lines = vec!["host: a"];
    lines.extend(some(
        random,
        &[
            "x: y",
            "X-Twice: 1",
            "x-twice: 2",
            "accept: */*",
            "connection: keep-alive",
            "keep-alive: x",
            "Connection: x-twice",
            "te: trailers",
            "x:\ty",
            "x:  y ",
            "user-agent: a/1 (b; c)",
            "x: \u{e4}",
            "cookie: a=b; c=d",
            "content_length: 3",
            "expect: 100-continue",
            "proxy-connection: a",
            "content-length: 5",
            "Content-Length: 3",
        ],
    ));
    let body = match random.u8(..6) {
        0 | 1 => {
            lines.push("content-length: 5");
            "12345"
        }
        2 => {
            lines.push("Transfer-Encoding: chunked");
            "5\r\n12345\r\n0\r\n\r\n"
        }
        3 => {
            lines.push(pick(
                random,
                &[
                    "content-length: 0",
                    "content-length: 05",
                    "content-length: 5, 5",
                    "content-length: +0",
                ],
            ));
            pick(random, &["", "12345"])
        }
        _ => "",
    };
    random.shuffle(&mut lines);
    for line in lines {
        out.push_str(line);
        out.push_str("\r\n");
    }
    out.push_str("\r\n");
    out.push_str(body);
    out.into_bytes()
}

/// One small change where it hurts.
fn change(random: &mut Rng, bytes: &mut Vec<u8>) {
    let at = random.usize(..bytes.len());
    match random.u8(..6) {
        0 => bytes[at] ^= 1 << random.u8(..8),
        1 => drop(bytes.remove(at)),
        2 => bytes.insert(
            at,
            random
                .choice([0, b' ', b'\t', b'\n', b'\r', b':', b',', b'0', b';'])
                .unwrap_or(0),
        ),
        3 => bytes.truncate(at.max(1)),
        4 => {
            let again = bytes[at..(at + random.usize(1..20)).min(bytes.len())].to_vec();
            bytes.splice(at..at, again);
        }
        _ => {
            let line = pick(
                random,
                &[
                    "content-length: 3\r\n",
                    "transfer-encoding: chunked\r\n",
                    "host: b\r\n",
                    "\r\n",
                    "GET /evil HTTP/1.1\r\nhost: a\r\n\r\n",
                ],
            );
            bytes.splice(at..at, line.bytes());
        }
    }
}

/// A request as a server saw it, or why it is none.
type Request = Result<(String, Vec<(String, String)>, Vec<u8>), String>;

/// What a server saw, however each way writes it.
fn seen(strict: &Strict) -> Vec<Request> {
    let all = strict.take().into_iter().map(|seen| {
        let Seen {
            line,
            mut headers,
            body,
            ..
        } = seen.map_err(|why| {
            why.split(", connection")
                .next()
                .unwrap_or_default()
                .to_string()
        })?;
        headers.sort();
        Ok((line, headers, body))
    });
    let own = |seen: &Request| matches!(seen, Ok((line, ..)) if line.contains(" /unusual "));
    all.filter(|seen| !own(seen)).collect()
}

/// What of a stream is a matter of taste: an error that ends the connection is told, or is not,
/// and is not always told in time.
fn until_the_end(mut heard: Vec<Heard>) -> Vec<Heard> {
    let own = |h: &Heard| h.1.iter().any(|line| line.starts_with("x-agent-shim"));
    while heard
        .last()
        .is_some_and(|last| last.2.is_none() || last.0.ends_with(" 400") || own(last))
    {
        heard.pop();
    }
    heard
}

#[tokio::test]
async fn a_server_sees_the_same_requests_whichever_way_they_go() {
    let (strict, _standin, process) = setting().await;
    let (mut passed, mut differ) = (0, Vec::new());
    for seed in 0..STREAMS {
        let mut random = Rng::with_seed(seed);
        let mut stream: Vec<u8> = (0..random.usize(1..5))
            .flat_map(|_| request(&mut random))
            .collect();
        for _ in 0..random.usize(..3) {
            change(&mut random, &mut stream);
        }
        let shown = format!("seed {seed}: {:?}", String::from_utf8_lossy(&stream));
        let cut = if random.bool() {
            random.usize(..stream.len())
        } else {
            0
        };
        let (first, second) = stream.split_at(cut);
        let lane = heard(process.http, &[first, second]).await;
        let by_lane = seen(&strict);
        let full = heard(process.http, &[UNUSUAL.as_bytes(), first, second]).await;
        let by_full = seen(&strict);
        if by_lane != by_full {
            differ.push(format!("{shown}\n{by_lane:?}\n{by_full:?}"));
        }
        passed += by_lane.len();
        let heads: Vec<bool> = by_lane
            .iter()
            .map(|s| matches!(s, Ok((line, ..)) if line.starts_with("HEAD ")))
            .collect();
        let after: Vec<bool> = [&[false], &heads[..]].concat();
        let lane = until_the_end(answers(&lane, &heads));
        let full = until_the_end(answers(&full, &after).split_off(1));
        if lane != full {
            differ.push(format!("{shown}\n{lane:?}\n{full:?}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
    assert!(passed > 150, "{passed} requests passed");
    process.recovers("random requests").await;
}

/// An answer of parts that matter, with its body.
fn response(random: &mut Rng) -> Vec<u8> {
    let version = pick(random, &["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]);
    let status = pick(
        random,
        &[
            "200 OK",
            "200 OK",
            "404 Not Found",
            "500 x",
            "204 No Content",
            "304 Not Modified",
            "200",
        ],
    );
    let mut lines = some(
        random,
        &[
            "x: y",
            "X-Twice: 1",
            "x-twice: 2",
            "connection: close",
            "Connection: x-twice",
            "keep-alive: 5",
            "x:\ty",
            "x:  y ",
            "content-type: text/plain",
            "upgrade: x",
            "connection: content-length",
        ],
    );
    let body = match random.u8(..7) {
        0..=2 => {
            lines.push(pick(
                random,
                &[
                    "content-length: 5",
                    "Content-Length: 5",
                    "content-length: 05",
                    "content-length: 5, 5",
                ],
            ));
            "12345"
        }
        3 | 4 => {
            lines.push(pick(
                random,
                &[
                    "transfer-encoding: chunked",
                    "Transfer-Encoding: Chunked",
                    "transfer-encoding: x, chunked",
                ],
            ));
            pick(
                random,
                &[
                    "5\r\n12345\r\n0\r\n\r\n",
                    "5;a=b\r\n12345\r\n0\r\n\r\n",
                    "2\r\n12\r\n3 \r\n345\r\n0\r\nx: y\r\n\r\n",
                ],
            )
        }
        5 => "12345",
        _ => "",
    };
    random.shuffle(&mut lines);
    let interim = pick(
        random,
        &[
            "",
            "",
            "",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 103 x\r\na: b\r\n\r\n",
        ],
    );
    let mut out = format!("{interim}{version} {status}\r\n");
    for line in lines {
        out.push_str(line);
        out.push_str("\r\n");
    }
    out.push_str("\r\n");
    out.push_str(body);
    out.into_bytes()
}

/// One request after the other, the server saying `answer` to the first; what was heard of both,
/// the second asked only where the first had an end.
async fn both(process: &Process, strict: &Strict, before: &str, answer: &[u8]) -> Vec<Heard> {
    let mut stream = TcpStream::connect(process.http).await.unwrap();
    let mut all = Vec::new();
    let mut expected = 0;
    let asks = [
        "GET /fine1 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /fine2 HTTP/1.1\r\nhost: a\r\n\r\n",
    ];
    for (ask, said) in [(before, FINE), (asks[0], answer), (asks[1], FINE)] {
        if ask.is_empty() {
            continue;
        }
        expected += 1;
        strict.answers(said);
        if stream.write_all(ask.as_bytes()).await.is_err() {
            break;
        }
        let mut buffer = [0; 4096];
        let is_whole = |all: &[u8]| {
            let heard = answers(all, &[]);
            heard.len() == expected && heard.iter().all(|h| h.2.is_some())
        };
        while !is_whole(&all) {
            match within("more of an answer", stream.read(&mut buffer)).await {
                Ok(n @ 1..) => all.extend_from_slice(&buffer[..n]),
                _ => break,
            }
        }
    }
    let mut heard = answers(&all, &[]);
    if !before.is_empty() {
        heard.remove(0);
    }
    heard
}

#[tokio::test]
async fn a_caller_hears_the_same_answers_whichever_way_they_come() {
    let (strict, _standin, process) = setting().await;
    // What is not ended by its own words is ended by the server's close.
    strict.closes(true);
    let (mut whole, mut refused, mut differ) = (0, 0, Vec::new());
    for seed in 0..STREAMS {
        let mut random = Rng::with_seed(seed);
        let mut answer = response(&mut random);
        for _ in 0..random.usize(..3) {
            change(&mut random, &mut answer);
        }
        let shown = format!("seed {seed}: {:?}", String::from_utf8_lossy(&answer));
        let lane = both(&process, &strict, "", &answer).await;
        let full = both(&process, &strict, UNUSUAL, &answer).await;
        strict.take();
        let broken = |heard: &[Heard]| heard.first().is_none_or(|first| first.2.is_none());
        if broken(&full) {
            if !broken(&lane) {
                differ.push(format!("{shown}\n{lane:?}\n{full:?}"));
            }
            continue;
        }
        if lane.first() != full.first() {
            differ.push(format!("{shown}\n{lane:?}\n{full:?}"));
        }
        // The second answer is the one to the second request, or there is none.
        for one in [&lane, &full].iter().filter_map(|heard| heard.get(1)) {
            assert_eq!(one.2.as_deref(), Some(&b"fine"[..]), "{shown}");
        }
        match full[0].0.ends_with(" 502") {
            true => refused += 1,
            false => whole += 1,
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
    assert!(
        whole > 50 && refused > 20,
        "{whole} whole, {refused} refused"
    );
    process.recovers("random answers").await;
}
