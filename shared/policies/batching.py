"""Which guesses a verify pass buys: pure policy objects, shared by the verifier and DSD-Sim.

Invariant: no prompt and no guess delays the token of a session that decodes. Prompts share at least half of what is
left, by the highest response ratio next (Brinch Hansen 1971): the time that a session has waited / the tokens that it
waits for. Guesses are bought in the order of their survival probability, and as many as maximise the expected tokens
per millisecond of the pass (after the goodput of TurboSpec, arXiv 2406.14066, and the selection of TETRIS, arXiv
2502.15197; docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HINGES = (8, 32, 128)  # fed tokens above which the cost of one more may change
LEAST_MS = 0.01  # lower bound of a predicted pass
LIKELY = 0.5  # survival probability above which a guess goes before prompts


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
    """A ready session as the batcher sees it. num_todo: committed tokens not computed yet: 1 while it
    decodes, more for a prompt and behind tokens that a grammar forced, which count as one."""

    num_todo: int
    chances: Sequence[float]  # of each guess, that it and all before it are accepted
    cached_tokens: int
    waited_ms: float  # since the session was opened


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
    chances: NDArray[np.float64],
    cached_tokens: NDArray[np.int64],
    waited_ms: NDArray[np.float64],
    token_budget: int,
    prefill_chunk: int,
    weights: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of each candidate's first row, and number of guesses bought for it; with a row of 0 it has no part.

    Arrays [candidates] hold the fields of `BatchCandidate`, oldest session first; chances: [guesses], those of each
    candidate one after the other, which never rise; weights: as `pass_ms` takes them.
    Only arrays and numbers, so that DSD-Sim can compile these very lines.
    """
    rows = np.zeros_like(num_todo)
    rows[np.flatnonzero(num_todo == 1)[:token_budget]] = 1
    owners = np.repeat(np.arange(len(rows)), num_guesses)
    left = token_budget - rows.sum()
    kept = min((chances[rows[owners] == 1] > LIKELY).sum(), left // 2)
    waiting = np.flatnonzero(num_todo > 1)
    most = prefill_chunk if len(waiting) < len(rows) else token_budget
    for k in np.argsort(-waited_ms[waiting] / num_todo[waiting], kind="mergesort"):  # stable: oldest first in a tie
        i = waiting[k]
        rows[i] = min(num_todo[i], most, left - kept)
        left -= rows[i]
    draws = rows == num_todo
    gains, owners = chances[draws[owners]], owners[draws[owners]]
    order = np.argsort(-gains, kind="mergesort")[:left]
    expected = np.empty(len(order) + 1)
    expected[0] = draws.sum()
    expected[1:] = expected[0] + np.cumsum(gains[order])
    num_tokens = np.arange(len(order) + 1) + rows.sum()
    times = pass_ms(weights, (rows > 0).sum(), num_tokens, cached_tokens[rows > 0].sum())
    times[0] = max(times[0], LEAST_MS)
    for k in range(1, len(times)):
        times[k] = max(times[k], times[k - 1])
    bought = np.zeros_like(rows)
    for k in order[: np.argmax(expected / times)]:
        bought[owners[k]] += 1
    return rows, bought


class Batcher:
    """Forms passes within a token budget. Beside sessions that decode, a prompt gets at most `prefill_chunk` tokens."""

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
            np.array([len(c.chances) for c in candidates], np.int64),
            np.array([chance for c in candidates for chance in c.chances], np.float64),
            np.array([c.cached_tokens for c in candidates], np.int64),
            np.array([c.waited_ms for c in candidates], np.float64),
            self.token_budget,
            self._prefill_chunk,
            self._cost.weights,
        )
        shares = zip(rows.tolist(), bought.tolist(), strict=True)
        return [Share(i, row + n, n) for i, (row, n) in enumerate(shares) if row]
