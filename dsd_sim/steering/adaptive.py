"""The default policy, compiled: awc.policies.adaptive with the pauses of awc.wrappers.pausing, for many reports.

Invariant: it decides what these decide, up to the rounding of sums (tests/dsd_sim/steering/test_steering.py).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from awc.policies.adaptive import LEAST, NEAR, PRIOR_NUM, PRIOR_RATE
from awc.wrappers import pausing
from dsd_sim.steering.formulas import (
    add_pass,
    add_to_average,
    add_to_test,
    guesses_in_flight,
    intercept_ms,
    is_measured,
    is_plausible,
    net_gain,
    num_bought,
    paying_depth,
    slope_ms,
)
from dsd_sim.steering.records import PAUSED, START, UNTOLD
from shared.protocol.messages import MAX_WINDOW

PATIENCE, PROMPTS_FILL = pausing.PATIENCE, pausing.PROMPTS_FILL
PAUSE_PRIOR_RATE, PAUSE_PRIOR_NUM = pausing.PRIOR_RATE, pausing.PRIOR_NUM


@njit(cache=True)
def plausible(reports):
    """Which reports policies get."""
    found = np.empty(len(reports), np.bool_)
    for i in range(len(reports)):
        found[i] = is_plausible(reports[i])
    return found


@njit(cache=True)
def decide_all(settings, rows, numbers, nodes, reports):
    """The decision on each report: START, PAUSED or a window.

    numbers: [reports] the row of each report's pair; nodes: [reports] its verifier.
    """
    decisions = np.empty(len(reports), np.int64)
    for i in range(len(reports)):
        is_paused = _stays_paused(settings, rows, numbers[i], nodes[i], reports[i])
        decisions[i] = PAUSED if is_paused else START
    is_drafting = decisions == START
    for i in range(len(reports)):
        if is_drafting[i]:
            decisions[i] = _window(settings, rows, numbers[i], nodes[i], reports[i])
    for i in range(len(reports)):
        if is_drafting[i]:
            decisions[i] = _checked(settings, rows, numbers[i], nodes[i], reports[i], decisions[i])
    return decisions


@njit(cache=True)
def renew(settings, rows, numbers):
    """Makes rows those of pairs without a history."""
    for row in numbers:
        p = rows.pairs[row]
        p.window, p.told = START, UNTOLD
        p.is_paused = p.is_trial = False
        p.left = p.probing = p.num_worthless = p.num_speeds = p.num_better = p.unproven = 0
        p.reason = 0.0
        p.length, p.trust, p.trusted = settings.first, settings.after_failed, settings.before_trial
        p.tpot_ms = 0.0
        for known in (rows.of_windows, rows.of_pauses):
            known.average[row].matched = known.average[row].judged = 0.0
            _restart(known.matches[row])
            _restart(known.mismatches[row])


@njit
def _restart(test):
    test._evidence = test.happened = test.num = 0.0


@njit
def _observe(known, row, seen):
    """CusumAcceptance.observe"""
    num_matched, num = float(seen.matched), float(seen.matched + seen.mismatched)
    if num == 0:
        return
    average, matches, mismatches = known.average[row], known.matches[row], known.mismatches[row]
    rate = (average.matched + 0.5) / (average.judged + 1)
    add_to_average(average, num_matched, num)
    has_risen = add_to_test(matches, num_matched, num, rate)
    has_fallen = add_to_test(mismatches, num - num_matched, num, 1 - rate)
    if has_risen:
        average.matched, average.judged = matches.happened, matches.num
    elif has_fallen:
        average.matched, average.judged = mismatches.num - mismatches.happened, mismatches.num
    if has_risen or has_fallen:
        _restart(matches)
        _restart(mismatches)


@njit
def _rate(known, row, prior, num):
    """CusumAcceptance.rate_with"""
    average = known.average[row]
    return (average.matched + num * prior) / (average.judged + num)


@njit
def _add_pass(cost, seen):
    add_pass(cost, seen.pass_tokens, seen.pass_ms)
    cost.per_token_ms = slope_ms(cost)
    cost.base_ms = intercept_ms(cost)


@njit
def _window(settings, rows, row, node, seen):
    """AdaptivePair.decide"""
    p, cost = rows.pairs[row], rows.window_costs[node]
    _add_pass(cost, seen)
    _observe(rows.of_windows, row, seen)
    if not is_measured(seen):
        return p.window
    rate = _rate(rows.of_windows, row, PRIOR_RATE, PRIOR_NUM)
    pipeline = guesses_in_flight(seen, num_bought(rate, seen, cost.per_token_ms), settings.chunk)
    depth = paying_depth(rate, seen, settings.least)
    window = int(max(min(pipeline, depth, float(MAX_WINDOW)), float(LEAST)))
    if p.window == START or abs(window - p.window) > NEAR * p.window:
        p.window = window
    return p.window


@njit
def _stays_paused(settings, rows, row, node, seen):
    """PausingPair.stays_paused"""
    p, cost = rows.pairs[row], rows.pause_costs[node]
    _observe(rows.of_pauses, row, seen)
    _add_pass(cost, seen)
    if not p.is_paused or not is_measured(seen):
        return p.is_paused
    p.left -= 1
    if p.is_trial:
        _judge(settings, rows, row, seen)
    if p.is_paused:
        is_over = p.left <= 0 and _can_gain(settings, rows, row, cost, seen)
        if is_over or _has_lost_its_reason(settings, rows, row, cost, seen):
            _resume(p, settings.settling + settings.compared)
            p.probing = p.trusted
            p.unproven = 0 if is_over else settings.first
    return p.is_paused


@njit
def _has_lost_its_reason(settings, rows, row, cost, seen):
    p = rows.pairs[row]
    is_better = _longest_gain(settings, rows, row, cost, seen) > p.reason + settings.doubtful
    p.num_better = p.num_better + 1 if is_better else 0
    return p.num_better >= PATIENCE and p.unproven == 0


@njit
def _longest_gain(settings, rows, row, cost, seen):
    """Of the longest window."""
    rate = _rate(rows.of_pauses, row, PAUSE_PRIOR_RATE, PAUSE_PRIOR_NUM)
    return net_gain(rate, seen, MAX_WINDOW, settings.price, cost)


@njit
def _checked(settings, rows, row, node, seen, decision):
    """PausingPair.check"""
    p, cost = rows.pairs[row], rows.pause_costs[node]
    has_written = seen.tpot_ms != p.tpot_ms
    p.tpot_ms = seen.tpot_ms
    window = settings.start_window if decision == START else decision
    if not is_measured(seen) or window == 0:
        return decision
    is_probing = p.probing > 0
    p.probing = max(0, p.probing - 1)
    p.unproven = max(0, p.unproven - 1)
    rate = _rate(rows.of_pauses, row, PAUSE_PRIOR_RATE, PAUSE_PRIOR_NUM)
    gain = net_gain(rate, seen, window, settings.price, cost)
    gains = gain > settings.margin
    can_gain = gains or _can_gain(settings, rows, row, cost, seen)
    p.num_worthless = 0 if gains or (is_probing and can_gain) else p.num_worthless + 1
    if p.num_worthless >= PATIENCE:
        p.reason, p.num_better = max(0.0, _longest_gain(settings, rows, row, cost, seen)), 0
        _pause(settings, p, p.length if can_gain else 0)
        return PAUSED
    if seen.window > 0 and has_written:
        place = p.num_speeds % rows.speeds.shape[1]
        rows.speeds[row, place], rows.situations[row, place] = 1 / seen.tpot_ms, _situation(seen)
        p.num_speeds += 1
    p.trusted = max(0, p.trusted - 1)
    may_try = seen.shares_machine and p.trusted == 0 and gain < settings.doubtful
    if may_try and _speed(settings, rows, row, seen) > 0:
        p.is_paused = p.is_trial = True
        p.reason, p.num_better = max(0.0, _longest_gain(settings, rows, row, cost, seen)), 0
        p.left = settings.settling + settings.compared + settings.first
        p.settling, p.num_compared, p.sum_compared = settings.settling, 0, 0.0
        return PAUSED
    return decision


@njit
def _situation(seen):
    """pausing.situation"""
    return 2 * seen.num_sessions + (1 if seen.pass_tokens > PROMPTS_FILL * seen.batch else 0)


@njit
def _speed(settings, rows, row, seen):
    """PausingPair._speed; 0 for None"""
    wanted, num, total = _situation(seen), 0, 0.0
    for i in range(min(rows.pairs[row].num_speeds, rows.speeds.shape[1])):
        if rows.situations[row, i] == wanted:
            num += 1
            total += rows.speeds[row, i]
    return total / num if num >= settings.compared else 0.0


@njit
def _can_gain(settings, rows, row, cost, seen):
    rate = max(_rate(rows.of_pauses, row, PAUSE_PRIOR_RATE, PAUSE_PRIOR_NUM), PAUSE_PRIOR_RATE)
    return net_gain(rate, seen, MAX_WINDOW, settings.price, cost) > settings.margin


@njit
def _pause(settings, p, length):
    p.is_paused, p.left, p.is_trial = True, length, False
    if length:
        p.length = min(2 * p.length, settings.longest)


@njit
def _resume(p, trusted):
    p.is_paused, p.is_trial, p.trusted = False, False, trusted
    p.num_worthless = p.num_speeds = 0


@njit
def _judge(settings, rows, row, seen):
    """PauseTrial.observe, PausingPair._judge"""
    p = rows.pairs[row]
    if seen.window == 0:
        if p.settling:
            p.settling -= 1
        else:
            before = _speed(settings, rows, row, seen)
            if before > 0:
                p.num_compared += 1
                p.sum_compared += 1 / seen.tpot_ms / before
    if p.num_compared < settings.compared:
        if p.left <= 0:
            _resume(p, p.trust)
    elif p.sum_compared / p.num_compared * (1 + settings.margin) < 1:
        p.length = settings.first
        _resume(p, p.trust)
        p.trust = min(4 * p.trust, settings.longest)
    else:
        p.trust = settings.after_failed
        _pause(settings, p, p.length)
