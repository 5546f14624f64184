"""The drafter's side of a session in counting form: the rules of shared.protocol.drafter_session, compiled.

Invariant: both forms commit, count and answer alike if guesses and messages are the same; engine/test_counting.py
drives them side by side. `d` is a DRAFTER record, `m` a MESSAGE (records.py).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dsd_sim.engine.records import NEVER
from shared.policies import reading, stepping
from shared.protocol.drafter_session import MAX_SILENT_TRIES, MAX_TIMEOUT_MS, MIN_TIMEOUT_MS
from shared.protocol.messages import MAX_WINDOW

num_left_out = njit(cache=True)(reading.num_left_out)
turn_of = njit(cache=True)(stepping.turn_of)


@njit(cache=True)
def start_drafter(d, prompt, stop, limit, window, chunk, free_run, now):
    """Starts a session behind a prompt of `prompt` tokens."""
    d.length = d.committed = d.sent = prompt
    d.computed = d.left_out = d.epoch = d.tries = d.valid = 0
    d.wrong, d.stop, d.limit = NEVER, stop, limit
    d.in_step, d.closed = False, prompt >= limit
    d.poll_due, d.polled_at = True, -1
    d.drafted = d.accepted = d.rejected = d.late = d.discarded = 0
    d.confidence, d.min_confidence = 1.0, 0.0
    d.quiet_since, d.polled_ms, d.pass_ms = now, 0.0, 0.0
    d.rtt_ms, d.rtt_deviation_ms = -1.0, 0.0
    steer(d, window, chunk, free_run, 0.0)


@njit(cache=True)
def steer(d, window, chunk, free_run, min_confidence):
    d.window = max(0, min(window, MAX_WINDOW))
    d.chunk = max(1, min(chunk, max(1, d.window)))
    d.free_run = free_run or d.window == 0
    d.min_confidence = min_confidence


@njit(cache=True)
def can_draft(d):
    guesses = d.length - d.committed
    if d.closed or guesses >= d.window or d.length >= d.limit:
        return False
    if guesses == 0:
        return True
    return d.confidence >= d.min_confidence and not (d.length == d.stop and d.wrong >= d.length)


@njit(cache=True)
def wants_step(d):
    return not d.in_step and can_draft(d)


@njit(cache=True)
def num_todo(d):
    """Tokens to feed for the next guess."""
    return d.length - min(d.computed, d.length - 1)


@njit(cache=True)
def turn(drafters, order, device):
    """The place in `order` of the device's session whose turn it is; -1: none wants a step."""
    if device.num_sessions == 1:
        return 0 if wants_step(drafters[order[0]]) else -1
    todo, places = np.empty(device.num_sessions, np.int64), np.empty(device.num_sessions, np.int64)
    num_ready = 0
    for place in range(device.num_sessions):
        d = drafters[order[place]]
        if wants_step(d):
            todo[num_ready], places[num_ready] = num_todo(d), place
            num_ready += 1
    return places[turn_of(todo[:num_ready], device.max_rows)] if num_ready else -1


@njit(cache=True)
def leave_out(d, token_ms):
    """Leaves out, once, a part of the tokens to read."""
    if d.left_out == 0:
        d.left_out = num_left_out(num_todo(d), token_ms)
        d.computed += d.left_out


@njit(cache=True)
def begin_step(d, max_tokens):
    """Freezes the next call of the draft model; returns the number of tokens fed."""
    d.step_start = d.length - num_todo(d)
    d.step_fed = min(max_tokens, d.length - d.step_start)
    d.valid = d.length
    d.in_step = True
    return d.step_fed


@njit(cache=True)
def end_step(d, is_right, confidence):
    """Applies a finished step. `is_right`: whether its guess equals the target's token if all guesses before it do."""
    d.in_step = False
    end = d.step_start + d.step_fed
    d.computed = min(end, d.valid)
    if end != d.length or d.valid < end or not can_draft(d):
        return False
    if not is_right and d.wrong == NEVER:
        d.wrong = d.length
    d.length += 1
    d.confidence = confidence
    d.drafted += 1
    return True


