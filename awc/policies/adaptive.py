"""The adaptive policy: as many guesses ahead as the pipeline can use, and no more than pay.

    window = min(pipeline, depth), at least LEAST

    pipeline    guesses that a session makes until the first of them has its verdict (estimators/sliding.py)
    depth       m guesses in a row overtake the verifier, which is ahead by a round trip after a wrong one. Then guess
                m + k ahead of the newest verdict is used with probability u = a^k, and pays while
                u * VALUE >= (1 - u) * price

A session has free run. Own work; the pipeline is the bandwidth-delay product of TCP.

Invariant: the window is LEAST to MAX_WINDOW once a pair is measured, and changes only by more than NEAR.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from awc.estimators.acceptance import CusumAcceptance
from awc.estimators.sliding import PRICE, guesses_in_flight, is_measured, num_bought, paying_depth
from awc.estimators.verifier_cost import PerVerifier, VerifierCostLine
from awc.policy import WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport

VALUE = 1 / 15  # of a used guess, in tokens: the time that it saves / the time of a token
LEAST = 3  # shortest window
NEAR = 0.15  # relative difference of two windows that is not worth a change
PRIOR_RATE, PRIOR_NUM = 0.9, 4.0  # a-priori acceptance, and its weight in guesses


@dataclass(frozen=True, slots=True)
class AdaptivePolicy:
    """The window that the pipeline can use, as far as its guesses pay. Raises ValueError for bad parameters."""

    name: ClassVar[str] = "adaptive"
    start: WindowChoice
    price: float = PRICE
    half_life: float = 192.0  # judged guesses after which a guess weighs half
    costs: PerVerifier[VerifierCostLine] = field(default_factory=PerVerifier, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (0 <= self.price < 1 and self.half_life > 0):
            raise ValueError(f"price must be 0 to 1 and half_life above 0, got {self}")

    def for_pair(self) -> AdaptivePair:
        return AdaptivePair(self)


class AdaptivePair:
    """One pair: its acceptance and the choice in force."""

    def __init__(self, policy: AdaptivePolicy) -> None:
        self._policy = policy
        self._choice = policy.start
        self._is_start = True
        self._least = policy.price / (policy.price + VALUE)  # a guess pays if it is used at least so often
        self._acceptance = CusumAcceptance(policy.half_life)
        self._cost: VerifierCostLine | None = None  # before the first report

    def decide(self, seen: PairReport) -> WindowChoice:
        cost = self._cost = self._cost or self._policy.costs.of(seen.verifier_id, VerifierCostLine)
        cost.observe(seen.pass_tokens, seen.pass_ms)
        self._acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        if not is_measured(seen):
            return self._choice
        rate = self._acceptance.rate_with(PRIOR_RATE, PRIOR_NUM)
        chunk = max(self._policy.start.chunk, 1)
        pipeline = guesses_in_flight(seen, num_bought(rate, seen, cost.per_token_ms), chunk)
        depth = paying_depth(rate, seen, self._least)
        window = int(max(min(pipeline, depth, MAX_WINDOW), LEAST))
        if self._is_start or abs(window - self._choice.window) > NEAR * self._choice.window:
            self._choice = WindowChoice(window, min(chunk, window), free_run=True)
            self._is_start = False
        return self._choice
