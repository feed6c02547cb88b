"""The component for kustomize: the same fragment as the chart's, merged by name."""

import os
import shutil

import pytest
import yaml

from conftest import ROOT, documents, kind, needs_helm, run, tool

COMPONENT = ROOT / "charts" / "kustomize" / "agent-shim"
BUILD = [tool("kustomize"), "build"] if tool("kustomize") else [shutil.which("kubectl"), "kustomize"] if shutil.which("kubectl") else None
needs_kustomize = pytest.mark.skipif(BUILD is None, reason="neither kustomize nor kubectl is here")

SERVER = {
    "apiVersion": "mlops.seldon.io/v1alpha1", "kind": "Server", "metadata": {"name": "mlserver"},
    "spec": {"serverConfig": "mlserver", "replicas": 2, "podSpec": {"containers": [
        {"name": "mlserver", "resources": {"requests": {"memory": "2Gi"}}},
        {"name": "agent", "env": [{"name": "SELDON_LOG_LEVEL", "value": "debug"}, {"name": "SELDON_SERVER_HTTP_PORT", "value": "9000"}]},
    ]}},
}
DEPLOYMENT = {
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
    "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
}


def build(tmp_path, resources, **more):
    (tmp_path / "resources.yaml").write_text(yaml.safe_dump_all(resources))
    component = os.path.relpath(COMPONENT, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["resources.yaml"], "components": [component], **more}))
    done = run([*BUILD, str(tmp_path)])
    assert done.returncode == 0, done.stderr
    return [d for d in yaml.safe_load_all(done.stdout)], done.stdout


@needs_helm
def test_the_patch_is_the_podspec_of_mode_server(request):
    wanted = {"apiVersion": "mlops.seldon.io/v1alpha1", "kind": "Server", "metadata": {"name": "any"}}
    wanted["spec"] = {"podSpec": kind(documents(sets=("mode=server",)), "Server")["spec"]["podSpec"]}
    patch = COMPONENT / "server.yaml"
    if request.config.getoption("--update"):
        patch.write_text("# Written by `pytest tests/chart --update`, from the chart's mode `server`.\n" + yaml.safe_dump(wanted, sort_keys=False))
    assert yaml.safe_load(patch.read_text()) == wanted, "run the tests with --update"


@needs_kustomize
def test_containers_and_variables_are_merged_by_name(tmp_path):
    (server,), _ = build(tmp_path, [SERVER])
    spec = server["spec"]
    assert (spec["serverConfig"], spec["replicas"]) == ("mlserver", 2)
    (shim,) = spec["podSpec"]["initContainers"]
    assert shim["name"] == "agent-shim" and shim["restartPolicy"] == "Always"
    containers = {c["name"]: c for c in spec["podSpec"]["containers"]}
    assert set(containers) == {"mlserver", "agent"}
    assert containers["mlserver"] == SERVER["spec"]["podSpec"]["containers"][0]
    names = [v["name"] for v in containers["agent"]["env"]]
    assert len(names) == len(set(names))
    env = {v["name"]: v["value"] for v in containers["agent"]["env"]}
    assert env == {
        "SELDON_LOG_LEVEL": "debug", "SELDON_SERVER_HTTP_PORT": "9600", "SELDON_SERVER_GRPC_PORT": "9650",
        "SELDON_SCHEDULER_HOST": "127.0.0.1", "SELDON_SCHEDULER_PORT": "9605",
    }


@needs_kustomize
def test_a_server_without_a_podspec_gets_one(tmp_path):
    bare = {**SERVER, "spec": {"serverConfig": "mlserver"}}
    (server,), _ = build(tmp_path, [bare])
    assert [c["name"] for c in server["spec"]["podSpec"]["containers"]] == ["agent"]


@needs_kustomize
def test_what_is_no_server_or_has_opted_out_is_left_alone(tmp_path):
    out = {**SERVER, "metadata": {"name": "triton", "labels": {"agent-shim.io/inject": "disabled"}}}
    docs, _ = build(tmp_path, [SERVER, out, DEPLOYMENT])
    assert out in docs and DEPLOYMENT in docs


@needs_kustomize
def test_the_image_is_named_by_the_user_of_the_component(tmp_path):
    (server,), _ = build(tmp_path, [SERVER], images=[{"name": "agent-shim", "newName": "registry.example/agent-shim", "newTag": "9"}])
    assert server["spec"]["podSpec"]["initContainers"][0]["image"] == "registry.example/agent-shim:9"


@needs_kustomize
def test_building_twice_gives_the_same_bytes(tmp_path):
    assert build(tmp_path, [SERVER])[1] == build(tmp_path, [SERVER])[1]
