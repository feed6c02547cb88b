"""docs/performance.md: its figures are those of the committed run, and its words fit them."""

import json
import re

import pytest

import report

RESULTS = json.loads(report.RESULTS.read_text())
PAGE = report.PAGE.read_text()
# What a short or disturbed run misses is no finding.
DISTURBED = "not for its figures" in report.how(RESULTS)
BY_HAND = PAGE[: PAGE.index(report.BEGIN)] + PAGE[PAGE.index(report.END) :]


def test_the_block_is_what_the_results_say():
    assert report.page(PAGE, RESULTS) == PAGE, "run python3 benches/report.py"


def test_writing_it_again_changes_nothing_and_other_results_change_it():
    again = report.page(report.page(PAGE, RESULTS), RESULTS)
    assert again == PAGE
    other = json.loads(json.dumps(RESULTS))
    other["shim"]["start_ms"] = 12345.0
    assert "12,345" in report.page(PAGE, other)


def test_a_run_that_was_short_or_disturbed_says_so():
    other = RESULTS | {"rounds": 1, "optimised": True, "load_average": {"before": 9.0, "after": 9.0}}
    said = report.how(other)
    assert "not for its figures" in said and "short" in said and "busy" in said
    quiet = RESULTS | {"optimised": True, "rounds": 5, "scale": 1.0, "load_average": {"before": 0.1, "after": 2.0}}
    assert "not for its figures" not in report.how(quiet)


def test_the_run_measured_everything_that_the_page_shows():
    for key in ("loads", "memory", "outage", "shim", "acceptance", "goals"):
        assert RESULTS.get(key), key
    assert set(report.LOADS) == set(RESULTS["loads"])
    for by in RESULTS["loads"].values():
        assert {"direct", "floor", "agent-shim", "nginx", "haproxy", "envoy"} == set(by)
    missing = report.ALONE.keys() - RESULTS["shim"].keys()
    assert not missing or DISTURBED, missing


@pytest.mark.skipif(DISTURBED, reason="the committed run was short or disturbed: what it misses is not explained")
def test_each_goal_that_is_missed_is_explained_and_no_other():
    explained = set(re.findall(r"^- \*\*(.+?)\*\*", BY_HAND.split("\n## ")[-1], re.MULTILINE))
    missed = {g["what"] for g in RESULTS["goals"] if g["met"] is not True}
    assert explained == missed


def test_the_picture_is_there_and_linked():
    assert report.PLOT.exists() and f"({report.PLOT.name})" in PAGE
