"""The interface of window policies: a `PairReport` of a drafter-verifier pair in, a `WindowChoice` out.

Invariant: every `WindowChoice` is valid to send: a window of 0…MAX_WINDOW tokens and a chunk that fits it. A policy is
pure: no I/O, no clock, random numbers from a fixed seed only. Equal reports in equal order give equal choices, in the
controller and in DSD-Sim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from shared.protocol.messages import MAX_TOKENS, MAX_WINDOW, PairReport

# Upper bounds of what a working drafter reports of one pair.
MAX_JUDGED = 1 << 16  # guesses between two reports
MAX_SESSIONS = 1 << 12
MAX_BATCH = 1 << 16  # sessions of a pass
LONGEST_MS = 3_600_000.0


@dataclass(frozen=True, slots=True)
class WindowChoice:
    """How far a drafter may run ahead of one verifier. Raises ValueError when out of bounds."""

    window: int  # guesses without a verdict, at most; 0: target-only
    chunk: int  # guesses sent together
    free_run: bool  # the verifier decodes alone while it has no guesses
    min_confidence: float = 0.0  # a guess below it ends its window until it has a verdict

    def __post_init__(self) -> None:
        if not 0 <= self.window <= MAX_WINDOW:
            raise ValueError(f"window must be 0 to {MAX_WINDOW}, got {self.window}")
        if not 1 <= self.chunk <= max(self.window, 1):
            raise ValueError(
                f"chunk must be 1 to {max(self.window, 1)} with a window of {self.window}, got {self.chunk}"
            )
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence must be 0 to 1, got {self.min_confidence}")

    @property
    def is_stop_and_wait(self) -> bool:
        """Whether each window is sent whole and then awaited, the scheme of arXiv 2511.21669."""
        return not self.free_run and self.chunk == self.window

    def with_window(self, window: int) -> WindowChoice:
        """This choice with another window. Stop-and-wait stays stop-and-wait; otherwise the chunk shrinks to fit."""
        if window == 0:
            return replace(self, window=0, chunk=1, free_run=True)
        return replace(self, window=window, chunk=window if self.is_stop_and_wait else min(self.chunk, window))


DEFAULT_CHOICE = WindowChoice(window=8, chunk=2, free_run=True)  # without a controller


class PairControl(Protocol):
    """The policy's state of one pair."""

    def decide(self, seen: PairReport) -> WindowChoice:
        """The choice after one more report of this pair."""
        ...


class WindowPolicy(Protocol):
    """Chooses windows. Decisions and metrics carry its `name`."""

    @property
    def name(self) -> str: ...

    def for_pair(self) -> PairControl:
        """Fresh state for a new pair."""
        ...


def is_plausible(seen: PairReport) -> bool:
    """Whether a working drafter can have sent these figures; policies get no others."""
    return (
        seen.drafted <= MAX_JUDGED
        and seen.matched + seen.mismatched <= MAX_JUDGED
        and seen.late <= MAX_JUDGED
        and seen.discarded <= MAX_JUDGED
        and seen.num_sessions <= MAX_SESSIONS
        and seen.batch <= MAX_BATCH
        and seen.context <= MAX_TOKENS
        and seen.pass_tokens <= MAX_TOKENS
        and seen.draft_ms <= LONGEST_MS
        and seen.rtt_ms <= LONGEST_MS
        and seen.tpot_ms <= LONGEST_MS
        and seen.pass_ms <= LONGEST_MS
    )


def decide_all(policy: WindowPolicy, pairs: Sequence[PairControl], reports: Sequence[PairReport]) -> list[WindowChoice]:
    """What each pair of one policy decides on its report. No pair occurs twice. A policy with a `decide_all` method
    decides on all at once, for less time per pair. Raises TypeError for a decision that is no choice."""
    if not pairs:
        return []
    together = getattr(policy, "decide_all", None)
    if together is not None:
        choices: list[WindowChoice] = together(pairs, reports)
    else:
        choices = [pair.decide(seen) for pair, seen in zip(pairs, reports, strict=True)]
    for choice in choices:
        if type(choice) is not WindowChoice:
            raise TypeError(f"policy {policy.name}: decide() must return a WindowChoice, got {choice!r}")
    return choices
