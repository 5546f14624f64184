"""Records the default target's answers to prompts, and which tokens a draft guesses.

Each draft is recorded by a process of its own: python -m benchmarks.validation.record DRAFT FILE.

Invariant: answers continue past the end of a text, as those of the cases do.
"""

from __future__ import annotations

from pathlib import Path

import typer

from benchmarks.harness.prompts import encode_prompts
from benchmarks.validation.prompts import origin_of, recorded_prompts
from model_zoo.measuring import record as recorder
from services.cloud_verifier.torch_engine.model import load_target
from services.edge_drafter.model import load_draft
from services.gateway.text.tokenizer import load_tokenizer
from shared.data.recording import Header, Recording
from shared.protocol.messages import Sampling
from shared.runtime.home import default_models_dir

NUM_TOKENS = 96  # of an answer


def record(draft: str, file: Path) -> None:
    """Writes the recording of a draft."""
    models = default_models_dir()
    target, drafting = load_target(str(models / "target"), num_threads=1), load_draft(str(models / f"draft-{draft}"), 1)
    header = Header(
        target=target.name,
        draft=drafting.name,
        vocab_size=target.vocab_size,
        max_context=min(target.max_context, drafting.max_context),
        origin=origin_of(draft, models),
    )
    prompts = encode_prompts(load_tokenizer(models / "target"), recorded_prompts())
    found = recorder.record(target, drafting, prompts, frozenset(), Sampling(), NUM_TOKENS)
    file.parent.mkdir(parents=True, exist_ok=True)
    Recording(header, tuple(found)).write(file)


if __name__ == "__main__":
    typer.run(record)
