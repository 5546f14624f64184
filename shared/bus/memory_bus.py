"""The bus inside one process, with faults on demand, for tests and benchmarks.

Invariant: without faults it behaves as NatsBus does: the same bytes, parts, Absent, and order within a subscription.
With faults, what happens to a packet depends on the seed and the order of publishing only.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from shared.bus.bus import ABSENT, Handler, Receiver
from shared.bus.parts import split
from shared.protocol.messages import Message, encode
from shared.protocol.subjects import verb
from shared.runtime.metrics import BusMetrics


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults of the network. Shares are probabilities, drawn for each packet and receiver."""

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0  # delayed by up to hold_s, so that later packets overtake
    hold_s: float = 0.005
    delay_s: float = 0.0


NO_FAULTS = Faults()


class MemoryNetwork:
    """Connects MemoryBuses. `faults` may change at any time and apply to packets published from then on."""

    def __init__(self, seed: int = 0, faults: Faults | None = None) -> None:
        self.faults = faults or NO_FAULTS
        self._random = random.Random(seed)
        self._subscriptions: list[MemorySubscription] = []
        self._cut_patterns: set[str] = set()
        self._isolated: set[MemoryBus] = set()
        self._under_way: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def connect(self, metrics: BusMetrics | None = None) -> MemoryBus:
        return MemoryBus(self, metrics or BusMetrics(CollectorRegistry()))

    def cut(self, pattern: str) -> None:
        """Loses every packet whose subject matches the pattern, until `mend`."""
        self._cut_patterns.add(pattern)

    def mend(self, pattern: str) -> None:
        """Ends `cut`."""
        self._cut_patterns.discard(pattern)

    def isolate(self, member: MemoryBus) -> None:
        """Loses all packets from and to a member, as a half-open link does: it is not found absent."""
        self._isolated.add(member)

    def rejoin(self, member: MemoryBus) -> None:
        """Ends `isolate`."""
        self._isolated.discard(member)

    def kill(self, member: MemoryBus) -> None:
        """Ends a member as a crash does: it is found absent."""
        self._isolated.add(member)
        self._subscriptions = [each for each in self._subscriptions if each.member is not member]

    def send(self, sender: MemoryBus, subject: str, packet: bytes, absent_to: str | None = None) -> None:
        """Sends a packet, well-formed or not, to every subscription that matches."""
        if sender in self._isolated:
            return
        receivers = [each for each in self._subscriptions if matches(each.pattern, subject)]
        if not receivers and absent_to is not None:
            self._tell_absent(sender, absent_to)
        if not any(matches(pattern, subject) for pattern in self._cut_patterns):
            for receiver in receivers:
                for delay_s in self._draw_delays():
                    self._schedule(receiver, subject, packet, delay_s)

    def add(self, subscription: MemorySubscription) -> None:
        self._subscriptions.append(subscription)

    def remove(self, subscription: MemorySubscription) -> None:
        """Ends a subscription for packets sent from now on."""
        self._subscriptions = [each for each in self._subscriptions if each is not subscription]

    def _tell_absent(self, sender: MemoryBus, absent_to: str) -> None:
        own = (each for each in self._subscriptions if each.member is sender and matches(each.pattern, absent_to))
        subscription = next(own, None)  # a server notifies one subscription only
        if subscription is not None:
            self._schedule(subscription, absent_to, None, 0.0)

    def _draw_delays(self) -> list[float]:
        """The delay of each copy that arrives. Six draws for each packet: the faults of one don't shift others'."""
        faults = self.faults
        lost, doubled, held, again, hold, hold_again = (self._random.random() for _ in range(6))
        if lost < faults.loss:
            return []
        delays = [faults.delay_s + (hold * faults.hold_s if held < faults.reordering else 0.0)]
        if doubled < faults.duplication:
            delays.append(faults.delay_s + (hold_again * faults.hold_s if again < faults.reordering else 0.0))
        return delays

    def _schedule(self, subscription: MemorySubscription, subject: str, packet: bytes | None, delay_s: float) -> None:
        loop = asyncio.get_running_loop()

        def deliver() -> None:
            if subscription.member not in self._isolated:
                subscription.receive(subject, packet)

        # The number keeps the order of equal times, which the loop's timers don't promise.
        heapq.heappush(self._under_way, (loop.time() + delay_s, next(self._numbers), deliver))
        if delay_s > 0:
            loop.call_later(delay_s, self._deliver_next)
        else:
            loop.call_soon(self._deliver_next)

    def _deliver_next(self) -> None:
        """Delivers the packet that is due first. The loop calls it once for each packet."""
        heapq.heappop(self._under_way)[2]()


class MemorySubscription:
    """One pattern of one member."""

    def __init__(self, network: MemoryNetwork, member: MemoryBus, pattern: str, receiver: Receiver) -> None:
        self.member = member
        self.pattern = pattern
        self._network = network
        self._receiver = receiver
        self._ended = False

    def receive(self, subject: str, packet: bytes | None) -> None:
        """Takes a packet; None: a notice of absence."""
        if self._ended:
            return
        if packet is None:
            self._receiver.receive_absent(subject)
        else:
            self._receiver.receive(subject, packet)

    async def unsubscribe(self) -> None:
        self._network.remove(self)
        self._ended = True


class MemoryBus:
    """The Bus of one member of a MemoryNetwork."""

    def __init__(self, network: MemoryNetwork, metrics: BusMetrics) -> None:
        self.metrics = metrics
        self._network = network
        self._subscriptions: list[MemorySubscription] = []
        self._closed = False

    async def publish(self, subject: str, message: Message, *, absent_to: str | None = None) -> None:
        if absent_to is not None and not verb(absent_to).startswith(ABSENT):
            raise ValueError(f"absent_to {absent_to!r} needs a verb that begins with {ABSENT!r}")
        packets = split(encode(message))
        if self._closed:
            self.metrics.dropped.labels("not connected").inc()
            return
        for index, packet in enumerate(packets):
            self._network.send(self, subject, packet, absent_to if index == 0 else None)
        self.metrics.published_as(type(message)).inc()

    async def subscribe(self, pattern: str, handler: Handler) -> MemorySubscription:
        if self._closed:
            raise ConnectionError("the bus is closed")
        subscription = MemorySubscription(self._network, self, pattern, Receiver(handler, self.metrics))
        self._network.add(subscription)
        self._subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        """Ends it; packets in flight to it are still delivered."""
        self._closed = True
        for subscription in self._subscriptions:
            self._network.remove(subscription)


def matches(pattern: str, subject: str) -> bool:
    """Whether a NATS pattern (`*` one token, `>` the rest) matches a subject."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1]
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(want in ("*", token) for want, token in zip(wanted, tokens, strict=True))
