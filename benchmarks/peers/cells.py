"""The cells of `make peers`, and the time that each takes.

Invariant: a cell names everything that its figures depend on beside the systems: clients, prompt length, temperature,
round trip. All systems of a cell answer the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.harness.markdown import markdown_table
from benchmarks.peers.systems import LLAMA, VLLM, VLLM_ONE, System

ANSWER_TOKENS = 128
WARM_UP_TOKENS = 32  # of an answer before each measured one, to as many clients
SHORT, MIDDLE, LONG = 50, 500, 2000  # tokens of a prompt, template included; SHORT is about that
MAX_TEXT_TOKENS = 2304  # that systems have room for: prompt and answer, in blocks of 256
MIN_ROUNDS = 3
NEAR_PEERS = (LLAMA, VLLM, VLLM_ONE)  # that cells with a distance repeat: a round trip does not touch them
# Roughly, for the plan. A budget decides by the clock.
PREFILL_TOKENS_PER_S = 500.0
TOKENS_PER_S = {1: 36.0, 4: 90.0, 8: 140.0, 16: 180.0}
RESUME_S, START_S = 0.4, 40.0  # for each system: before an answer; once


@dataclass(frozen=True, slots=True)
class Cell:
    """rtt_ms: between drafter and everything else. num_rounds: at most."""

    num_clients: int
    prompt_tokens: int
    num_rounds: int
    temperature: float = 0.0
    rtt_ms: int = 0

    @property
    def name(self) -> str:
        rtt = f"-rtt{self.rtt_ms}" if self.rtt_ms else ""
        return f"c{self.num_clients}-p{self.prompt_tokens}-t{self.temperature:g}{rtt}"

    def __str__(self) -> str:
        clients = "1 client" if self.num_clients == 1 else f"{self.num_clients} clients"
        rtt = f", RTT {self.rtt_ms} ms" if self.rtt_ms else ""
        return f"{clients}, prompts of {self.prompt_tokens}, T = {self.temperature:g}{rtt}"

    def takes_part(self, system: System) -> bool:
        return self.rtt_ms == 0 or system.engine is not None or system.name in NEAR_PEERS

    def round_s(self, num_systems: int) -> float:
        """Estimated seconds of a round."""
        speed = TOKENS_PER_S[self.num_clients]
        warm_up_s = self.num_clients * (WARM_UP_TOKENS / speed + SHORT / PREFILL_TOKENS_PER_S)
        answer_s = self.num_clients * (ANSWER_TOKENS / speed + self.prompt_tokens / PREFILL_TOKENS_PER_S)
        return num_systems * (RESUME_S + warm_up_s + answer_s)


def full_plan() -> list[Cell]:
    """In the order of measurement: by distance, since the drafters of each distance are processes of their own.

    The cell that takes longest is the last, for slow machines, which do not measure all within the budget.
    """
    return [
        Cell(1, SHORT, 10),
        Cell(8, SHORT, 5),
        Cell(4, SHORT, 5),
        Cell(16, SHORT, MIN_ROUNDS),
        Cell(1, MIDDLE, 6),
        Cell(8, MIDDLE, MIN_ROUNDS),
        Cell(1, LONG, 5),
        Cell(1, SHORT, 6, temperature=0.8),
        Cell(8, SHORT, MIN_ROUNDS, temperature=0.8),
        Cell(1, SHORT, 6, rtt_ms=30),
        Cell(8, SHORT, MIN_ROUNDS, rtt_ms=30),
        Cell(1, SHORT, 6, rtt_ms=100),
        Cell(8, SHORT, MIN_ROUNDS, rtt_ms=100),
        Cell(8, LONG, MIN_ROUNDS),
    ]


def estimated_s(cell: Cell, systems: Sequence[System]) -> float:
    """Seconds of all rounds."""
    return cell.num_rounds * cell.round_s(sum(map(cell.takes_part, systems)))


def num_starts(plan: Sequence[Cell], systems: Sequence[System]) -> int:
    """Starts of systems: DSD with its drafters whenever the distance changes, the others once."""
    engines = {each.engine for each in systems if each.engine}
    peers = sum(each.engine is None for each in systems)
    return peers + len(engines) * len(list(groupby(plan, key=lambda cell: cell.rtt_ms)))


def plan_table(plan: Sequence[Cell], systems: Sequence[System]) -> str:
    """The cells with their estimated times."""
    rows = [
        (cell.name, str(cell), f"{sum(map(cell.takes_part, systems))}", f"{cell.num_rounds}", seconds)
        for cell in plan
        for seconds in [estimated_s(cell, systems)]
    ]
    starts = num_starts(plan, systems)
    rows.append(("starts", f"{starts} starts of systems", "", "", starts * START_S))
    rows.append(("in all", "", "", "", sum(row[-1] for row in rows)))
    lines = ((*row[:-1], f"{row[-1] / 60:.0f}") for row in rows)
    return markdown_table(("cell", "is", "systems", "rounds", "minutes"), lines)
