"""What Helm makes of the chart, without a cluster. Tests that need it are skipped where there is no Helm."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from deploy.helm.chart import CHART

Manifest = dict[str, Any]
WITHOUT_ORDER = ("env", "ports", "volumeMounts", "volumes")  # of a pod: known by their names alone


@functools.cache
def chart() -> Any:
    """Helm's own view of the chart."""
    if os.environ.get("CI") is None:
        pytest.importorskip("helm_python", reason="Helm is not installed (PyPI: helm-python-sdk)")
    import helm_python

    return helm_python.Chart.load(CHART)


def rendered(values: Mapping[str, Any], namespace: str = "dsd") -> list[Manifest]:
    """The objects that `helm template` would print."""
    files = chart().render(dict(values), name="dsd", namespace=namespace)
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def by_name(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Objects by kind and name, with lists in one order whose order means nothing."""
    found = {f"{each['kind']} {each['metadata']['name']}": _ordered(each) for each in manifests}
    assert len(found) == len(manifests)
    return found


def _ordered(value: Any) -> Any:
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: sorted(map(_ordered, inner), key=_text) if key in WITHOUT_ORDER else _ordered(inner)
        for key, inner in value.items()
    }


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)
