"""Guesses and passes per answer by confidence threshold: python -m benchmarks.experiments.confidence.

The default pair answers one prompt after another, stop-and-wait (chunk = window, no free run), at several thresholds.
Nothing is timed, and no guess is late even on a busy machine. Counts still vary by some percent between runs, since the
verifier decides by measured pass times how many guesses a pass checks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.files import write_result
from benchmarks.harness.prompts import DEFAULT_PROMPTS, encode_prompts
from model_zoo.prompt_file import read_prompts
from services.cloud_verifier.torch_engine.model import load_target
from services.edge_drafter.model import load_draft
from services.gateway.text.tokenizer import load_tokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling, Speculation
from shared.runtime.home import default_models_dir
from tests.e2e.harness import ANSWER_S, Cell, running

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class ThresholdCounts:
    """Counts over all answers at one threshold."""

    min_confidence: float
    num_answers: int
    num_tokens: int
    num_passes: int
    accepted: int
    rejected: int
    discarded: int

    @property
    def drafted(self) -> int:
        return self.accepted + self.rejected + self.discarded

    def per_answer(self) -> tuple[float, ...]:
        """Mean tokens, passes, drafted, accepted, rejected, discarded."""
        counts = (self.num_tokens, self.num_passes, self.drafted, self.accepted, self.rejected, self.discarded)
        return tuple(count / self.num_answers for count in counts)


async def measure(
    cell: Cell,
    prompts: list[list[int]],
    sampling: Sampling,
    max_tokens: int,
    window: int,
    min_confidence: float,
    stop_ids: tuple[int, ...],
) -> ThresholdCounts:
    """Answers all prompts at one threshold."""
    await cell.client.decide(cell.drafter_id(), cell.verifier_id(), window, chunk=window, free_run=False)
    answers = [
        await cell.client.generate(
            prompt,
            verifier_id=cell.verifier_id(),
            drafter_id=cell.drafter_id(),
            sampling=sampling,
            max_tokens=max_tokens,
            stop_ids=stop_ids,
            speculation=Speculation("static", window, min_confidence),
            free_run=False,
        )
        for prompt in prompts
    ]
    tallies = [answer.tally for answer in answers]
    return ThresholdCounts(
        min_confidence,
        len(answers),
        num_tokens=sum(len(answer.token_ids) for answer in answers),
        num_passes=sum(tally.num_passes for tally in tallies),
        accepted=sum(tally.accepted for tally in tallies),
        rejected=sum(tally.rejected for tally in tallies),
        discarded=sum(tally.discarded for tally in tallies),
    )


def table(found: list[ThresholdCounts], title: str) -> Table:
    shown = Table("threshold", "tokens", "passes", "drafted", "accepted", "rejected", "discarded", title=title)
    for each in found:
        shown.add_row(f"{each.min_confidence:g}", *(f"{count:.1f}" for count in each.per_answer()))
    return shown


async def _run(
    models: Path,
    draft: str,
    num_prompts: int,
    max_tokens: int,
    window: int,
    sampling: Sampling,
    thresholds: list[float],
) -> list[ThresholdCounts]:
    tokenizer = load_tokenizer(models / "target")
    prompts = encode_prompts(tokenizer, read_prompts(DEFAULT_PROMPTS))
    chosen = prompts[:: max(1, len(prompts) // num_prompts)][:num_prompts]
    target = load_target(str(models / "target"), "cpu", "bfloat16", 1)
    drafts = [load_draft(str(models / f"draft-{draft}"), 1)]
    async with running(MemoryNetwork().connect, [target], drafts, drafter_lease_s=ANSWER_S) as cell:
        return [
            await measure(cell, chosen, sampling, max_tokens, window, threshold, tuple(tokenizer.stop_ids))
            for threshold in thresholds
        ]


@app.command()
def main(
    thresholds: Annotated[
        list[float] | None, typer.Option(help="Thresholds, 0 to 1.", show_default="0, 0.3 and 0.6")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, max=40, help="Number of prompts.")] = 6,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    window: Annotated[int, typer.Option(min=1, max=64, help="Window.")] = 8,
    draft: Annotated[str, typer.Option(help="Draft model: int8 or int4.")] = "int4",
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    output: Annotated[Path | None, typer.Option(help="Write the counts to this JSON file.")] = None,
) -> None:
    """Counts guesses and passes when windows end at the first unsure guess, with the default pair."""
    sampling = Sampling(temperature=temperature, seed=1)
    chosen = thresholds or [0.0, 0.3, 0.6]
    found = asyncio.run(_run(default_models_dir(), draft, prompts, max_tokens, window, sampling, chosen))
    title = f"per answer: {prompts} prompts, {draft}, window {window}, temperature {temperature:g}"
    Console().print(table(found, title))
    if output is not None:
        write_result(output, found)


if __name__ == "__main__":
    app()
