"""The verifier's side of a session in counting form: shared.protocol's verifier_session and guess_queue, compiled.

Invariant: both forms commit, count and answer alike if guesses and messages are the same; engine/test_counting.py
drives them side by side. Only here any number of drafts in a row gets answers (docs/protocol.md, rule 7).

`v` is a VERIFIER record, `m` and `answer` are MESSAGEs (records.py).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dsd_sim.engine.records import NEVER
from shared.protocol.guesses import Survival
from shared.protocol.lookup import LONGEST_MATCH, LookupChances
from shared.protocol.messages import MAX_WINDOW
from shared.protocol.retelling import MAX_RETOLD
from shared.protocol.verifier_session import EARNED_MS, OVERTAKING_MS

_FRESH = Survival()
NUM_HOLES = 62  # positions before the newest one whose guesses may still come, as they were overtaken
PRIOR, PRIOR_WEIGHT, MEMORY = _FRESH.prior, _FRESH.prior_weight, _FRESH.memory
OWN_PRIOR, OWN_PRIOR_WEIGHT, OWN_MEMORY = LookupChances.PRIOR, LookupChances.PRIOR_WEIGHT, LookupChances.MEMORY


@njit(cache=True)
def open_verifier(v, prompt, stop, limit, free_run, has_drafter, now):
    """Opens a session behind a prompt of `prompt` tokens; target-only without a drafter."""
    v.length = v.pending_base = prompt
    v.computed = v.epoch = v.pending = v.received = v.holes = v.passes = v.recovered = v.bonus = 0
    v.judged = prompt
    v.stop, v.limit, v.pending_wrong = stop, limit, NEVER
    v.in_pass, v.finished = False, prompt >= limit
    v.free_run, v.has_drafter = free_run, has_drafter
    v.accepted = v.rejected = v.late = v.discarded = 0
    v.matches = v.comparisons = 0.0
    v.opened_at = now
    v.own = v.row_own = v.looked_up = 0
    for match in range(LONGEST_MATCH + 1):
        v.own_right[match], v.own_seen[match] = OWN_PRIOR[match] * OWN_PRIOR_WEIGHT, OWN_PRIOR_WEIGHT
    v.waits_since, v.waited_ms, v.most_waited_ms, v.sent_ms = -1.0, 0.0, np.inf, -1.0
    v.info_ms, v.info_queue, v.info_batch, v.info_tokens = 0.0, 0.0, 0, 0


@njit(cache=True)
def rebind(v, now):
    """Binds another drafter; a pass in flight is not affected."""
    _clear_pending(v)
    v.epoch = v.received = v.holes = 0
    v.judged = v.length
    v.sent_ms = -1.0
    v.own = 0
    v.free_run, v.has_drafter = True, True  # the first draft may turn free run off
    _count_wait(v, now)


@njit(cache=True)
def guess_beside(v, num, wrong):
    """Takes `num` guesses of the verifier's own draft model; `wrong`: position of the first wrong one."""
    _clear_pending(v)
    v.pending, v.pending_wrong = max(0, min(num, v.limit - v.length - 1)), wrong


@njit(cache=True)
def look_up(v, num, right, match):
    """Takes `num` guesses of the verifier's own for the next pass, of which the first `right` are right, behind `match`
    equal tokens."""
    v.own, v.own_match = max(0, num), match
    v.own_wrong = v.length + v.pending + right if right < num else NEVER


@njit(cache=True)
def own_chance(v, k):
    """The probability that guess `k` of its own is right if all before it are."""
    match = min(v.own_match + k, LONGEST_MATCH)
    return v.own_right[match] / v.own_seen[match]


@njit(cache=True)
def _judge_own(v, num_right, num_committed):
    """num_committed: tokens of the pass at the positions of its own guesses."""
    v.looked_up += num_right
    is_wrong = max(0, min(v.row_own, num_committed)) > num_right
    keep = 1 - 1 / OWN_MEMORY
    for k in range(num_right + is_wrong):
        match = min(v.row_own_match + k, LONGEST_MATCH)
        v.own_right[match] = v.own_right[match] * keep + (1 if k < num_right else 0)
        v.own_seen[match] = v.own_seen[match] * keep + 1


@njit(cache=True)
def is_ready(v):
    """Whether the session has tokens to compute in a pass."""
    if v.finished or v.in_pass:
        return False
    return v.free_run or v.waited_ms >= v.most_waited_ms or not v.has_drafter or v.pending > 0 or not _decodes(v)


@njit(cache=True)
def _decodes(v):
    return v.length - v.computed <= 1 and v.passes > 0


