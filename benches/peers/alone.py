"""The shim in a process namespace of its own, as in a pod: what it finds by looking through /proc is
its own pod's, not whatever else runs on this machine."""

import shutil
import subprocess
import sys

import machine
from subjects import Shim

PREFIX = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def may():
    """Whether this user may give a process a namespace of its own."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*PREFIX, "true"], capture_output=True, check=False).returncode == 0


class Alone(Shim):
    """The shim, alone where that is allowed; says on stderr where it is not."""

    def __init__(self, folder, binary, **env):
        super().__init__(folder, binary, **env)
        self.alone = may()
        if not self.alone:
            print(
                "idle cpu and memory: measured among all processes of this machine, whose number"
                " counts; a process namespace takes root and unshare",
                file=sys.stderr,
            )

    def launch(self, command, env=None):
        super().launch([*PREFIX, *command] if self.alone else command, env)

    def pid(self):
        """The shim's own: what stands before it only waits."""
        return machine.children(self.process.pid)[-1]

    def cpu(self):
        return machine.cpu_seconds(self.pid())

    def memory(self):
        return machine.memory(self.pid())
