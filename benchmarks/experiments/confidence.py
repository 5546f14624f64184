"""What a confidence stop spares and costs, in guesses and passes: python -m benchmarks.experiments.confidence.

The default pair answers prompts one after the other, stop-and-wait (chunk = window, no free run), at several
thresholds. Times are not measured, and no guess is late, however busy the machine is. Yet counts differ by some percent
from run to run, the passes most: the verifier checks as many guesses in a pass as pay by the pass times it has seen.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from services.cloud_verifier.torch_engine.model import load_target
from services.edge_drafter.model import load_draft
from services.gateway.text.tokenizer import load_tokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling, Speculation
from shared.runtime.home import home
from tests.e2e.harness import ANSWER_S, Cell, running
from tests.e2e.prompts import read_prompts

PAIR = "smollm2-135m"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of the guesses of all answers at one threshold."""

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
        """Tokens, passes, drafted, accepted, rejected, discarded."""
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
) -> Finding:
    """All answers at one threshold."""
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
    return Finding(
        min_confidence,
        len(answers),
        num_tokens=sum(len(answer.token_ids) for answer in answers),
        num_passes=sum(tally.num_passes for tally in tallies),
        accepted=sum(tally.accepted for tally in tallies),
        rejected=sum(tally.rejected for tally in tallies),
        discarded=sum(tally.discarded for tally in tallies),
    )


def table(found: list[Finding], title: str) -> Table:
    """What the terminal shows."""
    shown = Table(title=title)
    for heading in ("threshold", "tokens", "passes", "drafted", "accepted", "rejected", "discarded"):
        shown.add_column(heading)
    for finding in found:
        shown.add_row(f"{finding.min_confidence:g}", *(f"{count:.1f}" for count in finding.per_answer()))
    return shown


async def _run(
    models: Path,
    draft: str,
    num_prompts: int,
    max_tokens: int,
    window: int,
    sampling: Sampling,
    thresholds: list[float],
) -> list[Finding]:
    tokenizer = load_tokenizer(models / "target")
    prompts = read_prompts(tokenizer)
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
        list[float] | None, typer.Option(help="Thresholds, 0 to 1; 0, 0.3 and 0.6 unless given.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, max=40, help="Prompts answered at each threshold.")] = 6,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    window: Annotated[int, typer.Option(min=1, max=64, help="Most guesses of a window.")] = 8,
    draft: Annotated[str, typer.Option(help="Draft model: int8 or int4.")] = "int4",
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    output: Annotated[Path | None, typer.Option(help="Write the findings to this JSON file.")] = None,
) -> None:
    """Counts what becomes of guesses when windows end early behind unsure ones, with the default pair."""
    sampling = Sampling(temperature=temperature, seed=1)
    chosen = thresholds or [0.0, 0.3, 0.6]
    found = asyncio.run(_run(home() / "models" / PAIR, draft, prompts, max_tokens, window, sampling, chosen))
    title = f"per answer: {prompts} prompts, {draft}, window {window}, temperature {temperature:g}"
    Console().print(table(found, title))
    if output is not None:
        output.write_text(json.dumps([asdict(finding) for finding in found], indent=1), encoding="utf-8")


if __name__ == "__main__":
    app()
