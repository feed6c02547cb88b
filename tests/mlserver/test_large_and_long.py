"""Large tensors, long inferences, idle connections, and streams."""

import json
import socket
import threading
from http.client import HTTPConnection

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from callers import (
    KINDS_OF_CONNECTION,
    begin,
    grpc_client,
    grpc_infer,
    http,
    http_on,
    infer_body,
    infer_request,
    pb,
)
from processes import MLServer, cpu_seconds
from report import MEGABYTE, note
from waiting import Call, Watch, eventually

both_kinds_of_connection = pytest.mark.parametrize("first", KINDS_OF_CONNECTION)


def test_a_50_mb_tensor_goes_both_ways_over_http_in_little_memory(server, start_shim):
    values = np.random.default_rng(1).random(2_600_000, dtype=np.float32)
    tensor = {"name": "x", "shape": [len(values)], "datatype": "FP32", "data": values.tolist()}
    body = json.dumps({"id": "large", "inputs": [tensor]})
    assert len(body) > 50 * MEGABYTE

    direct = http(server.http, "POST", "/v2/models/echo/infer", body)
    assert direct.status == 200 and direct.json()["outputs"][0]["data"] == tensor["data"]

    shim = start_shim(server)
    shim.wait_until_up()
    # A body of this size keeps MLServer from answering for a second or more.
    with Watch(shim.says_live) as lives, Watch(shim.is_ready) as readies:
        through = http(shim.http, "POST", "/v2/models/echo/infer", body)
    assert through.status == 200
    assert (lives.distinct(), readies.distinct()) == (["(True, True)"], ["True"])
    # Compared so, since pytest would try to show how 50 MB differ.
    same = through.body == direct.body
    assert same
    note(f"peak memory of the shim after 50 MB both ways over HTTP: {_peak(shim)}")
    assert shim.memory_peak() < 64 * MEGABYTE


