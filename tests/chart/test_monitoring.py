"""Alerts and dashboard: they ask for metrics that exist, with labels that exist, fire when they should, and not before."""

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from conftest import ROOT, documents, kind, needs_helm

pytestmark = needs_helm
ALERTS = (ROOT / "docs" / "alerts.md").read_text()
PROMTOOL = shutil.which("promtool") or next((str(p) for p in [ROOT / "target/tools/prometheus/usr/bin/promtool"] if p.exists()), None)
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here: tools/test-tools.sh fetches it on Debian")
# Exported only where there are certificates, so docs/metrics.md, which is compared with a plain start, cannot list it.
SPECIAL = {"agent_shim_certificate_expiry_timestamp_seconds"}


def rules(mode="webhook"):
    docs = documents(sets=(f"mode={mode}", "monitoring.prometheusRule.enabled=true"))
    (group,) = kind(docs, "PrometheusRule")["spec"]["groups"]
    return group["rules"]


def dashboard():
    config = kind(documents(sets=("monitoring.dashboard.enabled=true",)), "ConfigMap")
    return json.loads(config["data"]["agent-shim.json"])


def metrics():
    """The families that the program has, by the catalogues in its docs."""
    names = set(SPECIAL)
    for page in (ROOT / "docs").glob("*.md"):
        for name, type_ in re.findall(r"^\| `((?:agent_shim|process)_\w+)` \| (\w+) \|", page.read_text(), re.M):
            names |= {name} if type_ != "histogram" else {f"{name}_{s}" for s in ("bucket", "sum", "count")}
    return names


def asked(expression):
    return set(re.findall(r"\b(?:agent_shim|process)_\w+", re.sub(r'"[^"]*"', '""', expression)))


def expressions():
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def test_each_metric_that_is_asked_for_exists():
    known = metrics()
    if not (ROOT / "docs" / "webhook.md").exists():
        known |= {n for _, e in expressions() for n in asked(e) if n.startswith("agent_shim_webhook_")}
    unknown = {(where, name) for where, e in expressions() for name in asked(e) - known}
    assert not unknown


def test_the_variables_of_the_dashboard_ask_for_what_exists():
    for variable in dashboard()["templating"]["list"]:
        assert asked(variable["query"]) <= metrics()


