"""What a gateway may answer to a hostile request (docs/api.md, "Errors"), and what is a fault.

Invariant: the documented statuses, types and codes are read from docs/api.md, so document and gateway must agree.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.harness.files import ROOT
from benchmarks.hostile.bodies import KINDS, RESPONSES, HostileBody
from services.gateway.http.json_reader import MAX_SHOWN

UNPARSED = ("invalid_json", "invalid_body")  # codes of bodies that were not parsed: no field is at fault
TOO_MANY = "The body has too many values"  # neither was this one
DONE = b"data: [DONE]\n\n"
LAST_EVENTS = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")
MAX_SHOWN_BYTES = 2000
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
CHOICES = ("n", "best_of")
LONG_WORK = 1000  # bytes of the body and tokens of all its answers; less is answered within any client's patience
_ROW = re.compile(r"^\| (\d{3}) \| (\w+) \| (.+?) \| .+ \|$", re.MULTILINE)
_NULL = re.compile(r"\bnull\b")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as a client has it."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not happen, with what makes it happen again."""

    what: str
    request: str
    answer: str

    def __str__(self) -> str:
        return f"{self.what}\n  request: {self.request}\n  answer: {self.answer}"


@cache
def documented_errors() -> frozenset[tuple[int, str, str | None]]:
    """Status, type and code of every documented error."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    found: set[tuple[int, str, str | None]] = set()
    for status, kind, codes in _ROW.findall(text):
        found |= {(int(status), kind, code) for code in re.findall(r"`(\w+)`", codes)}
        if _NULL.search(codes):
            found.add((int(status), kind, None))
    return frozenset(found)


def class_of(answer: Answer) -> str:
    """What kind of answer it is, for counts: "200", "200 stream", "400 invalid_value"."""
    if answer.status == 200:
        return "200 stream" if answer.content_type.startswith("text/event-stream") else "200"
    error = error_of(answer.body)
    return f"{answer.status} {error.get('code') or ''}".strip() if error else f"{answer.status} without error object"


def error_of(body: bytes) -> dict[str, Any]:
    """The `error` object of a body in OpenAI's shape; empty if it is none."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        return {}
    return error


def fault_of(body: HostileBody, answer: Answer) -> str | None:
    """Why the answer to a body is none that the documents allow; None: it is one."""
    if answer.status == 200:
        return _fault_of_stream(body.path, answer) if answer.content_type.startswith("text/event-stream") else None
    error = error_of(answer.body)
    if (fault := fault_of_error(answer.status, error)) or answer.status != 400 or _is_unparsed(error):
        return fault
    return _fault_of_param(body, error)


def fault_of_error(status: int, error: dict[str, Any]) -> str | None:
    """Why an error is no documented one."""
    if not error:
        return f"status {status} without an error object"
    if (status, error["type"], error["code"]) not in documented_errors() or status == 500:
        return f"undocumented error: {status}, {error['type']}, {error['code']}"
    if not error["message"]:
        return "an error without a message"
    return None


def is_long_work(body: HostileBody) -> bool:
    """Whether a client that gets no answer in time asked for much: a long prompt, many tokens or choices."""
    content = _content_of(body.raw)
    length, num_choices = (_highest(content, names) for names in (LENGTHS, CHOICES))
    prompts = content.get("prompt")
    num_prompts = len(prompts) if isinstance(prompts, list) else 1
    return bool(content) and len(body.raw) + length * num_choices * num_prompts > LONG_WORK


def _highest(content: dict[str, Any], names: tuple[str, ...]) -> float:
    """The highest number that a body gives to any of these fields; 1 if it gives none."""
    given = [content.get(name) for name in names]
    return max((value for value in given if isinstance(value, int | float) and value > 1), default=1)


def violation(what: str, body: HostileBody, answer: Answer | None) -> Violation:
    """A violation with the request as a Python literal."""
    request = f"POST {body.path} [{body.name}] {body.raw[:MAX_SHOWN_BYTES]!r}"
    shown = "none" if answer is None else f"{answer.status} {answer.body[:MAX_SHOWN_BYTES]!r}"
    return Violation(what, request, shown)


def _fault_of_stream(path: str, answer: Answer) -> str | None:
    is_whole = answer.body.endswith(DONE)
    if path == RESPONSES:
        is_whole = answer.body.rstrip(b"\n").rpartition(b"\n\n")[2].startswith(LAST_EVENTS)
    if not is_whole:
        return "a stream without its end"
    for event in answer.body.split(b"\n\n"):
        if event.startswith(b"data: {"):
            error = json.loads(event[6:]).get("error")
            if error is not None and error["type"] == "server_error" and error["code"] == "internal":
                return "a stream that the gateway failed on"
    return None


def _is_unparsed(error: dict[str, Any]) -> bool:
    return error["code"] in UNPARSED or error["message"].startswith(TOO_MANY)


def _fault_of_param(body: HostileBody, error: dict[str, Any]) -> str | None:
    """Whether a refusal of a parsed body names the field at fault, or at least one that the body or endpoint has."""
    param = error["param"]
    if not isinstance(param, str):
        return "a parsed body is refused without the name of a field"
    if error["code"] == "repeated_parameter":
        return None
    if body.field:
        return None if param.partition(".")[0] == body.field else f"{param} is blamed, {body.field} is wrong"
    known = {*KINDS[body.path].model_fields, *_keys_of(body.raw)}
    is_known = any(param == key[:MAX_SHOWN] or param.startswith(f"{key}.") for key in known)
    return None if is_known else f"{param!r} is blamed, which neither body nor endpoint has"


def _keys_of(raw: bytes) -> set[str]:
    """The keys of the outermost object."""
    return set(_content_of(raw))


def _content_of(raw: bytes) -> dict[str, Any]:
    """The outermost object; empty if there is none."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
