"""The peer comparison: the same upstream and load through direct, a bare TCP relay ("floor"), the
shim, nginx, HAProxy, Envoy.

Rounds are interleaved over the subjects, so that a change of the machine's mood meets all of them;
figures are medians of turns, with the lowest and the highest beside them. Every subject has one
thread. After the loads: memory, outages, the shim alone, the real MLServer, and the acceptance run.
Prints tables, judges the goals, writes results.json and plot.svg into target/bench. `--publish`
also puts them where docs/performance.md takes them from.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import goals
import load
import machine
import memory
import outage
import real
import shim_only
from subjects import Envoy, Floor, Haproxy, Nginx, Shim, Subject

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import report  # noqa: E402

ROOT = HERE.parent.parent
KIB = 1024

# name, protocol, body bytes, calls of a turn, connections, streams, turns in a round: the machine's
# mood shows most in single small calls, so these have more turns, all interleaved.
LOADS = [
    ("grpc-sequential", "grpc", 65, 4000, 1, 1, 4),
    ("http-sequential", "http", 65, 4000, 1, 1, 4),
    ("grpc-4x16", "grpc", 65, 20000, 4, 16, 2),
    ("http-16", "http", 65, 20000, 16, 1, 1),
    ("grpc-64k", "grpc", 64 * KIB, 1500, 1, 1, 1),
    ("http-64k", "http", 64 * KIB, 1500, 1, 1, 1),
    ("grpc-16m", "grpc", 16384 * KIB, 12, 1, 1, 1),
    ("http-16m", "http", 16384 * KIB, 12, 1, 1, 1),
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the calls of a round")
    parser.add_argument("--shim", type=machine.path, default=ROOT / "target/release/agent-shim")
    parser.add_argument("--echo", type=machine.path, default=ROOT / "target/upstream/examples/echo")
    parser.add_argument("--envoy", type=machine.path, default=ROOT / "target/bench-venv/bin/envoy")
    parser.add_argument("--only", default="", help="subjects, separated by commas")
    parser.add_argument("--loads", default="", help="loads, separated by commas")
    parser.add_argument("--out", default=ROOT / "target/bench")
    parser.add_argument("--no-extras", action="store_true", help="only the table of loads")
    parser.add_argument("--no-acceptance", action="store_true")
    parser.add_argument("--publish", action="store_true",
                        help="write docs/performance.json, .svg and the block in performance.md")  # fmt: skip
    args = parser.parse_args()
    if args.publish and (args.only or args.loads or args.no_extras or args.no_acceptance):
        parser.error("--publish wants everything measured: no --only, --loads or --no-...")
    return args


def one_turn(subject, load_of, bodies, scale):
    _, protocol, size, calls, connections, streams, _ = load_of
    calls = max(2, connections * streams, int(calls * scale))
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
    return row


def summary(turns):
    """Median, lowest and highest of every figure."""
    return {
        key: {
            "median": statistics.median(t[key] for t in turns),
            "low": min(t[key] for t in turns),
            "high": max(t[key] for t in turns),
        }
        for key in turns[0]
    }


def table(results):
    print(f"\n{'load':<16} {'subject':<11} {'p50 us':>18} {'added':>6} {'p99 us':>20} {'p99.9 us':>20} "
          f"{'calls/s':>20} {'of direct':>9} {'cpu s/100k':>10} {'failed':>6}")  # fmt: skip

    def spread(figures):
        return f"{figures['median']:.0f} ({figures['low']:.0f}-{figures['high']:.0f})"

    for name, by in results.items():
        direct = by.get("direct")
        for subject, f in by.items():
            added = f"{f['p50']['median'] - direct['p50']['median']:.0f}" if direct else ""
            share = f"{f['rate']['median'] / direct['rate']['median']:.2f}" if direct else ""
            cpu = f"{f['cpu_s_per_100k']['median']:.2f}" if "cpu_s_per_100k" in f else ""
            print(f"{name:<16} {subject:<11} {spread(f['p50']):>18} {added:>6} {spread(f['p99']):>20} "
                  f"{spread(f['p999']):>20} {spread(f['rate']):>20} {share:>9} {cpu:>10} "
                  f"{f['failed']['median']:>6.0f}")  # fmt: skip


def loads_of(args, subjects, loads, bodies):
    """The rounds, interleaved."""
    rows = {name: {s.name: [] for s in subjects} for name, *_ in loads}
    with shim_only.EchoAt(args.echo) as echo:
        try:
            for subject in subjects:
                subject.start(echo.http, echo.grpc)
            begun = time.monotonic()
            for number in range(args.rounds):
                for one in loads:
                    for turn in range(one[-1]):
                        first = (number + turn) % len(subjects)
                        for subject in subjects[first:] + subjects[:first]:
                            rows[one[0]][subject.name].append(
                                one_turn(subject, one, bodies, args.scale)
                            )
                said(f"round {number + 1} of {args.rounds}: {time.monotonic() - begun:.0f} s")
        finally:
            for subject in subjects:
                subject.stop()
    return {
        name: {subject: summary(turns) for subject, turns in by.items()}
        for name, by in rows.items()
    }


def each(what, subjects, measure):
    """`measure` of every subject; one that fails is said and left out."""
    found = {}
    for subject in subjects:
        try:
            found[subject.name] = measure(subject)
        except Exception as problem:  # noqa: BLE001 - one subject must not cost the others
            said(f"skipped: {what} of {subject.name}: {problem}")
    return found


def acceptance(args, out):
    """Runs it with the Python that has MLServer's messages; what it found."""
    python = ROOT / "target/mlserver-venv/bin/python"
    if not python.exists():
        said("skipped: the acceptance run: the MLServer environment is not built")
        return None
    result = out / "acceptance.json"
    result.unlink(missing_ok=True)
    sys.stdout.flush()
    subprocess.run(
        [python, HERE.parent / "acceptance/run.py", "--shim", args.shim, "--out", result],
        check=False,
    )
    return json.loads(result.read_text()) if result.exists() else None


