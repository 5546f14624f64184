"""Our adaptive window control: a learned choice of how to draft, then checked.

A network trained on DSD-Sim (awc_training) predicts from a pair's telemetry, for each of CHOICES (window, chunk, free
run), what it would be worth: the mean of the logarithms of goodput and of speed, up to a constant. The best one is
taken when it promises, twice in a row, `margin` more than the one in force, or `first_margin` more than the one that it
all started with, which nobody has chosen; where no drafting promises `least_gain` more than none, nothing is drafted. A
prediction is not trusted blindly:

* Inputs unlike those of training, or more sessions on a drafter than it had there: the window follows from the
  pipeline instead, as many guesses as the drafter makes until the first of them has a verdict, which is never far from
  the best where the verifier runs free. Where such a window made a token slower, half as many.
* A drafter whose sessions get a guess each in more time than a pass takes never gets ahead of the target: nothing is
  drafted. Training has few such pairs.
* After each change the time per token is compared with that before, unless the world has changed as well. What was
  promised and did not come is held against the choice, and fades.
* While nothing is drafted nothing is judged, so acceptance is hoped to rise until drafting is tried again.

Invariant: the choice is one of CHOICES or a window of the pipeline, whatever reports say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np

from awc.estimators.acceptance import TurningAcceptance
from awc.estimators.features import CHOICE_INPUTS, choice_inputs
from awc.estimators.network import Network, read_network
from awc.estimators.pass_cost import PassCost, PassCosts
from awc.policy import WindowChoice
from shared.protocol.messages import PairReport

WEIGHTS = Path(__file__).with_name("adaptive.npz")
NONE = WindowChoice(0, 1, free_run=True)  # nothing is drafted
CHOICES = (
    NONE,
    *(WindowChoice(window, 2, free_run=True) for window in (2, 4, 8, 16, 24, 32)),
    *(WindowChoice(window, 1, free_run=True) for window in (4, 12, 24)),
    *(WindowChoice(window, chunk, free_run=False) for window, chunk in ((4, 2), (8, 4), (16, 4), (16, 8), (32, 8))),
    *(WindowChoice(window, window, free_run=False) for window in (3, 5, 8)),
)
NUMBERS = {choice: number for number, choice in enumerate(CHOICES)}
LONGEST = 32  # window of the pipeline
MOST_SESSIONS = 4  # of a pair: training has hardly any with more
LEAST_DEPTH = 0.125  # of the pipeline
NEAR = 0.25  # windows of the pipeline that differ by less are as good as each other
SAME_WORLD = 0.15  # in which the logarithm of a cycle's time differs by less


@lru_cache(maxsize=1)
def shipped_network() -> Network:
    return read_network(WEIGHTS)


@dataclass(frozen=True, slots=True)
class AdaptivePolicy:
    """Starts with `start`. What was judged fades to half with each `half_life` guesses; a choice is compared with the
    one before over `compared` reports of each; what is held against it fades by `forgetting` a report.
    """

    name: ClassVar[str] = "adaptive"
    start: WindowChoice
    first_margin: float = 0.03
    margin: float = 0.05
    least_gain: float = 0.02
    patience: int = 2  # reports in a row that must promise as much
    half_life: float = 192.0
    hope: float = 0.5  # right guesses that each report counts for while none is made
    compared: int = 8
    settling: int = 3  # reports behind a change that are not compared
    forgetting: float = 0.997
    network: Network = field(default_factory=shipped_network, repr=False)
    costs: PassCosts = field(default_factory=PassCosts, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.margin >= self.least_gain >= 0 and self.first_margin >= self.least_gain and self.hope >= 0):
            raise ValueError(
                f"margin {self.margin} and first margin {self.first_margin} must be no less than the least gain "
                f"{self.least_gain}, and that and hope {self.hope} 0 or more"
            )
        if self.patience < 1 or self.compared < 1 or self.settling < 0 or not self.half_life > 0:
            raise ValueError(
                f"patience {self.patience} and compared {self.compared} must be 1 or more, settling {self.settling} "
                f"0 or more, and the half-life {self.half_life} above 0"
            )
        if not 0 <= self.forgetting <= 1:
            raise ValueError(f"forgetting {self.forgetting} must be 0 to 1")
        if self.network.b_out.shape != (len(CHOICES),):
            raise ValueError(f"a network of {self.network.b_out.shape} outputs can't judge {len(CHOICES)} choices")

    def for_pair(self) -> AdaptivePair:
        return AdaptivePair(self)

    def decide_all(self, pairs: Sequence[AdaptivePair], reports: Sequence[PairReport]) -> list[WindowChoice]:
        """The choices of several pairs after a report of each: what `decide` says, for less time a pair."""
        seen = (pair.observe(report) for pair, report in zip(pairs, reports, strict=True))
        inputs = np.fromiter(chain.from_iterable(seen), np.float64).reshape(len(pairs), len(CHOICE_INPUTS))
        worth, known = self.network.predict(inputs), self.network.knows(inputs).tolist()
        for row, pair in zip(worth, pairs, strict=True):
            for number, shortfall in pair.against.items():
                row[number] -= shortfall
        rows = zip(reports, worth.tolist(), worth.argmax(axis=1).tolist(), known, strict=True)
        return [pair.settle(*row) for pair, row in zip(pairs, rows, strict=True)]


class AdaptivePair:
    """One pair: what was judged, the choice in force, and what earlier ones turned out to be worth."""

    def __init__(self, policy: AdaptivePolicy) -> None:
        self.against: dict[int, float] = {}  # missing worth, by number of the choice
        self._policy = policy
        self._choice = policy.start
        self._has_chosen = False
        self._number = NUMBERS.get(policy.start)  # of the choice; None: it is none of CHOICES
        self._acceptance = TurningAcceptance(policy.half_life)
        self._cost: PassCost | None = None  # before the first report
        self._wanted: WindowChoice | None = None  # promised more by the last reports, `_num_wanted` of them
        self._num_wanted = 0
        self._check = Check(policy.settling, policy.compared)
        self._depth = 1.0  # of the pipeline, as a share: halved when a window of it made things slower

    def decide(self, seen: PairReport) -> WindowChoice:
        return self._policy.decide_all([self], [seen])[0]

    def observe(self, seen: PairReport) -> list[float]:
        """The network's inputs after one more report."""
        cost = self._cost = self._cost or self._policy.costs.of(seen.verifier_id)
        cost.observe(seen.pass_tokens, seen.pass_ms)
        if self._acceptance.observe(seen.matched, seen.matched + seen.mismatched):
            self._check.give_up()
        if self._choice.window == 0 and seen.num_sessions:
            self._acceptance.hope(self._policy.hope)
        if is_telling(seen):
            self._learn(seen)
        return _inputs(self._acceptance.rate, seen, cost)

    def settle(self, seen: PairReport, worth: Sequence[float], best: int, is_known: bool) -> WindowChoice:
        """The choice that follows from what each of CHOICES is worth; as before while there is nothing to go by."""
        if not is_telling(seen):
            return self._choice
        is_outpaced = seen.draft_ms * seen.num_sessions > seen.pass_ms
        is_worthless = is_outpaced or worth[best] - worth[0] < self._policy.least_gain
        if not is_outpaced and (not is_known or (seen.num_sessions > MOST_SESSIONS and not is_worthless)):
            choice = pipeline(seen, self._policy.start.chunk, self._depth)
            if self._choice.free_run and abs(self._choice.window - choice.window) <= NEAR * choice.window:
                self._wanted = None
            else:
                self._want(choice, 0.0, self._policy.settling + self._policy.compared)
            return self._choice
        is_in_vain = self._choice.window > 0 and is_worthless
        if is_worthless:
            best = 0
        gain = worth[best] - (-math.inf if self._number is None else worth[self._number])
        margin = self._policy.margin if self._has_chosen else self._policy.first_margin
        if is_in_vain or gain > margin:
            self._want(CHOICES[best], gain, self._policy.patience)
        else:
            self._wanted = None
        return self._choice

    def _want(self, choice: WindowChoice, gain: float, patience: int) -> None:
        """Changes to `choice` when it has been wanted by `patience` reports in a row."""
        if choice == self._choice:
            return
        self._num_wanted = self._num_wanted + 1 if choice == self._wanted else 1
        self._wanted = choice
        if self._num_wanted >= patience:
            self._check.begin(promised=gain)
            self._choice, self._number, self._wanted = choice, NUMBERS.get(choice), None
            self._has_chosen = True

    def _learn(self, seen: PairReport) -> None:
        """Holds against the choice in force what it promised and did not bring."""
        if self.against:
            keep, least = self._policy.forgetting, self._policy.margin / 4
            self.against = {number: value * keep for number, value in self.against.items() if value * keep > least}
        self._depth = min(1.0, self._depth / self._policy.forgetting)
        if seen.window == self._choice.window or 0 < seen.window < self._choice.window:  # as it is, or cut
            cycle_ms = seen.rtt_ms + seen.pass_ms + seen.draft_ms * seen.num_sessions
            shortfall = self._check.observe(math.log(max(seen.tpot_ms, 1e-3)), math.log(max(cycle_ms, 1e-3)))
            if shortfall is None:
                return
            if self._number is None:
                self._depth = max(self._depth / 2, LEAST_DEPTH)
            else:
                self.against[self._number] = self.against.get(self._number, 0.0) + shortfall