@njit(cache=True)
def take_draft(d, m, now):
    """Writes the next Draft into `m`; False if none is due."""
    if d.closed:
        return False
    if d.committed >= d.limit:
        d.free_run = True
        close_drafter(d)
        return _draft(d, m, d.committed, 0, now)
    if d.poll_due:
        d.poll_due = False
        return _draft(d, m, d.committed, 0, now)
    unsent = d.length - d.sent
    if unsent <= 0 or (unsent < d.chunk and can_draft(d)):
        return False
    base, num = d.sent, min(unsent, MAX_WINDOW)
    if base == d.committed:
        d.quiet_since = now
    d.sent = base + num
    return _draft(d, m, base, num, now)


@njit(cache=True)
def resend_at(d):
    """Time of the next resend unless a verdict comes first; infinity if no verdict is expected."""
    if d.closed or (d.sent <= d.committed and not d.free_run):
        return np.inf
    timeout = _timeout_ms(d)
    return d.quiet_since + min(timeout * 2.0**d.tries, max(timeout, MAX_TIMEOUT_MS))


@njit(cache=True)
def _timeout_ms(d):
    trip = 1000.0 if d.rtt_ms < 0 else d.rtt_ms + 4 * d.rtt_deviation_ms
    return max(MIN_TIMEOUT_MS, trip + 2 * d.pass_ms)


@njit(cache=True)
def on_timer(d, m, now):
    """Writes a Draft that resends all pending guesses into `m`; False if no resend is due."""
    if now < resend_at(d):
        return False
    if d.tries == MAX_SILENT_TRIES:
        close_drafter(d)
        return False
    d.tries += 1
    d.quiet_since = now
    return _draft(d, m, d.committed, d.sent - d.committed, now)


@njit(cache=True)
def _draft(d, m, base, num, now):
    m.epoch, m.base, m.num, m.wrong = d.epoch, base, num, d.wrong
    m.free_run, m.sent_ms = d.free_run, now
    return True


@njit(cache=True)
def on_verdict(d, m, now):
    """Applies a Verdict; False if the session is closed."""
    if d.closed:
        return False
    d.tries, d.quiet_since, d.pass_ms = 0, now, m.compute_ms
    if m.sent_ms >= 0:
        _observe_trip(d, max(0.0, now - m.sent_ms - m.hold_ms))
    if m.base > d.committed:
        if d.polled_at != d.committed or now >= d.polled_ms + _timeout_ms(d):
            d.poll_due, d.polled_at, d.polled_ms = True, d.committed, now
        return True
    rewound = m.epoch > d.epoch
    _commit(d, m)
    if rewound:
        d.epoch = max(d.epoch, m.epoch)
        d.sent = d.committed
    if m.finish:
        close_drafter(d)
    return True


@njit(cache=True)
def _observe_trip(d, sample):
    if d.rtt_ms < 0:
        d.rtt_ms, d.rtt_deviation_ms = sample, sample / 2
    else:
        d.rtt_deviation_ms += (abs(sample - d.rtt_ms) - d.rtt_deviation_ms) / 4
        d.rtt_ms += (sample - d.rtt_ms) / 8


@njit(cache=True)
def _commit(d, m):
    end = m.base + m.num
    equal = min(end, d.length, d.wrong)
    in_time = max(0, min(equal, m.base + m.accepted) - d.committed)
    d.accepted += in_time
    d.late += max(0, equal - d.committed) - in_time
    if equal < min(end, d.length):
        if equal >= d.committed:
            d.rejected += 1
        d.discarded += d.length - max(equal + 1, d.committed)
        _roll_back(d, equal)
        d.length = equal
        d.wrong = NEVER
        d.epoch += 1
        d.sent = end
    d.length = max(d.length, end)
    d.committed = max(d.committed, end)
    d.sent = max(d.sent, d.committed)


@njit(cache=True)
def close_drafter(d):
    """Ends drafting and discards the guesses that are not judged."""
    d.discarded += d.length - d.committed
    _roll_back(d, d.committed)
    d.length, d.wrong = d.committed, NEVER
    d.closed = True


@njit(cache=True)
def _roll_back(d, length):
    d.computed = min(d.computed, length)
    d.valid = min(d.valid, length)
