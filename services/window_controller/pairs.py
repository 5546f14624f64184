"""What the controller knows of every drafter-verifier pair, and the decisions that follow from reports.

Invariant: a report counts once, in order, and only for pairs that are plausible and whose verifier was alive when the
pair began; what is not taken is named to `drop`, and a pair on which the policy fails to `fail`. There are never more
than `max_pairs` pairs, and `expire` leaves none whose last report is `expiry_s` old. A decision names the policy that
made its choice. Pure: the time is passed in, in seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from awc.estimators.acceptance import Acceptance
from awc.policy import PairControl, WindowChoice, WindowPolicy, decide_all, is_plausible
from services.window_controller.verifiers import LiveVerifiers
from shared.protocol.messages import PairReport, Reason, Report, WindowDecision

ACCEPTANCE_HALF_LIFE = 200.0  # what was judged counts half after so many more guesses

DropReason: TypeAlias = Literal["foreign", "overflow", "replayed", "implausible", "unknown_verifier", "full"]


class Pair(NamedTuple):
    """A drafter and a verifier that it drafts for."""

    drafter_id: str
    verifier_id: str


@dataclass(slots=True)
class PairState:
    """A pair's policy state, its choice in force, the report it was made from, and when it was last reported and
    announced. Guesses matched and judged fade."""

    control: PairControl
    choice: WindowChoice | None = None
    seen: PairReport | None = None
    acceptance: Acceptance = field(default_factory=lambda: Acceptance(ACCEPTANCE_HALF_LIFE))
    reported_at: float = -math.inf
    announced_at: float = -math.inf

    def note(self, seen: PairReport, now: float) -> None:
        """What the next choice is made from."""
        self.acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        self.seen, self.reported_at = seen, now

    @property
    def reason(self) -> Reason | None:
        seen = self.seen
        if seen is None:
            return None
        return Reason(
            num_sessions=seen.num_sessions,
            acceptance=self.acceptance.rate,
            draft_ms=seen.draft_ms,
            rtt_ms=seen.rtt_ms,
            pass_ms=seen.pass_ms,
            tpot_ms=seen.tpot_ms,
            queue=seen.queue,
            batch=seen.batch,
        )


class Taken(NamedTuple):
    """A pair, and its part of a report that counts."""

    pair: Pair
    state: PairState
    seen: PairReport


class PairTable:
    """All pairs. `tell` hears of every decision that changes a choice; `fail` of a pair that a policy can't decide on,
    while the exception is handled."""

    def __init__(
        self,
        policy: WindowPolicy,
        verifiers: LiveVerifiers,
        drop: Callable[[DropReason], None],
        tell: Callable[[WindowDecision], None],
        fail: Callable[[Pair], None],
        *,
        max_pairs: int,
        expiry_s: float,
        announce_s: float,
    ) -> None:
        self._policy = policy
        self._verifiers = verifiers
        self._drop = drop
        self._tell = tell
        self._fail = fail
        self._max_pairs = max_pairs
        self._expiry_s = expiry_s
        self._announce_s = announce_s
        self._pairs: dict[Pair, PairState] = {}
        self._sequences: dict[str, int] = {}  # newest report of every drafter that has a pair
        self._num_decisions = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def follow(self, policy: WindowPolicy) -> None:
        """Another policy from now on, with fresh state for every pair; none is announced before its next report."""
        self._policy = policy
        for state in self._pairs.values():
            state.control, state.choice = policy.for_pair(), None

    def observe(self, reports: Iterable[Report], now: float) -> list[WindowDecision]:
        """Take reports; the decisions to announce now: choices that changed, and those not announced for a while."""
        decisions: list[WindowDecision] = []
        drafter_ids: set[str] = set()
        taken: list[Taken] = []
        for report in reports:
            if report.drafter_id in drafter_ids:  # no pair twice at once
                decisions += self._decide_on(taken, now)
                drafter_ids, taken = set(), []
            drafter_ids.add(report.drafter_id)
            taken += self._take(report, now)
        return decisions + self._decide_on(taken, now)

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

    def _take(self, report: Report, now: float) -> list[Taken]:
        """What counts of a report."""
        if report.sequence <= self._sequences.get(report.drafter_id, -1):
            self._drop("replayed")
            return []
        taken: dict[Pair, Taken] = {}
        for seen in report.pairs:
            pair = Pair(report.drafter_id, seen.verifier_id)
            if pair in taken:
                self._drop("replayed")
            elif (state := self._state_of(pair, seen, now)) is not None:
                state.note(seen, now)
                taken[pair] = Taken(pair, state, seen)
        if taken:
            self._sequences[report.drafter_id] = report.sequence
        return list(taken.values())

    def _decide_on(self, taken: list[Taken], now: float) -> list[WindowDecision]:
        """All at once. Where that fails one by one, although these reports may count twice then; and a pair on which it
        fails alone begins afresh, so that it costs others nothing any more."""
        try:
            choices = decide_all(self._policy, [each.state.control for each in taken], [each.seen for each in taken])
        except Exception:
            if len(taken) > 1:
                return [decision for each in taken for decision in self._decide_on([each], now)]
            self._fail(taken[0].pair)
            taken[0].state.control = self._policy.for_pair()
            return []
        return [
            self._decide(pair, state, choice, now)
            for (pair, state, _), choice in zip(taken, choices, strict=True)
            if choice != state.choice or self._is_due(state, now)
        ]

    def _state_of(self, pair: Pair, seen: PairReport, now: float) -> PairState | None:
        """Of a pair whose part of a report counts; None for another."""
        state = self._pairs.get(pair)
        if not is_plausible(seen):
            self._drop("implausible")
            return None
        if state is not None:
            return state
        if not self._verifiers.is_live(pair.verifier_id, now):
            self._drop("unknown_verifier")
            return None
        if len(self._pairs) >= self._max_pairs:
            self._drop("full")
            return None
        state = self._pairs[pair] = PairState(self._policy.for_pair())
        return state

    def _is_due(self, state: PairState, now: float) -> bool:
        return now - state.announced_at >= self._announce_s

    def _decide(self, pair: Pair, state: PairState, choice: WindowChoice, now: float) -> WindowDecision:
        changes = choice != state.choice
        state.choice, state.announced_at = choice, now
        self._num_decisions += 1
        decision = WindowDecision(
            drafter_id=pair.drafter_id,
            verifier_id=pair.verifier_id,
            window=choice.window,
            chunk=choice.chunk,
            free_run=choice.free_run,
            policy=self._policy.name,
            sequence=self._num_decisions,
            min_confidence=choice.min_confidence,
            reason=state.reason,
        )
        if changes:
            self._tell(decision)
        return decision