@dataclass(slots=True)
class Check:
    """Compares times per token behind a change of the choice with those before it, in one and the same world. That is
    told by the time of a cycle: a guess, its way, and its pass. All times are logarithms, averaged over reports."""

    num_settling: int
    num_compared: int
    settling: int = 0
    num: int = 0
    mean: float = 0.0  # over the last reports of the choice in force
    cycle: float = 0.0  # likewise
    before: float | None = None
    cycle_before: float = 0.0
    promised: float = 0.0

    def begin(self, promised: float) -> None:
        self.before = self.mean if self.num >= self.num_compared and math.isfinite(promised) else None
        self.cycle_before = self.cycle
        self.promised, self.settling, self.num = promised, self.num_settling, 0

    def give_up(self) -> None:
        """What was before is not comparable any more."""
        self.before, self.num = None, 0

    def observe(self, time: float, cycle: float) -> float | None:
        """Once for each change: how much of the promise is missing where the change made it worse; else None."""
        if self.settling:
            self.settling -= 1
            return None
        self.num += 1
        self.mean += (time - self.mean) / min(self.num, self.num_compared)
        self.cycle += (cycle - self.cycle) / min(self.num, self.num_compared)
        if self.before is None or self.num < self.num_compared:
            return None
        gained, self.before = self.before - self.mean, None
        if abs(self.cycle - self.cycle_before) > SAME_WORLD:
            return None
        return self.promised - gained if gained < 0 else None


