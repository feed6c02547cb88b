"""The benchmarks' own parts: arithmetic, verdicts, and a run of seconds that needs no other proxy."""

import copy
import json
import re
import shutil
import subprocess
import sys

import pytest

import goals
import guard
import load
import outage
import real
from conftest import ECHO, ROOT, SHIM


@pytest.mark.parametrize("size", [65, 64 * 1024, 16384 * 1024])
def test_a_body_has_the_size_that_it_is_to_have(size):
    body = load.infer_body(size)
    assert len(body) == size
    assert int.from_bytes(body[1:5], "big") == size - 5


def row(p50, p99, rate):
    return {k: {"median": v, "low": v, "high": v} for k, v in {"p50": p50, "p99": p99, "rate": rate}.items()}


def document():
    by = {
        "direct": row(100, 200, 1000), "floor": row(120, 220, 990), "agent-shim": row(140, 240, 900),
        "nginx": row(200, 300, 500), "haproxy": row(220, 290, 400),
    }  # fmt: skip
    return {"loads": {name: copy.deepcopy(by) for name in ("grpc-sequential", "http-sequential", "grpc-4x16", "grpc-16m")}}


def judged(d):
    return {g["what"]: g for g in goals.judge(d)}


def test_what_is_added_is_judged_by_the_best_peer_and_not_by_the_floor():
    found = judged(document())
    p50 = found["added latency, sequential small gRPC, p50, of the best peer's"]
    assert (p50["figure"], p50["met"], p50["floor"]) == (0.4, True, 0.2)
    p99 = found["added latency, sequential small gRPC, p99, of the best peer's"]
    assert p99["figure"] == pytest.approx(40 / 90)
    d = document()
    d["loads"]["grpc-sequential"]["agent-shim"]["p50"]["median"] = 151
    assert judged(d)["added latency, sequential small gRPC, p50, of the best peer's"]["met"] is False


def test_throughput_is_judged_in_both_ways_and_what_was_not_measured_is_not_met():
    found = judged(document())
    assert found["throughput, 4 x 16 small gRPC, of direct"]["figure"] == 0.9
    assert found["throughput, 4 x 16 small gRPC, of the best peer's"]["figure"] == 1.8
    assert found["16 MB bodies, HTTP, bandwidth of direct"]["met"] is None
    assert found["start to listening"]["met"] is None


def in_front_of_mlserver(**p50):
    """Three turns of each subject, the median in the last of them, and a rate that is its reciprocal."""
    return real.summary({
        subject: [{"p50": one, "p99": 2 * one, "rate": 1e6 / one, "failed": 1} for one in (middle - 10, middle + 50, middle)]
        for subject, middle in p50.items()
    })  # fmt: skip


def test_the_real_server_is_judged_behind_the_shim_and_shown_behind_every_subject():
    found = in_front_of_mlserver(**{"direct": 2000, "floor": 2100, "agent-shim": 2030, "nginx": 2500})
    assert found["p50_us"] == {"direct": 2000, "floor": 2100, "agent-shim": 2030, "nginx": 2500}
    assert found["p50_spread_us"]["nginx"] == [2490, 2550] and found["failed"]["nginx"] == 3
    goal = judged(document() | {"mlserver": {"http": found}})["real MLServer, http, p50 of direct"]
    assert (goal["figure"], goal["floor"], goal["met"]) == (1.015, 1.05, True)
    worse = in_front_of_mlserver(**{"direct": 2000, "agent-shim": 2060})
    goal = judged(document() | {"mlserver": {"http": worse}})["real MLServer, http, p50 of direct"]
    assert (goal["figure"], goal["floor"], goal["met"]) == (1.03, None, False)


def test_without_direct_or_the_shim_there_is_nothing_to_judge():
    found = in_front_of_mlserver(nginx=2500, floor=2100)
    goal = judged(document() | {"mlserver": {"http": found}})["real MLServer, http, p50 of direct"]
    assert goal["met"] is None and found["rate"]["nginx"] == 400


def test_each_goal_has_a_name_of_its_own():
    names = [g["what"] for g in goals.judge(document())]
    assert len(names) == len(set(names)) >= 20


def test_failures_while_a_server_was_there_are_counted_apart():
    calls = [
        outage.Call(0.0, 0.1, ""), outage.Call(1.0, 1.1, "503"), outage.Call(2.5, 2.6, "503"), outage.Call(3.0, 3.1, ""),
    ]  # fmt: skip
    found = outage.counts(calls, dead=1.0, up=2.0)
    assert (found["calls"], found["failed"], found["failed_while_a_server_was_there"]) == (4, 2, 1)
    assert found["last_failure_ms"] == pytest.approx(600) and found["how"] == {"503": 2}


def test_the_guard_fails_on_more_than_a_tenth_and_says_what_it_skipped():
    budgets = {"binary_kb": 100, "bytes_per_connection": 1000, "instructions_per_probe_round": 5}
    lines, counts = guard.judged({"binary_kb": 110, "bytes_per_connection": 1101}, budgets)
    assert counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert "EXCEEDED" in lines[1] and "SKIPPED" in lines[2]


def test_of_several_runs_each_figure_counts_at_its_lowest():
    assert guard.cheapest([{"a": 3, "b": 1}, {"a": 2}]) == {"a": 2, "b": 1}
    # A disturbed first total makes a difference too small, a disturbed second one too large.
    runs = [{"a": {10: 900, 20: 1100}}, {"a": {10: 200, 20: 1900}}]
    assert guard.cheapest(runs) == {"a": 90}


def test_a_partial_run_is_not_published():
    done = subprocess.run(
        [sys.executable, ROOT / "benches/peers/run.py", "--publish", "--only", "direct"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "everything" in done.stderr


@pytest.mark.skipif(not (SHIM and ECHO), reason="neither the shim nor the echo server is built")
@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed (benches/setup.sh guard)")
def test_a_run_of_seconds_goes_from_load_to_results(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benches/peers/run.py", "--rounds", "2", "--scale", "0.02", "--no-extras",
         "--only", "direct,floor,agent-shim", "--shim", SHIM, "--echo", ECHO, "--out", tmp_path,
         "--loads", "grpc-sequential,http-sequential,grpc-4x16,grpc-16m,http-16m"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    for by in results["loads"].values():
        assert set(by) == {"direct", "floor", "agent-shim"}
        for figures in by.values():
            assert figures["failed"]["high"] == 0 and figures["rate"]["low"] > 0
    assert not (ROOT / "docs/performance.json").samefile(tmp_path / "results.json")
    assert results["load_average"]["before"] >= 0 and results["rounds"] == 2


@pytest.mark.skipif(not (SHIM and ECHO), reason="neither the shim nor the echo server is built")
def test_crowds_come_and_go_by_each_way_and_what_they_leave_is_said():
    done = subprocess.run(
        [sys.executable, ROOT / "benches/crowds.py", "--shim", SHIM, "--echo", ECHO, "--callers", "20", "--crowds", "2"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ways = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert set(ways) == {"gRPC", "HTTP, lane", "HTTP, full path"}
    for figures in ways.values():
        rest, held, first, second, highest = map(int, re.findall(r"\d+", figures))
        assert 0 < rest < held <= highest and min(first, second) > 0
