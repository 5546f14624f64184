"""What it is worth that draft and target take turns: stop-and-wait (Leviathan et al., arXiv 2211.17192, equation 1).

    speed(g) = (1 + a + … + a^g) / (rtt + pass + g * draft)     for g > 0
    speed(0) = 1 / pass

a: acceptance; guesses are taken as independent.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from awc.estimators.acceptance import WINDOWS, tokens_per_round
from awc.estimators.features import LEAST_MS
from awc.estimators.verifier_cost import VerifierCostLine
from shared.protocol.messages import PairReport

NEARLY = 0.97  # of the best speed: a longer window that gains less is not worth its guesses


def speeds(acceptance: float, rtt_ms: float, pass_ms: float, draft_ms: float) -> NDArray[np.float64]:
    """Tokens per millisecond with each window from 0 to MAX_WINDOW."""
    times = np.where(WINDOWS > 0, rtt_ms, 0.0) + pass_ms + draft_ms * WINDOWS
    return tokens_per_round(acceptance) / np.maximum(times, 1e-6)


def turn(acceptance: float, seen: PairReport) -> int:
    """The shortest window that is nearly as fast as the best one, at least 1."""
    drafting = speeds(acceptance, seen.rtt_ms, seen.pass_ms, seen.draft_ms)[1:]
    return int(np.argmax(drafting >= NEARLY * drafting.max())) + 1


def turn_gain(acceptance: float, seen: PairReport, price: float, cost: VerifierCostLine) -> float:
    """ln(speed-up) of `turn` over target-only, less the price of its unused guesses, in tokens per token."""
    window = turn(acceptance, seen)
    speed = float(speeds(acceptance, seen.rtt_ms, seen.pass_ms, seen.draft_ms)[window])
    num_tokens = float(tokens_per_round(acceptance)[window])
    alone_ms = max(seen.pass_ms - cost.per_token_ms * window, cost.base_ms + cost.per_token_ms, LEAST_MS)
    return math.log(speed * alone_ms) - price * max(0.0, window - (num_tokens - 1)) / num_tokens
