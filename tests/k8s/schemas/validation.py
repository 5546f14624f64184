"""Validates manifests by schemas: Kubernetes' own in three versions, and those of custom resources in this folder.

Invariant: a kind without a schema is an error, and so is a field that a schema does not name.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema_rs
from kubernetes_validate.utils import all_versions, schema_contents

from tests.k8s.manifests import DOCUMENT, Manifest, title, walk

PACKAGED = list(dict.fromkeys(all_versions()))
_STATED = re.search(r"Kubernetes (1\.\d+) or newer", DOCUMENT.read_text())
assert _STATED
SUPPORTED = PACKAGED[PACKAGED.index(f"{_STATED[1]}.0") :]
VERSIONS = (SUPPORTED[0], SUPPORTED[len(SUPPORTED) // 2], SUPPORTED[-1])

CUSTOM = {path.stem: json.loads(path.read_text()) for path in sorted(Path(__file__).parent.glob("*.json"))}


def complaints(manifest: Manifest, version: str) -> list[str]:
    """A sentence for each field that is unknown, missing or of another type; `version`: of Kubernetes."""
    schema = CUSTOM.get(manifest["kind"])
    if schema is None:
        return _told(_of_kubernetes(version, manifest["kind"], manifest["apiVersion"]), manifest)
    found = _told(_custom(manifest["kind"]), manifest)
    for template in templates(manifest):
        found += _told(_of_kubernetes(version, "PodTemplate", "v1"), template)
    return found


def templates(manifest: Manifest) -> Iterator[Manifest]:
    """The templates of pods in a custom resource, which Kubernetes' schemas describe."""
    for found in walk(manifest["spec"]):
        for key, value in found.items():
            if key.endswith("Template") and isinstance(value, dict) and "spec" in value:
                yield {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": key}, "template": value}


def _told(validator: jsonschema_rs.Validator, manifest: Manifest) -> list[str]:
    return [
        f"{title(manifest)}: {'/'.join(map(str, error.instance_path))}: {error.message}"
        for error in validator.iter_errors(manifest)
    ]


@functools.cache
def _custom(kind: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(CUSTOM[kind])


@functools.cache
def _of_kubernetes(version: str, kind: str, api_version: str) -> jsonschema_rs.Validator:
    """`api_version`: networking.k8s.io/v1 is networking-v1 in the name of a file."""
    name = "-".join([kind.lower(), *(part.partition(".")[0] for part in api_version.split("/"))]) + ".json"
    return jsonschema_rs.validator_for(_packaged(version, name), registry=_definitions(version))


@functools.cache
def _definitions(version: str) -> jsonschema_rs.Registry:
    return jsonschema_rs.Registry([("json-schema:///_definitions.json", _packaged(version, "_definitions.json"))])


def _packaged(version: str, name: str) -> Manifest:
    found: Manifest = schema_contents(f"kubernetes-json-schema/v{version}-local-strict/{name}", version)
    return found
