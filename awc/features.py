"""What the paper's controller sees of a pair: five numbers (arXiv 2511.21669, Adaptive Window Control).

Invariant: inputs are finite whatever a report says. Times go in as logarithms, because what matters is their ratio.
"""

from __future__ import annotations

import math

INPUTS = ("queue utilisation", "acceptance", "log(1 + RTT)", "log(1 + TPOT)", "window")
NUM_INPUTS = len(INPUTS)


def inputs_of(queue: float, acceptance: float, rtt_ms: float, tpot_ms: float, window: float) -> list[float]:
    """`queue`: queued tokens / token budget, 0 to 1; acceptance: right guesses of those judged lately."""
    return [queue, acceptance, math.log1p(rtt_ms), math.log1p(tpot_ms), float(window)]
