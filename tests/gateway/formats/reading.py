"""Answers' texts through a parser, in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.gateway.formats.parts import AnswerMessage, Part
from services.gateway.formats.reasoning import REASONING_FORMATS
from services.gateway.formats.registry import AnswerFormats, ToolUse
from services.gateway.formats.tool_formats import TOOL_FORMATS

NAMES = frozenset(["f", "g"])


@dataclass(frozen=True)
class Read:
    """A message without ids. calls: names and arguments."""

    content: str
    reasoning: str
    calls: list[tuple[str, str]]


def parts_of(
    tools: str | None,
    pieces: Iterable[str],
    *,
    names: frozenset[str] = NAMES,
    several: bool = True,
    reasoning: str | None = None,
    prompt_end: str = "",
) -> list[list[Part]]:
    """The parts that each piece brings, and the end."""
    formats = AnswerFormats(TOOL_FORMATS.get(tools or ""), REASONING_FORMATS.get(reasoning or ""))
    parser = formats.parser(ToolUse(names, several) if tools else None, prompt_end)
    return [*(parser.feed(piece) for piece in pieces), parser.flush()]


def read(tools: str | None, *pieces: str, **options) -> AnswerMessage:
    message = AnswerMessage()
    for parts in parts_of(tools, pieces, **options):
        message.add(parts)
    return message


def summary(message: AnswerMessage) -> Read:
    return Read(message.content, message.reasoning, [(call.name, call.arguments) for call in message.calls])
