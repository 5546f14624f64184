"""Records the default target's answers to two sets of prompts, and which tokens a draft guesses.

Each draft is recorded by a process of its own: python -m benchmarks.validation.record DRAFT FOLDER NUM_TOKENS.

Invariant: a case is judged with `JUDGED` only, and the simulator gets recordings of `OTHERS` only, which holds two
prompts of the same kind on other subjects for each judged one. Answers continue past the end of a text, as requests
with ignore_eos do.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import typer

from benchmarks.harness.pinned import pinned
from benchmarks.harness.prompts import DEFAULT_PROMPTS, encode_prompts
from model_zoo.prompt_file import read_prompts
from shared.data.recording import Header, Recording
from shared.runtime.home import default_models_dir

JUDGED, OTHERS = DEFAULT_PROMPTS, Path(__file__).parent / "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class DraftRecordings:
    """Recordings of each draft, in a folder."""

    folder: Path

    def others(self, draft: str) -> Path:
        """For the simulator."""
        return self.folder / f"{draft}-{OTHERS.stem}.jsonl"

    def all(self, draft: str) -> Path:
        """For replayed stand-ins."""
        return self.folder / f"{draft}-all.jsonl"


def record(draft: str, folder: Path, num_tokens: int) -> None:
    """Writes both recordings of a draft."""
    from model_zoo.measuring import record as recorder  # loads torch, which record_all does not need
    from services.cloud_verifier.torch_engine.model import load_target
    from services.edge_drafter.model import load_draft
    from services.gateway.text.tokenizer import load_tokenizer
    from shared.protocol.messages import Sampling

    models = default_models_dir()
    target, drafting = load_target(str(models / "target"), num_threads=1), load_draft(str(models / f"draft-{draft}"), 1)
    recordings = DraftRecordings(folder)
    machine = f"{platform.machine()}, {date.today()}"
    header = Header(
        target=target.name,
        draft=drafting.name,
        vocab_size=target.vocab_size,
        max_context=min(target.max_context, drafting.max_context),
        origin=f"benchmarks.validation.record, {num_tokens} tokens, temperature 0, {machine}",
    )
    others = read_prompts(OTHERS)
    prompts = encode_prompts(load_tokenizer(models / "target"), [*others, *read_prompts(JUDGED)])
    found = tuple(recorder.record(target, drafting, prompts, frozenset(), Sampling(), num_tokens))
    Recording(header, found[: len(others)]).write(recordings.others(draft))
    Recording(header, found).write(recordings.all(draft))


async def record_all(drafts: Sequence[str], folder: Path, num_tokens: int) -> DraftRecordings:
    """Records drafts in parallel, each on its own core. Raises RuntimeError if one fails."""
    cores = sorted(os.sched_getaffinity(0))

    async def one(number: int, draft: str) -> None:
        command = (sys.executable, "-m", "benchmarks.validation.record", draft, str(folder), str(num_tokens))
        process = await asyncio.create_subprocess_exec(*pinned(cores[number % len(cores)], command))
        try:
            if await process.wait():
                raise RuntimeError(f"recording the {draft} draft failed")
        finally:
            if process.returncode is None:
                process.kill()

    async with asyncio.TaskGroup() as tasks:
        for number, draft in enumerate(drafts):
            tasks.create_task(one(number, draft))
    return DraftRecordings(folder)


if __name__ == "__main__":
    typer.run(record)
