"""Installing, and `certificates.mode: generate`, against an API server that knows what helm asks for and nothing else."""

import base64
import ssl

import pytest

from cluster import cluster  # noqa: F401 (a fixture)
from conftest import NAMESPACE, kind, needs_helm

pytestmark = needs_helm
SECRET = "shim-agent-shim-webhook-tls"


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
