"""Placed by agent-shim, asked once, and removed again."""

import json
from importlib import metadata

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

CGROUPS = [
    (2, "/sys/fs/cgroup/memory.", ("max", "current", "peak")),
    (
        1,
        "/sys/fs/cgroup/memory/memory.",
        ("limit_in_bytes", "usage_in_bytes", "max_usage_in_bytes"),
    ),
]


def read(path):
    try:
        with open(path) as file:
            return file.read(64)
    except OSError:
        return ""


def cgroup():
    for version, prefix, names in CGROUPS:
        limit, current, peak = (read(prefix + name) for name in names)
        if limit:
            return {"version": version, "limit": limit, "current": current, "peak": peak}
    return {"version": 0, "limit": "", "current": "", "peak": ""}


def distributions():
    found = []
    for distribution in metadata.distributions():
        try:
            found.append([distribution.metadata["Name"] or "", distribution.version or ""])
        except Exception:  # One broken package must not hide the others.
            continue
    return found


class Probe(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        said = json.dumps({"distributions": distributions(), "cgroup": cgroup()})
        output = ResponseOutput(name="probe", shape=[1], datatype="BYTES", data=[said])
        return InferenceResponse(model_name=self.name, outputs=[output])
