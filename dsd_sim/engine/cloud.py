"""Event handlers of a simulated verifier; they follow the loop of services.cloud_verifier.

Invariant: a verifier runs one pass at a time, and what arrives meanwhile is in the next one. `w` is a World.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import register_jitable

from dsd_sim.engine import kv_cache, verify_session
from dsd_sim.engine.acceptance import MATCH, OFFERED, RIGHT
from dsd_sim.engine.events import (
    DONE,
    PASS_ENDS,
    TOKEN_BYTES,
    VERDICT_COMES,
    free_message,
    free_slot,
    inlined,
    log_entry,
    push,
    remove,
    take_message,
    transit,
    uniform,
)
from dsd_sim.engine.world import PASS
from shared.policies import batching
from shared.timing import DRAFTER_LEASE_S

FIFO = 0  # sessions with all their guesses, oldest first, while they fit
LAB = 1  # the same, shortest rows first (length-aware batching)
TETRIS = 2  # first rows by the services' rule, then the guesses that are likeliest to survive, while they fit
WORTH = 3  # the same, while they pay: the services' rule
CONSTANT_COST = np.array([1.0, 0, 0, 0, 0, 0, 0])  # weights of a pass that takes the same time with every guess
DRAFTER_LEASE_MS = 1e3 * DRAFTER_LEASE_S
VERDICT_BYTES = 240  # of a Verdict without tokens, with NATS subject and TCP/IP headers

register_jitable(batching.pass_ms)
form_pass = njit(cache=True)(batching.form_pass)


@njit(cache=True)
def opens(w, slot):
    """Handles an Open that reaches the verifier."""
    s = w.slots[slot]
    request = w.requests[s.request]
    if w.nodes[request.node].num_failures > 0:
        s.lost_verifier, s.lost_ms = True, w.clock[0].now
        return
    stop, limit = request.prompt + request.tokens, request.prompt + request.max_tokens
    text, now = request.prompt + s.begun, w.clock[0].now
    # The gateway's Open asks for free run; the first draft may change it.
    verify_session.open_verifier(w.verifiers[slot], text, stop, limit, True, request.device >= 0, now)
    s.reserved = 0
    node = w.nodes[request.node]
    w.node_slots[request.node, node.num_sessions] = slot
    node.num_sessions += 1
    kv_cache.admit(w, request.node)
    collect(w, request.node)


@njit(cache=True)
def collect(w, index):
    """Begins the next pass if none is running and a session is ready."""
    node = w.nodes[index]
    if node.num_batch > 0:
        return
    kv_cache.grow(w, index)
    batch = w.batches[index]
    num_ready = 0
    for i in range(node.num_sessions):
        slot = w.node_slots[index, i]
        if w.slots[slot].reserved > 0 and verify_session.is_ready(w.verifiers[slot]):
            batch[num_ready] = slot
            num_ready += 1
    if num_ready == 0:
        return
    drafted_ms = 0.0
    if node.draft_window > 0:
        drafted_ms = _draft_beside(w, node, batch, num_ready)
    if node.lookup_tokens > 0:
        _look_up(w, node, batch, num_ready)
    if node.batching == LAB:
        _shortest_first(w, batch, num_ready)
    num_batch, fed = _share_out(w, node, batch, num_ready)
    cached = 0
    for i in range(num_batch):
        cached += w.verifiers[batch[i]].row_start
    node.num_batch, node.num_fed = num_batch, fed
    extra_ms = node.extra_ms[fed - 1] if fed <= len(node.extra_ms) else 0.0
    elapsed_ms = max(batching.pass_ms(node.weights, num_batch, fed, cached) + extra_ms, batching.LEAST_MS)
    node.pass_ms = node.slowdown * (drafted_ms + elapsed_ms)
    if node.noise > 0:
        node.pass_ms *= 1 + node.noise * (2 * uniform(w) - 1)
    node.busy_ms += node.pass_ms
    node.num_passes += 1
    node.sum_batch += num_batch
    now = w.clock[0].now
    node.ends_at = now + node.pass_ms
    push(w, node.ends_at, PASS_ENDS, index)
    node.pace, node.bound = 1.0, min(1.0, node.slowdown * node.weights[0] / node.pass_ms)
    node.logged = log_entry(w, PASS, index, -1, num_batch, now, now + node.pass_ms)


@njit(cache=True)
def _draft_beside(w, node, batch, num_ready):
    """Lets the node's own draft model guess for all decoding sessions in one batch; returns the milliseconds."""
    num = cached = 0
    for i in range(num_ready):
        slot = batch[i]
        v = w.verifiers[slot]
        if v.length - v.computed > 1:
            continue
        num += 1
        cached += v.length
        begun = v.length - w.requests[w.slots[slot].request].prompt
        first = 0
        while first < node.draft_window and w.right[slot, min(begun + first, w.right.shape[1] - 1)]:
            first += 1
        verify_session.guess_beside(v, node.draft_window, v.length + first)
    if num == 0:
        return 0.0
    step_ms = node.draft_ms + node.draft_ms_per_session * (num - 1) + node.draft_ms_per_1000 * cached / 1000
    return node.draft_window * step_ms


