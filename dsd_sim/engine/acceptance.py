"""Whether a draft's guesses are right: models of acceptance, and replay of recordings.

For every token of an answer there is one truth, "would the guess for it be right, given the right text before it", and
one confidence, the draft's own probability of that guess. Guesses behind a wrong one are wrong whatever is said here.

Invariant: both are drawn once per request, so a token that is drafted again is right or wrong again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Acceptance(Protocol):
    def fill(self, right: NDArray[np.bool_], confidence: NDArray[np.float32], rng: np.random.Generator) -> None:
        """Draws both arrays [tokens] of one request."""
        ...


@dataclass(frozen=True, slots=True)
class Independent:
    """Every guess is right with the same probability, and the confidence is that probability."""

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"an acceptance rate of {self.rate} must be 0 to 1")

    def fill(self, right: NDArray[np.bool_], confidence: NDArray[np.float32], rng: np.random.Generator) -> None:
        np.less(rng.random(len(right), np.float32), self.rate, out=right)
        confidence[:] = self.rate


@dataclass(frozen=True, slots=True)
class ByPosition:
    """The first tokens of an answer have rates of their own; the last rate holds for all that follow."""

    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rates or not all(0 <= rate <= 1 for rate in self.rates):
            raise ValueError(f"acceptance rates {self.rates} must be at least one, each 0 to 1")

    def fill(self, right: NDArray[np.bool_], confidence: NDArray[np.float32], rng: np.random.Generator) -> None:
        confidence[:] = self.rates[-1]
        num = min(len(self.rates), len(confidence))
        confidence[:num] = self.rates[:num]
        np.less(rng.random(len(right), np.float32), confidence, out=right)


@dataclass(frozen=True, slots=True)
class Markov:
    """Easy and hard stretches: two states, each with a rate, that change after a token with some probability."""

    easy: float
    hard: float
    to_hard: float  # probability to leave an easy stretch after a token
    to_easy: float

    def __post_init__(self) -> None:
        for name in ("easy", "hard", "to_hard", "to_easy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be 0 to 1")
        if self.to_hard + self.to_easy == 0:
            raise ValueError("to_hard and to_easy are both 0: the stretches would never change")

    def fill(self, right: NDArray[np.bool_], confidence: NDArray[np.float32], rng: np.random.Generator) -> None:
        is_easy = rng.random() < self.to_easy / (self.to_easy + self.to_hard)
        start = 0
        while start < len(right):
            leave = self.to_hard if is_easy else self.to_easy
            end = len(right) if leave == 0 else min(len(right), start + int(rng.geometric(leave)))
            confidence[start:end] = self.easy if is_easy else self.hard
            start, is_easy = end, not is_easy
        np.less(rng.random(len(right), np.float32), confidence, out=right)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a real pair: for each token whether the draft guessed it, and its probability of the guess."""

    right: NDArray[np.bool_]
    confidence: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Replay:
    """Recorded answers; each request replays one drawn at random, from its start, round and round."""

    answers: tuple[Answer, ...]

    def __post_init__(self) -> None:
        if not self.answers or not all(len(answer.right) for answer in self.answers):
            raise ValueError("there must be answers, each of at least one token")

    def fill(self, right: NDArray[np.bool_], confidence: NDArray[np.float32], rng: np.random.Generator) -> None:
        answer = self.answers[int(rng.integers(len(self.answers)))]
        right[:] = np.resize(answer.right, len(right))
        confidence[:] = np.resize(answer.confidence, len(confidence))
