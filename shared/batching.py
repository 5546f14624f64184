"""Which guesses a verify pass buys: pure policy objects, shared by the verifier and DSD-Sim.

Invariant: every ready session gets its first row, oldest first, before any guess is bought; guesses are added in the
order of their survival probability and only as many as maximise the expected tokens per millisecond of the pass
(idea of TurboSpec's goodput, arXiv 2406.14066, and of TETRIS' selection, arXiv 2502.15197; docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Survival:
    """One session's probability that its next guess equals the target's token, from what was compared so far.

    A Beta estimate with forgetting: `memory` comparisons weigh in, and the prior counts as `prior_weight` of them.
    """

    prior: float = 0.7
    prior_weight: float = 4.0
    memory: float = 32.0
    matches: float = 0.0
    comparisons: float = 0.0

    def observe(self, num_matched: int, *, mismatched: bool) -> None:
        """`num_matched` guesses in a row equalled the target's tokens, then one did not (if `mismatched`)."""
        num = num_matched + mismatched
        keep = (1 - 1 / self.memory) ** num
        self.matches = self.matches * keep + num_matched
        self.comparisons = self.comparisons * keep + num

    @property
    def probability(self) -> float:
        return (self.matches + self.prior * self.prior_weight) / (self.comparisons + self.prior_weight)


class PassCost:
    """Milliseconds of a pass, fitted online by least squares over past passes, old ones fading, with a weak prior.

    Features: 1, sessions, fed tokens, their excess over each hinge, thousands of cached tokens read. Predictions never
    fall when fed tokens are added. Units: milliseconds, tokens.
    """

    HINGES = (8, 32, 128)
    PRIOR = (10.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.5)

    def __init__(self, forgetting: float = 0.995, prior_weight: float = 1e-3) -> None:
        self._forgetting = forgetting
        self._ridge = prior_weight * np.eye(len(self.PRIOR))
        self._squares = np.zeros_like(self._ridge)
        self._products = np.zeros(len(self.PRIOR))
        self._weights = np.array(self.PRIOR)

    @classmethod
    def _features(cls, num_sessions: int, num_tokens: int, cached_tokens: int) -> NDArray[np.float64]:
        excess = [max(0, num_tokens - hinge) for hinge in cls.HINGES]
        return np.array([1.0, num_sessions, num_tokens, *excess, cached_tokens / 1000])

    def observe(self, num_sessions: int, num_tokens: int, cached_tokens: int, elapsed_ms: float) -> None:
        """Learns from one pass; errors count relative to its time, so that long prefills don't rule."""
        scale = 1 / max(1e-3, elapsed_ms)
        x = self._features(num_sessions, num_tokens, cached_tokens) * scale
        self._squares = self._forgetting * self._squares + np.outer(x, x)
        self._products = self._forgetting * self._products + x * (elapsed_ms * scale)
        target = self._products + self._ridge @ np.array(self.PRIOR)
        self._weights = np.linalg.solve(self._squares + self._ridge, target)

    @property
    def prefill_ms(self) -> float:
        """Milliseconds of one more token in a long prompt chunk, at least 0."""
        short, long = self.predict(1, [64, 65], 0)
        return float(long - short)

    def predict(self, num_sessions: int, num_tokens: Sequence[int], cached_tokens: int) -> NDArray[np.float64]:
        """Milliseconds of passes over each of the ascending counts `num_tokens`: [len(num_tokens)], at least 0.01."""
        x = np.array([self._features(num_sessions, n, cached_tokens) for n in num_tokens])
        return np.maximum.accumulate(np.maximum(x @ self._weights, 0.01))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A ready session as the batcher sees it. `num_todo`: committed tokens not computed yet (1 when only decoding)."""

    num_todo: int
    num_guesses: int
    probability: float  # that one guess survives, given that all before it did
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a candidate gets in the next pass: at most `max_tokens` fed tokens, `max_guesses` of them guesses."""

    index: int
    max_tokens: int
    max_guesses: int


class Batcher:
    """Forms passes under one token budget; prompts go in chunks of at most `prefill_chunk` tokens a session."""

    def __init__(self, token_budget: int, prefill_chunk: int, cost: PassCost) -> None:
        if token_budget < 1 or prefill_chunk < 1:
            raise ValueError(f"token budget {token_budget} and prefill chunk {prefill_chunk} must be positive")
        self.token_budget = token_budget
        self._prefill_chunk = prefill_chunk
        self._cost = cost

    def form(self, candidates: Sequence[Candidate]) -> list[Share]:
        """Shares of the next pass for `candidates` in order of their age, oldest first."""
        rows, left = self._first_rows(candidates)
        drafts = [(i, c) for i, c in enumerate(candidates[: len(rows)]) if c.num_guesses and rows[i] == c.num_todo]
        offers = sorted(
            ((-(c.probability**depth), i) for i, c in drafts for depth in range(1, c.num_guesses + 1)),
        )[:left]
        num_bought = self._num_worth([-gain for gain, _ in offers], candidates[: len(rows)], rows)
        bought = [0] * len(rows)
        for _, i in offers[:num_bought]:
            bought[i] += 1
        return [Share(i, rows[i] + bought[i], bought[i]) for i in range(len(rows))]

    def _first_rows(self, candidates: Sequence[Candidate]) -> tuple[list[int], int]:
        """Tokens of every candidate's first row within the budget, one reserved for each, and what is left."""
        left = self.token_budget
        rows: list[int] = []
        for later, candidate in enumerate(candidates, start=1):
            if left < 1:
                break
            reserved = min(left - 1, len(candidates) - later)
            rows.append(min(candidate.num_todo, self._prefill_chunk, left - reserved))
            left -= rows[-1]
        return rows, left

    def _num_worth(self, gains: list[float], candidates: Sequence[Candidate], rows: list[int]) -> int:
        """How many of the offered guesses, best first, maximise the expected tokens per millisecond."""
        if not gains:
            return 0
        num_draws = sum(rows[i] == c.num_todo for i, c in enumerate(candidates))
        expected = num_draws + np.concatenate(([0.0], np.cumsum(gains)))
        first = sum(rows)
        cached = sum(c.cached_tokens for c in candidates)
        times = self._cost.predict(len(rows), range(first, first + len(gains) + 1), cached)
        return int(np.argmax(expected / times))
