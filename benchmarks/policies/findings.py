"""Findings of a measured cell: every mode against target-only, and sliding against the best stop-and-wait window.

Invariant: each ratio compares answers to the same prompts in the same cell. A speed above 1 is faster than the base.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from benchmarks.harness.latency import OK, RequestSample, acceptance_of, guesses_per_token
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Figures, Ratio, compare
from benchmarks.policies.measure import CellResult
from benchmarks.policies.plan import ADAPTIVE, LIVE_POLICIES, SLIDING_FREE, TARGET_ONLY, cell_name, stop_and_wait_mode

SampleFigure: TypeAlias = Callable[[RequestSample], float | None]
STOP_AND_WAIT_PREFIX = stop_and_wait_mode(1).name.rstrip("1")


@dataclass(frozen=True, slots=True)
class ModeFinding:
    """One mode in one cell."""

    mode: str
    tpot_ms: float  # median
    ttft_ms: float  # median
    tokens_per_s: float  # of all sessions, mean over rounds
    speed: Ratio  # time per token: target-only / this mode
    ttft: Ratio  # this mode / target-only
    acceptance: float | None
    guesses_per_token: float


@dataclass(frozen=True, slots=True)
class CellFinding:
    """One cell; without modes if requests failed.

    `against_best` and `in_steps` are of sliding with free running, if it was measured. `best_rival` is the fastest
    mode but *adaptive*, target-only included, if policies were compared.
    """

    draft: str
    standin: str  # empty: real models
    rtt_ms: int
    num_sessions: int
    num_drafters: int
    num_rounds: int
    complaints: list[str]
    origin: Origin
    modes: list[ModeFinding]
    best_stop_and_wait: str | None
    against_best: Ratio | None  # speed against the best stop-and-wait window
    in_steps: Ratio | None  # TPOT / draft step time
    best_rival: str | None = None
    against_rival: Ratio | None = None  # speed of adaptive against it

    @property
    def name(self) -> str:
        """CellSpec.name of the cell."""
        return cell_name(self.draft, self.rtt_ms, self.num_sessions, self.num_drafters)

    def of(self, mode: str) -> ModeFinding | None:
        return next((finding for finding in self.modes if finding.mode == mode), None)


def find(result: CellResult, seed: int = 1) -> CellFinding:
    """Computes all ratios of a cell."""
    load = (result.rtt_ms, result.num_sessions, result.num_drafters)
    place = (result.draft, result.standin, *load, len(result.rounds), result.complaints, result.origin)
    if not is_whole(result):
        return CellFinding(*place, modes=[], best_stop_and_wait=None, against_best=None, in_steps=None)
    tpot = {mode: figures(result, mode, time_per_token) for mode in result.modes}
    ttft = {mode: figures(result, mode, lambda sample: sample.ttft_ms) for mode in result.modes}
    base = TARGET_ONLY.name
    samples = {mode: [sample for each in result.rounds for sample in each.samples[mode]] for mode in result.modes}
    modes = [
        ModeFinding(
            mode,
            tpot_ms=float(np.median(tpot[mode])),
            ttft_ms=float(np.median(ttft[mode])),
            tokens_per_s=throughput(result, mode),
            speed=compare(tpot[base], tpot[mode], seed=seed),
            ttft=compare(ttft[mode], ttft[base], seed=seed),
            acceptance=acceptance_of(samples[mode]),
            guesses_per_token=guesses_per_token(samples[mode]),
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
    rival = _best_rival(modes)
    against_rival = compare(tpot[rival], tpot[ADAPTIVE.name], seed=seed) if rival else None
    return CellFinding(*place, modes, best.mode if best else None, against_best, in_steps, rival, against_rival)


def _best_rival(modes: Sequence[ModeFinding]) -> str | None:
    """None where other policies than the default were not measured."""
    if not {ADAPTIVE.name, *LIVE_POLICIES} <= {each.mode for each in modes}:
        return None
    return max((each for each in modes if each.mode != ADAPTIVE.name), key=lambda each: each.speed.value).mode


def is_whole(result: CellResult) -> bool:
    """Whether every answer is complete and has a token."""
    samples = (sample for each in result.rounds for mode in each.samples.values() for sample in mode)
    return all(sample.status == OK and sample.num_tokens > 0 for sample in samples)


def time_per_token(sample: RequestSample) -> float | None:
    """TPOT, or total time / tokens of an answer that came as one event."""
    return sample.tpot_ms or (sample.total_s * 1e3 / sample.num_tokens if sample.num_tokens else None)


def figures(result: CellResult, mode: str, figure: SampleFigure) -> Figures:
    """A figure of every sample of a mode, [rounds, sessions]."""
    return np.array([[figure(sample) for sample in each.samples[mode]] for each in result.rounds], dtype=np.float64)


def throughput(result: CellResult, mode: str) -> float:
    """Tokens per second of all sessions of a round together."""
    rounds = [each.samples[mode] for each in result.rounds]
    num_tokens = sum(sample.num_tokens for samples in rounds for sample in samples)
    return num_tokens / sum(max(sample.due_s + sample.total_s for sample in samples) for samples in rounds)
