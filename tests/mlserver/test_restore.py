"""The server or its worker is killed: models come back, and what its health calls hide is told."""

import json
import os
import signal

import pytest
from callers import grpc_client, grpc_stub, http, infer_body, pb
from processes import MLServer, Shim, members_of_group
from tritonclient.utils import InferenceServerException
from waiting import Call, eventually

ECHO = "/v2/models/echo/infer"
READY = "/v2/models/{}/ready"


def condition(shim: Shim, name: str) -> dict:
    return next(c for c in shim.status()["conditions"] if c["name"] == name)


def findings(shim: Shim, name: str) -> list[str]:
    return [f["text"] for f in shim.status()["findings"] if f["name"] == name]


def kill_main_and_start_anew(server: MLServer) -> None:
    """As an OOM kill of the main process and kubelet's restart of the container do."""
    server.kill()
    server.start()


@pytest.fixture
def loaded(make_server):
    server = make_server("echo", "iris")
    server.start()
    server.wait_until_up()
    return server


def test_models_of_a_killed_server_are_ready_again_without_any_request(loaded, start_shim):
    server = loaded
    shim = start_shim(server)
    shim.wait_until_up()
    with grpc_client(shim.grpc) as client:
        client.load_model("echo")
        client.load_model("iris")
        client.unload_model("iris")
    eventually("echo is known", lambda: shim.model_state("echo") == "READY")

    kill_main_and_start_anew(server)
    server.wait_until_up()
    eventually(
        "echo is loaded", lambda: http(server.http, "GET", READY.format("echo")).status == 200
    )
    assert server.echoes()
    eventually("the shim says so", lambda: condition(shim, "models-restored")["status"])
    assert http(server.http, "GET", READY.format("iris")).status == 404, "it was unloaded before"
    assert shim.status()["restoring"] == []


def test_a_cold_server_keeps_what_it_lost_where_restoring_is_switched_off(loaded, start_shim):
    # The other half of the test before: it is the shim that loads.
    server = loaded
    shim = start_shim(server, SHIM_RESTORE_MODELS="false")
    shim.wait_until_up()
    assert http(shim.http, "POST", "/v2/repository/models/echo/load").status == 200
    kill_main_and_start_anew(server)
    server.wait_until_up()
    unseen = "agent_shim_server_restarts_total 0"
    eventually("the shim sees it", lambda: unseen not in shim.get("/metrics").body.decode())
    assert http(server.http, "GET", READY.format("echo")).status == 404


def test_an_exit_of_the_worker_is_seen_where_health_stays_good(loaded, start_shim):
    server = loaded
    server.load("echo")
    assert server.echoes()
    shim = start_shim(server)
    shim.wait_until_up()
    eventually("the worker is seen", lambda: shim.status()["worker"]["processes"] == 1)

    os.kill(server.worker(), signal.SIGKILL)
    eventually("the exit is seen", lambda: shim.status()["worker"]["exits"] == 1)
    assert shim.says_live() == (True, True)
    assert condition(shim, "worker")["status"], "one exit is no reason to take the pod away"
    eventually("the worker works again", server.echoes)
    eventually("the worker is back", lambda: shim.status()["worker"]["processes"] == 1)


def test_workers_left_behind_by_a_killed_main_process_are_named(loaded, start_shim):
    server = loaded
    server.load("echo")
    assert server.echoes()
    shim = start_shim(server)
    shim.wait_until_up()
    eventually("the worker is seen", lambda: shim.status()["worker"]["processes"] == 1)
    worker = server.worker()
    os.kill(server.pid, signal.SIGKILL)
    eventually("the orphan is named", lambda: worker in shim.status()["worker"]["orphans"])
    assert findings(shim, "worker-orphans")
    assert worker in members_of_group(server.pid)


def cut_off_a_load(server: MLServer) -> None:
    """Straight to the server, which is where a caller's cancellation does harm."""
    with grpc_stub(server.grpc) as stub:
        load = stub.RepositoryModelLoad.future(
            pb.RepositoryModelLoadRequest(model_name="slow_load")
        )
        eventually(
            "it loads", lambda: http(server.http, "GET", READY.format("slow_load")).status == 400
        )
        load.cancel()


