"""An API server on loopback that knows what helm asks for and nothing else."""

import http.server
import json
import threading

import pytest
import yaml

from conftest import CHART, NAMESPACE, helm

# What is in the releases of this chart, as an API server lists it.
KINDS = {
    "v1": ["Secret", "Namespace", "ConfigMap", "Service", "ServiceAccount"],
    "apps/v1": ["Deployment"],
    "policy/v1": ["PodDisruptionBudget"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "admissionregistration.k8s.io/v1": ["MutatingWebhookConfiguration"],
    "mlops.seldon.io/v1alpha1": ["Server", "ServerConfig"],
}


def group(name, version):
    one = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [one], "preferredVersion": one}


def resource(kind_):
    plural = kind_.lower().replace("policy", "policie") + "s"
    return {"name": plural, "namespaced": kind_ not in ("Namespace", "MutatingWebhookConfiguration"), "kind": kind_, "verbs": ["get", "list"]}


class Cluster(http.server.BaseHTTPRequestHandler):
    secrets = {}

    def do_GET(self):
        path = self.path.split("?")[0]
        prefix = f"/api/v1/namespaces/{NAMESPACE}/secrets/"
        answers = {
            "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group(*v.split("/")) for v in KINDS if v != "v1"]},
            prefix.rstrip("/"): {"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []},
            "/api/v1/namespaces/kube-system": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}},
        }
        for version, kinds in KINDS.items():
            answers[f"/api/{version}" if version == "v1" else f"/apis/{version}"] = {"kind": "APIResourceList", "groupVersion": version, "resources": [resource(k) for k in kinds]}
        answer = answers.get(path)
        if path.startswith(prefix):
            answer = self.secrets.get(path.removeprefix(prefix))
        self.send(200, answer) if answer else self.send(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": path})

    def send(self, code, answer):
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def cluster(tmp_path):
    """An API server on loopback, and a way to render with it in sight."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Cluster,), {"secrets": {}}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = tmp_path / "config"
    config.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}], "users": [{"name": "u", "user": {}}],
    }))

    def render(*sets):
        args = ["template", "shim", str(CHART), "--namespace", NAMESPACE, "--dry-run=server", "--kube-version", "1.33.0", "--kubeconfig", str(config), "--set", "certificates.mode=generate"]
        for one in sets:
            args += ["--set", one]
        done = helm(*args, env={"HOME": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        return [d for d in yaml.safe_load_all(done.stdout) if d]

    def install(*sets):
        args = ["install", "shim", str(CHART), "--namespace", NAMESPACE, "--dry-run=server", "--disable-openapi-validation", "--kubeconfig", str(config)]
        for one in sets:
            args += ["--set", one]
        done = helm(*args, env={"HOME": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    render.install = install
    yield server.RequestHandlerClass.secrets, render
    server.shutdown()
    server.server_close()
