"""Figures of the shim alone: what it costs at rest, and how fast it is with the truth."""

import http.client
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import load
from alone import Alone
from subjects import Shim, free_port, listens, until


def measure(args, folder, small):
    """Every part; one that fails is said on stderr and left out."""
    figures = {"binary_mb": Path(args.shim).stat().st_size / 1e6}
    parts = [start_time, at_rest, agent_event, death_and_return, instructions]
    for part in parts:
        try:
            figures.update(part(args, folder, small))
        except Exception as problem:  # noqa: BLE001 - one part must not cost the others
            print(f"skipped: {part.__name__}: {problem}", file=sys.stderr)
    for name, figure in figures.items():
        print(f"{name:<34} {figure:.3f}" if isinstance(figure, float) else f"{name:<34} {figure}")
    return figures


class EchoAt:
    """An upstream on ports that stay the same over its restarts."""

    def __init__(self, binary, host="127.0.0.1", http=None, grpc=None):
        self.binary, self.host = str(binary), host
        self.http, self.grpc = http or free_port(), grpc or free_port()
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [self.binary, str(self.http), str(self.grpc), self.host], stdout=subprocess.DEVNULL
        )
        return self

    def up(self):
        return listens(self.http, self.host) and listens(self.grpc, self.host)

    def stop(self, how=signal.SIGKILL):
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def __enter__(self):
        self.start()
        until("the echo server", self.up)
        return self

    def __exit__(self, *_):
        self.stop()


def start_time(args, folder, _small):
    """From exec to the admin port's first accepted connection, milliseconds."""
    times = []
    with EchoAt(args.echo) as echo:
        for _ in range(15):
            ports = [free_port() for _ in range(3)]
            env = {
                **os.environ,
                "SHIM_INFERENCE_HOSTS": "127.0.0.1",
                "SHIM_INFERENCE_HTTP_PORT": str(echo.http),
                "SHIM_INFERENCE_GRPC_PORT": str(echo.grpc),
                "SHIM_RELAY_HTTP_PORT": str(ports[0]),
                "SHIM_RELAY_GRPC_PORT": str(ports[1]),
                "SHIM_ADMIN_LISTEN": "127.0.0.1",
                "SHIM_ADMIN_PORT": str(ports[2]),
                "SHIM_LOG": "error",
                "SHIM_DRAIN_TIME": "0s",
            }
            begun = time.perf_counter()
            process = subprocess.Popen([str(args.shim)], env=env, stdout=subprocess.DEVNULL)
            while not listens(ports[2]):
                if time.perf_counter() - begun > 10:
                    raise TimeoutError("the shim did not listen within 10 s")
            times.append((time.perf_counter() - begun) * 1000)
            process.terminate()
            process.wait()
    return {"start_ms": statistics.median(times), "start_ms_worst": max(times)}


def at_rest(args, folder, _small):
    """Memory and cpu without traffic, three candidates on two protocols probed every second."""
    with EchoAt(args.echo) as echo:
        shim = Alone(folder, args.shim, SHIM_INFERENCE_HOSTS="127.0.0.1,127.0.0.2,::1")
        shim.start(echo.http, echo.grpc)
        try:
            time.sleep(5)
            before, begun = shim.cpu(), time.monotonic()
            time.sleep(60)
            used = (shim.cpu() - before) / (time.monotonic() - begun) * 100
            resident, peak = shim.memory()
        finally:
            shim.stop()
    return {
        "idle_cpu_percent": used,
        "resident_idle_mb": resident / 1e6,
        "peak_idle_mb": peak / 1e6,
        "idle_was_measured_alone": shim.alone,
    }


def agent_event(args, folder, _small):
    """Added by the interposer to one AgentEvent, microseconds, medians of interleaved rounds."""
    event = Path(folder) / "event"
    # A LOADED event: server, replica 0, model, version 1, event 2, memory, free memory.
    message = (
        load.field(1, b"mlserver") + load.field(3, b"iris") + b"\x20\x01\x28\x02"
        + b"\x38" + load.varint(1 << 30)
    )  # fmt: skip
    event.write_bytes(load.framed(message))
    with EchoAt(args.echo) as echo:
        agent_port = free_port()
        shim = Shim(
            folder,
            args.shim,
            SHIM_SCHEDULER=f"127.0.0.1:{echo.grpc}",
            SHIM_AGENT_PORT=str(agent_port),
        )
        shim.start(echo.http, echo.grpc)
        try:
            differences = []
            calls = max(100, int(1000 * args.scale))
            for _ in range(15):
                direct = load.run(echo.grpc, load.EVENT, event, calls=calls)
                through = load.run(agent_port, load.EVENT, event, calls=calls)
                differences.append(through.quantile(0.5) - direct.quantile(0.5))
        finally:
            shim.stop()
    return {"agent_event_added_us": float(statistics.median(differences))}


def answer(port):
    """Status of an inference over HTTP, or None where nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("POST", "/v2/models/iris/infer", b"{}")
        response = connection.getresponse()
        response.read()
        return response.status
    except OSError:
        return None
    finally:
        connection.close()


def death_and_return(args, folder, _small):
    """Milliseconds from the server's death to an honest answer, and from its first accepted
    connection to the first relayed call."""
    dead, back = [], []
    echo = EchoAt(args.echo)
    with echo:
        shim = Shim(folder, args.shim)
        shim.start(echo.http, echo.grpc)
        try:
            for _ in range(5):
                echo.stop()
                begun = time.perf_counter()
                until("an honest 503", lambda: answer(shim.http) == 503)
                dead.append((time.perf_counter() - begun) * 1000)
                time.sleep(3)
                echo.start()
                until("the server", lambda: listens(echo.http))
                begun = time.perf_counter()
                until("a relayed call", lambda: answer(shim.http) == 200)
                back.append((time.perf_counter() - begun) * 1000)
        finally:
            shim.stop()
    return {
        "death_to_honest_answer_ms": statistics.median(dead),
        "up_to_first_call_ms": statistics.median(back),
    }


def instructions(args, folder, small):
    """Instructions of one relayed call and of one probe, by callgrind: what noise cannot touch."""
    if not shutil.which("valgrind"):
        raise RuntimeError("valgrind is not installed")
    import callgrind

    totals = callgrind.measure(args, folder, small)
    return {name: callgrind.each(each) for name, each in totals.items()}
