"""Writes what was measured into docs/performance.md, between the markers, from docs/performance.json.

`python3 benches/report.py` writes; `--check` says whether the block is what the JSON says.
"""

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/performance.json"
PLOT = ROOT / "docs/performance.svg"
PAGE = ROOT / "docs/performance.md"
BEGIN = "<!-- measured: written by benches/report.py from performance.json -->"
END = "<!-- measured: end -->"

LOADS = {
    "grpc-sequential": "gRPC, 65 B, one at a time",
    "http-sequential": "HTTP, 65 B, one at a time",
    "grpc-4x16": "gRPC, 65 B, 4 connections x 16 streams",
    "http-16": "HTTP, 65 B, 16 connections",
    "grpc-64k": "gRPC, 64 KB, one at a time",
    "http-64k": "HTTP, 64 KB, one at a time",
    "grpc-16m": "gRPC, 16 MB, one at a time",
    "http-16m": "HTTP, 16 MB, one at a time",
}
NAMES = {"floor": "bare TCP relay", "haproxy": "HAProxy", "envoy": "Envoy"}


def name(subject):
    return NAMES.get(subject, subject)


def number(value, digits=None):
    """A figure as short as it is still worth reading."""
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def spread(figures):
    return between([figures["low"], figures["high"]])


def between(ends):
    """From the lowest to the highest."""
    return "-" if ends is None else " - ".join(dict.fromkeys(number(end) for end in ends))


def table(head, rows, left=1):
    """A Markdown table; the first `left` columns are words, the others figures."""
    line = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, line, *rows])


def doubts(d):
    """Why the figures of a run are not to be trusted; empty where they are."""
    before = d["load_average"]["before"]
    why = []
    if d["rounds"] < 5 or d["scale"] < 1:
        why.append("it was a short one")
    if not d["optimised"]:
        why.append("the shim or the echo server was not optimised")
    cores = int(re.match(r"\d+", d["machine"]).group())
    if before > cores / 4:
        why.append(f"the machine was busy with something else (load average {number(before)} on {cores} cores)")
    return why


def how(d):
    before, after = d["load_average"]["before"], d["load_average"]["after"]
    words = [
        f"Measured on {d['date']} on {d['machine']}: {d['rounds']} round{'s' * (d['rounds'] > 1)}, {number(d['scale'])} of the calls of a full run, "
        f"{d['seconds'] // 60} min {d['seconds'] % 60} s in all. Load average {number(before)} before it and {number(after)} after it "
        "(the run itself keeps about two cores busy).",
        "Versions: " + ", ".join(f"{name(s)} {re.split('[ /]', v)[-1]}" for s, v in d["versions"].items() if v) + ".",
    ]
    if why := doubts(d):
        words.insert(0, f"**Take this run for its shape, not for its figures: {'; '.join(why)}.**")
    return "\n\n".join(words)


def goals(d):
    judged = {True: "met", False: "**missed**", None: "not measured"}
    rows = [
        [g["what"], number(g["figure"]), g["bound"], number(g["of_bound"]), number(g["floor"]), judged[g["met"]]]
        for g in d["goals"]
    ]
    met = sum(g["met"] is True for g in d["goals"])
    head = ["goal", "measured", "bound", "of the bound", "bare TCP relay", ""]
    return f"{met} of {len(d['goals'])} met.\n\n" + table(head, rows)


def loads(d):
    rows = []
    for load, by in d["loads"].items():
        direct = by.get("direct")
        for subject, f in by.items():
            added = "" if not direct or subject == "direct" else number(f["p50"]["median"] - direct["p50"]["median"], 0)
            share = number(f["rate"]["median"] / direct["rate"]["median"], 2) if direct else ""
            cpu = number(f["cpu_s_per_100k"]["median"]) if "cpu_s_per_100k" in f else ""
            rows.append([
                LOADS.get(load, load), name(subject), number(f["p50"]["median"], 0), spread(f["p50"]), added,
                number(f["p99"]["median"], 0), spread(f["p99"]), number(f["p999"]["median"], 0),
                number(f["rate"]["median"]), spread(f["rate"]), share, cpu, number(f["failed"]["high"], 0),
            ])  # fmt: skip
    head = ["load", "", "p50 us", "lowest - highest", "added", "p99 us", "lowest - highest", "p99.9 us", "calls/s",
            "lowest - highest", "of direct", "cpu s per 100,000", "failed"]  # fmt: skip
    return table(head, rows, left=2)


def share_of_core(d):
    """What 100 calls a second take, from the cpu seconds of the loads."""
    rows = []
    for load in ("grpc-sequential", "http-sequential", "grpc-64k", "http-64k"):
        by = d["loads"].get(load, {})
        for subject in ("agent-shim", "nginx", "haproxy", "envoy"):
            if "cpu_s_per_100k" in by.get(subject, {}):
                percent = by[subject]["cpu_s_per_100k"]["median"] / 100_000 * 100 * 100
                rows.append([LOADS[load], name(subject), f"{percent:.2f} %", f"{percent * 10:.0f}m"])
    return table(["at 100 calls a second", "", "of one core", "as a Kubernetes quantity"], rows, left=2)


