"""The two programs, MLServer and the shim, and the clean-up after them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from callers import Answer, authority, free_port, grpc_live, http, infer_body
from waiting import PATIENCE, Hopeless, eventually

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent


class Reaper:
    """Ends what the tests started when they end in a way that runs no clean-up of theirs.

    A process of its own that holds the other end of a pipe: when this one dies, by whatever
    signal, the pipe closes and the process groups still registered are killed.
    """

    _PROGRAM = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    sign, group = line[0], int(line[1:])
    groups.add(group) if sign == "+" else groups.discard(group)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", self._PROGRAM],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def register(self, group: int) -> None:
        self._say(f"+{group}")

    def forget(self, group: int) -> None:
        self._say(f"-{group}")

    def _say(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(PATIENCE)


class Process:
    """A program in a process group of its own, with its output in a file."""

    def __init__(self, reaper: Reaper, name: str, home: Path):
        self.name = name
        self.home = home
        self.log = home / f"{name}.log"
        self._reaper = reaper
        self._process: subprocess.Popen | None = None

    def _spawn(self, command: list[str], env: dict[str, str]) -> None:
        assert self._process is None, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.home,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._reaper.register(self._process.pid)

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout: float = PATIENCE) -> int:
        return self._process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL for the whole group: MLServer's workers outlive their main process."""
        if self._process is None:
            return
        group = self._process.pid
        self._kill_group(group)
        self._process.wait(PATIENCE)
        eventually(
            f"all processes of {self.name} are gone",
            lambda: not members_of_group(group) or self._kill_group(group),
        )
        self._reaper.forget(group)
        self._process = None

    @staticmethod
    def _kill_group(group: int) -> None:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def log_tail(self, lines: int = 80) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def members_of_group(group: int) -> list[int]:
    """Living processes of a group; those that only wait to be collected count as gone."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in the second field may hold anything, even a parenthesis.
                state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(pgrp) == group and state != "Z":
                members.append(int(entry.name))
    return members


def plain_environment() -> dict[str, str]:
    """As little of the caller's environment as programs need, so that no setting leaks in."""
    return {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ
    }


