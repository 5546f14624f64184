"""Rounds of a cell: the ratios of its modes, and which modes go on.

Invariant: a ratio of two modes uses only the rounds that both have. Pure.

Modes race: one whose interval ends below 0.97 of the fastest makes no more rounds, so those that may be the best get
more of the time (Maron and Moore, Hoeffding Races, NIPS 1993; here with the intervals of paired.py). Then *adaptive*
meets the fastest of the others in rounds of their own: the best of many figures is better than its mode by chance, and
those rounds had no part in its choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from benchmarks.harness.latency import OK, RequestSample
from benchmarks.harness.paired import NUM_RESAMPLES, Figures, Ratio, compare
from benchmarks.policies.plan import ADAPTIVE, TARGET_ONLY

SampleFigure: TypeAlias = Callable[[RequestSample], float | None]

LEAST_ROUNDS = 5  # before a mode can leave
BEHIND = 0.97  # a mode leaves if the upper end of its speed to the fastest is below
RACE_RESAMPLES = 1000
ALWAYS = (TARGET_ONLY.name, ADAPTIVE.name)  # never leave


@dataclass(frozen=True, slots=True)
class BenchRound:
    """By mode: a sample for each session, and the draft step time when they ended (0: none reported)."""

    samples: dict[str, list[RequestSample]]
    draft_ms: dict[str, float]


def of_modes(rounds: Sequence[BenchRound], *modes: str) -> list[BenchRound]:
    """The rounds in which all these modes took part."""
    return [each for each in rounds if all(mode in each.samples for mode in modes)]


def is_whole(rounds: Sequence[BenchRound]) -> bool:
    """Whether every answer is complete and has a token."""
    samples = (sample for each in rounds for mode in each.samples.values() for sample in mode)
    return all(sample.status == OK and sample.num_tokens > 0 for sample in samples)


def time_per_token(sample: RequestSample) -> float | None:
    """TPOT, or total time / tokens of an answer that came as one event."""
    return sample.tpot_ms or (sample.total_s * 1e3 / sample.num_tokens if sample.num_tokens else None)


def ttft_ms(sample: RequestSample) -> float | None:
    return sample.ttft_ms


def figures(rounds: Sequence[BenchRound], mode: str, figure: SampleFigure) -> Figures:
    """A figure of every sample of a mode that is in all these rounds, [rounds, sessions]."""
    return np.array([[figure(sample) for sample in each.samples[mode]] for each in rounds], dtype=np.float64)


def ratio(
    rounds: Sequence[BenchRound],
    ours: str,
    theirs: str,
    figure: SampleFigure = time_per_token,
    seed: int = 1,
    num_resamples: int = NUM_RESAMPLES,
) -> Ratio:
    """Figure of `ours` / figure of `theirs`."""
    shared = of_modes(rounds, ours, theirs)
    mine, others = figures(shared, ours, figure), figures(shared, theirs, figure)
    return compare(mine, others, seed=seed, num_resamples=num_resamples)


def speed_ratio(rounds: Sequence[BenchRound], ours: str, theirs: str) -> float:
    """Speed of `ours` / speed of `theirs`: the value of `ratio` without an interval, over the rounds of both."""
    shared = of_modes(rounds, ours, theirs)
    mine, others = (np.log(figures(shared, mode, time_per_token)) for mode in (ours, theirs))
    return float(np.exp((others - mine).mean()))


def contenders(rounds: Sequence[BenchRound], modes: Sequence[str]) -> list[str]:
    """Those of `modes`, which took part in every round, that take part in the next; all of them if an answer failed."""
    if len(rounds) < LEAST_ROUNDS or not is_whole(rounds):
        return list(modes)
    fastest = _fastest(rounds, modes)

    def may_win(mode: str) -> bool:
        return ratio(rounds, fastest, mode, num_resamples=RACE_RESAMPLES).high >= BEHIND

    return [mode for mode in modes if mode in ALWAYS or mode == fastest or may_win(mode)]


def best_rival(rounds: Sequence[BenchRound], modes: Sequence[str]) -> str:
    """The fastest of `modes`, which took part in every round, but for *adaptive*."""
    return _fastest(rounds, [mode for mode in modes if mode != ADAPTIVE.name])


def _fastest(rounds: Sequence[BenchRound], modes: Sequence[str]) -> str:
    times = {mode: float(np.log(figures(rounds, mode, time_per_token)).mean()) for mode in modes}
    return min(times, key=times.__getitem__)
