"""Connections that stay open after a first call, and what they cost the shim."""

import contextlib
import socket
from pathlib import Path

import load


def frame(kind, flags, stream, payload):
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


def literal(name, value):
    """A header field that neither side has to remember."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def first_call():
    """Preface, SETTINGS and one small inference."""
    headers = b"".join(
        literal(n, v)
        for n, v in [
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", load.INFER.encode()),
            (b":authority", b"bench"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        ]
    )  # fmt: skip
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, b"") + frame(4, 1, 0, b"")
        + frame(1, 4, 1, headers) + frame(0, 1, 1, load.infer_body(65))
    )  # fmt: skip


def first_call_http():
    """The same over HTTP/1.1."""
    body = load.infer_body(65)
    head = f"POST /v2/models/iris/infer HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextlib.contextmanager
def opened(port, count, said=None):
    """`count` connections, of gRPC or of what is said, opened one after another, each of which has had an answer."""
    said = said or first_call()
    held = []
    try:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", port), timeout=30)
            held.append(one)
            one.sendall(said)
            answer = b""
            # The echo of the body stands in the answer.
            while b"iris" not in answer:
                piece = one.recv(65536)
                if not piece:
                    raise RuntimeError(f"connection {len(held)} was closed: {answer!r}")
                answer += piece
        yield held
    finally:
        for one in held:
            one.close()


def anonymous(pid):
    """Memory that is the process's own: not the program's text, which the kernel may drop."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say RssAnon")
