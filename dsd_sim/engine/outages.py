"""What happens to sessions when a device or a verifier fails, and when the gateway replaces it or moves a session.

Until the gateway notices a failure, a session without its drafter is served target-only, and a session without its
verifier is not served. `w` is a World.

Invariant: tokens that reached the gateway are never taken back; a session continues behind them.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dsd_sim.engine import cloud, edge, verify_session
from dsd_sim.engine.events import OPENS, push
from dsd_sim.engine.kernel import send_speculate


@njit(cache=True)
def lose_device(w, index):
    """A device fails, and its sessions lose their drafter."""
    device = w.devices[index]
    device.num_failures += 1
    while device.num_sessions > 0:
        slot = w.device_slots[index, 0]
        edge.stop_drafting(w, slot)
        edge.drop_drafter(w, slot)
    device.num_rows, device.num_more, device.ends_at = 0, 0, -1.0


@njit(cache=True)
def lose_node(w, index):
    """A verifier fails: its sessions lose their verifier, and the running pass is lost."""
    node = w.nodes[index]
    node.num_failures += 1
    for i in range(node.num_sessions):
        slot = w.node_slots[index, i]
        s = w.slots[slot]
        if s.drafter_started:
            edge.stop_drafting(w, slot)
        s.lost_verifier, s.lost_ms = True, w.clock[0].now
        s.reserved, s.begun = 0, num_begun(w, slot)
        cloud.count_session(w, slot)
    node.num_sessions = node.num_batch = 0
    node.free_kv, node.ends_at = node.kv_tokens, -1.0


@njit(cache=True)
def num_begun(w, slot):
    """Tokens of the answer that the session's verifier has committed."""
    return w.verifiers[slot].length - w.requests[w.slots[slot].request].prompt


@njit(cache=True)
def lost_slots(w, before_ms):
    """Slots of the sessions that lost their drafter or verifier before `before_ms`."""
    found = []
    for slot in range(len(w.slots)):
        s = w.slots[slot]
        if (s.lost_drafter or s.lost_verifier) and s.lost_ms < before_ms:
            found.append(slot)
    return np.array(found, np.int64)


@njit(cache=True)
def join(w, slot, device, num_bytes):
    """The gateway binds another drafter to a session."""
    s, v = w.slots[slot], w.verifiers[slot]
    request = w.requests[s.request]
    request.device = device
    s.lost_drafter = False
    s.begun = num_begun(w, slot)
    s.generation += 1
    verify_session.rebind(v, w.clock[0].now)
    if not s.speculate_in_flight:
        send_speculate(w, slot, 0.0, num_bytes)


@njit(cache=True)
def reopen(w, slot, node, num_bytes):
    """The gateway opens a session at another verifier and sends its drafter a new Speculate."""
    s = w.slots[slot]
    request = w.requests[s.request]
    request.node = node
    s.lost_verifier = False
    s.generation += 1
    hop = w.nodes[node].delay_ms
    push(w, w.clock[0].now + hop, OPENS, slot)
    if request.device >= 0 and not s.speculate_in_flight:
        send_speculate(w, slot, 2 * hop, num_bytes)


@njit(cache=True)
def move(w, slot, node, num_bytes):
    """The gateway moves a session that waits for KV cache to another verifier."""
    w.slots[slot].begun = num_begun(w, slot)
    if w.slots[slot].drafter_started:
        edge.stop_drafting(w, slot)
    cloud.stop_waiting(w, slot)
    reopen(w, slot, node, num_bytes)
