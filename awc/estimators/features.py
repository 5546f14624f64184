"""What the learned policies see of a pair.

Invariant: inputs are finite whatever a report says. Times go in as logarithms, because what matters is their ratio.
"""

from __future__ import annotations

import math

WINDOW_INPUTS = ("queue utilisation", "acceptance", "log(1 + RTT)", "log(1 + TPOT)", "window")
CHOICE_INPUTS = (
    "acceptance",
    "log(pass)",
    "log(time between guesses of a session / pass)",
    "log(1 + RTT / pass)",
    "log(1 + cost of 100 tokens / pass)",
    "log(sessions of a pass)",
    "queue utilisation",
)
LEAST_MS = 1e-3  # shorter times count as this


def window_inputs(queue: float, acceptance: float, rtt_ms: float, tpot_ms: float, window: float) -> list[float]:
    """The paper's five (arXiv 2511.21669). `queue`: queued tokens / token budget, 0 to 1; acceptance: right guesses of
    those judged lately."""
    return [queue, acceptance, math.log1p(rtt_ms), math.log1p(tpot_ms), float(window)]


def choice_inputs(
    acceptance: float,
    pass_ms: float,
    guess_ms: float,
    rtt_ms: float,
    token_ms: float,
    batch: float,
    queue: float,
) -> list[float]:
    """guess_ms: from one guess of a session to its next, which is a draft step for each session that the drafter has;
    token_ms: what a further token adds to a pass; batch: sessions of a pass."""
    pass_ms = max(pass_ms, LEAST_MS)
    return [
        acceptance,
        math.log(pass_ms),
        math.log(max(guess_ms, LEAST_MS) / pass_ms),
        math.log1p(rtt_ms / pass_ms),
        math.log1p(100 * token_ms / pass_ms),
        math.log(max(batch, 1.0)),
        queue,
    ]
