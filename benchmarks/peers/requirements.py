"""What DSD must reach against its peers, checked cell by cell. Pure.

Invariant: a limit is met if the interval's unfavourable end reaches it. If only the value does, that is said; if only
the other end does, it is open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.harness.paired import Ratio
from benchmarks.peers.cells import LONG
from benchmarks.peers.findings import SPEED, TTFT, CellFigures, Measure
from benchmarks.peers.systems import ON_VLLM_PLAIN, VLLM, VLLM_ONE

LEAST_ALONE, LEAST_EIGHT = 1.0, 0.97  # of the best peer's speed
AIM_ALONE, AIM_EIGHT = "1.2, then 1.6", "1.25"
MAX_TTFT, MAX_TTFT_TO_PLAIN = 1.15, 1.10  # of vLLM's own server; of target-only's
LEAST_SIXTEEN = 0.97  # target-only on vLLM to vLLM's own server


@dataclass(frozen=True, slots=True)
class Check:
    """A requirement in a cell."""

    what: str
    cell: str
    ratio: Ratio
    limit: float
    is_least: bool
    aim: str = ""

    @property
    def verdict(self) -> str:
        worst, best = (self.ratio.low, self.ratio.high) if self.is_least else (self.ratio.high, self.ratio.low)
        if self._holds(worst):
            return "yes"
        if self._holds(self.ratio.value):
            return "yes, its interval does not"
        return "**open**" if self._holds(best) else "**no**"

    def _holds(self, value: float) -> bool:
        return value >= self.limit if self.is_least else value <= self.limit


def checks(found: CellFigures) -> Iterator[Check]:
    cell = found.cell
    drafts = found.named(lambda each: each.engine == "vllm" and each.draft is not None)
    ours, peer = found.best(SPEED, drafts), found.best_peer(SPEED)
    if cell.rtt_ms == 0 and ours and peer and cell.num_clients in (1, 8):
        least, aim = (LEAST_ALONE, AIM_ALONE) if cell.num_clients == 1 else (LEAST_EIGHT, AIM_EIGHT)
        yield _check(found, SPEED, ours, peer, least, aim)
    llama = found.best(SPEED, found.named(lambda each: each.name.startswith("llama.cpp")))
    fastest = found.best_of_ours()
    if cell.num_clients >= 4 and llama and fastest:
        yield _check(found, SPEED, fastest, llama, 1.0)
    plain = _plain_vllm(found, SPEED)
    if cell.num_clients == 16 and plain and _has(found, ON_VLLM_PLAIN):
        yield _check(found, SPEED, ON_VLLM_PLAIN, plain, LEAST_SIXTEEN)
    plain = _plain_vllm(found, TTFT)
    if cell.rtt_ms == 0 and cell.temperature == 0 and plain:
        for way in filter(None, (ours, ON_VLLM_PLAIN if _has(found, ON_VLLM_PLAIN) else None)):
            yield _check(found, TTFT, way, plain, MAX_TTFT)
    if cell.prompt_tokens == LONG:
        for system in found.result.systems:
            if system.draft and system.plain and _has(found, system.plain):
                yield _check(found, TTFT, system.name, system.plain, MAX_TTFT_TO_PLAIN)


def _plain_vllm(found: CellFigures, measure: Measure) -> str | None:
    """vLLM's own server, on one core or on both, whichever is better: the verifier's passes have one or both."""
    return found.best(measure, found.named(lambda each: each.name in (VLLM, VLLM_ONE)))


def _has(found: CellFigures, name: str) -> bool:
    return bool(found.named(lambda each: each.name == name))


def _check(found: CellFigures, measure: Measure, ours: str, theirs: str, limit: float, aim: str = "") -> Check:
    ratio = found.ratio(measure, ours, theirs)
    return Check(f"{measure.name}: {ours} / {theirs}", found.cell.name, ratio, limit, measure.is_better_high, aim)
