"""The peer comparison: the same upstream and load through direct, the shim, nginx, HAProxy, Envoy.

Rounds are interleaved over the subjects, so that a change of the machine's mood meets all of them;
figures are medians of rounds, with the lowest and highest round beside them. Every subject has one
thread. Prints a table, writes results.json and plot.svg.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import goals
import load
import machine
import shim_only
from subjects import Envoy, Haproxy, Nginx, Shim, Subject, until

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KIB = 1024

# name, protocol, body bytes, calls in a round, connections, streams
LOADS = [
    ("grpc-sequential", "grpc", 65, 4000, 1, 1),
    ("http-sequential", "http", 65, 4000, 1, 1),
    ("grpc-4x16", "grpc", 65, 20000, 4, 16),
    ("http-16", "http", 65, 20000, 16, 1),
    ("grpc-64k", "grpc", 64 * KIB, 1500, 1, 1),
    ("http-64k", "http", 64 * KIB, 1500, 1, 1),
    ("grpc-16m", "grpc", 16384 * KIB, 12, 1, 1),
    ("http-16m", "http", 16384 * KIB, 12, 1, 1),
]


class Echo:
    """The in-repo upstream."""

    def __init__(self, binary):
        self.process = subprocess.Popen([binary, "0", "0"], stdout=subprocess.PIPE, text=True)
        ports = dict(p.split("=") for p in self.process.stdout.readline().split())
        self.http, self.grpc = int(ports["http"]), int(ports["grpc"])

    def stop(self):
        self.process.kill()
        self.process.wait()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the calls of a round")
    parser.add_argument("--shim", default=ROOT / "target/release/agent-shim")
    parser.add_argument("--echo", default=ROOT / "target/release/examples/echo")
    parser.add_argument("--envoy", default=ROOT / "target/bench-venv/bin/envoy")
    parser.add_argument("--only", default="", help="subjects, separated by commas")
    parser.add_argument("--loads", default="", help="loads, separated by commas")
    parser.add_argument("--out", default=ROOT / "target/bench")
    parser.add_argument("--no-extras", action="store_true", help="only the table of loads")
    return parser.parse_args()


def one_round(subject, load_of, bodies, scale):
    _, protocol, size, calls, connections, streams = load_of
    calls = max(connections * streams, int(calls * scale))
    http1 = protocol == "http"
    port = subject.http if http1 else subject.grpc
    path = "/v2/models/iris/infer" if http1 else load.INFER
    arg = {"http1": http1, "connections": connections, "streams": streams}
    load.run(port, path, bodies[size], calls=max(connections * streams, calls // 10), **arg)
    before = subject.cpu()
    result = load.run(port, path, bodies[size], calls=calls, **arg)
    after = subject.cpu()
    row = {
        "p50": result.quantile(0.5),
        "p99": result.quantile(0.99),
        "p999": result.quantile(0.999),
        "rate": result.rate,
        "failed": result.failed,
        "bytes_per_s": result.rate * size * 2,
    }
    if before is not None:
        row["cpu_s_per_100k"] = (after - before) / calls * 100_000
        row["resident"], row["peak"] = subject.memory()
    return row


def summary(rounds):
    """Median, lowest and highest of every figure."""
    return {
        key: {
            "median": statistics.median(r[key] for r in rounds),
            "low": min(r[key] for r in rounds),
            "high": max(r[key] for r in rounds),
        }
        for key in rounds[0]
    }


def table(results, loads):
    print(f"\n{'load':<16} {'subject':<11} {'p50 us':>16} {'added':>6} {'p99 us':>7} {'p99.9':>7} "
          f"{'calls/s':>16} {'of direct':>9} {'cpu s/100k':>10} {'peak MB':>8} {'failed':>6}")  # fmt: skip
    for name, *_ in loads:
        direct = results[name].get("direct")
        for subject, figures in results[name].items():
            f = {k: v["median"] for k, v in figures.items()}
            p50, rate = figures["p50"], figures["rate"]
            added = f"{f['p50'] - direct['p50']['median']:.0f}" if direct else ""
            share = f"{f['rate'] / direct['rate']['median']:.2f}" if direct else ""
            cpu = f"{f['cpu_s_per_100k']:.2f}" if "cpu_s_per_100k" in f else ""
            peak = f"{f['peak'] / 1e6:.1f}" if "peak" in f else ""
            spread = f"{p50['median']:.0f} ({p50['low']:.0f}-{p50['high']:.0f})"
            rates = f"{rate['median']:.0f} ({rate['low']:.0f}-{rate['high']:.0f})"
            print(f"{name:<16} {subject:<11} {spread:>16} {added:>6} {f['p99']:>7.0f} "
                  f"{f['p999']:>7.0f} {rates:>16} {share:>9} {cpu:>10} {peak:>8} "
                  f"{f['failed']:>6.0f}")  # fmt: skip


def main():
    args = arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    loads = [one for one in LOADS if not args.loads or one[0] in args.loads.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        bodies = {}
        for size in {one[2] for one in loads} | {65}:
            bodies[size] = Path(folder) / str(size)
            bodies[size].write_bytes(load.infer_body(size))
        echo = Echo(args.echo)
        subjects = [
            Subject(folder),
            Shim(folder, args.shim),
            Nginx(folder),
            Haproxy(folder),
            Envoy(folder, args.envoy),
        ]
        if args.only:
            subjects = [s for s in subjects if s.name in args.only.split(",")]
        for subject in list(subjects):
            if why := subject.missing():
                print(f"skipped: {subject.name}: {why}", file=sys.stderr)
                subjects.remove(subject)
        try:
            for subject in subjects:
                subject.start(echo.http, echo.grpc)
            rows = {name: {s.name: [] for s in subjects} for name, *_ in loads}
            begun = time.monotonic()
            for turn in range(args.rounds):
                order = subjects[turn % len(subjects) :] + subjects[: turn % len(subjects)]
                for one in loads:
                    for subject in order:
                        rows[one[0]][subject.name].append(
                            one_round(subject, one, bodies, args.scale)
                        )
                print(f"round {turn + 1} of {args.rounds}: {time.monotonic() - begun:.0f} s",
                      file=sys.stderr)  # fmt: skip
        finally:
            for subject in subjects:
                subject.stop()
            echo.stop()
        results = {
            name: {subject: summary(rounds) for subject, rounds in by.items()}
            for name, by in rows.items()
        }
        table(results, loads)
        document = {
            "machine": machine.describe(),
            "date": time.strftime("%Y-%m-%d"),
            "rounds": args.rounds,
            "versions": {s.name: s.version() for s in subjects},
            "loads": results,
        }
        if not args.no_extras:
            document["shim"] = shim_only.measure(args, Path(folder), bodies[65], until)
        document["goals"] = goals.judge(document)
        goals.show(document["goals"])
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    try:
        import plot
    except ImportError as missing:
        print(f"skipped: the plot: {missing}", file=sys.stderr)
    else:
        plot.draw(document, out / "plot.svg")
    print(f"\nwritten: {out}/results.json")


if __name__ == "__main__":
    main()
