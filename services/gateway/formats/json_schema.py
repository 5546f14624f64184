"""JSON Schemas as llguidance takes them: in one layout, and closed where nothing speaks against it.

JSON has the layout of Python's json.dumps: `{"a": 1, "b": [2, 3]}`. So the layout is never drawn but forced, and no
model writes endless white space. An object that lists its properties gets no others unless the schema says otherwise,
since a small model would add properties without end. A `format` that the library does not know says nothing, as JSON
Schema has it.

Invariant: the text accepts nothing that the given schema does not, and something if that does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from shared.grammar.grammars import BadGrammar

Schema: TypeAlias = Mapping[str, Any] | bool

LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MOST_MULTIPLES = 50_000  # sum of all multipleOf, as integers: the library takes 10 µs for each of their remainders
FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)  # that are kept
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})  # names to schemas
CONSTANTS = frozenset({"const", "enum", "default", "examples"})  # their values are no schemas
SPEAKS_OF_OTHERS = frozenset({"additionalProperties", "patternProperties", "propertyNames", "minProperties"})
ANNOTATIONS = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"})
ANNOTATIONS |= {"type", "$schema", "$id", "$comment", "$defs", "definitions"}  # beside a reference they add no property
REFERRING = frozenset({"allOf", "anyOf", "$ref"})
COMBINING = frozenset(  # where properties may be listed in one place and allowed or counted in another
    {"oneOf", "not", "if", "dependentSchemas", "dependencies", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"}
)


def as_text(schema: Schema) -> str:
    """`schema`, closed and laid out, as JSON. Raises BadGrammar for one that would take seconds to compile."""
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    own = json.loads(json.dumps(schema))
    nodes = list(_schemas(own))
    if sum(map(_multiple, nodes)) > MOST_MULTIPLES:
        raise BadGrammar(f"all multipleOf, without their decimal points, must add up to {MOST_MULTIPLES} at most")
    for node in nodes:
        if node.get("format") not in FORMATS:
            node.pop("format", None)
    if not any(map(_combines, nodes)):
        for node in filter(_may_close, nodes):
            node["additionalProperties"] = False
    return json.dumps({**own, "x-guidance": LAYOUT})


def _schemas(root: Any) -> Iterator[dict[str, Any]]:
    """A schema and all schemas in it that are objects."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            yield value
            for key, inner in value.items():
                if key in MAPS and isinstance(inner, dict):
                    waiting += inner.values()
                elif key not in CONSTANTS:
                    waiting.append(inner)


def _multiple(node: dict[str, Any]) -> float:
    """Its multipleOf without a decimal point."""
    value = node.get("multipleOf")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return float(int(f"{abs(value):.15g}".partition("e")[0].replace(".", "").lstrip("0") or 0)) if value % 1 else value


def _combines(node: dict[str, Any]) -> bool:
    """Whether more than one schema in it may speak of the same object."""
    if not COMBINING.isdisjoint(node) or {"properties", "patternProperties"} <= node.keys():
        return True
    referring = REFERRING & node.keys()
    several = "allOf" in node and not (isinstance(node["allOf"], list) and len(node["allOf"]) == 1)
    return several or len(referring) > 1 or bool(referring and node.keys() - referring - ANNOTATIONS)


def _may_close(node: dict[str, Any]) -> bool:
    listed, required = node.get("properties"), node.get("required", [])
    if not isinstance(listed, dict) or not isinstance(required, list) or not SPEAKS_OF_OTHERS.isdisjoint(node):
        return False
    return all(isinstance(name, str) and name in listed for name in required)
