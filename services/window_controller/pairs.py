"""The state of every drafter-verifier pair, and the decisions that follow from reports.

A drafter that another controller leads is decided on and told nothing, so that this one can take over.

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
    choice: WindowChoice | None = None  # decided; None before a decision
    told: WindowChoice | None = None  # to the drafter, since this controller leads it
    seen: PairReport | None = None  # newest report
    acceptance: AcceptanceEstimate = field(default_factory=lambda: AcceptanceEstimate(ACCEPTANCE_HALF_LIFE))
    reported_at: float = -math.inf
    announced_at: float = -math.inf

    def note(self, seen: PairReport, now: float) -> None:
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


@dataclass(slots=True)
class DrafterState:
    """A drafter that has reported: its pairs by verifier, and its newest report. is_led: by this controller."""

    pairs: dict[str, PairState] = field(default_factory=dict)
    sequence: int = -1
    heard_at: float = -math.inf
    is_led: bool = False

    def lead(self, *, is_led: bool) -> None:
        if is_led and not self.is_led:
            for state in self.pairs.values():
                state.told, state.announced_at = None, -math.inf
        self.is_led = is_led


class PairUpdate(NamedTuple):
    """The valid part of a report for one pair."""

    pair: PairId
    state: PairState
    seen: PairReport
    is_led: bool


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
        controller_id: str,
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
        self._drafters: dict[str, DrafterState] = {}
        self._instances = NewestInstances(instances_per_name)  # of these drafters
        self._num_pairs = 0
        self._num_decisions = 0

    def __len__(self) -> int:
        return self._num_pairs

    @property
    def num_led(self) -> int:
        """Pairs of drafters that this controller leads."""
        return sum(len(drafter.pairs) for drafter in self._drafters.values() if drafter.is_led)

    def follow(self, policy: WindowPolicy) -> None:
        """Switches to another policy, with fresh state for every pair. Each pair is announced after its next report."""
        self._policy = policy
        for drafter in self._drafters.values():
            for state in drafter.pairs.values():
                state.control, state.choice, state.told = policy.for_pair(), None, None

    def passes_over(self, report: Report, now: float) -> bool:
        """Whether only other controllers are to decide on a report. Forgets the drafter's pairs then."""
        if self._controller_id in report.controllers:
            return False
        drafter = self._drafters.get(report.drafter_id)
        if drafter is not None and report.sequence > drafter.sequence:
            self._num_pairs -= len(drafter.pairs)
            drafter.pairs, drafter.sequence, drafter.heard_at, drafter.is_led = {}, report.sequence, now, False
        return True

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
            self._decide(PairId(drafter_id, verifier_id), state, state.choice, now)
            for drafter_id, drafter in self._drafters.items()
            if drafter.is_led
            for verifier_id, state in drafter.pairs.items()
            if state.choice is not None and self._is_due(state, now)
        ]

    def expire(self, now: float) -> None:
        """Removes pairs and drafters without a report for `expiry_s`."""
        oldest, gone = now - self._expiry_s, []
        for drafter_id, drafter in self._drafters.items():
            drafter.pairs = {key: state for key, state in drafter.pairs.items() if state.reported_at > oldest}
            if not drafter.pairs and drafter.heard_at <= oldest:
                gone.append(drafter_id)
        for drafter_id in gone:
            del self._drafters[drafter_id]
            self._instances.leave(drafter_id)
        self._num_pairs = sum(len(drafter.pairs) for drafter in self._drafters.values())

    def _take(self, report: Report, now: float) -> list[PairUpdate]:
        """The valid parts of a report."""
        drafter = self._drafters.get(report.drafter_id) or DrafterState()
        if report.sequence <= drafter.sequence:
            self._on_drop("replayed")
            return []
        if not self._instances.may_join(report.drafter_id, now):
            self._on_drop("replaced")
            return []
        is_led = report.controllers[:1] == (self._controller_id,)
        updates: dict[PairId, PairUpdate] = {}
        for seen in report.pairs:
            pair = PairId(report.drafter_id, seen.verifier_id)
            if pair in updates:
                self._on_drop("replayed")
            elif (state := self._state_of(drafter, seen, now)) is not None:
                corrected = self._verifiers.corrected(seen, report.machine)
                state.note(corrected, now)
                updates[pair] = PairUpdate(pair, state, corrected, is_led)
        if updates:
            self._drafters[report.drafter_id] = drafter
            drafter.sequence, drafter.heard_at = report.sequence, now
            drafter.lead(is_led=is_led)
            self._remove(self._instances.join(report.drafter_id, now))
        return list(updates.values())

    def _remove(self, drafter_id: str | None) -> None:
        """Forgets a drafter that a newer instance of its name has replaced."""
        drafter = self._drafters.pop(drafter_id, None) if drafter_id is not None else None
        self._num_pairs -= len(drafter.pairs) if drafter else 0

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
        for (pair, state, _, is_led), choice in zip(updates, choices, strict=True):
            state.choice = choice
            if is_led and (choice != state.told or self._is_due(state, now)):
                decisions.append(self._decide(pair, state, choice, now))
        return decisions

    def _state_of(self, drafter: DrafterState, seen: PairReport, now: float) -> PairState | None:
        """The state of the pair, created if needed; None if its part of the report is dropped."""
        state = drafter.pairs.get(seen.verifier_id)
        if not is_plausible(seen):
            self._on_drop("implausible")
            return None
        if state is not None:
            return state
        if not self._verifiers.is_live(seen.verifier_id, now):
            self._on_drop("unknown_verifier")
            return None
        if self._num_pairs >= self._max_pairs:
            self._on_drop("full")
            return None
        state = drafter.pairs[seen.verifier_id] = PairState(self._policy.for_pair())
        self._num_pairs += 1
        return state

    def _is_due(self, state: PairState, now: float) -> bool:
        return now - state.announced_at >= self._announce_s

    def _decide(self, pair: PairId, state: PairState, choice: WindowChoice, now: float) -> WindowDecision:
        changes = choice != state.told
        state.told, state.announced_at = choice, now
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
