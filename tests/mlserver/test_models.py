"""What a client does with a model, through the shim and without it."""

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from callers import grpc_client, http, http_client
from waiting import eventually

FLOWERS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], dtype=np.float32)


def life_of_iris(client, module, **binary) -> dict:
    """All that a client does with a model, and everything it hears in return."""
    heard = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "server": client.get_server_metadata(),
        "before": client.is_model_ready("iris") if module is triton_http else None,
    }
    client.load_model("iris")
    heard["loaded"] = client.is_model_ready("iris", "v0.1.0")
    heard["metadata"] = client.get_model_metadata("iris")

    tensor = module.InferInput("predict", list(FLOWERS.shape), "FP32")
    tensor.set_data_from_numpy(FLOWERS, **binary)
    answer = client.infer("iris", [tensor], request_id="flowers")
    heard["answer"] = answer.get_response()
    heard["kinds"] = answer.as_numpy("predict").tolist()

    client.unload_model("iris")
    with pytest.raises(InferenceServerException) as gone:
        client.infer("iris", [tensor])
    heard["gone"] = (gone.value.status(), gone.value.message())
    return heard


def test_a_model_is_loaded_used_and_unloaded_over_http_as_without_the_shim(server, start_shim):
    # MLServer knows no binary tensors over HTTP.
    with http_client(server.http) as client:
        direct = life_of_iris(client, triton_http, binary_data=False)
    assert direct["loaded"] and np.ravel(direct["kinds"]).tolist() == [0, 2]

    shim = start_shim(server)
    shim.wait_until_up()
    with http_client(shim.http) as client:
        assert life_of_iris(client, triton_http, binary_data=False) == direct


def test_a_model_is_loaded_used_and_unloaded_over_grpc_as_without_the_shim(server, start_shim):
    with grpc_client(server.grpc) as client:
        direct = life_of_iris(client, triton_grpc)
        index = client.get_model_repository_index()
    assert direct["loaded"] and np.ravel(direct["kinds"]).tolist() == [0, 2]

    shim = start_shim(server)
    shim.wait_until_up()
    with grpc_client(shim.grpc) as client:
        assert life_of_iris(client, triton_grpc) == direct
        # The one difference: states in the words that the agent compares with.
        for model in index.models:
            model.state = model.state.removeprefix("State.")
        assert client.get_model_repository_index() == index


def test_the_status_page_follows_what_is_loaded_and_unloaded_through_the_shim(server, start_shim):
    shim = start_shim(server)
    shim.wait_until_up()
    # Without the shim: MLServer has no page for this, only an index that costs it dearly to read.
    assert http(server.http, "GET", "/v2/models").status == 404

    assert http(shim.http, "POST", "/v2/repository/models/iris/load").status == 200
    eventually("iris is shown as loaded", lambda: shim.model_state("iris") == "READY")
    with grpc_client(shim.grpc) as client:
        client.unload_model("iris")
    eventually("iris is shown as gone", lambda: shim.model_state("iris") == "UNAVAILABLE")