@pytest.mark.parametrize("mend", ["off", "stuck"])
def test_a_model_left_unknown_by_a_cut_off_load_is_named_and_mended_on_demand(
    make_server, start_shim, mend
):
    server = make_server("slow_load")
    server.start()
    server.wait_until_up()
    shim = start_shim(server, SHIM_MEND=mend)
    shim.wait_until_up()
    cut_off_a_load(server)
    told = eventually("it is named", lambda: findings(shim, "model-stuck"), timeout=120)
    assert "slow_load" in told[0]
    assert http(server.http, "GET", "/v2/health/ready").status == 400, "for good"
    if mend == "stuck":
        eventually(
            "the server is ready again",
            lambda: http(server.http, "GET", "/v2/health/ready").status == 200,
            timeout=120,
        )
        assert shim.status()["worker"]["mended"] == {"stuck": 1}


def test_a_load_whose_caller_gives_up_is_carried_to_its_end(make_server, start_shim):
    server = make_server("slow_load")
    server.start()
    server.wait_until_up()
    shim = start_shim(server)
    shim.wait_until_up()
    with grpc_client(shim.grpc) as client, pytest.raises(InferenceServerException):
        # Without the shim this leaves the server not ready for good.
        client.load_model("slow_load", client_timeout=2)
    ready = READY.format("slow_load")
    eventually("it is loaded", lambda: http(server.http, "GET", ready).status == 200)
    assert http(server.http, "GET", "/v2/health/ready").status == 200


def test_a_load_waits_for_an_unload_that_the_worker_has_not_done_yet(loaded, start_shim):
    server = loaded
    shim = start_shim(server)
    shim.wait_until_up()
    with grpc_stub(shim.grpc) as stub:
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="echo"))
        assert server.echoes()
        worker = server.worker()
        os.kill(worker, signal.SIGSTOP)
        try:
            unload = stub.RepositoryModelUnload.future(
                pb.RepositoryModelUnloadRequest(model_name="echo")
            )
            # Without the shim the server answers NOT_FOUND, and has the model no more.
            load = stub.RepositoryModelLoad.future(
                pb.RepositoryModelLoadRequest(model_name="echo")
            )
            # Behind both, on the same connection.
            stub.RepositoryIndex(pb.RepositoryIndexRequest())
            assert not unload.done() and not load.done()
        finally:
            os.kill(worker, signal.SIGCONT)
        unload.result()
        load.result()
    assert http(server.http, "GET", READY.format("echo")).status == 200
    assert server.echoes()


def test_the_agents_words_for_states(make_server, start_shim):
    server = make_server("slow_load", "echo")
    server.start()
    server.wait_until_up()
    shim = start_shim(server)
    shim.wait_until_up()
    load = Call(lambda: http(shim.http, "POST", "/v2/repository/models/slow_load/load").status)
    eventually(
        "it loads", lambda: http(server.http, "GET", READY.format("slow_load")).status == 400
    )

    def states(target: str) -> dict[str, str]:
        with grpc_client(target) as client:
            return {m.name: m.state for m in client.get_model_repository_index().models}

    assert states(server.grpc) == {"slow_load": "State.UNKNOWN", "echo": "State.UNAVAILABLE"}
    assert states(shim.grpc) == {"slow_load": "LOADING", "echo": "UNAVAILABLE"}
    assert load.answer() == 200


def test_a_canary_finds_the_worker_that_health_calls_do_not_miss(loaded, start_shim, tmp_path):
    server = loaded
    server.load("echo")
    assert server.echoes()
    request = tmp_path / "canary.json"
    request.write_text(json.dumps(infer_body("canary", 1.0)))
    shim = start_shim(
        server,
        SHIM_CANARY_MODEL="echo",
        SHIM_CANARY_REQUEST=str(request),
        SHIM_CANARY_INTERVAL="1s",
    )
    shim.wait_until_up()
    eventually("a canary works", lambda: shim.status()["worker"]["canary"] == "worked")
    worker = server.worker()
    os.kill(worker, signal.SIGSTOP)
    try:
        since = eventually(
            "one is outstanding", lambda: shim.status()["worker"]["canary_outstanding_since"]
        )
        eventually(
            "it stays so", lambda: not condition(shim, "worker")["status"], timeout=120
        )
        assert shim.status()["worker"]["canary_outstanding_since"] >= since
        assert shim.says_live() == (True, True)
        assert not shim.is_ready()
    finally:
        os.kill(worker, signal.SIGCONT)
    eventually("the worker works again", lambda: condition(shim, "worker")["status"])