@njit(cache=True)
def expire_drafter(v, now, lease_ms):
    """Lets the session run free if it has waited for guesses for `lease_ms` in all; returns whether that is new."""
    v.most_waited_ms = lease_ms
    waited = v.waits_since >= 0
    _count_wait(v, now)
    return waited and v.waits_since < 0


@njit(cache=True)
def _count_wait(v, now):
    if v.waits_since >= 0:
        v.waited_ms += now - v.waits_since
    v.waits_since = now if not (v.finished or v.in_pass or is_ready(v)) else -1.0


@njit(cache=True)
def survival(v):
    """The probability that the session's next guess is right, as in shared.protocol.guesses.Survival."""
    return (v.matches + PRIOR * PRIOR_WEIGHT) / (v.comparisons + PRIOR_WEIGHT)


@njit(cache=True)
def _observe(v, matched, mismatched):
    num = matched + mismatched
    keep = (1 - 1 / MEMORY) ** num
    v.matches = v.matches * keep + matched
    v.comparisons = v.comparisons * keep + num


@njit(cache=True)
def on_draft(v, m, answer, now):
    """Merges guesses. Writes a Verdict into `answer` if the drafter needs one at once, else returns False."""
    if v.sent_ms < 0 or m.sent_ms >= v.sent_ms or now - v.echo_at >= OVERTAKING_MS:
        v.sent_ms, v.echo_at, v.free_run = m.sent_ms, now, m.free_run
    must_answer = _take_guesses(v, m)
    _count_wait(v, now)
    return must_answer and _write_verdict(v, answer, m.base, 0, now)


@njit(cache=True)
def _take_guesses(v, m):
    """Returns whether the draft must be answered."""
    end = m.base + m.num
    if v.finished or m.epoch < v.epoch:
        v.discarded += m.num
        return True
    if m.epoch > v.epoch:
        _clear_pending(v)
        v.epoch, v.received, v.holes = m.epoch, 0, 0
    if m.base > v.pending_base + v.pending:
        v.discarded += m.num
        _raise_epoch(v)
        return True
    is_new = _num_new(v, m.base, end) > 0
    if _compare_committed(v, m):
        _extend(v, m)
    return not is_new or m.base < v.length


@njit(cache=True)
def _compare_committed(v, m):
    end = m.base + m.num
    fixed_end = max(m.base, min(v.length, end))
    equal_end = max(m.base, min(fixed_end, m.wrong))
    num_new = _num_new(v, m.base, equal_end)
    num_late = _num_new(v, max(m.base, v.judged), equal_end)
    v.late += num_late
    v.discarded += num_new - num_late
    if equal_end == fixed_end:
        _note_judged(v, m.base, fixed_end - m.base)
        return True
    num_wrong = _num_new(v, equal_end, end)
    num_rejected = 1 if num_wrong > 0 and equal_end >= v.judged else 0
    v.rejected += num_rejected
    v.discarded += num_wrong - num_rejected
    _note_judged(v, equal_end, 1)
    _raise_epoch(v)
    return False


@njit(cache=True)
def _note_judged(v, base, num):
    if num > 0:
        v.judged = max(v.judged, base + num)


@njit(cache=True)
def _extend(v, m):
    end = v.pending_base + v.pending
    draft_end = m.base + m.num
    room = max(0, min(v.limit, v.length + MAX_WINDOW) - end)
    behind = max(0, draft_end - max(end, m.base))
    taken = min(behind, room)
    if taken > 0:
        if v.pending == 0:
            v.pending_wrong = m.wrong
        else:
            v.pending_wrong = min(v.pending_wrong, m.wrong)
        v.pending += taken
    v.discarded += _num_new(v, max(m.base, v.pending_base + v.pending), draft_end)
    _note_received(v, m.base, draft_end)


@njit(cache=True)
def _num_new(v, start, end):
    """For how many of these positions no guess of this epoch has come before."""
    num = max(0, end - max(start, v.received))
    for position in range(max(start, v.received - NUM_HOLES), min(end, v.received)):
        num += v.holes >> (v.received - 1 - position) & 1
    return num


@njit(cache=True)
def _note_received(v, base, end):
    """Bit i of `holes` is set if no guess has come for the position `received - 1 - i`."""
    if end > v.received:
        more = end - v.received
        v.holes = (
            (v.holes << more | (1 << more) - 1) & (1 << NUM_HOLES) - 1 if more < NUM_HOLES else (1 << NUM_HOLES) - 1
        )
        v.received = end
    for position in range(max(base, v.received - NUM_HOLES), end):
        v.holes &= ~(1 << (v.received - 1 - position))


@njit(cache=True)
def _clear_pending(v):
    v.discarded += v.pending
    v.pending, v.pending_base, v.pending_wrong = 0, v.length, NEVER


