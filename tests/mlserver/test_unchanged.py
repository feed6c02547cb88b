"""What MLServer says arrives as it said it, errors included, and so does what it is told."""

import gzip
import json
import socket

import grpc
import pytest

from callers import (
    KINDS_OF_CONNECTION,
    Answer,
    begin,
    grpc_stub,
    http,
    infer_body,
    infer_request,
    pb,
)

both_kinds_of_connection = pytest.mark.parametrize("first", KINDS_OF_CONNECTION)


def comparable(answer: Answer, target: str) -> tuple:
    """An answer without what differs from call to call, and without the address it came from."""
    headers = {name: value.replace(target, "HOST") for name, value in answer.headers.items()}
    for name in ("date", "connection", "keep-alive"):
        headers.pop(name, None)
    return answer.status, headers, answer.body


def test_http_answers_come_through_unchanged_whatever_their_status(server, start_shim):
    absent = server.home / "models" / "absent"
    absent.mkdir(exist_ok=True)
    (absent / "model-settings.json").write_text(
        json.dumps({"name": "absent", "implementation": "mlserver_absent.Runtime"})
    )
    infer = "/v2/models/echo/infer"
    no_value = {"inputs": [{"name": "x", "shape": [0], "datatype": "FP32", "data": []}]}
    requests = [
        (200, "GET", "/v2", None),
        (200, "POST", infer, infer_body("a", 1.0)),
        (200, "POST", "/v2/models/echo/versions/v0.1.0/infer", infer_body("b", 1.0)),
        (200, "POST", "/v2/repository/index", {}),
        (200, "GET", "/v2/models/echo/ready", None),
        (307, "GET", "/v2/", None),
        (307, "GET", "/v2/health/live/", None),
        (404, "GET", "/nosuch", None),
        (404, "GET", "/v2/models/nosuch", None),
        (404, "GET", "/v2/models/nosuch/ready", None),
        (404, "POST", "/v2/models/nosuch/infer", infer_body("c", 1.0)),
        (404, "POST", "/v2/models/echo/versions/v9/infer", infer_body("d", 1.0)),
        (404, "POST", "/v2/repository/models/nosuch/load", None),
        (404, "POST", "/v2/repository/models/nosuch/unload", None),
        (405, "GET", "/v2/repository/index", None),
        (405, "PUT", infer, {}),
        (422, "POST", "/v2/repository/index", None),
        (422, "POST", infer, "not json"),
        (422, "POST", infer, {"id": "no inputs"}),
        (500, "POST", "/v2/models/patient/infer", no_value),
        # A runtime that is not installed: a traceback as text, not JSON.
        (500, "POST", "/v2/repository/models/absent/load", None),
    ]

    def all_answers(target: str) -> list[tuple]:
        return [
            comparable(http(target, method, path, body), target)
            for _, method, path, body in requests
        ]

    try:
        direct = all_answers(server.http)
        assert [status for status, _, _ in direct] == [status for status, *_ in requests]

        shim = start_shim(server)
        shim.wait_until_up()
        for request, expected, got in zip(requests, direct, all_answers(shim.http)):
            assert got == expected, request
    finally:
        (absent / "model-settings.json").unlink()
        absent.rmdir()


