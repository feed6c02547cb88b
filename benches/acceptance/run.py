"""The acceptance run that teams do before they trust a serving stack, through the shim.

Two models on a real MLServer, traffic split 70/30, 100 scenarios by 3 workers, over HTTP and gRPC;
the server is killed and started again once in the middle. A scenario asks for readiness, then makes
eight inferences, alternating the protocol. Expected: every call succeeds that the server itself
could answer; 95 of 100 calls within 50 ms; less than 1 ms added inside the pod.

Run it with the Python of target/mlserver-venv.
"""

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "peers"))
from real import INPUT, MLServer  # noqa: E402
from subjects import Shim, until  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ("model-a", "model-b")
SCENARIOS, WORKERS, INFERENCES = 100, 3, 8


@dataclass
class Call:
    """One inference: when, where to, how it ended."""

    protocol: str
    model: str
    begun: float
    ended: float
    error: str


class Caller:
    """One worker's connections, kept as the agent keeps them."""

    def __init__(self, http_port, grpc_port):
        self.http_port = http_port
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{grpc_port}",
            options=[("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)],
        )
        self.stub = GRPCInferenceServiceStub(self.channel)
        self.connection = None
        self.body = json.dumps(INPUT)

    def http(self, model):
        fresh = self.connection is None
        if fresh:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        try:
            self.connection.request(
                "POST", f"/v2/models/{model}/infer", self.body, {"content-type": "application/json"}
            )
            response = self.connection.getresponse()
            said = response.read()
            return "" if response.status == 200 else f"{response.status} {said[:80]!r}"
        except (OSError, http.client.HTTPException) as error:
            self.connection = None
            # A kept connection may have ended while it was idle: every client tries a new one.
            return repr(error) if fresh else self.http(model)

    def grpc(self, model):
        request = pb.ModelInferRequest(model_name=model)
        tensor = request.inputs.add(name="x", shape=[1, 4], datatype="FP32")
        tensor.contents.fp32_contents.extend([5.1, 3.5, 1.4, 0.2])
        try:
            self.stub.ModelInfer(request, timeout=30, wait_for_ready=False)
            return ""
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"

    def call(self, protocol, model):
        begun = time.monotonic()
        error = getattr(self, protocol)(model)
        return Call(protocol, model, begun, time.monotonic(), error)

    def close(self):
        self.channel.close()
        if self.connection:
            self.connection.close()


def scenarios(server, shim, seed):
    """All calls of the run, and the window in which the server could not answer."""
    calls, lock = [], threading.Lock()
    pending = list(range(SCENARIOS))
    gone, back = threading.Event(), threading.Event()

    def work(number):
        caller = Caller(shim.http, shim.grpc)
        dice = random.Random(seed * 1000 + number)
        while True:
            with lock:
                if not pending:
                    break
                scenario = pending.pop()
                if scenario == SCENARIOS // 2:
                    gone.set()
            for step in range(INFERENCES):
                model = MODELS[0] if dice.random() < 0.7 else MODELS[1]
                done = caller.call("http" if (scenario + step) % 2 else "grpc", model)
                with lock:
                    calls.append(done)
                if done.error:
                    # As a client would: a moment, then on.
                    back.wait(0.1)
        caller.close()

    workers = [threading.Thread(target=work, args=(n,)) for n in range(WORKERS)]
    for worker in workers:
        worker.start()
    gone.wait()
    killed = time.monotonic()
    server.stop()
    server.start()
    direct = Caller(server.http, server.grpc)
    for model in MODELS:
        for protocol in ("http", "grpc"):
            until(f"{model} over {protocol}", lambda p=protocol, m=model: not direct.call(p, m).error)
    able = time.monotonic()
    back.set()
    with lock:
        # Failed calls used scenarios up while nothing could answer: the rest still has to be seen.
        pending.extend(range(SCENARIOS // 2))
    late = [threading.Thread(target=work, args=(WORKERS + n,)) for n in range(WORKERS)]
    for worker in late:
        worker.start()
    for worker in workers + late:
        worker.join()
    direct.close()
    return calls, killed, able


def added(server, shim):
    """Medians of direct and relayed calls, interleaved, in milliseconds."""
    callers = {"direct": Caller(server.http, server.grpc), "shim": Caller(shim.http, shim.grpc)}
    times = {(end, p): [] for end in callers for p in ("http", "grpc")}
    for turn in range(300):
        for end in sorted(callers, reverse=bool(turn % 2)):
            for protocol in ("http", "grpc"):
                done = callers[end].call(protocol, MODELS[0])
                if done.error:
                    raise RuntimeError(f"{end} {protocol}: {done.error}")
                times[end, protocol].append((done.ended - done.begun) * 1000)
    for caller in callers.values():
        caller.close()
    return {
        p: (statistics.median(times["direct", p]), statistics.median(times["shim", p]))
        for p in ("http", "grpc")
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shim", type=lambda given: Path(given).resolve(), default=ROOT / "target/release/agent-shim")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default=ROOT / "target/bench/acceptance.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, shim = MLServer(folder, MODELS), Shim(folder, args.shim)
        try:
            server.start()
            shim.start(server.http, server.grpc)
            extra = added(server, shim)
            calls, killed, able = scenarios(server, shim, args.seed)
        finally:
            shim.stop()
            server.stop()
    in_window = [c for c in calls if c.ended >= killed and c.begun <= able]
    possible = [c for c in calls if not (c.ended >= killed and c.begun <= able)]
    failed = [c for c in possible if c.error]
    times = sorted((c.ended - c.begun) * 1000 for c in possible if not c.error)
    p95 = times[int(0.95 * len(times))]
    split = sum(c.model == MODELS[0] for c in calls) / len(calls)
    worst = max(shim_ms - direct_ms for direct_ms, shim_ms in extra.values())
    success = 100 * (len(possible) - len(failed)) / len(possible)
    rows = [
        ("calls", f"{len(calls)}, {split:.0%} to {MODELS[0]}", "70/30", True),
        ("while the server could not answer", f"{len(in_window)} in {able - killed:.1f} s", "", True),
        ("success of what it could answer", f"{success:.2f} %", "100 %", not failed),
        ("P95", f"{p95:.1f} ms", "< 50 ms", p95 < 50),
    ] + [
        (f"added to {p}, median", f"{shim_ms - direct_ms:.3f} ms of {direct_ms:.2f}", "< 1 ms", shim_ms - direct_ms < 1)
        for p, (direct_ms, shim_ms) in extra.items()
    ]  # fmt: skip
    print(f"{'acceptance':<36} {'seen':<28} {'expected':<10}")
    for what, seen, expected, met in rows:
        print(f"{what:<36} {seen:<28} {expected:<10} {'' if met else 'MISSED'}")
    for call in failed[:5]:
        print(f"failed: {call.protocol} {call.model}: {call.error}")
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(json.dumps({
        "calls": len(calls), "split": split, "in_window": len(in_window), "window_s": able - killed,
        "possible": len(possible), "failed": len(failed),
        "success_percent": success, "p95_ms": p95, "added_ms_worst": worst,
        "direct_ms": {p: direct_ms for p, (direct_ms, _) in extra.items()},
        "shim_ms": {p: shim_ms for p, (_, shim_ms) in extra.items()},
    }, indent=1) + "\n")  # fmt: skip
    return 0 if all(row[3] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
