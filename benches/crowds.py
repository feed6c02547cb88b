"""What crowds of callers leave behind in the shim's memory: what its allocator does not give back.

Crowds of callers, one after the other, each of which has made one call and stays until all of its
crowd have: over gRPC, over HTTP in the lane, and over HTTP on the full path. Prints KiB: anonymous
at rest, resident with the first crowd, anonymous after each, highest resident.

    python3 benches/crowds.py --shim PROGRAM
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

import connections  # noqa: E402
import machine  # noqa: E402
from alone import Alone  # noqa: E402
from shim_only import EchoAt  # noqa: E402

ROOT = HERE.parent


def first_call_full():
    """Of a path that could become another one, so that its connection takes the full path."""
    return connections.first_call_http().replace(b"iris", b"ir%69s", 1)


SAID = {
    "gRPC": connections.first_call,
    "HTTP, lane": connections.first_call_http,
    "HTTP, full path": first_call_full,
}


def crowds(args, folder, said, http):
    """KiB: at rest, with the first crowd, after each, the highest."""
    with EchoAt(args.echo) as echo:
        shim = Alone(folder, args.shim)
        shim.start(echo.http, echo.grpc)
        try:
            rest, left, held = connections.anonymous(shim.pid()), [], None
            for _ in range(args.crowds):
                with connections.opened(shim.http if http else shim.grpc, args.callers, said):
                    held = held or machine.memory(shim.pid())[0]
                # What it gives back, it gives back when it has seen that they are gone.
                time.sleep(2)
                left.append(connections.anonymous(shim.pid()))
            # The kernel's figures lie a little apart.
            highest = max(held, machine.memory(shim.pid())[1])
        finally:
            shim.stop()
    return rest // 1024, held // 1024, [one // 1024 for one in left], highest // 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shim", type=machine.path, default=ROOT / "target/release/agent-shim")
    parser.add_argument("--echo", type=machine.path, default=ROOT / "target/upstream/examples/echo")
    parser.add_argument("--callers", type=int, default=1000)
    parser.add_argument("--crowds", type=int, default=8)
    args = parser.parse_args()
    # A caller takes one descriptor here and two of the shim's, which inherits the limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    with tempfile.TemporaryDirectory() as folder:
        for name, said in SAID.items():
            rest, held, left, highest = crowds(args, folder, said(), name.startswith("HTTP"))
            print(f"{name}: at rest {rest}, with the first crowd {held}, after each {left}, highest {highest}", flush=True)


if __name__ == "__main__":
    main()
