"""JSON Schemas as llguidance takes them: in one layout, and closed where nothing speaks against it.

JSON has the layout of Python's json.dumps: `{"a": 1, "b": [2, 3]}`. So the layout is never drawn but forced, and no
model writes endless white space. An object that lists its properties gets no others unless the schema says otherwise,
since a small model would add properties without end.

Invariant: what the text accepts, the given schema accepts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = Mapping[str, Any] | bool

LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
SPEAKS_OF_OTHERS = frozenset({"additionalProperties", "patternProperties", "propertyNames", "minProperties"})
REFERRING = frozenset({"allOf", "anyOf", "$ref"})
CONSTANTS = frozenset({"const", "enum", "default", "examples"})  # their values are no schemas
COMBINING = frozenset(  # where properties may be listed in one place and allowed or counted in another
    {"oneOf", "not", "if", "dependentSchemas", "dependencies", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"}
)


def as_text(schema: Schema) -> str:
    """`schema`, closed and laid out, as JSON."""
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    own = json.loads(json.dumps(schema))
    nodes = list(_objects(own))
    if not any(map(_combines, nodes)):
        for node in filter(_may_close, nodes):
            node["additionalProperties"] = False
    return json.dumps({**own, "x-guidance": LAYOUT})


def _objects(root: Any) -> Iterator[dict[str, Any]]:
    """A schema and all schemas in it, with maps of names to schemas among them."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += (inner for key, inner in value.items() if key not in CONSTANTS)
        elif isinstance(value, list):
            waiting += value


def _combines(node: dict[str, Any]) -> bool:
    several = node.get("allOf")
    is_one = several is None or (isinstance(several, list) and len(several) == 1)
    return not is_one or not COMBINING.isdisjoint(node) or ("properties" in node and not REFERRING.isdisjoint(node))


def _may_close(node: dict[str, Any]) -> bool:
    listed, required = node.get("properties"), node.get("required", [])
    if not isinstance(listed, dict) or not isinstance(required, list) or not SPEAKS_OF_OTHERS.isdisjoint(node):
        return False
    return all(isinstance(name, str) and name in listed for name in required)
