"""The JSON schema of the chart's values, by which Helm refuses misspelt ones.

Invariant: every value that a template reads is in it, and no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.helm.builds import components_of
from deploy.helm.values import BOUNDS, POD_FIELDS

TEXT = {"type": "string", "minLength": 1}
NUMBER = {"type": ["integer", "null"], "minimum": 0}
RESOURCES = {"type": "object", "properties": {part: {"type": "object"} for part in ("requests", "limits")}}
OF_TYPE = {"tolerations": "array", "topologySpreadConstraints": "array"} | dict.fromkeys(
    ("priorityClassName", "runtimeClassName"), "string"
)


def schema(configs: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """`configs`: the names of each overlay's ConfigMaps."""
    pod = {"resources": RESOURCES} | {key: {"type": OF_TYPE.get(key, "object")} for key in POD_FIELDS}
    numbers = dict.fromkeys(("replicas", *dict.fromkeys(BOUNDS.values())), NUMBER)
    settings = {"type": "object", "additionalProperties": {"type": "string"}}
    config_names = sorted({name for names in configs.values() for name in names})
    images = {"registry": TEXT, "tag": {"type": "string"}, "verifier": TEXT, "nats": TEXT}
    addresses = ("host", "ingressClass", "gatewayName", "gatewayNamespace", "draftersHost", "natsHost", "natsAddress")
    properties = {
        "overlay": {"enum": list(configs)},
        "components": {"type": "array", "uniqueItems": True},
        "images": _closed(images),
        "models": _closed({"claim": TEXT, "image": TEXT}),
        **dict.fromkeys((*addresses, "prometheus", "secretStore", "site"), TEXT),
        **dict.fromkeys(("gateway", "controller", "verifier", "drafter"), _closed(pod | numbers)),
        "nats": _closed(pod),
        "config": _closed(dict.fromkeys(config_names, settings)),
        "global": {"type": "object"},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "Generated: python -m deploy.helm",
        **_closed(properties),
        "allOf": [_components_of(overlay) for overlay in configs],
    }


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _components_of(overlay: str) -> dict[str, Any]:
    names = list(components_of(overlay))
    return {
        "if": {"properties": {"overlay": {"const": overlay}}},
        "then": {"properties": {"components": {"items": {"enum": names}}}},
    }
