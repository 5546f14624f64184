"""Event handlers of a simulated edge device; they follow the loop of services.edge_drafter.

Invariant: a device runs one draft step at a time. `w` is a World.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dsd_sim.engine import draft_session
from dsd_sim.engine.events import (
    DRAFT_COMES,
    STEP_ENDS,
    TIMER,
    TOKEN_BYTES,
    free_message,
    free_slot,
    inlined,
    log_entry,
    push,
    remove,
    take_message,
    transit,
)
from dsd_sim.engine.records import NEVER
from dsd_sim.engine.world import NOBODY, STEER, STEP
from shared.policies import stepping

ABANDONED = -1  # in place of the slot of a session that has ended during the step
EWMA_WEIGHT = 0.2  # of the newest sample, as the drafter's pairs.WEIGHT
DRAFT_BYTES = 190  # of a Draft without tokens, with NATS subject and TCP/IP headers

form_step = njit(cache=True)(stepping.form_step)


@njit(cache=True)
def speculates(w, slot):
    """Handles a Speculate that reaches the drafter: a session starts with the window of its pair."""
    s = w.slots[slot]
    s.speculate_in_flight = False
    if s.finished_early:
        free_slot(w, slot)
        return
    request = w.requests[s.request]
    device = w.devices[request.device]
    if device.num_failures > 0:
        drop_drafter(w, slot)
        return
    if s.lost_verifier:  # another Speculate follows once the session has a verifier again
        return
    s.drafter_started = True
    s.seen_drafted = s.seen_accepted = s.seen_rejected = s.seen_late = s.seen_discarded = 0
    pair = w.pairs[request.device, request.node]
    d, now = w.drafters[slot], w.clock[0].now
    stop, limit = request.prompt + request.tokens, request.prompt + request.max_tokens
    text = request.prompt + s.begun
    draft_session.start_drafter(d, text, stop, limit, pair.window, pair.chunk, pair.free_run, now)
    draft_session.steer(d, pair.window, pair.chunk, pair.free_run, pair.min_confidence)
    interrupt(w, request.device)
    w.device_slots[request.device, device.num_sessions] = slot
    device.num_sessions += 1
    send(w, slot)
    draft(w, request.device)


@njit(cache=True)
def draft(w, index):
    """Begins the next step of an idle draft model."""
    device, order, now = w.devices[index], w.device_slots[index], w.clock[0].now
    if device.num_rows > 0 or device.num_failures > 0:
        return
    place = draft_session.turn(w.drafters, order, device)
    if place < 0:
        return
    slot = order[place]
    d = w.drafters[slot]
    draft_session.leave_out(d, _step_ms(device, 0, device.feed_tokens, 1) / device.feed_tokens)
    if device.max_rows > 1 and device.num_sessions > 1:
        _begin_common_step(w, index, place, now)
        device.num_more = 0
    else:
        for i in range(place, device.num_sessions - 1):
            order[i] = order[i + 1]
        order[device.num_sessions - 1] = slot
        _begin_step(w, index, slot, now)
        device.num_more = 0 if w.clock[0].step_slowdown > 1 else _num_more(device, d)
    device.ends_at = device.step_end
    for i in range(device.num_more):
        device.ends_at += _step_ms(device, d.length + i, 1, 1)
    push(w, device.ends_at, STEP_ENDS, index)


@inlined
def _begin_step(w, index, slot, now):
    """Begins a step of one session."""
    device, d = w.devices[index], w.drafters[slot]
    fed = draft_session.begin_step(d, device.feed_tokens)
    w.device_rows[index, 0] = slot
    _run(w, index, 1, d.step_start - d.left_out, fed, now)


@njit(cache=True)
def _begin_common_step(w, index, chosen, now):
    """Begins a step of several sessions if they share it. It is the turn of the one at the place `chosen`."""
    device, order, rows = w.devices[index], w.device_slots[index], w.device_rows[index]
    slots = order[: device.num_sessions].copy()
    todo = np.zeros(len(slots), np.int64)
    num_ready = turn = 0
    for place in range(len(slots)):
        d = w.drafters[slots[place]]
        if draft_session.wants_step(d):
            turn = num_ready if place == chosen else turn
            todo[num_ready] = draft_session.num_todo(d)
            num_ready += 1
    fed = form_step(todo[:num_ready], turn, device.max_rows, device.feed_tokens)
    number = num_rows = num_others = context = sum_fed = 0
    for place in range(len(slots)):
        slot = slots[place]
        d = w.drafters[slot]
        is_ready = draft_session.wants_step(d)
        if is_ready and fed[number] > 0:
            sum_fed += draft_session.begin_step(d, fed[number])
            context += d.step_start - d.left_out
            rows[num_rows] = slot
            num_rows += 1
        else:
            order[num_others] = slot
            num_others += 1
        number += is_ready
    for i in range(num_rows):
        order[num_others + i] = rows[i]
    _run(w, index, num_rows, context, sum_fed, now)


@inlined
def _run(w, index, num_rows, context, fed, now):
    """Runs the step that has begun in `num_rows` sessions."""
    device = w.devices[index]
    elapsed = _step_ms(device, context, fed, num_rows)
    device.num_rows, device.step_end = num_rows, now + elapsed
    device.busy_ms += elapsed
    device.pace = 1.0
    device.logged = log_entry(w, STEP, index, w.slots[w.device_rows[index, 0]].request, fed, now, device.step_end)


@inlined
def _step_ms(device, context, fed, num_rows):
    elapsed = device.step_ms + device.step_ms_per_1000 * context / 1000 + device.fed_ms * (fed - num_rows)
    return (elapsed + device.session_ms * (num_rows - 1)) * device.slowdown


@inlined
def _num_more(device, d):
    """Steps that follow the one that begins now before a draft is due or another session has its turn. One event ends
    all of them unless something interrupts (`interrupt`)."""
    if device.num_sessions > 1 or d.min_confidence > 0 or d.step_start + d.step_fed < d.length:
        return 0
    room = min(d.chunk - (d.length - d.sent), d.window - (d.length - d.committed), d.limit - d.length)
    if d.wrong == NEVER and d.length < d.stop:
        room = min(room, d.stop - d.length)
    return max(0, room - 1)


@inlined
def _advance(w, index):
    """Ends the steps of the current run that are over by now, except its last one."""
    device, now = w.devices[index], w.clock[0].now
    while device.num_more > 0 and device.step_end <= now:
        device.num_more -= 1
        slot = w.device_rows[index, 0]
        _end_step(w, slot)
        _begin_step(w, index, slot, device.step_end)


@inlined
def interrupt(w, index):
    """Cuts the current run of steps behind the step in progress; the next run is planned when that step ends."""
    _advance(w, index)
    device = w.devices[index]
    if device.num_more > 0:
        device.num_more = 0
        device.ends_at = device.step_end
        push(w, device.ends_at, STEP_ENDS, index)


@njit(cache=True)
def interrupt_all(w):
    for index in range(len(w.devices)):
        interrupt(w, index)


@njit(cache=True)
def step_ends(w, index):
    device = w.devices[index]
    if w.clock[0].now != device.ends_at:
        return  # the run was interrupted, or the device failed
    _advance(w, index)
    num_rows, device.num_rows = device.num_rows, 0
    for i in range(num_rows):
        slot = w.device_rows[index, i]
        if slot != ABANDONED:
            _end_step(w, slot)
            send(w, slot)
    draft(w, index)


@inlined
def _end_step(w, slot):
    d = w.drafters[slot]
    position = d.step_start + d.step_fed - w.requests[w.slots[slot].request].prompt  # of the guess, in the answer
    position = min(max(position, 0), w.right.shape[1] - 1)
    draft_session.end_step(d, w.right[slot, position], w.confidence[slot, position])


@inlined
def send(w, slot):
    """Sends the drafts of a session that are due and starts its resend timer."""
    d = w.drafters[slot]
    while True:
        index = take_message(w, slot)
        if not draft_session.take_draft(d, w.messages[index], w.clock[0].now):
            free_message(w, index)
            break
        _send_draft(w, slot, index)
    _arm(w, slot)


@inlined
def _send_draft(w, slot, index):
    request = w.requests[w.slots[slot].request]
    device = w.devices[request.device]
    num_bytes = DRAFT_BYTES + TOKEN_BYTES * w.messages[index].num
    free_at, late = transit(w, device, device.up_free, num_bytes)
    device.up_free = free_at
    device.up_newest = max(device.up_newest, free_at + late)
    push(w, device.up_newest + w.nodes[request.node].delay_ms, DRAFT_COMES, index)


@inlined
def _arm(w, slot):
    due = draft_session.resend_at(w.drafters[slot])
    if due < np.inf and not w.slots[slot].has_timer:
        w.slots[slot].has_timer = True
        index = take_message(w, slot)
        push(w, max(due, w.clock[0].now), TIMER, index)


@njit(cache=True)
def timer(w, index):
    slot = w.messages[index].session
    is_new = w.generations[index] == w.slots[slot].generation
    free_message(w, index)
    if not is_new:
        return
    w.slots[slot].has_timer = False
    if w.clock[0].now >= draft_session.resend_at(w.drafters[slot]):
        interrupt(w, w.requests[w.slots[slot].request].device)
        index = take_message(w, slot)
        if draft_session.on_timer(w.drafters[slot], w.messages[index], w.clock[0].now):
            _send_draft(w, slot, index)
        else:
            free_message(w, index)
    _arm(w, slot)


@njit(cache=True)
def verdict_comes(w, index):
    """Handles a Verdict that reaches the drafter."""
    m = w.messages[index]
    slot = m.session
    s = w.slots[slot]
    if w.generations[index] == s.generation and not s.drafter_started:
        s.finished_early = m.finish
    elif w.generations[index] == s.generation:
        d, request = w.drafters[slot], w.requests[s.request]
        interrupt(w, request.device)
        _observe_verdict(w, slot, m, w.pairs[request.device, request.node])
        draft_session.on_verdict(d, m, w.clock[0].now)
        send(w, slot)
        index_of_device = request.device
        if d.closed and m.finish:
            stop_drafting(w, slot)
            free_slot(w, slot)
        draft(w, index_of_device)
    free_message(w, index)


@inlined
def _observe_verdict(w, slot, m, pair):
    """Updates the moving averages of the pair, as the drafter's PairTable does."""
    d, s, now = w.drafters[slot], w.slots[slot], w.clock[0].now
    num_new = m.base + m.num - d.committed
    if d.rtt_ms >= 0:
        pair.rtt_ms = d.rtt_ms
    if num_new > 0 and m.batch > 0:
        pair.queue = _ewma(pair.queue, m.queue)
        pair.pass_ms = _ewma(pair.pass_ms, m.compute_ms)
        pair.batch = _ewma(pair.batch, m.batch)
        pair.pass_tokens = _ewma(pair.pass_tokens, m.pass_tokens)
    if num_new > 0:
        if s.has_verdict:
            pair.gap_ms = _ewma(pair.gap_ms, now - s.verdict_ms)
            pair.gap_tokens = _ewma(pair.gap_tokens, num_new)
            pair.tpot_ms = pair.gap_ms / pair.gap_tokens
        s.has_verdict, s.verdict_ms = True, now


