"""The parts of an answer's message: content, reasoning and tool calls, as they come and as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool call, whose arguments follow. index: among the calls of the answer."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next text of a call's arguments, which are JSON as the model wrote it."""

    index: int
    text: str


Part: TypeAlias = Content | Reasoning | CallBegin | CallArguments


def _text(part: Part) -> str:
    return "" if isinstance(part, CallBegin) else part.text


def joined(parts: Sequence[Part]) -> list[Part]:
    """The same with one part in place of neighbours of a kind."""
    result: list[Part] = []
    for _, group in groupby(parts, key=lambda part: (type(part), getattr(part, "index", None))):
        first, *others = group
        if others and not isinstance(first, CallBegin):
            first = replace(first, text=first.text + "".join(_text(part) for part in others))
        result.append(first)
    return result


class Call:
    """One call, put together."""

    def __init__(self, call_id: str, name: str) -> None:
        self.call_id = call_id
        self.name = name
        self.texts: list[str] = []

    @property
    def arguments(self) -> str:
        return "".join(self.texts)


class AnswerMessage:
    """All parts of an answer, put together."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.parts: list[Part] = []

    @property
    def content(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Content))

    @property
    def reasoning(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Reasoning))

    def add(self, parts: Iterable[Part]) -> None:
        for part in parts:
            self.parts.append(part)
            match part:
                case CallBegin(_, call_id, name):
                    self.calls.append(Call(call_id, name))
                case CallArguments(index, text):
                    self.calls[index].texts.append(text)
