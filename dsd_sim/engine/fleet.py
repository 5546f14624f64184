"""A simulated fleet: Python places requests and runs policies; the compiled event loop does everything else.

Invariant: routers and window policies are the services' own objects, but for the default policy, which is compiled.
They are called when a service would call them, and see only what a service sees: loads of the last heartbeat, and
reports of drafters.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from awc.policies.static import StaticPolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice, WindowPolicy
from dsd_sim.engine import cloud, edge, events, kernel, kv_cache, outages
from dsd_sim.engine.acceptance import AcceptanceModel, TextLookups
from dsd_sim.engine.heartbeats import Heartbeats
from dsd_sim.engine.pair_reports import ReportSums, SeenPairs
from dsd_sim.engine.records import FATES
from dsd_sim.engine.world import NOBODY, TooLarge, World, with_more_room, with_more_slots
from dsd_sim.steering.controller import EXPIRY_MS, NEVER_MS, SimController
from shared.policies.kv_cache import likely_kv_tokens
from shared.policies.routing import Router, RoutingCandidate, with_room
from shared.protocol.messages import Load
from shared.timing import DECISION_TTL_S, HEARTBEAT_S, REPORT_S, STALE_HEARTBEATS

HEARTBEAT_MS, REPORT_MS = 1e3 * HEARTBEAT_S, 1e3 * REPORT_S  # intervals
DECISION_MS = 1e3 * DECISION_TTL_S  # how long a decision holds after the controller's last sign of life
REPORTS, HEARTBEATS = 0, 1  # kinds of ticks
LONGEST_MS = 90 * 86_400_000.0  # of a run
SPECULATE_BYTES = 230  # of a Speculate without tokens, with NATS subject and TCP/IP headers


@dataclass(frozen=True, slots=True)
class FleetChange:
    """A change or failure: `act` modifies the fleet at `at_ms`."""

    at_ms: float
    act: Callable[[SimFleet], None]


@dataclass
class SimFleet:
    """Runs a world whose requests are filled in: arrival, lengths, device (-1: target-only) and client.

    Open loop (no client): requests arrive at their times, which must be in order. Closed loop: `think()` milliseconds
    after its answer a client takes the next request, which then gets its arrival, client and device. The guesses of a
    request depend only on the seed and its index.
    """

    world: World
    router: Router
    acceptance: list[AcceptanceModel]  # [devices]
    policy: WindowPolicy
    seed: int
    groups: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # [devices] the edge of each
    colocated: bool = False  # verifiers draft themselves; their guesses are those of the request's device
    lookups: TextLookups | None = None  # None: verifiers do not guess from the text
    changes: Sequence[FleetChange] = ()
    think: Callable[[], float] = lambda: 0.0
    shares_machine: bool = False  # all drafters and verifiers run on one
    num_gateways: int = 1  # each knows only its own assignments since the last heartbeats
    max_sessions: int | None = None  # of all gateways; further requests wait, first come first served
    on_arrival: Callable[[World], None] = lambda world: None  # called when a request arrives for the first time
    num_done: int = 0
    is_watched: bool = False  # makes reports even if the policy never changes a window
    reported: ReportSums = field(default_factory=ReportSums)
    _candidates: list[dict[int, RoutingCandidate]] = field(init=False)  # of each gateway: nodes that are not gone
    _controller: SimController = field(init=False)
    _choices: dict[tuple[int, int], WindowChoice] = field(default_factory=dict)  # newest decision of each pair
    _in_flight: dict[int, deque[WindowChoice]] = field(default_factory=dict)  # decisions, by pair index

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._gateways = np.random.default_rng(self.seed).integers(self.num_gateways, size=len(self.world.requests))
        self._num_rebound = np.zeros(len(self.world.devices), np.int64)  # sessions rebound since the last heartbeat
        self._node_ids = [f"v.{index:06d}" for index in range(len(self.world.nodes))]
        self._nodes_by_id = {name: index for index, name in enumerate(self._node_ids)}
        self._next = 0
        self._waiting: deque[int] = deque()  # requests that no client has taken yet
        self._unplaced: set[int] = set()  # arrived requests without a verifier
        self._queue: deque[int] = deque()  # those of them that wait for admission
        self._num_admitted = 0
        first = self.world.pairs[0, 0]
        self._start = WindowChoice(int(first["window"]), int(first["chunk"]), bool(first["free_run"]))
        self._assigned = self.world.requests["device"].copy()  # assigned drafter of each request
        self._outage_ends_ms, self._decisions_expire_ms = 0.0, math.inf  # of a controller outage
        self._device_beats = Heartbeats(len(self.world.devices))
        self._node_beats = Heartbeats(len(self.world.nodes))

    def run(self) -> None:
        """Serves all requests. May be called once. Raises TooLarge."""
        num_devices = len(self.world.devices)
        self._controller = SimController(self.policy, num_devices, self._node_ids, self.shares_machine)
        self._schedule()
        self._take_heartbeats()
        for number, change in enumerate(self.changes):
            events.push(self.world, change.at_ms, events.CHANGES, number)
        handlers = {
            events.ARRIVAL: self._arrive,
            events.TICK: self._tick,
            events.DONE: self._finish,
            events.CHANGES: self._apply_change,
            events.STEERS: self._take_decision,
            events.NO_ROOM: self._make_room,
        }
        clock = self.world.clock[0]
        while self.num_done < len(self.world.requests) or clock["num_free_slots"] < len(self.world.slots):
            kind, who = kernel.run(self.world)
            handlers[kind](who)

    @property
    def now(self) -> float:
        return float(self.world.clock[0]["now"])

    def _make_room(self, _: int) -> None:
        self.world = with_more_room(self.world)

    def _apply_change(self, number: int) -> None:
        edge.interrupt_all(self.world)
        self.changes[number].act(self)

    # --- requests --------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        requests = self.world.requests
        clients = requests["client"]
        of_clients = np.flatnonzero(clients >= 0)
        firsts = of_clients[np.unique(clients[of_clients], return_index=True)[1]]
        for first in firsts.tolist():
            events.push(self.world, float(requests[first]["arrival_ms"]), events.ARRIVAL, first)
        self._waiting.extend(np.setdiff1d(of_clients, firsts).tolist())
        self._open = np.flatnonzero(clients < 0)
        self._push_next()
        # A static policy decides nothing after the start, so its reports matter only if a controller may fail.
        if self.changes or self.is_watched or not isinstance(self.policy, StaticPolicy):
            events.push(self.world, REPORT_MS, events.TICK, REPORTS)
        events.push(self.world, HEARTBEAT_MS, events.TICK, HEARTBEATS)

    def _push_next(self) -> None:
        if self._next < len(self._open):
            index = int(self._open[self._next])
            self._next += 1
            events.push(self.world, float(self.world.requests[index]["arrival_ms"]), events.ARRIVAL, index)

    def _arrive(self, index: int) -> None:
        """A request arrives, or tries again after waiting for admission or for a verifier."""
        request = self.world.requests[index]
        if index not in self._unplaced:
            self.on_arrival(self.world)
            if request["client"] < 0:
                self._push_next()
            else:
                request["arrival_ms"] = self.now
        if self.max_sessions is not None and self._num_admitted >= self.max_sessions:
            self._unplaced.add(index)
            self._queue.append(index)
            return
        node = self._route(index)
        if node is None:
            self._unplaced.add(index)
            events.push(self.world, self.now + HEARTBEAT_MS, events.ARRIVAL, index)
            return
        self._unplaced.discard(index)
        self._num_admitted += 1
        assigned = device = int(request["device"])
        if assigned >= 0 and self._device_beats.is_gone(assigned):
            device = self._replacement(assigned)
        request["node"], request["device"] = node, NOBODY if self.colocated else device
        if device >= 0:
            self._reset_if_expired(device, node)
        if not self.world.clock[0]["num_free_slots"]:
            self.world = with_more_slots(self.world)
        slot = kernel.open_session(self.world, index, speculate_bytes(request))
        num = int(request["tokens"]) + 1
        if assigned >= 0:
            right, confidence = self.world.right[slot, :num], self.world.confidence[slot, :num]
            self.acceptance[assigned].fill(right, confidence, self._chance_of(index))
        if self.lookups is not None:
            self.lookups.fill(self.world.lookups[slot, :num], self._chance_of(index))
        if device != assigned:
            self.world.slots[slot]["lost_drafter"] = device == NOBODY
            self.world.slots[slot]["lost_ms"] = -math.inf  # so the next heartbeat looks for a drafter

    def _chance_of(self, index: int) -> np.random.Generator:
        """The random numbers of a request, from the first."""
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, index]))

    def _reset_if_expired(self, device: int, node: int) -> None:
        """Resets a pair to the start window if both its state at the controller and its last decision have expired."""
        heard_ms = self._controller.heard_ms(device, node)
        if heard_ms > NEVER_MS and self.now - heard_ms > EXPIRY_MS + DECISION_MS:
            self._controller.forget(device, node)
            self._choices.pop((device, node), None)
            self._write(device * len(self.world.nodes) + node, self._start)

    def _route(self, index: int, num_begun: int = 0, *, needs_room: bool = False) -> int | None:
        """The verifier of a request, one with room for its KV cache if there is one; None if all are gone, or have no
        room where the session `needs_room`. num_begun: tokens of the answer."""
        request, known = self.world.requests[index], self._candidates[self._gateways[index]]
        candidates = list(known.values())
        kv_tokens = likely_kv_tokens(int(request["prompt"]) + num_begun, int(request["max_tokens"]) - num_begun)
        choices = with_room(candidates, kv_tokens) or ([] if needs_room else candidates)
        chosen = self.router.choose(choices, self._random)
        if chosen is None:
            return None
        node = self._nodes_by_id[chosen.instance_id]
        num_since, kv_since = chosen.num_since + 1, chosen.kv_since + kv_tokens
        known[node] = structs.replace(chosen, num_since=num_since, kv_since=kv_since)
        return node

    def _replacement(self, device: int) -> int:
        """The device of the same edge with the fewest sessions that is not gone; NOBODY if there is none."""
        alike = np.flatnonzero(self.groups == self.groups[device]).tolist() if len(self.groups) else [device]
        alive = [index for index in alike if not self._device_beats.is_gone(index)]
        sessions = self.world.devices["num_sessions"] + self._num_rebound
        chosen = min(alive, key=lambda index: int(sessions[index]), default=NOBODY)
        if chosen != NOBODY:
            self._num_rebound[chosen] += 1
        return chosen

    def _finish(self, index: int) -> None:
        self.num_done += 1
        self._num_admitted -= 1
        if self._queue:
            events.push(self.world, self.now, events.ARRIVAL, self._queue.popleft())
        requests = self.world.requests
        if requests[index]["client"] >= 0 and self._waiting:
            following = self._waiting.popleft()
            requests[following]["client"] = requests[index]["client"]
            requests[following]["device"] = self._assigned[following] = self._assigned[index]
            events.push(self.world, self.now + self.think(), events.ARRIVAL, following)

    # --- heartbeats ------------------------------------------------------------------------------------------------

    def _tick(self, which: int) -> None:
        if which == HEARTBEATS:
            self._take_heartbeats()
            events.push(self.world, self.now + HEARTBEAT_MS, events.TICK, HEARTBEATS)
        else:
            self._steer()
            events.push(self.world, self.now + REPORT_MS, events.TICK, REPORTS)

    def _take_heartbeats(self) -> None:
        """Takes the loads of all verifiers from their heartbeats, and replaces instances that are gone. Raises TooLarge
        for a run without an end in sight."""
        if self.now > LONGEST_MS:
            done = f"{self.num_done:,} of {len(self.world.requests):,} requests are done"
            raise TooLarge(f"workload: after {LONGEST_MS / 86_400_000:.0f} days of virtual time {done}")
        cloud.expire_drafters(self.world)
        nodes, busy = self.world.nodes, cloud.loads(self.world)
        loads = [
            Load(
                num_sessions=int(sessions),
                queue_tokens=int(queue),
                batch=int(node["num_batch"]),
                free_kv_tokens=int(free_kv),
                kv_tokens=int(node["kv_tokens"]),
                step_ms=float(node["pass_ms"]),
                rtt_ms=2 * float(node["delay_ms"]),
            )
            for (sessions, queue, free_kv), node in zip(busy, nodes, strict=True)
        ]
        self._num_rebound[:] = 0
        self._device_beats.advance(self.world.devices["num_failures"] > 0)
        self._node_beats.advance(nodes["num_failures"] > 0)
        alive = {
            index: RoutingCandidate(self._node_ids[index], load)
            for index, load in enumerate(loads)
            if not self._node_beats.is_gone(index)
        }
        self._candidates = [alive.copy() for _ in range(self.num_gateways)]
        self._move_waiting()
        if self.changes:
            self._replace()

    def _move_waiting(self) -> None:
        """Moves sessions that wait for KV cache to verifiers that have room for them."""
        for slot in kv_cache.waiting_slots(self.world).tolist():
            index = int(self.world.slots[slot]["request"])
            node = self._route(index, int(outages.num_begun(self.world, slot)), needs_room=True)
            if node is not None:
                outages.move(self.world, slot, node, speculate_bytes(self.world.requests[index]))

    def _replace(self) -> None:
        """Gives another verifier or drafter, if there is one, to sessions that lost theirs."""
        world = self.world
        for slot in outages.lost_slots(world, self.now - (STALE_HEARTBEATS - 1) * HEARTBEAT_MS).tolist():
            s = world.slots[slot]
            request = world.requests[s["request"]]
            index = int(s["request"])
            node = self._route(index, int(s["begun"])) if s["lost_verifier"] else int(request["node"])
            if node is None:
                continue
            if s["lost_verifier"]:
                outages.reopen(world, slot, node, speculate_bytes(request))
            elif (device := self._replacement(self._assigned[index])) != NOBODY:
                outages.join(world, slot, device, speculate_bytes(request))

    # --- failures (scenario/changes.py) ----------------------------------------------------------------------------

    def lose(self, part: str, indices: Sequence[int]) -> None:
        """`part`: drafters or verifiers."""
        lose_one = outages.lose_device if part == "drafters" else outages.lose_node
        for index in indices:
            lose_one(self.world, index)

    def restore(self, part: str, indices: Sequence[int]) -> None:
        records = self.world.devices if part == "drafters" else self.world.nodes
        for index in indices:
            records[index]["num_failures"] -= 1

    def cut_links(self, devices: Sequence[int], until_ms: float) -> None:
        """Holds messages on these links back until `until_ms`."""
        for index in devices:
            device = self.world.devices[index]
            device["up_free"], device["down_free"] = (
                max(float(device[name]), until_ms) for name in ("up_free", "down_free")
            )

    def stop_controller(self, until_ms: float) -> None:
        """Stops the controller until `until_ms`; it loses its state."""
        if self.now >= self._outage_ends_ms:
            self._decisions_expire_ms = self.now + DECISION_MS
        self._outage_ends_ms = max(self._outage_ends_ms, until_ms)
        self._controller.restart()

    # --- reports and decisions -------------------------------------------------------------------------------------

    def _steer(self) -> None:
        """Passes a report of every pair with sessions or counts to the policy, and sends its decisions."""
        pairs = self.world.pairs
        edge.absorb_all(self.world)
        is_fresh = (pairs["num_sessions"] > 0) | (pairs["drafted"] + pairs["discarded"] > 0)
        is_down = self.now < self._outage_ends_ms
        if is_down and self.now >= self._decisions_expire_ms:
            self._expire_decisions()
        devices, nodes = np.nonzero(is_fresh & (not is_down))
        if len(devices):
            self._decide(devices, nodes)
        for fate in FATES:
            pairs[fate] = 0

    def _decide(self, devices: NDArray[np.intp], nodes: NDArray[np.intp]) -> None:
        """Decides on the reports of these pairs at once."""
        seen = SeenPairs.of(self.world, devices, nodes)
        self.reported.add(seen)
        for device, node, choice in self._controller.decide(seen, devices, nodes, self.now):
            self._announce(device, node, choice)

    def _expire_decisions(self) -> None:
        """Returns all pairs to the default window, as their decisions have expired."""
        self._decisions_expire_ms = math.inf
        for device, node in list(self._choices):
            self._announce(device, node, DEFAULT_CHOICE)

    def _announce(self, device: int, node: int, choice: WindowChoice) -> None:
        """Sends a decision that is new; it reaches the drafter after a round trip, the report up and the decision
        down."""
        known = self._choices.get((device, node))
        if known is choice or known == choice:
            return
        self._choices[device, node] = choice
        index, link = device * len(self.world.nodes) + node, self.world.devices[device]
        self._in_flight.setdefault(index, deque()).append(choice)
        reported_ms = max(self.now, float(link["up_free"])) + float(link["delay_ms"])
        decided_ms = max(reported_ms, float(link["down_free"])) + float(link["delay_ms"])
        events.push(self.world, decided_ms, events.STEERS, index)

    def _take_decision(self, index: int) -> None:
        """Handles a decision that reaches its drafter."""
        self._write(index, self._in_flight[index].popleft())
        edge.steers(self.world, index)

    def _write(self, index: int, choice: WindowChoice) -> None:
        """Sets the window of a pair."""
        pair = self.world.pairs.reshape(-1)[index]
        pair["window"], pair["chunk"] = choice.window, choice.chunk
        pair["free_run"], pair["min_confidence"] = choice.free_run, choice.min_confidence


def speculate_bytes(request: np.void) -> int:
    """Bytes of the request's Speculate, with NATS subject and TCP/IP headers."""
    return SPECULATE_BYTES + events.TOKEN_BYTES * int(request["prompt"])
