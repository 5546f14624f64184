"""One machine for all drafters and verifiers: passes and draft steps slow each other down.

Invariant: the part of a pass that reads weights, its base time, takes `pass_slowdown` times as long while a draft step
runs anywhere; a step takes `step_slowdown` times as long while a pass runs. What has run already keeps its pace. `w` is
a World.
"""

from __future__ import annotations

from numba import njit

from dsd_sim.engine.events import PASS_ENDS, STEP_ENDS, move_logged_end, push


@njit(cache=True)
def set_paces(w):
    """Moves the ends of passes and steps whose pace has changed. Called after each event."""
    c = w.clock[0]
    is_passing = is_drafting = False
    for node in w.nodes:
        is_passing = is_passing or node.num_batch > 0
    for device in w.devices:
        is_drafting = is_drafting or device.num_rows > 0
    step_pace = c.step_slowdown if is_passing else 1.0
    for index in range(len(w.nodes)):
        node = w.nodes[index]
        pass_pace = 1.0 + (c.pass_slowdown - 1.0) * node.bound if is_drafting else 1.0
        if node.num_batch > 0 and node.pace != pass_pace:
            more = (node.ends_at - c.now) * (pass_pace / node.pace - 1)
            node.pace = pass_pace
            node.ends_at += more
            node.pass_ms += more
            node.busy_ms += more
            move_logged_end(w, node.logged, node.ends_at)
            push(w, node.ends_at, PASS_ENDS, index)
    for index in range(len(w.devices)):
        device = w.devices[index]
        if device.num_rows > 0 and device.pace != step_pace:
            more = (device.step_end - c.now) * (step_pace / device.pace - 1)
            device.pace = step_pace
            device.step_end += more
            device.ends_at = device.step_end
            device.busy_ms += more
            move_logged_end(w, device.logged, device.step_end)
            push(w, device.step_end, STEP_ENDS, index)