def said(words):
    print(words, file=sys.stderr, flush=True)


def main():
    args = arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    begun, load_before = time.monotonic(), machine.load_average()
    begins = {
        "machine": machine.describe(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": args.rounds,
        "scale": args.scale,
        "load_average": {"before": load_before},
        "optimised": "debug" not in args.shim.parts + args.echo.parts,
    }
    why = report.doubts(begins)
    if args.only or args.loads or args.no_extras or args.no_acceptance:
        why.append("parts of it are left out")
    if args.publish and why:
        sys.exit(f"this run would not be one to publish: {'; '.join(why)}. Wait until the machine is quiet, or leave --publish out")
    loads = [one for one in LOADS if not args.loads or one[0] in args.loads.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        bodies = {}
        for size in {one[2] for one in loads} | {65, 16384 * KIB}:
            bodies[size] = folder / str(size)
            bodies[size].write_bytes(load.infer_body(size))
        subjects = [
            Subject(folder),
            Floor(folder, args.echo),
            Shim(folder, args.shim),
            Nginx(folder),
            Haproxy(folder),
            Envoy(folder, args.envoy),
        ]
        if args.only:
            subjects = [s for s in subjects if s.name in args.only.split(",")]
        for subject in list(subjects):
            if why := subject.missing():
                said(f"skipped: {subject.name}: {why}")
                subjects.remove(subject)
        document = begins | {
            "versions": {s.name: s.version() for s in subjects},
            "loads": loads_of(args, subjects, loads, bodies),
        }
        table(document["loads"])
        if not args.no_extras:
            with shim_only.EchoAt(args.echo) as echo:
                document["memory"] = each(
                    "memory",
                    [s for s in subjects if s.name != "direct"],
                    lambda s: memory.of(s, echo, bodies[16384 * KIB]),
                )
            memory.table(document["memory"])
            document["outage"] = each("outages", subjects, lambda s: outage.both(s, args))
            outage.table(document["outage"])
            print()
            document["shim"] = shim_only.measure(args, folder, bodies[65])
            try:
                document["mlserver"] = real.compare(args, folder, subjects)
            except Exception as problem:  # noqa: BLE001 - it must not cost what was measured before
                said(f"skipped: the real MLServer: {problem}")
    if not args.no_acceptance and not args.no_extras:
        print()
        document["acceptance"] = acceptance(args, out)
    document["goals"] = goals.judge(document)
    goals.show(document["goals"])
    document["load_average"]["after"] = machine.load_average()
    document["seconds"] = round(time.monotonic() - begun)
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"\n{document['seconds']} s; written: {out}/results.json")
    try:
        import plot
    except ImportError as missing:
        said(f"skipped: the plot: {missing}")
    else:
        plot.draw(document, out / "plot.svg")
    if args.publish:
        sections = ("memory", "outage", "shim", "mlserver", "acceptance")
        if lacking := [s for s in sections if s not in document] + ([] if len(subjects) == 6 else ["some of its subjects"]):
            sys.exit(f"not published: the run lacks {', '.join(lacking)}")
        publish(out)


def publish(out):
    """Puts what was measured where the documentation takes it from."""
    shutil.copy(out / "results.json", report.RESULTS)
    shutil.copy(out / "plot.svg", report.PLOT)
    report.write()
    print("published: docs/performance.json, docs/performance.svg, docs/performance.md")


if __name__ == "__main__":
    main()
