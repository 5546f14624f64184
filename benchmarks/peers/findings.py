"""From the answers of a cell to figures with intervals, and where DSD is behind. Pure.

Invariant: a system is compared with another on the same prompts in the same rounds only. Speeds compare as
ours / theirs, above 1 is better; times too, below 1 is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.harness.paired import Figures, Ratio, compare
from benchmarks.peers.cells import ANSWER_TOKENS, Cell
from benchmarks.peers.results import Answers, CellResult
from benchmarks.peers.systems import System


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of an answer. figures: of one system in one round."""

    name: str
    unit: str
    is_better_high: bool
    figures: Callable[[Answers], list[float]]

    def is_behind(self, ours_to_theirs: float) -> bool:
        return ours_to_theirs < 1 if self.is_better_high else ours_to_theirs > 1


SPEED = Measure("tokens/s", "", True, lambda each: [len(each.texts) * ANSWER_TOKENS / each.seconds])
TTFT = Measure("TTFT", " ms", False, lambda each: each.ttft_ms)
TPOT = Measure("TPOT", " ms", False, lambda each: each.tpot_ms)
MEASURES = (SPEED, TTFT, TPOT)


@dataclass(frozen=True, slots=True)
class Behind:
    """DSD is behind the best peer by a measure."""

    cell: Cell
    measure: Measure
    ours: str
    theirs: str
    ratio: Ratio


@dataclass(frozen=True, slots=True)
class CellFigures:
    """Figures by measure and system: arrays [rounds, clients], of speeds [rounds, 1]."""

    result: CellResult
    figures: Mapping[str, Mapping[str, Figures]]

    @classmethod
    def of(cls, result: CellResult) -> CellFigures:
        return cls(
            result,
            {
                measure.name: {
                    system.name: np.array([measure.figures(answers[system.name]) for answers in result.rounds])
                    for system in result.systems
                }
                for measure in MEASURES
            },
        )

    @property
    def cell(self) -> Cell:
        return self.result.cell

    def value(self, measure: Measure, system: str) -> Ratio:
        """Geometric mean with its interval."""
        found = self.figures[measure.name][system]
        return compare(found, np.ones_like(found))

    def ratio(self, measure: Measure, ours: str, theirs: str) -> Ratio:
        return compare(self.figures[measure.name][ours], self.figures[measure.name][theirs])

    def named(self, is_wanted: Callable[[System], bool]) -> list[str]:
        return [system.name for system in self.result.systems if is_wanted(system)]

    def best(self, measure: Measure, names: list[str]) -> str | None:
        """By the geometric mean; None of none."""
        means = {name: float(np.mean(np.log(self.figures[measure.name][name]))) for name in names}
        choose = max if measure.is_better_high else min
        return choose(means, key=lambda name: means[name]) if means else None

    def best_peer(self, measure: Measure) -> str | None:
        return self.best(measure, self.named(lambda each: each.engine is None and each.is_counted))

    def best_of_ours(self) -> str | None:
        """The fastest, whose times count too."""
        return self.best(SPEED, self.named(lambda each: each.engine is not None))

    def behind(self) -> list[Behind]:
        ours = self.best_of_ours()
        found = []
        for measure in MEASURES:
            theirs = self.best_peer(measure)
            if ours and theirs:
                ratio = self.ratio(measure, ours, theirs)
                if measure.is_behind(ratio.value):
                    found.append(Behind(self.cell, measure, ours, theirs, ratio))
        return found

    def same_texts(self, system: System) -> float | None:
        """Share of texts that are those of the plain system; None: it is plain, or texts are sampled without a seed."""
        is_seeded = self.cell.temperature == 0 or system.engine is not None
        plain = system.plain
        if plain is None or plain not in self.figures[SPEED.name] or not is_seeded:
            return None
        pairs = [
            pair
            for answers in self.result.rounds
            for pair in zip(answers[system.name].texts, answers[plain].texts, strict=True)
        ]
        return sum(ours == plain for ours, plain in pairs) / len(pairs)

    def acceptance(self, system: System) -> float | None:
        mine = [answers[system.name] for answers in self.result.rounds]
        right = sum(each.accepted for each in mine)
        compared = right + sum(each.rejected for each in mine)
        return right / compared if compared else None

    def prompt_tokens(self) -> dict[str, float]:
        """Mean length by system: they should agree."""
        return {
            system.name: float(np.mean([answers[system.name].prompt_tokens for answers in self.result.rounds]))
            for system in self.result.systems
        }
