"""The cases in which window control must hold: scenarios/window-control, with several seeds.

Invariant: nothing is tuned on these files; development.py has scenarios for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from awc_training.evaluate import Results, met, results_of, standing, table
from awc_training.intervals import mean, ratio
from awc_training.rivals import TARGET_ONLY, contestants
from awc_training.scenarios import FOLDER
from dsd_sim.scenario.scenario import Scenario, read_scenario

CASES = FOLDER / "window-control"
SEEDS = (1, 2, 3, 4, 5)
LEAST_SPEED = 0.97  # of the best rival


def cases() -> dict[str, Scenario]:
    """By name of the file."""
    return {path.stem: read_scenario(path) for path in sorted(CASES.glob("*.toml"))}


def run_cases(out: Path, workers: int | None, seeds: Sequence[int] = SEEDS) -> Iterator[str]:
    """A table with a row for each case."""
    rows = []
    for name, scenario in cases().items():
        seeded = [scenario.model_copy(update={"seed": seed}) for seed in seeds]
        ours, *others = results_of(contestants(), seeded, out, workers, CASES)
        rows.append(case_row(name, ours, others))
    compared = "speed to it | met | tokens/s to it | TTFT to it"
    heading = f"case | best rival | {compared} | speed to target-only | guesses per token | of the rival"
    yield f"{len(seeds)} seeds. Speed: 1 / mean TPOT. *To it*: adaptive / the best rival, the fastest in these runs;"
    yield "above 1, adaptive has more. Parentheses: 95 % bootstrap intervals over seeds, too narrow with so few."
    yield f"*Met*: the lower end of *speed to it* is at least {LEAST_SPEED:g}."
    yield ""
    yield from table(heading, rows)


def case_row(name: str, ours: Results, others: Sequence[Results]) -> str:
    """Ours against the fastest of the others. What a fast answer costs those that wait shows in tokens/s and TTFT."""
    best, to_best = standing(ours, others)
    alone = next(each for each in others if each.label == TARGET_ONLY)
    compared = [
        best.label,
        to_best,
        met(to_best, LEAST_SPEED),
        ratio(ours.throughputs, best.throughputs),
        ratio(ours.ttfts, best.ttfts),
        ratio(ours.speeds, alone.speeds),
        mean(ours.guesses).shown(2),
        mean(best.guesses).shown(2),
    ]
    return " | ".join((name, *map(str, compared)))
