"""Instructions of the shim for one relayed gRPC call and one HTTP call.

Two runs that differ only in the number of calls: the difference is the calls' own. Probing is
slowed down to once an hour. What a probe costs is left out: looking through /proc depends on what
else runs on the machine.
"""

import re
import signal
import subprocess
import time
from pathlib import Path

import load
from subjects import Shim, listens, until


class Counted(Shim):
    """The shim under callgrind."""

    name = "callgrind"
    patience = 180

    def launch(self, command, env=None):
        self.out = self.folder / f"callgrind.{time.monotonic_ns()}"
        super().launch(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={self.out}", *command], env
        )

    def total(self):
        """Ends it and reads the sum."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.process = None
        found = re.search(r"^(?:summary|totals): (\d+)", self.out.read_text(), re.MULTILINE)
        return int(found.group(1))


def counted(args, folder, echo, work):
    """Instructions of a whole run that does `work`."""
    shim = Counted(folder, args.shim, SHIM_PROBE_INTERVAL="1h", SHIM_DRAIN_TIME="0s",
                   SHIM_INDEX_INTERVAL="1h", SHIM_PROBE_TIMEOUT="20s",
                   SHIM_PROBE_CONNECT_TIMEOUT="10s")  # fmt: skip
    shim.start(echo.http, echo.grpc)
    try:
        work(shim)
        return shim.total()
    finally:
        if shim.process:
            shim.process.kill()
            shim.process.wait()


def measure(args, folder, small):
    from shim_only import EchoAt

    def calls(n, http1):
        path = "/v2/models/iris/infer" if http1 else load.INFER

        def work(shim):
            load.run(shim.http if http1 else shim.grpc, path, small, http1=http1, calls=n)

        return work

    with EchoAt(args.echo) as echo:
        figures = {}
        for name, http1 in (("grpc", False), ("http", True)):
            few = counted(args, folder, echo, calls(200, http1))
            many = counted(args, folder, echo, calls(1200, http1))
            figures[f"instructions_per_{name}_call"] = (many - few) / 1000
        return figures
