"""The pod that comes of it, by the operator's four rules."""

import json
import os
import subprocess

import pytest

import merge
from conftest import CHART, EXAMPLES, ROOT, documents, kind, needs_helm
from test_render import assert_restricted

pytestmark = needs_helm

# What the chart makes of the four variables, and what they must be in the end.
PATH = {"SELDON_SERVER_HTTP_PORT": "9600", "SELDON_SERVER_GRPC_PORT": "9650", "SELDON_SCHEDULER_HOST": "127.0.0.1", "SELDON_SCHEDULER_PORT": "9605"}


def bare(*sets):
    """The ServerConfig without the shim."""
    return kind(documents(sets=("mode=serverConfig", "serverConfig.shim=false", *sets)), "ServerConfig")


def merged(*sets, config=None):
    return merge.pod(config or bare(), kind(documents(sets=("mode=server", *sets)), "Server"))


def whole(*sets):
    return merge.pod(kind(documents(sets=("mode=serverConfig", *sets)), "ServerConfig"))


def test_the_rules_themselves():
    config = {"metadata": {"labels": {"a": "1"}}, "spec": {"podSpec": {"containers": [{"name": "x", "image": "i", "env": [{"name": "A", "value": "1"}]}, {"name": "y"}], "volumes": [{"name": "v"}]}}}
    server = {"metadata": {"name": "s", "annotations": {"b": "2"}}, "spec": {"podSpec": {"containers": [{"name": "z"}, {"name": "x", "env": [{"name": "A", "value": "2"}]}], "volumes": [{"name": "w"}]}}}
    pod = merge.pod(config, server)
    assert [c["name"] for c in pod["spec"]["containers"]] == ["z", "x", "y"]
    assert [v["value"] for v in merge.container(pod, "x")["env"]] == ["1", "2"]
    assert merge.values(merge.container(pod, "x")) == {"A": "2"}
    assert merge.container(pod, "x")["image"] == "i"
    assert [v["name"] for v in pod["spec"]["volumes"]] == ["v", "w"]
    assert pod["metadata"]["labels"]["a"] == "1" and pod["metadata"]["annotations"] == {"b": "2"}


@pytest.mark.parametrize("native", [True, False])
def test_the_shim_is_in_the_path_of_the_merged_pod(native):
    pod = merged(f"sidecar.native={str(native).lower()}")
    agent = merge.container(pod, "agent")
    assert {k: merge.values(agent)[k] for k in PATH} == PATH
    # Appended by rule 2, so each stands twice, and by rule 3 ours is the one that counts.
    for name in PATH:
        assert [v["name"] for v in agent["env"]].count(name) == 2
    # What was there is all there still.
    before = merge.values(merge.container(merge.pod(bare()), "agent"))
    assert {k: v for k, v in merge.values(agent).items() if k not in PATH} == {k: v for k, v in before.items() if k not in PATH}
    shim = merge.container(pod, "agent-shim")
    assert (shim.get("restartPolicy") == "Always") is native
    assert (shim in pod["spec"].get("initContainers", [])) is native
    assert {c["name"] for c in merge.everybody(pod)} == {"rclone", "agent", "mlserver", "agent-shim"}


@pytest.mark.parametrize("native", [True, False])
def test_each_name_stands_once_where_the_whole_config_is_ours(native):
    pod = whole(f"sidecar.native={str(native).lower()}", "scheduler.tls.enabled=true")
    for container in merge.everybody(pod):
        names = [v["name"] for v in container.get("env", [])]
        assert len(names) == len(set(names)), container["name"]
    agent = merge.values(merge.container(pod, "agent"))
    assert {k: agent[k] for k in PATH} == PATH
    assert agent["CONTROL_PLANE_SECURITY_PROTOCOL"] == "PLAINTEXT"


def test_the_shim_of_any_fragment_has_each_name_once():
    server = kind(documents(sets=("mode=server", "scheduler.tls.enabled=true", "sidecar.env.SHIM_SCHEDULER=other:1", 'sidecar.env.SHIM_MEMORY_LIMIT="1Gi"')), "Server")
    (shim,) = server["spec"]["podSpec"]["initContainers"]
    names = [v["name"] for v in shim["env"]]
    assert len(names) == len(set(names))
    assert merge.values(shim)["SHIM_SCHEDULER"] == "other:1"
    assert merge.values(shim)["SHIM_MEMORY_LIMIT"] == "1Gi"


def test_both_ways_give_the_same_pod_but_for_the_doubled_names():
    one, two = merged(), whole()
    for name in ("agent", "agent-shim", "mlserver", "rclone"):
        a, b = merge.container(one, name), merge.container(two, name)
        assert merge.environment(a) == merge.environment(b)
        assert merge.rest(a) == merge.rest(b)
    assert one["spec"]["volumes"] == two["spec"]["volumes"]


def quota(pod):
    return [
        f"{c['name']}: no {resource} in {part}"
        for c in merge.everybody(pod) for part in ("requests", "limits") for resource in ("cpu", "memory")
        if resource not in c.get("resources", {}).get(part, {})
    ]


