"""Findings of a measured cell: every mode against target-only, and sliding against the best stop-and-wait window.

Invariant: each ratio compares answers to the same prompts in the same cell. A speed above 1 is faster than the base.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.harness.latency import acceptance_of, guesses_per_token
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio, compare
from benchmarks.policies.measure import CellResult
from benchmarks.policies.plan import ADAPTIVE, SLIDING_FREE, TARGET_ONLY, cell_name, stop_and_wait_mode
from benchmarks.policies.rounds import BenchRound, figures, is_whole, of_modes, ratio, time_per_token, ttft_ms

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
    guesses_per_token: float | None = None  # None: of a run that did not count them
    num_rounds: int | None = None  # fewer than the cell's: it left the race; None: all of them


@dataclass(frozen=True, slots=True)
class CellFinding:
    """One cell; without modes if requests failed. Modes are compared in its `num_rounds` first rounds.

    `against_best` and `in_steps` are of sliding with free running, if it was measured. `best_rival` is the fastest
    mode of a race but *adaptive*, target-only included; `num_final` further rounds compare the two.
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
    num_final: int = 0

    @property
    def name(self) -> str:
        """CellSpec.name of the cell."""
        return cell_name(self.draft, self.rtt_ms, self.num_sessions, self.num_drafters)

    def of(self, mode: str) -> ModeFinding | None:
        return next((finding for finding in self.modes if finding.mode == mode), None)


def find(result: CellResult, seed: int = 1) -> CellFinding:
    """Computes all ratios of a cell."""
    load = (result.rtt_ms, result.num_sessions, result.num_drafters)
    rounds, base = result.rounds[: result.num_race], TARGET_ONLY.name
    place = (result.draft, result.standin, *load, len(rounds), result.complaints, result.origin)
    if not is_whole(result.rounds):
        return CellFinding(*place, modes=[], best_stop_and_wait=None, against_best=None, in_steps=None)
    modes = [_mode_finding(of_modes(rounds, mode), mode, base, seed) for mode in result.modes]
    waiting = [finding for finding in modes if finding.mode.startswith(STOP_AND_WAIT_PREFIX)]
    best = max(waiting, key=lambda finding: finding.speed.value, default=None)
    against_best, in_steps = None, None
    if SLIDING_FREE.name in result.modes:
        own = of_modes(rounds, SLIDING_FREE.name)
        sliding = figures(own, SLIDING_FREE.name, time_per_token)
        steps = np.array([each.draft_ms[SLIDING_FREE.name] for each in own])
        in_steps = compare(sliding, np.broadcast_to(steps[:, None], sliding.shape), seed=seed)
        against_best = ratio(rounds, best.mode, SLIDING_FREE.name, seed=seed) if best else None
    found = CellFinding(*place, modes, best.mode if best else None, against_best, in_steps)
    if result.num_race is None:
        return found
    final = result.rounds[result.num_race :]
    (rival,) = set(final[0].samples) - {ADAPTIVE.name}
    against_rival = ratio(final, rival, ADAPTIVE.name, seed=seed)
    return replace(found, best_rival=rival, against_rival=against_rival, num_final=len(final))


def _mode_finding(rounds: Sequence[BenchRound], mode: str, base: str, seed: int) -> ModeFinding:
    """`rounds`: those of this mode."""
    samples = [sample for each in rounds for sample in each.samples[mode]]
    return ModeFinding(
        mode,
        tpot_ms=float(np.median(figures(rounds, mode, time_per_token))),
        ttft_ms=float(np.median(figures(rounds, mode, ttft_ms))),
        tokens_per_s=throughput(rounds, mode),
        speed=ratio(rounds, base, mode, seed=seed),
        ttft=ratio(rounds, mode, base, ttft_ms, seed=seed),
        acceptance=acceptance_of(samples),
        guesses_per_token=guesses_per_token(samples),
        num_rounds=len(rounds),
    )


def throughput(rounds: Sequence[BenchRound], mode: str) -> float:
    """Tokens per second of all sessions of a round together."""
    samples = [each.samples[mode] for each in rounds]
    num_tokens = sum(sample.num_tokens for each in samples for sample in each)
    return num_tokens / sum(max(sample.due_s + sample.total_s for sample in each) for each in samples)
