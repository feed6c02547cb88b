//! What the HTTP relay reads of requests and of the repository index: paths, a few headers, and the
//! index where the probe model is kept out of it.

use agent_shim::capability::probe_model::NAME;
use agent_shim::fuzzing::{about, deadline as read_deadline, in_plain_words, strip_hop_by_hop};
use agent_shim::proto::RepositoryIndexResponse;
use agent_shim::relay::reserved;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use prost::Message;
use serde_json::Value;

use super::protobuf::others;

/// `METHOD path`, headers, an empty line, and a body.
pub fn check(input: &[u8]) {
    let mut rest = input;
    let mut lines = std::iter::from_fn(|| {
        let end = rest.iter().position(|b| *b == b'\n')?;
        let line = &rest[..end];
        rest = &rest[end + 1..];
        (!line.is_empty()).then_some(line)
    });
    let first = lines.next().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines.by_ref().take(64) {
        if let Some(colon) = line.iter().position(|b| *b == b':')
            && let Ok(name) = HeaderName::from_bytes(&line[..colon])
            && let Ok(value) = HeaderValue::from_bytes(&line[colon + 1..])
        {
            headers.append(name, value);
        }
    }
    if let Some((method, path)) = String::from_utf8_lossy(first).split_once(' ')
        && let Ok(method) = method.parse()
    {
        path_of(&method, path);
    }
    hop_by_hop(headers.clone());
    deadline(&headers);
    index_json(rest);
    index_grpc(rest);
}

/// The bytes of a segment without its escapes.
fn unescaped(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

fn path_of(method: &Method, path: &str) {
    let known = about(method, path);
    let mut parts: Vec<&str> = path.split('/').collect();
    // A call may name the version of its model: it is the same call.
    if let ["", "v2", "models", _, "versions", _, _] = parts[..] {
        parts.drain(4..6);
    }
    let expected = match (method == Method::POST, &parts[..]) {
        (true, ["", "v2", "repository", "models", name, "load"]) => Some(("load", *name)),
        (true, ["", "v2", "repository", "models", name, "unload"]) => Some(("unload", *name)),
        (true, ["", "v2", "models", name, "infer" | "generate"]) => Some(("inference", *name)),
        (true, ["", "v2", "models", name, "infer_stream" | "generate_stream"]) => {
            Some(("stream", *name))
        }
        _ => None,
    };
    let plain = |name: &str| String::from_utf8_lossy(&unescaped(name)).into_owned();
    assert_eq!(
        known,
        expected.map(|(kind, name)| (kind, plain(name))),
        "{path:?}"
    );
    let reserved = expected.is_some_and(|(kind, name)| {
        matches!(kind, "load" | "unload") && unescaped(name) == NAME.as_bytes()
    });
    assert_eq!(reserved::names_http(method, path), reserved, "{path:?}");
}

fn hop_by_hop(mut headers: HeaderMap) {
    let before = headers.clone();
    strip_hop_by_hop(&mut headers);
    let mut gone: Vec<String> = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
        "expect",
    ]
    .map(String::from)
    .into();
    for value in before.get_all("connection") {
        let listed = value.to_str().unwrap_or_default().split(',');
        gone.extend(listed.map(|name| name.trim().to_ascii_lowercase()));
    }
    gone.retain(|name| name != "host");
    let stays = |name: &HeaderName| !gone.iter().any(|g| g == name.as_str());
    let mut expected: Vec<_> = before.iter().filter(|(name, _)| stays(name)).collect();
    let mut after: Vec<_> = headers.iter().collect();
    // The map keeps the order of values of one name, not that of the names.
    expected.sort_by_key(|(name, _)| name.as_str());
    after.sort_by_key(|(name, _)| name.as_str());
    assert_eq!(after, expected);
}

/// At most eight digits and a unit, and nothing else.
fn deadline(headers: &HeaderMap) {
    let text = headers
        .get("grpc-timeout")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let digits = text
        .strip_suffix(['H', 'M', 'S', 'm', 'u', 'n'])
        .unwrap_or_default();
    let sound = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let nanos: Option<u128> = sound
        .then(|| digits.parse::<u128>().ok())
        .flatten()
        .map(|n| {
            n * match text.chars().last() {
                Some('H') => 3_600_000_000_000,
                Some('M') => 60_000_000_000,
                Some('S') => 1_000_000_000,
                Some('m') => 1_000_000,
                Some('u') => 1000,
                _ => 1,
            }
        });
    let read = read_deadline(headers);
    assert_eq!(read.map(|d| d.as_nanos()), nanos, "{text:?}");
}

fn is_ours(model: &Value) -> bool {
    model.get("name").and_then(Value::as_str) == Some(NAME)
}

fn index_json(body: &[u8]) {
    let Some(shorter) = reserved::without_json(body) else {
        return;
    };
    assert!(shorter.len() < body.len());
    let before: Vec<Value> = serde_json::from_slice(body).expect("only a list is changed");
    let after: Vec<Value> = serde_json::from_slice(&shorter).expect("it stays a list");
    assert!(after.len() < before.len());
    // Only what has the name goes, and the rest stays in its order.
    let mut left = after.iter().peekable();
    for model in &before {
        if left.peek() == Some(&model) {
            left.next();
        } else {
            assert!(is_ours(model), "{model}");
        }
    }
    assert_eq!(left.next(), None);
}

fn index_grpc(body: &[u8]) {
    let shorter = reserved::without_grpc(body);
    let plain = in_plain_words(body, |name| name.len() % 2 == 1);
    let _ = reserved::names_grpc(body);
    let Ok(before) = RepositoryIndexResponse::decode(body) else {
        return;
    };
    let ours = before.models.iter().any(|m| m.name == NAME);
    assert_eq!(shorter.is_some(), ours, "the model goes where it is listed");
    if let Some(shorter) = shorter {
        let after = RepositoryIndexResponse::decode(&shorter[..]).expect("an edit decodes");
        let mut expected = before.clone();
        expected.models.retain(|m| m.name != NAME);
        assert_eq!(after, expected);
        assert_eq!(others(body, &[&[1]]), others(&shorter, &[&[1]]));
    }
    let mut expected = before.clone();
    for model in &mut expected.models {
        let bare = model
            .state
            .strip_prefix("State.")
            .unwrap_or(&model.state)
            .to_string();
        model.state = match bare.as_str() {
            "UNKNOWN" => "LOADING".into(),
            "UNAVAILABLE" if model.name.len() % 2 == 1 => "LOADING".into(),
            _ => bare,
        };
    }
    let same = expected == before;
    if let Some(plain) = &plain {
        assert_eq!(others(body, &[&[1, 3]]), others(plain, &[&[1, 3]]));
    }
    let after = plain.as_deref().unwrap_or(body);
    let after = RepositoryIndexResponse::decode(after).expect("an edit decodes");
    assert_eq!(after, expected);
    assert!(plain.is_none() || !same);
}
