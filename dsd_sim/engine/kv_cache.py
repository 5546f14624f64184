"""The KV cache of a simulated verifier: admission, growth and preemption, as in services.cloud_verifier.sessions.

Invariant: what its sessions reserve and what is free add up to `kv_tokens`. Sessions without KV cache wait for some,
and the oldest gets it first. `w` is a World.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import register_jitable

from dsd_sim.engine import verify_session
from shared.policies import kv_cache as reservation

register_jitable(reservation.round_to_kv_step)
likely_kv_tokens = njit(cache=True)(reservation.likely_kv_tokens)


@njit(cache=True)
def admit(w, index):
    """Reserves KV cache for waiting sessions, oldest first, until one does not fit."""
    node = w.nodes[index]
    for i in range(node.num_sessions):
        slot = w.node_slots[index, i]
        if w.slots[slot].reserved == 0 and not _reserve(node, w.slots[slot], w.verifiers[slot]):
            return


@njit(cache=True)
def grow(w, index):
    """Reserves more for sessions that the next pass can take beyond what they have, oldest first. The youngest lose
    theirs for it, in the end the session itself."""
    node, num_grown = w.nodes[index], 0
    for i in range(node.num_sessions):
        slot = w.node_slots[index, i]
        s, v = w.slots[slot], w.verifiers[slot]
        reach = min(v.limit, v.length + max(v.pending, node.draft_window) + 1)
        if not 0 < s.reserved < reach or not verify_session.is_ready(v):
            continue
        num_grown += 1
        while s.reserved > 0 and not _reserve(node, s, v):
            _preempt(w, index)
    if num_grown > 0:
        admit(w, index)


@njit(cache=True)
def _reserve(node, s, v):
    """Reserves what a session with this text needs; False if too little is free."""
    more = likely_kv_tokens(v.length, v.limit - v.length) - s.reserved
    if more > node.free_kv:
        return False
    node.free_kv -= more
    s.reserved += more
    return True


@njit(cache=True)
def _preempt(w, index):
    """Takes the KV cache of the youngest session that has some; it computes its text again."""
    i = w.nodes[index].num_sessions - 1
    while w.slots[w.node_slots[index, i]].reserved == 0:
        i -= 1
    slot = w.node_slots[index, i]
    free(w, index, slot)
    w.verifiers[slot].computed = 0
    w.nodes[index].num_preemptions += 1


@njit(cache=True)
def free(w, index, slot):
    w.nodes[index].free_kv += w.slots[slot].reserved
    w.slots[slot].reserved = 0


@njit(cache=True)
def free_for_another(w, index):
    """Tokens that a new session gets at once: none while others wait for theirs."""
    for i in range(w.nodes[index].num_sessions):
        if w.slots[w.node_slots[index, i]].reserved == 0:
            return 0
    return w.nodes[index].free_kv


@njit(cache=True)
def waiting_slots(w):
    """Slots of the sessions that wait for KV cache, the oldest of each verifier first."""
    found = []
    for index in range(len(w.nodes)):
        for i in range(w.nodes[index].num_sessions):
            slot = w.node_slots[index, i]
            if w.slots[slot].reserved == 0:
                found.append(slot)
    return np.array(found, np.int64)
