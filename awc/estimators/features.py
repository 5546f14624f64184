"""The inputs of the paper's network.

Invariant: inputs are finite for every report. Times enter as logarithms, so that their ratios matter.
"""

from __future__ import annotations

import math

WINDOW_INPUTS = ("queue utilisation", "acceptance", "log(1 + RTT)", "log(1 + TPOT)", "window")
LEAST_MS = 1e-3  # lower bound of a reported time wherever awc divides by it or takes its logarithm


def window_inputs(queue: float, acceptance: float, rtt_ms: float, tpot_ms: float, window: float) -> list[float]:
    """WINDOW_INPUTS, the five inputs of the paper (arXiv 2511.21669). `queue`: queued tokens / token budget, 0…1;
    `acceptance`: of recently judged guesses."""
    return [queue, acceptance, math.log1p(rtt_ms), math.log1p(tpot_ms), float(window)]