@njit(cache=True)
def _look_up(w, node, batch, num_ready):
    """Guesses from the text, behind those of the drafter, for all sessions."""
    for i in range(num_ready):
        slot = batch[i]
        v, request = w.verifiers[slot], w.requests[w.slots[slot].request]
        place = v.length + v.pending - request.prompt
        if place < request.tokens:
            found = w.lookups[slot, place]
            num = min(found[OFFERED], node.lookup_tokens - v.pending)
            verify_session.look_up(v, num, found[RIGHT], found[MATCH])
        else:
            verify_session.look_up(v, 0, 0, 0)


@njit(cache=True)
def _shortest_first(w, batch, num):
    """Sorts sessions by the number of tokens to compute; the sort is stable, so ties stay oldest first."""
    for i in range(1, num):
        slot = batch[i]
        length = _num_waiting(w.verifiers[slot])
        place = i
        while place > 0 and _num_waiting(w.verifiers[batch[place - 1]]) > length:
            batch[place] = batch[place - 1]
            place -= 1
        batch[place] = slot


@njit(cache=True)
def _num_waiting(v):
    return v.length - v.computed + v.pending


@njit(cache=True)
def _chances(w, batch, guesses):
    """[guesses] of the sessions in `batch`: of each guess, that it and all before it are accepted."""
    chances = np.empty(guesses.sum())
    end = 0
    for i in range(len(guesses)):
        v = w.verifiers[batch[i]]
        probability = verify_session.survival(v)
        for k in range(v.pending):
            chances[end + k] = probability ** (k + 1)
        chance = probability**v.pending
        for k in range(v.own):
            chance *= verify_session.own_chance(v, k)
            chances[end + v.pending + k] = chance
        end += guesses[i]
    return chances


@njit(cache=True)
def _share_out(w, node, batch, num_ready):
    """Freezes the rows of the pass, whose sessions come first in `batch`; returns their number, and of tokens fed."""
    todo, guesses, cached = np.empty(num_ready, np.int64), np.empty(num_ready, np.int64), np.empty(num_ready, np.int64)
    waited = np.empty(num_ready)
    for i in range(num_ready):
        v = w.verifiers[batch[i]]
        todo[i], guesses[i], cached[i] = v.length - v.computed, v.pending + v.own, v.computed
        waited[i] = w.clock[0].now - v.opened_at
    num = fed = 0
    if node.batching >= TETRIS:
        chances = _chances(w, batch, guesses)
        weights = node.weights if node.batching == WORTH else CONSTANT_COST
        budget, chunk = node.token_budget, node.prefill_chunk
        rows, bought = form_pass(todo, guesses, chances, cached, waited, budget, chunk, weights)
        for i in range(num_ready):
            if rows[i] > 0:
                batch[num] = batch[i]
                fed += verify_session.begin_pass(w.verifiers[batch[num]], rows[i] + bought[i], bought[i])
                num += 1
        return num, fed
    left = node.token_budget
    for i in range(num_ready):
        most = min(left, node.prefill_chunk if todo[i] > 1 else guesses[i] + 1)
        if most < 1:
            return i, fed
        num = verify_session.begin_pass(w.verifiers[batch[i]], most, guesses[i])
        fed += num
        left -= num
    return num_ready, fed


@njit(cache=True)
def draft_comes(w, index):
    """Handles a Draft that reaches the verifier."""
    m = w.messages[index]
    slot = m.session
    if w.generations[index] == w.slots[slot].generation:
        answer = take_message(w, slot)
        if verify_session.on_draft(w.verifiers[slot], m, w.messages[answer], w.clock[0].now):
            _send_verdict(w, slot, answer)
        else:
            free_message(w, answer)
        collect(w, w.requests[w.slots[slot].request].node)
    free_message(w, index)


