"""The cells of `python -m benchmarks.scale`, and the time that each takes.

Invariant: a cell names everything that its figures depend on beside code, models and machine. All cells cross in
CENTRE, so that each number alone is varied there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.harness.markdown import markdown_table

# Roughly, for the plan.
START_S, VERIFIER_S, DRAFTER_S = 20.0, 5.0, 0.04  # until the system is ready; for each verifier and drafter
STOP_S, PREDICTION_S = 8.0, 15.0


@dataclass(frozen=True, slots=True)
class Cell:
    """sessions: clients, each of which asks again when it has its answer. tokens_per_s: of all together, about; times
    of the models are stretched for it. answer_tokens: of each answer."""

    sessions: int
    drafters: int
    verifiers: int
    tokens_per_s: float = 400.0
    answer_tokens: int = 32

    @property
    def name(self) -> str:
        rate = "" if self.tokens_per_s == CENTRE.tokens_per_s else f"-r{self.tokens_per_s:g}"
        answer = "" if self.answer_tokens == CENTRE.answer_tokens else f"-a{self.answer_tokens}"
        return f"s{self.sessions}-d{self.drafters}-v{self.verifiers}{rate}{answer}"

    @property
    def answer_s(self) -> float:
        """Of one answer."""
        return self.sessions * self.answer_tokens / self.tokens_per_s


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a cell is measured: without sessions, then in slices with all of them."""

    idle_s: float = 15.0
    slice_s: float = 10.0
    num_slices: int = 6

    def cell_s(self, cell: Cell) -> float:
        """Estimated seconds. A verifier's own warm-up takes about as long as most of an answer; then clients begin over
        the time of an answer, and each has a first one."""
        start_s = START_S + cell.verifiers * VERIFIER_S + cell.drafters * DRAFTER_S
        return start_s + self.idle_s + self.load_s(cell) + STOP_S + PREDICTION_S

    def load_s(self, cell: Cell) -> float:
        """Of these, with requests."""
        return 2.8 * cell.answer_s + self.num_slices * self.slice_s

    def num_requests(self, cell: Cell) -> int:
        """Estimated requests, at least one of each client."""
        return cell.sessions + round(self.load_s(cell) * cell.tokens_per_s / cell.answer_tokens)


CENTRE = Cell(256, 100, 2)


def full_plan() -> list[Cell]:
    """In the order of measurement: first what a fit needs, then the ends of the axes."""
    return [
        CENTRE,
        replace(CENTRE, sessions=64),
        replace(CENTRE, drafters=10),
        replace(CENTRE, drafters=1000),
        replace(CENTRE, verifiers=8),
        replace(CENTRE, sessions=1024),
        replace(CENTRE, tokens_per_s=200.0),
        replace(CENTRE, answer_tokens=12),
        replace(CENTRE, verifiers=1),
        replace(CENTRE, verifiers=4),
        Cell(64, 10, 1),
        Cell(512, 1000, 8),
    ]


def plan_table(plan: Sequence[Cell], timing: Timing) -> str:
    """The cells with their estimated minutes."""
    rows: list[tuple[object, ...]] = [
        (each.name, each.sessions, each.drafters, each.verifiers, f"{each.tokens_per_s:g}", each.answer_tokens,
         f"{timing.cell_s(each) / 60:.1f}")
        for each in plan
    ]  # fmt: skip
    rows.append(("in all", "", "", "", "", "", f"{sum(map(timing.cell_s, plan)) / 60:.0f}"))
    return markdown_table(
        ("cell", "sessions", "drafters", "verifiers", "tokens/s", "tokens an answer", "minutes"), rows
    )
