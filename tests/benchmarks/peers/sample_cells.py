"""Results of the comparison for tests."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from benchmarks.harness.origin import Origin
from benchmarks.peers.cells import ANSWER_TOKENS, Cell
from benchmarks.peers.results import Answers, CellResult
from benchmarks.peers.systems import Choice, System, systems

ORIGIN = Origin("python -m benchmarks.peers", "2 cores of a test", "2026-01-01 00:00 UTC", "3.11")
ALL = systems(Choice())


def named(*names: str) -> list[System]:
    return [system for system in ALL if system.name in names]


def answers(cell: Cell, tokens_per_s: float, ttft_ms: float, draw: random.Random, text: str = "same") -> Answers:
    """With 5 % of noise."""
    noise = draw.uniform(0.95, 1.05)
    clients = range(cell.num_clients)
    return Answers(
        seconds=cell.num_clients * ANSWER_TOKENS / (tokens_per_s * noise),
        ttft_ms=[ttft_ms * noise for _ in clients],
        tpot_ms=[1e3 * cell.num_clients / (tokens_per_s * noise) for _ in clients],
        prompt_tokens=[cell.prompt_tokens for _ in clients],
        texts=[f"{text} {number}" for number in clients],
        foreign_share=0.01,
    )


def result(
    cell: Cell, used: Sequence[System], speeds: Mapping[str, float], ttft_ms: Mapping[str, float], **others: object
) -> CellResult:
    """A finished cell with these speeds and times to first tokens (100 ms by default) by system."""
    draw = random.Random(1)
    rounds = [
        {each.name: answers(cell, speeds[each.name], ttft_ms.get(each.name, 100.0), draw) for each in used}
        for _ in range(cell.num_rounds)
    ]
    fields = {"is_finished": True} | others
    return CellResult(cell, list(used), {"vLLM": "1"}, "digest", ORIGIN, rounds, **fields)  # type: ignore[arg-type]
