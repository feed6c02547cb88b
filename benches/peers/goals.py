"""The goals, as ratios within one run; the floor's figure stands beside where there is one."""

PEERS = ("nginx", "haproxy", "envoy")


def judge(document):
    """A list of goals: what, the figure, the bound, and whether it is met (None: not measured).

    `of_bound` is the figure as a share of the bound, `floor` what a bare TCP relay reaches.
    """
    loads, shim = document["loads"], document.get("shim", {})
    goals = []

    def goal(what, figure, bound, at_most=True, unit="", floor=None):
        met = None
        if figure is not None:
            met = figure <= bound if at_most else figure >= bound
        sign = "at most" if at_most else "at least"
        goals.append(
            {
                "what": what,
                "figure": figure,
                "bound": f"{sign} {bound} {unit}".strip(),
                "met": met,
                "of_bound": figure / bound if figure is not None else None,
                "floor": floor,
            }
        )

    def median(load, subject, key):
        figures = loads.get(load, {}).get(subject)
        return figures[key]["median"] if figures else None

    def best(load, key, choose):
        theirs = [median(load, p, key) for p in PEERS]
        return choose((t for t in theirs if t is not None), default=None)

    def added(load, key, subject="agent-shim"):
        direct, mine = median(load, "direct", key), median(load, subject, key)
        theirs = best(load, key, min)
        if direct is None or mine is None or theirs is None or theirs <= direct:
            return None
        return (mine - direct) / (theirs - direct)

    def share(load, of="direct", subject="agent-shim"):
        theirs = best(load, "rate", max) if of == "peers" else median(load, of, "rate")
        mine = median(load, subject, "rate")
        return mine / theirs if theirs and mine else None

    for load, words in (("grpc-sequential", "small gRPC"), ("http-sequential", "small HTTP")):
        for key in ("p50", "p99"):
            goal(f"added latency, sequential {words}, {key}, of the best peer's",
                 added(load, key), 0.5, floor=added(load, key, "floor"))  # fmt: skip
    for of, words, bound in (("direct", "of direct", 0.80), ("peers", "of the best peer's", 1.7)):
        goal(f"throughput, 4 x 16 small gRPC, {words}", share("grpc-4x16", of), bound,
             at_most=False, floor=share("grpc-4x16", of, "floor"))  # fmt: skip
    for load, words in (("grpc-16m", "gRPC"), ("http-16m", "HTTP")):
        goal(f"16 MB bodies, {words}, bandwidth of direct", share(load), 0.90, at_most=False,
             floor=share(load, subject="floor"))  # fmt: skip
    memory = document.get("memory", {})
    mine, floor = memory.get("agent-shim", {}), memory.get("floor", {})
    # Less than a body would take: none is kept.
    goal("16 MB bodies, growth of memory", mine.get("bodies_16m_growth_mb"), 4, unit="MB",
         floor=floor.get("bodies_16m_growth_mb"))  # fmt: skip
    goal("resident memory idle, three candidates", shim.get("resident_idle_mb"), 8, unit="MB",
         floor=floor.get("idle_mb"))  # fmt: skip
    goal("resident memory, 1,000 connections", mine.get("connections_mb"), 16, unit="MB",
         floor=floor.get("connections_mb"))  # fmt: skip
    goal("idle cpu, three candidates every second", shim.get("idle_cpu_percent"), 0.3, unit="% of a core")
    goal("start to listening", shim.get("start_ms"), 20, unit="ms")
    real = document.get("mlserver", {})
    for protocol in ("grpc", "http"):
        figures = real.get(protocol, {})
        goal(f"real MLServer, {protocol}, p50 of direct", figures.get("p50_ratio"), 1.02,
             floor=figures.get("floor_p50_ratio"))  # fmt: skip
        goal(f"real MLServer, {protocol}, throughput of direct", figures.get("rate_ratio"), 0.98, at_most=False,
             floor=figures.get("floor_rate_ratio"))  # fmt: skip
    goal("interposed AgentEvent, added", shim.get("agent_event_added_us"), 200, unit="us")
    run = document.get("acceptance") or {}
    goal("acceptance run: success of what could be answered", run.get("success_percent"), 100, at_most=False, unit="%")
    goal("acceptance run: P95", run.get("p95_ms"), 50, unit="ms")
    goal("acceptance run: time added", run.get("added_ms_worst"), 1, unit="ms")
    return goals


WORDS = {True: "met", False: "MISSED", None: "not measured"}


def show(goals):
    """Prints the goals."""
    print(f"\n{'goal':<58} {'figure':>8}  {'bound':<22} {'of bound':>8} {'floor':>7}")
    for g in goals:
        figure, of, floor = (
            "-" if g[key] is None else f"{g[key]:.2f}" for key in ("figure", "of_bound", "floor")
        )
        print(f"{g['what']:<58} {figure:>8}  {g['bound']:<22} {of:>8} {floor:>7}  {WORDS[g['met']]}")
