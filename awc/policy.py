"""What a window policy is: what it sees of a drafter-verifier pair, what it answers, and the choice without one.

Invariant: a `WindowChoice` is always sendable and safe: a window of 0 to MAX_WINDOW tokens, and a chunk that the window
can hold. A policy is pure (no I/O, no clock, no chance but from a fixed seed): equal reports in equal order give equal
choices, in the controller and in the simulator alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shared.protocol.messages import MAX_TOKENS, MAX_WINDOW, PairReport

# No working drafter reports more of one pair: guesses judged between two reports, sessions, sessions of a pass, tokens
# of a context or a pass, milliseconds.
MAX_JUDGED, MAX_SESSIONS, MAX_BATCH, LONGEST_MS = 1 << 16, 1 << 12, 1 << 16, 3_600_000.0


@dataclass(frozen=True, slots=True)
class WindowChoice:
    """How far a drafter may run ahead of one verifier.

    `window` tokens may be unverified, they are sent `chunk` at a time, and with `free_run` the verifier goes on by
    itself while it waits for guesses. A window of 0 is target-only serving. Behind a guess whose confidence is under
    `min_confidence` none is drafted until that one has a verdict. Raises ValueError when out of bounds.
    """

    window: int
    chunk: int
    free_run: bool
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.window <= MAX_WINDOW:
            raise ValueError(f"window {self.window} must be 0 to {MAX_WINDOW}")
        if not 1 <= self.chunk <= max(self.window, 1):
            raise ValueError(f"chunk {self.chunk} must be 1 to {max(self.window, 1)} with a window of {self.window}")
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence {self.min_confidence} must be 0 to 1")

    @property
    def is_stop_and_wait(self) -> bool:
        """Whether a whole window is sent at once and then waited for, the paper's scheme (arXiv 2511.21669)."""
        return not self.free_run and self.chunk == self.window

    def with_window(self, window: int) -> WindowChoice:
        """The same scheme with another window: stop-and-wait stays that; else the chunk, as far as it fits."""
        if window == 0:
            return replace(self, window=0, chunk=1, free_run=True)
        return replace(self, window=window, chunk=window if self.is_stop_and_wait else min(self.chunk, window))


DEFAULT_CHOICE = WindowChoice(window=8, chunk=2, free_run=True)  # until a controller decides, and when none is alive


class PairControl(Protocol):
    """The state of one pair and the choice it leads to; dropped with the pair."""

    def decide(self, seen: PairReport) -> WindowChoice:
        """The choice from now on, after one more report of this pair."""
        ...


class WindowPolicy(Protocol):
    """A way to choose windows. `name` is what decisions and metrics carry."""

    @property
    def name(self) -> str: ...

    def for_pair(self) -> PairControl:
        """Fresh state for a pair that has not been seen before."""
        ...


def is_plausible(seen: PairReport) -> bool:
    """Whether the figures can come from a working drafter; a policy should not be shown others."""
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


class BatchPolicy(WindowPolicy, Protocol):
    """A policy to which many decisions together cost less than one by one."""

    def decide_all(self, pairs: Sequence[Any], reports: Sequence[PairReport]) -> list[WindowChoice]:
        """What each pair would decide alone on its report; no pair comes twice."""
        ...


def decide_all(
    policy: WindowPolicy | BatchPolicy, pairs: Sequence[PairControl], reports: Sequence[PairReport]
) -> list[WindowChoice]:
    """The choices of pairs of one policy, each after one more report of its own."""
    if not pairs:
        return []
    together = getattr(policy, "decide_all", None)
    if together is not None:
        choices: list[WindowChoice] = together(pairs, reports)
        return choices
    return [pair.decide(seen) for pair, seen in zip(pairs, reports, strict=True)]
