"""Which guesses are right: those of a draft, drawn at random or replayed from a recording, and those from a text.

An acceptance model draws two values for each token of an answer: whether the draft guesses it right when the text
before it is right, and the draft's confidence in that guess. A guess behind a wrong one is always wrong.

Invariant: all values are drawn once per request, so a token that is guessed again has the same outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

OFFERED, RIGHT, MATCH = range(3)  # columns of lookups


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


@dataclass(frozen=True, slots=True)
class TextLookups:
    """The guesses that a verifier looks up in a text (shared/protocol/lookup.py), for each of several texts. A request
    has one of them, drawn at random: with as many texts as a `Replay` has answers, the one with the same number."""

    answers: tuple[NDArray[np.int8], ...]  # [tokens, 3] before each token: guesses, the right ones, and their match

    def fill(self, lookups: NDArray[np.int8], rng: np.random.Generator) -> None:
        """Draws `lookups`, [tokens, 3], of one request."""
        lookups[:] = np.resize(self.answers[int(rng.integers(len(self.answers)))], lookups.shape)
