"""The adaptive policy: a network predicts the worth of each choice, and measured results correct its predictions.

Own work. A network trained on DSD-Sim (awc_training) predicts from the report of a pair the worth of each of CHOICES:
(ln goodput + ln speed) / 2, up to a constant.

1. Inputs: CHOICE_INPUTS, with a fading acceptance that restarts when a CUSUM test finds a change.
2. worth(choice) = prediction - penalty(choice).
3. The wanted choice is the first that applies:
   | condition | wanted choice |
   | --- | --- |
   | the drafter is outpaced: time between two guesses of a session > OUTPACED passes without guesses | target-only |
   | inputs unlike those of training | the pipeline window: guesses drafted until the first has a verdict (`pipeline`) |
   | no choice is worth `least_gain` more than target-only | target-only |
   | more than MOST_SESSIONS share the drafter | the pipeline window |
   | the best choice gains `margin` (over the start: `first_margin`) | the best choice |
4. Change to it when `patience` reports in a row want it (pipeline window: `settling + compared` reports).
5. After each change, compare the time per token with that before (TpotComparison). If it rose, add what is missing of
   the expected gain to the penalty of the choice, or halve the depth of the pipeline window. Penalties fade.

At window 0 nothing is judged, so each report adds `assumed_matches` to the acceptance until drafting is tried again.

Invariant: the choice is `start`, one of CHOICES or a pipeline window, for every report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np

from awc.estimators.acceptance import CusumAcceptance
from awc.estimators.features import CHOICE_INPUTS, LEAST_MS, choice_inputs
from awc.estimators.network import PolicyNetwork, shipped_network
from awc.estimators.verifier_cost import PerVerifier, VerifierCostLine
from awc.policy import WindowChoice
from shared.protocol.messages import PairReport

WEIGHTS = Path(__file__).with_name("adaptive.npz")
CHOICES = (
    WindowChoice(0, 1, free_run=True),  # target-only
    *(WindowChoice(window, 2, free_run=True) for window in (2, 4, 8, 16, 24, 32)),
    *(WindowChoice(window, 1, free_run=True) for window in (4, 12, 24)),
    *(WindowChoice(window, chunk, free_run=False) for window, chunk in ((4, 2), (8, 4), (16, 4), (16, 8), (32, 8))),
    *(WindowChoice(window, window, free_run=False) for window in (3, 5, 8)),
)
NUMBERS = {choice: number for number, choice in enumerate(CHOICES)}
LONGEST = 32  # longest pipeline window
MOST_SESSIONS = 4  # sessions of a pair; training has hardly any pair with more
LEAST_DEPTH = 0.125  # lower bound of the share of the pipeline window
NEAR = 0.25  # relative difference of two pipeline windows that is not worth a change
SAME_CYCLE = 0.15  # difference of ln(cycle time) up to which two times per token are comparable


@dataclass(frozen=True, slots=True)
class AdaptivePolicy:
    """A learned choice of window, chunk and free run, corrected by measured times per token (own work, trained on
    DSD-Sim). Raises ValueError for bad parameters."""

    name: ClassVar[str] = "adaptive"
    start: WindowChoice
    first_margin: float = 0.03  # least expected gain over the start
    margin: float = 0.05  # least expected gain over a choice of the policy
    least_gain: float = 0.02  # least expected gain of drafting over target-only
    patience: int = 2  # reports in a row before a change
    half_life: float = 192.0  # judged guesses after which a guess weighs half
    assumed_matches: float = 0.5  # matched guesses that each report adds at window 0
    compared: int = 8  # reports averaged before and after a change
    settling: int = 3  # skipped reports after a change
    forgetting: float = 0.997  # share left of a penalty after one report
    network: PolicyNetwork = field(default_factory=lambda: shipped_network(WEIGHTS), repr=False)
    costs: PerVerifier[VerifierCostLine] = field(default_factory=PerVerifier, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rules = {
            "margin and first_margin >= least_gain >= 0": self.margin >= self.least_gain >= 0
            and self.first_margin >= self.least_gain,
            "assumed_matches >= 0": self.assumed_matches >= 0,
            "patience and compared >= 1, settling >= 0": min(self.patience, self.compared, self.settling + 1) >= 1,
            "half_life > 0": self.half_life > 0,
            "0 <= forgetting <= 1": 0 <= self.forgetting <= 1,
            f"a network with {len(CHOICES)} outputs": self.network.b_out.shape == (len(CHOICES),),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"{rule} must hold, got {self}")

    def for_pair(self) -> AdaptivePair:
        return AdaptivePair(self)

    def decide_all(self, pairs: Sequence[AdaptivePair], reports: Sequence[PairReport]) -> list[WindowChoice]:
        """What `decide` says of each pair, with one prediction for all."""
        seen = (pair.observe(report) for pair, report in zip(pairs, reports, strict=True))
        inputs = np.fromiter(chain.from_iterable(seen), np.float64).reshape(len(pairs), len(CHOICE_INPUTS))
        worth, known = self.network.predict(inputs), self.network.knows(inputs).tolist()
        for row, pair in zip(worth, pairs, strict=True):
            for number, penalty in pair.penalties.items():
                row[number] -= penalty
        rows = zip(reports, worth.tolist(), worth.argmax(axis=1).tolist(), known, strict=True)
        return [pair.settle(*row) for pair, row in zip(pairs, rows, strict=True)]


class AdaptivePair:
    """One pair: its acceptance, the choice in force and the penalties of choices that disappointed."""

    def __init__(self, policy: AdaptivePolicy) -> None:
        self.penalties: dict[int, float] = {}  # by index in CHOICES
        self._policy = policy
        self._choice = policy.start
        self._has_chosen = False
        self._number = NUMBERS.get(policy.start)  # index of the choice; None outside CHOICES
        self._acceptance = CusumAcceptance(policy.half_life)
        self._cost: VerifierCostLine | None = None  # before the first report
        self._wanted: WindowChoice | None = None  # by the last `_num_wanted` reports
        self._num_wanted = 0
        self._comparison = TpotComparison(policy.settling, policy.compared)
        self._depth = 1.0  # share of the pipeline window

    def decide(self, seen: PairReport) -> WindowChoice:
        return self._policy.decide_all([self], [seen])[0]

    def observe(self, seen: PairReport) -> list[float]:
        """The network's inputs after one more report."""
        cost = self._cost = self._cost or self._policy.costs.of(seen.verifier_id, VerifierCostLine)
        cost.observe(seen.pass_tokens, seen.pass_ms)
        if self._acceptance.observe(seen.matched, seen.matched + seen.mismatched):
            self._comparison.reset()
        if self._choice.window == 0 and seen.num_sessions:
            self._acceptance.assume_matched(self._policy.assumed_matches)
        if is_measured(seen):
            self._learn(seen)
        rate = self._acceptance.rate
        return choice_inputs(
            acceptance=1.0 if rate is None else rate,
            pass_ms=seen.pass_ms,
            guess_ms=seen.draft_ms,
            rtt_ms=seen.rtt_ms,
            token_ms=cost.per_token_ms,
            batch=seen.batch,
            queue=seen.queue,
        )

    def settle(self, seen: PairReport, worth: Sequence[float], best: int, is_known: bool) -> WindowChoice:
        """The choice after a report. `worth`: of each of CHOICES; `best`: the index of its maximum; `is_known`: the
        inputs are like those of training."""
        if not is_measured(seen):
            return self._choice
        is_outpaced = self._cost is not None and self._cost.is_outpaced(seen)
        is_worthless = is_outpaced or worth[best] - worth[0] < self._policy.least_gain
        if not is_outpaced and (not is_known or (seen.num_sessions > MOST_SESSIONS and not is_worthless)):
            choice = pipeline(seen, self._policy.start.chunk, self._depth)
            if self._choice.free_run and abs(self._choice.window - choice.window) <= NEAR * choice.window:
                self._wanted = None
            else:
                self._want(choice, 0.0, self._policy.settling + self._policy.compared)
            return self._choice
        must_stop = is_worthless and self._choice.window > 0
        if is_worthless:
            best = 0
        gain = worth[best] - (-math.inf if self._number is None else worth[self._number])
        margin = self._policy.margin if self._has_chosen else self._policy.first_margin
        if must_stop or gain > margin:
            self._want(CHOICES[best], gain, self._policy.patience)
        else:
            self._wanted = None
        return self._choice

    def _want(self, choice: WindowChoice, gain: float, patience: int) -> None:
        """Changes to `choice` after `patience` reports in a row that want it. `gain`: expected."""
        if choice == self._choice:
            return
        self._num_wanted = self._num_wanted + 1 if choice == self._wanted else 1
        self._wanted = choice
        if self._num_wanted >= patience:
            self._comparison.begin(expected_gain=gain)
            self._choice, self._number, self._wanted = choice, NUMBERS.get(choice), None
            self._has_chosen = True

    def _learn(self, seen: PairReport) -> None:
        """Penalises the choice in force for an expected gain that did not come; earlier penalties fade."""
        if self.penalties:
            keep, least = self._policy.forgetting, self._policy.margin / 4
            self.penalties = {number: value * keep for number, value in self.penalties.items() if value * keep > least}
        self._depth = min(1.0, self._depth / self._policy.forgetting)
        if seen.window == self._choice.window or 0 < seen.window < self._choice.window:  # a wrapper may shorten it
            cycle_ms = seen.rtt_ms + seen.pass_ms + seen.draft_ms
            shortfall = self._comparison.observe(
                math.log(max(seen.tpot_ms, LEAST_MS)), math.log(max(cycle_ms, LEAST_MS))
            )
            if shortfall is None:
                return
            if self._number is None:
                self._depth = max(self._depth / 2, LEAST_DEPTH)
            else:
                self.penalties[self._number] = self.penalties.get(self._number, 0.0) + shortfall


