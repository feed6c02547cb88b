"""The shim is there first, as a sidecar often is, and MLServer comes later."""

import pytest
from tritonclient.utils import InferenceServerException

from callers import fp32, grpc_client, http, infer_body, is_refused, triton_grpc
from waiting import Watch, eventually


@pytest.mark.parametrize("load_at_startup", [False, True])
def test_a_shim_that_was_first_is_never_ready_too_early_and_ready_once_the_server_answers(
    make_server, start_shim, load_at_startup
):
    # With models to load first, MLServer accepts gRPC connections a good while before it answers.
    server = make_server(
        "echo", "iris", env={"MLSERVER_LOAD_MODELS_AT_STARTUP": str(load_at_startup)}
    )

    # Without the shim: nobody listens, and all that a caller learns is that.
    assert is_refused(server.http)
    with grpc_client(server.grpc) as direct:
        with pytest.raises(InferenceServerException) as refused:
            direct.is_server_live(client_timeout=10)
    assert refused.value.status() == "StatusCode.UNAVAILABLE"

    shim = start_shim(server)

    def says_ready_and_is() -> tuple[bool, bool]:
        # The shim is asked first: what it says must hold from then on.
        said = (
            shim.is_ready() or http(shim.http, "GET", "/v2/health/ready", timeout=10).status == 200
        )
        try:
            return said, server.is_live()
        except OSError:
            return said, False

    with grpc_client(shim.grpc) as client, Watch(says_ready_and_is) as seen:
        eventually("the shim knows that nobody listens", lambda: shim.states() == {"down"})
        assert shim.endpoint("http")["reason"] == "refused"
        assert shim.endpoint("grpc")["reason"] == "refused"
        unready = shim.get("/readyz")
        assert unready.status == 503 and unready.body.strip(), unready
        assert shim.says_live() == (False, False)

        answer = http(
            shim.http, "POST", "/v2/models/echo/infer", infer_body("early", 1.0), timeout=10
        )
        assert answer.status == 503, answer
        assert "retry-after" in answer.headers, answer
        assert answer.json()["error"], answer
        with pytest.raises(InferenceServerException) as unavailable:
            client.get_server_metadata(client_timeout=10)
        assert unavailable.value.status() == "StatusCode.UNAVAILABLE"
        assert unavailable.value.message()

        server.start()
        server.wait_until_up()
        shim.wait_until_up()
        eventually("the shim says live for the server", lambda: shim.says_live() == (True, True))
        eventually(
            "the shim knows the server's name",
            lambda: shim.status()["server"]["name"] == "mlserver",
        )

        # The client from before the server existed needs no restart.
        if load_at_startup:
            eventually("the models are loaded", client.is_server_ready)
        else:
            client.load_model("echo")
        tensor = triton_grpc.InferInput("x", [2], "FP32")
        tensor.set_data_from_numpy(fp32([1, 2]))
        reply = client.infer("echo", [tensor], client_timeout=60)
        assert reply.as_numpy("x").tolist() == [1, 2]

    assert seen.answers[0] == (False, False)
    assert seen.answers[-1] == (True, True)
    assert "(True, False)" not in seen.distinct()
