"""What a simulated edge device does at each of its events, as the loop of services.edge_drafter does it.

Invariant: one draft step at a time on a device, given to its sessions in turn. `w` is a World.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dsd_sim import draft_session
from dsd_sim.events import DRAFT_COMES, STEP_ENDS, TIMER, free_message, free_slot, passage, push, remove, take_message

IDLE, NOBODYS = -1, -2  # of a device's draft model: free; running a step for a session that is over
MOVING = 0.2  # weight of the newest sample, as the drafter's pairs.WEIGHT
DRAFT_BYTES, TOKEN_BYTES = 190, 4  # on the wire: NATS subject and TCP/IP headers included


@njit(cache=True)
def speculates(w, slot):
    """A Speculate reaches the drafter: a new session under the pair's window."""
    s = w.slots[slot]
    if s.is_over:
        free_slot(w, slot)
        return
    s.is_drafted = True
    request = w.requests[s.request]
    pair = w.pairs[request.device, request.node]
    d, now = w.drafters[slot], w.clock[0].now
    stop, limit = request.prompt + request.tokens, request.prompt + request.max_tokens
    draft_session.start_drafter(d, request.prompt, stop, limit, pair.window, pair.chunk, pair.free_run, now)
    draft_session.steer(d, pair.window, pair.chunk, pair.free_run, pair.min_confidence)
    device = w.devices[request.device]
    w.device_slots[request.device, device.num_sessions] = slot
    device.num_sessions += 1
    send(w, slot)
    draft(w, request.device)


@njit(cache=True)
def draft(w, index):
    """Gives the draft model, when it is free, to the session that has waited longest for a step."""
    device, order = w.devices[index], w.device_slots[index]
    if device.active != IDLE:
        return
    for place in range(device.num_sessions):
        slot = order[place]
        d = w.drafters[slot]
        if d.in_step or not draft_session.can_draft(d):
            continue
        for i in range(place, device.num_sessions - 1):
            order[i] = order[i + 1]
        order[device.num_sessions - 1] = slot
        fed = draft_session.begin_step(d, device.feed_tokens)
        elapsed = device.step_ms + device.step_ms_per_1000 * d.step_start / 1000 + device.fed_ms * (fed - 1)
        device.active = slot
        device.busy_ms += elapsed
        push(w, w.clock[0].now + elapsed, STEP_ENDS, index)
        return


@njit(cache=True)
def step_ends(w, index):
    device = w.devices[index]
    slot = device.active
    device.active = IDLE
    if slot >= 0:
        d = w.drafters[slot]
        place = d.step_start + d.step_fed - w.requests[w.slots[slot].request].prompt  # of the guess in the answer
        place = min(max(place, 0), w.right.shape[1] - 1)
        draft_session.end_step(d, w.right[slot, place], w.confidence[slot, place])
        send(w, slot)
    draft(w, index)


@njit(cache=True)
def send(w, slot):
    """Sends what is due of a session, and sees to it that silence is noticed."""
    d = w.drafters[slot]
    while True:
        index = take_message(w, slot)
        if not draft_session.take_draft(d, w.messages[index], w.clock[0].now):
            free_message(w, index)
            break
        _send_draft(w, slot, index)
    _arm(w, slot)


@njit(cache=True)
def _send_draft(w, slot, index):
    device = w.devices[w.requests[w.slots[slot].request].device]
    num_bytes = DRAFT_BYTES + TOKEN_BYTES * w.messages[index].num
    free_at, late = passage(w, device, device.up_free, num_bytes)
    device.up_free = free_at
    device.up_newest = max(device.up_newest, free_at + late)
    push(w, device.up_newest, DRAFT_COMES, index)


@njit(cache=True)
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
    index = take_message(w, slot)
    if draft_session.on_timer(w.drafters[slot], w.messages[index], w.clock[0].now):
        _send_draft(w, slot, index)
    else:
        free_message(w, index)
    _arm(w, slot)


@njit(cache=True)
def verdict_comes(w, index):
    """To the drafter."""
    m = w.messages[index]
    slot = m.session
    s = w.slots[slot]
    if w.generations[index] == s.generation and not s.is_drafted:
        s.is_over = m.finish  # it was faster than its Speculate
    elif w.generations[index] == s.generation:
        d, request = w.drafters[slot], w.requests[s.request]
        _observe_verdict(w, slot, m, w.pairs[request.device, request.node])
        draft_session.on_verdict(d, m, w.clock[0].now)
        send(w, slot)
        if d.closed and m.finish:
            _leave_device(w, slot)
        draft(w, request.device)
    free_message(w, index)


@njit(cache=True)
def _observe_verdict(w, slot, m, pair):
    """Moving averages of the pair, as the drafter's PairTable."""
    d, s, now = w.drafters[slot], w.slots[slot], w.clock[0].now
    num_new = m.base + m.num - d.committed
    pair.queue = m.queue if pair.queue == 0 else (1 - MOVING) * pair.queue + MOVING * m.queue
    if d.rtt_ms >= 0:
        pair.rtt_ms = d.rtt_ms
    if num_new > 0:
        if s.is_told:
            tpot = (now - s.told_ms) / num_new
            pair.tpot_ms = tpot if pair.tpot_ms == 0 else (1 - MOVING) * pair.tpot_ms + MOVING * tpot
        s.is_told, s.told_ms = True, now


@njit(cache=True)
def _leave_device(w, slot):
    """The session is over at its drafter: its last counts are reported with the pair, and its slot is free."""
    request = w.requests[w.slots[slot].request]
    device, order, d = w.devices[request.device], w.device_slots[request.device], w.drafters[slot]
    remove(order, device.num_sessions, slot)
    device.num_sessions -= 1
    if device.active == slot:
        device.active = NOBODYS
    absorb(w, slot)
    request.drafted, request.accepted, request.rejected = d.drafted, d.accepted, d.rejected
    request.late, request.discarded = d.late, d.discarded
    free_slot(w, slot)


@njit(cache=True)
def absorb(w, slot):
    """Moves what changed in a session's counts into its pair."""
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
    """Brings all pairs up to date for a report: their sessions' counts, how many these are, and their contexts."""
    for device in range(len(w.devices)):
        for node in range(len(w.nodes)):
            w.pairs[device, node].num_sessions = 0
            w.pairs[device, node].context = 0
        for i in range(w.devices[device].num_sessions):
            slot = w.device_slots[device, i]
            absorb(w, slot)
            pair = w.pairs[device, w.requests[w.slots[slot].request].node]
            pair.num_sessions += 1
            pair.context += w.drafters[slot].length


@njit(cache=True)
def steers(w, index):
    """A decision reaches its drafter."""
    device, node = index // len(w.nodes), index % len(w.nodes)
    pair = w.pairs[device, node]
    pair.window, pair.chunk = pair.next_window, pair.next_chunk
    pair.free_run, pair.min_confidence = pair.next_free_run, pair.next_min_confidence
    for i in range(w.devices[device].num_sessions):
        slot = w.device_slots[device, i]
        if w.requests[w.slots[slot].request].node == node:
            draft_session.steer(w.drafters[slot], pair.window, pair.chunk, pair.free_run, pair.min_confidence)
            send(w, slot)
    draft(w, device)