@njit(cache=True)
def _ewma(average, sample):
    return sample if average == 0 else (1 - EWMA_WEIGHT) * average + EWMA_WEIGHT * sample


@njit(cache=True)
def stop_drafting(w, slot):
    """Ends a session at its drafter: adds its counts to pair and request, and drops the messages in flight."""
    s = w.slots[slot]
    request = w.requests[s.request]
    device, order, d = w.devices[request.device], w.device_slots[request.device], w.drafters[slot]
    interrupt(w, request.device)
    remove(order, device.num_sessions, slot)
    device.num_sessions -= 1
    for i in range(device.num_rows):
        if w.device_rows[request.device, i] == slot:
            w.device_rows[request.device, i] = ABANDONED
    if not d.closed:
        draft_session.close_drafter(d)
    absorb(w, slot)
    request.drafted += d.drafted
    request.accepted += d.accepted
    request.rejected += d.rejected
    request.late += d.late
    request.discarded += d.discarded
    s.drafter_started = s.has_timer = s.has_verdict = False
    s.generation += 1


@njit(cache=True)
def drop_drafter(w, slot):
    """Continues a session without its drafter."""
    s = w.slots[slot]
    if w.verifiers[slot].finished:
        free_slot(w, slot)
        return
    w.requests[s.request].device = NOBODY
    s.lost_drafter, s.lost_ms = True, w.clock[0].now


