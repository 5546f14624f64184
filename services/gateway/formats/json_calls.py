"""Tool calls written as JSON objects, `{"name": …, "arguments": {…}}`, read while they are written.

A call begins once its name and the beginning of its arguments have come. The arguments follow piece by piece. Text
that is no call, or no JSON, gives no call. If that shows only inside the arguments, they end there. Every character is
read a bounded number of times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from services.gateway.formats.source import Decision, Source, Steps

MAX_HEADER = 4096  # characters before the arguments; a call with more is returned once it is complete
STRING = r'"((?:[^"\\]|\\.)*)"'
HEADER = re.compile(
    rf'\{{\s*(?:"(?:type|id)"\s*:\s*{STRING}\s*,\s*)*"name"\s*:\s*{STRING}\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)',
    re.DOTALL,
)
IN_STRING = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)
OUTSIDE = re.compile(r"[\s\w:,+.\-]*")


class JsonScanner:
    """Finds the end of a JSON object or list by its brackets and strings. depth: of the place where it begins."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self.is_over = False  # complete, or broken by a character that JSON has in strings only

    def scan(self, text: str, at: int) -> int:
        """Where the value is over, or the text ends. A backslash at the end waits for what follows."""
        while at < len(text) and not self.is_over:
            at = (IN_STRING if self._in_string else OUTSIDE).match(text, at).end()  # type: ignore[union-attr]
            if at == len(text) or (text[at] == "\\" and self._in_string):
                break
            at += self._step(text[at])
        return at

    def _step(self, character: str) -> int:
        """How many characters belong to the value: 1, or 0."""
        if character == '"':
            self._in_string = not self._in_string
        elif character in "{[":
            self._depth += 1
        elif character in "]}":
            self._depth -= 1
            self.is_over = self._depth == 0
        else:
            self.is_over = True
            return 0
        return 1


def read_calls(source: Source, names: Collection[str] | None = None) -> Decision:
    """Reads a call, or a list of calls. False: none was told; what was read is no call. names: of the only functions
    that may be called; None: any."""
    if (yield from source.peek()) != "[":
        return (yield from read_call(source, names))
    source.at += 1
    if not (yield from read_run(source, ",", names)):
        return False
    yield from source.take("]")
    return True


def read_run(source: Source, separator: str, names: Collection[str] | None = None) -> Decision:
    """Reads one call or several between which separators stand. What follows the last separator may be content."""
    if not (yield from read_call(source, names)):
        return False
    while True:
        source.forget()
        if not (yield from source.take(separator)):
            return True
        if not (yield from read_call(source, names)):
            source.content(source.text[: source.at])
            return True


def read_call(source: Source, names: Collection[str] | None = None) -> Decision:
    """Reads one call. False: it is none, nothing was told."""
    if (yield from source.peek()) != "{":
        return False
    start, scanner = source.at, JsonScanner()
    while True:
        header = HEADER.match(source.text, start, start + MAX_HEADER)
        if header and (name := _string(header[2])) is not None:
            source.at = header.end()
            if names is not None and name not in names:
                return False
            source.begin_call(name)
            yield from tell_arguments(source)
            yield from _skip(source)
            return True
        source.at = scanner.scan(source.text, source.at)
        if scanner.is_over or source.ended:
            return _tell_whole(source, start, names)
        yield


def tell_arguments(source: Source) -> Steps:
    """Tells the object that comes next as the arguments of the latest call, as it comes."""
    scanner = JsonScanner()
    while True:
        end = scanner.scan(source.text, source.at)
        if source.ended and not scanner.is_over:
            end = len(source.text)
        source.arguments(source.text[source.at : end])
        source.at = end
        source.forget()
        if scanner.is_over or source.ended:
            return
        yield


def _skip(source: Source) -> Steps:
    """Reads up to the end of the object around."""
    scanner = JsonScanner(depth=1)
    while True:
        source.at = scanner.scan(source.text, source.at)
        if scanner.is_over or source.ended:
            return
        yield


def _tell_whole(source: Source, start: int, names: Collection[str] | None) -> bool:
    """Tells the call in what was read since `start`, if it is one."""
    value = _value(source.text[start : source.at])
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name or (names is not None and name not in names):
        return False
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, dict | None):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    if not isinstance(arguments, str):
        return False
    source.begin_call(name)
    source.arguments(arguments)
    return True


def _string(inner: str) -> str | None:
    """The text of a JSON string, given what stands between its quotes; None: it is malformed, or empty."""
    value = _value(f'"{inner}"')
    return value if isinstance(value, str) and value else None


def _value(text: str) -> Any:
    """The value of a JSON text; None also where it is malformed, or has half a surrogate pair, which is no text."""
    try:
        value = json.loads(text, strict=False)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value
