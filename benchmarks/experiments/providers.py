"""A draft on an accelerator against the CPU: python -m benchmarks.experiments.providers OpenVINO,CPU.

Both read the texts of a shipped recording, token by token, and guess at each position. The nodes of the graph are
counted by who computes them, so that a fallback to the CPU does not pass for the accelerator.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.files import write_result
from services.edge_drafter.graphs.providers import CPU, Providers
from services.edge_drafter.model import DraftModel, DraftRow, load_draft
from shared.data.recording import Recorded, read_recording
from shared.runtime.home import default_models_dir

RECORDING = Path(__file__).parents[2] / "recordings" / "smollm2-135m-int8.jsonl"
FEED_TOKENS = 64  # of a prompt in one step
MIN_NODES, MIN_SAME = 0.9, 0.99

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Reading:
    """One draft's reading of a text. guesses: after the prompt and after each token of the answer but the last."""

    guesses: list[int]
    prompt_ms: float  # per token
    step_ms: list[float]


@dataclass(frozen=True, slots=True)
class ProviderCosts:
    """An accelerator against the CPU. num_same: positions with the same guess. Times are medians."""

    num_nodes: Mapping[str, int]
    num_positions: int
    num_same: int
    step_ms: float
    cpu_step_ms: float
    prompt_ms: float
    cpu_prompt_ms: float

    @property
    def share_of_nodes(self) -> float:
        """Not computed by the CPU provider."""
        return 1 - self.num_nodes.get(CPU, 0) / sum(self.num_nodes.values())

    @property
    def share_of_same(self) -> float:
        return self.num_same / self.num_positions


def read(draft: DraftModel, text: Recorded) -> Reading:
    """Feeds the prompt in chunks, then the answer token by token."""
    cache = draft.new_cache(len(text.prompt_ids) + len(text.target_ids))
    logits, started = np.empty(0), time.perf_counter()
    for start in range(0, len(text.prompt_ids), FEED_TOKENS):
        (logits,) = draft.step([DraftRow(cache, start, text.prompt_ids[start : start + FEED_TOKENS])])
    prompt_ms = (time.perf_counter() - started) * 1e3 / len(text.prompt_ids)
    guesses, step_ms = [int(logits.argmax())], []
    for start, token in enumerate(text.target_ids[:-1], len(text.prompt_ids)):
        started = time.perf_counter()
        (logits,) = draft.step([DraftRow(cache, start, [token])])
        step_ms.append((time.perf_counter() - started) * 1e3)
        guesses.append(int(logits.argmax()))
    return Reading(guesses, prompt_ms, step_ms)


def compare(draft: DraftModel, on_cpu: DraftModel, texts: Sequence[Recorded]) -> ProviderCosts:
    """The drafts take turns, text by text."""
    pairs = [(read(draft, text), read(on_cpu, text)) for text in texts]
    same = [ours == theirs for one, other in pairs for ours, theirs in zip(one.guesses, other.guesses, strict=True)]
    ours, theirs = zip(*pairs, strict=True)
    return ProviderCosts(
        num_nodes=draft.num_nodes,
        num_positions=len(same),
        num_same=sum(same),
        step_ms=float(np.median([each for reading in ours for each in reading.step_ms])),
        cpu_step_ms=float(np.median([each for reading in theirs for each in reading.step_ms])),
        prompt_ms=float(np.median([reading.prompt_ms for reading in ours])),
        cpu_prompt_ms=float(np.median([reading.prompt_ms for reading in theirs])),
    )


def table(costs: ProviderCosts, title: str) -> Table:
    shown = Table("what", "figure", "limit", title=title)
    counts = ", ".join(f"{name} {number}" for name, number in costs.num_nodes.items())
    shown.add_row("nodes not on the CPU provider", f"{costs.share_of_nodes:.1%}: {counts}", f"≥ {MIN_NODES:.0%}")
    same = f"{costs.share_of_same:.1%}: {costs.num_same} of {costs.num_positions}"
    shown.add_row("same guesses as the CPU provider", same, f"≥ {MIN_SAME:.0%}")
    shown.add_row("step, ms", f"{costs.step_ms:.2f}; CPU provider {costs.cpu_step_ms:.2f}", "")
    shown.add_row("prompt, ms per token", f"{costs.prompt_ms:.2f}; CPU provider {costs.cpu_prompt_ms:.2f}", "")
    return shown


@app.command()
def main(
    providers: Annotated[str, typer.Argument(help="As DSD_DRAFT_PROVIDERS.")],
    options: Annotated[str, typer.Option(help="As DSD_DRAFT_PROVIDER_OPTIONS.")] = "{}",
    draft: Annotated[
        Path | None, typer.Option(help="Folder of the draft.", show_default="the default pair's int8 draft")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each draft.")] = 1,
    prompts: Annotated[int, typer.Option(min=1, help="Texts to read, at most those of the recording.")] = 12,
    output: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Counts the nodes that an accelerator computes, compares its guesses with the CPU's, and times both."""
    folder = str(draft or default_models_dir() / "draft-int8")
    texts = read_recording(RECORDING).prompts[:prompts]
    chosen = load_draft(folder, threads, providers=Providers.parse(providers, json.loads(options)))
    costs = compare(chosen, load_draft(folder, threads), texts)
    Console().print(table(costs, f"{folder} on {providers}, {threads} threads"))
    if output is not None:
        write_result(output, costs)


if __name__ == "__main__":
    app()
