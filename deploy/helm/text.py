"""Trees as text of Helm's templates: YAML, with a line of Go's template language wherever something depends on values.

Invariant: what Helm renders from the text is what the tree stands for. Braces of the manifests' own, as alerts have
them, reach the cluster as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from deploy.helm.tree import GONE, Items, When


@dataclass(frozen=True, slots=True)
class Filled:
    """A string with expressions in it: every second part is one."""

    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Override:
    """A node that a value replaces, if it is set. `value` starts at .Values."""

    value: str
    otherwise: Any


@dataclass(frozen=True, slots=True)
class Included:
    """A mapping that an expression renders."""

    expression: str


def document(node: Any) -> Iterator[str]:
    """The lines of one object; none of them with components that take it away."""
    if isinstance(node, When):
        yield from _chosen(node, 0, document)
    elif node is not GONE:
        yield "---"
        yield from _fields(node, 0)


def data_lines(node: dict[str, Any]) -> Iterator[str]:
    """A mapping alone, for a named template."""
    yield from _fields(node, 0)


def has(component: str) -> str:
    return f'has "{component}" $.Values.components'


def _chosen(node: When, indent: int, lines: Any) -> Iterator[str]:
    """Both branches of a choice. `lines` writes one."""
    pad = " " * indent
    if node.having is GONE:
        yield f"{pad}{{{{- if not ({has(node.component)}) }}}}"
        yield from lines(node.lacking)
    else:
        yield f"{pad}{{{{- if {has(node.component)} }}}}"
        yield from lines(node.having)
        if node.lacking is not GONE:
            yield f"{pad}{{{{- else }}}}"
            yield from lines(node.lacking)
    yield f"{pad}{{{{- end }}}}"


def _fields(node: dict[str, Any], indent: int) -> Iterator[str]:
    for key, value in node.items():
        yield from _field(key, value, indent)


def _field(key: str, value: Any, indent: int) -> Iterator[str]:
    pad = " " * indent
    if value is GONE:
        return
    if isinstance(value, When):
        yield from _chosen(value, indent, lambda branch: _field(key, branch, indent))
    elif isinstance(value, Override):
        yield from _overridden(key, value, indent)
    elif isinstance(value, Included):
        yield f"{pad}{key}: {{{{- {value.expression} | nindent {indent + 2} }}}}"
    elif isinstance(value, dict) and value:
        yield f"{pad}{key}:"
        yield from _fields(value, indent + 2)
    elif isinstance(value, Items) or (isinstance(value, list) and value):
        yield f"{pad}{key}:"
        for item in value.by_key.values() if isinstance(value, Items) else value:
            yield from _item(item, indent)
    else:
        yield f"{pad}{key}: {_scalar(value, indent + 2)}"


def _overridden(key: str, value: Override, indent: int) -> Iterator[str]:
    pad, given = " " * indent, f"$.Values.{value.value}"
    if isinstance(value.otherwise, int):
        yield f'{pad}{key}: {{{{ kindIs "invalid" {given} | ternary {value.otherwise} {given} }}}}'
        return
    yield f"{pad}{{{{- with {given} }}}}"
    yield f"{pad}{key}: {{{{- toYaml . | nindent {indent + 2} }}}}"
    if value.otherwise is not GONE:
        yield f"{pad}{{{{- else }}}}"
        yield from _field(key, value.otherwise, indent)
    yield f"{pad}{{{{- end }}}}"


def _item(item: Any, indent: int) -> Iterator[str]:
    pad = " " * indent
    if item is GONE:
        return
    if isinstance(item, When):
        yield from _chosen(item, indent, lambda branch: _item(branch, indent))
        return
    if isinstance(item, dict):
        name_first = {key: item[key] for key in ("name", *item) if key in item}
        first, *rest = _fields(name_first, indent + 2)
        yield f"{pad}- {first.lstrip()}"
        yield from rest
    else:
        yield f"{pad}- {_scalar(item, indent + 2)}"


def _scalar(value: Any, indent: int) -> str:
    """A value on the line of its key; text of several lines as a block under it."""
    filled = value if isinstance(value, Filled) else Filled((value,)) if isinstance(value, str) else None
    if filled is None:
        return json.dumps(value)
    if "\n" in filled.parts[0]:
        return _block(filled, indent)
    if len(filled.parts) > 1 or "{{" in filled.parts[0]:
        return '"' + "".join(_pieces(filled, lambda text: json.dumps(text, ensure_ascii=False)[1:-1])) + '"'
    return str(yaml.safe_dump(value, width=10**6, allow_unicode=True)).removesuffix("...\n").rstrip("\n")


def _block(filled: Filled, indent: int) -> str:
    text = "".join(_pieces(filled, str))
    if not text.endswith("\n") or text.endswith("\n\n") or text.startswith((" ", "\n")):
        raise ValueError(f"can't be written as a block: {text[:60]!r}")
    return "|\n" + "\n".join(f"{' ' * indent}{line}" if line else "" for line in text[:-1].split("\n"))


def _pieces(filled: Filled, quoted: Any) -> Iterator[str]:
    for index, part in enumerate(filled.parts):
        yield f"{{{{ {part} }}}}" if index % 2 else quoted(part).replace("{{", '{{ "{{" }}')
