"""What the controller knows of every drafter-verifier pair, and the decisions that follow from reports.

Invariant: a report counts once, in order, and only for pairs that are plausible and whose verifier was alive when the
pair began; what is not taken is named to `drop`. There are never more than `max_pairs` pairs, and `expire` leaves none
whose last report is `expiry_s` old. Pure: the time is passed in, in seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from awc.policy import PairControl, WindowChoice, WindowPolicy, is_plausible
from services.window_controller.verifiers import LiveVerifiers
from shared.messages import PairReport, Report, WindowDecision

DropReason: TypeAlias = Literal["foreign", "overflow", "replayed", "implausible", "unknown_verifier", "full"]


class Pair(NamedTuple):
    """A drafter and a verifier that it drafts for."""

    drafter_id: str
    verifier_id: str


@dataclass(slots=True)
class PairState:
    """A pair's policy state, its choice in force, and when it was last reported and announced."""

    control: PairControl
    choice: WindowChoice | None = None
    reported_at: float = -math.inf
    announced_at: float = -math.inf


class PairTable:
    """All pairs."""

    def __init__(
        self,
        policy: WindowPolicy,
        verifiers: LiveVerifiers,
        drop: Callable[[DropReason], None],
        *,
        max_pairs: int,
        expiry_s: float,
        announce_s: float,
    ) -> None:
        self._policy = policy
        self._verifiers = verifiers
        self._drop = drop
        self._max_pairs = max_pairs
        self._expiry_s = expiry_s
        self._announce_s = announce_s
        self._pairs: dict[Pair, PairState] = {}
        self._sequences: dict[str, int] = {}  # newest report of every drafter that has a pair
        self._num_decisions = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def observe(self, report: Report, now: float) -> list[WindowDecision]:
        """Take a report; the decisions to announce now: choices that changed, and those not announced for a while."""
        if report.sequence <= self._sequences.get(report.drafter_id, -1):
            self._drop("replayed")
            return []
        decisions = []
        for seen in report.pairs:
            pair = Pair(report.drafter_id, seen.verifier_id)
            if self._takes(pair, seen, now):
                self._sequences[report.drafter_id] = report.sequence
                state = self._state_of(pair)
                choice, state.reported_at = state.control.decide(seen), now
                if choice != state.choice or self._is_due(state, now):
                    decisions.append(self._decide(pair, state, choice, now))
        return decisions

    def refresh(self, now: float) -> list[WindowDecision]:
        """The decisions not announced for a while."""
        return [
            self._decide(pair, state, state.choice, now)
            for pair, state in self._pairs.items()
            if state.choice is not None and self._is_due(state, now)
        ]

    def expire(self, now: float) -> None:
        """Forget pairs without a report for `expiry_s`, and drafters without a pair."""
        oldest = now - self._expiry_s
        self._pairs = {pair: state for pair, state in self._pairs.items() if state.reported_at > oldest}
        drafter_ids = {pair.drafter_id for pair in self._pairs}
        self._sequences = {name: number for name, number in self._sequences.items() if name in drafter_ids}

    def _takes(self, pair: Pair, seen: PairReport, now: float) -> bool:
        """Whether this part of a report counts."""
        reason: DropReason | None = None
        if not is_plausible(seen):
            reason = "implausible"
        elif pair not in self._pairs and not self._verifiers.is_live(pair.verifier_id, now):
            reason = "unknown_verifier"
        elif pair not in self._pairs and len(self._pairs) >= self._max_pairs:
            reason = "full"
        if reason is not None:
            self._drop(reason)
        return reason is None

    def _state_of(self, pair: Pair) -> PairState:
        if pair not in self._pairs:
            self._pairs[pair] = PairState(self._policy.for_pair())
        return self._pairs[pair]

    def _is_due(self, state: PairState, now: float) -> bool:
        return now - state.announced_at >= self._announce_s

    def _decide(self, pair: Pair, state: PairState, choice: WindowChoice, now: float) -> WindowDecision:
        state.choice, state.announced_at = choice, now
        self._num_decisions += 1
        return WindowDecision(
            drafter_id=pair.drafter_id,
            verifier_id=pair.verifier_id,
            window=choice.window,
            chunk=choice.chunk,
            free_run=choice.free_run,
            policy=self._policy.name,
            sequence=self._num_decisions,
            min_confidence=choice.min_confidence,
        )
