"""One run of h2load, and what its log says."""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

GRPC = [
    "-H", "content-type: application/grpc",
    "-H", "te: trailers",
]  # fmt: skip
INFER = "/inference.GRPCInferenceService/ModelInfer"
EVENT = "/seldon.mlops.agent.AgentService/AgentEvent"


@dataclass
class Result:
    """Of one run: seconds over all, and microseconds of each call that was answered with 200."""

    seconds: float
    calls: int
    failed: int
    micros: list

    def quantile(self, q):
        return self.micros[min(len(self.micros) - 1, int(q * len(self.micros)))]

    @property
    def rate(self):
        return len(self.micros) / self.seconds


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def field(number, payload):
    """One length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def framed(message):
    """A gRPC message with its prefix."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def infer_body(size):
    """A gRPC body of exactly `size` bytes that is a valid ModelInferRequest: name and raw input."""
    name = field(1, b"iris")
    room = size - 5 - len(name) - 1
    for digits in range(1, 6):
        raw = room - digits
        if len(varint(raw)) == digits:
            return framed(name + field(7, bytes(raw)))
    raise ValueError(f"no body of {size} bytes")


def run(port, path, body, *, http1=False, calls, connections=1, streams=1):
    """`calls` POSTs of the file `body` to a port of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [
            "h2load", "-t", "1", "-n", str(calls), "-c", str(connections), "-m", str(streams),
            "-w", "30", "-W", "30", "-d", str(body), f"--log-file={log}",
            *(["--h1", "-H", "content-type: application/json"] if http1 else GRPC),
            f"http://127.0.0.1:{port}{path}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    micros = sorted(int(row[2]) for row in rows if row[1] == "200")
    begun = min(int(row[0]) for row in rows)
    ended = max(int(row[0]) + int(row[2]) for row in rows)
    if not micros:
        raise RuntimeError(f"no call was answered with 200: {' '.join(command)}\n{done.stdout}")
    return Result((ended - begun) / 1e6, calls, calls - len(micros), micros)
