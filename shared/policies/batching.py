"""Which guesses a verify pass buys: pure policy objects, shared by the verifier and DSD-Sim.

Invariant: every ready session gets its first row, oldest first, before any guess is bought. Guesses are bought in the
order of their survival probability, and as many as maximise the expected tokens per millisecond of the pass (after the
goodput of TurboSpec, arXiv 2406.14066, and the selection of TETRIS, arXiv 2502.15197; docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HINGES = (8, 32, 128)  # fed tokens above which the cost of one more may change
LEAST_MS = 0.01  # lower bound of a predicted pass


def pass_ms(weights: Any, num_sessions: int, num_tokens: Any, cached_tokens: int) -> Any:
    """Milliseconds of a pass: the weighted sum of its features. Weights fitted to noise may give less than 0.

        weights[0]      1
        weights[1]      sessions
        weights[2]      fed tokens
        weights[3…5]    fed tokens above each hinge
        weights[6]      thousands of cached tokens read

    num_tokens: a number or an array; the result has its shape. DSD-Sim compiles these very lines.
    """
    elapsed = weights[0] + weights[1] * num_sessions + weights[2] * num_tokens + weights[6] * cached_tokens / 1000
    for k in range(len(HINGES)):
        elapsed = elapsed + weights[3 + k] * np.maximum(num_tokens - HINGES[k], 0)
    return elapsed


def pass_features(num_sessions: int, num_tokens: int, cached_tokens: int) -> list[float]:
    """The features of one pass in the order of the weights of `pass_ms`, for fitting them."""
    return [1.0, num_sessions, num_tokens, *(max(0, num_tokens - hinge) for hinge in HINGES), cached_tokens / 1000]


class PassCost:
    """Milliseconds of a pass: weights of `pass_ms`, fitted online by least squares over past passes.

    Old passes fade; a weak prior fills in what they do not show. Predictions never fall as fed tokens grow.
    """

    PRIOR = (10.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.5)

    def __init__(self, forgetting: float = 0.995, prior_weight: float = 1e-3) -> None:
        self._forgetting = forgetting
        self._ridge = prior_weight * np.eye(len(self.PRIOR))
        self._squares = np.zeros_like(self._ridge)
        self._products = np.zeros(len(self.PRIOR))
        self.weights = np.array(self.PRIOR)

    def observe(self, num_sessions: int, num_tokens: int, cached_tokens: int, elapsed_ms: float) -> None:
        """Learns from one pass. Its error counts relative to its time, or long prefills would dominate the fit."""
        scale = 1 / max(1e-3, elapsed_ms)
        x = np.array(pass_features(num_sessions, num_tokens, cached_tokens)) * scale
        self._squares = self._forgetting * self._squares + np.outer(x, x)
        self._products = self._forgetting * self._products + x * (elapsed_ms * scale)
        target = self._products + self._ridge @ np.array(self.PRIOR)
        self.weights = np.linalg.solve(self._squares + self._ridge, target)

    @property
    def prefill_ms(self) -> float:
        """Milliseconds of a further token in a prompt chunk of 64, at least 0."""
        short, long = self.predict(1, [64, 65], 0)
        return float(long - short)

    def predict(self, num_sessions: int, num_tokens: Sequence[int], cached_tokens: int) -> NDArray[np.float64]:
        """Milliseconds of a pass for each of the ascending `num_tokens`: [len(num_tokens)], at least LEAST_MS."""
        times = pass_ms(self.weights, num_sessions, np.array(num_tokens), cached_tokens)
        return np.maximum.accumulate(np.maximum(times, LEAST_MS))


@dataclass(frozen=True, slots=True)
class BatchCandidate:
    """A ready session as the batcher sees it. num_todo: committed tokens not computed yet, 1 while it decodes."""

    num_todo: int
    num_guesses: int
    probability: float  # that a guess is accepted if all before it are
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Share:
    """A candidate's share of the next pass: at most `max_tokens` fed tokens, `max_guesses` of them guesses. The session
    compares one more guess with the pass's last draw, which costs nothing."""

    index: int
    max_tokens: int
    max_guesses: int


def form_pass(
    num_todo: NDArray[np.int64],
    num_guesses: NDArray[np.int64],
    probability: NDArray[np.float64],
    cached_tokens: int,
    token_budget: int,
    prefill_chunk: int,
    weights: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of the first row and number of bought guesses of each candidate that fits into a pass, oldest first.

    Arrays [candidates] hold the fields of `BatchCandidate`; cached_tokens: the sum over all candidates; weights: as
    `pass_ms` takes them. Only arrays and numbers, so that DSD-Sim can compile these very lines.
    """
    left = token_budget
    rows = np.minimum(num_todo[:token_budget], prefill_chunk)
    bought = np.zeros_like(rows)
    num_offers = num_draws = 0
    for i in range(len(rows)):
        reserved = min(left - 1, len(num_todo) - i - 1)  # one token for each candidate that follows
        rows[i] = min(rows[i], left - reserved)
        left -= rows[i]
        if rows[i] == num_todo[i]:
            num_draws += 1
            num_offers += num_guesses[i]
    if num_offers == 0 or left == 0:
        return rows, bought
    gains = np.empty(num_offers)
    owners = np.empty(num_offers, np.int64)
    end = 0
    for i in range(len(rows)):
        if rows[i] == num_todo[i]:
            start, end = end, end + num_guesses[i]
            gains[start:end] = probability[i] ** np.arange(1, num_guesses[i] + 1)
            owners[start:end] = i
    order = np.argsort(-gains, kind="mergesort")[:left]  # stable: the oldest session wins a tie
    expected = np.empty(len(order) + 1)
    expected[0] = num_draws
    expected[1:] = num_draws + np.cumsum(gains[order])
    num_tokens = np.arange(len(order) + 1) + rows.sum()
    times = pass_ms(weights, len(rows), num_tokens, cached_tokens)
    times[0] = max(times[0], LEAST_MS)
    for k in range(1, len(times)):
        times[k] = max(times[k], times[k - 1])
    for k in range(np.argmax(expected / times)):
        bought[owners[order[k]]] += 1
    return rows, bought


class Batcher:
    """Forms passes within a token budget. Prompts are computed in chunks of at most `prefill_chunk` tokens."""

    def __init__(self, token_budget: int, prefill_chunk: int, cost: PassCost) -> None:
        if token_budget < 1 or prefill_chunk < 1:
            raise ValueError(
                f"token_budget and prefill_chunk must be at least 1, got {token_budget} and {prefill_chunk}"
            )
        self.token_budget = token_budget
        self._prefill_chunk = prefill_chunk
        self._cost = cost

    def form(self, candidates: Sequence[BatchCandidate]) -> list[Share]:
        """Shares of the next pass; candidates are in the order of their age, oldest first."""
        rows, bought = form_pass(
            np.array([c.num_todo for c in candidates], np.int64),
            np.array([c.num_guesses for c in candidates], np.int64),
            np.array([c.probability for c in candidates], np.float64),
            sum(c.cached_tokens for c in candidates[: self.token_budget]),
            self.token_budget,
            self._prefill_chunk,
            self._cost.weights,
        )
        return [Share(i, row + n, n) for i, (row, n) in enumerate(zip(rows.tolist(), bought.tolist(), strict=True))]
