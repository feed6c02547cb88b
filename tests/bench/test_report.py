"""docs/performance.md: its figures are those of the committed run, and its words fit them."""

import json
import re

import report

RESULTS = json.loads(report.RESULTS.read_text())
PAGE = report.PAGE.read_text()
SUBJECTS = {"direct", "floor", "agent-shim", "nginx", "haproxy", "envoy"}
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


def test_the_committed_run_is_one_for_its_figures():
    assert report.doubts(RESULTS) == []


def test_the_run_measured_everything_that_the_page_shows():
    for key in ("loads", "memory", "outage", "shim", "acceptance", "goals"):
        assert RESULTS.get(key), key
    assert set(report.LOADS) == set(RESULTS["loads"])
    for by in RESULTS["loads"].values():
        assert SUBJECTS == set(by)
    for by in RESULTS["mlserver"].values():
        assert SUBJECTS == set(by["p50_us"]) == set(by["rate"])
    missing = report.ALONE.keys() - RESULTS["shim"].keys()
    assert not missing, missing


def rows(d):
    """What the page says of the real server behind each subject, by protocol and subject."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.real(d).splitlines()[2:]]
    return {(kind, subject): figures for kind, subject, *figures in cells}


def test_the_real_server_is_shown_behind_each_subject_that_the_run_had():
    by = {
        "p50_us": {"direct": 2000.0, "agent-shim": 2100.0, "envoy": 3000.0},
        "p50_spread_us": {"direct": [1900, 2050], "agent-shim": [2000, 2200], "envoy": [2900, 3100]},
        "p99_us": {"direct": 4000.0, "agent-shim": 4100.0, "envoy": 6000.0},
        "rate": {"direct": 600.0, "agent-shim": 570.0, "envoy": 300.0},
        "rate_spread": {"direct": [590, 610], "agent-shim": [550, 580], "envoy": [280, 310]},
        "failed": {"direct": 0, "agent-shim": 0, "envoy": 7},
    }
    found = rows(RESULTS | {"mlserver": {"http": by}})
    assert set(found) == {("HTTP", "direct"), ("HTTP", "agent-shim"), ("HTTP", "Envoy")}
    assert found["HTTP", "Envoy"] == ["3,000", "2,900 - 3,100", "1.500", "6,000", "300", "280 - 310", "0.500", "7"]


def test_each_goal_that_is_missed_is_explained_and_no_other():
    explained = set(re.findall(r"^- \*\*(.+?)\*\*", BY_HAND.split("\n## ")[-1], re.MULTILINE))
    missed = {g["what"] for g in RESULTS["goals"] if g["met"] is not True}
    assert explained == missed


def test_the_picture_is_there_and_linked():
    assert report.PLOT.exists() and f"({report.PLOT.name})" in PAGE