def test_a_quota_takes_every_pod_of_the_serverconfig():
    assert quota(whole()) == []
    assert quota(whole("sidecar.native=false")) == []


def test_a_quota_takes_the_pod_of_the_example_over_a_config_without_limits():
    config = bare()
    for container in config["spec"]["podSpec"]["containers"]:
        container["resources"] = {"requests": {"memory": "100M"}}
    server = kind(documents(values=(CHART / "examples" / "quota-namespace.yaml",)), "Server")
    assert quota(merge.pod(config, kind(documents(sets=("mode=server",)), "Server"))) != []
    assert quota(merge.pod(config, server)) == []


@pytest.mark.parametrize("native", [True, False])
def test_every_container_is_restricted(native):
    pod = whole(f"sidecar.native={str(native).lower()}", "scheduler.tls.enabled=true")
    for container in merge.everybody(pod):
        assert_restricted(container, pod["spec"])
    assert merge.container(pod, "agent-shim")["securityContext"]["readOnlyRootFilesystem"] is True


def test_an_arbitrary_user_is_never_stood_in_the_way():
    pod = merge.pod(kind(documents(values=(CHART / "examples" / "openshift-serverconfig.yaml",)), "ServerConfig"))
    contexts = [pod["spec"]["securityContext"]] + [c["securityContext"] for c in merge.everybody(pod)]
    for context in contexts:
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(context)
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_the_probes_ask_what_the_shim_answers():
    for pod in (whole(), whole("sidecar.native=false"), whole("sidecar.env.SHIM_ADMIN_PORT=\"9690\"")):
        shim = merge.container(pod, "agent-shim")
        (port,) = shim["ports"]
        for probe, path in (("startupProbe", "/startupz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
            assert shim[probe]["httpGet"] == {"path": path, "port": port["containerPort"]}
            assert shim[probe]["timeoutSeconds"] <= shim[probe]["periodSeconds"] * 2
        assert port["name"] == "shim-admin"


def test_no_port_of_the_pod_is_taken_twice():
    for pod in (whole(), merged("sidecar.native=false")):
        ports = [p["containerPort"] for c in merge.everybody(pod) for p in c.get("ports", [])]
        assert len(ports) == len(set(ports))


def test_every_mount_has_a_volume():
    for pod in (whole("scheduler.tls.enabled=true"), merged("scheduler.tls.enabled=true"), whole()):
        volumes = [v["name"] for v in pod["spec"]["volumes"]]
        assert len(volumes) == len(set(volumes))
        for container in merge.everybody(pod):
            assert {m["name"] for m in container.get("volumeMounts", [])} <= set(volumes)


def test_with_mtls_the_shim_has_the_files_and_the_agent_speaks_plaintext():
    pod = merged("scheduler.tls.enabled=true", config=bare("scheduler.tls.enabled=true"))
    assert merge.values(merge.container(pod, "agent"))["CONTROL_PLANE_SECURITY_PROTOCOL"] == "PLAINTEXT"
    shim = merge.container(pod, "agent-shim")
    env = merge.values(shim)
    assert env["SHIM_SCHEDULER"] == "seldon-scheduler:9055" and env["SHIM_SCHEDULER_STATUS"] == "seldon-scheduler:9044"
    mounts = [m["mountPath"] for m in shim["volumeMounts"]]
    for name in ("CA", "CERT", "KEY"):
        assert any(env[f"SHIM_SCHEDULER_{name}_FILE"].startswith(m + "/") for m in mounts)
    assert all(m["readOnly"] for m in shim["volumeMounts"])


def test_of_the_schedulers_secret_nothing_but_its_authority_is_mounted():
    for mode in ("server", "serverConfig"):
        (doc,) = documents(sets=(f"mode={mode}", "scheduler.tls.enabled=true"))
        secrets = {v["secret"]["secretName"]: [i["key"] for i in v["secret"]["items"]] for v in doc["spec"]["podSpec"]["volumes"] if v["name"].startswith("agent-shim")}
        assert secrets == {"seldon-controlplane-client": ["tls.crt", "tls.key"], "seldon-controlplane-server": ["ca.crt"]}


@pytest.mark.parametrize("native", [True, False])
def test_with_the_drain_hook_two_containers_wait_for_the_shim(native):
    sets = (f"sidecar.native={str(native).lower()}", "sidecar.drainHook=true")
    for pod in (whole(*sets), merged(*sets)):
        shim = merge.container(pod, "agent-shim")
        (port,) = shim["ports"]
        hooks = {c["name"]: c["lifecycle"]["preStop"]["httpGet"] for c in merge.everybody(pod) if "lifecycle" in c}
        drain = {"path": "/drain", "port": port["containerPort"]}
        assert hooks == {"agent": drain, "mlserver": drain, "rclone": {"path": "terminate", "port": 9007}}
        assert merge.values(shim)["SHIM_DRAIN_ENDPOINT"] == "true"
        assert merge.values(shim)["SHIM_DRAIN_HOOKS"] == str(sum(h == drain for h in hooks.values()))
    for pod in (whole(), whole(*sets, "sidecar.env.SHIM_MODE=observe")):
        assert {c["lifecycle"]["preStop"]["httpGet"]["path"] for c in merge.everybody(pod) if "lifecycle" in c} == {"terminate"}
        assert "SHIM_DRAIN_ENDPOINT" not in merge.values(merge.container(pod, "agent-shim"))


def test_the_drain_fits_into_the_grace_period(shim):
    pod = whole()
    drain = table(shim)["SHIM_DRAIN_TIME"]["default"]
    assert int(drain.removesuffix("s")) < pod["spec"]["terminationGracePeriodSeconds"]


def test_the_label_that_the_webhook_selects_by_reaches_the_pod():
    server = kind(documents(sets=("mode=server", 'server.labels={"agent-shim.io/inject":"enabled"}', 'server.annotations={"agent-shim.io/mode":"observe"}')), "Server")
    pod = merge.pod(bare(), server)
    (hook,) = kind(documents(), "MutatingWebhookConfiguration")["webhooks"]
    (wanted,) = hook["objectSelector"]["matchExpressions"]
    assert pod["metadata"]["labels"][wanted["key"]] in wanted["values"]
    assert pod["metadata"]["annotations"]["agent-shim.io/mode"] == "observe"
    (other,) = kind(documents(sets=("webhook.optIn=annotation",)), "MutatingWebhookConfiguration")["webhooks"]
    assert other["objectSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_capabilities_of_the_server_reach_the_agent():
    pod = merged('server.capabilities=["sklearn","mlflow"]')
    assert merge.values(merge.container(pod, "agent"))["SELDON_SERVER_CAPABILITIES"] == "sklearn,mlflow"


def test_without_interposing_the_agent_keeps_its_own_way_to_the_scheduler():
    for pod in (whole("scheduler.interpose=false"), merged("scheduler.interpose=false")):
        agent = merge.values(merge.container(pod, "agent"))
        assert (agent["SELDON_SCHEDULER_HOST"], agent["SELDON_SCHEDULER_PORT"]) == ("seldon-scheduler", "9005")
        assert agent["SELDON_SERVER_HTTP_PORT"] == "9600"
        assert not [n for n in merge.values(merge.container(pod, "agent-shim")) if n.startswith("SHIM_SCHEDULER")]


# What the program itself says.


def table(shim, **env):
    done = subprocess.run([shim, "config", "--json"], capture_output=True, text=True, env={"PATH": os.environ["PATH"], **env}, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SHIMS = {
    "defaults": {},
    "tls": {"sets": ("scheduler.tls.enabled=true",)},
    **{e.stem: {"values": (e,)} for e in EXAMPLES if "mode: webhook" not in e.read_text()},
}


@pytest.mark.parametrize("case", SHIMS)
def test_the_program_knows_every_variable_and_takes_every_value(case, shim):
    how = SHIMS[case]
    docs = documents(**how) if how.get("values") else documents(sets=("mode=server", *how.get("sets", ())))
    seldon = next(d for d in docs if d["kind"] in ("Server", "ServerConfig"))
    container = merge.container({"spec": {"containers": [], **seldon["spec"]["podSpec"]}}, "agent-shim")
    downward = {"POD_IP": "10.1.2.3", "POD_IPS": "10.1.2.3,fd00::3", "SHIM_MEMORY_REQUEST": "1073741824", "SHIM_MEMORY_LIMIT": "1073741824"}
    env = {}
    for entry in container["env"]:
        value = entry.get("value", downward.get(entry["name"]))
        env[entry["name"]] = value.replace("$(POD_IP)", downward["POD_IP"])
    known = table(shim)
    assert {n for n in env if n.startswith("SHIM_")} <= set(known)
    effective = table(shim, **env)
    for name, value in env.items():
        if name.startswith("SHIM_"):
            # The pod's own addresses are appended to the hosts.
            assert effective[name]["value"].startswith(value) and effective[name]["from"] == "environment", name


def test_the_chart_follows_the_ports_of_the_program(shim):
    known = table(shim)
    pod = whole()
    agent = merge.values(merge.container(pod, "agent"))
    assert agent["SELDON_SERVER_HTTP_PORT"] == known["SHIM_RELAY_HTTP_PORT"]["default"]
    assert agent["SELDON_SERVER_GRPC_PORT"] == known["SHIM_RELAY_GRPC_PORT"]["default"]
    assert agent["SELDON_SCHEDULER_PORT"] == known["SHIM_AGENT_PORT"]["default"]
    assert agent["SELDON_SCHEDULER_HOST"] == known["SHIM_RELAY_LISTEN"]["default"]
    server = merge.values(merge.container(pod, "mlserver"))
    assert server["MLSERVER_HTTP_PORT"] == known["SHIM_INFERENCE_HTTP_PORT"]["default"]
    assert server["MLSERVER_GRPC_PORT"] == known["SHIM_INFERENCE_GRPC_PORT"]["default"]
    assert server["MLSERVER_MODELS_DIR"] == known["SHIM_MODELS_DIR"]["default"]
    shim_ = merge.container(pod, "agent-shim")
    assert str(shim_["ports"][0]["containerPort"]) == known["SHIM_ADMIN_PORT"]["default"]
