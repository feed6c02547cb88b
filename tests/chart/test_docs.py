"""docs/install.md: its commands work, and what it names exists."""

import re
import shlex

import pytest
import yaml

from conftest import CHART, EXAMPLES, ROOT, helm, needs_helm

GUIDE = (ROOT / "docs" / "install.md").read_text()
COMMANDS = re.findall(r"helm install shim charts/agent-shim [^`\n]*", GUIDE)
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


@needs_helm
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: re.sub(r".*/|\.yaml.*", "", c)[-30:])
def test_the_command_renders(command):
    if "certificates.mode=generate" in command:
        return  # test_certificates.py
    args = shlex.split(command)[2:]
    done = helm("template", "--kube-version", "1.33.0", *args, cwd=ROOT)
    assert done.returncode == 0 and "kind:" in done.stdout, done.stderr


def test_each_example_is_in_the_guide_or_its_head_says_how_to_use_it():
    for example in EXAMPLES:
        head = "".join(l for l in example.read_text().splitlines(True) if l.startswith("#"))
        assert f"charts/agent-shim/examples/{example.name}" in head
    shown = set(re.findall(r"examples/([\w-]+)\.yaml", GUIDE))
    assert {e.stem for e in EXAMPLES} - shown == {"openshift-serverconfig"}


def test_each_value_that_the_guide_names_exists():
    tops = "|".join(VALUES)
    for path in re.findall(rf"(?<![\w/.-])((?:{tops})(?:\.\w+)+)", GUIDE + (CHART / "README.md").read_text().split("## Values")[0]):
        at = VALUES
        if path.endswith(".yaml"):
            continue
        for part in path.split("."):
            # Maps that are free, such as sidecar.env.
            if at == {}:
                break
            assert part in at, path
            at = at[part]


def test_links_lead_somewhere():
    for page in (ROOT / "docs" / "install.md", ROOT / "docs" / "alerts.md"):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), link
