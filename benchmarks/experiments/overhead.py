"""DSD's own time per token, without models and network: python -m benchmarks.experiments.overhead.

Invariant: no figure contains model time (draft_steps.py, service_overhead.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.experiments.draft_steps import measure_second_turn, measure_steps, measure_throughput
from benchmarks.experiments.service_overhead import measure_services
from benchmarks.harness.files import REPORTS, write_result
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio, compare, ratio_of_medians
from shared.runtime.home import default_models_dir

MAX_STEP_RATIO, MAX_TURN_MS, MAX_ROUND_MS, MAX_GATEWAY_MS = 1.15, 100.0, 2.0, 0.5
MIN_RATIOS = {8: 3.0}  # guesses for so many sessions at once / for one
NUM_SESSIONS = (1, 2, 4, 8)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class OverheadCosts:
    """All figures. `gateway_ms`: its processor time per token, by serving mode. `guesses_per_s`: of a drafter, by its
    sessions; `guess_ratios`: to those for one session. `turn_ms`: until the first guess of a chat's second turn, less
    what the model alone takes for its new tokens."""

    step_ms: float
    bare_step_ms: float
    step_ratio: Ratio
    guesses_per_s: dict[int, float]
    guess_ratios: dict[int, Ratio]
    turn_ms: float
    round_ms: float
    round_quartiles_ms: tuple[float, float]
    gateway_ms: dict[str, float]
    complaints: list[str]
    origin: Origin


def table(costs: OverheadCosts) -> Table:
    shown = Table("what", "figure", "limit", title="DSD's own time per token")
    low, high = costs.round_quartiles_ms
    steps = f"{costs.step_ratio}: {costs.step_ms:.2f} / {costs.bare_step_ms:.2f} ms"
    shown.add_row("draft step / bare ONNX Runtime", steps, f"≤ {MAX_STEP_RATIO}")
    for num, ratio in costs.guess_ratios.items():
        limit = f"≥ {MIN_RATIOS[num]}" if num in MIN_RATIOS else ""
        shown.add_row(f"guesses/s, {num} sessions / one", f"{ratio}: {costs.guesses_per_s[num]:.1f}", limit)
    turn = f"{costs.turn_ms:.1f}"
    shown.add_row("first guess of a second turn, less its new tokens alone, ms", turn, f"≤ {MAX_TURN_MS}")
    rounds = f"{costs.round_ms:.2f} (quartiles {low:.2f} … {high:.2f})"
    shown.add_row("a round without compute, ms", rounds, f"≤ {MAX_ROUND_MS}")
    for name, figure in costs.gateway_ms.items():
        shown.add_row(f"gateway, processor time per token, {name}, ms", f"{figure:.3f}", f"≤ {MAX_GATEWAY_MS}")
    for complaint in costs.complaints:
        shown.add_row("void", complaint, "")
    return shown


def _ratio(ours: list[float], theirs: list[float], seed: int) -> Ratio:
    """Of figures that were measured in turn."""
    return compare([[each] for each in ours], [[each] for each in theirs], ratio_of_medians, seed=seed)


@app.command()
def main(
    draft: Annotated[str, typer.Option(help="Draft model: int8 or int4.")] = "int8",
    repeats: Annotated[int, typer.Option(min=3, help="Repeats of each measurement.")] = 20,
    folder: Annotated[Path, typer.Option(help="Folder for overhead.json.")] = REPORTS,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Measures with draft and tokenizer of the default pair."""
    models = default_models_dir()
    ours, bares = asyncio.run(measure_steps(models / f"draft-{draft}", repeats, seed))
    guesses = asyncio.run(measure_throughput(models / f"draft-{draft}", NUM_SESSIONS, repeats, seed))
    turns, alone = asyncio.run(measure_second_turn(models / f"draft-{draft}", max(3, repeats // 4), seed))
    rounds, gateway_ms, complaints = asyncio.run(measure_services(models, repeats, seed))
    low, middle, high = (float(each) for each in np.percentile(rounds, [25, 50, 75]))
    costs = OverheadCosts(
        step_ms=float(np.median(ours)),
        bare_step_ms=float(np.median(bares)),
        step_ratio=_ratio(ours, bares, seed),
        guesses_per_s={num: float(np.median(figures)) for num, figures in guesses.items()},
        guess_ratios={num: _ratio(figures, guesses[1], seed) for num, figures in guesses.items() if num > 1},
        turn_ms=float(np.median(np.subtract(turns, alone))),
        round_ms=middle,
        round_quartiles_ms=(low, high),
        gateway_ms=gateway_ms,
        complaints=complaints,
        origin=Origin.here("benchmarks.experiments.overhead"),
    )
    write_result(folder / "overhead.json", costs)
    Console().print(table(costs))


if __name__ == "__main__":
    app()
