"""Which parts of a manifest follow from the chart's values.

Invariant: with the chart's own values every expression gives what stood there. Examples in the manifests (addresses,
names of things that are yours) are the defaults of values.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from typing import Any

from deploy.helm.builds import MARKED, ROOT
from deploy.helm.text import Filled, Override
from deploy.helm.tree import GONE, Items, When

VERSION = str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
SITE = "site-a"  # the edge overlay's example
REGISTRY = "registry.example"
POD_FIELDS = (
    "affinity",
    "nodeSelector",
    "priorityClassName",
    "runtimeClassName",
    "tolerations",
    "topologySpreadConstraints",
)
SCALED = ("gateway", "controller", "verifier", "drafter")  # NATS is one server, or three that know each other
BOUNDS = {
    "minReplicas": "minReplicas",
    "maxReplicas": "maxReplicas",
    "minReplicaCount": "minReplicas",
    "maxReplicaCount": "maxReplicas",
}

_TAG = "$.Values.images.tag | default $.Chart.AppVersion"
_EXAMPLES = {  # of the manifests: the expression that gives them
    rf"{REGISTRY}/our-models:1\.0\.0": "$.Values.models.image",
    r"^nats:\d+\.\d+\.\d+[\w.-]*$": "$.Values.images.nats",
    REGISTRY: "$.Values.images.registry",
    "(?<=/)dsd-verifier-vllm(?=:)": "$.Values.images.verifier",
    rf"(?<=:){re.escape(VERSION)}$": _TAG,
    "nats.dsd.example": "$.Values.natsHost",
    "drafters.dsd.example": "$.Values.draftersHost",
    r"(?<![a-z]\.)dsd.example": "$.Values.host",
    "our-ingress-class": "$.Values.ingressClass",
    "our-gateways": "$.Values.gatewayNamespace",
    "our-gateway(?!s)": "$.Values.gatewayName",
    "our-secret-store": "$.Values.secretStore",
    r"http://prometheus-operated\.monitoring\.svc:9090": "$.Values.prometheus",
    "203.0.113.10/32": "$.Values.natsAddress",
    '(?<=namespace=")dsd(?=")': "$.Release.Namespace",
}


def valued(node: Any, overlay: str) -> Any:
    """An object's tree with expressions, and values that replace parts of it."""
    if isinstance(node, When):
        return When(node.component, valued(node.having, overlay), valued(node.lacking, overlay))
    if node is GONE:
        return node
    if node["kind"] in ("Deployment", "StatefulSet"):
        node = _workload(node)
    elif node["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
        node = _scaler(node)
    return _expressed(node, "", overlay)


def _workload(node: dict[str, Any]) -> dict[str, Any]:
    role = str(node["metadata"]["labels"]["app.kubernetes.io/name"])
    spec = dict(node["spec"])
    pod = dict(spec["template"]["spec"])
    if role in SCALED and "replicas" in spec:
        spec["replicas"] = _each(spec["replicas"], lambda value: Override(f"{role}.replicas", value))
    containers = dict(pod["containers"].by_key)
    containers[role] |= {"resources": Override(f"{role}.resources", containers[role]["resources"])}
    pod |= {"containers": Items(containers)}
    pod |= {key: Override(f"{role}.{key}", pod.get(key, GONE)) for key in POD_FIELDS}
    return node | {"spec": spec | {"template": spec["template"] | {"spec": pod}}}


def _scaler(node: dict[str, Any]) -> dict[str, Any]:
    role = str(node["spec"]["scaleTargetRef"]["name"]).removeprefix(f"{SITE}-")
    bounds = {
        key: _each(node["spec"][key], lambda value, name=name: Override(f"{role}.{name}", value))  # type: ignore[misc]
        for key, name in BOUNDS.items()
        if key in node["spec"]
    }
    return node | {"spec": node["spec"] | bounds}


def _each(node: Any, change: Callable[[Any], Any]) -> Any:
    """A change of whatever components leave at a place."""
    if isinstance(node, When):
        return When(node.component, _each(node.having, change), _each(node.lacking, change))
    return node if node is GONE else change(node)


def _expressed(node: Any, path: str, overlay: str) -> Any:
    if isinstance(node, dict):
        return {key: _expressed(inner, f"{path}/{key}", overlay) for key, inner in node.items()}
    if isinstance(node, Items):
        return Items({key: _expressed(inner, path, overlay) for key, inner in node.by_key.items()})
    if isinstance(node, list):
        return [_expressed(inner, path, overlay) for inner in node]
    if isinstance(node, When):
        return When(node.component, _expressed(node.having, path, overlay), _expressed(node.lacking, path, overlay))
    if isinstance(node, Override):
        return Override(node.value, _expressed(node.otherwise, path, overlay))
    return _filled(node, path, overlay) if isinstance(node, str) else node


def _filled(text: str, path: str, overlay: str) -> str | Filled:
    if path == "/metadata/namespace":
        return Filled(("", "$.Release.Namespace", ""))
    if path.endswith("/persistentVolumeClaim/claimName"):
        return Filled(("", "$.Values.models.claim", ""))
    if marked := MARKED.fullmatch(text):
        return Filled(("", config_name(overlay, marked[1]), ""))
    examples = _EXAMPLES | ({SITE: "$.Values.site"} if overlay == "edge" else {})
    parts, end = [], 0
    for found in re.finditer("|".join(f"({pattern})" for pattern in examples), text):
        parts += [text[end : found.start()], list(examples.values())[(found.lastindex or 1) - 1]]
        end = found.end()
    return Filled((*parts, text[end:])) if parts else text


def own_name(config: str, overlay: str) -> str:
    """A ConfigMap's name without that of the site."""
    return config.removeprefix(f"{SITE}-") if overlay == "edge" else config


def config_name(overlay: str, config: str) -> str:
    """The expression for the name of a ConfigMap that is named by its content."""
    return f'include "dsd.config-name" {arguments(overlay, config)}'


def arguments(overlay: str, config: str) -> str:
    """What the chart's helpers need to know of a ConfigMap."""
    own = own_name(config, overlay)
    prefix = "" if own == config else '(printf "%s-" $.Values.site)'
    return f'(list $ "{overlay}" "{own}" {prefix or chr(34) * 2})'
