"""The prompts of the validation, and the recordings of guesses for the simulator.

Invariant: cases of real models that decide ask prompts that are not recorded; there are two recorded ones of the same
kind for each. Stand-ins and their simulation replay one recording, so that only their times are predicted.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TypeVar

from benchmarks.harness.files import ROOT
from benchmarks.harness.origin import digest_of_folder
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.validation.cases import ValidationSystem
from model_zoo.prompt_file import read_prompts
from shared.data.recording import Recorded, Recording, read_recording

Kind = TypeVar("Kind")

CALIBRATING = DEFAULT_PROMPTS
OTHERS = Path(__file__).parent / "prompts.jsonl"  # one of the same kind for each, then a second one for each


def recorded_prompts() -> list[str]:
    return read_prompts(CALIBRATING) + developing_prompts()


def developing_prompts() -> list[str]:
    found = read_prompts(OTHERS)
    return found[len(found) // 2 :]


def prompts_of(system: ValidationSystem, *, is_development: bool) -> list[str]:
    """Of the cases of a system."""
    if system.is_replayed:
        return read_prompts(CALIBRATING)
    found = read_prompts(OTHERS)
    return developing_prompts() if is_development else found[: len(found) // 2]


def recording_of(system: ValidationSystem, draft: str, profiles: Path) -> Path:
    """The recording that the simulator replays. profiles: the folder of profiles, which has those of real drafts."""
    return shipped_recording(draft) if system.is_replayed else profiles / f"guesses-{draft}.jsonl"


def origin_of(draft: str, models: Path) -> str:
    """What a recording tells of its draft, which may be trained anew under the same name."""
    digest = digest_of_folder(models / f"draft-{draft}").hex()[:16]
    return f"benchmarks.validation.record, temperature 0, draft {digest}"


def is_recorded(draft: str, models: Path, file: Path) -> bool:
    """Whether the file has what the draft guesses as it is now."""
    return file.is_file() and read_recording(file).header.origin == origin_of(draft, models)


def shipped_recording(draft: str) -> Path:
    """Of answers to CALIBRATING that end with the text."""
    return ROOT / "recordings" / f"smollm2-135m-{draft}.jsonl"


def write_extended(draft: str, path: Path, num_tokens: int) -> None:
    """A recording for stand-ins, whose answers start over until they have `num_tokens`, as in the simulator."""
    recording = read_recording(shipped_recording(draft))

    def extended(values: tuple[Kind, ...]) -> tuple[Kind, ...]:
        return tuple(itertools.islice(itertools.cycle(values), num_tokens))

    prompts = tuple(
        Recorded(each.prompt_ids, extended(each.target_ids), extended(each.draft_right), extended(each.confidence))
        for each in recording.prompts
    )
    Recording(recording.header, prompts).write(path)
