"""What the tests of the chart share: helm, rendering, and the program itself."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "agent-shim"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
MODES = ["webhook", "server", "serverConfig", "snippet"]
# Three minor versions of Kubernetes and more; kubernetes-validate carries their schemas.
KUBERNETES = ["1.31", "1.33", "1.35", "1.37"]
NAMESPACE = "seldon-mesh"


def pytest_addoption(parser):
    parser.addoption("--update", action="store_true", help="write the golden files anew")


def tool(name):
    own = ROOT / "target" / "tools" / "bin" / name
    return str(own) if own.exists() else shutil.which(name)


HELM = tool("helm")
needs_helm = pytest.mark.skipif(HELM is None, reason="helm is not here, and there is no Go to build it with")


def run(command, **kw):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kw)


def helm(*args, **kw):
    # No settings of whoever runs this, and no cluster by accident.
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent", **kw.pop("env", {})}
    return run([HELM, *args], env=env, **kw)


def template_args(values=(), sets=(), namespace=NAMESPACE, release="shim"):
    args = ["template", release, str(CHART), "--namespace", namespace, "--kube-version", "1.33.0"]
    for file in values:
        args += ["--values", str(file)]
    for one in sets:
        args += ["--set-json" if one.split("=", 1)[1][:1] in '{["' else "--set", one]
    return args


def rendered(values=(), sets=(), **kw):
    """What helm prints now."""
    done = helm(*template_args(values, sets, **kw))
    assert done.returncode == 0, done.stderr
    return done.stdout


# Helm takes a good part of a second for each call, so most tests look at what it printed before.
_remembered = functools.lru_cache(maxsize=None)(lambda values, sets, kw: rendered(values, sets, **dict(kw)))


def text(values=(), sets=(), **kw):
    """What helm prints."""
    return _remembered(tuple(values), tuple(sets), tuple(kw.items()))


@functools.lru_cache(maxsize=None)
def _documents(values, sets, kw):
    return [d for d in yaml.load_all(_remembered(values, sets, kw), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if d]


def documents(values=(), sets=(), **kw):
    """The objects that are rendered, in order."""
    return json.loads(json.dumps(_documents(tuple(values), tuple(sets), tuple(kw.items()))))


def refused(*sets, **kw):
    """What helm says of values that it must refuse."""
    done = helm(*template_args(sets=sets, **kw))
    assert done.returncode != 0, "these values were taken"
    return done.stderr


def kind(docs, wanted, name=None):
    found = [d for d in docs if d["kind"] == wanted and (name is None or d["metadata"]["name"] == name)]
    assert len(found) == 1, [d["kind"] for d in docs]
    return found[0]


# Every way in which the chart is rendered by the tests, by name.
TWICE = ("monitoring.podMonitor.enabled=true", "monitoring.prometheusRule.enabled=true", "monitoring.dashboard.enabled=true", "networkPolicy.servers.enabled=true")
CASES = {
    **{mode: dict(sets=(f"mode={mode}",)) for mode in MODES},
    **{f"{mode}-everything": dict(sets=(f"mode={mode}", "scheduler.tls.enabled=true", "sidecar.shareProcessNamespace=true", *TWICE)) for mode in MODES},
    **{f"{mode}-plain": dict(sets=(f"mode={mode}", "sidecar.native=false", "sidecar.agentWatchdog=true")) for mode in MODES},
    "existing-secret": dict(sets=("certificates.mode=existingSecret", "certificates.secretName=mine", 'certificates.caBundle="-----BEGIN CERTIFICATE-----\\nMA==\\n-----END CERTIFICATE-----\\n"')),
    "own-issuer": dict(sets=("certificates.issuerRef.name=corporate", "certificates.issuerRef.kind=ClusterIssuer", "webhook.optIn=annotation")),
    **{f"example-{e.stem}": dict(values=(e,)) for e in EXAMPLES},
}


@pytest.fixture(scope="session")
def shim():
    """The program, as `make` builds it."""
    binary = Path(os.environ.get("AGENT_SHIM", ROOT / "target" / "debug" / "agent-shim"))
    if not binary.exists():
        pytest.skip("target/debug/agent-shim is not built")
    return str(binary)
