"""Recordings: a target's answers to prompts, and where a draft's guesses were right, to replay both without models.

Invariant: a recording that was read is consistent: one judged guess for each token, ids within the vocabulary,
probabilities from 0 to 1. Anything else raises MalformedRecording with file and line.

Format: JSON lines, first a `Header`, then one `Recorded` for each prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

FORMAT = "dsd-recording-1"

Kind = TypeVar("Kind", bound=Struct)


class MalformedRecording(ValueError):
    """The file is no recording, or an inconsistent one."""


class Header(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The models of a recording, and how it was made."""

    target: str
    draft: str
    vocab_size: Annotated[int, Meta(ge=2)]
    max_context: Annotated[int, Meta(ge=1)]
    origin: str  # prompts, command, machine, date
    format: str = FORMAT


class Recorded(Struct, frozen=True, forbid_unknown_fields=True):
    """One prompt and its answer.

    draft_right[i]: whether the draft's guess after prompt_ids and target_ids[:i] was target_ids[i]. confidence[i]: the
    draft's own probability of that guess.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    draft_right: tuple[bool, ...]
    confidence: tuple[Annotated[float, Meta(gt=0, le=1)], ...]

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.target_ids:
            raise ValueError("a recording needs a prompt and an answer")
        if not len(self.target_ids) == len(self.draft_right) == len(self.confidence):
            raise ValueError(
                "target_ids, draft_right and confidence must have equal lengths, got "
                f"{len(self.target_ids)}, {len(self.draft_right)} and {len(self.confidence)}"
            )

    @property
    def acceptance(self) -> float:
        """Share of guesses that were right."""
        return sum(self.draft_right) / len(self.draft_right)


@dataclass(frozen=True, slots=True)
class Recording:
    header: Header
    prompts: tuple[Recorded, ...]

    def write(self, path: Path) -> None:
        lines = [msgspec.json.encode(each) for each in (self.header, *self.prompts)]
        path.write_bytes(b"\n".join(lines) + b"\n")


def read_recording(path: Path) -> Recording:
    """Raises MalformedRecording, or OSError for a file that can't be read."""
    lines = path.read_bytes().splitlines()
    if not lines:
        raise MalformedRecording(f"{path} is empty")
    header = _decode(path, 1, lines[0], Header)
    if header.format != FORMAT:
        raise MalformedRecording(f"{path}:1: format must be {FORMAT}, got {header.format}")
    prompts = tuple(_decode(path, number, line, Recorded) for number, line in enumerate(lines[1:], start=2))
    if not prompts:
        raise MalformedRecording(f"{path} holds no prompt")
    for number, each in enumerate(prompts, start=2):
        for token_id in (*each.prompt_ids, *each.target_ids):
            if not 0 <= token_id < header.vocab_size:
                raise MalformedRecording(f"{path}:{number}: token id {token_id} is not in 0..{header.vocab_size - 1}")
    return Recording(header, prompts)


def _decode(path: Path, number: int, line: bytes, kind: type[Kind]) -> Kind:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRecording(f"{path}:{number}: {error}") from error
