"""The compiled event loop of DSD-Sim.

What happens once per request or more rarely (arrivals, reports) is left to Python: `run` returns
there and goes on later (fleet.py). `w` is a World.
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
    passage,
    pop,
    push,
)


@njit(cache=True)
def ask(w, index, speculate_bytes):
    """The gateway opens a routed request's session at its verifier, and then tells the drafter; returns the slot."""
    c, request = w.clock[0], w.requests[index]
    if c.num_free_slots == 0:
        raise RuntimeError("more sessions at once than the world has room for")
    c.num_free_slots -= 1
    slot = w.free_slots[c.num_free_slots]
    s, hop = w.slots[slot], w.nodes[request.node].delay_ms
    s.request, s.reserved, s.begun = index, 0, 0
    s.has_timer = s.is_told = s.is_drafted = s.is_over = s.is_spoken = False
    w.verifiers[slot].finished = False  # it may not be open yet when its drafter is lost
    push(w, c.now + hop, OPENS, slot)
    if request.device >= 0:
        speak(w, slot, 2 * hop, speculate_bytes)
    return slot


@njit(cache=True)
def speak(w, slot, wait_ms, num_bytes):
    """The gateway's Speculate is under way to the session's drafter, `wait_ms` from now on at the earliest."""
    device = w.devices[w.requests[w.slots[slot].request].device]
    free_at, late = passage(w, device, device.down_free, num_bytes)
    device.down_free = free_at
    device.down_newest = max(device.down_newest, free_at + late)
    w.slots[slot].is_spoken = True
    push(w, device.down_newest + wait_ms, SPECULATES, slot)


@njit(cache=True)
def run(w):
    """Serves events up to the first one for Python; returns its kind and whom it concerns. NO_ROOM: nothing was served
    that needs more messages or events than there are; the world must get more room."""
    c, most = w.clock[0], len(w.slots) + 64  # messages that one event may send, and events that it may make
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
    raise RuntimeError("no event is left")