@dataclass(slots=True)
class TpotComparison:
    """Compares ln(time per token) after a change of the choice with that before.

    The two are comparable while ln(cycle time) stays within SAME_CYCLE; cycle: time between two guesses + round trip +
    pass. Both are means over the newest `num_compared` reports.
    """

    num_settling: int
    num_compared: int
    settling: int = 0  # reports still to skip
    num: int = 0  # reports since
    mean: float = 0.0
    cycle: float = 0.0
    before: float | None = None  # mean before the change; None: nothing to compare with
    cycle_before: float = 0.0
    expected_gain: float = 0.0

    def begin(self, expected_gain: float) -> None:
        """The choice changes."""
        self.before = self.mean if self.num >= self.num_compared and math.isfinite(expected_gain) else None
        self.cycle_before = self.cycle
        self.expected_gain, self.settling, self.num = expected_gain, self.num_settling, 0

    def reset(self) -> None:
        """Earlier reports are no longer comparable."""
        self.before, self.num = None, 0

    def observe(self, time: float, cycle: float) -> float | None:
        """Adds the logarithms of one report. Once after a change that made tokens slower: expected minus actual gain;
        otherwise None."""
        if self.settling:
            self.settling -= 1
            return None
        self.num += 1
        self.mean += (time - self.mean) / min(self.num, self.num_compared)
        self.cycle += (cycle - self.cycle) / min(self.num, self.num_compared)
        if self.before is None or self.num < self.num_compared:
            return None
        gained, self.before = self.before - self.mean, None
        if abs(self.cycle - self.cycle_before) > SAME_CYCLE:
            return None
        return self.expected_gain - gained if gained < 0 else None


def is_measured(seen: PairReport) -> bool:
    """Whether the pair has sessions and measured times of passes and tokens."""
    return seen.num_sessions > 0 and seen.tpot_ms > 0 and seen.pass_ms > 0


def pipeline(seen: PairReport, chunk: int, depth: float) -> WindowChoice:
    """The guesses that the drafter makes for a session until the first of them has a verdict, times `depth`:

        window = depth * min((rtt + 1.5 pass) / draft_ms + 2 chunk, LONGEST), at least 2

    1.5 pass: half of the current pass, then its own.
    """
    guess_ms = max(seen.draft_ms, LEAST_MS)
    verdict_ms = seen.rtt_ms + 1.5 * seen.pass_ms
    window = int(max(depth * min(verdict_ms / guess_ms + 2 * chunk, float(LONGEST)), 2.0))
    return WindowChoice(window, min(max(chunk, 1), window), free_run=True)
