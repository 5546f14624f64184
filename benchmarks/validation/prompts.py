"""The prompts of the validation, and the recordings of guesses for the simulator.

Invariant: cases of real models ask prompts that are not recorded, and cases that decide ask others than cases of
development. Both have two prompts of the same kind for each recorded one. Stand-ins know the recorded prompts only.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.files import ROOT
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.validation.cases import ValidationSystem
from model_zoo.prompt_file import read_prompts

RECORDED = DEFAULT_PROMPTS  # the calibration asks these
OTHERS = Path(__file__).parent / "prompts.jsonl"


def recording_of(draft: str) -> Path:
    """Of the default target's answers to RECORDED, by `python -m model_zoo record`."""
    return ROOT / "recordings" / f"smollm2-135m-{draft}.jsonl"


def prompts_of(system: ValidationSystem, *, is_development: bool) -> list[str]:
    """Of the cases of a system."""
    return read_prompts(RECORDED) if system.is_replayed else read_prompts(OTHERS)[int(is_development) :: 2]
