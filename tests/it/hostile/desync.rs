//! Requests and answers that two readers could understand in two ways. What reaches the server is
//! judged by a reader stricter than any server: one unambiguous request, or none.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use agent_shim::demo::standin::StandIn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::process::{Process, get, say};
use crate::support::within;

/// A request as it reached the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    connection: usize,
}

impl Seen {
    fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(n, _)| n == name);
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// A server that takes requests by the letter only, and answers each with what the test sets.
pub(super) struct Strict {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Result<Seen, String>>>>,
    answer: Arc<Mutex<Vec<u8>>>,
    closes: Arc<AtomicBool>,
    _accepting: JoinSet<()>,
}

pub(super) const FINE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine";

impl Strict {
    async fn start() -> Strict {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let answer = Arc::new(Mutex::new(FINE.to_vec()));
        let mut accepting = JoinSet::new();
        let closes = Arc::new(AtomicBool::new(false));
        let (kept, given) = (seen.clone(), (answer.clone(), closes.clone()));
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, number, kept.clone(), given.clone()));
            }
        });
        Strict {
            address,
            seen,
            answer,
            closes,
            _accepting: accepting,
        }
    }

    pub(super) fn answers(&self, bytes: &[u8]) {
        *self.answer.lock().unwrap() = bytes.to_vec();
    }

    /// Whether each connection is closed after an answer that the test has set.
    pub(super) fn closes(&self, closes: bool) {
        self.closes.store(closes, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> Vec<Result<Seen, String>> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    seen: Arc<Mutex<Vec<Result<Seen, String>>>>,
    (answer, closes): (Arc<Mutex<Vec<u8>>>, Arc<AtomicBool>),
) {
    let mut bytes = Vec::new();
    loop {
        let read = loop {
            match parse(&bytes, connection) {
                Ok(None) => {}
                Ok(Some((request, used))) => {
                    bytes.drain(..used);
                    break Ok(request);
                }
                Err(why) => break Err(why),
            }
            match stream.read_buf(&mut bytes).await {
                Ok(1..) => {}
                _ if bytes.is_empty() => return,
                // A caller who went in the middle, and the shim with it: no request.
                _ => return,
            }
        };
        let health = matches!(&read, Ok(r) if r.line.contains(" /v2/health/") || r.line.contains(" /v2 ") || r.line.contains("/v2/repository/index"));
        let said = if health {
            FINE.to_vec()
        } else {
            answer.lock().unwrap().clone()
        };
        let broken = read.is_err();
        let last = !health && closes.load(Ordering::Relaxed);
        if !health {
            seen.lock().unwrap().push(read);
        }
        if broken || stream.write_all(&said).await.is_err() || last {
            return;
        }
    }
}

/// One request by the letter of RFC 9112, and nothing that any reader could take for another.
fn parse(bytes: &[u8], connection: usize) -> Result<Option<(Seen, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return if bytes.len() > 1 << 20 {
            Err("an endless head".into())
        } else {
            Ok(None)
        };
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "no text".to_string())?;
    let odd = |c: char| c != '\r' && c != '\n' && (c.is_ascii_control());
    if head.contains(odd) || head.replace("\r\n", "").contains(['\r', '\n']) {
        return Err(format!("a control character: {head:?}"));
    }
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default().to_string();
    let parts: Vec<&str> = line.split(' ').collect();
    if parts.len() != 3 || parts[2] != "HTTP/1.1" || !parts[1].starts_with('/') {
        return Err(format!("the line {line:?}"));
    }
    let mut headers = Vec::new();
    for text in lines {
        let (name, value) = text.split_once(':').ok_or(format!("the header {text:?}"))?;
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(token) {
            return Err(format!("the header {text:?}"));
        }
        headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
    }
    let mut seen = Seen {
        line,
        headers,
        body: Vec::new(),
        connection,
    };
    if seen.all("host").len() != 1 {
        return Err(format!("hosts: {seen:?}"));
    }
    for hop in [
        "upgrade",
        "http2-settings",
        "proxy-connection",
        "keep-alive",
    ] {
        if !seen.all(hop).is_empty() {
            return Err(format!("{hop}: {seen:?}"));
        }
    }
    let rest = &bytes[end + 4..];
    let (lengths, codings) = (seen.all("content-length"), seen.all("transfer-encoding"));
    let used = match (&lengths[..], &codings[..]) {
        ([], []) => 0,
        ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| format!("a length {length:?}"))?;
            if rest.len() < length {
                return Ok(None);
            }
            seen.body = rest[..length].to_vec();
            length
        }
        ([], ["chunked"]) => match chunks(rest)? {
            Some((body, used)) => {
                seen.body = body;
                used
            }
            None => return Ok(None),
        },
        _ => return Err(format!("two ends: {seen:?}")),
    };
    Ok(Some((seen, end + 4 + used)))
}

