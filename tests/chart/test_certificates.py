"""Installing, and `certificates.mode: generate`, against an API server that knows what helm asks for and nothing else."""

import base64
import http.server
import json
import ssl
import threading

import pytest
import yaml

from conftest import CHART, NAMESPACE, helm, kind, needs_helm

pytestmark = needs_helm
SECRET = "shim-agent-shim-webhook-tls"


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


def pem(secret, name):
    return base64.b64decode(secret["data"][name]).decode()


def test_the_first_install_makes_a_certificate_that_the_api_server_can_check(cluster, tmp_path):
    _, render = cluster
    docs = render()
    secret = kind(docs, "Secret", SECRET)
    assert secret["type"] == "kubernetes.io/tls"
    (hook,) = kind(docs, "MutatingWebhookConfiguration")["webhooks"]
    assert hook["clientConfig"]["caBundle"] == secret["data"]["ca.crt"], "one authority in one rendering"
    assert kind(docs, "Deployment")["spec"]["template"]["spec"]["volumes"][0]["secret"]["secretName"] == SECRET
    # A handshake as the API server makes it: by the service's name, trusting this authority only.
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text(pem(secret, name))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    client = ssl.create_default_context(cadata=pem(secret, "ca.crt"))
    pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
    service = hook["clientConfig"]["service"]
    one = client.wrap_bio(pipes[0], pipes[1], server_hostname=f"{service['name']}.{service['namespace']}.svc")
    two = server.wrap_bio(pipes[1], pipes[0], server_side=True)
    done = set()
    for _ in range(10):
        for side in (one, two):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    assert len(done) == 2


def test_an_upgrade_keeps_the_certificate(cluster):
    secrets, render = cluster
    first = render()
    secrets[SECRET] = kind(first, "Secret")
    second = render("webhook.replicas=3")
    assert kind(second, "Secret")["data"] == kind(first, "Secret")["data"]
    assert kind(second, "MutatingWebhookConfiguration")["webhooks"] == kind(first, "MutatingWebhookConfiguration")["webhooks"]
    assert kind(second, "Deployment")["spec"]["replicas"] == 3


def test_without_the_one_before_another_is_made(cluster):
    _, render = cluster
    assert kind(render(), "Secret")["data"] != kind(render(), "Secret")["data"]


def test_half_a_secret_is_made_whole(cluster):
    secrets, render = cluster
    whole = kind(render(), "Secret")
    secrets[SECRET] = {**whole, "data": {"tls.crt": whole["data"]["tls.crt"]}}
    data = kind(render(), "Secret")["data"]
    assert set(data) == {"tls.crt", "tls.key", "ca.crt"} and data["tls.crt"] != whole["data"]["tls.crt"]


def test_the_secret_goes_with_the_release(cluster):
    _, render = cluster
    assert "annotations" not in kind(render(), "Secret")["metadata"]


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("webhook", "label servers.mlops.seldon.io/NAME agent-shim.io/inject=enabled"),
        ("server", f"kubectl -n {NAMESPACE} exec mlserver-0 -c agent-shim -- agent-shim status"),
        ("serverConfig", "serverConfig: mlserver-agent-shim"),
        ("snippet", "get configmap shim-agent-shim-snippet"),
    ],
)
def test_helm_install_says_what_comes_next(mode, says, cluster):
    _, render = cluster
    said = render.install(f"mode={mode}", "certificates.mode=generate")
    notes = said.split("NOTES:")[1]
    assert says in notes and "<no value>" not in notes
