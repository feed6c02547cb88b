"""MLServer freezes, dies, or never comes up: what lives is not cut, nobody waits for the dead."""

import os
import signal
from functools import partial

import grpc
import pytest
from tritonclient.utils import InferenceServerException

from callers import (
    accepts,
    fp32,
    grpc_client,
    grpc_infer,
    grpc_stub,
    http,
    infer_body,
    is_refused,
    pb,
    triton_grpc,
)
from processes import MLServer, Shim
from waiting import Call, Watch, eventually

ECHO = "/v2/models/echo/infer"
PATIENT = "/v2/models/patient/infer"


def is_silent(server: MLServer) -> bool:
    """Without the shim: both ports accept, neither answers within what a probe would wait."""
    assert accepts(server.http) and accepts(server.grpc)
    with pytest.raises(TimeoutError):
        http(server.http, "GET", "/v2/health/live", timeout=1)
    with grpc_stub(server.grpc) as stub, pytest.raises(grpc.RpcError) as error:
        stub.ServerLive(pb.ServerLiveRequest(), timeout=1)
    return error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def grpc_load(target: str, model: str) -> pb.RepositoryModelLoadResponse:
    with grpc_stub(target) as stub:
        return stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=model), timeout=60)


def infer_with(
    client: triton_grpc.InferenceServerClient, value: float, client_timeout: float = 60
) -> list[float]:
    tensor = triton_grpc.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(fp32([value]))
    return client.infer("echo", [tensor], client_timeout=client_timeout).as_numpy("x").tolist()


def check_refused_honestly(shim: Shim, *clients: triton_grpc.InferenceServerClient) -> None:
    """New calls get an answer although the server gives none: this can only be the shim's."""
    answer = http(shim.http, "POST", ECHO, infer_body("refused", 1.0), timeout=10)
    assert answer.status == 503, answer
    assert "retry-after" in answer.headers, answer
    assert answer.headers["content-type"].startswith("application/json"), answer
    assert answer.json()["error"], answer
    for client in clients:
        for call in (client.get_server_metadata, partial(infer_with, client, 1.0)):
            with pytest.raises(InferenceServerException) as unavailable:
                call(client_timeout=10)
            assert unavailable.value.status() == "StatusCode.UNAVAILABLE"
            assert len(unavailable.value.message().split()) > 1, unavailable.value.message()


def check_not_ready(shim: Shim) -> None:
    unready = shim.get("/readyz")
    assert unready.status == 503 and unready.body.strip(), unready


# --- Silence ---------------------------------------------------------------------------------


def test_while_the_server_is_frozen_callers_wait_and_are_answered_when_it_goes_on(
    server, start_shim
):
    shim = start_shim(server, SHIM_OUTAGE_GRACE="60s")
    shim.wait_until_up()
    before = [
        Call(lambda: http(shim.http, "POST", PATIENT, infer_body("frozen-1", 50.0)).status),
        Call(lambda: grpc_infer(shim.grpc, "patient", "frozen-2", 50.0).id),
    ]
    server.wait_for("frozen-1", "frozen-2")

    server.freeze()
    with Watch(shim.says_live) as lives, Watch(shim.is_ready) as readies:
        assert is_silent(server)
        eventually("the shim sees that the server is silent", lambda: shim.states() == {"stalled"})
        assert shim.endpoint("http")["reason"] == "response-timeout"
        assert shim.endpoint("grpc")["reason"] == "response-timeout"

        during = [
            Call(lambda: http(shim.http, "POST", ECHO, infer_body("a", 1.0)).status),
            Call(lambda: grpc_infer(shim.grpc, "echo", "b", 2.0).id),
        ]
        answered = len(lives.answers)
        eventually("health goes on being answered", lambda: len(lives.answers) >= answered + 10)
        assert not any(call.ended for call in before + during), "a caller was cut off"

        server.let_go("frozen-1", "frozen-2")
        server.thaw()
        assert [call.answer() for call in before] == [200, "frozen-2"]
        assert [call.answer() for call in during] == [200, "b"]
        eventually("the shim sees that it is back", lambda: shim.states() == {"up"})
    assert lives.distinct() == ["(True, True)"]
    assert readies.distinct() == ["True"]


def test_a_server_that_stays_silent_is_called_down_and_comes_back_without_a_restart(
    server, start_shim
):
    shim = start_shim(server, SHIM_OUTAGE_GRACE="3s")
    shim.wait_until_up()
    with grpc_client(shim.grpc) as client, grpc_client(shim.grpc) as asking_first:
        assert infer_with(client, 1.0) == [1.0]
        assert asking_first.is_server_live()
        running = [
            Call(lambda: http(shim.http, "POST", PATIENT, infer_body("wedged-1", 50.0)).status),
            Call(lambda: grpc_infer(shim.grpc, "patient", "wedged-2", 50.0).id),
        ]
        server.wait_for("wedged-1", "wedged-2")

        server.freeze()
        assert is_silent(server)
        eventually("silence beyond the grace is down", lambda: shim.states() == {"down"})
        assert shim.endpoint("http")["reason"] == "response-timeout"
        assert shim.endpoint("grpc")["reason"] == "response-timeout"
        check_refused_honestly(shim, client, asking_first)
        check_not_ready(shim)
        assert shim.says_live() == (False, False)
        # The verdict is a suspicion, and running calls are not ended on suspicion.
        assert not any(call.ended for call in running), "a running call was cut off"

        server.let_go("wedged-1", "wedged-2")
        server.thaw()
        assert [call.answer() for call in running] == [200, "wedged-2"]
        shim.wait_until_up()
        assert infer_with(client, 2.0) == infer_with(asking_first, 2.0) == [2.0]
        assert shim.says_live() == (True, True)


