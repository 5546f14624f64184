"""Virtual time: the event heap, random numbers, links, and the pools of messages and session slots.

Invariant: events are served by time, and events at the same time in the order they were pushed. Random numbers come
from the world's own generator. So equal worlds give equal runs. `w` is a World.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Kinds of events: up to LAST_OF_PYTHON they are returned to Python, the others are served by compiled code.
ARRIVAL, TICK, DONE, CHANGES, STEERS = range(5)
LAST_OF_PYTHON = STEERS
OPENS, SPECULATES, STEP_ENDS, DRAFT_COMES, PASS_ENDS, VERDICT_COMES, TIMER = range(5, 12)
NO_ROOM = -1  # returned to Python before a pool runs out

WAYS = 4  # children of a heap node: fewer levels than with 2, and the children are adjacent in memory
TOKEN_BYTES = 4  # of a token id in a message

# A call passes every array of a World by value, which costs more than the body of a short function.
inlined = njit(cache=True, inline="always")


@inlined
def uniform(w):
    """The next random number in [0, 1): splitmix64."""
    c = w.clock[0]
    c.random = c.random + np.uint64(0x9E3779B97F4A7C15)
    z = c.random
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@inlined
def push(w, time, kind, who):
    """Adds an event to the heap."""
    c, events = w.clock[0], w.events
    i = c.num_events
    if i >= len(events):
        raise RuntimeError("the event heap is full")
    c.num_events += 1
    sequence = c.sequence
    c.sequence += 1
    while i > 0:
        parent = (i - 1) // WAYS
        if events[parent].time <= time:
            break
        events[i] = events[parent]
        i = parent
    events[i].time, events[i].sequence = time, sequence
    events[i].kind, events[i].who = kind, who


@inlined
def pop(w):
    """Removes the first event; returns its time, its kind and `who`."""
    c, events = w.clock[0], w.events
    time, kind, who = events[0].time, events[0].kind, events[0].who
    c.num_events -= 1
    last = c.num_events
    i, child = 0, 1
    moved_time, moved_sequence = events[last].time, events[last].sequence
    while child < last:
        first, first_time = child, events[child].time
        for other in range(child + 1, min(child + WAYS, last)):
            other_time = events[other].time
            if other_time < first_time or (
                other_time == first_time and events[other].sequence < events[first].sequence
            ):
                first, first_time = other, other_time
        if first_time > moved_time or (first_time == moved_time and events[first].sequence > moved_sequence):
            break
        events[i] = events[first]
        i, child = first, WAYS * first + 1
    events[i] = events[last]
    return time, kind, who


@inlined
def transit(w, device, free_at, num_bytes):
    """Time at which a link has taken in a message, and its latency from then on. `free_at`: when the link is free."""
    wire = num_bytes * 8 / device.bits_per_ms if device.bits_per_ms > 0 else 0.0
    late = device.delay_ms + w.clock[0].message_ms
    if device.jitter_ms > 0:
        late += device.jitter_ms * uniform(w)
    if device.stall_rate > 0 and uniform(w) < device.stall_rate:
        late += device.stall_ms
    return max(w.clock[0].now, free_at) + wire, late


@inlined
def log_entry(w, kind, who, request, num, start, end):
    """Appends an entry to the log if there is room; returns its index."""
    c = w.clock[0]
    index = c.num_logged
    if index < len(w.log):
        entry = w.log[index]
        entry.kind, entry.who, entry.request, entry.num = kind, who, request, num
        entry.start, entry.end = start, end
        c.num_logged += 1
    return index


@inlined
def move_logged_end(w, index, end):
    """Of an entry that may have found no room."""
    if index < len(w.log):
        w.log[index].end = end


@inlined
def take_message(w, slot):
    c = w.clock[0]
    if c.num_free_messages == 0:
        raise RuntimeError("the message pool is empty")
    c.num_free_messages -= 1
    index = w.free_messages[c.num_free_messages]
    w.generations[index] = w.slots[slot].generation
    w.messages[index].session = slot
    return index


@inlined
def free_message(w, index):
    c = w.clock[0]
    w.free_messages[c.num_free_messages] = index
    c.num_free_messages += 1


@njit(cache=True)
def free_slot(w, slot):
    c = w.clock[0]
    s = w.slots[slot]
    s.generation += 1
    s.lost_drafter = s.lost_verifier = False
    w.free_slots[c.num_free_slots] = slot
    c.num_free_slots += 1


@inlined
def remove(order, num, slot):
    place = 0
    while order[place] != slot:
        place += 1
    for i in range(place, num - 1):
        order[i] = order[i + 1]
