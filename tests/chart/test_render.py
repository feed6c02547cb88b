"""What is rendered: valid for Kubernetes and Seldon, the same from run to run, complete, and without a secret."""

import base64
import re

import kubernetes_validate
import pytest
import yaml

import shapes
from conftest import CASES, CHART, EXAMPLES, KUBERNETES, MODES, NAMESPACE, ROOT, documents, helm, kind, needs_helm, rendered, text

pytestmark = needs_helm


@pytest.mark.parametrize("mode", MODES)
def test_lint_has_nothing_to_say(mode):
    done = helm("lint", "--strict", "--kube-version", "1.33.0", "--set", f"mode={mode}", str(CHART))
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout and "[ERROR]" not in done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.stem)
def test_lint_has_nothing_to_say_of_the_examples(example):
    done = helm("lint", "--strict", "--kube-version", "1.33.0", "--values", str(example), str(CHART))
    assert done.returncode == 0, done.stdout


def pod_of(document):
    """A podSpec as a pod, so that Kubernetes' own schema judges it."""
    spec = document["spec"].get("podSpec")
    if not spec:
        return None
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [], **spec}}


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("case", CASES)
def test_each_object_is_valid(case, version):
    for document in documents(**CASES[case]):
        if not shapes.check(document):
            kubernetes_validate.validate(document, version, strict=True)
        elif document["kind"] in ("Server", "ServerConfig"):
            kubernetes_validate.validate(pod_of(document), version, strict=True)


def test_the_schemas_do_refuse_what_is_wrong():
    config = kind(documents(sets=("mode=serverConfig",)), "ServerConfig")
    config["spec"]["podSpec"]["containers"][0]["portz"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod_of(config), "1.33", strict=True)
    config["spec"]["replicas"] = 1
    with pytest.raises(Exception, match="replicas"):
        shapes.check(config)


