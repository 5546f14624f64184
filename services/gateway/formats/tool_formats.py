"""The formats in which models write tool calls into their answers, each a parser (`Source`).

What is no call stays content, as it was written.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

from services.gateway.formats.json_calls import read_calls, read_run, tell_arguments
from services.gateway.formats.source import Decision, Source, Steps

ToolParser: TypeAlias = Callable[[Source, Collection[str]], Steps]  # with the names of the tools

MAX_NAMED = 300  # characters from a Mistral model's name of a function to its arguments
NAMED = re.compile(r"\s*([\w.\-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")
PART_OF_NAMED = re.compile(r"[\w.\-\[\]\s]*")


def hermes(source: Source, names: Collection[str]) -> Steps:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, of Hermes, Qwen and many others."""
    while (yield from source.until("<tool_call>", source.content)):
        if (yield from read_calls(source)):
            yield from source.take("</tool_call>")
        else:
            source.content(source.text[: source.at])


def llama3(source: Source, names: Collection[str]) -> Steps:
    """`{"name": …, "parameters": {…}}` at the beginning, or anywhere behind `<|python_tag|>`; semicolons stand between
    several ones. Without the tag an object is a call only if it names a tool."""
    source.forget()
    if (yield from source.peek()) != "{":
        source.at = 0
    elif not (yield from read_run(source, ";", names)):
        source.content(source.text[: source.at])
    while (yield from source.until("<|python_tag|>", source.content)):
        if not (yield from read_run(source, ";")):
            source.content(source.text[: source.at])


def mistral(source: Source, names: Collection[str]) -> Steps:
    """`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each call."""
    while (yield from source.until("[TOOL_CALLS]", source.content)):
        is_json = (yield from source.peek()) in ("[", "{")
        if not (yield from read_calls(source) if is_json else _named(source)):
            source.content(source.text[: source.at])


def _named(source: Source) -> Decision:
    """Reads a name and the arguments behind it."""
    while True:
        end = source.at + MAX_NAMED
        if named := NAMED.match(source.text, source.at, end):
            source.at = named.end()
            source.begin_call(named[1])
            yield from tell_arguments(source)
            return True
        known = min(len(source.text), end)
        if source.ended or known == end or not PART_OF_NAMED.fullmatch(source.text, source.at, known):
            return False
        yield


def _call_id() -> str:
    return "call_" + secrets.token_hex(12)


def _short_id() -> str:
    """Mistral's templates take only ids of nine letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """markers: texts of the format that a tokenizer may have as special tokens. reads_reasoning: the parser tells that
    too, so it also reads answers of requests without tools."""

    name: str
    parser: ToolParser
    markers: tuple[str, ...]
    new_id: Callable[[], str] = _call_id
    reads_reasoning: bool = False


TOOL_FORMATS = {
    each.name: each
    for each in (
        ToolFormat("hermes", hermes, ("<tool_call>", "</tool_call>")),
        ToolFormat("llama3", llama3, ("<|python_tag|>",)),
        ToolFormat("mistral", mistral, ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"), _short_id),
    )
}
