"""values.yaml, its schema, and the table: one and the same; and what is said to wrong values."""

import json
import subprocess
import sys

import pytest
import yaml

from conftest import CHART, ROOT, documents, kind, needs_helm, refused

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def test_the_table_in_the_readme_is_current():
    done = subprocess.run([sys.executable, ROOT / "tools" / "chart-values.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (CHART / "README.md").read_text(), "run target/chart-venv/bin/python tools/chart-values.py --write"


def resolved(schema):
    return SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def paths(schema, values, at=""):
    """Names that only one of the two knows."""
    schema = resolved(schema)
    if not isinstance(values, dict) or "properties" not in schema or schema.get("additionalProperties") is not False:
        return []
    ours, theirs = set(values), set(schema["properties"]) - {"global"}
    # Selectors and the like are empty by default.
    wrong = [f"{at}.{n}" for n in (ours - theirs) | ((theirs - ours) if ours else set())]
    for name in ours & theirs:
        wrong += paths(schema["properties"][name], values[name], f"{at}.{name}")
    return wrong


def test_schema_and_values_know_the_same_names():
    assert paths(SCHEMA, VALUES) == []


def test_each_object_of_the_schema_is_closed_or_free_on_purpose():
    def look(schema, at):
        if isinstance(schema, dict):
            if schema.get("type") == "object" and "properties" in schema:
                assert "additionalProperties" in schema, at
            for key, inner in schema.items():
                look(inner, f"{at}/{key}")

    look(SCHEMA, "")


@needs_helm
@pytest.mark.parametrize(
    ("value", "place", "words"),
    [
        ("mode=sidecar", "/mode", "value must be one of 'webhook', 'server', 'serverConfig', 'snippet'"),
        ("webhok.replicas=3", "''", "additional properties 'webhok' not allowed"),
        ("sidecar.resorces.limits.cpu=1", "/sidecar", "additional properties 'resorces' not allowed"),
        ("sidecar.resources.limits.cpu=null", "/sidecar/resources/limits", "missing property 'cpu'"),
        ("sidecar.env.SHIM_ADMIN_PORT=9690", "/sidecar/env/SHIM_ADMIN_PORT", "got number, want string"),
        ("sidecar.env.RUST_LOG=debug", "RUST_LOG", "does not match pattern '^SHIM_[A-Z_]+$'"),
        ("webhook.failurePolicy=ignore", "/webhook/failurePolicy", "value must be one of 'Ignore', 'Fail'"),
        ("webhook.timeoutSeconds=60", "/webhook/timeoutSeconds", "maximum: got 60, want 30"),
        ("image.digest=latest", "/image/digest", "does not match pattern"),
        ("scheduler.host=http://seldon-scheduler", "/scheduler/host", "does not match pattern"),
        ("server.name=My_Server", "/server/name", "does not match pattern"),
        ("networkPolicy.webhook.apiServerCidrs[0]=anywhere", "/networkPolicy/webhook/apiServerCidrs/0", "does not match pattern"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(value, place, words):
    said = refused(value)
    assert place in said and words in said, said


@needs_helm
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("certificates.mode=existingSecret",), "certificates.secretName: name the secret"),
        (("certificates.mode=generate",), "certificates.mode generate needs a cluster to look in"),
        (("mode=server", 'server.containers.agent.env.SELDON_SCHEDULER_HOST="x"'), "SELDON_SCHEDULER_HOST is set by the chart"),
        (("mode=server", "server.containers.agent-shim.image=x"), "agent-shim is set by sidecar"),
        (("scheduler.port=9005",), "are about scheduler.host"),
        (("mode=serverConfig", "sidecar.inferenceContainer=triton"), "mode serverConfig names its own containers"),
    ],
)
def test_values_that_contradict_each_other_are_refused_in_words(values, words):
    assert words in refused(*values)


@needs_helm
def test_what_is_set_arrives():
    docs = documents(sets=(
        "webhook.replicas=3", "webhook.priorityClassName=system-cluster-critical", 'webhook.nodeSelector={"a":"b"}', 'webhook.tolerations=[{"operator":"Exists"}]',
        'webhook.extraArgs=["--agent-watchdog"]', "webhook.log.level=debug", 'commonLabels={"team":"ml"}', 'webhook.podAnnotations={"c":"d"}', 'imagePullSecrets=["pull"]',
    ))
    spec = kind(docs, "Deployment")["spec"]
    pod = spec["template"]["spec"]
    assert spec["replicas"] == 3 and pod["priorityClassName"] == "system-cluster-critical" and pod["nodeSelector"] == {"a": "b"}
    assert pod["tolerations"] == [{"operator": "Exists"}] and pod["imagePullSecrets"] == [{"name": "pull"}]
    assert spec["template"]["metadata"]["annotations"] == {"c": "d"}
    assert {"--agent-watchdog", "--log=debug"} <= set(pod["containers"][0]["args"])
    assert all(d["metadata"]["labels"]["team"] == "ml" for d in docs)


@needs_helm
def test_overrides_of_containers_arrive_in_the_server():
    docs = documents(sets=(
        "mode=server", 'server.containers={"mlserver":{"image":"mine:1","env":{"B":"2","A":"1"}},"agent":{"env":{"SELDON_LOG_LEVEL":"debug"}}}',
    ))
    containers = {c["name"]: c for c in kind(docs, "Server")["spec"]["podSpec"]["containers"]}
    assert containers["mlserver"] == {"name": "mlserver", "image": "mine:1", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}
    assert containers["agent"]["env"][0] == {"name": "SELDON_LOG_LEVEL", "value": "debug"}
    assert len(containers["agent"]["env"]) == 5
