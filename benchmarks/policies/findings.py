"""What measured cells come to: every mode against target-only, prompt by prompt, and against the best stop-and-wait.

Invariant: a ratio above 1 means faster than what it is compared with; each is of answers to the same prompts in the
same cell. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from benchmarks.harness.latency import OK, Sample
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Figures, Ratio, compare
from benchmarks.policies.measure import CellResult
from benchmarks.policies.plan import SLIDING_FREE, TARGET_ONLY, cell_name, stop_and_wait

Figure: TypeAlias = Callable[[Sample], float | None]
STOP_AND_WAIT_PREFIX = stop_and_wait(1).name.rstrip("1")


@dataclass(frozen=True, slots=True)
class ModeFinding:
    """One mode in one cell."""

    mode: str
    tpot_ms: float  # medians
    ttft_ms: float
    tokens_per_s: float  # of all sessions together, mean over rounds
    speed: Ratio  # of times per token: target-only's / ours
    ttft: Ratio  # ours / target-only's
    acceptance: float | None


@dataclass(frozen=True, slots=True)
class CellFinding:
    """One cell; without modes where requests failed. Of sliding with free running, where it was measured:
    `against_best` its speed against the best stop-and-wait window, `in_steps` its TPOT in steps of its drafter."""

    draft: str
    standin: str  # which; empty: the real models
    rtt_ms: int
    num_sessions: int
    num_drafters: int
    num_rounds: int
    complaints: list[str]
    origin: Origin
    modes: list[ModeFinding]
    best_stop_and_wait: str | None
    against_best: Ratio | None
    in_steps: Ratio | None

    @property
    def name(self) -> str:
        """That of its cell (CellSpec)."""
        return cell_name(self.draft, self.rtt_ms, self.num_sessions, self.num_drafters)

    def of(self, mode: str) -> ModeFinding | None:
        return next((finding for finding in self.modes if finding.mode == mode), None)


def find(result: CellResult, seed: int = 1) -> CellFinding:
    """All ratios of a cell."""
    load = (result.rtt_ms, result.num_sessions, result.num_drafters)
    place = (result.draft, result.standin, *load, len(result.rounds), result.complaints, result.origin)
    if not is_whole(result):
        return CellFinding(*place, modes=[], best_stop_and_wait=None, against_best=None, in_steps=None)
    tpot = {mode: figures(result, mode, time_per_token) for mode in result.modes}
    ttft = {mode: figures(result, mode, lambda sample: sample.ttft_ms) for mode in result.modes}
    base = TARGET_ONLY.name
    modes = [
        ModeFinding(
            mode,
            tpot_ms=float(np.median(tpot[mode])),
            ttft_ms=float(np.median(ttft[mode])),
            tokens_per_s=throughput(result, mode),
            speed=compare(tpot[base], tpot[mode], seed=seed),
            ttft=compare(ttft[mode], ttft[base], seed=seed),
            acceptance=acceptance(result, mode),
        )
        for mode in result.modes
    ]
    waiting = [finding for finding in modes if finding.mode.startswith(STOP_AND_WAIT_PREFIX)]
    best = max(waiting, key=lambda finding: finding.speed.value, default=None)
    sliding, against_best, in_steps = tpot.get(SLIDING_FREE.name), None, None
    if sliding is not None:
        steps = np.array([each.draft_ms[SLIDING_FREE.name] for each in result.rounds])
        in_steps = compare(sliding, np.broadcast_to(steps[:, None], sliding.shape), seed=seed)
        against_best = compare(tpot[best.mode], sliding, seed=seed) if best else None
    return CellFinding(*place, modes, best.mode if best else None, against_best, in_steps)


def is_whole(result: CellResult) -> bool:
    """Whether every answer came, with a token at least."""
    samples = (sample for each in result.rounds for mode in each.samples.values() for sample in mode)
    return all(sample.status == OK and sample.num_tokens > 0 for sample in samples)


def time_per_token(sample: Sample) -> float | None:
    """TPOT; of an answer that came at once, its whole time shared by its tokens."""
    return sample.tpot_ms or (sample.total_s * 1e3 / sample.num_tokens if sample.num_tokens else None)


def figures(result: CellResult, mode: str, figure: Figure) -> Figures:
    """[rounds, sessions] of a whole result."""
    return np.array([[figure(sample) for sample in each.samples[mode]] for each in result.rounds], dtype=np.float64)


def throughput(result: CellResult, mode: str) -> float:
    """Tokens per second while a round's sessions run at once."""
    rounds = [each.samples[mode] for each in result.rounds]
    num_tokens = sum(sample.num_tokens for samples in rounds for sample in samples)
    return num_tokens / sum(max(sample.due_s + sample.total_s for sample in samples) for samples in rounds)


def acceptance(result: CellResult, mode: str) -> float | None:
    samples: Sequence[Sample] = [sample for each in result.rounds for sample in each.samples[mode]]
    right, wrong = sum(s.accepted + s.late for s in samples), sum(s.rejected for s in samples)
    return right / (right + wrong) if right + wrong else None