def test_the_panels_do_not_overlap_and_have_ids_of_their_own():
    panels = dashboard()["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    cells = [(x, y) for p in panels for g in [p["gridPos"]] for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23


def test_each_rule_has_a_runbook_and_each_runbook_a_rule():
    sections = re.findall(r"(?m)^## (\w+)$", ALERTS)
    assert [r["alert"] for r in rules()] and set(sections) == {r["alert"] for r in rules()}
    for rule in rules():
        path, anchor = rule["annotations"]["runbook_url"].split("#")
        assert path == "docs/alerts.md" and anchor == rule["alert"].lower()
        section = ALERTS.split(f"## {rule['alert']}\n")[1].split("\n## ")[0]
        assert section.strip().startswith(f"*{rule['labels']['severity']}, "), rule["alert"]


def test_the_runbooks_can_be_elsewhere():
    docs = documents(sets=("monitoring.prometheusRule.enabled=true", "monitoring.prometheusRule.runbookBase=https://git.example/shim"))
    (group,) = kind(docs, "PrometheusRule")["spec"]["groups"]
    assert group["rules"][0]["annotations"]["runbook_url"] == "https://git.example/shim/docs/alerts.md#agentshimnotregistered"


def test_the_webhooks_rules_come_with_the_webhook_only():
    assert {r["alert"] for r in rules()} - {r["alert"] for r in rules("server")} == {r["alert"] for r in rules() if "Webhook" in r["alert"]} != set()


POD = 'namespace="ml",pod="mlserver-0",container="agent-shim"'


def series(name, values, **labels):
    inner = ",".join([POD, *(f'{k}="{v}"' for k, v in labels.items())])
    return {"series": f"{name}{{{inner}}}", "values": values}


CONDITION = "agent_shim_condition"
EXPIRY = "agent_shim_certificate_expiry_timestamp_seconds"
WEBHOOK_EXPIRY = "agent_shim_webhook_certificate_expiry_timestamp_seconds"
DAY = 86400
# Alert: series by which it fires, when, further labels of it, and series by which it does not, at the same time.
WHEN = {
    "AgentShimNotRegistered": ([series(CONDITION, "1x3 0x20", condition="subscribed"), series(CONDITION, "1x23", condition="registered")], "12m", {},
                               [series(CONDITION, "1 0 0 1x20", condition="subscribed")]),
    "AgentShimBeliefDiffers": ([series("agent_shim_capacity_difference_bytes", "-1000x30")], "12m", {}, [series("agent_shim_capacity_difference_bytes", " ".join(["NaN"] * 30))]),
    "AgentShimServerWedged": ([series("agent_shim_endpoint_unhealthy", "1x10", protocol="http", reason="response-timeout"), series(CONDITION, "0x10", condition="inference-http")], "4m", {},
                              # Slow within the grace is not wedged.
                              [series("agent_shim_endpoint_unhealthy", "1x10", protocol="http", reason="response-timeout"), series(CONDITION, "1x10", condition="inference-http")]),
    "AgentShimServerDown": ([series(CONDITION, "0x20", condition="inference-grpc"), series(CONDITION, "1x20", condition="inference-http")], "7m", {},
                            [series(CONDITION, "0x3 1x20", condition="inference-grpc")]),
    "AgentShimFallingBack": ([series("agent_shim_selected_candidate", "3x30", protocol="http")], "15m", {}, [series("agent_shim_selected_candidate", "1x30", protocol="http")]),
    "AgentShimFlapping": ([series("agent_shim_selection_changes_total", "0+2x30", protocol="http")], "20m", {}, [series("agent_shim_selection_changes_total", "0x10 1x20", protocol="http")]),
    "AgentShimCapacityTooSmall": ([series("agent_shim_unavailable_models", "1x30", lacks="memory")], "15m", {}, [series("agent_shim_unavailable_models", "1x30", lacks="nothing")]),
    "AgentShimRestarting": ([series("process_start_time_seconds", "100x5 200x5 300x5 400x5")], "24m", {}, [series("process_start_time_seconds", "100x5 200x25")]),
    "AgentShimCertificateExpiring": ([series(EXPIRY, f"{10 * DAY}x30", certificate="client")], "15m", {"certificate": "client"}, [series(EXPIRY, f"{20 * DAY}x30", certificate="client")]),
    "AgentShimWebhookCertificateExpiring": ([series(WEBHOOK_EXPIRY, f"{10 * DAY}x30")], "15m", {}, [series(WEBHOOK_EXPIRY, f"{20 * DAY}x30"), ]),
    "AgentShimWebhookFailing": ([series("agent_shim_webhook_requests_total", "0x5 1x10", outcome="failed-open")], "10m", {"pod": None}, [series("agent_shim_webhook_requests_total", "0+5x15", outcome="injected")]),
    "AgentShimWebhookNotReady": ([series("agent_shim_webhook_condition", "0x10", condition="certificate")], "8m", {}, [series("agent_shim_webhook_condition", "1x10", condition="certificate")]),
}


def test_each_alert_is_tried():
    assert set(WHEN) == {r["alert"] for r in rules()}


@needs_promtool
def test_promtool_finds_the_rules_well_formed(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "agent-shim", "rules": rules()}]}))
    done = subprocess.run([PROMTOOL, "check", "rules", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"{len(rules())} rules found" in done.stdout, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("alert", WHEN)
def test_the_alert_fires_when_it_should_and_only_then(alert, tmp_path):
    """Prometheus' own engine runs the rule over series of one point a minute."""
    rule = next(r for r in rules() if r["alert"] == alert)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "agent-shim", "rules": [rule]}]}))
    fires, at, more, quiet = WHEN[alert]
    labels = {"severity": rule["labels"]["severity"], "namespace": "ml", "pod": "mlserver-0", **more}
    labels = {k: v for k, v in labels.items() if v is not None}
    fill = lambda text: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda m: labels[m[1]], text)
    annotations = {k: fill(v) for k, v in rule["annotations"].items()}
    case = lambda input_, expected: {
        "interval": "1m", "input_series": input_, "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}],
    }
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case(fires, [{"exp_labels": labels, "exp_annotations": annotations}]), case(quiet, [])]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run([PROMTOOL, "test", "rules", "test.yaml"], capture_output=True, text=True, timeout=60, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stdout + done.stderr