class MLServer(Process):
    """The real MLServer, configured as Seldon's ServerConfig does it."""

    def __init__(
        self,
        reaper: Reaper,
        home: Path,
        models: list[str],
        host: str = "127.0.0.1",
        dial: str | None = None,
        env: dict[str, str] | None = None,
        wrapper: list[str] | None = None,
    ):
        super().__init__(reaper, "mlserver", home)
        self.host = host
        self.dial = dial or host
        self.http_port, self.grpc_port, self.metrics_port = free_port(), free_port(), free_port()
        self._env = env or {}
        self._wrapper = wrapper or []
        self.calls = home / "calls"
        self.calls.mkdir()
        for model in models:
            shutil.copytree(HERE / "models" / model, home / "models" / model)
        (home / "models").mkdir(exist_ok=True)

    def at(self, host: str) -> tuple[str, str]:
        """Where HTTP and gRPC would be on another address."""
        return authority(host, self.http_port), authority(host, self.grpc_port)

    @property
    def http(self) -> str:
        return self.at(self.dial)[0]

    @property
    def grpc(self) -> str:
        return self.at(self.dial)[1]

    def start(self) -> None:
        """Starts the process; `wait_until_up` waits for its answer."""
        self._spawn(
            self._wrapper + [str(Path(sys.executable).with_name("mlserver")), "start", "models"],
            plain_environment()
            | {
                "MLSERVER_HOST": self.host,
                "MLSERVER_HTTP_PORT": str(self.http_port),
                "MLSERVER_GRPC_PORT": str(self.grpc_port),
                "MLSERVER_METRICS_PORT": str(self.metrics_port),
                "MLSERVER_LOAD_MODELS_AT_STARTUP": "false",
                "MLSERVER_MODEL_PARALLEL_WORKERS": "1",
                "MLSERVER_GRPC_MAX_MESSAGE_LENGTH": "1048576000",
            }
            | self._env,
        )

    def is_live(self) -> bool:
        return http(self.http, "GET", "/v2/health/live", timeout=5).status == 200 and grpc_live(
            self.grpc, timeout=5
        )

    def wait_until_up(self) -> None:
        def answers() -> bool:
            if not self.is_running:
                raise Hopeless("MLServer has ended")
            return self.is_live()

        eventually("MLServer answers", answers)

    def load(self, model: str) -> None:
        answer = http(self.http, "POST", f"/v2/repository/models/{model}/load")
        assert answer.status == 200, answer

    def echoes(self, timeout: float = 30) -> bool:
        """A whole inference, the only proof that MLServer can work."""
        path = "/v2/models/echo/infer"
        answer = http(self.http, "POST", path, infer_body("echo", 1.5), timeout=timeout)
        return answer.status == 200 and answer.json()["outputs"][0]["data"] == [1.5]

    def freeze(self) -> None:
        """All of its processes stop, as those of a paused container do."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def worker(self) -> int:
        """The process that runs the models, as opposed to the one that answers."""
        for member in members_of_group(self.pid):
            if b"spawn_main" in Path(f"/proc/{member}/cmdline").read_bytes():
                return member
        raise AssertionError("MLServer has no worker")

    def wait_for(self, *call_ids: str) -> None:
        """Until these calls have reached the model `patient`."""
        for call_id in call_ids:
            begun = self.calls / f"{call_id}.begun"
            eventually(f"call {call_id} has reached its model", begun.exists)

    def let_go(self, *call_ids: str) -> None:
        """Lets `patient` answer these calls."""
        for call_id in call_ids:
            (self.calls / f"{call_id}.go").touch()


class Shim(Process):
    """The real agent-shim."""

    def __init__(self, reaper: Reaper, home: Path, binary: Path, env: dict[str, str]):
        super().__init__(reaper, "agent-shim", home)
        self.binary = binary
        self.http = self.grpc = self.admin = ""
        self._env = env

    def start(self) -> None:
        """Starts it on ports of the kernel's choosing, and finds them out from what it logs."""
        self._spawn(
            [str(self.binary), "run"],
            plain_environment()
            | {
                "SHIM_RELAY_HTTP_PORT": "0",
                "SHIM_RELAY_GRPC_PORT": "0",
                "SHIM_ADMIN_PORT": "0",
                "SHIM_ADMIN_LISTEN": "127.0.0.1",
                "SHIM_LOG_FORMAT": "json",
            }
            | self._env,
        )

        def listening() -> dict | None:
            if not self.is_running:
                raise Hopeless("the shim has ended")
            for line in self.log.read_text().splitlines():
                fields = json.loads(line).get("fields", {}) if line.startswith("{") else {}
                if fields.get("message") == "listening":
                    return fields
            return None

        fields = eventually("the shim says where it listens", listening)
        self.http = fields["relay_http"].split(",")[0].strip()
        self.grpc = fields["relay_grpc"].split(",")[0].strip()
        self.admin = fields["admin"].split(",")[0].strip()

    # What it says about itself.

    def get(self, path: str) -> Answer:
        return http(self.admin, "GET", path, timeout=10)

    def status(self) -> dict:
        return self.get("/status").json()

    def endpoint(self, protocol: str, host: str | None = None) -> dict:
        """One endpoint of /status; `host` may be left out where there is only one."""
        found = [
            endpoint
            for endpoint in self.status()["endpoints"]
            if endpoint["protocol"] == protocol and host in (None, endpoint["host"])
        ]
        assert len(found) == 1, (protocol, host, found)
        return found[0]

    def model_state(self, name: str) -> str | None:
        states = [model["state"] for model in self.status()["models"] if model["name"] == name]
        return states[0] if states else None

    def states(self) -> set[str]:
        return {endpoint["state"] for endpoint in self.status()["endpoints"]}

    def is_ready(self) -> bool:
        return self.get("/readyz").status == 200

    def says_live(self) -> tuple[bool, bool]:
        """What it answers in MLServer's place, over HTTP and over gRPC."""
        return (
            http(self.http, "GET", "/v2/health/live", timeout=10).status == 200,
            grpc_live(self.grpc, timeout=10),
        )

    def wait_until_up(self) -> None:
        eventually("the shim has found the server", lambda: self.is_ready() and self.selects_both())

    def selects_both(self) -> bool:
        return None not in self.status()["selection"].values()

    # What it costs.

    def memory_peak(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