def memory(d):
    keys = ("idle_mb", "idle_peak_mb", "connections_mb", "connections_peak_mb", "bodies_16m_mb", "bodies_16m_peak_mb")
    rows = [[name(s), *(number(f[k], 1) for k in keys)] for s, f in d["memory"].items()]
    head = ["resident, MB", "idle", "peak", "1,000 connections", "peak", "after 16 MB bodies", "peak"]
    return table(head, rows)


def outages(d):
    rows = []
    for what, words in (("fallback", "a second server takes over"), ("restart", "the server is restarted, away for 2 s")):
        for subject, found in d["outage"].items():
            for kind, c in found[what].items():
                rows.append([
                    words, name(subject), {"http": "HTTP", "grpc": "gRPC"}[kind], c["calls"], c["failed"],
                    c["failed_while_a_server_was_there"], number(c["last_failure_ms"], 0), number(c["slowest_ms"], 0),
                ])  # fmt: skip
    head = ["", "", "", "calls", "failed", "of these while a server was there", "last failure, ms after it was there",
            "slowest call, ms"]  # fmt: skip
    return table(head, rows, left=3)


ALONE = {
    "binary_mb": "size of the program, MB",
    "start_ms": "start to listening, ms",
    "start_ms_worst": "the slowest of 15 starts, ms",
    "idle_cpu_percent": "idle cpu, three candidates probed every second, % of a core",
    "resident_idle_mb": "resident memory meanwhile, MB",
    "agent_event_added_us": "added to an AgentEvent by the interposer, us",
    "death_to_honest_answer_ms": "from the server's death to an honest 503, ms",
    "up_to_first_call_ms": "from the server's first accepted connection to the first relayed call, ms",
    "instructions_per_grpc_call": "instructions of a relayed gRPC call",
    "instructions_per_http_call": "instructions of a relayed HTTP call",
    "instructions_per_probe_round": "instructions of a round of probes (HTTP and gRPC, one candidate)",
}


def alone(d):
    rows = [[words, number(d["shim"][key])] for key, words in ALONE.items() if d["shim"].get(key) is not None]
    return table(["the shim alone", ""], rows)


def real(d):
    rows = []
    for kind, f in d["mlserver"].items():
        direct = {key: f[key]["direct"] for key in ("p50_us", "rate")}
        for subject, p50 in f["p50_us"].items():
            rows.append([
                {"http": "HTTP", "grpc": "gRPC"}[kind], name(subject),
                number(p50), between(f["p50_spread_us"][subject]), number(p50 / direct["p50_us"], 3), number(f["p99_us"][subject]),
                number(f["rate"][subject]), between(f["rate_spread"][subject]), number(f["rate"][subject] / direct["rate"], 3),
                number(f["failed"].get(subject), 0),
            ])  # fmt: skip
    head = ["MLServer, iris", "", "p50 us", "lowest - highest", "of direct", "p99 us", "calls/s", "lowest - highest", "of direct", "failed"]
    return table(head, rows, left=2)


def acceptance(d):
    a = d["acceptance"]
    rows = [
        ["calls; of these to the first of two models", f"{a['calls']}; {a['split']:.0%}", "70 %"],
        ["begun or ended while the restarted server could not answer", f"{a['in_window']} in {number(a['window_s'])} s", ""],
        ["success of all others", f"{number(a['success_percent'], 2)} %", "100 %"],
        ["P95", f"{number(a['p95_ms'])} ms", "below 50 ms"],
    ]
    for kind, words in (("http", "HTTP"), ("grpc", "gRPC")):
        direct, shim = a["direct_ms"][kind], a["shim_ms"][kind]
        rows.append([f"added to {words}, median", f"{shim - direct:.3f} ms on top of {direct:.2f} ms", "below 1 ms"])
    return table(["acceptance run", "seen", "expected"], rows, left=3)


SECTIONS = [
    ("Goals", "goals", goals),
    ("Loads", "loads", loads),
    ("Processor time in use", "loads", share_of_core),
    ("Memory", "memory", memory),
    ("When the server dies", "outage", outages),
    ("The shim alone", "shim", alone),
    ("In front of a real MLServer", "mlserver", real),
    ("The acceptance run", "acceptance", acceptance),
]


def block(d):
    parts = [how(d), "![Added latency and throughput](performance.svg)"]
    for title, key, render in SECTIONS:
        parts += [f"### {title}", render(d) if d.get(key) else "Not measured."]
    return "\n\n".join([BEGIN, *parts, END])


def page(text, d):
    """The page with a new block."""
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:begin] + block(d) + text[end:]


def write():
    text = page(PAGE.read_text(), json.loads(RESULTS.read_text()))
    # Whole or not at all.
    new = PAGE.with_suffix(".md.new")
    new.write_text(text)
    os.replace(new, PAGE)


def main():
    if sys.argv[1:] == ["--check"]:
        text = PAGE.read_text()
        if page(text, json.loads(RESULTS.read_text())) != text:
            sys.exit("docs/performance.md is not what docs/performance.json says: run python3 benches/report.py")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        write()


if __name__ == "__main__":
    main()