pub(super) fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = bytes[at..].windows(2).position(|w| w == b"\r\n") else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes[at..at + end]).map_err(|_| "a chunk".to_string())?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("a chunk size {text:?}"));
        }
        let size = usize::from_str_radix(text, 16).map_err(|_| format!("a size {text:?}"))?;
        at += end + 2;
        if bytes.len() < at + size + 2 {
            return Ok(None);
        }
        if &bytes[at + size..at + size + 2] != b"\r\n" {
            return Err("a chunk without its end, or trailers".into());
        }
        body.extend_from_slice(&bytes[at..at + size]);
        at += size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

pub(super) async fn setting() -> (Strict, StandIn, Process) {
    let strict = Strict::start().await;
    let standin = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let process = Process::before(strict.address, standin.grpc(), &[]).await;
    strict.take();
    (strict, standin, process)
}

/// What the shim makes of one message: what the caller hears, in statuses, and what the server saw.
async fn told(process: &Process, strict: &Strict, bytes: &[u8]) -> (Vec<String>, Vec<Seen>) {
    let mut stream = TcpStream::connect(process.http).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = within("the end", stream.read_to_end(&mut answer)).await;
    let text = String::from_utf8_lossy(&answer);
    let codes = text
        .split("HTTP/1.")
        .skip(1)
        .map(|a| a[2..5].to_string())
        .collect();
    let seen = strict.take().into_iter().map(|seen| {
        let shown = String::from_utf8_lossy(bytes);
        seen.unwrap_or_else(|why| panic!("ambiguous at the server, from {shown:?}: {why}"))
    });
    (codes, seen.collect())
}

const EVIL: &str = "GET /evil HTTP/1.1\r\nhost: evil\r\n\r\n";

