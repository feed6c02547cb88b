"""One scrape with the real MLServer's own metrics in it."""

import shutil
import subprocess

import pytest
from callers import http, infer_body
from processes import REPOSITORY
from prometheus_client.parser import text_string_to_metric_families


def promtool() -> str | None:
    unpacked = REPOSITORY / "target/tools/prometheus/usr/bin/promtool"
    return shutil.which("promtool") or (str(unpacked) if unpacked.exists() else None)


def complaints(text: bytes) -> set[str]:
    done = subprocess.run(
        [promtool(), "check", "metrics"], input=text, capture_output=True, timeout=60
    )
    return set(done.stderr.decode().splitlines())


def series(text: str) -> dict[tuple, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} stands twice"
            found[key] = sample.value
    return found


@pytest.mark.parametrize("workers", ["1", "0"])
def test_the_servers_metrics_are_all_in_the_merged_scrape(make_server, start_shim, workers):
    # Without workers the server also exports what every Python process does.
    server = make_server("echo", env={"MLSERVER_PARALLEL_WORKERS": workers})
    server.start()
    server.wait_until_up()
    server.load("echo")
    body = infer_body("a", 1.0)
    assert http(server.http, "POST", "/v2/models/echo/infer", body).status == 200
    shim = start_shim(
        server,
        SHIM_MERGE_METRICS="true",
        SHIM_AGENT_METRICS_PORT="0",
        SHIM_AGENT_READY_PORT="0",
        SHIM_INFERENCE_METRICS_PORT=str(server.metrics_port),
    )
    shim.wait_until_up()
    own = http(f"{server.dial}:{server.metrics_port}", "GET", "/metrics")
    merged = shim.get("/metrics?merge")
    assert merged.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = merged.body.decode()
    all_of_them = series(text)
    assert all_of_them[("agent_shim_merge_up", (("source", "mlserver"),))] == 1.0
    kept = 0
    for name, labels in series(own.body.decode()):
        marked = tuple(sorted((*labels, ("merged_from", "mlserver"))))
        assert (name, labels) in all_of_them or (name, marked) in all_of_them, (name, labels)
        kept += 1
    assert kept > 20
    if workers == "0":
        assert ("process_open_fds", (("merged_from", "mlserver"),)) in all_of_them
        assert ("process_open_fds", ()) in all_of_them, "the shim's own"
    if promtool() is None:
        pytest.skip("promtool is not here (tools/test-tools.sh fetches it)")
    # What promtool has to say of MLServer's own names it may say of the whole, and nothing else.
    assert complaints(merged.body) <= complaints(own.body)


def test_a_server_that_is_down_leaves_the_rest(make_server, start_shim):
    server = make_server()
    shim = start_shim(
        server,
        SHIM_MERGE_METRICS="true",
        SHIM_AGENT_METRICS_PORT="0",
        SHIM_AGENT_READY_PORT="0",
        SHIM_INFERENCE_METRICS_PORT=str(server.metrics_port),
    )
    merged = shim.get("/metrics?merge")
    assert merged.status == 200
    found = series(merged.body.decode())
    assert found[("agent_shim_merge_up", (("source", "mlserver"),))] == 0.0
