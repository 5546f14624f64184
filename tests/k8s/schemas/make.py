"""Writes the schemas of custom resources in this folder, from the packages that README.md names (another environment).

    python tests/k8s/schemas/make.py

Invariant: a schema says what its package says and NEWER adds. A field that neither names is refused.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

KINDS = {  # module under cloudcoil.models: kinds
    "keda.v1alpha1": ("ScaledObject",),
    "prometheus_operator.v1": ("ServiceMonitor", "PrometheusRule"),
    "cert_manager.v1": ("Certificate", "Issuer", "ClusterIssuer"),
}
FROM_KUBERNETES = ("ObjectMeta",)  # checked by Kubernetes' own schemas
NEWER = {  # what the package lacks of the release that docs/deploy.md requires: KEDA 2.17
    ("ScaledObject", "Fallback"): {
        "behavior": {"enum": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]}
    }
}
LEFT_OUT = ("title", "description", "default", "format")


def shortened(value: Any) -> Any:
    """Without what does not check anything; `anyOf: [X, null]` of an optional field is X."""
    if isinstance(value, list):
        return [shortened(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "anyOf" in value:
        chosen = [each for each in value["anyOf"] if each != {"type": "null"}]
        if len(chosen) == 1:
            return shortened(chosen[0])
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if key in ("properties", "$defs"):  # their keys are names
            found[key] = {name: shortened(each) for name, each in inner.items()}
        elif key not in LEFT_OUT:
            found[key] = shortened(inner)
    if found.get("type") == "object" and "properties" in found:
        found.setdefault("additionalProperties", False)
    return found


def schema_of(model: Any) -> dict[str, Any]:
    schema: dict[str, Any] = shortened(model.model_json_schema(by_alias=True))
    schema["properties"] = {key: each for key, each in schema["properties"].items() if key != "status"}
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = sorted({*schema.get("required", []), "apiVersion", "kind", "metadata"})
    used: dict[str, Any] = {}
    waiting = [schema["properties"]]
    while waiting:
        for name in references(waiting.pop()) - used.keys():
            used[name] = {"type": "object"} if name in FROM_KUBERNETES else schema["$defs"][name]
            waiting.append(used[name])
    return schema | {"$defs": dict(sorted(used.items()))}


def references(value: Any) -> set[str]:
    if isinstance(value, list):
        return {name for each in value for name in references(each)}
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set()
    return own | {name for each in value.values() for name in references(each)}


def main() -> None:
    for module, kinds in KINDS.items():
        models = importlib.import_module(f"cloudcoil.models.{module}")
        for kind in kinds:
            schema = schema_of(getattr(models, kind))
            for (of, name), more in NEWER.items():
                if of == kind:
                    schema["$defs"][name]["properties"] |= more
            text = json.dumps(schema, separators=(",", ":"))
            Path(__file__).with_name(f"{kind}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