/// Shapes that are refused: the server sees nothing at all.
#[tokio::test]
async fn ambiguous_requests_are_refused_and_never_sent_on() {
    let (strict, _standin, process) = setting().await;
    let chunked_evil = format!("0\r\n\r\n{EVIL}");
    for (name, head, body) in [
        (
            "TE.TE twice",
            "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
            &*chunked_evil,
        ),
        (
            "TE.TE twice the same",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            &chunked_evil,
        ),
        (
            "TE list",
            "transfer-encoding: gzip, chunked\r\n",
            &chunked_evil,
        ),
        (
            "TE list, twice",
            "transfer-encoding: chunked, chunked\r\n",
            &chunked_evil,
        ),
        (
            "TE last is not chunked",
            "transfer-encoding: chunked, identity\r\n",
            &chunked_evil,
        ),
        ("xchunked", "transfer-encoding: xchunked\r\n", &chunked_evil),
        (
            "quoted",
            "transfer-encoding: \"chunked\"\r\n",
            &chunked_evil,
        ),
        (
            "with a parameter",
            "transfer-encoding: chunked;x=y\r\n",
            &chunked_evil,
        ),
        (
            "vertical tab",
            "transfer-encoding: \x0bchunked\r\n",
            &chunked_evil,
        ),
        (
            "space before the colon",
            "transfer-encoding : chunked\r\n",
            &chunked_evil,
        ),
        (
            "tab before the colon",
            "transfer-encoding\t: chunked\r\n",
            &chunked_evil,
        ),
        (
            "space before a length's colon",
            "content-length : 5\r\n",
            "12345",
        ),
        (
            "a NUL in the name",
            "transfer-encod\0ing: chunked\r\n",
            &chunked_evil,
        ),
        ("a NUL in the value", "x: a\0b\r\n", ""),
        (
            "a bare CR in a value",
            "x: a\rtransfer-encoding: chunked\r\n",
            "",
        ),
        (
            "folded",
            "x: y\r\n transfer-encoding: chunked\r\n",
            &chunked_evil,
        ),
        (
            "folded coding",
            "transfer-encoding:\r\n chunked\r\n",
            &chunked_evil,
        ),
        (
            "folded with a tab",
            "x: y\r\n\tcontent-length: 3\r\n",
            "123",
        ),
        (
            "lengths that differ",
            "content-length: 5\r\ncontent-length: 6\r\n",
            "123456",
        ),
        ("a list of lengths", "content-length: 5, 6\r\n", "123456"),
        ("a list of one length", "content-length: 5, 5\r\n", "12345"),
        ("a plus", "content-length: +5\r\n", "12345"),
        ("a minus", "content-length: -5\r\n", "12345"),
        ("hexadecimal", "content-length: 0x5\r\n", "12345"),
        ("a space within", "content-length: 1 0\r\n", "1234567890"),
        ("no digits", "content-length: \r\n", ""),
        ("a fraction", "content-length: 5.0\r\n", "12345"),
        (
            "a length beyond 64 bits",
            "content-length: 18446744073709551621\r\n",
            "12345",
        ),
        (
            "the largest length",
            "content-length: 18446744073709551615\r\n",
            "12345",
        ),
        (
            "a chunk size with a plus",
            "transfer-encoding: chunked\r\n",
            "+5\r\n12345\r\n0\r\n\r\n",
        ),
        (
            "a chunk size with 0x",
            "transfer-encoding: chunked\r\n",
            "0x5\r\n12345\r\n0\r\n\r\n",
        ),
        (
            "a chunk size that overflows",
            "transfer-encoding: chunked\r\n",
            "10000000000000005\r\n12345\r\n0\r\n\r\n",
        ),
        (
            "a chunk size of nothing",
            "transfer-encoding: chunked\r\n",
            "\r\n12345\r\n0\r\n\r\n",
        ),
        (
            "a chunk longer than it says",
            "transfer-encoding: chunked\r\n",
            "3\r\n12345\r\n0\r\n\r\n",
        ),
        (
            "a bare LF after a chunk size",
            "transfer-encoding: chunked\r\n",
            "5\n12345\r\n0\r\n\r\n",
        ),
        (
            "a bare LF in a chunk extension",
            "transfer-encoding: chunked\r\n",
            "5;a\nb\r\n12345\r\n0\r\n\r\n",
        ),
        ("two hosts", "host: b\r\n", ""),
        ("the same host twice", "host: a\r\n", ""),
    ] {
        let bytes = format!("POST /fine HTTP/1.1\r\nhost: a\r\n{head}\r\n{body}");
        let (codes, seen) = told(&process, &strict, bytes.as_bytes()).await;
        let evil = seen.iter().any(|s| s.line.contains("evil"));
        assert!(!evil && seen.is_empty(), "{name}: {codes:?} {seen:?}");
        assert!(codes.iter().all(|c| c != "200"), "{name}: {codes:?}");
    }
    for (name, bytes) in [
        (
            "white space before the first header",
            "GET /fine HTTP/1.1\r\n host: a\r\n\r\n",
        ),
        ("no version", "GET /fine\r\nhost: a\r\n\r\n"),
        ("two spaces", "GET  /fine HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("a tab", "GET\t/fine HTTP/1.1\r\nhost: a\r\n\r\n"),
        (
            "a space in the target",
            "GET /fine x HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "a NUL in the target",
            "GET /fi\0ne HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "a NUL in the method",
            "GE\0T /fine HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        ("a version to come", "GET /fine HTTP/1.2\r\nhost: a\r\n\r\n"),
        ("CONNECT", "CONNECT evil:1 HTTP/1.1\r\nhost: evil:1\r\n\r\n"),
        (
            "a coding in HTTP/1.0",
            "POST /fine HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a host with a path",
            "GET /fine HTTP/1.1\r\nhost: a/b\r\n\r\n",
        ),
        ("a host of two", "GET /fine HTTP/1.1\r\nhost: a, b\r\n\r\n"),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ] {
        let (codes, seen) = told(&process, &strict, bytes.as_bytes()).await;
        assert!(
            seen.is_empty() && codes.iter().all(|c| c != "200"),
            "{name}: {codes:?} {seen:?}"
        );
    }
    process.recovers("ambiguous requests").await;
}

/// Shapes that can be understood in one way: just that is what the server gets.
#[tokio::test]
async fn what_can_be_made_unambiguous_is_before_it_is_sent_on() {
    let (strict, _standin, process) = setting().await;
    let both = "content-length: 6\r\ntransfer-encoding: chunked\r\n";
    let reversed = "transfer-encoding: chunked\r\ncontent-length: 6\r\n";
    let five = "5\r\n12345\r\n0\r\n\r\n";
    for (name, bytes, bodies, host) in [
        ("CL and TE", format!("POST /fine HTTP/1.1\r\nhost: a\r\n{both}\r\n{five}"), vec!["12345"], "a"),
        ("TE and CL", format!("POST /fine HTTP/1.1\r\nhost: a\r\n{reversed}\r\n{five}"), vec!["12345"], "a"),
        ("CHUNKED", format!("POST /fine HTTP/1.1\r\nhost: a\r\ntransfer-encoding: ChUnKeD\r\n\r\n{five}"), vec!["12345"], "a"),
        ("a length said twice", "POST /fine HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n12345".into(), vec!["12345"], "a"),
        ("a GET with a body", "GET /fine HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n12345".into(), vec!["12345"], "a"),
        ("a GET in chunks", format!("GET /fine HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{five}"), vec!["12345"], "a"),
        ("Connection: content-length", "POST /fine HTTP/1.1\r\nhost: a\r\nconnection: content-length\r\ncontent-length: 5\r\n\r\n12345".into(), vec!["12345"], "a"),
        ("Connection: transfer-encoding", format!("POST /fine HTTP/1.1\r\nhost: a\r\nconnection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n{five}"), vec!["12345"], "a"),
        ("Connection: host", "GET /fine HTTP/1.1\r\nhost: a\r\nconnection: host\r\n\r\n".into(), vec![""], "a"),
        ("an upgrade", "GET /fine HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".into(), vec![""], "a"),
        ("h2c", "GET /fine HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n".into(), vec![""], "a"),
        ("h2c without its nomination", "GET /fine HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n".into(), vec![""], "a"),
        ("TRACE", "TRACE /fine HTTP/1.1\r\nhost: a\r\n\r\n".into(), vec![""], "a"),
        ("absolute, another host", "GET http://b:1/fine HTTP/1.1\r\nhost: a\r\n\r\n".into(), vec![""], "b:1"),
        ("absolute, a password", "GET http://u:p@b/fine HTTP/1.1\r\nhost: a\r\n\r\n".into(), vec![""], "b"),
        ("HTTP/1.0 without a host", "GET /fine HTTP/1.0\r\n\r\n".into(), vec![""], "localhost"),
        ("bare LF", "GET /fine HTTP/1.1\nhost: a\n\n".into(), vec![""], "a"),
        ("an empty line first", "\r\n\r\nGET /fine HTTP/1.1\r\nhost: a\r\n\r\n".into(), vec![""], "a"),
        ("a chunk extension", "POST /fine HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;a=b;c=\"d\"\r\n12345\r\n0\r\n\r\n".into(), vec!["12345"], "a"),
        ("pipelined", "POST /fine HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n1GET /fine HTTP/1.1\r\nhost: a\r\n\r\nPOST /fine HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n33\r\n0\r\n\r\n".into(), vec!["1", "", "33"], "a"),
        ("a request in a body", format!("POST /fine HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{EVIL}", EVIL.len()), vec![EVIL], "a"),
    ] {
        let (codes, seen) = told(&process, &strict, bytes.as_bytes()).await;
        assert_eq!(codes, vec!["200"; bodies.len()], "{name}");
        let got: Vec<_> = seen.iter().map(|s| String::from_utf8_lossy(&s.body)).collect();
        assert_eq!(got, bodies, "{name}");
        for one in &seen {
            assert!(one.line.contains(" /fine "), "{name}: {one:?}");
            assert_eq!(one.all("host"), [host], "{name}");
        }
    }
    // Endless extensions are cut.
    let endless = format!(
        "POST /fine HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{}",
        format!("1;{}\r\nx\r\n", "e".repeat(2_000)).repeat(100)
    );
    let (codes, seen) = told(&process, &strict, endless.as_bytes()).await;
    assert!(
        seen.is_empty() && codes.iter().all(|c| c != "200"),
        "{codes:?} {seen:?}"
    );
    process.recovers("odd requests").await;
}

/// Two requests on one connection of a caller; what was heard, and the server's connections.
async fn two(process: &Process, strict: &Strict, answer: &[u8]) -> (String, String, Vec<usize>) {
    strict.take();
    strict.answers(answer);
    let mut stream = TcpStream::connect(process.http).await.unwrap();
    let ask = |n| format!("GET /fine{n} HTTP/1.1\r\nhost: a\r\n\r\n");
    stream.write_all(ask(1).as_bytes()).await.unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let mut first = String::new();
    // An answer has come when nothing more does; most end the connection, or have a length.
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(
        std::time::Duration::from_millis(300),
        stream.read(&mut buffer),
    )
    .await
    {
        first.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    strict.answers(FINE);
    let mut second = String::new();
    if stream.write_all(ask(2).as_bytes()).await.is_ok() {
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = within("the second answer", stream.read_to_end(&mut rest)).await;
        second = String::from_utf8_lossy(&rest).into_owned();
    }
    let connections = strict.take().into_iter().map(|s| s.unwrap().connection);
    (first, second, connections.collect())
}

#[tokio::test]
async fn a_connection_of_the_server_with_an_ambiguous_answer_is_not_used_again() {
    let (strict, _standin, process) = setting().await;
    for (name, answer, code) in [
        ("CL and TE", &b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n"[..], "200"),
        ("TE and CL", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n5\r\n12345\r\n0\r\n\r\n", "200"),
        ("a length said twice", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nfine", "200"),
        ("an answer too many", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfineHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", "200"),
        ("bytes too many", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfineevil", "200"),
        ("a body with 204", b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", "204"),
        ("a length with 204", b"HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\nevil", "204"),
        ("a length and a body with 304", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\nevil", "304"),
        ("chunks with 204", b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n", "204"),
    ] {
        let (first, second, connections) = two(&process, &strict, answer).await;
        assert!(first.starts_with(&format!("HTTP/1.1 {code} ")), "{name}: {first}");
        let ended = first.matches("HTTP/1.1 ").count();
        assert_eq!(ended, 1, "{name}: {first}");
        assert!(!first.contains("evil") && !second.contains("evil"), "{name}: {first}{second}");
        // The caller hears the second answer to its second request, or that its connection ends.
        if !second.is_empty() {
            assert!(second.ends_with("fine"), "{name}: {second}");
            assert_ne!(connections[0], connections[1], "{name}: used again");
        }
    }
    for (name, answer) in [
        (
            "lengths that differ",
            &b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 8\r\n\r\nfineevil"[..],
        ),
        (
            "a list of lengths",
            b"HTTP/1.1 200 OK\r\ncontent-length: 4, 8\r\n\r\nfineevil",
        ),
        (
            "a minus",
            b"HTTP/1.1 200 OK\r\ncontent-length: -4\r\n\r\nevil",
        ),
        (
            "a plus",
            b"HTTP/1.1 200 OK\r\ncontent-length: +4\r\n\r\nevil",
        ),
        ("no colon", b"HTTP/1.1 200 OK\r\nevil\r\n\r\n"),
        (
            "a space before the colon",
            b"HTTP/1.1 200 OK\r\ncontent-length : 4\r\n\r\nevil",
        ),
        ("another protocol", b"SSH-2.0-evil\r\n"),
        (
            "a switch that nobody asked for",
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: evil\r\nconnection: upgrade\r\n\r\nevil",
        ),
        (
            "a status of four digits",
            b"HTTP/1.1 2000 OK\r\ncontent-length: 4\r\n\r\nevil",
        ),
        (
            "a NUL",
            b"HTTP/1.1 200 OK\r\nx: \0\r\ncontent-length: 4\r\n\r\nevil",
        ),
    ] {
        let (first, second, connections) = two(&process, &strict, answer).await;
        assert!(first.starts_with("HTTP/1.1 502 "), "{name}: {first}");
        assert!(
            !first.contains("upgrade:") && !second.contains("evil"),
            "{name}: {first}{second}"
        );
        if !second.is_empty() {
            assert_ne!(connections[0], connections[1], "{name}: used again");
        }
    }
    process.recovers("ambiguous answers").await;
}

/// What has no body has none, whatever it says of one, and the connection stays in step.
#[tokio::test]
async fn answers_without_a_body_and_100_continue_keep_connections_in_step() {
    let (strict, _standin, process) = setting().await;
    for (answer, code) in [
        (&b"HTTP/1.1 204 No Content\r\n\r\n"[..], "204"),
        (b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n", "304"),
        (
            b"HTTP/1.1 304 Not Modified\r\ncontent-length: 1000\r\n\r\n",
            "304",
        ),
    ] {
        let (first, second, connections) = two(&process, &strict, answer).await;
        assert!(first.starts_with(&format!("HTTP/1.1 {code} ")), "{first}");
        assert!(
            first.ends_with("\r\n\r\n") && !first.contains("transfer-encoding"),
            "{first}"
        );
        assert!(second.ends_with("fine"), "{second}");
        assert_eq!(connections[0], connections[1], "a sound connection is kept");
    }
    // To a HEAD the length is of what is not sent.
    strict.answers(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
    let head = "HEAD /fine HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2);
    let (codes, seen) = told(&process, &strict, head.as_bytes()).await;
    assert_eq!((codes, seen.len()), (vec!["200".to_string(); 2], 2));
    // The caller is told to go on by the shim; the server is asked once, without the expectation.
    strict.answers(FINE);
    let mut stream = TcpStream::connect(process.http).await.unwrap();
    stream
        .write_all(
            b"POST /fine HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
        )
        .await
        .unwrap();
    let mut heard = [0; 25];
    within("100 Continue", stream.read_exact(&mut heard))
        .await
        .unwrap();
    assert_eq!(&heard, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"12345").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    within("the answer", stream.read_to_string(&mut rest))
        .await
        .unwrap();
    assert!(
        rest.starts_with("HTTP/1.1 200 ") && rest.ends_with("fine"),
        "{rest}"
    );
    let seen: Vec<_> = strict.take().into_iter().map(Result::unwrap).collect();
    assert_eq!((seen.len(), &seen[0].body[..]), (1, &b"12345"[..]));
    assert!(seen[0].all("expect").is_empty());
    // Interim answers of the server that nobody asked for change nothing.
    let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    let (first, second, _) = two(&process, &strict, &[interim, FINE].concat()).await;
    assert!(
        first.ends_with("fine") && second.ends_with("fine"),
        "{first}{second}"
    );
}

/// What goes on beside it: a caller of another connection gets its own answers only.
#[tokio::test]
async fn another_caller_gets_its_own_answers_only() {
    let (strict, _standin, process) = setting().await;
    let attack = async {
        for _ in 0..50 {
            let bytes = format!(
                "POST /fine HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}"
            );
            let _ = say(process.http, bytes.as_bytes()).await;
        }
    };
    let innocent = async {
        for _ in 0..100 {
            let answer = get(process.http, "/innocent").await.unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.ends_with("fine"),
                "{answer}"
            );
        }
    };
    within("both", async { tokio::join!(attack, innocent) }).await;
    let seen: Vec<_> = strict.take().into_iter().map(Result::unwrap).collect();
    let innocents: Vec<usize> = seen
        .iter()
        .filter(|s| s.line.contains("innocent"))
        .map(|s| s.connection)
        .collect();
    let others: Vec<usize> = seen
        .iter()
        .filter(|s| !s.line.contains("innocent"))
        .map(|s| s.connection)
        .collect();
    assert_eq!(innocents.len(), 100);
    assert!(
        innocents.iter().all(|c| !others.contains(c)),
        "a connection was shared"
    );
}
