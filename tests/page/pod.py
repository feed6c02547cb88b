"""A pod without its walls: the real agent-shim binary between stand-ins of its neighbours."""

import json
import os
import pathlib
import subprocess
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# Long enough for a loaded machine, short enough to fail.
PATIENCE = 40


def until(what, ask):
    """Asks again until the answer is true, within a bound."""
    end = time.monotonic() + PATIENCE
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < end, f"waited {PATIENCE} s in vain for: {what}"
        time.sleep(0.05)


class Pod:
    """`with Pod() as pod`: a server, a scheduler and the shim; an agent once it is asked for."""

    def __init__(self, scheduler=True, **settings):
        self.stage = subprocess.Popen(
            [TARGET / "debug/examples/page-stage"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        at = json.loads(self.stage.stdout.readline())
        self.settings = {
            "SHIM_INFERENCE_HOSTS": "127.0.0.1,::1",
            "SHIM_INFERENCE_HTTP_PORT": str(at["http"]),
            "SHIM_INFERENCE_GRPC_PORT": str(at["grpc"]),
            "SHIM_RELAY_HTTP_PORT": "0",
            "SHIM_RELAY_GRPC_PORT": "0",
            "SHIM_AGENT_PORT": "0",
            "SHIM_ADMIN_PORT": "0",
            "SHIM_ADMIN_LISTEN": "127.0.0.1",
            "SHIM_PROBE_INTERVAL": "200ms",
            "SHIM_PROBE_CONNECT_TIMEOUT": "200ms",
            "SHIM_PROBE_TIMEOUT": "200ms",
            "SHIM_MEMORY_LIMIT": "4Gi",
            "SHIM_CAPABILITIES_LIST": "mlserver,sklearn,scikit-learn,xgboost,torch,numpy,pandas",
            "SHIM_INDEX_INTERVAL": "1s",
            "SHIM_LOG_FORMAT": "json",
        }
        if scheduler:
            self.settings |= {
                "SHIM_SCHEDULER": at["scheduler"],
                "SHIM_SCHEDULER_STATUS": at["status"],
            }
        self.settings |= settings
        self.shim = None

    def __enter__(self):
        self.start_shim()
        return self

    def __exit__(self, *_):
        self.stop_shim()
        self.stage.stdin.close()
        self.stage.kill()
        self.stage.wait()

    def start_shim(self, admin="0"):
        """Starts the shim; on a given admin port where it is to come back."""
        self.shim = subprocess.Popen(
            [TARGET / "debug/agent-shim"],
            env=self.settings | {"SHIM_ADMIN_PORT": admin},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        heard = threading.Event()
        said = []

        def drain():
            for line in self.shim.stdout:
                said.append(line)
                if '"listening"' in line:
                    self.bound = json.loads(line)
                    heard.set()

        threading.Thread(target=drain, daemon=True).start()
        assert heard.wait(PATIENCE), "the shim has not started:\n" + "".join(said)
        fields = self.bound.get("fields", self.bound)
        self.url = f"http://{fields['admin']}/"
        self.agent_port = fields.get("agent")

    def stop_shim(self):
        if self.shim:
            self.shim.kill()
            self.shim.wait()
            self.shim = None

    def tell(self, command):
        """One command to the stage."""
        self.stage.stdin.write(command + "\n")
        self.stage.stdin.flush()
        assert self.stage.stdout.readline() == "ok\n", command

    def status(self):
        with urllib.request.urlopen(self.url + "status", timeout=5) as answer:
            return json.load(answer)

    def is_ready(self):
        try:
            with urllib.request.urlopen(self.url + "readyz", timeout=5):
                return True
        except urllib.error.HTTPError:
            return False

    def holds(self, name, wanted=True):
        """Waits until a condition holds, or does not."""

        def ask():
            found = [c for c in self.status()["conditions"] if c["name"] == name]
            return found and found[0]["status"] is wanted

        until(f"{name} to be {wanted}", ask)

    def become(self, state):
        """Brings the pod into a state that is worth looking at."""
        until("the pod to be ready", self.is_ready)
        self.tell("models 6")
        until("the models", lambda: len(self.status()["models"]) == 6)
        if state != "unsubscribed":
            self.tell(f"agent {self.agent_port} 1000000")
            self.holds("registered")
            self.holds("capacity-agrees")
        if state == "degraded":
            self.tell("require fraud catboost")
            self.tell("stop-grpc")
            self.holds("inference-grpc", False)
        if state == "down":
            self.tell("stop")
            self.holds("inference-http", False)
            self.holds("inference-grpc", False)
        return self
