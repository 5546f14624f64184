"""Fair shares of a verifier: how deep the guesses of each pair may go when the cost of a pass grows with its tokens.

As in GoodSpeed (arXiv 2512.09963), the objective is the sum of the logarithms of all sessions' speeds, so no session
starves. A session with k guesses in each pass, of acceptance a, gets x(k) = 1 + a + … + a^k tokens a pass. All n
sessions share a pass of T = base + c * (n + guesses) milliseconds. Guess number k pays while its relative gain is at
least the relative cost to all sessions (the marginal goodput of DSDE, arXiv 2509.01083, and TETRIS, arXiv 2502.15197):

    a^k / x(k - 1) >= n * c / T = t,      equivalently      a^k >= t / (1 - a + t).

A window is cut to `depth` guesses in each of the passes that begin until the first guess has its verdict.

Invariant: choices are only ever shortened, and only where passes cost by the token. A verifier's state holds no pair
that its owner has dropped.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import ref

from awc.estimators.acceptance import CusumAcceptance
from awc.estimators.features import LEAST_MS
from awc.estimators.verifier_cost import PerVerifier, VerifierCostLine
from awc.policy import PairControl, WindowChoice, WindowPolicy, decide_all
from shared.protocol.messages import MAX_WINDOW, PairReport

ROUNDS = 8  # of the fixed-point iteration between pass time and depths
SILENT = 8  # reports of an average pair without one of this pair, after which it is gone
HALF_LIFE = 256.0  # judged guesses after which a guess weighs half
PRIOR_RATE, PRIOR_NUM = 0.9, 4.0  # a-priori acceptance, and its weight in guesses
ASSUMED_MATCHES = 0.5  # matched guesses that each report adds at window 0, so that drafting is tried again
LOWEST, HIGHEST = 1e-6, 0.999  # acceptance
LEAST_REPORTS = 4  # between two updates of a verifier's depths
SLACK = 0.35  # relative deviation of a depth or a number of passes that changes nothing (hysteresis)


def fair_depths(acceptance: Sequence[float], sessions: Sequence[float], base_ms: float, token_ms: float) -> list[float]:
    """Guesses of each pair's sessions in a pass, not rounded: 0 to MAX_WINDOW.

    `acceptance`, `sessions`: of each pair; a pass takes base_ms + token_ms * tokens.
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
        # Depths only grow, as a longer pass lowers t. Half steps: in full ones windows settle later.
        depths = [(new + old + 1) // 2 for new, old in zip(found, depths, strict=True)]
    return exact


def slack(number: int) -> float:
    """Deviation from `number` that changes nothing."""
    return SLACK * max(number, 1)


@dataclass(frozen=True, slots=True)
class FairSharePolicy:
    """Cuts the windows of another policy to fair depths (after GoodSpeed, arXiv 2512.09963)."""

    active: WindowPolicy
    verifiers: PerVerifier[SharedVerifier] = field(default_factory=PerVerifier, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.active.name

    def for_pair(self) -> FairSharePair:
        return FairSharePair(self, self.active.for_pair())

    def decide_all(self, pairs: Sequence[FairSharePair], reports: Sequence[PairReport]) -> list[WindowChoice]:
        """What `decide` says of each pair."""
        depths = [pair.depth(seen) for pair, seen in zip(pairs, reports, strict=True)]
        choices = decide_all(self.active, [pair.active for pair in pairs], reports)
        rows = zip(pairs, choices, depths, reports, strict=True)
        return [pair.cut(choice, depth, seen) for pair, choice, depth, seen in rows]


@dataclass(slots=True, weakref_slot=True, eq=False)
class PairShare:
    """One pair at its verifier: the values of its newest report, and its depth since the newest update."""

    acceptance: float = 0.0
    num_sessions: int = 0
    reported: int = 0  # number of its newest report among the verifier's; 0: not a member
    depth: int = MAX_WINDOW


class SharedVerifier:
    """The recently reported pairs of one verifier. Depths are updated once as many reports came as there are pairs."""

    def __init__(self) -> None:
        self.cost = VerifierCostLine()
        self._shares: set[ref[PairShare]] = set()
        self._num_reports = self._updated_at = 0

    def depth(self, share: PairShare, acceptance: float, seen: PairReport) -> int:
        """The depth of a pair after one more report."""
        self.cost.observe(seen.pass_tokens, seen.pass_ms)
        self._num_reports += 1
        if not share.reported:
            self._shares.add(ref(share, self._shares.discard))  # leaves with its pair
        share.acceptance, share.num_sessions, share.reported = acceptance, seen.num_sessions, self._num_reports
        if self._num_reports - self._updated_at >= max(len(self._shares), LEAST_REPORTS):
            self._update()
        return share.depth

    def _update(self) -> None:
        self._updated_at = self._num_reports
        oldest = self._num_reports - SILENT * len(self._shares)
        shares = []
        for known in list(self._shares):
            share = known()
            if share is None:
                continue
            if share.reported > oldest:
                shares.append(share)
            else:
                self._shares.discard(known)
                share.reported, share.depth = 0, MAX_WINDOW
        acceptance = [share.acceptance for share in shares]
        sessions = [share.num_sessions for share in shares]
        depths = fair_depths(acceptance, sessions, self.cost.base_ms, self.cost.per_token_ms)
        for share, depth in zip(shares, depths, strict=True):
            if not share.depth - slack(share.depth) <= depth < share.depth + 1 + slack(share.depth):
                share.depth = math.floor(depth)


class FairSharePair:
    """One pair whose control's choices are cut."""

    def __init__(self, policy: FairSharePolicy, active: PairControl) -> None:
        self._policy = policy
        self.active = active
        self._acceptance = CusumAcceptance(HALF_LIFE)
        self._share = PairShare()
        self._verifier: SharedVerifier | None = None  # before the first report
        self._trips: int | None = None  # passes that begin during a round trip
        self._cut: tuple[WindowChoice, WindowChoice] | None = None  # the newest choice that was cut, and its result

    def decide(self, seen: PairReport) -> WindowChoice:
        return self._policy.decide_all([self], [seen])[0]

    def depth(self, seen: PairReport) -> int:
        """Guesses that each session may have in a pass, after one more report."""
        verifier = self._verifier = self._verifier or self._policy.verifiers.of(seen.verifier_id, SharedVerifier)
        self._acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        if seen.window == 0 and seen.num_sessions:
            self._acceptance.assume_matched(ASSUMED_MATCHES)
        average = self._acceptance.average
        rate = (average.matched + PRIOR_NUM * PRIOR_RATE) / (average.judged + PRIOR_NUM)
        return verifier.depth(self._share, rate, seen)

    def cut(self, choice: WindowChoice, depth: int, seen: PairReport) -> WindowChoice:
        """The choice with a window of at most depth * (2 + passes that begin during a round trip)."""
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
