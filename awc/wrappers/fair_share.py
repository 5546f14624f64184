"""Shares of a crowded verifier: how deep each of its drafters' guesses may go when passes cost by the token.

As in GoodSpeed (arXiv 2512.09963), what is maximised is the sum of the logarithms of all sessions' speeds, so nobody
starves. A session whose guesses go k deep, right with probability a, gets x(k) = 1 + a + ... + a^k tokens a pass. All n
sessions share a pass of T = base + c * (n + guesses) milliseconds, so one more guess of a session is worth it while

    a^k / x(k - 1)  >=  n * c / T = t,

its own relative gain against what the longer pass takes from everybody (the marginal goodput of DSDE, arXiv 2509.01083,
and TETRIS, arXiv 2502.15197, under that objective). As x(k - 1) = (1 - a^k) / (1 - a), that is so while
a^k >= t / (1 - a + t). Where tokens cost next to nothing no depth is cut.

Invariant: a policy's choice is only ever shortened, and only where its verifier's passes cost by the token. The table
of verifiers is bounded, and a crowd has no members but pairs that somebody has.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import ref

from awc.estimators.acceptance import TurningAcceptance
from awc.estimators.pass_cost import PassCost, PassCosts
from awc.policy import PairControl, WindowChoice, WindowPolicy, decide_all
from shared.protocol.messages import MAX_WINDOW, PairReport

ROUNDS = 8  # in which the length of the pass and the depths settle on each other
MAX_VERIFIERS = 1024
SILENT = 8  # reports of every other pair, on average, without one of a pair: it is gone
HALF_LIFE = 256.0  # of judged guesses
PRIOR_RATE, PRIOR_NUM = 0.9, 4.0  # a priori so many guesses were judged, and this share of them was right
HOPE = 0.5  # right guesses that each report counts for while none is made, so that a pair that was cut to 0 comes back
LOWEST, HIGHEST = 1e-6, 0.999  # acceptance
LEAST_REPORTS = 4  # between two looks at a crowd
LEAST_MS = 1e-3
SLACK = 0.35  # a number of guesses or passes that is missed by less than this share of it is left as it is


def fair_depths(acceptance: Sequence[float], sessions: Sequence[float], base_ms: float, token_ms: float) -> list[float]:
    """How many guesses of each session a pass should have, not rounded: 0 to MAX_WINDOW for each pair.

    `acceptance`: of a pair's guesses, `sessions`: that it has; a pass takes base_ms and token_ms a token.
    """
    rates = [min(max(rate, LOWEST), HIGHEST) for rate in acceptance]
    shapes = [(1 - rate, math.log(rate)) for rate in rates]
    num, depths = sum(sessions), [0] * len(rates)
    exact: list[float] = []
    for _ in range(ROUNDS):
        pass_ms = base_ms + token_ms * (num + sum(map(operator.mul, sessions, depths)))
        least = num * token_ms / pass_ms if pass_ms > 0 else 0.0
        if least == 0:
            return [float(MAX_WINDOW)] * len(rates)
        exact = [min(math.log(least / (wrong + least)) / fall, MAX_WINDOW) for wrong, fall in shapes]
        found = [math.floor(depth) for depth in exact]
        if found == depths:
            break
        # None falls, as a longer pass has room for more; half of the way, because windows settle later with all of it.
        depths = [(new + old + 1) // 2 for new, old in zip(found, depths, strict=True)]
    return exact


def slack(number: int) -> float:
    """By how much a number may be missed without being changed."""
    return SLACK * max(number, 1)


@dataclass(frozen=True, slots=True)
class FairSharePolicy:
    """Another policy, whose windows are cut to fair depths."""

    active: WindowPolicy
    crowds: dict[str, Crowd] = field(default_factory=dict, init=False, repr=False, compare=False)
    costs: PassCosts = field(default_factory=PassCosts, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.active.name

    def for_pair(self) -> FairSharePair:
        return FairSharePair(self, self.active.for_pair())

    def decide_all(self, pairs: Sequence[FairSharePair], reports: Sequence[PairReport]) -> list[WindowChoice]:
        """The choices of several pairs after a report of each."""
        depths = [pair.depth(seen) for pair, seen in zip(pairs, reports, strict=True)]
        choices = decide_all(self.active, [pair.active for pair in pairs], reports)
        rows = zip(pairs, choices, depths, reports, strict=True)
        return [pair.cut(choice, depth, seen) for pair, choice, depth, seen in rows]

    def crowd(self, verifier_id: str) -> Crowd:
        """Of a verifier; a pair asks for it once, and keeps it. Of too many, the one asked for least recently goes."""
        found = self.crowds.pop(verifier_id, None) or Crowd(self.costs.of(verifier_id))
        self.crowds[verifier_id] = found
        if len(self.crowds) > MAX_VERIFIERS:
            del self.crowds[next(iter(self.crowds))]
        return found


@dataclass(slots=True, weakref_slot=True, eq=False)
class Member:
    """One pair in its crowd: what was told of it last, and its depth since the last look."""

    acceptance: float = 0.0
    num_sessions: int = 0
    heard: int = 0  # which report of the crowd's was its last; 0: it is none of the crowd
    depth: int = MAX_WINDOW


class Crowd:
    """The pairs of one verifier that were reported lately. Depths are looked at again when, on average, every pair was
    reported once more."""

    def __init__(self, cost: PassCost) -> None:
        self._cost = cost
        self._members: set[ref[Member]] = set()
        self._num_heard = self._looked_at = 0

    def depth(self, member: Member, acceptance: float, seen: PairReport) -> int:
        """Of a pair that is reported now."""
        self._cost.observe(seen.pass_tokens, seen.pass_ms)
        self._num_heard += 1
        if not member.heard:
            self._members.add(ref(member, self._members.discard))  # gone with its pair
        member.acceptance, member.num_sessions, member.heard = acceptance, seen.num_sessions, self._num_heard
        if self._num_heard - self._looked_at >= max(len(self._members), LEAST_REPORTS):
            self._look()
        return member.depth

    def _look(self) -> None:
        self._looked_at = self._num_heard
        oldest = self._num_heard - SILENT * len(self._members)
        members = []
        for known in list(self._members):
            each = known()
            if each is None:
                continue
            if each.heard > oldest:
                members.append(each)
            else:
                self._members.discard(known)
                each.heard, each.depth = 0, MAX_WINDOW
        acceptance = [each.acceptance for each in members]
        sessions = [each.num_sessions for each in members]
        depths = fair_depths(acceptance, sessions, self._cost.base_ms, self._cost.per_token_ms)
        for each, depth in zip(members, depths, strict=True):
            if not each.depth - slack(each.depth) <= depth < each.depth + 1 + slack(each.depth):
                each.depth = math.floor(depth)


class FairSharePair:
    """One pair under another control."""

    def __init__(self, policy: FairSharePolicy, active: PairControl) -> None:
        self._policy = policy
        self.active = active
        self._acceptance = TurningAcceptance(HALF_LIFE)
        self._member = Member()
        self._crowd: Crowd | None = None  # before the first report
        self._trips: int | None = None  # passes that begin during a round trip
        self._cut: tuple[WindowChoice, WindowChoice] | None = None  # the choice that was cut last, and what it became

    def decide(self, seen: PairReport) -> WindowChoice:
        return self._policy.decide_all([self], [seen])[0]

    def depth(self, seen: PairReport) -> int:
        """What it is left after one more report."""
        crowd = self._crowd = self._crowd or self._policy.crowd(seen.verifier_id)
        self._acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        if seen.window == 0 and seen.num_sessions:
            self._acceptance.hope(HOPE)
        of_all = self._acceptance.of_all
        rate = (of_all.matched + PRIOR_NUM * PRIOR_RATE) / (of_all.judged + PRIOR_NUM)
        return crowd.depth(self._member, rate, seen)

    def cut(self, choice: WindowChoice, depth: int, seen: PairReport) -> WindowChoice:
        """The choice with room for `depth` guesses in each of the passes that begin until the first has its verdict."""
        if depth >= MAX_WINDOW or not choice.window:
            return choice
        trips = min(seen.rtt_ms / max(seen.pass_ms, LEAST_MS), float(MAX_WINDOW))
        kept = self._trips
        if kept is None or not kept - 1 - slack(kept) <= trips <= kept + slack(kept):
            kept = self._trips = math.ceil(trips)
        window = min(choice.window, depth * (2 + kept))
        if window == choice.window:
            return choice
        if self._cut is None or self._cut[0] is not choice or self._cut[1].window != window:
            self._cut = choice, choice.with_window(window)
        return self._cut[1]
