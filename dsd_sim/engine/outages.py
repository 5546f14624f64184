"""What happens to sessions when a device or a verifier stops working, and when the gateway has noticed.

Invariant: what a client was told stays told: a session goes on behind the tokens that its gateway has. Until the
gateway notices, a session whose drafter is gone is served target-only, one whose verifier is gone not at all. `w` is a
World.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dsd_sim.engine import cloud, edge, verify_session
from dsd_sim.engine.events import OPENS, push
from dsd_sim.engine.kernel import speak


@njit(cache=True)
def lose_device(w, index):
    """A device stops; its sessions are orphans."""
    device = w.devices[index]
    device.num_failures += 1
    while device.num_sessions > 0:
        slot = w.device_slots[index, 0]
        edge.stop_drafting(w, slot)
        edge.orphan(w, slot)
    device.active, device.num_more, device.ends_at = edge.IDLE, 0, -1.0


@njit(cache=True)
def lose_node(w, index):
    """A verifier stops; its sessions are homeless, and the pass that runs is lost."""
    node = w.nodes[index]
    node.num_failures += 1
    for i in range(node.num_sessions):
        slot = w.node_slots[index, i]
        s, v = w.slots[slot], w.verifiers[slot]
        request = w.requests[s.request]
        if s.is_drafted:
            edge.stop_drafting(w, slot)
        s.is_homeless, s.lost_ms = True, w.clock[0].now
        s.reserved, s.begun = 0, v.length - request.prompt
        request.passes += v.passes
        request.recovered += v.recovered
        request.bonus += v.bonus
        if node.draft_window > 0:
            cloud.count_beside(request, v)
    node.num_sessions = node.num_batch = 0
    node.free_kv, node.ends_at = node.kv_tokens, -1.0


@njit(cache=True)
def lost_slots(w, before_ms):
    """The sessions whose drafter or verifier was gone before `before_ms`."""
    found = []
    for slot in range(len(w.slots)):
        s = w.slots[slot]
        if (s.is_orphan or s.is_homeless) and s.lost_ms < before_ms:
            found.append(slot)
    return np.array(found, np.int64)


@njit(cache=True)
def join(w, slot, device, num_bytes):
    """The gateway gives an orphan another drafter."""
    s, v = w.slots[slot], w.verifiers[slot]
    request = w.requests[s.request]
    request.device = device
    s.is_orphan = False
    s.begun = v.length - request.prompt
    s.generation += 1
    verify_session.rebind(v, w.clock[0].now)
    if not s.is_spoken:
        speak(w, slot, 0.0, num_bytes)


@njit(cache=True)
def reopen(w, slot, node, num_bytes):
    """The gateway opens a homeless session at another verifier, and tells its drafter."""
    s = w.slots[slot]
    request = w.requests[s.request]
    request.node = node
    s.is_homeless = False
    s.generation += 1
    hop = w.nodes[node].delay_ms
    push(w, w.clock[0].now + hop, OPENS, slot)
    if request.device >= 0 and not s.is_spoken:
        speak(w, slot, 2 * hop, num_bytes)
