"""The webhook as the chart starts it, asked as the API server asks it: with the chart's own certificate, by its own name."""

import base64
import copy
import http.client
import json
import os
import re
import socket
import ssl
import subprocess

import pytest

import merge
from cluster import cluster  # noqa: F401 (a fixture)
from conftest import NAMESPACE, documents, kind, needs_helm

pytestmark = needs_helm


def applied(document, patch):
    """A JSON patch, as the API server applies it."""
    document = copy.deepcopy(document)
    for step in patch:
        *way, last = [p.replace("~1", "/").replace("~0", "~") for p in step["path"].split("/")[1:]]
        at = document
        for part in way:
            at = at[int(part)] if isinstance(at, list) else at[part]
        if isinstance(at, list):
            index = len(at) if last == "-" else int(last)
            {"add": lambda: at.insert(index, step["value"]), "replace": lambda: at.__setitem__(index, step["value"]), "remove": lambda: at.pop(index)}[step["op"]]()
        elif step["op"] == "remove":
            del at[last]
        else:
            assert step["op"] in ("add", "replace")
            at[last] = step["value"]
    return document


class ByAddress(http.client.HTTPSConnection):
    """Calls loopback and checks the certificate for the name of the service."""

    def __init__(self, name, port, context):
        super().__init__(name, port, context=context, timeout=20)
        self.there = port

    def connect(self):
        raw = socket.create_connection(("127.0.0.1", self.there), timeout=20)
        self.sock = self._context.wrap_socket(raw, server_hostname=self.host)


@pytest.fixture
def webhook(shim, cluster, tmp_path):  # noqa: F811
    """Starts the program as the chart's Deployment does; answers a pod with what becomes of it."""
    if subprocess.run([shim, "webhook", "--help"], capture_output=True).returncode != 0:
        pytest.skip("this build of agent-shim has no `webhook`")
    running = []

    def start(*sets):
        docs = cluster[1](*sets)
        secret = kind(docs, "Secret")
        for name in ("tls.crt", "tls.key"):
            (tmp_path / name).write_bytes(base64.b64decode(secret["data"][name]))
        (hook,) = kind(docs, "MutatingWebhookConfiguration")["webhooks"]
        container = kind(docs, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        here = ["--listen=127.0.0.1", "--port=0", "--ops-port=0", f"--tls-cert={tmp_path}/tls.crt", f"--tls-key={tmp_path}/tls.key", "--stop-delay=0s", "--log-format=text"]
        args = [a for a in container["args"] if not a.startswith("--log-format")]
        env = {"PATH": os.environ["PATH"], "POD_NAMESPACE": NAMESPACE}
        process = subprocess.Popen([shim, *args, *here], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        running.append(process)
        seen = []
        for line in process.stdout:
            seen.append(line)
            if len(found := re.findall(r"127\.0\.0\.1:(\d+)", line)) == 2:
                break
        else:
            pytest.fail("".join(seen))
        port, ops = map(int, found)
        service = hook["clientConfig"]["service"]
        context = ssl.create_default_context(cadata=base64.b64decode(hook["clientConfig"]["caBundle"]).decode())

        def admit(pod, namespace="ml"):
            request = {"uid": "1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE", "namespace": namespace, "object": pod}
            connection = ByAddress(f"{service['name']}.{service['namespace']}.svc", port, context)
            body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
            connection.request("POST", service["path"], body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())["response"]
            assert answer["uid"] == "1" and answer["allowed"] is True, answer
            return applied(pod, json.loads(base64.b64decode(answer["patch"]))) if "patch" in answer else pod

        admit.ops = ops
        return admit

    yield start
    for process in running:
        process.terminate()
        assert process.wait(timeout=30) == 0


def pods(*sets):
    """The pod that the operator makes of a labelled Server, bare; and what mode `server` would make of it."""
    without = kind(documents(sets=("mode=serverConfig", "serverConfig.shim=false", *sets)), "ServerConfig")
    server = kind(documents(sets=("mode=server", 'server.labels={"agent-shim.io/inject":"enabled"}', *sets)), "Server")
    bare = {**server, "spec": {k: v for k, v in server["spec"].items() if k != "podSpec"}}
    return merge.pod(without, bare), merge.pod(without, server)


@pytest.mark.parametrize("sets", [(), ("sidecar.native=false", "scheduler.host=seldon-scheduler.seldon-system"), ("scheduler.tls.enabled=true",)], ids=["native", "plain", "tls"])
def test_a_pod_comes_out_of_admission_as_out_of_mode_server(sets, webhook):
    admit = webhook(*sets)
    bare, wanted = pods(*sets)
    made = admit(bare)
    for container in merge.everybody(wanted):
        assert merge.environment(merge.container(made, container["name"])) == merge.environment(container)
    assert {c["name"] for c in merge.everybody(made)} == {c["name"] for c in merge.everybody(wanted)}
    names = [v["name"] for v in merge.container(made, "agent")["env"]]
    assert len(names) == len(set(names))
    assert admit(made) == made, "asked again, it changes nothing"


def test_a_pod_that_does_not_ask_and_one_of_the_own_namespace_pass_as_they_are(webhook):
    admit = webhook()
    bare, _ = pods()
    assert admit(bare, NAMESPACE) == bare
    del bare["metadata"]["labels"]["agent-shim.io/inject"]
    assert admit(bare) == bare


def test_its_probes_and_metrics_are_where_the_chart_asks(webhook):
    connection = http.client.HTTPConnection("127.0.0.1", webhook().ops, timeout=20)
    container = kind(documents(), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        connection.request("GET", container[probe]["httpGet"]["path"])
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    for name in ("agent_shim_webhook_certificate_expiry_timestamp_seconds", "agent_shim_webhook_condition", 'agent_shim_webhook_requests_total{outcome="failed-open"}'):
        assert name in text
