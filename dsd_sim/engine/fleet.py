"""A simulated fleet: requests come, gateways place them, policies steer, and the compiled event loop does the rest.

Invariant: routers and window policies are the services' own objects, asked at the moments at which a service asks them
and shown no more than a service sees: loads as of the last heartbeat, and reports of a drafter.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from awc.policies.static import StaticPolicy
from awc.policy import DEFAULT_CHOICE, PairControl, WindowChoice, WindowPolicy, is_plausible
from dsd_sim.engine import cloud, edge, events, kernel, outages
from dsd_sim.engine.acceptance import Acceptance
from dsd_sim.engine.beats import STALE_INTERVALS, Beats
from dsd_sim.engine.pair_reports import REPORTED, Sums, report_of
from dsd_sim.engine.world import NOBODY, World, with_more_room, with_more_slots
from shared.policies.routing import Candidate, Router
from shared.protocol.messages import Load

REPORTS, HEARTBEATS = 0, 1  # ticks
SPECULATE_BYTES = 310  # on the wire, beside its tokens


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds between heartbeats, between reports of drafters, for which a decision holds unless repeated, and
    after which a pair without reports is forgotten."""

    heartbeat_ms: float = 1000.0
    report_ms: float = 250.0
    decision_ms: float = 30_000.0
    expiry_ms: float = 30_000.0


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that is done to a fleet at a time."""

    at_ms: float
    act: Callable[[Fleet], None]


@dataclass
class Fleet:
    """Runs a world whose requests are written into it: arrival, lengths, device (-1: target-only), client.

    A client asks once its request before is done and `think()` milliseconds are over: the next request of those that
    clients are to make, whatever arrival, client and device it says. The arrivals of others are in order. The guesses
    of a request depend on the seed and its index.
    """

    world: World
    router: Router
    acceptance: list[Acceptance]  # [devices]
    policy: WindowPolicy
    seed: int
    groups: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # [devices] those that are alike
    colocated: bool = False  # verifiers draft themselves what the request's device would
    happenings: Sequence[Happening] = ()
    timing: Timing = Timing()
    think: Callable[[], float] = lambda: 0.0
    max_sessions: int | None = None  # that gateways have at once; further requests wait, first come first served
    num_done: int = 0
    is_watched: bool = False  # reports are made and summed up though the policy never says anything new
    reported: Sums = field(default_factory=Sums)
    _candidates: dict[int, Candidate] = field(init=False)  # nodes taken for alive
    _controls: dict[tuple[int, int], PairControl] = field(default_factory=dict)  # by device and node
    _choices: dict[tuple[int, int], WindowChoice] = field(default_factory=dict)  # announced last
    _heard: dict[tuple[int, int], float] = field(default_factory=dict)  # last report of a pair that was steered
    _under_way: dict[int, deque[WindowChoice]] = field(default_factory=dict)  # decisions, by the number of the pair

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._adopted = np.zeros(len(self.world.devices), np.int64)  # sessions that changed to each device, likewise
        self._node_ids = [f"v.{index:06d}" for index in range(len(self.world.nodes))]
        self._nodes_by_id = {name: index for index, name in enumerate(self._node_ids)}
        self._next = 0
        self._waiting: deque[int] = deque()  # requests that clients are to make
        self._unplaced: set[int] = set()  # requests that have met no verifier yet, or wait to be admitted
        self._queue: deque[int] = deque()  # those that wait to be admitted
        self._num_admitted = 0
        first = self.world.pairs[0, 0]
        self._start = WindowChoice(int(first["window"]), int(first["chunk"]), bool(first["free_run"]))
        self._homes = self.world.requests["device"].copy()  # who was to draft for each request
        self._silent_until, self._forgotten_ms = 0.0, math.inf
        self._beats = Beats(len(self.world.devices), len(self.world.nodes))

    def run(self) -> None:
        """Serves all requests; to be called once."""
        self._schedule()
        self._listen()
        for number, happening in enumerate(self.happenings):
            events.push(self.world, happening.at_ms, events.HAPPENS, number)
        served = {
            events.ARRIVAL: self._arrive,
            events.TICK: self._tick,
            events.DONE: self._finish,
            events.HAPPENS: self._happen,
            events.STEERS: self._take_decision,
            events.NO_ROOM: self._make_room,
        }
        clock = self.world.clock[0]
        while self.num_done < len(self.world.requests) or clock["num_free_slots"] < len(self.world.slots):
            kind, who = kernel.run(self.world)
            served[kind](who)

    @property
    def now(self) -> float:
        return float(self.world.clock[0]["now"])

    def _make_room(self, _: int) -> None:
        self.world = with_more_room(self.world)

    def _happen(self, number: int) -> None:
        edge.interrupt_all(self.world)
        self.happenings[number].act(self)

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
        # A static policy's choice holds from the start and is all that it ever says, unless it falls silent.
        if self.happenings or self.is_watched or not isinstance(self.policy, StaticPolicy):
            events.push(self.world, self.timing.report_ms, events.TICK, REPORTS)
        events.push(self.world, self.timing.heartbeat_ms, events.TICK, HEARTBEATS)

    def _push_next(self) -> None:
        if self._next < len(self._open):
            index = int(self._open[self._next])
            self._next += 1
            events.push(self.world, float(self.world.requests[index]["arrival_ms"]), events.ARRIVAL, index)

    def _arrive(self, index: int) -> None:
        """A request comes, or has waited for a verifier."""
        request = self.world.requests[index]
        if index not in self._unplaced:
            if request["client"] < 0:
                self._push_next()
            else:
                request["arrival_ms"] = self.now
        if self.max_sessions is not None and self._num_admitted >= self.max_sessions:
            self._unplaced.add(index)
            self._queue.append(index)
            return
        node = self._route()
        if node is None:
            self._unplaced.add(index)
            events.push(self.world, self.now + self.timing.heartbeat_ms, events.ARRIVAL, index)
            return
        self._unplaced.discard(index)
        self._num_admitted += 1
        home = device = int(request["device"])
        if home >= 0 and self._beats.is_device_gone(home):
            device = self._another(home)
        request["node"], request["device"] = node, NOBODY if self.colocated else device
        if device >= 0:
            self._revive(device, node)
        if not self.world.clock[0]["num_free_slots"]:
            self.world = with_more_slots(self.world)
        slot = kernel.ask(self.world, index, speculate_bytes(request))
        if home >= 0:
            num = int(request["tokens"]) + 1
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, index]))
            self.acceptance[home].fill(self.world.right[slot, :num], self.world.confidence[slot, :num], rng)
        if device != home:
            self.world.slots[slot]["is_orphan"] = device == NOBODY  # it gets a drafter when there is one
            self.world.slots[slot]["lost_ms"] = -math.inf

    def _revive(self, device: int, node: int) -> None:
        """A pair that was not reported for so long that its last decision has expired too is as new."""
        heard = self._heard.get((device, node))
        if heard is not None and self.now - heard > self.timing.expiry_ms + self.timing.decision_ms:
            del self._heard[device, node]
            self._choices.pop((device, node), None)
            self._controls.pop((device, node), None)
            self._write(device * len(self.world.nodes) + node, self._start)

    def _route(self) -> int | None:
        """The verifier for a session, of those that are taken for alive."""
        chosen = self.router.choose(list(self._candidates.values()), self._random)
        if chosen is None:
            return None
        node = self._nodes_by_id[chosen.instance_id]
        self._candidates[node] = replace(chosen, num_since=chosen.num_since + 1)
        return node

    def _another(self, device: int) -> int:
        """The device of the same kind with the fewest sessions, those given to it since the last heartbeat included, of
        those taken for alive; NOBODY without one."""
        alike = np.flatnonzero(self.groups == self.groups[device]).tolist() if len(self.groups) else [device]
        alive = [index for index in alike if not self._beats.is_device_gone(index)]
        sessions = self.world.devices["num_sessions"] + self._adopted
        chosen = min(alive, key=lambda index: int(sessions[index]), default=NOBODY)
        if chosen != NOBODY:
            self._adopted[chosen] += 1
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
            requests[following]["device"] = self._homes[following] = self._homes[index]
            events.push(self.world, self.now + self.think(), events.ARRIVAL, following)

    # --- heartbeats and reports ------------------------------------------------------------------------------------

    def _tick(self, which: int) -> None:
        if which == HEARTBEATS:
            self._listen()
            events.push(self.world, self.now + self.timing.heartbeat_ms, events.TICK, HEARTBEATS)
        else:
            self._steer()
            events.push(self.world, self.now + self.timing.report_ms, events.TICK, REPORTS)

    def _listen(self) -> None:
        """Every verifier's load, as its heartbeat tells it; who is silent for too long is replaced."""
        cloud.expire_drafters(self.world)
        nodes, busy = self.world.nodes, cloud.loads(self.world)
        loads = [
            Load(num_sessions=int(sessions), queue_tokens=int(queue), step_ms=float(step), rtt_ms=2 * float(hop))
            for (sessions, queue), step, hop in zip(busy, nodes["pass_ms"], nodes["delay_ms"], strict=True)
        ]
        self._adopted[:] = 0
        self._beats.hear(self.world.devices["num_failures"] > 0, nodes["num_failures"] > 0)
        self._candidates = {
            index: Candidate(self._node_ids[index], load)
            for index, load in enumerate(loads)
            if not self._beats.is_node_gone(index)
        }
        if self.happenings:
            self._replace()

    def _replace(self) -> None:
        """Sessions that lost their verifier or their drafter long enough ago get another one, if there is one."""
        world = self.world
        for slot in outages.lost_slots(world, self.now - (STALE_INTERVALS - 1) * self.timing.heartbeat_ms).tolist():
            request = world.requests[world.slots[slot]["request"]]
            node = self._route() if world.slots[slot]["is_homeless"] else int(request["node"])
            if node is None:
                continue
            if world.slots[slot]["is_homeless"]:
                outages.reopen(world, slot, node, speculate_bytes(request))
            elif (device := self._another(self._homes[int(world.slots[slot]["request"])])) != NOBODY:
                outages.join(world, slot, device, speculate_bytes(request))

    # --- what happens (happenings.py) ------------------------------------------------------------------------------

    def lose_devices(self, devices: Sequence[int]) -> None:
        for index in devices:
            outages.lose_device(self.world, index)

    def restore_devices(self, devices: Sequence[int]) -> None:
        for index in devices:
            self.world.devices[index]["num_failures"] -= 1

    def lose_nodes(self, nodes: Sequence[int]) -> None:
        for index in nodes:
            outages.lose_node(self.world, index)

    def restore_nodes(self, nodes: Sequence[int]) -> None:
        for index in nodes:
            self.world.nodes[index]["num_failures"] -= 1

    def cut_links(self, devices: Sequence[int], until_ms: float) -> None:
        """What is sent on these links comes out behind `until_ms`."""
        for index in devices:
            device = self.world.devices[index]
            device["up_free"], device["down_free"] = (
                max(float(device[name]), until_ms) for name in ("up_free", "down_free")
            )

    def silence(self, until_ms: float) -> None:
        """The controller decides nothing until then, and knows nothing of what was before when it is back."""
        if self.now >= self._silent_until:
            self._forgotten_ms = self.now + self.timing.decision_ms
        self._silent_until = max(self._silent_until, until_ms)
        self._controls.clear()

    def _steer(self) -> None:
        """Shows the policy a report of every pair that has sessions or counts, and sends its choices out."""
        pairs = self.world.pairs
        edge.absorb_all(self.world)
        is_fresh = (pairs["num_sessions"] > 0) | (pairs["drafted"] + pairs["discarded"] > 0)
        is_silent = self.now < self._silent_until
        if is_silent and self.now >= self._forgotten_ms:
            self._forget()
        devices, nodes = np.nonzero(is_fresh & (not is_silent))
        steps = (self.world.devices["step_ms"] * self.world.devices["slowdown"])[devices].tolist()
        seen = pairs[devices, nodes][list(REPORTED)].tolist()
        for device, node, step_ms, values in zip(devices.tolist(), nodes.tolist(), steps, seen, strict=True):
            report = report_of(self._node_ids[node], step_ms, *values)
            self.reported.add(report)
            if is_plausible(report):
                self._announce(device, node, self._control(device, node).decide(report))
        for name in ("drafted", "accepted", "rejected", "late", "discarded"):
            pairs[name] = 0

    def _control(self, device: int, node: int) -> PairControl:
        """Of a pair that is reported now; it is forgotten when it was not for long."""
        control, heard = self._controls.get((device, node)), self._heard.get((device, node), self.now)
        if control is None or self.now - heard > self.timing.expiry_ms:
            control = self._controls[device, node] = self.policy.for_pair()
        self._heard[device, node] = self.now
        return control

    def _forget(self) -> None:
        """Decisions are too old to count: the default holds."""
        self._forgotten_ms = math.inf
        for device, node in list(self._choices):
            self._announce(device, node, DEFAULT_CHOICE)

    def _announce(self, device: int, node: int, choice: WindowChoice) -> None:
        """A decision is under way for one round trip: the report up, the decision down."""
        if self._choices.get((device, node)) == choice:
            return
        self._choices[device, node] = choice
        index, link = device * len(self.world.nodes) + node, self.world.devices[device]
        self._under_way.setdefault(index, deque()).append(choice)
        reported_ms = max(self.now, float(link["up_free"])) + float(link["delay_ms"])
        decided_ms = max(reported_ms, float(link["down_free"])) + float(link["delay_ms"])
        events.push(self.world, decided_ms, events.STEERS, index)

    def _take_decision(self, index: int) -> None:
        """A decision reaches its drafter."""
        self._write(index, self._under_way[index].popleft())
        edge.steers(self.world, index)

    def _write(self, index: int, choice: WindowChoice) -> None:
        """What a pair does from now on."""
        pair = self.world.pairs.reshape(-1)[index]
        pair["window"], pair["chunk"] = choice.window, choice.chunk
        pair["free_run"], pair["min_confidence"] = choice.free_run, choice.min_confidence


def speculate_bytes(request: np.void) -> int:
    """On the wire."""
    return SPECULATE_BYTES + events.TOKEN_BYTES * int(request["prompt"])
