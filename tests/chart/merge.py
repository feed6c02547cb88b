"""The operator's four rules: how a Server and a ServerConfig become a pod.

1. Containers are matched by name; those that match nothing are added.
2. Lists are appended, scalars are overridden.
3. Of two variables with one name the later one counts in the container.
4. Labels and annotations of both are copied to the pod.
"""

import copy


def laid_over(below, above):
    """Rule 2, at any depth. Empty values of `above` change nothing."""
    if isinstance(below, dict) and isinstance(above, dict):
        out = dict(below)
        for key, value in above.items():
            out[key] = laid_over(below[key], value) if key in below else copy.deepcopy(value)
        return out
    if isinstance(below, list) and isinstance(above, list):
        return copy.deepcopy(below + above)
    return copy.deepcopy(below if above in (None, "", 0, False, {}, []) else above)


def containers(below, above):
    """Rule 1; overridden ones come first, as the operator puts them."""
    known = {c["name"]: c for c in below}
    out = [laid_over(known.get(c["name"], {}), c) for c in above]
    return out + [copy.deepcopy(c) for c in below if c["name"] not in {o["name"] for o in above}]


def pod(config, server=None):
    """The pod that the operator makes, for replica 0."""
    spec = copy.deepcopy(config["spec"]["podSpec"])
    meta = {"labels": {}, "annotations": {}}
    name = "mlserver"
    if server is not None:
        name = server["metadata"]["name"]
        override = server["spec"].get("podSpec") or {}
        own = spec.pop("containers")
        rest = {k: v for k, v in override.items() if k != "containers"}
        spec = laid_over(spec, rest)
        spec["containers"] = containers(own, override.get("containers") or [])
        capabilities = server["spec"].get("capabilities")
        for container in spec["containers"]:
            for variable in container.get("env", []):
                if capabilities and variable["name"] == "SELDON_SERVER_CAPABILITIES":
                    variable["value"] = ",".join(capabilities)
    for source in filter(None, [config, server]):
        for key in meta:
            meta[key].update(source["metadata"].get(key) or {})
    meta["labels"].update({"seldon-server-name": name, "app.kubernetes.io/name": "seldon-server"})
    # The volume of the claim template, which the StatefulSet adds.
    for claim in config["spec"].get("volumeClaimTemplates", []):
        spec.setdefault("volumes", []).append({"name": claim["name"], "persistentVolumeClaim": {"claimName": f"{claim['name']}-{name}-0"}})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{name}-0", **meta}, "spec": spec}


def everybody(pod_):
    """All containers, init containers first."""
    return pod_["spec"].get("initContainers", []) + pod_["spec"]["containers"]


def container(pod_, name):
    found = [c for c in everybody(pod_) if c["name"] == name]
    assert len(found) == 1, f"{name}: {len(found)} containers of this name"
    return found[0]


def environment(container_):
    """Rule 3: the entry of each name that counts."""
    return {v["name"]: v for v in container_.get("env", [])}


def values(container_):
    return {name: v.get("value") for name, v in environment(container_).items()}


def rest(container):
    """All but the environment, and but the mount of the models in the shim, whose volume a Server's override does not know."""
    out = {key: value for key, value in container.items() if key != "env"}
    if container["name"] == "agent-shim":
        mounts = [m for m in container.get("volumeMounts", []) if m["name"] != "mlserver-models"]
        out = {**out, "volumeMounts": mounts}
    return out
