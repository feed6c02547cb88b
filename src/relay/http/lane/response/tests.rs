use super::*;

fn answer(text: &str, to_head: bool) -> Answer {
    match judge(text.as_bytes(), to_head) {
        Judged::Final(answer) => answer,
        other => panic!("{text:?}: {other:?}"),
    }
}

/// How an answer goes on: its head, its framing, and whether the connection is used up.
fn told(text: &str) -> (String, Framing, bool) {
    let answer = answer(text, false);
    let head = match &answer.rewritten {
        Some(head) => String::from_utf8(head.clone()).unwrap(),
        None => text[..answer.head].to_string(),
    };
    (head, answer.framing, answer.last)
}

fn chunks() -> Framing {
    Framing::Chunks(Chunks::default())
}

#[test]
fn a_plain_answer_goes_on_as_it_came() {
    for (text, framing) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
            Framing::Length(4),
        ),
        (
            "HTTP/1.1 404 Not  here\r\nx: y\r\ncontent-length: 0\r\n\r\n",
            Framing::Length(0),
        ),
        (
            "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n",
            chunks(),
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", Framing::Length(0)),
        (
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
            Framing::Length(0),
        ),
    ] {
        let whole = format!("{text}evil");
        let answer = answer(&whole, false);
        assert_eq!(
            (answer.head, answer.rewritten),
            (text.len(), None),
            "{text:?}"
        );
        assert_eq!((answer.framing, answer.last), (framing, false), "{text:?}");
        for n in 0..text.len() {
            assert_eq!(judge(&text.as_bytes()[..n], false), Judged::Partial, "{n}");
        }
    }
    let head = answer("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", true);
    assert_eq!(
        (head.framing, head.rewritten, head.last),
        (Framing::Length(0), None, false)
    );
}

#[test]
fn what_belongs_to_the_servers_connection_stays_there() {
    let (head, framing, last) = told(
        "HTTP/1.1 200 OK\r\nConnection: close, X-Own\r\nx-own: 1\r\nkeep-alive: timeout=5\r\ncontent-length: 4\r\ny: z\r\n\r\n",
    );
    assert_eq!(head, "HTTP/1.1 200 OK\r\ny: z\r\ncontent-length: 4\r\n\r\n");
    assert_eq!((framing, last), (Framing::Length(4), true));
    let (head, _, last) =
        told("HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 4\r\n\r\n");
    assert_eq!(head, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n");
    assert!(!last);
    // The end of a body is not to be nominated away.
    let (head, framing, _) =
        told("HTTP/1.1 200 OK\r\nconnection: content-length\r\ncontent-length: 4\r\n\r\n");
    assert_eq!(
        (&*head, framing),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
            Framing::Length(4)
        )
    );
}

#[test]
fn an_answer_of_two_ends_is_given_one_and_is_the_connections_last() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for (text, head, framing) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
            chunked,
            chunks(),
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            chunked,
            chunks(),
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: x\r\ntransfer-encoding: chunked\r\n\r\n",
            chunked,
            chunks(),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
            Framing::Length(4),
        ),
        ("HTTP/1.1 200 OK\r\n\r\n", chunked, Framing::Close),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n",
            chunked,
            Framing::Close,
        ),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
            Framing::Length(4),
        ),
        (
            "HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            Framing::Length(0),
        ),
        (
            "HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\n\r\n",
            Framing::Length(0),
        ),
    ] {
        assert_eq!(told(text), (head.to_string(), framing, true), "{text:?}");
    }
    // One end in other words: what goes on is said in ours.
    for (text, head, framing) in [
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            chunked,
            chunks(),
        ),
        (
            "HTTP/1.1 200 OK\ncontent-length: 4\n\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
            Framing::Length(4),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 4, 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
            Framing::Length(4),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 04\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
            Framing::Length(4),
        ),
        (
            "HTTP/1.1 200\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 \r\ncontent-length: 4\r\n\r\n",
            Framing::Length(4),
        ),
        (
            "\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
            Framing::Length(4),
        ),
        (
            "HTTP/1.1 200 OK\r\nx:  y \r\ncontent-length: 4\r\n\n",
            "HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 4\r\n\r\n",
            Framing::Length(4),
        ),
    ] {
        assert_eq!(told(text), (head.to_string(), framing, false), "{text:?}");
    }
}

#[test]
fn what_is_no_answer_is_malformed() {
    for text in [
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 8\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 4, 8\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -4\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: +4\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 4,\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length : 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: \0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nevil\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "SSH-2.0-evil\r\n",
    ] {
        let judged = judge(text.as_bytes(), false);
        assert!(
            matches!(judged, Judged::Malformed(_)),
            "{text:?}: {judged:?}"
        );
    }
    let many = |n: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(n));
    assert!(matches!(
        judge(many(101).as_bytes(), false),
        Judged::Malformed(_)
    ));
    assert!(matches!(
        judge(many(100).as_bytes(), false),
        Judged::Final(_)
    ));
    // To a HEAD, and where there is no body, no length is believed, and none that is none said.
    let head = answer("HTTP/1.1 200 OK\r\ncontent-length: 4, 8\r\n\r\n", true);
    assert_eq!(
        head.rewritten.as_deref(),
        Some(&b"HTTP/1.1 200 OK\r\n\r\n"[..])
    );
}

#[test]
fn words_before_the_answer_are_none() {
    assert_eq!(
        judge(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200", false),
        Judged::Interim(25)
    );
    assert_eq!(
        judge(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", true),
        Judged::Interim(37)
    );
    let switch = answer(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        false,
    );
    assert_eq!(switch.status, StatusCode::SWITCHING_PROTOCOLS);
    assert!(
        answer(
            "HTTP/1.1 500 x\r\ncontent-type: text/plain; x\r\n\r\n",
            false
        )
        .is_text
    );
    assert!(
        !answer(
            "HTTP/1.1 500 x\r\ncontent-type: application/json\r\n\r\n",
            false
        )
        .is_text
    );
}