def is_telling(seen: PairReport) -> bool:
    """Whether a pair was being answered, and passes and tokens were timed."""
    return seen.num_sessions > 0 and seen.tpot_ms > 0 and seen.pass_ms > 0


def _inputs(acceptance: float | None, seen: PairReport, cost: PassCost) -> list[float]:
    return choice_inputs(
        acceptance=1.0 if acceptance is None else acceptance,
        pass_ms=seen.pass_ms,
        guess_ms=seen.draft_ms * max(seen.num_sessions, 1),
        rtt_ms=seen.rtt_ms,
        token_ms=cost.per_token_ms,
        batch=seen.batch,
        queue=seen.queue,
    )


def pipeline(seen: PairReport, chunk: int, depth: float) -> WindowChoice:
    """As many guesses as the drafter makes for a session until the first of them has a verdict, or a share `depth` of
    them: it waits for its chunk, the link, half a pass under way, and its own."""
    guess_ms = max(seen.draft_ms * max(seen.num_sessions, 1), 1e-3)
    verdict_ms = seen.rtt_ms + 1.5 * seen.pass_ms
    window = int(max(depth * min(verdict_ms / guess_ms + 2 * chunk, float(LONGEST)), 2.0))
    return WindowChoice(window, min(max(chunk, 1), window), free_run=True)
