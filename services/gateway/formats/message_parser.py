"""From the text of one answer to the parts of its message, as the text comes."""

from __future__ import annotations

from typing import Protocol

from services.gateway.formats.parts import Content, Part
from services.gateway.formats.source import Source, Steps


class MessageParser(Protocol):
    """Turns the text of one answer into the parts of its message."""

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain with this text."""

    def flush(self) -> list[Part]:
        """The rest, when no text follows."""

    @property
    def has_calls(self) -> bool: ...


class PlainText:
    """An answer that is content only."""

    has_calls = False

    def feed(self, text: str) -> list[Part]:
        return [Content(text)] if text else []

    def flush(self) -> list[Part]:
        return []


class StepParser:
    """Runs a parser on the text as it comes."""

    def __init__(self, source: Source, steps: Steps) -> None:
        self._source = source
        self._steps = steps

    def feed(self, text: str) -> list[Part]:
        self._source.text += text
        next(self._steps, None)
        return self._source.take_parts()

    def flush(self) -> list[Part]:
        self._source.ended = True
        return self.feed("")

    @property
    def has_calls(self) -> bool:
        return self._source.num_calls > 0
