"""The shim's own end, and its command line against the real thing."""

import json
import signal
import subprocess

from callers import grpc_infer, http, infer_body
from waiting import Call, eventually

PATIENT = "/v2/models/patient/infer"


def test_a_shim_that_is_told_to_stop_completes_what_runs_and_exits_with_0(make_server, start_shim):
    server = make_server("patient")
    server.start()
    server.wait_until_up()
    server.load("patient")
    shim = start_shim(server)
    shim.wait_until_up()
    calls = [
        Call(lambda: http(shim.http, "POST", PATIENT, infer_body("stop-1", 50.0)).status),
        Call(lambda: grpc_infer(shim.grpc, "patient", "stop-2", 50.0).id),
    ]
    server.wait_for("stop-1", "stop-2")

    shim.signal(signal.SIGTERM)
    eventually("the shim is no longer ready", lambda: not shim.is_ready())
    assert shim.is_running and not any(call.ended for call in calls)
    server.let_go("stop-1", "stop-2")
    assert [call.answer() for call in calls] == [200, "stop-2"]
    assert shim.wait() == 0

    # Without the shim: MLServer, told to stop, cuts what runs.
    cut = Call(lambda: http(server.http, "POST", PATIENT, infer_body("stop-3", 50.0)).status)
    server.wait_for("stop-3")
    server.signal(signal.SIGTERM)
    try:
        assert cut.answer() == 500
    except OSError:
        pass


def test_the_status_command_says_what_the_status_page_says(server, start_shim, binary):
    shim = start_shim(server)
    shim.wait_until_up()
    eventually("the shim knows the server's models", lambda: shim.status()["models"])
    done = subprocess.run(
        [binary, "status", "--json", "--admin", f"http://{shim.admin}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["server"]["name"] == "mlserver"
    assert status["server"]["version"] == "1.7.1"
    assert status["server"]["extensions"] == []
    assert status["selection"] == {"http": "127.0.0.1", "grpc": "127.0.0.1"}
    assert {endpoint["state"] for endpoint in status["endpoints"]} == {"up"}
    assert {model["name"] for model in status["models"]} >= {"echo", "patient"}


def test_the_probe_command_tells_a_server_that_answers_from_one_that_does_not(
    make_server, start_shim, binary
):
    server = make_server()
    shim = start_shim(server)

    def probe(ask: str, at: str) -> int:
        command = [binary, "probe", ask, "--at", at, "--timeout", "10s"]
        return subprocess.run(command, capture_output=True, timeout=60).returncode

    # Without the shim's command: the image of MLServer brings no tool for this.
    assert probe("server-http", server.http) != 0
    assert probe("server-grpc", server.grpc) != 0
    assert probe("readyz", shim.admin) != 0

    server.start()
    server.wait_until_up()
    shim.wait_until_up()
    assert probe("server-http", server.http) == 0
    assert probe("server-grpc", server.grpc) == 0
    assert probe("readyz", shim.admin) == 0
    # The shim answers the same questions in the server's place.
    assert probe("server-http", shim.http) == 0
    assert probe("server-grpc", shim.grpc) == 0
