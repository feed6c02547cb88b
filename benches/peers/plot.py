"""The comparison as a picture."""

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "agent-shim"
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {"floor": "#d5dbe1", "agent-shim": "#1b6ac9", "nginx": "#9aa5b1", "haproxy": "#b8c1cb", "envoy": "#7b8794"}


def draw(document, path):
    """Added latency and share of direct throughput, a bar a subject."""
    loads = document["loads"]
    panels = [
        ("grpc-sequential", "added to a small gRPC call, us", True),
        ("http-sequential", "added to a small HTTP call, us", True),
        ("grpc-4x16", "gRPC 4 x 16, share of direct", False),
        ("grpc-16m", "gRPC 16 MB, share of direct", False),
    ]
    panels = [p for p in panels if p[0] in loads and "direct" in loads[p[0]]]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 2.6), squeeze=False)
    for axis, (load, title, added) in zip(axes[0], panels):
        by = {s: f for s, f in loads[load].items() if s != "direct"}
        direct = loads[load]["direct"]
        key = "p50" if added else "rate"

        def value(f, which):
            d = direct[key]["median"]
            return f[key][which] - d if added else f[key][which] / d

        middle = [value(f, "median") for f in by.values()]
        low = [m - value(f, "low") for m, f in zip(middle, by.values())]
        high = [value(f, "high") - m for m, f in zip(middle, by.values())]
        errors = [[max(0, x) for x in low], [max(0, x) for x in high]]
        axis.bar(list(by), middle, yerr=errors, capsize=3, color=[COLOURS.get(s, "grey") for s in by])
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