@both_kinds_of_connection
def test_grpc_answers_come_through_unchanged_whatever_their_status(server, start_shim, first):
    server.load("iris")
    wrong_type = infer_request("echo", "f", 1.0)
    wrong_type.inputs[0].datatype = "NOSUCH"
    code = grpc.StatusCode
    requests = [
        (code.OK, "ServerMetadata", pb.ServerMetadataRequest()),
        (code.OK, "ModelMetadata", pb.ModelMetadataRequest(name="echo")),
        (code.OK, "ModelReady", pb.ModelReadyRequest(name="echo")),
        (code.OK, "ModelInfer", infer_request("echo", "a", 1.0)),
        (code.OK, "RepositoryIndex", pb.RepositoryIndexRequest()),
        (code.NOT_FOUND, "ModelInfer", infer_request("nosuch", "b", 1.0)),
        (code.NOT_FOUND, "ModelMetadata", pb.ModelMetadataRequest(name="nosuch")),
        (code.NOT_FOUND, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nosuch")),
        (
            code.NOT_FOUND,
            "RepositoryModelUnload",
            pb.RepositoryModelUnloadRequest(model_name="nosuch"),
        ),
        (code.INVALID_ARGUMENT, "ModelInfer", pb.ModelInferRequest(model_name="iris", id="c")),
        (code.INTERNAL, "ModelInfer", wrong_type),
        (code.UNKNOWN, "ModelReady", pb.ModelReadyRequest(name="nosuch")),
        (code.UNIMPLEMENTED, "TraceSetting", pb.TraceSettingRequest()),
    ]

    def all_answers(target: str) -> list[tuple]:
        answers = []
        with grpc_stub(target) as stub:
            begin(stub, first)
            for _, method, request in requests:
                call = getattr(stub, method).with_call
                try:
                    reply, outcome = call(request, timeout=60)
                except grpc.RpcError as error:
                    reply, outcome = None, error
                initial = sorted(map(tuple, outcome.initial_metadata()))
                trailing = sorted(map(tuple, outcome.trailing_metadata()))
                answers.append((outcome.code(), reply, outcome.details(), initial, trailing))
        return answers

    direct = all_answers(server.grpc)
    assert [answer[0] for answer in direct] == [expected for expected, *_ in requests]

    shim = start_shim(server)
    shim.wait_until_up()
    for request, expected, got in zip(requests, direct, all_answers(shim.grpc)):
        if request[1] == "RepositoryIndex" and first == "control":
            # The one difference that is wanted: the states in the agent's own words.
            for model in expected[1].models:
                model.state = model.state.removeprefix("State.").replace("UNKNOWN", "LOADING")
        assert got == expected, request


def test_the_server_gets_the_headers_that_the_caller_sent(server, start_shim):
    server.load("headers")
    sent = {
        "X-Text": "a b; c=d",
        "x-lower": "e",
        "Seldon-Model": "headers",
        "traceparent": "00-1-2-03",
    }

    def received_by(target: str) -> list[str]:
        body = infer_body("a", 1.0)
        answer = http(target, "POST", "/v2/models/headers/infer", body, headers=sent)
        return [line.replace(target, "HOST") for line in answer.json()["outputs"][0]["data"]]

    direct = received_by(server.http)
    assert "x-text: 'a b; c=d'" in direct

    shim = start_shim(server)
    shim.wait_until_up()
    assert received_by(shim.http) == direct


@both_kinds_of_connection
def test_the_server_gets_the_metadata_that_the_caller_sent(server, start_shim, first):
    server.load("headers")
    metadata = [("x-text", "a b; c=d"), ("x-some-bin", bytes(range(256))), ("x-long", "f" * 5000)]

    def received_by(target: str) -> list[list[bytes]]:
        # More than one: later calls of a connection refer to the headers of earlier ones.
        with grpc_stub(target) as stub:
            if first == "control":
                begin(stub, first)
            calls = [
                stub.ModelInfer(infer_request("headers", "a", 1.0), metadata=metadata, timeout=60)
                for _ in range(3)
            ]
        return [list(call.outputs[0].contents.bytes_contents) for call in calls]

    direct = received_by(server.grpc)
    assert b"x-text: 'a b; c=d'" in direct[0]

    shim = start_shim(server)
    shim.wait_until_up()
    assert received_by(shim.grpc) == direct


def test_unusual_http_is_understood_as_the_server_understands_it(server, start_shim):
    shim = start_shim(server)
    shim.wait_until_up()
    body = json.dumps(infer_body("unusual", 1.0)).encode()
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    last = b"Connection: close\r\n"
    sized = b"Content-Length: %d\r\n" % len(body)

    def said_to(target: str, *parts: bytes) -> bytes:
        """Sends part after part, each but the first when something has come back."""
        host, _, port = target.partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(parts[0])
            received = b""
            for part in parts[1:]:
                received += connection.recv(65536)
                connection.sendall(part)
            while more := connection.recv(65536):
                received += more
        return received

    for target in (server.http, shim.http):
        chunks = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (10, body[:10], len(body) - 10, body[10:])
        chunked = said_to(target, head + last + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        assert chunked.startswith(b"HTTP/1.1 200") and b'"unusual"' in chunked, chunked

        pipelined = said_to(
            target, (head + sized + b"\r\n" + body) + head + sized + last + b"\r\n" + body
        )
        assert pipelined.count(b"HTTP/1.1 200") == pipelined.count(b'"unusual"') == 2, pipelined

        expecting = said_to(target, head + sized + last + b"Expect: 100-continue\r\n\r\n", body)
        assert expecting.startswith(b"HTTP/1.1 100") and b'"unusual"' in expecting, expecting

        large_header = said_to(
            target, head + sized + last + b"X-Large: %s\r\n\r\n" % (b"x" * 50_000) + body
        )
        assert large_header.startswith(b"HTTP/1.1 200"), large_header[:200]

        packed = head + b"Accept-Encoding: gzip\r\n" + last
        large = json.dumps(
            {"inputs": [{"name": "x", "shape": [999], "datatype": "FP32", "data": [1.0] * 999}]}
        ).encode()
        zipped = said_to(target, packed + b"Content-Length: %d\r\n\r\n" % len(large) + large)
        headers, _, content = zipped.partition(b"\r\n\r\n")
        assert b"content-encoding: gzip" in headers.lower(), headers
        assert len(json.loads(gzip.decompress(content))["outputs"][0]["data"]) == 999


@both_kinds_of_connection
def test_metadata_that_is_too_large_for_the_server_is_an_error_of_one_call(
    server, start_shim, first
):
    shim = start_shim(server)
    shim.wait_until_up()
    for target in (server.grpc, shim.grpc):
        with grpc_stub(target) as stub:
            # The limit holds from when both sides have agreed on it: not for the first call.
            begin(stub, first)
            with pytest.raises(grpc.RpcError) as error:
                stub.ModelInfer(
                    infer_request("echo", "a", 1.0), metadata=[("large", "x" * 20_000)], timeout=60
                )
            assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert stub.ModelInfer(infer_request("echo", "b", 1.0), timeout=60).id == "b"


def test_health_is_answered_by_the_shim_with_the_statuses_of_the_server(server, start_shim):
    shim = start_shim(server)
    shim.wait_until_up()
    for path in ("/v2/health/live", "/v2/health/ready"):
        for method, status, allowed in (
            ("GET", 200, None),
            ("HEAD", 405, "GET"),
            ("POST", 405, "GET"),
        ):
            for target in (server.http, shim.http):
                answer = http(target, method, path)
                assert (answer.status, answer.headers.get("allow")) == (status, allowed), target
                assert status != 200 or answer.body == b""


def test_a_redirect_of_the_server_leads_back_to_the_shim_and_not_past_it(server, start_shim):
    shim = start_shim(server)
    shim.wait_until_up()
    for target in (server.http, shim.http):
        answer = http(target, "GET", "/v2/")
        assert answer.status == 307
        assert answer.headers["location"] == f"http://{target}/v2"


def test_a_client_that_closes_its_half_too_early_gets_a_whole_answer_or_none(server, start_shim):
    body = json.dumps(infer_body("half", 1.0)).encode()
    infer = (
        b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )

    def send_and_close_half(target: str) -> bytes:
        host, _, port = target.partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(infer)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while more := connection.recv(65536):
                received += more
            return received

    # Without the shim: MLServer takes the half-close for a disconnect and drops the answer.
    assert send_and_close_half(server.http) == b""

    shim = start_shim(server)
    shim.wait_until_up()
    received = send_and_close_half(shim.http)
    assert received == b"" or (received.startswith(b"HTTP/1.1 200") and b'"half"' in received)
    assert http(shim.http, "POST", "/v2/models/echo/infer", infer_body("next", 1.0)).status == 200