def test_an_import_that_freezes_the_server_costs_neither_live_nor_ready_nor_a_call(
    server, start_shim
):
    shim = start_shim(server)
    shim.wait_until_up()
    path = "/v2/repository/models/freezing_import/load"
    with Watch(shim.says_live) as lives, Watch(shim.is_ready) as readies:
        load = Call(lambda: http(shim.http, "POST", path).status)
        eventually("the import has begun", (server.calls / "import.begun").exists)
        calls = [
            Call(lambda: http(shim.http, "POST", ECHO, infer_body("a", 1.0)).status),
            Call(lambda: grpc_infer(shim.grpc, "echo", "b", 2.0).id),
        ]
        # Without the shim: a probe with a usual time-out calls this server dead.
        assert is_silent(server)
        assert [call.answer() for call in calls] == [200, "b"]
        assert load.answer() == 200
        eventually("the shim sees that it is back", lambda: shim.states() == {"up"})
    assert lives.distinct() == ["(True, True)"]
    assert readies.distinct() == ["True"]


def test_while_a_model_loads_the_server_is_not_ready_and_the_others_are_served(server, start_shim):
    shim = start_shim(server)
    shim.wait_until_up()

    def ready_by(over_http: str, over_grpc: str) -> tuple[int, bool]:
        with grpc_stub(over_grpc) as stub:
            by_grpc = stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready
        return http(over_http, "GET", "/v2/health/ready", timeout=10).status, by_grpc

    with Watch(shim.says_live) as lives, Watch(shim.is_ready) as readies:
        # Over gRPC, where a load that is cancelled, or cut, leaves the server not ready for good.
        load = Call(lambda: grpc_load(shim.grpc, "slow_load"))
        # Without the shim: the whole server says "not ready" for as long as one model loads.
        eventually(
            "MLServer says that it is not ready",
            lambda: ready_by(server.http, server.grpc) == (400, False),
        )
        # The shim repeats that where it is asked in the server's place, and leaves it there.
        eventually("the shim repeats it", lambda: ready_by(shim.http, shim.grpc) == (400, False))
        assert http(shim.http, "POST", ECHO, infer_body("a", 1.0)).status == 200
        assert grpc_infer(shim.grpc, "echo", "b", 2.0).id == "b"
        path = "/v2/models/slow_load/infer"
        direct = http(server.http, "POST", path, infer_body("c", 1.0))
        through = http(shim.http, "POST", path, infer_body("c", 1.0))
        assert direct.status == 400
        assert (through.status, through.body) == (direct.status, direct.body)
        assert not load.ended, "the model was loaded before the test had looked"

        load.answer()
        eventually("ready again", lambda: ready_by(shim.http, shim.grpc) == (200, True))
        assert http(shim.http, "POST", path, infer_body("d", 1.0)).status == 200
    assert lives.distinct() == ["(True, True)"]
    assert readies.distinct() == ["True"]
    assert http(shim.http, "POST", "/v2/repository/models/slow_load/unload").status == 200


# --- Death -----------------------------------------------------------------------------------


def test_a_server_that_is_killed_and_started_again_is_used_by_the_same_clients(server, start_shim):
    # Models that come back by themselves have tests of their own.
    shim = start_shim(server, SHIM_OUTAGE_GRACE="60s", SHIM_RESTORE_MODELS="false")
    shim.wait_until_up()
    with grpc_client(shim.grpc) as client, grpc_client(shim.grpc) as asking_first:
        assert infer_with(client, 1.0) == [1.0]
        assert asking_first.is_server_live()
        running = [
            Call(lambda: http(shim.http, "POST", PATIENT, infer_body("killed-1", 50.0))),
            Call(lambda: grpc_infer(shim.grpc, "patient", "killed-2", 50.0)),
            Call(lambda: http(server.http, "POST", PATIENT, infer_body("killed-3", 50.0))),
        ]
        server.wait_for("killed-1", "killed-2", "killed-3")

        with Watch(shim.says_live) as lives:
            server.kill()
            # Without the shim: the connection breaks, and from then on nobody listens.
            assert isinstance(running[2].error(), OSError)
            assert is_refused(server.http) and not accepts(server.grpc)

            # The calls that ran are over, and their callers hear it: none hangs.
            assert running[1].error().code() == grpc.StatusCode.UNAVAILABLE
            try:
                assert running[0].answer().status in (502, 503)
            except OSError:
                pass  # the honest alternative: a connection that breaks as the server's did
            # New ones are told at once, not only when enough probes have failed.
            check_refused_honestly(shim, client, asking_first)
            eventually("the shim knows that it is gone", lambda: shim.states() == {"down"})
            assert shim.endpoint("http")["reason"] == "refused"
            assert shim.endpoint("grpc")["reason"] == "refused"
            check_refused_honestly(shim, client, asking_first)
            check_not_ready(shim)

            server.start()
            server.wait_until_up()
            shim.wait_until_up()
            # The models are gone with the process, although the server says ready.
            eventually("the shim sees that", lambda: shim.model_state("echo") == "UNAVAILABLE")
            client.load_model("echo")
            assert infer_with(client, 2.0) == infer_with(asking_first, 2.0) == [2.0]
            assert http(shim.http, "POST", ECHO, infer_body("a", 1.0)).status == 200
        # The restart was shorter than the grace: nobody who asks for live gave up.
        assert lives.distinct() == ["(True, True)"]
    server.load("patient")


