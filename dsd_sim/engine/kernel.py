"""The compiled event loop of DSD-Sim.

Python (fleet.py) handles events that occur once per request or less often, such as arrivals and reports: `run` returns
them and is called again. `w` is a World.
"""

from __future__ import annotations

from numba import njit

from dsd_sim.engine import cloud, edge
from dsd_sim.engine.events import (
    DRAFT_COMES,
    LAST_OF_PYTHON,
    NO_ROOM,
    OPENS,
    PASS_ENDS,
    SPECULATES,
    STEP_ENDS,
    TIMER,
    VERDICT_COMES,
    pop,
    push,
    transit,
)
from dsd_sim.engine.shared_machine import set_paces


@njit(cache=True)
def open_session(w, index, speculate_bytes):
    """Sends the Open of a routed request to its verifier and the Speculate to its drafter; returns the slot."""
    c, request = w.clock[0], w.requests[index]
    if c.num_free_slots == 0:
        raise RuntimeError("the slot pool is empty")
    c.num_free_slots -= 1
    slot = w.free_slots[c.num_free_slots]
    s, hop = w.slots[slot], w.nodes[request.node].delay_ms
    s.request, s.reserved, s.begun = index, 0, 0
    s.has_timer = s.has_verdict = s.drafter_started = s.finished_early = s.speculate_in_flight = False
    w.verifiers[slot].finished = False  # drop_drafter may read it before the Open arrives
    push(w, c.now + c.request_ms + hop, OPENS, slot)
    if request.device >= 0:
        send_speculate(w, slot, c.request_ms + 2 * hop, speculate_bytes)
    return slot


@njit(cache=True)
def send_speculate(w, slot, wait_ms, num_bytes):
    """Sends the gateway's Speculate to the session's drafter, `wait_ms` from now."""
    device = w.devices[w.requests[w.slots[slot].request].device]
    free_at, late = transit(w, device, device.down_free, num_bytes)
    device.down_free = free_at
    device.down_newest = max(device.down_newest, free_at + late)
    w.slots[slot].speculate_in_flight = True
    push(w, device.down_newest + wait_ms, SPECULATES, slot)


@njit(cache=True)
def run(w):
    """Serves events until one is for Python; returns its kind and `who`. NO_ROOM: the caller must enlarge the world
    first (with_more_room)."""
    c, most = w.clock[0], len(w.slots) + 64  # most messages that one event sends; it pushes up to twice as many events
    is_shared = c.pass_slowdown > 1 or c.step_slowdown > 1
    if is_shared:
        most += len(w.nodes) + len(w.devices)
        set_paces(w)
    while c.num_events > 0:
        if c.num_free_messages < most or len(w.events) - c.num_events < 2 * most:
            return NO_ROOM, 0
        time, kind, who = pop(w)
        c.now = time
        if kind <= LAST_OF_PYTHON:
            return kind, who
        if kind == STEP_ENDS:
            edge.step_ends(w, who)
        elif kind == DRAFT_COMES:
            cloud.draft_comes(w, who)
        elif kind == VERDICT_COMES:
            edge.verdict_comes(w, who)
        elif kind == PASS_ENDS:
            cloud.pass_ends(w, who)
        elif kind == TIMER:
            edge.timer(w, who)
        elif kind == OPENS:
            cloud.opens(w, who)
        else:
            edge.speculates(w, who)
        if is_shared:
            set_paces(w)
    raise RuntimeError("no event is left, and some requests are not done")
