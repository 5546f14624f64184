"""Records what the default target says to two sets of prompts, and where a draft guesses it; a process of its own:
python -m benchmarks.validation.record DRAFT FOLDER NUM_TOKENS.

Invariant: a case is judged on `JUDGED` alone, and the simulator knows recordings of `OTHERS` alone: for each judged
prompt two of the same kind on something else. Answers go on behind the end of a text, as requests with ignore_eos do.
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

from benchmarks.harness.prompts import OWN
from model_zoo.prompt_file import read_prompts
from shared.data.recording import Recording, read_recording
from shared.runtime.home import default_models_dir

JUDGED, OTHERS = OWN, Path(__file__).parent / "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Recordings:
    """Of each draft, in a folder."""

    folder: Path

    def others(self, draft: str) -> Path:
        """What the simulator goes by."""
        return self.folder / f"{draft}-{OTHERS.stem}.jsonl"

    def all(self, draft: str) -> Path:
        """What is replayed."""
        return self.folder / f"{draft}-all.jsonl"


def record(draft: str, folder: Path, num_tokens: int) -> None:
    """Writes both files of a draft."""
    from model_zoo.measuring import record as recorder  # these load torch, which those who start this process need not
    from services.cloud_verifier.torch_engine.model import load_target
    from services.edge_drafter.model import load_draft
    from services.gateway.text.chat_template import ChatMessage
    from services.gateway.text.tokenizer import load_tokenizer
    from shared.data.recording import Header
    from shared.protocol.messages import Sampling

    models = default_models_dir()
    target, drafting = load_target(str(models / "target"), num_threads=1), load_draft(str(models / f"draft-{draft}"), 1)
    tokenizer = load_tokenizer(models / "target")
    recordings = Recordings(folder)
    header = Header(
        target=target.name,
        draft=drafting.name,
        vocab_size=target.vocab_size,
        max_context=min(target.max_context, drafting.max_context),
        origin=(
            f"benchmarks.validation.record, {num_tokens} tokens, temperature 0, {platform.machine()}, {date.today()}"
        ),
    )
    texts = [*read_prompts(OTHERS), *read_prompts(JUDGED)]
    prompts = [list(tokenizer.encode_chat([ChatMessage(role="user", content=text)])) for text in texts]
    found = tuple(recorder.record(target, drafting, prompts, frozenset(), Sampling(), num_tokens))
    Recording(header, found[: len(read_prompts(OTHERS))]).write(recordings.others(draft))
    Recording(header, found).write(recordings.all(draft))


async def record_all(drafts: Sequence[str], folder: Path, num_tokens: int) -> Recordings:
    """Records drafts at the same time, each on a core; raises RuntimeError where one fails."""
    cores = sorted(os.sched_getaffinity(0))

    async def one(number: int, draft: str) -> None:
        core = str(cores[number % len(cores)])
        pinned = (
            sys.executable,
            "-m",
            "benchmarks.harness.pinned",
            core,
            sys.executable,
            "-m",
            "benchmarks.validation.record",
        )
        process = await asyncio.create_subprocess_exec(*pinned, draft, str(folder), str(num_tokens))
        try:
            if await process.wait():
                raise RuntimeError(f"recording with the {draft} draft failed")
        finally:
            if process.returncode is None:
                process.kill()

    async with asyncio.TaskGroup() as tasks:
        for number, draft in enumerate(drafts):
            tasks.create_task(one(number, draft))
    return Recordings(folder)


def acceptance_of(path: Path) -> float:
    """The share of tokens that a recorded draft guessed."""
    prompts = read_recording(path).prompts
    return sum(sum(each.draft_right) for each in prompts) / sum(len(each.draft_right) for each in prompts)


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
