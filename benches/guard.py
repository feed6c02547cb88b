"""Fails when the shim has become dearer in what does not depend on the machine's speed.

Instructions of a relayed call (callgrind), memory at rest and of a connection,
size of the binary: each against budgets.json plus a tenth. `--write` stores what was measured.
Prints a line for each, and 'N passed, N failed, N skipped' at the end.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

import callgrind  # noqa: E402
import connections  # noqa: E402
import load  # noqa: E402
from shim_only import EchoAt  # noqa: E402
from subjects import Shim  # noqa: E402

BUDGETS = HERE / "budgets.json"
TOLERANCE = 1.10
ROOT = HERE.parent


def instructions(args, folder, small):
    if not shutil.which("valgrind") or not shutil.which("h2load"):
        return {}
    return callgrind.measure(args, folder, small)


def memory(args, folder, _small):
    with EchoAt(args.echo) as echo:
        shim = Shim(folder, args.shim)
        shim.start(echo.http, echo.grpc)
        try:
            rest = connections.anonymous(shim)
            with connections.opened(shim.grpc, 500):
                held = connections.anonymous(shim)
        finally:
            shim.stop()
    return {"anonymous_at_rest_kb": rest // 1024, "bytes_per_connection": (held - rest) // 500}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shim", default=ROOT / "target/release/agent-shim")
    parser.add_argument("--echo", default=ROOT / "target/release/examples/echo")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small"
        small.write_bytes(load.infer_body(65))
        found = {"binary_kb": Path(args.shim).stat().st_size // 1024}
        found |= memory(args, folder, small)
        found |= instructions(args, folder, small)
    if args.write:
        BUDGETS.write_text(json.dumps({k: round(v) for k, v in found.items()}, indent=1) + "\n")
    budgets = json.loads(BUDGETS.read_text())
    passed = failed = skipped = 0
    for name, budget in budgets.items():
        if name not in found:
            skipped += 1
            print(f"{name:<34} skipped: valgrind or h2load is not installed")
            continue
        most = budget * TOLERANCE
        ok = found[name] <= most
        passed, failed = passed + ok, failed + (not ok)
        print(f"{name:<34} {found[name]:>12.0f}  budget {budget} + 10% {'ok' if ok else 'EXCEEDED'}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
