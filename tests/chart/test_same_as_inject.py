"""The chart's sidecar is the one that `agent-shim inject` makes, and the webhook is told the same as the chart does itself."""

import copy
import json
import os
import subprocess

import pytest

import merge
from conftest import documents, kind, needs_helm

pytestmark = needs_helm

# Values of the chart, by which inject is called alike: the webhook's own flags say how.
CASES = {
    "defaults": (),
    "plain": ("sidecar.native=false",),
    "tls": ("scheduler.tls.enabled=true",),
    "tls-plain": ("scheduler.tls.enabled=true", "sidecar.native=false", "scheduler.host=seldon-scheduler.seldon-system"),
    "scheduler": ("scheduler.host=10.0.0.7", "scheduler.port=19005", "scheduler.statusPort=19004"),
    "ipv6": ("scheduler.host=fd00::7",),
    "no-scheduler": ("scheduler.interpose=false",),
    "watched-and-shared": ("sidecar.agentWatchdog=true", "sidecar.shareProcessNamespace=true", "sidecar.startupSeconds=90"),
    "drained": ("sidecar.drainHook=true",),
    "drained-by-other-settings": ('sidecar.env={"SHIM_ADMIN_PORT":"9690","SHIM_DRAIN_HOOKS":"3"}', "sidecar.drainHook=true", "sidecar.native=false", "sidecar.agentWatchdog=true"),
    "drained-but-observing": ("sidecar.drainHook=true", "sidecar.env.SHIM_MODE=observe"),
    "other-ports": ('sidecar.env={"SHIM_ADMIN_PORT":"9690","SHIM_RELAY_HTTP_PORT":"9610","SHIM_RELAY_GRPC_PORT":"9660","SHIM_AGENT_PORT":"9615","SHIM_LOG":"debug"}',),
    "own-settings": ('sidecar.env={"SHIM_SCHEDULER":"a:1,b:2","SHIM_MEMORY_LIMIT":"1Gi","SHIM_MEMORY_RESERVED":"10%"}',),
    "off-by-a-setting": ('sidecar.env={"SHIM_SCHEDULER":""}', "scheduler.tls.enabled=true"),
    "resources": ('sidecar.resources={"requests":{"cpu":"1m","memory":"16Mi"},"limits":{"cpu":"2","memory":"1Gi"}}', "image.pullPolicy=Always", "image.tag=v9"),
}
OURS = ("agent-shim.io/injected", "agent-shim.io/original")


@pytest.fixture(scope="session")
def inject(shim):
    def call(document, *flags):
        done = subprocess.run([shim, "inject", *flags], input=json.dumps(document), capture_output=True, text=True, timeout=30, env={"PATH": os.environ["PATH"]})
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        annotations = result["metadata"].get("annotations", {})
        for name in OURS:
            annotations.pop(name, None)
        if not annotations:
            result["metadata"].pop("annotations", None)
        return result

    if subprocess.run([shim, "inject", "--help"], capture_output=True).returncode != 0:
        pytest.skip("this build of agent-shim has no `inject`")
    return call


def flags(sets):
    """Those of the webhook that `inject` has, too."""
    container = kind(documents(sets=sets), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    own = ("--exclude-namespaces", "--allow-overrides", "--log")
    return [a for a in container["args"][1:] if not a.startswith(own)]


def bare(server):
    """The Server without the shim."""
    server = copy.deepcopy(server)
    del server["spec"]["podSpec"]
    return server


def by_name(pod_spec):
    """A podSpec in which the order of containers and volumes, which means nothing, is always the same."""
    out = dict(pod_spec)
    for part in ("containers", "initContainers", "volumes"):
        if part in out:
            out[part] = sorted(out[part], key=lambda c: c["name"])
    return out


@pytest.mark.parametrize("case", CASES)
def test_mode_server_is_what_inject_makes_of_the_bare_server(case, inject):
    sets = CASES[case]
    chart = kind(documents(sets=("mode=server", *sets)), "Server")
    how = flags(sets)
    # The chart's own fallback, which a fragment without a scheduler shares with inject.
    made = inject(bare(chart), *how)
    assert by_name(made["spec"]["podSpec"]) == by_name(chart["spec"]["podSpec"])
    assert made["metadata"] == chart["metadata"]


@pytest.mark.parametrize("case", CASES)
def test_mode_server_config_is_what_inject_makes_of_the_bare_config(case, inject):
    sets = CASES[case]
    chart = kind(documents(sets=("mode=serverConfig", *sets)), "ServerConfig")
    without = kind(documents(sets=("mode=serverConfig", "serverConfig.shim=false", *sets)), "ServerConfig")
    made = inject(without, *flags(sets))
    assert by_name(made["spec"]["podSpec"]) == by_name(chart["spec"]["podSpec"])
    assert made["spec"]["volumeClaimTemplates"] == chart["spec"]["volumeClaimTemplates"]


@pytest.mark.parametrize("case", CASES)
def test_the_webhook_makes_the_same_pod_as_the_merged_server(case, inject):
    """Admission sees the pod that the operator made; its variables stand once, the operator's twice."""
    sets = CASES[case]
    without = kind(documents(sets=("mode=serverConfig", "serverConfig.shim=false", *sets)), "ServerConfig")
    server = kind(documents(sets=("mode=server", *sets)), "Server")
    merged = merge.pod(without, server)
    admitted = inject(merge.pod(without, bare(server)), *flags(sets))
    assert {c["name"] for c in merge.everybody(admitted)} == {c["name"] for c in merge.everybody(merged)}
    for container in merge.everybody(admitted):
        other = merge.container(merged, container["name"])
        assert merge.environment(container) == merge.environment(other), container["name"]
        assert merge.rest(container) == merge.rest(other), container["name"]


def test_the_program_takes_the_arguments_of_the_webhook(shim):
    if subprocess.run([shim, "webhook", "--help"], capture_output=True).returncode != 0:
        pytest.skip("this build of agent-shim has no `webhook`")
    for sets in CASES.values():
        args = kind(documents(sets=sets), "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
        # Usage is looked at before anything is bound: a flag that is not known is told at once, and so is the last one here.
        done = subprocess.run([shim, *args, "--no-such-flag"], capture_output=True, text=True, timeout=30)
        assert "'--no-such-flag'" in done.stderr, done.stderr
