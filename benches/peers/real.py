"""The real MLServer with a scikit-learn model of the iris flowers: direct, through the shim and, for
what any process in between costs on this machine, through the bare relay."""

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import load
from subjects import Floor, Shim, free_port, listens, until

ROOT = Path(__file__).resolve().parent.parent.parent
VENV = ROOT / "target/mlserver-venv/bin"
INPUT = {
    "inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}
    ]
}
TRAIN = """
import joblib, sys
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
x, y = load_iris(return_X_y=True)
joblib.dump(LogisticRegression(max_iter=500).fit(x, y), sys.argv[1])
"""
ENCODE = """
import sys
from mlserver.grpc.dataplane_pb2 import ModelInferRequest as R
r = R(model_name=sys.argv[2])
t = r.inputs.add(name="x", shape=[1, 4], datatype="FP32")
t.contents.fp32_contents.extend([5.1, 3.5, 1.4, 0.2])
m = r.SerializeToString()
open(sys.argv[1], "wb").write(b"\\0" + len(m).to_bytes(4, "big") + m)
"""


class MLServer:
    """The real server on fixed ports, so that it can be restarted."""

    def __init__(self, folder, models=("iris",)):
        if not (VENV / "mlserver").exists():
            raise RuntimeError("the MLServer environment is not built: make mlserver")
        self.folder = Path(folder) / "mlserver"
        self.http, self.grpc, self.metrics = (free_port() for _ in range(3))
        for name in models:
            model = self.folder / "models" / name
            model.mkdir(parents=True)
            subprocess.run([VENV / "python", "-c", TRAIN, model / "model.joblib"], check=True)
            settings = {
                "name": name,
                "implementation": "mlserver_sklearn.SKLearnModel",
                "parameters": {"uri": "./model.joblib", "version": "v1"},
            }
            (model / "model-settings.json").write_text(json.dumps(settings))
        self.process = None

    def start(self):
        env = {
            **os.environ,
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": str(self.http),
            "MLSERVER_GRPC_PORT": str(self.grpc),
            "MLSERVER_METRICS_PORT": str(self.metrics),
            "MLSERVER_DEBUG": "false",
            "MLSERVER_GRPC_MAX_MESSAGE_LENGTH": "1048576000",
            "PATH": f"{VENV}:{os.environ['PATH']}",
        }
        log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(
            [VENV / "mlserver", "start", "models"], cwd=self.folder, env=env, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
        until("MLServer", self.ready, 90)

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready") as r:
                return r.status == 200 and listens(self.grpc)
        except OSError:
            return False

    def stop(self):
        """Kills the server and its workers, which would outlive it."""
        if self.process:
            import signal

            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def compare(args, folder):
    """p50 and throughput as ratios of direct, medians of interleaved rounds."""
    server = MLServer(folder)
    grpc_body, http_body = Path(folder) / "iris.grpc", Path(folder) / "iris.json"
    subprocess.run([VENV / "python", "-c", ENCODE, grpc_body, "iris"], check=True)
    http_body.write_text(json.dumps(INPUT))
    server.start()
    shim, floor = Shim(folder, args.shim), Floor(folder, args.echo)
    try:
        for one in (shim, floor):
            one.start(server.http, server.grpc)
        found = {}
        for name, http1 in (("grpc", False), ("http", True)):
            path, body = (
                ("/v2/models/iris/infer", http_body) if http1 else (load.INFER, grpc_body)
            )
            ends = {
                "direct": server.http if http1 else server.grpc,
                "shim": shim.http if http1 else shim.grpc,
                "floor": floor.http if http1 else floor.grpc,
            }
            rows = {end: [] for end in ends}
            turns = max(4, args.rounds) * 2 if args.scale >= 1 else 2
            for turn in range(turns):
                order = list(ends)[turn % len(ends) :] + list(ends)[: turn % len(ends)]
                for end in order:
                    one = {"http1": http1}
                    alone = load.run(ends[end], path, body, calls=300, **one)
                    wide = {"connections": 8} if http1 else {"connections": 2, "streams": 4}
                    busy = load.run(ends[end], path, body, calls=600, **one, **wide)
                    rows[end].append((alone.quantile(0.5), busy.rate, alone.failed + busy.failed))
            p50 = {e: statistics.median(r[0] for r in rows[e]) for e in ends}
            rate = {e: statistics.median(r[1] for r in rows[e]) for e in ends}
            found[name] = {
                "p50_us": p50,
                "rate": rate,
                "p50_ratio": p50["shim"] / p50["direct"],
                "rate_ratio": rate["shim"] / rate["direct"],
                "floor_p50_ratio": p50["floor"] / p50["direct"],
                "floor_rate_ratio": rate["floor"] / rate["direct"],
                "p50_spread_us": {e: [min(r[0] for r in rows[e]), max(r[0] for r in rows[e])] for e in ends},
                "failed": sum(r[2] for r in rows["shim"]),
            }
            print(f"real MLServer, {name}: p50 {p50}, calls/s {rate}, failed {found[name]['failed']}")
        return found
    finally:
        for one in (shim, floor, server):
            one.stop()
