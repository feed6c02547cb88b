"""Callers of both protocols, and the addresses they call. Everything is on loopback."""

import json
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from waiting import PATIENCE

# --- Addresses -------------------------------------------------------------------------------

_taken: set[int] = set()


def free_port() -> int:
    """A port that nothing listens on, on any address of either family, never given out twice.

    Not one of the kernel's choosing: those are also handed to the clients of other tests, and a
    server here may need its port a second time after a restart. A clash would be silent, because
    MLServer's gRPC shares its port with whoever allows it.
    """
    while True:
        port = random.randrange(20000, 32000)
        if port not in _taken and _is_free(port):
            _taken.add(port)
            return port


def _is_free(port: int) -> bool:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as candidate:
                if family == socket.AF_INET6:
                    candidate.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                candidate.bind((address, port))
        except OSError as error:
            if family == socket.AF_INET6 and not has_ipv6_loopback():
                continue
            if error.errno is None:
                raise
            return False
    return True


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as candidate:
            candidate.bind(("::1", 0))
        return True
    except OSError:
        return False


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def accepts(target: str) -> bool:
    """Whether a TCP connection is accepted, which says nothing about getting an answer."""
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except ConnectionRefusedError:
        return False


# --- HTTP ------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<{self.status} {self.headers} {self.body[:300]!r}>"


def http(
    target: str,
    method: str,
    path: str,
    body: bytes | str | dict | list | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = PATIENCE,
) -> Answer:
    """One request on a connection of its own."""
    connection = HTTPConnection(target, timeout=timeout)
    try:
        return http_on(connection, method, path, body, headers)
    finally:
        connection.close()


def http_on(
    connection: HTTPConnection,
    method: str,
    path: str,
    body: bytes | str | dict | list | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    given = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, body=body, headers=given | (headers or {}))
    response = connection.getresponse()
    return Answer(
        response.status,
        {name.lower(): value for name, value in response.getheaders()},
        response.read(),
    )


def is_refused(target: str) -> bool:
    try:
        http(target, "GET", "/v2/health/live", timeout=5)
        return False
    except ConnectionRefusedError:
        return True


def infer_body(call_id: str, value: float, name: str = "x") -> dict:
    return {
        "id": call_id,
        "inputs": [{"name": name, "shape": [1], "datatype": "FP32", "data": [value]}],
    }


# --- gRPC ------------------------------------------------------------------------------------

_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Otherwise channels to one target share a connection and its back-off, and what one test did
    # to a server would be felt by the next.
    ("grpc.use_local_subchannel_pool", 1),
    # A channel that has seen its server gone tries again soon, not after up to two minutes.
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@contextmanager
def grpc_client(
    target: str, options: list | None = None
) -> Iterator[triton_grpc.InferenceServerClient]:
    client = triton_grpc.InferenceServerClient(target, channel_args=_CHANNEL + (options or []))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def grpc_stub(target: str) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(target, options=_CHANNEL) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@contextmanager
def http_client(target: str) -> Iterator[triton_http.InferenceServerClient]:
    client = triton_http.InferenceServerClient(
        target, connection_timeout=PATIENCE, network_timeout=PATIENCE
    )
    try:
        yield client
    finally:
        client.close()


def grpc_infer(
    target: str, model: str, call_id: str, value: float, timeout: float = PATIENCE
) -> pb.ModelInferResponse:
    with grpc_stub(target) as stub:
        return stub.ModelInfer(infer_request(model, call_id, value), timeout=timeout)


def infer_request(model: str, call_id: str, value: float, name: str = "x") -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name=model,
        id=call_id,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name=name,
                datatype="FP32",
                shape=[1],
                contents=pb.InferTensorContents(fp32_contents=[value]),
            )
        ],
    )


def grpc_live(target: str, timeout: float = PATIENCE) -> bool:
    """False also where the answer is UNAVAILABLE: both say it, silence does not."""
    with grpc_stub(target) as stub:
        try:
            return stub.ServerLive(pb.ServerLiveRequest(), timeout=timeout).live
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                return False
            raise


def fp32(values: list) -> np.ndarray:
    return np.array(values, dtype=np.float32)


# The relay treats a gRPC connection by what it is first used for: a connection for health and
# repository calls is ended in the shim, one for inference is carried as bytes. Callers mix the two.
KINDS_OF_CONNECTION = ("control", "data")


def begin(stub: service_pb2_grpc.GRPCInferenceServiceStub, kind: str) -> None:
    """The first call on a connection, which decides what kind it is."""
    if kind == "control":
        stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=PATIENCE)
    else:
        stub.ModelInfer(infer_request("echo", "first", 1.0), timeout=PATIENCE)
