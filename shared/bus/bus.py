"""The bus: typed messages between services, over NATS (nats_bus.py) or inside a process (memory_bus.py).

Invariant: a handler gets whole, well-formed messages only, in the order in which they reached its subscription; what is
malformed or lost on the way in is counted. Delivery is at most once: what must not be lost is asked for again by its
owner.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import structlog

from shared.bus.parts import Assembler
from shared.protocol import subjects
from shared.protocol.messages import MalformedMessage, Message, decode
from shared.runtime.metrics import BusMetrics

ABSENT = "absent"  # verbs that begin so are for Absent alone

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Absent:
    """Nobody subscribed the subject of a message that asked with absent_to: a hint, never proof."""


Handler: TypeAlias = Callable[[str, Message | Absent], None]


class Subscription(Protocol):
    async def unsubscribe(self) -> None:
        """Ends it; what is under way to it is lost."""
        ...


class Bus(Protocol):
    """What services need of a bus."""

    async def publish(self, subject: str, message: Message, *, absent_to: str | None = None) -> None:
        """Sends a message at most once and never waits for the network; one that can't go out is counted and dropped.

        absent_to: a subject of the sender's own with a verb that begins with "absent", such as
        `subjects.with_verb("gateway", own_id, "absent", receiver_id)`; `Absent` arrives there when nobody subscribes
        `subject`.
        Raises ValueError for a message that is too large.
        """
        ...

    async def subscribe(self, pattern: str, handler: Handler) -> Subscription:
        """Calls `handler(subject, message)` for every message from now on; it must hand over and return at once.

        Raises PermissionError where the server denies the pattern, ConnectionError after `close`.
        """
        ...

    async def close(self) -> None:
        """Delivers what was published and received, then ends all subscriptions."""
        ...


class Receiver:
    """From packets to messages for one subscription: assembling, decoding, counting, and a guard around the handler.

    Nothing that arrives, and nothing that the handler does with it, raises from here.
    """

    def __init__(self, handler: Handler, metrics: BusMetrics) -> None:
        self._handler = handler
        self._metrics = metrics
        self._assembler = Assembler()

    def receive(self, subject: str, packet: bytes) -> None:
        """A bad packet or a failing handler costs that message only."""
        num_dropped = self._assembler.num_dropped
        try:
            data = self._assembler.add(subject, packet, time.monotonic())
            if data is not None:
                self._deliver(subject, decode(data))
        except MalformedMessage as error:
            self._count_malformed(subject, str(error))
        if lost := self._assembler.num_dropped - num_dropped:
            self._metrics.dropped.labels("incomplete").inc(lost)

    def receive_absent(self, subject: str) -> None:
        """The transport says that nobody listened to what named this subject; a peer may have forged it."""
        if subjects.verb(subject).startswith(ABSENT):
            self._deliver(subject, Absent())
        else:
            self._count_malformed(subject, "told that nobody listens on a subject that is not for that")

    def _deliver(self, subject: str, message: Message | Absent) -> None:
        self._metrics.received_as(type(message)).inc()
        try:
            self._handler(subject, message)
        except Exception:
            self._metrics.dropped.labels("handler failed").inc()
            log.exception("handler failed", subject=subject)

    def _count_malformed(self, subject: str, reason: str) -> None:
        self._metrics.dropped.labels("malformed").inc()
        log.debug("malformed message dropped", subject=subject, reason=reason)