def test_what_the_callers_of_a_dead_worker_hear_comes_through_unchanged(server, start_shim):
    shim = start_shim(server)
    shim.wait_until_up()
    by_http = [
        Call(lambda: http(server.http, "POST", PATIENT, infer_body("worker-1", 50.0))),
        Call(lambda: http(shim.http, "POST", PATIENT, infer_body("worker-2", 50.0))),
    ]
    by_grpc = [
        Call(lambda: grpc_infer(server.grpc, "patient", "worker-3", 50.0)),
        Call(lambda: grpc_infer(shim.grpc, "patient", "worker-4", 50.0)),
    ]
    server.wait_for("worker-1", "worker-2", "worker-3", "worker-4")
    os.kill(server.worker(), signal.SIGKILL)

    # Without the shim: the running calls get an error of MLServer's own, with the cause.
    direct, through = (call.answer() for call in by_http)
    assert direct.status == 500 and "stopped unexpectedly" in direct.json()["error"]
    assert (through.status, through.body) == (direct.status, direct.body)
    direct, through = (call.error() for call in by_grpc)
    assert direct.code() == grpc.StatusCode.INTERNAL
    assert "stopped unexpectedly" in direct.details()
    assert (through.code(), through.details()) == (direct.code(), direct.details())

    # MLServer starts a new worker and loads its models again; the shim is not in the way.
    echo = infer_body("a", 1.0)
    eventually("it works again", lambda: http(shim.http, "POST", ECHO, echo).status == 200)


# --- Never alive -----------------------------------------------------------------------------


def test_a_server_that_failed_to_bind_and_stays_is_named_refused_and_never_ready(
    make_server, start_shim
):
    server = make_server("echo", host="::", dial="127.0.0.1")
    shim = start_shim(server)
    with Watch(shim.is_ready) as readies, grpc_client(shim.grpc) as client:
        server.start()
        eventually(
            "MLServer has failed to bind",
            lambda: "Failed to bind to address" in server.log.read_text(),
        )
        eventually("the shim has looked", lambda: shim.states() == {"down"})
        # Without the shim: a process that runs, and nothing that says what is wrong with it.
        assert server.is_running and is_refused(server.http) and not accepts(server.grpc)

        assert shim.endpoint("http")["reason"] == "refused"
        assert shim.endpoint("grpc")["reason"] == "refused"
        check_refused_honestly(shim, client)
        check_not_ready(shim)
    assert readies.distinct() == ["False"]


def test_a_server_that_accepts_and_never_answers_is_named_silent_and_never_ready(
    make_server, start_shim
):
    server = make_server("echo", host="[::]", dial="127.0.0.1")
    shim = start_shim(server, SHIM_OUTAGE_GRACE="3s")
    with Watch(shim.is_ready) as readies, grpc_client(shim.grpc) as client:
        server.start()
        # For an instant it answers over gRPC: between that port's start and HTTP's failure.
        eventually(
            "MLServer has failed to bind HTTP",
            lambda: "Name or service not known" in server.log.read_text(),
        )
        # Without the shim: a TCP probe of the gRPC port is content for ever.
        assert server.is_running and accepts(server.grpc)
        with grpc_stub(server.grpc) as stub, pytest.raises(grpc.RpcError) as error:
            stub.ServerLive(pb.ServerLiveRequest(), timeout=3)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert is_refused(server.http)

        def named() -> bool:
            silent, refused = shim.endpoint("grpc"), shim.endpoint("http")
            return (silent["state"], silent["reason"], refused["state"], refused["reason"]) == (
                "down",
                "response-timeout",
                "down",
                "refused",
            )

        eventually("one is called silent and the other refused", named)
        eventually("and neither live", lambda: shim.says_live() == (False, False))
        check_refused_honestly(shim, client)
    assert readies.distinct() == ["False"]