@njit(cache=True)
def expire_drafters(w):
    """Starts free run in sessions that have waited for guesses for the drafter's lease in all."""
    for index in range(len(w.nodes)):
        for i in range(w.nodes[index].num_sessions):
            verify_session.expire_drafter(w.verifiers[w.node_slots[index, i]], w.clock[0].now, DRAFTER_LEASE_MS)
        collect(w, index)


@inlined
def _send_verdict(w, slot, index):
    """Sends a Verdict to the session's drafter."""
    request = w.requests[w.slots[slot].request]
    device = w.devices[request.device]
    num_bytes = VERDICT_BYTES + TOKEN_BYTES * w.messages[index].num
    free_at, late = transit(w, device, device.down_free, num_bytes)
    device.down_free = free_at
    device.down_newest = max(device.down_newest, free_at + late)
    push(w, device.down_newest + w.nodes[request.node].delay_ms, VERDICT_COMES, index)


@njit(cache=True)
def pass_ends(w, index):
    """Commits the draws of the pass, sends verdicts and begins the next pass."""
    node, batch = w.nodes[index], w.batches[index]
    now, num_batch = w.clock[0].now, node.num_batch
    if now != node.ends_at or num_batch == 0:
        return  # the node failed during the pass, or its end has moved
    queue = _queue(w, index)
    node.sum_queue += queue
    node.num_batch = 0
    is_any_done = False
    for i in range(num_batch):
        slot = batch[i]
        v = w.verifiers[slot]
        request = w.requests[w.slots[slot].request]
        before = v.length
        answer = take_message(w, slot)
        has_verdict = verify_session.end_pass(v, w.messages[answer], node.pass_ms, num_batch, queue, node.num_fed, now)
        if has_verdict:
            w.clock[0].num_windows += 1
            node.num_committed += v.length - before
            if before == request.prompt:
                request.first_ms = now + node.delay_ms
            if v.finished:
                request.done_ms = now + node.delay_ms
                _leave_node(w, index, slot)
                is_any_done = True
                push(w, request.done_ms, DONE, w.slots[slot].request)
        if has_verdict and request.device >= 0:
            _send_verdict(w, slot, answer)
        else:
            free_message(w, answer)
            if v.finished:
                free_slot(w, slot)
    if is_any_done:
        kv_cache.admit(w, index)
    collect(w, index)


@njit(cache=True)
def count_session(w, slot):
    """Adds the counts of a session that leaves its verifier to its request. Guesses count here only where the verifier
    drafts itself."""
    v, request = w.verifiers[slot], w.requests[w.slots[slot].request]
    request.passes += v.passes
    request.recovered += v.recovered
    request.bonus += v.bonus
    request.looked_up += v.looked_up
    if w.nodes[request.node].draft_window > 0:
        request.accepted += v.accepted
        request.rejected += v.rejected
        request.discarded += v.discarded
        request.drafted += v.accepted + v.rejected + v.discarded


@inlined
def _queue(w, index):
    """Queue utilisation: tokens waiting to be computed / token budget, clipped to 1."""
    return min(1.0, _queued(w, index) / w.nodes[index].token_budget)


@inlined
def _queued(w, index):
    num = 0
    for i in range(w.nodes[index].num_sessions):
        num += _num_waiting(w.verifiers[w.node_slots[index, i]])
    return num


@njit(cache=True)
def loads(w):
    """Sessions, queued tokens, and the KV cache that a new session gets at once, of every verifier, [nodes, 3]."""
    found = np.zeros((len(w.nodes), 3), np.int64)
    for index in range(len(w.nodes)):
        found[index, 0], found[index, 1] = w.nodes[index].num_sessions, _queued(w, index)
        found[index, 2] = kv_cache.free_for_another(w, index)
    return found


@njit(cache=True)
def stop_waiting(w, slot):
    """Closes a session that waits for KV cache."""
    index = w.requests[w.slots[slot].request].node
    _leave_node(w, index, slot)
    kv_cache.admit(w, index)
    collect(w, index)


@njit(cache=True)
def _leave_node(w, index, slot):
    count_session(w, slot)
    kv_cache.free(w, index, slot)
    node = w.nodes[index]
    remove(w.node_slots[index], node.num_sessions, slot)
    node.num_sessions -= 1
