"""One answer as bytes: its dialect and the head that all its chunks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import msgspec
from msgspec import UNSET, UnsetType

from services.gateway.http.formats import ChunkChoice, Dialect, ObjectName, WholeChoice
from services.gateway.http.response_models import (
    DONE,
    Chunk,
    DsdPieces,
    DsdReport,
    LastChunk,
    TokenPiece,
    Usage,
    UsageChunk,
    Whole,
)
from services.gateway.text.output_text import Piece, ScoredToken
from shared.protocol.messages import Finish


class _Head(TypedDict):
    id: str
    object: ObjectName
    created: int
    model: str
    system_fingerprint: str


@dataclass(frozen=True, slots=True)
class Voice:
    """Words one answer, of one choice or several."""

    dialect: Dialect
    session_id: str
    created: int
    model: str
    fingerprint: Callable[[], str]  # what holds by now
    tells_usage: bool  # at the end of a stream
    tells_fates: bool

    def opening(self, num_choices: int) -> bytes:
        """The events that begin a stream, if the dialect has any."""
        firsts = [self.dialect.first(index) for index in range(num_choices)]
        return b"".join(self._chunk(first) for first in firsts if first is not None)

    def piece(self, index: int, piece: Piece, window: int | None) -> bytes:
        """The event with the next piece of a choice, and the window of the pair that works on it."""
        return self._chunk(self.dialect.piece(index, piece), self._fates(piece, window))

    def ending(self, index: int, finish: Finish, report: DsdReport) -> bytes:
        """The event that ends a choice."""
        choices = [self.dialect.last(index, finish)]
        return _event(LastChunk(**self._head(self.dialect.chunk), choices=choices, usage=self._no_usage, dsd=report))

    def closing(self, usage: Usage) -> bytes:
        """The events that end a stream."""
        if not self.tells_usage:
            return DONE
        return _event(UsageChunk(**self._head(self.dialect.chunk), usage=usage)) + DONE

    def choice(self, index: int, text: str, tokens: list[ScoredToken] | None, finish: Finish) -> WholeChoice:
        """A whole choice."""
        return self.dialect.answer(index, text, tokens, finish)

    def whole(self, choices: list[WholeChoice], usage: Usage, report: DsdReport) -> bytes:
        """The body of an answer in one piece."""
        return msgspec.json.encode(
            Whole(**self._head(self.dialect.whole), choices=choices, usage=usage, dsd=report),
        )

    @property
    def _no_usage(self) -> UnsetType | None:
        return None if self.tells_usage else UNSET

    def _fates(self, piece: Piece, window: int | None) -> DsdPieces | UnsetType:
        if not self.tells_fates or not piece.spans:
            return UNSET
        return DsdPieces([TokenPiece(span.text, span.fate) for span in piece.spans], window)

    def _chunk(self, choice: ChunkChoice, dsd: DsdPieces | UnsetType = UNSET) -> bytes:
        return _event(Chunk(**self._head(self.dialect.chunk), choices=[choice], usage=self._no_usage, dsd=dsd))

    def _head(self, kind: ObjectName) -> _Head:
        return _Head(
            id=self.dialect.prefix + self.session_id,
            object=kind,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint(),
        )


def _event(chunk: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
