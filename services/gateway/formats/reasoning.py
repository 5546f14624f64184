"""Reasoning that a model writes before its answer, between two markers."""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.formats.source import Source, Steps


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """A block at the beginning of an answer. Later ones are content: an answer may speak of the markers."""

    opening: str
    closing: str

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.opening, self.closing)

    def parse(self, source: Source, *, is_open: bool) -> Steps:
        """Reads the block, if there is one. is_open: the prompt has begun it."""
        begins = yield from source.take(self.opening)
        if begins or is_open:
            yield from source.until(self.closing, source.reasoning)
            source.end_reasoning()


REASONING_FORMATS = {"think": ReasoningFormat("<think>", "</think>"), "mistral": ReasoningFormat("[THINK]", "[/THINK]")}
