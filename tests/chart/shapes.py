"""Shapes of objects that Kubernetes does not define itself, as far as the chart uses them."""

import jsonschema

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
NAME = {"type": "string", "minLength": 1, "maxLength": 253}
META = {
    "type": "object",
    "required": ["name", "namespace", "labels"],
    "additionalProperties": False,
    "properties": {"name": NAME, "namespace": NAME, "labels": STRINGS, "annotations": STRINGS},
}
COUNT = {"type": "integer", "minimum": 0}
# Validated as a pod's by Kubernetes' own schema; here only what Seldon adds.
POD_SPEC = {"type": "object", "properties": {"containers": {"type": "array", "items": {"type": "object", "required": ["name"]}}}}
# The operator's type for overrides has no ephemeral containers and none of the fields that came late.
SERVER_POD_SPEC = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        name: {}
        for name in (
            "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy enableServiceLinks "
            "hostAliases hostIPC hostNetwork hostPID hostname imagePullSecrets initContainers nodeName nodeSelector overhead "
            "preemptionPolicy priority priorityClassName readinessGates restartPolicy runtimeClassName schedulerName "
            "securityContext serviceAccountName setHostnameAsFQDN shareProcessNamespace subdomain "
            "terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes"
        ).split()
    },
}


def closed(properties, *required):
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


def shape(version, kind, spec):
    return closed({"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": META, "spec": spec}, "apiVersion", "kind", "metadata", "spec")


SELECTOR = closed({"matchLabels": STRINGS, "matchExpressions": {"type": "array"}})
NAMESPACES = closed({"any": {"type": "boolean"}, "matchNames": {"type": "array", "items": NAME, "minItems": 1}})
REFERENCE = closed({"name": NAME, "kind": {"enum": ["Issuer", "ClusterIssuer"]}, "group": {"const": "cert-manager.io"}}, "name", "kind")
DURATION = {"type": "string", "pattern": "^([0-9]+(h|m|s))+$"}
KEY = closed({"algorithm": {"enum": ["RSA", "ECDSA", "Ed25519"]}, "size": {"type": "integer"}, "rotationPolicy": {"enum": ["Never", "Always"]}})
RULE = closed(
    {
        "alert": {"type": "string", "pattern": "^AgentShim[A-Za-z]+$"},
        "expr": {"type": "string", "minLength": 1},
        "for": DURATION,
        "labels": closed({"severity": {"enum": ["critical", "warning", "info"]}}, "severity"),
        "annotations": closed({"summary": NAME, "description": {"type": "string"}, "runbook_url": NAME}, "summary", "description", "runbook_url"),
    },
    "alert", "expr", "for", "labels", "annotations",
)

SHAPES = {
    "Server": shape(
        "mlops.seldon.io/v1alpha1", "Server",
        closed(
            {
                "serverConfig": NAME, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT, "podSpec": SERVER_POD_SPEC,
                "capabilities": {"type": "array", "items": NAME}, "extraCapabilities": {"type": "array", "items": NAME},
                "imageOverrides": {"type": "object"}, "disableAutoUpdate": {"type": "boolean"},
                "statefulSetPersistentVolumeClaimRetentionPolicy": {"type": "object"},
            },
            "serverConfig",
        ),
    ),
    "ServerConfig": shape(
        "mlops.seldon.io/v1alpha1", "ServerConfig",
        closed({"podSpec": POD_SPEC, "volumeClaimTemplates": {"type": "array", "items": closed({"name": NAME, "spec": {"type": "object"}}, "name", "spec")}}, "podSpec"),
    ),
    "PodMonitor": shape(
        "monitoring.coreos.com/v1", "PodMonitor",
        closed(
            {
                "selector": SELECTOR, "namespaceSelector": NAMESPACES, "podTargetLabels": {"type": "array", "items": NAME},
                "podMetricsEndpoints": {"type": "array", "minItems": 1, "items": closed({"port": NAME, "path": {"const": "/metrics"}, "interval": DURATION}, "port")},
            },
            "selector", "podMetricsEndpoints",
        ),
    ),
    "PrometheusRule": shape(
        "monitoring.coreos.com/v1", "PrometheusRule",
        closed({"groups": {"type": "array", "items": closed({"name": NAME, "rules": {"type": "array", "minItems": 1, "items": RULE}}, "name", "rules")}}, "groups"),
    ),
    "Issuer": shape("cert-manager.io/v1", "Issuer", closed({"selfSigned": closed({}), "ca": closed({"secretName": NAME}, "secretName")})),
    "Certificate": shape(
        "cert-manager.io/v1", "Certificate",
        closed(
            {
                "secretName": NAME, "issuerRef": REFERENCE, "duration": DURATION, "renewBefore": DURATION, "privateKey": KEY, "isCA": {"type": "boolean"},
                "commonName": {"type": "string", "maxLength": 64}, "usages": {"type": "array"}, "dnsNames": {"type": "array", "items": NAME, "minItems": 1},
            },
            "secretName", "issuerRef",
        ),
    ),
}


def check(document):
    """Whether there is a shape for it; raises where it does not fit."""
    shape_ = SHAPES.get(document["kind"])
    if shape_ is not None:
        jsonschema.validate(document, shape_)
    return shape_ is not None