@njit(cache=True)
def absorb(w, slot):
    """Adds to the pair what its session has counted since the last call."""
    s, d = w.slots[slot], w.drafters[slot]
    request = w.requests[s.request]
    pair = w.pairs[request.device, request.node]
    pair.drafted += d.drafted - s.seen_drafted
    pair.accepted += d.accepted - s.seen_accepted
    pair.rejected += d.rejected - s.seen_rejected
    pair.late += d.late - s.seen_late
    pair.discarded += d.discarded - s.seen_discarded
    s.seen_drafted, s.seen_accepted, s.seen_rejected = d.drafted, d.accepted, d.rejected
    s.seen_late, s.seen_discarded = d.late, d.discarded


@njit(cache=True)
def absorb_all(w):
    """Updates the counts, numbers of sessions and total context of all pairs for a report."""
    for device in range(len(w.devices)):
        _advance(w, device)
        for node in range(len(w.nodes)):
            w.pairs[device, node].num_sessions = w.pairs[device, node].num_sharing = 0
            w.pairs[device, node].context = 0
        num_drafting = 0
        for i in range(w.devices[device].num_sessions):
            slot = w.device_slots[device, i]
            absorb(w, slot)
            pair = w.pairs[device, w.requests[w.slots[slot].request].node]
            pair.num_sessions += 1
            pair.context += w.drafters[slot].length
            if w.drafters[slot].window > 0:
                num_drafting += 1
            else:
                pair.num_sharing += 1
        for node in range(len(w.nodes)):
            w.pairs[device, node].num_sharing += num_drafting


@njit(cache=True)
def steers(w, index):
    """Applies a pair's new window to its sessions."""
    device, node = index // len(w.nodes), index % len(w.nodes)
    pair = w.pairs[device, node]
    interrupt(w, device)
    log_entry(w, STEER, index, -1, pair.window, w.clock[0].now, w.clock[0].now)
    for i in range(w.devices[device].num_sessions):
        slot = w.device_slots[device, i]
        if w.requests[w.slots[slot].request].node == node:
            draft_session.steer(w.drafters[slot], pair.window, pair.chunk, pair.free_run, pair.min_confidence)
            send(w, slot)
    draft(w, device)
