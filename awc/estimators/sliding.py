"""What a sliding window is worth: formulas of the pipeline of drafter, link and verifier, with free run.

    a           acceptance; guesses are taken as independent
    guess_ms    between two guesses of a session
    rtt_ms      round trip
    pass_ms     a verify pass

Invariant: results are finite for every report.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from awc.estimators.acceptance import WINDOWS
from awc.estimators.features import LEAST_MS
from awc.estimators.verifier_cost import VerifierCostLine
from shared.protocol.messages import MAX_WINDOW, PairReport

LOWEST, HIGHEST = 0.01, 0.999  # acceptance
PRICE = 0.01  # of an unused guess, in tokens
PASSES = 2.0  # from a guess's arrival to its verdict, at most: the rest of the current pass, then its own
LEAST_OVERTAKING = 1e-6  # probability of the run of right guesses that overtakes the verifier, at least


def is_measured(seen: PairReport) -> bool:
    """Whether the pair has sessions and measured times of passes and tokens."""
    return seen.num_sessions > 0 and seen.tpot_ms > 0 and seen.pass_ms > 0


def within(acceptance: float) -> float:
    return min(max(acceptance, LOWEST), HIGHEST)


def verdict_ms(seen: PairReport) -> float:
    """From a guess to its verdict."""
    return seen.rtt_ms + PASSES * seen.pass_ms


def num_bought(acceptance: float, seen: PairReport, token_ms: float) -> float:
    """Guesses of a session that pay in a pass whose every further token takes `token_ms`: the largest k with

        a^k >= t / (1 - a + t)      t = sessions * token_ms / pass_ms

    Guess k then gains at least as much for its session as it costs all sessions (the marginal goodput of DSDE,
    arXiv 2509.01083, and TETRIS, arXiv 2502.15197).
    """
    cost = max(seen.batch, 1.0) * token_ms / max(seen.pass_ms, LEAST_MS)
    if cost <= 0:
        return float(MAX_WINDOW)
    a = within(acceptance)
    return min(math.log(cost / (1 - a + cost)) / math.log(a), float(MAX_WINDOW))


def guesses_in_flight(seen: PairReport, bought: float, chunk: int) -> float:
    """Guesses that a session makes until the first of them has its verdict, and the chunks at both ends."""
    guess_ms = max(seen.draft_ms, seen.pass_ms / (1 + bought), LEAST_MS)
    return verdict_ms(seen) / guess_ms + 2 * chunk


def num_overtaking(seen: PairReport) -> float:
    """Right guesses in a row until they overtake the verifier, which is ahead by a round trip after a wrong one:

        m = (rtt + guess) / (pass - guess), at least 1

    MAX_WINDOW at most, also for a drafter that never overtakes.
    """
    ahead_ms = seen.pass_ms - seen.draft_ms
    if ahead_ms <= 0:
        return float(MAX_WINDOW)
    return min(max(1.0, (seen.rtt_ms + seen.draft_ms) / ahead_ms), float(MAX_WINDOW))


def paying_depth(acceptance: float, seen: PairReport, least: float) -> float:
    """The largest k with a^(k - m) >= least: once m guesses have overtaken the verifier, so likely is the use of a
    guess k ahead of the newest verdict."""
    if least <= 0:
        return float(MAX_WINDOW)
    return num_overtaking(seen) + math.log(least) / math.log(within(acceptance))


def speedup(acceptance: float, seen: PairReport, most: float) -> float:
    """Tokens per pass of a session; target-only has 1. most: guesses that come in a pass of a run.

    After a wrong guess the verifier generates alone, a token a pass, until m guesses in a row overtake it
    (`num_overtaking`), which takes n tokens on average:

        n = (a^-m - 1) / (1 - a)

    Then it gets a run of 1 / (1 - a) tokens, `most` of them in a pass.
    """
    alone = _alone(acceptance, seen)
    if alone is None:
        return 1.0
    a = within(acceptance)
    passes: float = 1 / (1 - a ** max(most, 1.0))
    return (alone + 1 / (1 - a)) / (alone + passes)


def _alone(acceptance: float, seen: PairReport) -> float | None:
    """n of `speedup`; None if guesses hardly ever overtake the verifier."""
    if seen.draft_ms >= seen.pass_ms:
        return None
    a = within(acceptance)
    odds: float = a ** num_overtaking(seen)
    return None if odds < LEAST_OVERTAKING else (1 / odds - 1) / (1 - a)


def guesses_made(seen: PairReport, window: int) -> float:
    """Guesses that a session makes during a pass."""
    pass_ms = max(seen.pass_ms, LEAST_MS)
    return min(pass_ms / max(seen.draft_ms, LEAST_MS), window * pass_ms / max(verdict_ms(seen), LEAST_MS))


def guesses_of_run(acceptance: float, seen: PairReport, window: int) -> float:
    """Guesses that come in a pass while all are right. A run that is longer than the window waits for verdicts."""
    guess_ms = max(seen.draft_ms, LEAST_MS)
    waiting: float = within(acceptance) ** max(0.0, window - num_overtaking(seen))  # share of the runs
    wait_ms = max(0.0, verdict_ms(seen) / max(window, 1) - guess_ms)
    return max(seen.pass_ms, LEAST_MS) / (guess_ms + waiting * wait_ms)


def net_gain(acceptance: float, seen: PairReport, window: int, price: float, cost: VerifierCostLine) -> float:
    """ln(speed-up) of a window over target-only, less the price of its unused guesses, in tokens per token.

    A pass with guesses takes longer than one without by `cost`; the verifier buys no more than pay (`num_bought`).
    """
    if window < 1:
        return 0.0
    in_run, made = guesses_of_run(acceptance, seen, window), guesses_made(seen, window)
    found, share = speedup(acceptance, seen, in_run), share_of_runs(acceptance, seen, in_run)
    fed_ms = cost.per_token_ms * max(seen.batch, 1.0)
    bought = share * min(in_run, num_bought(acceptance, seen, cost.per_token_ms))
    without_ms = max(cost.base_ms + fed_ms, seen.pass_ms - fed_ms * bought, LEAST_MS)  # more while prompts fill passes
    longer = fed_ms * bought / without_ms
    return math.log(found) - math.log1p(longer) - price * max(0.0, made - (found - 1)) / found


def share_of_runs(acceptance: float, seen: PairReport, most: float) -> float:
    """Passes that verify guesses of a session / passes."""
    alone = _alone(acceptance, seen)
    if alone is None:
        return 0.0
    passes: float = 1 / (1 - within(acceptance) ** max(most, 1.0))
    return passes / (alone + passes)


def sliding_guesses(seen: PairReport) -> NDArray[np.float64]:
    """`guesses_made` with each window from 0 to MAX_WINDOW."""
    return np.array([guesses_made(seen, window) for window in range(MAX_WINDOW + 1)])


def sliding_tokens(acceptance: float, seen: PairReport) -> NDArray[np.float64]:
    """`speedup` of each window from 0 to MAX_WINDOW."""
    alone = _alone(acceptance, seen)
    if alone is None:
        return np.ones_like(WINDOWS)
    a = within(acceptance)
    in_run = np.array([guesses_of_run(a, seen, window) for window in range(MAX_WINDOW + 1)])
    passes = 1 / (1 - a ** np.maximum(in_run, 1.0))
    found: NDArray[np.float64] = np.where(WINDOWS > 0, (alone + 1 / (1 - a)) / (alone + passes), 1.0)
    return found
