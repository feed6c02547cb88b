"""The goals, as ratios within one run."""

PEERS = ("nginx", "haproxy", "envoy")


def judge(document):
    """A list of goals: what, the figure, the bound, and whether it is met (None: not measured)."""
    loads, shim = document["loads"], document.get("shim", {})
    goals = []

    def goal(what, figure, bound, at_most=True, unit=""):
        met = None
        if figure is not None:
            met = figure <= bound if at_most else figure >= bound
        sign = "at most" if at_most else "at least"
        goals.append(
            {"what": what, "figure": figure, "bound": f"{sign} {bound} {unit}".strip(), "met": met}
        )

    def median(load, subject, key):
        figures = loads.get(load, {}).get(subject)
        return figures[key]["median"] if figures else None

    def added(load, key):
        direct, mine = median(load, "direct", key), median(load, "agent-shim", key)
        theirs = [median(load, p, key) for p in PEERS if median(load, p, key) is not None]
        if direct is None or mine is None or not theirs:
            return None
        best = min(theirs) - direct
        return (mine - direct) / best if best > 0 else None

    def share(load, key="rate"):
        direct, mine = median(load, "direct", key), median(load, "agent-shim", key)
        return mine / direct if direct and mine else None

    for load, words in (("grpc-sequential", "small gRPC"), ("http-sequential", "small HTTP")):
        for key in ("p50", "p99"):
            goal(f"added latency, sequential {words}, {key}, of the best peer's", added(load, key), 0.5)
    goal("throughput, 4 x 16 small gRPC, of direct", share("grpc-4x16"), 0.80, at_most=False)
    theirs = [median("grpc-4x16", p, "rate") for p in PEERS]
    theirs = [t for t in theirs if t is not None]
    mine = median("grpc-4x16", "agent-shim", "rate")
    goal("throughput, 4 x 16 small gRPC, of the best peer's",
         mine / max(theirs) if mine and theirs else None, 1.7, at_most=False)  # fmt: skip
    for load in ("grpc-16m", "http-16m"):
        goal(f"{load} bandwidth, of direct", share(load), 0.90, at_most=False)
    goal("resident memory idle", shim.get("resident_idle_mb"), 8, unit="MB")
    goal("resident memory, 1,000 connections", shim.get("resident_1000_mb"), 16, unit="MB")
    goal("idle cpu, three candidates every second", shim.get("idle_cpu_percent"), 0.3, unit="% of a core")
    goal("start to listening", shim.get("start_ms"), 20, unit="ms")
    real = shim.get("mlserver", {})
    for protocol in ("grpc", "http"):
        figures = real.get(protocol, {})
        goal(f"real MLServer, {protocol}, p50 of direct", figures.get("p50_ratio"), 1.02)
        goal(f"real MLServer, {protocol}, throughput of direct", figures.get("rate_ratio"), 0.98, at_most=False)
    goal("interposed AgentEvent, added", shim.get("agent_event_added_us"), 200, unit="us")
    return goals


def show(goals):
    """Prints the goals."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    print(f"\n{'goal':<62} {'figure':>9}  {'bound':<24} ")
    for g in goals:
        figure = "-" if g["figure"] is None else f"{g['figure']:.2f}"
        print(f"{g['what']:<62} {figure:>9}  {g['bound']:<24} {words[g['met']]}")
