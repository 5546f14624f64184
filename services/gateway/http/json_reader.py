"""JSON from a client as Python values, without holding the interpreter lock for long.

Invariant: the number of values is known to be bounded before the first of them is made. No key of an object is lost but
for those of an object that no request may have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from services.gateway.errors import ApiError, bad_request
from shared.protocol.messages import MAX_BIASES, MAX_TOKENS

MAX_ITEMS = 2 * MAX_TOKENS  # list items and keys of a whole body
MAX_CONTAINERS = 1 << 15  # keys, lists and objects of a whole body; they cost much more than numbers and texts do
MAX_KEYS = MAX_BIASES  # of one object; no object of a request may have more
MAX_DEPTH = 64  # of objects and lists in an object of the client's own
MAX_SHOWN = 200  # characters of a key in an error; the key itself may be as long as the body
PIECE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Size:
    """Upper bounds of what is in a body. They are tight, but that an empty list or object counts as an item."""

    num_items: int = 0
    num_containers: int = 0

    @classmethod
    def of(cls, raw: bytes) -> _Size:
        brackets = raw.count(b"[") + raw.count(b"{")
        return cls(brackets + raw.count(b","), brackets + raw.count(b":"))

    def __add__(self, other: _Size) -> _Size:
        return _Size(self.num_items + other.num_items, self.num_containers + other.num_containers)

    @property
    def is_allowed(self) -> bool:
        return self.num_items <= MAX_ITEMS and self.num_containers <= MAX_CONTAINERS


def read_json(raw: bytes) -> Any:
    """The value in `raw`; of an object with too many keys only the first MAX_KEYS + 1. Raises ApiError (400)."""
    if not _is_small(raw):
        limits = f"at most {MAX_ITEMS} list items and keys, and {MAX_CONTAINERS} keys, lists and objects"
        message = f"The body has too many values: {limits} are allowed"
        raise bad_request(message, None, "invalid_value")
    try:
        value = _DECODER.decode(raw.decode())
        if b"\\u" in raw:
            _check_text(value)
        return value
    except RecursionError as error:
        raise bad_request("The body is not valid JSON: it is nested too deeply", None, "invalid_json") from error
    except ValueError as error:
        raise bad_request(f"The body is not valid JSON: {error}", None, "invalid_json") from error


def read_objects(texts: Iterable[str]) -> list[dict[str, Any] | str]:
    """The objects in texts. A text stays what it is if it is no object, or if all together have too many values."""
    size, found = _Size(), []
    for text in texts:
        raw = text.encode()
        size = sum(map(_Size.of, _outside_strings(raw)), size)
        found.append((_read_object(raw) if size.is_allowed else None) or text)
    return found


def _read_object(raw: bytes) -> dict[str, Any] | None:
    try:
        value = read_json(raw)
    except ApiError:
        return None
    return value if isinstance(value, dict) and is_kept(value) else None


def is_kept(value: Any) -> bool:
    """Whether `read_json` has lost no key of the value, and it is nested at most MAX_DEPTH deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(each, dict) and len(each) > MAX_KEYS for each in level):
            return False
        level = [inner for each in level if isinstance(each, dict | list) for inner in _inside(each)]
        if not level:
            return True
    return False


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _is_small(raw: bytes) -> bool:
    """Whether the values are few enough. Strings are looked at only where they matter."""
    return _Size.of(raw).is_allowed or sum(map(_Size.of, _outside_strings(raw)), _Size()).is_allowed


def _outside_strings(raw: bytes) -> Iterator[bytes]:
    """What stands outside of strings, in pieces."""
    is_inside, rest = False, b""
    for start in range(0, len(raw), PIECE_BYTES):
        piece = (rest + raw[start : start + PIECE_BYTES]).replace(b"\\\\", b"")
        rest = b"\\" if piece.endswith(b"\\") else b""  # it escapes what the next piece begins with
        parts = piece.removesuffix(b"\\").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[is_inside::2])
        is_inside ^= len(parts) % 2 == 0


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ApiError for two equal keys."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            shown = key[:MAX_SHOWN].encode(errors="replace").decode()
            raise bad_request(f"{shown!r} is given more than once", shown, "repeated_parameter")
        seen.add(key)
    return dict(pairs[: MAX_KEYS + 1])


def _check_text(value: Any) -> None:
    """Raises ValueError for a string with half a surrogate pair, which no text can hold; only an escape makes one."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            each.encode()
        elif isinstance(each, dict):
            waiting += each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
