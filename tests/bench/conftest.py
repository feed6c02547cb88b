"""What the tests of the benchmarks share: their modules, and where the programs are."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "benches/peers")]


def program(*names):
    """The first of some builds that is there."""
    return next((path for name in names if (path := ROOT / "target" / name).exists()), None)


SHIM = program("release/agent-shim", "debug/agent-shim")
ECHO = program("upstream/examples/echo", "debug/examples/echo")
