"""The real MLServer with a scikit-learn model of the iris flowers, behind each subject."""

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import load
from subjects import free_port, listens, until

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


# Calls of a turn: before it, one at a time, and several at once.
WARM, ALONE, BUSY = 30, 300, 600


def compare(args, folder, subjects):
    """What each subject makes of p50 and throughput: medians of interleaved turns, and ratios of direct."""
    server = MLServer(folder)
    grpc_body, http_body = Path(folder) / "iris.grpc", Path(folder) / "iris.json"
    subprocess.run([VENV / "python", "-c", ENCODE, grpc_body, "iris"], check=True)
    http_body.write_text(json.dumps(INPUT))
    server.start()
    started = []
    try:
        for subject in subjects:
            try:
                subject.start(server.http, server.grpc)
                started.append(subject)
            except Exception as problem:  # noqa: BLE001 - one subject must not cost the others
                subject.stop()
                print(f"skipped: {subject.name} in front of the real MLServer: {problem}", file=sys.stderr)
        found = {}
        for kind, path, body in (("grpc", load.INFER, grpc_body), ("http", "/v2/models/iris/infer", http_body)):
            rows = {subject.name: [] for subject in started}
            turns = max(4, args.rounds) * 2 if args.scale >= 1 else 2
            for number in range(turns):
                first = number % len(started)
                for subject in started[first:] + started[:first]:
                    port = subject.http if kind == "http" else subject.grpc
                    rows[subject.name].append(turn(port, path, body, kind == "http"))
            found[kind] = summary(rows)
            table(kind, found[kind])
        return found
    finally:
        for one in (*started, server):
            one.stop()


def turn(port, path, body, http1):
    """p50 and p99 of calls one at a time, calls a second of several at once, and how many failed."""
    wide = {"connections": 8} if http1 else {"connections": 2, "streams": 4}
    load.run(port, path, body, calls=WARM, http1=http1, **wide)
    alone = load.run(port, path, body, calls=ALONE, http1=http1)
    busy = load.run(port, path, body, calls=BUSY, http1=http1, **wide)
    return {
        "p50": alone.quantile(0.5),
        "p99": alone.quantile(0.99),
        "rate": busy.rate,
        "failed": alone.failed + busy.failed,
    }


def summary(rows):
    """Of one protocol: each figure by subject, and the ratios of direct that the goals are about."""

    def of(key, how):
        return {subject: how(turn[key] for turn in turns) for subject, turns in rows.items()}

    found = {
        "p50_us": of("p50", statistics.median),
        "p50_spread_us": of("p50", ends),
        "p99_us": of("p99", statistics.median),
        "rate": of("rate", statistics.median),
        "rate_spread": of("rate", ends),
        "failed": of("failed", sum),
    }
    for subject, prefix in (("agent-shim", ""), ("floor", "floor_")):
        if subject in rows and "direct" in rows:
            for ratio, key in (("p50_ratio", "p50_us"), ("rate_ratio", "rate")):
                found[prefix + ratio] = found[key][subject] / found[key]["direct"]
    return found


def ends(figures):
    """The lowest and the highest."""
    ordered = sorted(figures)
    return [ordered[0], ordered[-1]]


def table(kind, found):
    print(f"\n{'MLServer, ' + kind:<15} {'p50 us':>18} {'p99 us':>7} {'calls/s':>16} {'failed':>6}")
    for subject, p50 in found["p50_us"].items():
        latency = "{:.0f} ({:.0f}-{:.0f})".format(p50, *found["p50_spread_us"][subject])
        rate = "{:.0f} ({:.0f}-{:.0f})".format(found["rate"][subject], *found["rate_spread"][subject])
        print(f"{subject:<15} {latency:>18} {found['p99_us'][subject]:>7.0f} {rate:>16} {found['failed'][subject]:>6}")