@both_kinds_of_connection
def test_a_50_mb_tensor_goes_both_ways_over_grpc_in_little_memory(server, start_shim, first):
    values = np.random.default_rng(2).random(50 * MEGABYTE // 4, dtype=np.float32)
    tensor = triton_grpc.InferInput("x", [len(values)], "FP32")
    tensor.set_data_from_numpy(values)

    def echoed(target: str) -> bool:
        with grpc_client(target) as client:
            if first == "control":
                client.get_server_metadata()
            reply = client.infer("echo", [tensor], client_timeout=120)
        return np.array_equal(reply.as_numpy("x"), values)

    assert echoed(server.grpc)

    shim = start_shim(server)
    shim.wait_until_up()
    with Watch(shim.says_live) as lives, Watch(shim.is_ready) as readies:
        assert echoed(shim.grpc)
    assert (lives.distinct(), readies.distinct()) == (["(True, True)"], ["True"])
    note(
        "peak memory of the shim after 50 MB both ways over gRPC "
        f"({first} connection): {_peak(shim)}"
    )
    assert shim.memory_peak() < 64 * MEGABYTE


def _peak(shim) -> str:
    return f"{shim.memory_peak() / MEGABYTE:.1f} MB"


def test_a_long_inference_is_not_killed_by_pings_of_the_shim(server, start_shim):
    def pinging_infer() -> object:
        # As often as many proxies do it by default.
        pings = [
            ("grpc.keepalive_time_ms", 1000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        with grpc_client(server.grpc, pings) as client:
            tensor = triton_grpc.InferInput("x", [1], "FP32")
            tensor.set_data_from_numpy(np.array([12], dtype=np.float32))
            return client.infer("patient", [tensor], request_id="pinged", client_timeout=60)

    shim = start_shim(server)
    shim.wait_until_up()
    over_http = Call(
        lambda: http(shim.http, "POST", "/v2/models/patient/infer", infer_body("long-http", 12.0))
    )
    over_grpc = Call(lambda: grpc_infer(shim.grpc, "patient", "long-grpc", 12.0))

    # Without the shim: MLServer answers a few pings during one call by ending the connection and
    # the call with it. A relay that pings would do this to every long inference.
    with pytest.raises(InferenceServerException) as killed:
        Call(pinging_infer).answer()
    assert killed.value.status() == "StatusCode.UNAVAILABLE"
    assert "too many pings" in killed.value.message().lower().replace("_", " ")

    assert over_grpc.answer().id == "long-grpc"
    assert over_http.answer().status == 200


def test_a_connection_that_was_idle_for_longer_than_the_server_allows_still_works(
    server, start_shim
):
    shim = start_shim(server)
    shim.wait_until_up()
    path = "/v2/models/echo/infer"
    cpu = cpu_seconds(shim.pid), cpu_seconds(server.pid)
    through, direct = HTTPConnection(shim.http, timeout=60), HTTPConnection(server.http, timeout=60)
    try:
        # The one through the shim first, so that it has been idle for longer than the other.
        assert http_on(through, "POST", path, infer_body("1", 1.0)).status == 200
        assert http_on(direct, "POST", path, infer_body("1", 1.0)).status == 200

        # Without the shim: MLServer closes an idle connection after five seconds.
        def closed_by_server() -> bool:
            direct.sock.settimeout(0.5)
            return direct.sock.recv(1, socket.MSG_PEEK) == b""

        eventually("MLServer has closed the idle connection", closed_by_server)

        connection_before = through.sock
        assert http_on(through, "POST", path, infer_body("2", 2.0)).json()["id"] == "2"
        assert through.sock is connection_before, "the client had to connect again"
    finally:
        through.close()
        direct.close()
    note(
        "in five seconds of nothing but probing: "
        f"cpu of the shim {cpu_seconds(shim.pid) - cpu[0]:.2f} s, "
        f"of MLServer's main process {cpu_seconds(server.pid) - cpu[1]:.2f} s"
    )


# --- Streams ---------------------------------------------------------------------------------


def test_every_event_of_a_stream_comes_through_when_it_is_sent_and_not_later(
    make_server, start_shim
):
    # With workers MLServer answers a stream with one message; without them it really streams.
    server = make_server("stream", env={"MLSERVER_PARALLEL_WORKERS": "0"})
    server.start()
    server.wait_until_up()
    server.load("stream")
    shim = start_shim(server)
    shim.wait_until_up()

    for name, over_http, over_grpc in (
        ("direct", server.http, server.grpc),
        ("shim", shim.http, shim.grpc),
    ):
        _check_events(server, over_http, f"{name}-sse")
        for first in ("control", "data"):
            _check_bidirectional_stream(server, over_grpc, f"{name}-{first}", first)


def _check_events(server: MLServer, target: str, call_id: str) -> None:
    connection = HTTPConnection(target, timeout=60)
    try:
        body = json.dumps(infer_body(call_id, 0.0))
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v2/models/stream/infer_stream", body, headers)
        response = None
        for n in range(3):
            # The server waits for this file, so an event that is held back is never followed.
            (server.calls / f"{call_id}.0.{n}").touch()
            if response is None:
                response = connection.getresponse()
                assert response.status == 200
                assert response.getheader("content-type").startswith("text/event-stream")
            event = response.readline().decode()
            assert event.startswith("data: "), event
            assert json.loads(event.removeprefix("data: "))["outputs"][0]["data"] == [0, n]
            assert response.readline() == b"\n"
        assert response.read() == b""
    finally:
        connection.close()


def _check_bidirectional_stream(server: MLServer, target: str, call_id: str, first: str) -> None:
    """The second request is sent when all answers to the first are there, on the same call."""
    first_is_answered = threading.Event()

    def requests():
        yield infer_request("stream", call_id, 0.0)
        first_is_answered.wait(60)
        yield infer_request("stream", call_id, 0.0)

    with grpc.insecure_channel(target) as channel:
        # Not by tritonclient's stub: Triton wraps the responses of a stream, MLServer does not.
        stream = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        if first == "control":
            begin(service_pb2_grpc.GRPCInferenceServiceStub(channel), first)
        answers = stream(requests(), timeout=60)
        for request in range(2):
            for n in range(3):
                (server.calls / f"{call_id}.{request}.{n}").touch()
                answer = next(answers)
                assert list(answer.outputs[0].contents.int_contents) == [request, n]
            first_is_answered.set()
        assert next(answers, None) is None
        assert answers.code() == grpc.StatusCode.OK
