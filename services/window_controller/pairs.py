"""The state of every drafter-verifier pair, and the decisions that follow from reports.

Of drafters that another controller leads it decides and tells nothing, so that it can take over; of others it forgets
everything.

Invariant: a report counts once and in order. A pair is created only while its verifier is alive, there are at most
`max_pairs`, and of a drafter's name only those of its newest instances. `expire` removes pairs without a report for
`expiry_s`. Pure: times are arguments, in seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from awc.estimators.acceptance import AcceptanceEstimate
from awc.policy import PairControl, WindowChoice, WindowPolicy, decide_all, is_plausible
from services.window_controller.verifiers import LiveVerifiers
from shared.protocol.instances import NewestInstances
from shared.protocol.messages import PairReport, Reason, Report, WindowDecision

ACCEPTANCE_HALF_LIFE = 200.0  # judged guesses after which a guess weighs half

DropReason: TypeAlias = Literal[
    "foreign", "frequent", "overflow", "replaced", "replayed", "implausible", "unknown_verifier", "full"
]


class PairId(NamedTuple):
    """A drafter and a verifier that it drafts for, by their instance ids."""

    drafter_id: str
    verifier_id: str


@dataclass(slots=True)
class PairState:
    control: PairControl
    choice: WindowChoice | None = None  # in force; None before a decision
    seen: PairReport | None = None  # newest report
    acceptance: AcceptanceEstimate = field(default_factory=lambda: AcceptanceEstimate(ACCEPTANCE_HALF_LIFE))
    reported_at: float = -math.inf
    announced_at: float = -math.inf
    is_led: bool = True  # by this controller

    def note(self, seen: PairReport, now: float, *, is_led: bool) -> None:
        self.acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        if is_led and not self.is_led:
            self.announced_at = -math.inf
        self.seen, self.reported_at, self.is_led = seen, now, is_led

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


class PairUpdate(NamedTuple):
    """The valid part of a report for one pair."""

    pair: PairId
    state: PairState
    seen: PairReport


class PairController:
    """Decides on all pairs.

    on_drop: a report or a part of it is dropped; on_change: a decision changes a choice; on_fail: the policy fails on a
    pair, called while the exception is handled. controller_id: its own.
    """

    def __init__(
        self,
        policy: WindowPolicy,
        verifiers: LiveVerifiers,
        on_drop: Callable[[DropReason], None],
        on_change: Callable[[WindowDecision], None],
        on_fail: Callable[[PairId], None],
        *,
        max_pairs: int,
        expiry_s: float,
        announce_s: float,
        instances_per_name: int = 1,
        controller_id: str = "",
    ) -> None:
        self._policy = policy
        self._controller_id = controller_id
        self._verifiers = verifiers
        self._on_drop = on_drop
        self._on_change = on_change
        self._on_fail = on_fail
        self._max_pairs = max_pairs
        self._expiry_s = expiry_s
        self._announce_s = announce_s
        self._pairs: dict[PairId, PairState] = {}
        self._drafters = NewestInstances(instances_per_name)  # with a pair
        self._sequences: dict[str, int] = {}  # of the newest report, by drafter with a pair
        self._num_decisions = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def follow(self, policy: WindowPolicy) -> None:
        """Switches to another policy, with fresh state for every pair. Each pair is announced after its next report."""
        self._policy = policy
        for state in self._pairs.values():
            state.control, state.choice = policy.for_pair(), None

    def observe(self, reports: Iterable[Report], now: float) -> list[WindowDecision]:
        """The decisions to announce after reports: changed choices, and those due for a repeat."""
        decisions: list[WindowDecision] = []
        drafter_ids: set[str] = set()
        updates: list[PairUpdate] = []
        for report in reports:
            if report.drafter_id in drafter_ids:  # decide_all takes no pair twice
                decisions += self._decide_on(updates, now)
                drafter_ids, updates = set(), []
            drafter_ids.add(report.drafter_id)
            updates += self._take(report, now)
        return decisions + self._decide_on(updates, now)

    def refresh(self, now: float) -> list[WindowDecision]:
        """The decisions due for a repeat."""
        return [
            self._decide(pair, state, state.choice, now)
            for pair, state in self._pairs.items()
            if state.choice is not None and state.is_led and self._is_due(state, now)
        ]

    def expire(self, now: float) -> None:
        """Removes pairs without a report for `expiry_s` and drafters without a pair."""
        oldest = now - self._expiry_s
        self._pairs = {pair: state for pair, state in self._pairs.items() if state.reported_at > oldest}
        for drafter_id in self._sequences.keys() - {pair.drafter_id for pair in self._pairs}:
            del self._sequences[drafter_id]
            self._drafters.leave(drafter_id)

    def _take(self, report: Report, now: float) -> list[PairUpdate]:
        """The valid parts of a report that this controller is to decide on."""
        if report.sequence <= self._sequences.get(report.drafter_id, -1):
            self._on_drop("replayed")
            return []
        if report.controllers and self._controller_id not in report.controllers:
            self._leave(report.drafter_id)
            return []
        is_led = report.controllers[:1] in ([], [self._controller_id])
        if not self._drafters.may_join(report.drafter_id, now):
            self._on_drop("replaced")
            return []
        updates: dict[PairId, PairUpdate] = {}
        for seen in report.pairs:
            pair = PairId(report.drafter_id, seen.verifier_id)
            if pair in updates:
                self._on_drop("replayed")
            elif (state := self._state_of(pair, seen, now)) is not None:
                corrected = self._verifiers.corrected(seen, report.machine)
                state.note(corrected, now, is_led=is_led)
                updates[pair] = PairUpdate(pair, state, corrected)
        if updates:
            self._sequences[report.drafter_id] = report.sequence
            self._remove(self._drafters.join(report.drafter_id, now))
        return list(updates.values())

    def _leave(self, drafter_id: str) -> None:
        """Forgets a drafter that other controllers decide for."""
        if drafter_id in self._sequences:
            self._remove(drafter_id)
            self._drafters.leave(drafter_id)

    def _remove(self, drafter_id: str | None) -> None:
        """Forgets a drafter that a newer instance of its name has replaced."""
        if drafter_id is not None:
            self._pairs = {pair: state for pair, state in self._pairs.items() if pair.drafter_id != drafter_id}
            self._sequences.pop(drafter_id, None)

    def _decide_on(self, updates: list[PairUpdate], now: float) -> list[WindowDecision]:
        """Decides on all pairs at once; if the policy fails, one by one (a report may then count twice). A pair on
        which it fails alone gets fresh state."""
        try:
            choices = decide_all(
                self._policy, [each.state.control for each in updates], [each.seen for each in updates]
            )
        except Exception:
            if len(updates) > 1:
                return [decision for each in updates for decision in self._decide_on([each], now)]
            self._on_fail(updates[0].pair)
            updates[0].state.control = self._policy.for_pair()
            return []
        decisions = []
        for (pair, state, _), choice in zip(updates, choices, strict=True):
            if not state.is_led:
                state.choice = choice
            elif choice != state.choice or self._is_due(state, now):
                decisions.append(self._decide(pair, state, choice, now))
        return decisions

    def _state_of(self, pair: PairId, seen: PairReport, now: float) -> PairState | None:
        """The state of the pair, created if needed; None if its part of the report is dropped."""
        state = self._pairs.get(pair)
        if not is_plausible(seen):
            self._on_drop("implausible")
            return None
        if state is not None:
            return state
        if not self._verifiers.is_live(pair.verifier_id, now):
            self._on_drop("unknown_verifier")
            return None
        if len(self._pairs) >= self._max_pairs:
            self._on_drop("full")
            return None
        state = self._pairs[pair] = PairState(self._policy.for_pair())
        return state

    def _is_due(self, state: PairState, now: float) -> bool:
        return now - state.announced_at >= self._announce_s

    def _decide(self, pair: PairId, state: PairState, choice: WindowChoice, now: float) -> WindowDecision:
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
            self._on_change(decision)
        return decision