@njit(cache=True)
def _raise_epoch(v):
    _clear_pending(v)
    v.epoch += 1
    v.received = v.holes = 0


@njit(cache=True)
def begin_pass(v, max_tokens, max_guesses):
    """Freezes the session's row of the next pass; returns the number of tokens fed."""
    todo = v.length - v.computed
    v.row_start, v.row_base, v.row_epoch, v.row_wrong = v.computed, v.length, v.epoch, v.pending_wrong
    if todo > max_tokens:
        v.row_fed, v.row_draws, v.row_guesses, v.row_own = max_tokens, 0, 0, 0
    else:
        fed = max(0, min(max_guesses, max_tokens - todo, v.pending + v.own, v.limit - v.length - 1))
        v.row_guesses = min(v.pending, fed + 1)
        v.row_own = min(v.own, fed + 1 - v.row_guesses)
        v.row_own_wrong, v.row_own_match = v.own_wrong, v.own_match
        v.row_fed, v.row_draws = todo + fed, fed + 1
        v.pending -= v.row_guesses
        v.pending_base = v.length + v.row_guesses
    v.in_pass, v.own = True, 0
    return v.row_fed


@njit(cache=True)
def end_pass(v, answer, compute_ms, batch, queue, num_tokens, now):
    """Applies the pass to the frozen row and writes the Verdict into `answer`; False if the row has no draws."""
    v.in_pass = False
    v.info_ms, v.info_batch, v.info_queue, v.info_tokens = compute_ms, batch, queue, num_tokens
    if v.row_draws == 0:
        v.computed = v.row_start + v.row_fed
        return False
    matched = max(0, min(v.row_guesses, v.row_draws, v.row_wrong - v.row_base))
    if matched == v.row_guesses:
        own_base = v.row_base + matched
        matched += max(0, min(v.row_own, v.row_draws - matched, v.row_own_wrong - own_base))
    end = min(v.row_base + min(matched + 1, v.row_draws), v.limit, v.stop)
    num = end - v.row_base
    right = min(matched, num)
    accepted = min(right, v.row_guesses)
    _judge_own(v, right - accepted, num - v.row_guesses)
    _count_row(v, accepted, num)
    if num > right:  # the last token is the target's own
        v.recovered += 1 if accepted < min(v.row_guesses, num) else 0
        v.bonus += 1 if 0 < v.row_guesses == accepted else 0
    v.length = end
    v.computed = v.row_base + min(right, v.row_draws - 1, num - 1)
    v.finished = end >= v.limit or end >= v.stop
    v.passes += 1
    v.waited_ms = max(0.0, v.waited_ms - accepted * EARNED_MS)
    _settle(v, accepted)
    _count_wait(v, now)
    return _write_verdict(v, answer, v.row_base, accepted, now)


@njit(cache=True)
def _count_row(v, accepted, num):
    judged = min(v.row_guesses, num)
    _note_judged(v, v.row_base, judged)
    v.accepted += accepted
    v.rejected += judged - accepted
    v.discarded += v.row_guesses - judged
    _observe(v, accepted, 1 if judged > accepted else 0)


@njit(cache=True)
def _settle(v, accepted):
    """Compares guesses that arrived during the pass with the tokens it committed."""
    if v.finished:
        _clear_pending(v)
    elif accepted < v.row_guesses and v.row_epoch == v.epoch:
        _raise_epoch(v)
    else:
        num_compared = min(v.pending, max(0, v.length - v.pending_base))
        equal = max(0, min(num_compared, v.pending_wrong - v.pending_base))
        _note_judged(v, v.pending_base, min(equal + 1, num_compared))
        v.late += equal
        _observe(v, equal, 1 if equal < num_compared else 0)
        if equal < num_compared:
            v.rejected += 1
            v.pending -= equal + 1
            _raise_epoch(v)
        else:
            v.pending -= equal
            v.pending_base += equal
    if v.pending == 0:
        v.pending_base, v.pending_wrong = v.length, NEVER


@njit(cache=True)
def _write_verdict(v, answer, base, accepted, now):
    base = min(base, v.length)
    num = min(v.length - base, MAX_RETOLD)
    answer.epoch, answer.base, answer.num, answer.accepted = v.epoch, base, num, accepted
    answer.finish = v.finished and base + num == v.length
    answer.compute_ms, answer.batch, answer.queue = v.info_ms, v.info_batch, v.info_queue
    answer.pass_tokens = v.info_tokens
    answer.sent_ms = v.sent_ms
    answer.hold_ms = max(0.0, now - v.echo_at) if v.sent_ms >= 0 else 0.0
    return True
