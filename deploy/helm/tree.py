"""A manifest with the choices that components make in it.

Invariant: with none of the components a tree is the manifest it was planted from, with exactly one of them it is the
manifest that kustomize builds with that one. Two components that want different things at one place exclude each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Gone(Enum):
    """The value of a field, or of an item, that is not there."""

    GONE = "gone"


GONE = Gone.GONE


@dataclass(slots=True)
class When:
    """One node with a component and another without it."""

    component: str
    having: Any
    lacking: Any


@dataclass(slots=True)
class Items:
    """A list of mappings, each known by a key."""

    by_key: dict[str, Any] = field(default_factory=dict)


def planted(value: Any) -> Any:
    """The tree of a manifest, or of a part of one. Lists of plain values stay as they are."""
    if isinstance(value, dict):
        return {key: planted(inner) for key, inner in value.items()}
    if _is_keyed(value):
        return Items({key: planted(item) for key, item in _keyed(value).items()})
    return value


class Grafting:
    """Puts what one component changes into a tree."""

    def __init__(self, component: str) -> None:
        self._component = component
        self.excluded: set[str] = set()  # components that want other things at a place

    def merged(self, node: Any, old: Any, new: Any) -> Any:
        """The tree with the difference between `old` and `new`, which are GONE or manifests without and with it."""
        if old == new:
            return node
        if isinstance(node, When):
            self.excluded |= {each.component for each in _choices(node) if each.having != planted(new)}
            return When(self._component, planted(new), node)
        if isinstance(node, dict) and isinstance(old, dict) and isinstance(new, dict):
            return self._children(node, old, new)
        if isinstance(node, Items) and _is_keyed(new):
            return Items(self._children(node.by_key, _keyed(old), _keyed(new)))
        return When(self._component, planted(new), node)

    def _children(self, nodes: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        keys = dict.fromkeys([*nodes, *new])
        return {key: self.merged(nodes.get(key, GONE), old.get(key, GONE), new.get(key, GONE)) for key in keys}


def _choices(node: Any) -> Iterator[When]:
    while isinstance(node, When):
        yield node
        node = node.lacking


def _is_keyed(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _keyed(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items by name where they have one, and by the path for mounts, since a volume may be mounted twice."""
    found: dict[str, Any] = {}
    for item in items:
        names = [str(item[key]) for key in ("mountPath", "name") if key in item]
        key = " ".join(names) or json.dumps(item, sort_keys=True)
        found[key if key not in found else f"{key} {len(found)}"] = item
    return found
