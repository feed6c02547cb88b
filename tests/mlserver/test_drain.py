"""A preStop hook that waits for `/drain`, against the real MLServer, which cuts what runs."""

import signal

from callers import grpc_infer, http, infer_body
from waiting import Call, eventually

PATIENT = "/v2/models/patient/infer"


def started(make_server):
    server = make_server("patient")
    server.start()
    server.wait_until_up()
    server.load("patient")
    return server


def calls_through(at, server, name: str) -> list[Call]:
    ids = [f"{name}-{n}" for n in range(4)]
    calls = [
        Call(lambda: http(at.http, "POST", PATIENT, infer_body(ids[0], 4.0)).status),
        Call(lambda: http(at.http, "POST", PATIENT, infer_body(ids[1], 4.0)).status),
        Call(lambda: grpc_infer(at.grpc, "patient", ids[2], 4.0).id),
        Call(lambda: grpc_infer(at.grpc, "patient", ids[3], 4.0).id),
    ]
    server.wait_for(*ids)
    return calls


def answered(call: Call, within: float = 60) -> bool:
    try:
        return call.answer(within) not in (500, 502, 503)
    except Exception:  # cut in whichever way, or forgotten: MLServer's end leaves some hanging
        return False


def test_calls_in_flight_are_answered_when_the_servers_end_waits_for_the_drain(
    make_server, start_shim
):
    server = started(make_server)
    shim = start_shim(server, SHIM_AGENT_DRAIN_PORT="0", SHIM_AGENT_READY_PORT="0")
    shim.wait_until_up()
    calls = calls_through(shim, server, "waited")
    # What kubelet does: the hook first, and SIGTERM when it has returned.
    hook = Call(lambda: http(shim.admin, "GET", "/drain"))
    eventually("the drain has begun", lambda: shim.status()["drain"]["state"] == "draining")
    assert not shim.is_ready()
    assert shim.status()["drain"]["running"] == 4
    said = hook.answer()
    server.signal(signal.SIGTERM)
    assert said.status == 200 and said.body.startswith(b"drained in "), said
    assert [answered(call) for call in calls] == [True] * 4
    assert server.wait() == 0


def test_without_the_drain_they_are_lost(make_server, start_shim):
    server = started(make_server)
    shim = start_shim(server, SHIM_AGENT_DRAIN_PORT="0", SHIM_AGENT_READY_PORT="0")
    shim.wait_until_up()
    calls = calls_through(shim, server, "cut")
    server.signal(signal.SIGTERM)
    # Each would have been answered after 4 s.
    assert [answered(call, within=15) for call in calls] == [False] * 4


def test_a_drain_that_was_a_restart_is_taken_back(make_server, start_shim):
    server = started(make_server)
    shim = start_shim(server, SHIM_AGENT_DRAIN_PORT="0", SHIM_AGENT_READY_PORT="0")
    shim.wait_until_up()
    assert http(shim.admin, "GET", "/drain").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not shim.is_ready()
    server.kill()
    server.start()
    server.wait_until_up()
    eventually("the shim is ready again", shim.is_ready)
    assert shim.status()["drain"]["undone"] == 1
