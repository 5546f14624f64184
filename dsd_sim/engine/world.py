"""The state of a simulated fleet: arrays of records that the compiled event loop reads and writes.

Invariant: a World holds all state of the event loop, so equal worlds give equal runs. Times are milliseconds of virtual
time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsd_sim.engine.records import DRAFTER, FATES, MESSAGE, VERIFIER
from shared.data.profiles import MAX_EXTRAS

CLOCK = np.dtype(
    [
        ("now", np.float64),
        ("sequence", np.int64),  # number of the next event; orders events at the same time
        ("random", np.uint64),  # state of the random number generator
        ("num_events", np.int32),
        ("num_free_slots", np.int32),
        ("num_free_messages", np.int32),
        ("num_windows", np.int64),  # windows verified: verdicts of passes with draws
        ("num_logged", np.int64),
        ("pass_slowdown", np.float64),  # factor of a pass while a draft step runs (shared_machine.py)
        ("step_slowdown", np.float64),  # factor of a draft step while a pass runs
        ("message_ms", np.float64),  # of a message between drafter and verifier, beyond the link
        ("request_ms", np.float64),  # of the gateway, from the arrival of a request to its Open
    ],
    align=True,
)

EVENT = np.dtype([("time", np.float64), ("sequence", np.int64), ("kind", np.int32), ("who", np.int32)], align=True)

REQUEST = np.dtype(
    [
        ("arrival_ms", np.float64),
        ("prompt", np.int32),  # tokens
        ("tokens", np.int32),  # length of the answer
        ("max_tokens", np.int32),
        ("device", np.int32),  # the drafter; -1: none
        ("node", np.int32),  # the verifier
        ("client", np.int32),  # of a closed loop; -1: none
        ("first_ms", np.float64),  # first token at the gateway
        ("done_ms", np.float64),  # last token at the gateway
        ("passes", np.int32),
        *((fate, np.int32) for fate in FATES),
        ("recovered", np.int32),  # target tokens in place of a rejected guess
        ("bonus", np.int32),  # target tokens behind guesses that were all accepted
        ("looked_up", np.int32),  # tokens that the verifier guessed from the text
    ],
    align=True,
)

SLOT = np.dtype(
    [  # an open session; `drafters` and `verifiers` hold its two sides at the same index
        ("request", np.int32),
        ("generation", np.int32),  # messages of another generation are dropped
        ("reserved", np.int32),  # KV tokens; 0 while it waits for room
        ("begun", np.int32),  # tokens of the answer that the newest Open or Speculate carries
        ("has_timer", np.bool_),
        ("speculate_in_flight", np.bool_),
        ("lost_drafter", np.bool_),
        ("lost_verifier", np.bool_),
        ("lost_ms", np.float64),  # when it lost its drafter or verifier
        ("drafter_started", np.bool_),  # its Speculate reached the drafter
        ("finished_early", np.bool_),  # its last Verdict reached the drafter before the Speculate did
        ("has_verdict", np.bool_),  # a Verdict with tokens reached the drafter
        ("verdict_ms", np.float64),  # when the newest one did
        *((f"seen_{fate}", np.int64) for fate in FATES),  # counts that are already in the pair's record
    ],
    align=True,
)

DEVICE = np.dtype(
    [
        ("step_ms", np.float64),  # a draft step with one token and no context
        ("step_ms_per_1000", np.float64),  # plus, per 1,000 tokens of context
        ("fed_ms", np.float64),  # plus, per further token fed
        ("session_ms", np.float64),  # plus, per further session
        ("slowdown", np.float64),  # factor of step times
        ("feed_tokens", np.int32),  # most tokens of a session fed in a step
        ("max_rows", np.int32),  # most sessions in a step
        ("delay_ms", np.float64),  # of the link, one way
        ("jitter_ms", np.float64),
        ("bits_per_ms", np.float64),  # 0: no limit
        ("stall_rate", np.float64),
        ("stall_ms", np.float64),
        ("up_free", np.float64),  # when the uplink has taken in all messages
        ("up_newest", np.float64),  # when the newest message leaves the uplink
        ("down_free", np.float64),
        ("down_newest", np.float64),
        ("num_sessions", np.int32),
        ("num_rows", np.int32),  # sessions of the running draft step; 0: no step runs
        ("step_end", np.float64),  # when the step ends
        ("num_more", np.int32),  # steps of the same run that follow it
        ("ends_at", np.float64),  # when the run ends: the time of its event
        ("pace", np.float64),  # factor of the running step's time left
        ("logged", np.int64),  # its entry in the log
        ("num_failures", np.int32),  # failures in effect now
        ("busy_ms", np.float64),
    ],
    align=True,
)

NODE = np.dtype(
    [
        ("token_budget", np.int32),
        ("prefill_chunk", np.int32),
        ("kv_tokens", np.int64),
        ("free_kv", np.int64),
        ("delay_ms", np.float64),  # gateway to verifier, one way
        ("batching", np.int32),  # FIFO, LAB, TETRIS or WORTH
        ("draft_window", np.int32),  # guesses per session of its own draft model before a pass; 0: it has none
        ("draft_ms", np.float64),  # a step of its own draft model for one session with no context
        ("draft_ms_per_session", np.float64),  # plus, per further session
        ("draft_ms_per_1000", np.float64),  # plus, per 1,000 tokens of all contexts
        ("lookup_tokens", np.int32),  # guesses from the text in a session's row, the drafter's included; 0: none
        ("num_sessions", np.int32),
        ("num_batch", np.int32),  # sessions of the running pass; 0: no pass runs
        ("num_fed", np.int32),  # tokens of the running pass
        ("pass_ms", np.float64),  # duration of the running pass
        ("ends_at", np.float64),  # when the running pass ends
        ("pace", np.float64),  # factor of its time left
        ("bound", np.float64),  # share of its time alone in which it reads weights, and is slowed down by draft steps
        ("logged", np.int64),  # its entry in the log
        ("num_failures", np.int32),  # failures in effect now
        ("weights", np.float64, (7,)),  # of the features of shared.policies.batching.PassCost
        ("extra_ms", np.float64, (MAX_EXTRAS,)),  # of a pass of 1, 2, … tokens, beyond the weighted sum
        ("slowdown", np.float64),  # factor of pass times
        ("noise", np.float64),  # a pass time varies uniformly by up to this share, up or down
        ("busy_ms", np.float64),
        ("num_passes", np.int64),
        ("num_committed", np.int64),
        ("num_preemptions", np.int64),
        ("sum_batch", np.int64),
        ("sum_queue", np.float64),  # queue utilisations at the ends of passes
    ],
    align=True,
)

PAIR = np.dtype(
    [  # a device and a node
        ("window", np.int32),
        ("chunk", np.int32),
        ("free_run", np.bool_),
        ("min_confidence", np.float64),
        ("num_sessions", np.int32),
        ("num_sharing", np.int32),  # sessions of the device that would share its steps if this pair drafts
        ("context", np.int64),  # tokens, sum over sessions
        *((fate, np.int64) for fate in FATES),  # since the last report
        ("queue", np.float64),  # moving averages
        ("gap_ms", np.float64),  # between verdicts with tokens
        ("gap_tokens", np.float64),
        ("tpot_ms", np.float64),  # gap_ms / gap_tokens
        ("rtt_ms", np.float64),
        ("pass_ms", np.float64),
        ("batch", np.float64),
        ("pass_tokens", np.float64),
    ],
    align=True,
)

LOG = np.dtype(
    [  # for traces and plots (studies/trace.py)
        ("kind", np.int32),  # PASS: a verify pass; STEP: a draft step; STEER: a new window reaches a device
        ("who", np.int32),  # PASS: node; STEP: device; STEER: pair (device * nodes + node)
        ("request", np.int32),  # STEP: request of its first session; else -1
        ("num", np.int32),  # PASS: sessions; STEP: tokens fed; STEER: window
        ("start", np.float64),
        ("end", np.float64),
    ],
    align=True,
)
PASS, STEP, STEER = 0, 1, 2
NOBODY = -1  # no device, no client
MOST_BYTES = 4 << 30  # of a world


class TooLarge(ValueError):
    """A run that outgrows memory, or virtual time."""


class World(NamedTuple):
    """The arrays of one simulation."""

    clock: NDArray[Any]  # [1]
    events: NDArray[Any]  # a heap
    requests: NDArray[Any]
    slots: NDArray[Any]
    drafters: NDArray[Any]  # [slots] the drafter's side
    verifiers: NDArray[Any]  # [slots] the verifier's side
    right: NDArray[np.bool_]  # [slots, tokens] whether the guess for this token of the answer is right
    confidence: NDArray[np.float32]  # [slots, tokens] of that guess
    lookups: NDArray[np.int8]  # [slots, tokens, 3] guesses from the text before this token (acceptance.py)
    free_slots: NDArray[np.int32]  # a stack
    messages: NDArray[Any]
    generations: NDArray[np.int32]  # [messages] generation of the slot when the message was sent
    free_messages: NDArray[np.int32]  # a stack
    devices: NDArray[Any]
    device_slots: NDArray[np.int32]  # [devices, sessions] the session with the latest turn last
    device_rows: NDArray[np.int32]  # [devices, sessions] slots of the running draft step, or ABANDONED (edge.py)
    nodes: NDArray[Any]
    node_slots: NDArray[np.int32]  # [nodes, sessions] oldest first
    batches: NDArray[np.int32]  # [nodes, sessions] slots of the running pass
    pairs: NDArray[Any]  # [devices, nodes]
    log: NDArray[Any]  # the first entries, as many as there is room for


def world_bytes(num_devices: int, num_nodes: int, num_requests: int, num_slots: int, max_tokens: int) -> int:
    """Bytes of the arrays of a world without a log."""
    of_slot = SLOT.itemsize + DRAFTER.itemsize + VERIFIER.itemsize + 8 * (max_tokens + 1) + 36 * EVENT.itemsize
    of_slot += 32 * (MESSAGE.itemsize + 8) + 8 * (num_devices + num_nodes)
    of_device = DEVICE.itemsize + 64 * EVENT.itemsize + num_nodes * PAIR.itemsize
    return num_slots * of_slot + num_devices * of_device + num_requests * REQUEST.itemsize + num_nodes * NODE.itemsize


def make_world(
    num_devices: int, num_nodes: int, num_requests: int, num_slots: int, max_tokens: int, seed: int, num_logged: int = 0
) -> World:
    """A world of zeros. `max_tokens`: of the longest answer; `num_logged`: capacity of the log, in entries."""
    num_messages = 32 * num_slots + 1024
    world = World(
        clock=np.zeros(1, CLOCK),
        events=np.zeros(num_messages + 4 * num_slots + 64 * num_devices + num_nodes + 64, EVENT),
        requests=np.zeros(num_requests, REQUEST),
        slots=np.zeros(num_slots, SLOT),
        drafters=np.zeros(num_slots, DRAFTER),
        verifiers=np.zeros(num_slots, VERIFIER),
        right=np.zeros((num_slots, max_tokens + 1), np.bool_),
        confidence=np.ones((num_slots, max_tokens + 1), np.float32),
        lookups=np.zeros((num_slots, max_tokens + 1, 3), np.int8),
        free_slots=np.arange(num_slots - 1, -1, -1, dtype=np.int32),
        messages=np.zeros(num_messages, MESSAGE),
        generations=np.zeros(num_messages, np.int32),
        free_messages=np.arange(num_messages - 1, -1, -1, dtype=np.int32),
        devices=np.zeros(num_devices, DEVICE),
        device_slots=np.zeros((num_devices, num_slots), np.int32),
        device_rows=np.zeros((num_devices, num_slots), np.int32),
        nodes=np.zeros(num_nodes, NODE),
        node_slots=np.zeros((num_nodes, num_slots), np.int32),
        batches=np.zeros((num_nodes, num_slots), np.int32),
        pairs=np.zeros((num_devices, num_nodes), PAIR),
        log=np.zeros(num_logged, LOG),
    )
    clock = world.clock[0]
    clock["random"] = seed
    clock["num_free_slots"], clock["num_free_messages"] = num_slots, num_messages
    world.devices["max_rows"] = 1
    world.devices["slowdown"] = world.nodes["slowdown"] = 1.0
    clock["pass_slowdown"] = clock["step_slowdown"] = 1.0
    return world


def with_more_slots(world: World) -> World:
    """The same world with twice as many session slots. Raises TooLarge."""
    num, clock = len(world.slots), world.clock[0]
    num_requests, max_tokens = len(world.requests), world.right.shape[1]
    if world_bytes(len(world.devices), len(world.nodes), num_requests, 2 * num, max_tokens) > MOST_BYTES:
        raise TooLarge(f"workload: more than {num:,} requests are open at once: the fleet does not keep up with them")
    num_free = int(clock["num_free_slots"])
    free = np.zeros(2 * num, np.int32)
    free[:num_free] = world.free_slots[:num_free]
    free[num_free : num_free + num] = np.arange(2 * num - 1, num - 1, -1)
    clock["num_free_slots"] = num_free + num

    def wider(array: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate((array, np.zeros_like(array)), axis=1)

    return with_more_room(world)._replace(
        slots=np.concatenate((world.slots, np.zeros_like(world.slots))),
        drafters=np.concatenate((world.drafters, np.zeros_like(world.drafters))),
        verifiers=np.concatenate((world.verifiers, np.zeros_like(world.verifiers))),
        right=np.concatenate((world.right, np.zeros_like(world.right))),
        confidence=np.concatenate((world.confidence, np.ones_like(world.confidence))),
        lookups=np.concatenate((world.lookups, np.zeros_like(world.lookups))),
        free_slots=free,
        device_slots=wider(world.device_slots),
        device_rows=wider(world.device_rows),
        node_slots=wider(world.node_slots),
        batches=wider(world.batches),
    )


def with_more_room(world: World) -> World:
    """The same world with twice as many messages and events."""
    num, clock = len(world.messages), world.clock[0]
    num_free = int(clock["num_free_messages"])
    free = np.zeros(2 * num, np.int32)
    free[:num_free] = world.free_messages[:num_free]
    free[num_free : num_free + num] = np.arange(num, 2 * num)
    clock["num_free_messages"] = num_free + num

    def longer(array: NDArray[Any], num_more: int) -> NDArray[Any]:
        made = np.zeros(len(array) + num_more, array.dtype)
        made[: len(array)] = array
        return made

    return world._replace(
        messages=longer(world.messages, num),
        generations=longer(world.generations, num),
        free_messages=free,
        events=longer(world.events, len(world.events) + num),
    )
