"""Instructions of the shim for one relayed call and for one round of probes, by callgrind.

Two runs that differ only in the number of calls or rounds: the difference is their own. While calls
are counted, probing is slowed down to once an hour. Where this user may do that, the shim sees a
/proc of its own, with nobody else in it: looking for the server there, which it does by the clock,
costs what the machine runs.
"""

import re
import shutil
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import load
import machine
from subjects import Shim

CALLS = (200, 2200)
# Of as many candidates as make a round's own cost large beside what else the time brings.
CANDIDATES = 8
ROUNDS = (16, 48)
INTERVAL = 10
ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def can_be_alone():
    """Whether this user may give a process a /proc of its own."""
    return bool(shutil.which("unshare")) and (
        subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
    )


class Alone(Shim):
    """The shim with a /proc of its own, where that can be."""

    name = "alone"

    def launch(self, command, env=None):
        super().launch([*(ALONE if can_be_alone() else []), *command], env)

    def pid(self):
        """The last of the tree is the shim; what stands before it waits for it."""
        return machine.children(self.process.pid)[-1]

    def stop(self):
        if self.process:
            subprocess.run(["kill", str(self.pid())], check=False)
            self.process.wait(60)
            self.process = None


class Counted(Alone):
    """The shim under callgrind."""

    name = "callgrind"
    patience = 180

    def launch(self, command, env=None):
        self.out = self.folder / "callgrind.out"
        super().launch(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={self.out}", *command], env
        )

    def total(self):
        """Ends it and reads the sum."""
        self.stop()
        found = re.search(r"^(?:summary|totals): (\d+)", self.out.read_text(), re.MULTILINE)
        return int(found.group(1))

    def probes(self):
        """Probes so far, of the protocol that has had fewer; raises where one has failed."""
        counted = dict.fromkeys(("http", "grpc"), 0)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=60) as answer:
            for line in answer.read().decode().splitlines():
                found = re.match(r"agent_shim_probe_outcomes_total\{(.*)\} (\d+)", line)
                if found and int(found.group(2)):
                    labels = dict(re.findall(r'(\w+)="(.*?)"', found.group(1)))
                    if labels["outcome"] != "healthy":
                        raise RuntimeError(f"a probe failed, so rounds are not alike: {line}")
                    counted[labels["protocol"]] = int(found.group(2))
        return min(counted.values())


def counted(args, folder, echo, work, **env):
    """Instructions of a whole run that does `work`, and what `work` gave back."""
    settings = {
        "SHIM_PROBE_INTERVAL": "1h", "SHIM_DRAIN_TIME": "0s", "SHIM_INDEX_INTERVAL": "1h",
        "SHIM_PROBE_TIMEOUT": "20s", "SHIM_PROBE_CONNECT_TIMEOUT": "10s", **env,
    }  # fmt: skip
    shim = Counted(folder, args.shim, **settings)
    try:
        shim.start(echo.http, echo.grpc)
        done = work(shim)
        return shim.total(), done
    finally:
        if shim.process:
            for pid in reversed(machine.children(shim.process.pid)):
                subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
            shim.process.wait()


def measure(args, folder, small):
    """Totals by name and number of calls or rounds. The shim is probed and called by an echo server of its own."""
    from shim_only import EchoAt

    def calls(http1):
        path = "/v2/models/iris/infer" if http1 else load.INFER

        def work(count):
            def calling(shim):
                load.run(shim.http if http1 else shim.grpc, path, small, http1=http1, calls=count)
                return count

            return calling

        return work

    def rounds(count):
        def probing(shim):
            seen = 0
            # To be asked for its metrics costs, too: so it is asked once where all goes well.
            while seen < count:
                time.sleep((count - seen) / CANDIDATES * INTERVAL + 0.5)
                seen = shim.probes()
            return seen

        return probing

    # Far slower than an answer under callgrind on a busy machine: no probe is to be cut off.
    probed = {
        "SHIM_INFERENCE_HOSTS": ",".join(f"127.0.0.{n + 1}" for n in range(CANDIDATES)),
        "SHIM_PROBE_INTERVAL": f"{INTERVAL}s",
        "SHIM_PROBE_TIMEOUT": f"{INTERVAL}s",
        "SHIM_PROBE_CONNECT_TIMEOUT": f"{INTERVAL}s",
    }
    kinds = {
        "instructions_per_grpc_call": (calls(False), CALLS, {}),
        "instructions_per_http_call": (calls(True), CALLS, {}),
    }
    if can_be_alone():
        kinds["instructions_per_probe_round"] = (rounds, ROUNDS, probed)
    # On every address of the loopback network.
    with EchoAt(args.echo, "0.0.0.0") as echo, ThreadPoolExecutor(2) as pool:
        runs = {}
        for name, (work, counts, env) in kinds.items():
            runs[name] = [
                pool.submit(counted, args, Path(folder) / f"{name}-{count}", echo, work(count), **env)
                for count in counts
            ]
        figures = {}
        for name, pair in runs.items():
            try:
                figures[name] = {count: total for total, count in (run.result() for run in pair)}
            except Exception as problem:  # noqa: BLE001 - one figure must not cost the others
                print(f"not measured: {name}: {problem}", file=sys.stderr)
        return figures


def each(totals):
    """Instructions of one call or round, of which a run's totals differ by nothing else."""
    few, many = min(totals), max(totals)
    return (totals[many] - totals[few]) / (many - few)


def lowest(runs):
    """The totals of several runs in one. What the clock brings only adds to a total, so the lowest
    one is the truest; of differences of two totals that would not be so."""
    joined = {}
    for totals in runs:
        for count, total in totals.items():
            joined[count] = min(total, joined.get(count, total))
    return joined
