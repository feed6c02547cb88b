"""Instructions of the shim for one relayed call, one HTTP call, and one probe.

Two runs that differ only in the number of calls: the difference is the calls' own. Probing is
slowed down to once an hour for the calls; for the probe it is the other way round.
"""

import os
import re
import signal
import subprocess
import sys
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


def counted(args, folder, echo, work, interval="1h"):
    """Instructions of a whole run that does `work`."""
    patient = min(interval, "20s", key=lambda text: 3600 if text.endswith("h") else int(text[:-1]))
    shim = Counted(folder, args.shim, SHIM_PROBE_INTERVAL=interval, SHIM_DRAIN_TIME="0s",
                   SHIM_INDEX_INTERVAL="1h", SHIM_PROBE_TIMEOUT=patient,
                   SHIM_PROBE_CONNECT_TIMEOUT=patient)  # fmt: skip
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


def measure_probe(args, folder, probes):
    """Instructions of one probe, by the shim's own count of probes."""
    from shim_only import EchoAt

    counts = []

    def until_probed(n):
        def work(shim):
            until("probes", lambda: probes(shim) >= n, 120)
            counts.append(probes(shim))

        return work

    with EchoAt(args.echo) as echo:
        few = counted(args, folder, echo, until_probed(10), interval="1s")
        many = counted(args, folder, echo, until_probed(70), interval="1s")
    return {"instructions_per_probe": (many - few) / (counts[1] - counts[0])}
