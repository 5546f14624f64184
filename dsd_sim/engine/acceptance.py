"""Acceptance models: which guesses of a draft are right, drawn at random or replayed from a recording.

A model draws two values for each token of an answer: whether the draft guesses it right when the text before it is
right, and the draft's confidence in that guess. A guess behind a wrong one is always wrong.

Invariant: both values are drawn once per request, so a token that is drafted again has the same outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class AcceptanceModel(Protocol):
    def fill(self, right: NDArray[np.bool_], confidence: NDArray[np.float32], rng: np.random.Generator) -> None:
        """Draws both arrays, [tokens], of one request."""
        ...


@dataclass(frozen=True, slots=True)
class Independent:
    """Every guess is right with probability `rate`, which is also its confidence."""

    rate: float

    def fill(self, right: NDArray[np.bool_], confidence: NDArray[np.float32], rng: np.random.Generator) -> None:
        np.less(rng.random(len(right), np.float32), self.rate, out=right)
        confidence[:] = self.rate


@dataclass(frozen=True, slots=True)
class ByPosition:
    """One rate for each position of an answer; the last rate holds for all positions behind it."""

    rates: tuple[float, ...]

    def fill(self, right: NDArray[np.bool_], confidence: NDArray[np.float32], rng: np.random.Generator) -> None:
        confidence[:] = self.rates[-1]
        num = min(len(self.rates), len(confidence))
        confidence[:num] = self.rates[:num]
        np.less(rng.random(len(right), np.float32), confidence, out=right)


@dataclass(frozen=True, slots=True)
class Markov:
    """A Markov chain of two states, easy and hard, each with its own rate."""

    easy: float
    hard: float
    to_hard: float  # probability of changing from easy to hard after a token
    to_easy: float  # and from hard to easy

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
class RecordedAnswer:
    """An answer of a real pair, [tokens]: whether the draft guessed each token, and its confidence."""

    right: NDArray[np.bool_]
    confidence: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Replay:
    """Each request replays one recorded answer, drawn at random, and starts over where it is too short."""

    answers: tuple[RecordedAnswer, ...]

    def fill(self, right: NDArray[np.bool_], confidence: NDArray[np.float32], rng: np.random.Generator) -> None:
        answer = self.answers[int(rng.integers(len(self.answers)))]
        right[:] = np.resize(answer.right, len(right))
        confidence[:] = np.resize(answer.confidence, len(confidence))