@pytest.mark.parametrize("case", CASES)
def test_rendering_twice_gives_the_same_bytes(case):
    assert rendered(**CASES[case]) == text(**CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_rendered_as_the_golden_file_says(case, request):
    golden = ROOT / "tests" / "chart" / "golden" / f"{case}.yaml"
    now = re.sub(r"(?m)^# Source: .*\n", "", text(**CASES[case]))
    if request.config.getoption("--update"):
        golden.write_text(now)
    assert golden.exists(), f"{golden.name} is missing: run the tests with --update and look at the difference"
    assert now == golden.read_text(), f"{golden.name} differs: run the tests with --update and look at the difference"


def test_every_golden_file_has_a_case():
    assert {g.stem for g in (ROOT / "tests" / "chart" / "golden").glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_uninstalling_leaves_nothing(case):
    """Nothing is a hook and nothing is kept, so that helm deletes each object; and each says whose it is."""
    for document in documents(**CASES[case]):
        meta = document["metadata"]
        annotations = meta.get("annotations", {})
        assert not [a for a in annotations if a.startswith("helm.sh/")], meta["name"]
        assert meta["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert meta["labels"]["app.kubernetes.io/instance"] == "shim"
        assert meta["labels"]["app.kubernetes.io/part-of"] == "agent-shim"


@pytest.mark.parametrize("case", CASES)
def test_no_secret_is_rendered(case):
    assert "Secret" not in [d["kind"] for d in documents(**CASES[case])]
    assert "PRIVATE KEY" not in text(**CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_each_object_is_in_the_namespace_of_the_release(case):
    for document in documents(**CASES[case]):
        if document["kind"] == "MutatingWebhookConfiguration":
            assert NAMESPACE in document["metadata"]["name"]
        else:
            assert document["metadata"]["namespace"] == NAMESPACE


def all_containers(document):
    spec = document["spec"].get("podSpec") or document["spec"].get("template", {}).get("spec") or {}
    return spec.get("initContainers", []) + spec.get("containers", [])


WITH_WEBHOOK = ["webhook", "webhook-everything", "existing-secret", "own-issuer", "example-openshift", "example-scoped-operator"]


@pytest.mark.parametrize("case", WITH_WEBHOOK)
def test_the_webhook_runs_restricted_within_limits_and_without_a_token(case):
    docs = documents(**CASES[case])
    spec = kind(docs, "Deployment")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert kind(docs, "ServiceAccount")["automountServiceAccountToken"] is False
    assert not [d for d in docs if "Role" in d["kind"]]
    assert "runAsUser" not in spec["securityContext"]
    for container in spec["containers"]:
        assert_restricted(container, spec)
        for part in ("requests", "limits"):
            assert set(container["resources"][part]) >= {"cpu", "memory"}


def assert_restricted(container, spec):
    """Pod Security's profile of this name."""
    own, pod = container.get("securityContext", {}), spec.get("securityContext", {})
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"]["drop"] == ["ALL"] and "add" not in own["capabilities"]
    assert own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True
    assert (own.get("seccompProfile") or pod.get("seccompProfile"))["type"] in ("RuntimeDefault", "Localhost")
    assert own.get("runAsUser", pod.get("runAsUser")) != 0
    assert not own.get("privileged")


def test_the_webhook_never_holds_a_pod_back_and_never_sees_its_own():
    (hook,) = kind(documents(), "MutatingWebhookConfiguration")["webhooks"]
    assert hook["failurePolicy"] == "Ignore"
    assert hook["sideEffects"] == "None"
    assert hook["timeoutSeconds"] <= 10
    assert hook["objectSelector"] == {"matchExpressions": [{"key": "agent-shim.io/inject", "operator": "In", "values": ["enabled", "true"]}]}
    (own,) = hook["namespaceSelector"]["matchExpressions"]
    assert own["operator"] == "NotIn" and {NAMESPACE, "kube-system"} <= set(own["values"])
    assert hook["rules"] == [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced"}]


def test_a_selector_of_ones_own_does_not_let_the_own_namespace_in():
    scoped = documents(values=(CHART / "examples" / "scoped-operator.yaml",))
    (hook,) = kind(scoped, "MutatingWebhookConfiguration")["webhooks"]
    operators = [e["operator"] for e in hook["namespaceSelector"]["matchExpressions"]]
    assert operators == ["NotIn", "In"]


def test_opting_in_by_annotation_looks_at_every_server_pod():
    (hook,) = kind(documents(sets=("webhook.optIn=annotation",)), "MutatingWebhookConfiguration")["webhooks"]
    assert hook["objectSelector"] == {"matchLabels": {"app.kubernetes.io/name": "seldon-server"}}


def test_service_and_policies_select_the_pods_of_the_webhook():
    docs = documents()
    labels = kind(docs, "Deployment")["spec"]["template"]["metadata"]["labels"]
    ports = {p["name"]: p["containerPort"] for p in kind(docs, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"]}
    for selector in (
        kind(docs, "Service")["spec"]["selector"],
        kind(docs, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        kind(docs, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        kind(docs, "Deployment")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert kind(docs, "Service")["spec"]["ports"][0]["targetPort"] in ports
    open_ports = {p["port"] for rule in kind(docs, "NetworkPolicy")["spec"]["ingress"] for p in rule["ports"]}
    assert open_ports == set(ports.values())
    (hook,) = kind(docs, "MutatingWebhookConfiguration")["webhooks"]
    assert hook["clientConfig"]["service"]["name"] == kind(docs, "Service")["metadata"]["name"]
    assert hook["clientConfig"]["service"]["path"] == "/mutate"


def test_the_certificate_is_for_the_name_that_the_api_server_calls():
    docs = documents()
    (hook,) = kind(docs, "MutatingWebhookConfiguration")["webhooks"]
    service = hook["clientConfig"]["service"]
    certificate = kind(docs, "Certificate", service["name"])
    assert f"{service['name']}.{service['namespace']}.svc" in certificate["spec"]["dnsNames"]
    injected = kind(docs, "MutatingWebhookConfiguration")["metadata"]["annotations"]["cert-manager.io/inject-ca-from"]
    assert injected == f"{NAMESPACE}/{certificate['metadata']['name']}"
    mounted = kind(docs, "Deployment")["spec"]["template"]["spec"]["volumes"][0]["secret"]["secretName"]
    assert mounted == certificate["spec"]["secretName"]


def test_an_existing_secret_is_named_and_its_authority_given():
    docs = documents(**CASES["existing-secret"])
    assert kind(docs, "Deployment")["spec"]["template"]["spec"]["volumes"][0]["secret"]["secretName"] == "mine"
    (hook,) = kind(docs, "MutatingWebhookConfiguration")["webhooks"]
    assert base64.b64decode(hook["clientConfig"]["caBundle"]).startswith(b"-----BEGIN CERTIFICATE-----")
    assert not [d for d in docs if "cert-manager" in d["apiVersion"]]


def test_the_servers_policy_opens_what_the_documents_ask_for():
    docs = documents(values=(CHART / "examples" / "centralised-scheduler.yaml",))
    policy = kind(docs, "NetworkPolicy")["spec"]
    to_scheduler = next(r for r in policy["egress"] if any(p["port"] == 9005 for p in r["ports"]))
    assert {p["port"] for p in to_scheduler["ports"]} == {9002, 9004, 9005, 9044, 9055}
    assert to_scheduler["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "seldon-system"}}}]
    dns = next(r for r in policy["egress"] if any(p["port"] == 53 for p in r["ports"]))
    assert {p["protocol"] for p in dns["ports"]} == {"UDP", "TCP"}
    assert 9680 in {p["port"] for r in policy["ingress"] for p in r["ports"]}


def test_the_snippet_is_the_podspec_of_mode_server():
    snippet = yaml.safe_load(kind(documents(sets=("mode=snippet",)), "ConfigMap")["data"]["podspec.yaml"])
    assert snippet == kind(documents(sets=("mode=server",)), "Server")["spec"]["podSpec"]


def test_the_image_can_be_named_by_registry_and_digest():
    digest = "sha256:" + "0" * 64
    docs = documents(sets=("image.registry=registry.example", "image.repository=team/shim", f"image.digest={digest}"))
    container = kind(docs, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"registry.example/team/shim@{digest}"
    assert f"--image={container['image']}" in container["args"]
